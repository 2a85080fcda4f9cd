//! What came out of a run.

use crate::shape::{Micros, Shape};

/// Windows in which the load of workers is compared.
const WINDOW: Micros = 10_000_000;

/// Sums over the measured part of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests that got their first token.
    pub requests: usize,
    /// Adapters that a worker brought from its disk or from elsewhere, for a request or ahead of any.
    pub cold_loads: usize,
    /// Requests that waited for such a load.
    pub cold_requests: usize,
    /// Milliseconds from arrival to the first token that half of the requests kept within.
    pub ttft_p50_ms: f64,
    /// The same for 99 of 100.
    pub ttft_p99_ms: f64,
    /// Seat time of the busiest worker over the mean of all that are there, in windows of 10 s, in the mean.
    pub balance: f64,
    /// Share of requests that went outside the replica set.
    pub spilled: f64,
    /// Copies that epochs moved to workers without the bytes.
    pub moves: usize,
}

/// Collects while a run goes on.
pub(crate) struct Meter {
    from: Micros,
    ttft_ms: Vec<f64>,
    pub(crate) cold_loads: usize,
    pub(crate) cold_requests: usize,
    pub(crate) spilled: usize,
    pub(crate) sent: usize,
    pub(crate) moves: usize,
    window_end: Micros,
    balances: Vec<f64>,
}

impl Meter {
    pub(crate) fn new(shape: &Shape) -> Self {
        let from = shape.warm_up_seconds * 1_000_000;
        Self {
            from,
            ttft_ms: Vec::new(),
            cold_loads: 0,
            cold_requests: 0,
            spilled: 0,
            sent: 0,
            moves: 0,
            window_end: from + WINDOW,
            balances: Vec::new(),
        }
    }

    pub(crate) fn is_measured(&self, now: Micros) -> bool {
        now >= self.from
    }

    pub(crate) fn first_token(&mut self, arrived: Micros, now: Micros) {
        if self.is_measured(arrived) {
            self.ttft_ms.push((now - arrived) as f64 / 1000.0);
        }
    }

    /// Whether seat times are to be handed over with [`Meter::window`].
    pub(crate) fn is_window_over(&self, now: Micros) -> bool {
        now >= self.window_end
    }

    /// Seat times since the last call, of the workers that were there all the time.
    pub(crate) fn window(&mut self, seat_times: &[f64]) {
        // The first call ends the warm-up as well.
        let most = seat_times.iter().copied().fold(0.0, f64::max);
        let mean = mean(seat_times);
        if mean > 0.0 {
            self.balances.push(most / mean);
        }
        self.window_end += WINDOW;
    }

    pub(crate) fn outcome(mut self) -> Outcome {
        self.ttft_ms.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = self.ttft_ms.len().saturating_sub(1);
            self.ttft_ms.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0)
        };
        Outcome {
            requests: self.ttft_ms.len(),
            cold_loads: self.cold_loads,
            cold_requests: self.cold_requests,
            ttft_p50_ms: at(0.5),
            ttft_p99_ms: at(0.99),
            balance: mean(self.balances.get(1..).unwrap_or(&[])),
            spilled: self.spilled as f64 / self.sent.max(1) as f64,
            moves: self.moves,
        }
    }
}

/// Arithmetic mean; 0 of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

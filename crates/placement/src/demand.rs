//! What is asked for: rates that forget.
//!
//! A count decays by half in a half-life; a rate is the decayed count divided by the mean life (half-life / ln 2), which
//! is the expected decayed count of a steady stream of one per second. Two sums of counts decay alike, so that counts
//! of many gateways may be added in any order.

use std::collections::HashMap;
use weft_types::Digest;

/// After so long a request counts half where it says what is asked for just now.
pub const RECENT_HALF_LIFE_MS: u64 = 20_000;

/// How demand is remembered.
#[derive(Clone, Copy, Debug)]
pub struct DemandSettings {
    /// After so long work counts half: load has to be followed fast. At least 1.
    pub work_half_life_ms: u64,
    /// After so long a request counts half: what is worth keeping is better known from a longer past. At least 1.
    pub request_half_life_ms: u64,
    /// Most adapters remembered; beyond it the least asked for goes.
    pub adapters_max: usize,
}

impl Default for DemandSettings {
    fn default() -> Self {
        Self { work_half_life_ms: 60_000, request_half_life_ms: 600_000, adapters_max: 20_000 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Decayed {
    requests: f64,
    recent_requests: f64,
    work_ms: f64,
    at_ms: u64,
}

/// What is asked for of one adapter, decayed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Requests a second, over [`DemandSettings::request_half_life_ms`].
    pub requests_per_s: f64,
    /// The same over [`RECENT_HALF_LIFE_MS`].
    pub recent_requests_per_s: f64,
    /// Worker time a second, over [`DemandSettings::work_half_life_ms`]: milliseconds a second.
    pub work_ms_per_s: f64,
}

impl Decayed {
    fn factor(&self, now_ms: u64, half_life_ms: u64) -> f64 {
        // A clock that went back counts as standing still.
        (-(now_ms.saturating_sub(self.at_ms) as f64) / half_life_ms.max(1) as f64).exp2()
    }
}

/// Decayed requests and work for each adapter.
#[derive(Clone, Debug)]
pub struct Demand {
    settings: DemandSettings,
    adapters: HashMap<Digest, Decayed>,
}

impl Demand {
    /// Nothing asked for yet.
    #[must_use]
    pub fn new(settings: DemandSettings) -> Self {
        Self { settings, adapters: HashMap::new() }
    }

    /// Takes in requests for an adapter and the worker's time that they cost. Senseless numbers count as nothing.
    /// Cost: constant; every `adapters_max / 8` new adapters beyond the limit, a pass over all.
    pub fn add(&mut self, adapter: Digest, requests: f64, work_ms: f64, now_ms: u64) {
        let (requests, work_ms) = (sound(requests), sound(work_ms));
        let DemandSettings { work_half_life_ms, request_half_life_ms, adapters_max } = self.settings;
        let unasked = Decayed { requests: 0.0, recent_requests: 0.0, work_ms: 0.0, at_ms: now_ms };
        let entry = self.adapters.entry(adapter).or_insert(unasked);
        let recent_before = entry.recent_requests * entry.factor(now_ms, RECENT_HALF_LIFE_MS);
        entry.requests = (entry.requests * entry.factor(now_ms, request_half_life_ms) + requests).min(f64::MAX);
        entry.recent_requests = (recent_before + requests).min(f64::MAX);
        entry.work_ms = (entry.work_ms * entry.factor(now_ms, work_half_life_ms) + work_ms).min(f64::MAX);
        entry.at_ms = entry.at_ms.max(now_ms);
        if self.adapters.len() > adapters_max + adapters_max / 8 {
            self.forget(now_ms);
        }
    }

    /// The rates of one adapter.
    #[must_use]
    pub fn of(&self, adapter: &Digest, now_ms: u64) -> Rates {
        self.adapters.get(adapter).map_or(Rates::default(), |entry| self.rates(entry, now_ms))
    }

    /// Every adapter with its rates, in no order.
    pub fn iter(&self, now_ms: u64) -> impl Iterator<Item = (Digest, Rates)> + '_ {
        self.adapters.iter().map(move |(adapter, entry)| (*adapter, self.rates(entry, now_ms)))
    }

    /// How many adapters are remembered: at most an eighth more than the limit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.adapters.len()
    }

    /// Whether nothing was ever asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    fn rates(&self, entry: &Decayed, now_ms: u64) -> Rates {
        let per_s = |half_life_ms: u64| {
            let mean_life_s = half_life_ms.max(1) as f64 / 1000.0 / std::f64::consts::LN_2;
            entry.factor(now_ms, half_life_ms) / mean_life_s
        };
        let DemandSettings { work_half_life_ms, request_half_life_ms, .. } = self.settings;
        Rates {
            requests_per_s: entry.requests * per_s(request_half_life_ms),
            recent_requests_per_s: entry.recent_requests * per_s(RECENT_HALF_LIFE_MS),
            work_ms_per_s: entry.work_ms * per_s(work_half_life_ms),
        }
    }

    fn forget(&mut self, now_ms: u64) {
        let half_life_ms = self.settings.request_half_life_ms;
        let mut all: Vec<(f64, Digest)> = self
            .adapters
            .iter()
            .map(|(adapter, entry)| (entry.requests * entry.factor(now_ms, half_life_ms), *adapter))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, adapter) in all.drain(self.settings.adapters_max.min(all.len())..) {
            self.adapters.remove(&adapter);
        }
    }
}

fn sound(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    #[test]
    fn a_steady_stream_shows_its_rate_and_is_forgotten_by_half_lives() {
        let mut demand =
            Demand::new(DemandSettings { work_half_life_ms: 10_000, request_half_life_ms: 20_000, adapters_max: 10 });
        for second in 0..400u64 {
            demand.add(digest(1), 4.0, 200.0, second * 1000);
        }
        let steady = demand.of(&digest(1), 399_000);
        assert!((steady.requests_per_s - 4.0).abs() < 0.2, "{steady:?}");
        assert!((steady.recent_requests_per_s - 4.0).abs() < 0.2, "{steady:?}");
        assert!((steady.work_ms_per_s - 200.0).abs() < 10.0, "{steady:?}");
        let later = demand.of(&digest(1), 419_000);
        assert!((later.requests_per_s / steady.requests_per_s - 0.5).abs() < 1e-9, "{later:?}");
        assert!((later.recent_requests_per_s / steady.recent_requests_per_s - 0.5).abs() < 1e-9, "{later:?}");
        assert!((later.work_ms_per_s / steady.work_ms_per_s - 0.25).abs() < 1e-9, "{later:?}");
    }

    #[test]
    fn many_adapters_push_out_the_least_asked_for() {
        let mut demand = Demand::new(DemandSettings { adapters_max: 100, ..Default::default() });
        demand.add(digest(0), 50.0, 1.0, 0);
        for n in 1..10_000 {
            demand.add(digest(n), 1.0, 1.0, n);
            assert!(demand.len() <= 112, "{}", demand.len());
        }
        assert!(demand.of(&digest(0), 10_000).requests_per_s > 0.0);
    }

    #[test]
    fn senseless_numbers_and_clocks_that_go_back_change_nothing() {
        let mut demand = Demand::new(DemandSettings { work_half_life_ms: 0, request_half_life_ms: 0, adapters_max: 4 });
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            demand.add(digest(1), value, value, 100);
        }
        assert_eq!(demand.of(&digest(1), 100), Rates::default());
        demand.add(digest(1), 1.0, 1.0, 100);
        demand.add(digest(1), 1.0, 1.0, 0);
        assert!(demand.of(&digest(1), 0).requests_per_s.is_finite());
    }
}

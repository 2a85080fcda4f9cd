//! What is asked for: rates that forget.
//!
//! A count decays by half in a half-life; a rate is the decayed count divided by the mean life (half-life / ln 2), which
//! is the expected decayed count of a steady stream of one per second. Two sums of counts decay alike, so that counts
//! of many gateways may be added in any order.

use std::collections::HashMap;
use weft_types::Digest;

/// How demand is remembered.
#[derive(Clone, Copy, Debug)]
pub struct DemandSettings {
    /// After so long a request counts half. At least 1.
    pub half_life_ms: u64,
    /// Most adapters remembered; beyond it the least asked for goes.
    pub adapters_max: usize,
}

impl Default for DemandSettings {
    fn default() -> Self {
        Self { half_life_ms: 60_000, adapters_max: 20_000 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Decayed {
    requests: f64,
    work_ms: f64,
    at_ms: u64,
}

impl Decayed {
    fn factor(&self, now_ms: u64, half_life_ms: u64) -> f64 {
        // A clock that went back counts as standing still.
        (-(now_ms.saturating_sub(self.at_ms) as f64) / half_life_ms as f64).exp2()
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
        let half_life_ms = settings.half_life_ms.max(1);
        Self { settings: DemandSettings { half_life_ms, ..settings }, adapters: HashMap::new() }
    }

    /// Takes in requests for an adapter and the worker's time that they cost. Senseless numbers count as nothing.
    /// Cost: constant; every `adapters_max / 8` new adapters beyond the limit, a pass over all.
    pub fn add(&mut self, adapter: Digest, requests: f64, work_ms: f64, now_ms: u64) {
        let (requests, work_ms) = (sound(requests), sound(work_ms));
        let half_life_ms = self.settings.half_life_ms;
        let entry = self.adapters.entry(adapter).or_insert(Decayed { requests: 0.0, work_ms: 0.0, at_ms: now_ms });
        let factor = entry.factor(now_ms, half_life_ms);
        entry.requests = (entry.requests * factor + requests).min(f64::MAX);
        entry.work_ms = (entry.work_ms * factor + work_ms).min(f64::MAX);
        entry.at_ms = entry.at_ms.max(now_ms);
        let slack = self.settings.adapters_max / 8;
        if self.adapters.len() > self.settings.adapters_max + slack {
            self.forget(now_ms);
        }
    }

    /// Requests a second and milliseconds of worker time a second, of one adapter.
    #[must_use]
    pub fn of(&self, adapter: &Digest, now_ms: u64) -> (f64, f64) {
        self.adapters.get(adapter).map_or((0.0, 0.0), |entry| self.rates(entry, now_ms))
    }

    /// Every adapter with its requests a second and milliseconds of worker time a second, in no order.
    pub fn iter(&self, now_ms: u64) -> impl Iterator<Item = (Digest, f64, f64)> + '_ {
        self.adapters.iter().map(move |(adapter, entry)| {
            let (requests, work_ms) = self.rates(entry, now_ms);
            (*adapter, requests, work_ms)
        })
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

    fn rates(&self, entry: &Decayed, now_ms: u64) -> (f64, f64) {
        let half_life_s = self.settings.half_life_ms as f64 / 1000.0;
        let per_s = entry.factor(now_ms, self.settings.half_life_ms) * std::f64::consts::LN_2 / half_life_s;
        (entry.requests * per_s, entry.work_ms * per_s)
    }

    fn forget(&mut self, now_ms: u64) {
        let half_life_ms = self.settings.half_life_ms;
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
        let mut demand = Demand::new(DemandSettings { half_life_ms: 10_000, adapters_max: 10 });
        for second in 0..200u64 {
            demand.add(digest(1), 4.0, 200.0, second * 1000);
        }
        let (requests, work_ms) = demand.of(&digest(1), 199_000);
        assert!((requests - 4.0).abs() < 0.2, "{requests}");
        assert!((work_ms - 200.0).abs() < 10.0, "{work_ms}");
        let (later, _) = demand.of(&digest(1), 209_000);
        assert!((later / requests - 0.5).abs() < 1e-9, "{later}");
    }

    #[test]
    fn many_adapters_push_out_the_least_asked_for() {
        let mut demand = Demand::new(DemandSettings { half_life_ms: 60_000, adapters_max: 100 });
        demand.add(digest(0), 50.0, 1.0, 0);
        for n in 1..10_000 {
            demand.add(digest(n), 1.0, 1.0, n);
            assert!(demand.len() <= 112, "{}", demand.len());
        }
        assert!(demand.of(&digest(0), 10_000).0 > 0.0);
    }

    #[test]
    fn senseless_numbers_and_clocks_that_go_back_change_nothing() {
        let mut demand = Demand::new(DemandSettings { half_life_ms: 0, adapters_max: 4 });
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            demand.add(digest(1), value, value, 100);
        }
        assert_eq!(demand.of(&digest(1), 100), (0.0, 0.0));
        demand.add(digest(1), 1.0, 1.0, 100);
        demand.add(digest(1), 1.0, 1.0, 0);
        assert!(demand.of(&digest(1), 0).0.is_finite());
    }
}

//! What it would cost to load an adapter again, learnt from the loads there were.

use std::time::Duration;

use weft_placement::LOAD_BYTES_MORE;
use weft_proto::cache::v1::Tier;

/// Of a load from memory on a machine that nobody has measured yet.
const FIRST_MS_PER_MB: f64 = 1.0;
/// How much the last load says about the next one.
const WEIGHT: f64 = 1.0 / 8.0;

/// Milliseconds per megabyte of blob, by the tier that loads come from.
#[derive(Debug)]
pub(crate) struct Rates {
    memory: f64,
    disk: f64,
    measured: Measured,
}

/// How fast adapters have come to a slot from each tier, in bytes a second, each blob counted [`LOAD_BYTES_MORE`] larger; 0 from where none
/// has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) memory: f64,
    pub(crate) disk: f64,
    pub(crate) remote: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { memory: FIRST_MS_PER_MB, disk: 2.0 * FIRST_MS_PER_MB, measured: Measured::default() }
    }
}

impl Rates {
    /// A load of so many bytes took so long.
    pub(crate) fn note(&mut self, tier: Tier, blob_bytes: u64, took: Duration) {
        self.measured.note(tier, blob_bytes, took);
        let rate = match tier {
            Tier::Memory => &mut self.memory,
            Tier::Disk => &mut self.disk,
            // What it brought is on the disk now.
            Tier::Neighbour | Tier::Remote | Tier::Unspecified => return,
        };
        let now = took.as_secs_f64() * 1e9 / blob_bytes.max(1) as f64;
        *rate += (now - *rate) * WEIGHT;
    }

    pub(crate) fn measured(&self) -> Measured {
        self.measured
    }

    /// Milliseconds until an adapter that came from this tier could run again: the step that has to end first, and the
    /// load. The constant part is why a small adapter is worth more per byte than a large one.
    pub(crate) fn reload_ms(&self, tier: Tier, blob_bytes: u64, step: Duration) -> f64 {
        let rate = if tier == Tier::Memory { self.memory } else { self.disk };
        step.as_secs_f64() * 1e3 + rate * blob_bytes as f64 / 1e6
    }
}

impl Measured {
    fn note(&mut self, tier: Tier, blob_bytes: u64, took: Duration) {
        let rate = match tier {
            Tier::Memory => &mut self.memory,
            Tier::Disk => &mut self.disk,
            Tier::Neighbour | Tier::Remote => &mut self.remote,
            Tier::Unspecified => return,
        };
        let seconds = took.as_secs_f64().max(1e-6);
        let now = blob_bytes.saturating_add(LOAD_BYTES_MORE) as f64 / seconds;
        // The time of a load is what adds up, so that times are averaged.
        *rate = if *rate > 0.0 { 1.0 / (1.0 / *rate + (1.0 / now - 1.0 / *rate) * WEIGHT) } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_is_measured_by_itself_and_the_first_load_counts_whole() {
        let mut rates = Rates::default();
        assert_eq!((rates.measured().memory, rates.measured().disk, rates.measured().remote), (0.0, 0.0, 0.0));
        rates.note(Tier::Disk, LOAD_BYTES_MORE, Duration::from_secs(1));
        assert_eq!(rates.measured().disk, 2.0 * LOAD_BYTES_MORE as f64);
        for _ in 0..100 {
            rates.note(Tier::Neighbour, 3 * LOAD_BYTES_MORE, Duration::from_secs(2));
            rates.note(Tier::Memory, 0, Duration::ZERO);
        }
        let measured = rates.measured();
        assert!((measured.remote / LOAD_BYTES_MORE as f64 - 2.0).abs() < 1e-9, "{measured:?}");
        assert!(measured.memory.is_finite() && measured.disk == 2.0 * LOAD_BYTES_MORE as f64);
    }

    const MB: u64 = 1_000_000;

    #[test]
    fn reloads_cost_what_loads_from_that_tier_took() {
        let mut rates = Rates::default();
        for _ in 0..100 {
            rates.note(Tier::Disk, 2 * MB, Duration::from_millis(20));
            rates.note(Tier::Memory, 2 * MB, Duration::from_millis(1));
            rates.note(Tier::Remote, 2 * MB, Duration::from_secs(5));
        }
        let step = Duration::from_millis(10);
        assert_eq!(rates.reload_ms(Tier::Memory, 4 * MB, step).round(), 12.0);
        assert_eq!(rates.reload_ms(Tier::Disk, 4 * MB, step).round(), 50.0);
        // It is on the disk by now.
        assert_eq!(rates.reload_ms(Tier::Remote, 4 * MB, step), rates.reload_ms(Tier::Disk, 4 * MB, step));
    }

    #[test]
    fn an_empty_blob_costs_a_step() {
        let mut rates = Rates::default();
        rates.note(Tier::Memory, 0, Duration::ZERO);
        assert_eq!(rates.reload_ms(Tier::Memory, 0, Duration::from_millis(3)), 3.0);
    }
}

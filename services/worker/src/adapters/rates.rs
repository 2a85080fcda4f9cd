//! What it would cost to load an adapter again, learnt from the loads there were.

use std::time::Duration;

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
}

impl Default for Rates {
    fn default() -> Self {
        Self { memory: FIRST_MS_PER_MB, disk: 2.0 * FIRST_MS_PER_MB }
    }
}

impl Rates {
    /// A load of so many bytes took so long. One from afar says nothing here: what it brought is on the disk now.
    pub(crate) fn note(&mut self, tier: Tier, blob_bytes: u64, took: Duration) {
        let rate = match tier {
            Tier::Memory => &mut self.memory,
            Tier::Disk => &mut self.disk,
            Tier::Neighbour | Tier::Remote | Tier::Unspecified => return,
        };
        let now = took.as_secs_f64() * 1e9 / blob_bytes.max(1) as f64;
        *rate += (now - *rate) * WEIGHT;
    }

    /// Milliseconds until an adapter that came from this tier could run again: the step that has to end first, and the
    /// load. The constant part is why a small adapter is worth more per byte than a large one.
    pub(crate) fn reload_ms(&self, tier: Tier, blob_bytes: u64, step: Duration) -> f64 {
        let rate = if tier == Tier::Memory { self.memory } else { self.disk };
        step.as_secs_f64() * 1e3 + rate * blob_bytes as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

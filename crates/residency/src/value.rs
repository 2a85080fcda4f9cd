//! What an entry is worth keeping.
//!
//! The order is that of GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with
//! Greedy-Dual-Size-Frequency Caching Policy", HP Labs HPL-98-69R1, 1998): *frequency × reload cost / bytes*, the smallest
//! goes first. GDSF ages entries by a clock that moves only when something is evicted, so a once popular entry in a quiet
//! cache stays for ever. Here time ages them: the frequency is the combined recency and frequency of LRFU (Lee et
//! al., "LRFU: A Spectrum of Policies that Subsumes the LRU and LFU Policies", IEEE Trans. Computers 50(12), 2001),
//! in which a use that lies one half-life back counts half:
//!
//! ```text
//! frequency(now) = sum over uses of 2^-((now - used_at) / half_life)
//! value(now)     = frequency(now) * reload_cost / bytes
//! ```
//!
//! Every frequency shrinks by the same factor in the same time, so the *order* of two unused entries never changes.
//! That is why we keep the logarithm at time zero, which stays put until the next use and neither under- nor overflows:
//!
//! ```text
//! log2(value at 0) = log2(frequency(last_use)) + last_use / half_life + log2(reload_cost) - log2(bytes)
//! ```

use std::cmp::Ordering;

/// What an entry is worth keeping, per byte: `log2` of its value at time zero. Total order; to compare what has one unit of cost and one half-life.
#[derive(Clone, Copy, Debug)]
pub struct Value(f64);

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// How often and how lately an entry was used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uses {
    /// At `last_ms`, which itself counts 1: at least 1, at most the number of uses.
    frequency: f64,
    last_ms: u64,
}

impl Uses {
    /// One use, at `now_ms`.
    pub(crate) fn first(now_ms: u64) -> Self {
        Self { frequency: 1.0, last_ms: now_ms }
    }

    /// One more use. A clock that went back counts as standing still.
    pub(crate) fn add(&mut self, now_ms: u64, half_life_ms: u64) {
        let now_ms = now_ms.max(self.last_ms);
        let half_lives = (now_ms - self.last_ms) as f64 / half_life_ms as f64;
        self.frequency = 1.0 + self.frequency * (-half_lives).exp2();
        self.last_ms = now_ms;
    }

    /// The value of an entry with these uses. Zero bytes or a reload cost below `f64::MIN_POSITIVE` count as the least
    /// there is, so that the result is always finite.
    pub(crate) fn value(&self, bytes: u64, reload_cost: f64, half_life_ms: u64) -> Value {
        let age = self.last_ms as f64 / half_life_ms as f64;
        let cost = reload_cost.clamp(f64::MIN_POSITIVE, f64::MAX);
        let size = bytes.max(1) as f64;
        Value(self.frequency.log2() + age + cost.log2() - size.log2())
    }
}

/// Why an entry is worth keeping: its uses and what it costs to bring back. Goes with the bytes from one ledger to
/// another, and can be kept when the bytes are gone.
#[derive(Clone, Copy, Debug)]
pub struct Worth {
    pub(crate) uses: Uses,
    pub(crate) reload_cost: f64,
}

impl Worth {
    /// Used once, at `now_ms`. The cost may have any unit, the same for all entries (we use milliseconds); not a
    /// number, zero and less count as the least there is.
    #[must_use]
    pub fn new(reload_cost: f64, now_ms: u64) -> Self {
        Self { uses: Uses::first(now_ms), reload_cost: sound(reload_cost) }
    }

    /// The same uses, with what the last load has taught about the cost.
    #[must_use]
    pub fn with_reload_cost(self, reload_cost: f64) -> Self {
        Self { reload_cost: sound(reload_cost), ..self }
    }

    /// One use more. A clock that went back counts as standing still.
    #[must_use]
    pub fn used(mut self, now_ms: u64, half_life_ms: u64) -> Self {
        self.uses.add(now_ms, half_life_ms);
        self
    }

    /// What so many bytes of this worth are worth each, if a use that lies a half-life back counts half.
    #[must_use]
    pub fn value(&self, bytes: u64, half_life_ms: u64) -> Value {
        self.uses.value(bytes, self.reload_cost, half_life_ms.max(1))
    }

    /// The cost.
    #[must_use]
    pub fn reload_cost(&self) -> f64 {
        self.reload_cost
    }
}

fn sound(reload_cost: f64) -> f64 {
    if reload_cost.is_nan() { 0.0 } else { reload_cost }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn value(uses: &[u64], bytes: u64, cost: f64) -> Value {
        let mut all = Uses::first(uses[0]);
        for &at in &uses[1..] {
            all.add(at, HOUR);
        }
        all.value(bytes, cost, HOUR)
    }

    #[test]
    fn later_more_frequent_smaller_and_dearer_entries_are_worth_more() {
        let plain = value(&[HOUR], 1000, 1.0);
        assert!(value(&[2 * HOUR], 1000, 1.0) > plain);
        assert!(value(&[HOUR, HOUR], 1000, 1.0) > plain);
        assert!(value(&[HOUR], 999, 1.0) > plain);
        assert!(value(&[HOUR], 1000, 1.1) > plain);
    }

    #[test]
    fn one_half_life_outweighs_one_doubling_of_frequency() {
        let twice_long_ago = value(&[0, 0], 1000, 1.0);
        let once_now = value(&[HOUR], 1000, 1.0);
        assert_eq!(twice_long_ago.cmp(&once_now), Ordering::Equal);
        assert!(value(&[HOUR + 1], 1000, 1.0) > twice_long_ago);
    }

    #[test]
    fn extreme_input_stays_finite_and_ordered() {
        for (bytes, cost) in [(0, 0.0), (u64::MAX, f64::INFINITY), (1, f64::NAN), (1, -1.0)] {
            let mut uses = Uses::first(u64::MAX);
            uses.add(0, 1);
            let Value(value) = uses.value(bytes, if cost.is_nan() { 0.0 } else { cost }, 1);
            assert!(value.is_finite(), "bytes {bytes}, cost {cost}: {value}");
        }
    }
}

//! How full a bucket is: the generic cell rate algorithm in its form of a continuously draining bucket (ITU-T I.371,
//! annex A: the "continuous-state leaky bucket", equal in effect to the one that keeps a theoretical arrival time). Kept
//! as a level in units, so that large limits lose nothing to the resolution of a time stamp.
//!
//! In any window of length `w` a bucket admits at most `limit + limit × w / period` units. Pure: time is a parameter.

use std::time::Duration;

/// A bucket's limit: `limit` units at once, and as many again in each period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Units, 1 to 10^12.
    pub limit: u64,
    /// Microseconds in which a full bucket drains.
    pub period_us: u64,
}

/// A bucket at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    /// Units in the bucket. Over the limit: more was used than was reserved.
    pub used: f64,
    /// When, in microseconds of whatever clock keeps the bucket.
    pub at_us: u64,
}

impl Rate {
    /// Units that drain in a microsecond.
    fn drain(&self) -> f64 {
        self.limit as f64 / self.period_us as f64
    }

    /// What is in the bucket now. A clock that went back drains nothing. A bucket is at most twice full, so that a limit
    /// that was lowered, or a request far larger than its estimate, shuts a tenant out for one period and not for ever.
    #[must_use]
    pub fn used_at(&self, level: Level, now_us: u64) -> f64 {
        let drained = now_us.saturating_sub(level.at_us) as f64 * self.drain();
        (level.used - drained).max(0.0).min(2.0 * self.limit as f64)
    }

    /// Microseconds until `amount` units fit beside those in the bucket; 0 if they do now. Not meant for amounts over the
    /// limit, which never fit.
    #[must_use]
    pub fn wait_us(&self, used: f64, amount: f64) -> u64 {
        let excess = used + amount - self.limit as f64;
        if excess <= 0.0 { 0 } else { (excess / self.drain()).ceil() as u64 }
    }

    /// Time until the bucket is empty.
    #[must_use]
    pub fn reset(&self, used: f64) -> Duration {
        Duration::from_micros((used.max(0.0) / self.drain()).ceil() as u64)
    }

    /// The same limit for one of so many: a part of the units in the same period.
    #[must_use]
    pub fn shared_by(&self, parts: u64) -> Self {
        Self { limit: self.limit, period_us: self.period_us.saturating_mul(parts.max(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE_US: u64 = 60_000_000;

    #[test]
    fn a_bucket_drains_at_its_rate_and_says_how_long_to_wait() {
        let rate = Rate { limit: 60, period_us: MINUTE_US };
        let full = Level { used: 60.0, at_us: 0 };
        assert_eq!(rate.used_at(full, 10_000_000), 50.0);
        assert_eq!((rate.wait_us(60.0, 1.0), rate.wait_us(59.0, 1.0)), (1_000_000, 0));
        assert_eq!(rate.reset(30.0), Duration::from_secs(30));
        assert_eq!(rate.used_at(full, 2 * MINUTE_US), 0.0);
        assert_eq!(rate.used_at(Level { used: 9e9, at_us: 5 }, 5), 120.0, "at most twice full");
        assert_eq!(rate.used_at(Level { used: 9.0, at_us: 5 }, 4), 9.0, "a clock that went back drains nothing");
    }

    #[test]
    fn the_largest_limit_keeps_single_units() {
        let rate = Rate { limit: weft_types::Limits::MAX, period_us: 86_400_000_000 };
        let used = rate.used_at(Level { used: 1e12 - 1.0, at_us: 1 << 50 }, 1 << 50);
        assert_eq!((rate.wait_us(used, 1.0), rate.wait_us(used, 2.0)), (0, 1));
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_limit_and_refill(
            limit in 1u64..50,
            asks in proptest::collection::vec((0u64..3_000_000, 1u64..10), 1..200),
        ) {
            let rate = Rate { limit, period_us: MINUTE_US };
            let (mut level, mut now, mut admitted) = (Level::default(), 0, Vec::new());
            for (pause, amount) in asks {
                now += pause;
                let used = rate.used_at(level, now);
                if rate.wait_us(used, amount as f64) == 0 {
                    level = Level { used: used + amount as f64, at_us: now };
                    admitted.push((now, amount));
                }
            }
            for (index, (begin, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (end, amount) in &admitted[index..] {
                    sum += amount;
                    let refill = (end - begin) as f64 * limit as f64 / MINUTE_US as f64;
                    prop_assert!(sum as f64 <= limit as f64 + refill + 1e-6, "{sum} in {} us", end - begin);
                }
            }
        }

        #[test]
        fn who_waits_as_told_is_admitted(limit in 1u64..1000, used in 0.0f64..2000.0, part in 0.0f64..1.0) {
            let rate = Rate { limit, period_us: MINUTE_US };
            let amount = (limit as f64 * part).floor();
            let wait = rate.wait_us(used, amount);
            let later = rate.used_at(Level { used, at_us: 0 }, wait);
            prop_assert!(used > 2.0 * limit as f64 || rate.wait_us(later, amount) <= 1);
        }
    }
}

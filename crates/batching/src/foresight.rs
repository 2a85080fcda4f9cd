//! How long outputs will be, and how many KV blocks that takes at the worst moment.
//!
//! The moment counts, not the sum of all ends: requests that end early make room for those that grow on. The peak over
//! the moments at which somebody ends is that of "Past-Future Scheduler for LLM Serving under SLA Guarantees"
//! (ASPLOS'25). A prediction is no promise: who needs more than was predicted gets it, by preemption at worst.

use std::collections::{HashMap, VecDeque};

use weft_types::Digest;

use crate::turns::Tenant;

/// Output tokens expected of a request of which nothing is known.
const UNKNOWN_TOKENS: f64 = 256.0;
/// Kinds of requests that are remembered; the one first seen goes first.
const KINDS_MAX: usize = 1024;
/// Part of a new length in the running mean, and in the mean distance from it.
const GAIN: f64 = 0.125;

#[derive(Clone, Copy, Debug)]
struct Lengths {
    mean: f64,
    distance: f64,
}

impl Lengths {
    fn first(tokens: f64) -> Self {
        Self { mean: tokens, distance: tokens / 2.0 }
    }

    fn add(&mut self, tokens: f64) {
        self.distance += GAIN * ((tokens - self.mean).abs() - self.distance);
        self.mean += GAIN * (tokens - self.mean);
    }

    /// The mean and twice the mean distance from it, as retransmission timers do (RFC 6298): most are no longer.
    fn expected(&self) -> f64 {
        self.mean + 2.0 * self.distance
    }
}

/// Lengths of outputs by tenant and adapter, learnt as requests end.
#[derive(Debug, Default)]
pub(crate) struct OutputLengths {
    kinds: HashMap<(Tenant, Option<Digest>), Lengths>,
    order: VecDeque<(Tenant, Option<Digest>)>,
    all: Option<Lengths>,
}

impl OutputLengths {
    pub(crate) fn learn(&mut self, tenant: &Tenant, adapter: Option<Digest>, tokens: usize) {
        let tokens = tokens as f64;
        match &mut self.all {
            Some(all) => all.add(tokens),
            None => self.all = Some(Lengths::first(tokens)),
        }
        let kind = (tenant.clone(), adapter);
        if let Some(lengths) = self.kinds.get_mut(&kind) {
            lengths.add(tokens);
            return;
        }
        if self.order.len() >= KINDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.kinds.remove(&oldest);
        }
        self.order.push_back(kind.clone());
        self.kinds.insert(kind, Lengths::first(tokens));
    }

    /// Tokens that a request of this kind will put out, at most `max`, at least 1. A kind not seen yet is taken for the
    /// mean of all.
    pub(crate) fn expect(&self, tenant: &Tenant, adapter: Option<Digest>, max: usize) -> usize {
        let known = self.kinds.get(&(tenant.clone(), adapter)).or(self.all.as_ref());
        let expected = known.map_or(UNKNOWN_TOKENS, Lengths::expected);
        (expected.ceil() as usize).clamp(1, max.max(1))
    }
}

/// A request's tokens in KV memory: now, and still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) tokens: usize,
    pub(crate) to_come: usize,
}

/// Most KV blocks that these hold at any one time, each getting a token a step until it ends.
/// Cost: `n²` for `n` requests; they are as many as run at once.
pub(crate) fn peak_blocks(growths: &[Growth], block_size: usize) -> usize {
    let held_at = |step: usize| -> usize {
        growths
            .iter()
            .filter(|growth| growth.to_come >= step)
            .map(|growth| (growth.tokens + step).div_ceil(block_size))
            .sum()
    };
    growths.iter().map(|growth| held_at(growth.to_come)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(tokens: usize, to_come: usize) -> Growth {
        Growth { tokens, to_come }
    }

    #[test]
    fn the_peak_is_that_of_the_worst_moment_not_the_sum_of_the_ends() {
        // 10 + 2 and 1 + 20: when the first ends they hold 12 + 3, at the end of the second 21.
        assert_eq!(peak_blocks(&[growth(10, 2), growth(1, 20)], 1), 21);
        assert_eq!(peak_blocks(&[growth(10, 2), growth(1, 4)], 1), 15);
        assert_eq!(peak_blocks(&[growth(10, 2), growth(1, 4)], 4), 4);
        assert_eq!(peak_blocks(&[], 4), 0);
    }

    #[test]
    fn the_peak_is_never_less_than_step_by_step() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let growths: Vec<Growth> =
                (0..random(8)).map(|_| growth(random(50) as usize, random(50) as usize)).collect();
            let held = |step: usize| -> usize {
                let alive = growths.iter().filter(|growth| growth.to_come >= step);
                alive.map(|growth| (growth.tokens + step).div_ceil(4)).sum()
            };
            assert_eq!(peak_blocks(&growths, 4), (0..=50).map(held).max().unwrap());
        }
    }

    #[test]
    fn lengths_are_learnt_by_kind_and_a_new_kind_is_taken_for_the_mean_of_all() {
        let mut lengths = OutputLengths::default();
        let (short, long): (Tenant, Tenant) = ("short".into(), "long".into());
        assert_eq!(lengths.expect(&short, None, 5000), 256);
        assert_eq!(lengths.expect(&short, None, 40), 40);
        for _ in 0..64 {
            lengths.learn(&short, None, 10);
            lengths.learn(&long, None, 1000);
        }
        assert_eq!(lengths.expect(&short, None, 5000), 11);
        assert!((1000..1002).contains(&lengths.expect(&long, None, 5000)));
        assert!(lengths.expect(&"new".into(), Some(Digest::of(b"a")), 5000) > 500);
        assert_eq!(lengths.expect(&long, None, 0), 1);
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let mut lengths = OutputLengths::default();
        for number in 0..3 * KINDS_MAX {
            lengths.learn(&format!("t-{number}").into(), None, 7);
        }
        assert_eq!((lengths.kinds.len(), lengths.order.len()), (KINDS_MAX, KINDS_MAX));
    }
}

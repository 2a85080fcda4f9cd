//! Which adapter a request asks for.

use rand::Rng;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How requests spread over `n` adapters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Popularity {
    /// S-LoRA's generator (`benchmarks/trace.py`): adapter ⌊n · u⌋ with u of numpy's power distribution, density
    /// α·u^(α−1) on \[0, 1), so u = U^(1/α). α = 1 is uniform, below 1 low numbers are asked for more.
    Power {
        /// Above 0, finite.
        alpha: f64,
    },
    /// Each alike.
    Uniform,
    /// One after the other, which defeats every cache that keeps what was used last.
    RoundRobin,
}

/// A text that names no popularity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no popularity: write power:ALPHA with an alpha above 0, uniform or round-robin")]
pub struct ParseError(String);

impl Popularity {
    /// The adapter of request number `request`, below `adapters`. 0 if there are none.
    pub fn pick(self, adapters: usize, request: usize, random: &mut impl Rng) -> usize {
        if adapters == 0 {
            return 0;
        }
        let share = match self {
            Self::RoundRobin => return request % adapters,
            Self::Uniform => return random.random_range(0..adapters),
            Self::Power { alpha } => random.random::<f64>().powf(1.0 / alpha),
        };
        // U^(1/α) rounds to 1 for large α.
        ((share * adapters as f64) as usize).min(adapters - 1)
    }
}

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Power { alpha } => write!(f, "power:{alpha}"),
            Self::Uniform => f.write_str("uniform"),
            Self::RoundRobin => f.write_str("round-robin"),
        }
    }
}

impl FromStr for Popularity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError(text.to_owned());
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            None if text == "round-robin" => Ok(Self::RoundRobin),
            Some(("power", alpha)) => {
                let alpha: f64 = alpha.parse().map_err(|_| error())?;
                if alpha.is_finite() && alpha > 0.0 { Ok(Self::Power { alpha }) } else { Err(error()) }
            }
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// Part of the draws below `bound`, of 100 adapters.
    fn share_below(popularity: Popularity, bound: usize, seed: u64) -> f64 {
        let mut random = StdRng::seed_from_u64(seed);
        let draws = 20_000;
        (0..draws).filter(|&n| popularity.pick(100, n, &mut random) < bound).count() as f64 / draws as f64
    }

    #[test]
    fn the_power_law_is_that_of_s_lora() {
        // P(id < k) = (k ÷ n)^α; 20,000 draws are off by less than 0.015 all but once in 10,000 times.
        for seed in 0..3 {
            for alpha in [0.1, 0.3, 1.0, 3.0] {
                for bound in [1, 10, 50] {
                    let (got, wanted) =
                        (share_below(Popularity::Power { alpha }, bound, seed), (bound as f64 / 100.0).powf(alpha));
                    assert!((got - wanted).abs() < 0.015, "alpha {alpha}, below {bound}: {got}, not {wanted}");
                }
            }
            assert!((share_below(Popularity::Uniform, 30, seed) - 0.3).abs() < 0.015);
        }
    }

    #[test]
    fn round_robin_takes_each_in_turn() {
        let mut random = StdRng::seed_from_u64(0);
        let picks: Vec<usize> = (0..5).map(|n| Popularity::RoundRobin.pick(3, n, &mut random)).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn what_is_written_is_read_back_and_nonsense_is_refused() {
        for popularity in [Popularity::Uniform, Popularity::RoundRobin, Popularity::Power { alpha: 0.7 }] {
            assert_eq!(popularity.to_string().parse(), Ok(popularity));
        }
        for text in ["", "power", "power:0", "power:nan", "power:x", "zipf:1", "uniform:1"] {
            assert!(text.parse::<Popularity>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_pick_is_always_one_of_the_adapters(alpha in 1e-3..1e6f64, adapters in 1..5000usize, request: usize, seed: u64) {
            let mut random = StdRng::seed_from_u64(seed);
            for popularity in [Popularity::Power { alpha }, Popularity::Uniform, Popularity::RoundRobin] {
                prop_assert!(popularity.pick(adapters, request, &mut random) < adapters);
            }
        }
    }
}

//! How long prompts and answers are, in tokens.

use rand::Rng;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most tokens that a length may have: far above every model's context, far below what would fill the memory.
const TOKENS_MAX: u32 = 1 << 20;

/// Uniform between two bounds, both included; S-LoRA's is 8-512. Equal bounds: always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    min: u32,
    max: u32,
}

/// A text that is no range of lengths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length: write TOKENS or MIN-MAX, 1 to {TOKENS_MAX}")]
pub struct ParseError(String);

impl Lengths {
    /// Always `tokens`.
    #[must_use]
    pub const fn fixed(tokens: u32) -> Self {
        Self { min: tokens, max: tokens }
    }

    /// Each from `min` to `max` alike; the smaller bound may come second.
    #[must_use]
    pub const fn uniform(min: u32, max: u32) -> Self {
        if min <= max { Self { min, max } } else { Self { min: max, max: min } }
    }

    /// One length.
    pub fn draw(self, random: &mut impl Rng) -> u32 {
        random.random_range(self.min..=self.max)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}-{}", self.min, self.max) }
    }
}

impl FromStr for Lengths {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (min.parse(), max.parse()) {
            (Ok(min), Ok(max)) if 0 < min && min <= max && max <= TOKENS_MAX => Ok(Self { min, max }),
            _ => Err(ParseError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn lengths_fill_their_range_evenly() {
        for seed in 0..3 {
            let mut random = StdRng::seed_from_u64(seed);
            let drawn: Vec<u32> = (0..20_000).map(|_| Lengths::uniform(8, 512).draw(&mut random)).collect();
            let mean = drawn.iter().map(|&length| f64::from(length)).sum::<f64>() / drawn.len() as f64;
            assert!((mean - 260.0).abs() < 4.0, "{mean}");
            assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&8), Some(&512)));
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_nonsense_is_refused() {
        for lengths in [Lengths::fixed(70), Lengths::uniform(8, 512)] {
            assert_eq!(lengths.to_string().parse(), Ok(lengths));
        }
        for text in ["", "0", "-", "5-", "-5", "9-8", "0-3", "1-2-3", "99999999"] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}

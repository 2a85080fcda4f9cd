//! Quantiles of a positive metric from buckets whose width grows with the value.
//!
//! Bucket *i* holds values in (max·g^(-i-1), max·g^-i] with *g* = (1 + e) / (1 - e), and answers with the value that
//! is off by at most the share *e* at both ends: the mapping of DDSketch (Masson, Rim, Lee, VLDB 2019), counted down
//! from the metric's `max` so that the number of buckets is known.

use serde::{Deserialize, Serialize};

/// Largest relative error of a quantile, for values above a millionth of the metric's `max`.
pub const QUANTILE_ERROR: f64 = 0.02;
/// Buckets: enough for six powers of ten; the last one holds everything smaller.
pub const BUCKETS: usize = 347;

/// How often values of each size were seen. At most [`BUCKETS`] × 8 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    /// From the largest values on; without the empty ones at the end.
    counts: Vec<u64>,
}

fn growth_ln() -> f64 {
    ((1.0 + QUANTILE_ERROR) / (1.0 - QUANTILE_ERROR)).ln()
}

impl Histogram {
    /// Takes in a value between 0 and 1: a share of `max`.
    pub fn record(&mut self, value: f64) {
        let size = -value.clamp(1e-9, 1.0).ln() / growth_ln();
        let bucket = (size as usize).min(BUCKETS - 1);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
    }

    /// Both together: associative and commutative. What a foreign histogram has beyond [`BUCKETS`] is left out.
    pub fn merge(&mut self, other: &Self) {
        let theirs = &other.counts[..other.counts.len().min(BUCKETS)];
        if self.counts.len() < theirs.len() {
            self.counts.resize(theirs.len(), 0);
        }
        for (ours, theirs) in self.counts.iter_mut().zip(theirs) {
            *ours = ours.saturating_add(*theirs);
        }
    }

    /// The value, as a share of `max`, that a share `rank` (0 to 1) of all values do not exceed, within
    /// [`QUANTILE_ERROR`] of itself; `None` if there are no values. Cost: a pass over the buckets.
    #[must_use]
    pub fn quantile(&self, rank: f64) -> Option<f64> {
        let total: u128 = self.counts.iter().map(|count| u128::from(*count)).sum();
        if total == 0 {
            return None;
        }
        // How many of the largest values lie above the one that is asked for.
        let above = ((1.0 - rank.clamp(0.0, 1.0)) * (total - 1) as f64).round() as u128;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += u128::from(*count);
            seen > above
        })?;
        // The bucket's upper end is max·g^-bucket; 1 - e times that is off by e of itself at both ends.
        Some((-(bucket as f64) * growth_ln()).exp() * (1.0 - QUANTILE_ERROR))
    }
}

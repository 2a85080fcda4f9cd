//! Intervals, and their intersection over time.

use serde::{Deserialize, Serialize};

/// From `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The smaller end.
    pub low: f64,
    /// The larger end.
    pub high: f64,
}

impl Interval {
    /// How wide it is; 0 if it is empty.
    #[must_use]
    pub fn width(self) -> f64 {
        (self.high - self.low).max(0.0)
    }

    /// Whether the value is in it.
    #[must_use]
    pub fn contains(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.low > self.high
    }

    /// In another unit: times `scale` (0 or more), then plus `shift`.
    #[must_use]
    pub fn scaled(self, scale: f64, shift: f64) -> Self {
        Self { low: self.low * scale + shift, high: self.high * scale + shift }
    }

    /// What is in both; may be empty. A confidence sequence holds at all times at once, so the intersection over all
    /// looks holds with the same probability, and never gets wider (Howard and others 2021). If it is
    /// empty, the means changed meanwhile, or the one case in 1/α has come.
    #[must_use]
    pub fn intersected(self, other: Self) -> Self {
        Self { low: self.low.max(other.low), high: self.high.min(other.high) }
    }
}

//! Count, sum and sum of squares in fixed point: adding is exact, so that merging is associative to the last bit.

use serde::{Deserialize, Serialize};

/// One step of a value: a 2^20-th of its metric's range.
const STEPS: f64 = (1u64 << 20) as f64;
/// Most observations of one metric in one arm and phase; further ones are not counted. Keeps the sums below 2^61.
pub const OBSERVATIONS_MAX: u64 = 1 << 40;

/// Sums over values between 0 and 1 (a metric's range, stretched to that), each rounded to a 2^20-th. 24 bytes,
/// however many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    count: u64,
    /// In steps.
    sum: u64,
    /// In steps; each square is rounded up. A variance that is a little too large keeps the promise, a smaller one
    /// would not.
    squares: u64,
}

impl Moments {
    /// Takes in a value between 0 and 1; what is outside counts as the nearer end, not a number as 0.
    pub fn record(&mut self, value: f64) {
        if self.count >= OBSERVATIONS_MAX {
            return;
        }
        let steps = (value.clamp(0.0, 1.0) * STEPS).round() as u64;
        self.count += 1;
        self.sum += steps;
        self.squares += (steps * steps).div_ceil(STEPS as u64);
    }

    /// Both together. Adds as exactly as integers do; at the end of the numbers, which no honest counts reach, it
    /// stays there.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            sum: self.sum.saturating_add(other.sum),
            squares: self.squares.saturating_add(other.squares),
        }
    }

    /// Observations.
    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }

    /// The sums as numbers, for the formulas.
    #[must_use]
    pub fn sample(self) -> Sample {
        Sample { count: self.count as f64, sum: self.sum as f64 / STEPS, squares: self.squares as f64 / STEPS }
    }
}

/// Sums over values between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// How many values.
    pub count: f64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

impl Sample {
    /// Takes in a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    /// Both together.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self { count: self.count + other.count, sum: self.sum + other.sum, squares: self.squares + other.squares }
    }

    /// The mean; one half if there are no values.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.count > 0.0 { (self.sum / self.count).clamp(0.0, 1.0) } else { 0.5 }
    }

    /// The unbiased variance; 0 if there are fewer than two values.
    #[must_use]
    pub fn variance(&self) -> f64 {
        if self.count < 2.0 {
            return 0.0;
        }
        ((self.squares - self.sum * self.sum / self.count) / (self.count - 1.0)).max(0.0)
    }
}

//! A tenant's share relative to others'.

use serde::{Deserialize, Serialize};

/// A tenant's share of a worker that many tenants want, relative to theirs: 0.01 to 100, kept in thousandths. The default
/// is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u32);

/// The value is no weight; the message gives it and the range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("weight is {0}, allowed are 0.01 to 100")]
pub struct WeightError(f64);

impl Weight {
    /// The smallest weight.
    pub const MIN: f64 = 0.01;
    /// The largest weight.
    pub const MAX: f64 = 100.0;

    /// The nearest thousandth to this value.
    ///
    /// # Errors
    /// It is no number from [`Weight::MIN`] to [`Weight::MAX`].
    pub fn new(value: f64) -> Result<Self, WeightError> {
        // Not a number is within no range.
        if !(Self::MIN..=Self::MAX).contains(&value) {
            return Err(WeightError(value));
        }
        Ok(Self((value * 1000.0).round() as u32))
    }

    /// As a number.
    #[must_use]
    pub fn value(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// What a cost comes to for whoever has this weight: the cost divided by it.
    #[must_use]
    pub fn virtual_cost(self, cost: u64) -> u64 {
        cost.saturating_mul(1000) / u64::from(self.0)
    }

    /// `count` per thousandth of weight, for comparing queues.
    #[must_use]
    pub fn share_of(self, count: usize) -> u64 {
        (count as u64).saturating_mul(1_000_000) / u64::from(self.0)
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1000)
    }
}

impl TryFrom<u32> for Weight {
    type Error = WeightError;

    fn try_from(thousandths: u32) -> Result<Self, WeightError> {
        Self::new(f64::from(thousandths) / 1000.0)
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_out_of_range_are_refused_with_the_range() {
        for bad in [0.0, -1.0, 0.0099, 100.5, f64::NAN, f64::INFINITY] {
            let error = Weight::new(bad).unwrap_err().to_string();
            assert!(error.contains("0.01 to 100"), "{error}");
        }
        for good in [Weight::MIN, 1.0, 2.5, Weight::MAX] {
            assert_eq!(Weight::new(good).unwrap().value(), good);
        }
        assert_eq!(Weight::new(1.0), Ok(Weight::default()));
        assert!(Weight::MIN < Weight::MAX && Weight::new(0.01).unwrap() < Weight::new(100.0).unwrap());
        assert!(Weight::try_from(9).is_err() && Weight::try_from(100_001).is_err());
    }
}

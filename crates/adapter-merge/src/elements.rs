//! Merging element by element: what of each parent stays, and how what stays becomes one value.
//!
//! Works on rows as they come, so that it does not matter whether they belong to a delta or to a factor, and nothing
//! but a row of each parent need be in memory. Elements must come once each, in row-major order.

use crate::chance::Draws;
use crate::recipe::{MajoritySign, Method};

/// What of one parent's elements stays.
#[derive(Clone)]
pub(crate) enum Sieve {
    All,
    /// Those of larger magnitude than `threshold`, and the first `equal_left` of just this magnitude.
    Largest {
        threshold: f32,
        equal_left: usize,
    },
    /// Those that are drawn, times `factor`.
    Drawn {
        draws: Draws,
        factor: f64,
    },
}

impl Sieve {
    /// Keeps the `floor(density · count)` elements of largest magnitude, of equal ones the first, as PEFT counts them.
    /// Reorders `values`. Cost: linear in their number.
    pub(crate) fn largest(values: &mut [f32], density: f64) -> Self {
        let kept = (density * values.len() as f64) as usize;
        if kept >= values.len() {
            return Self::All;
        }
        if kept == 0 {
            return Self::Largest { threshold: f32::INFINITY, equal_left: 0 };
        }
        let first_kept = values.len() - kept;
        let by_magnitude = |one: &f32, other: &f32| one.abs().total_cmp(&other.abs());
        let (_, threshold, larger) = values.select_nth_unstable_by(first_kept, by_magnitude);
        let threshold = threshold.abs();
        let equal_left = 1 + larger.iter().filter(|value| value.abs() == threshold).count();
        Self::Largest { threshold, equal_left }
    }

    /// The next element, or 0.
    fn pass(&mut self, value: f32) -> f64 {
        let stays = match self {
            Self::All => true,
            Self::Largest { threshold, .. } if value.abs() > *threshold => true,
            Self::Largest { threshold, equal_left } => {
                let stays = value.abs() == *threshold && *equal_left > 0;
                *equal_left -= usize::from(stays);
                stays
            }
            Self::Drawn { draws, factor } => return if draws.keep() { f64::from(value) * *factor } else { 0.0 },
        };
        if stays { f64::from(value) } else { 0.0 }
    }
}

/// How what stays becomes one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    /// The weighted sum.
    Sum,
    /// The weighted values that have the elected sign, added up and divided by their number.
    Agreeing(MajoritySign),
}

impl Join {
    pub(crate) fn of(method: Method) -> Self {
        method.majority_sign().map_or(Self::Sum, Self::Agreeing)
    }
}

/// Merges rows of several parents.
pub(crate) struct Merger {
    /// Weight and sieve of each parent.
    parents: Vec<(f64, Sieve)>,
    join: Join,
    /// What stays of each parent's row.
    kept: Vec<Vec<f64>>,
}

impl Merger {
    pub(crate) fn new(parents: Vec<(f64, Sieve)>, join: Join) -> Self {
        let kept = vec![Vec::new(); parents.len()];
        Self { parents, join, kept }
    }

    /// Takes the next row of parent `index`.
    pub(crate) fn take(&mut self, index: usize, row: &[f32]) {
        let sieve = &mut self.parents[index].1;
        let kept = &mut self.kept[index];
        kept.clear();
        kept.extend(row.iter().map(|value| sieve.pass(*value)));
    }

    /// The merged row, once each parent's was taken.
    pub(crate) fn merged(&self, out: &mut [f64]) {
        for (column, out) in out.iter_mut().enumerate() {
            let values = self.parents.iter().zip(&self.kept).map(|((weight, _), kept)| (*weight, kept[column]));
            *out = match self.join {
                Join::Sum => sum(values),
                Join::Agreeing(election) => agreeing(values, election),
            };
        }
    }
}

fn sum(values: impl Iterator<Item = (f64, f64)>) -> f64 {
    let mut sum = 0.0;
    for (weight, value) in values {
        sum += weight * value;
    }
    sum
}

fn agreeing(values: impl Iterator<Item = (f64, f64)> + Clone, election: MajoritySign) -> f64 {
    let mut votes = 0.0;
    for (_, value) in values.clone() {
        votes += match election {
            MajoritySign::Total => value,
            MajoritySign::Frequency => sign(value),
        };
    }
    let elected = if votes >= 0.0 { 1.0 } else { -1.0 };
    let (mut sum, mut count) = (0.0, 0.0_f64);
    for (weight, value) in values {
        if sign(value) == elected {
            sum += weight * value;
            count += 1.0;
        }
    }
    sum / count.max(1.0)
}

/// 1, -1, or 0 for zeros: `f64::signum` of a zero is not zero.
fn sign(value: f64) -> f64 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(values: &[f32], density: f64) -> Vec<f64> {
        let mut sieve = Sieve::largest(&mut values.to_vec(), density);
        values.iter().map(|value| sieve.pass(*value)).collect()
    }

    #[test]
    fn trimming_keeps_the_largest_and_of_equal_ones_the_first() {
        let values = [1.0, -3.0, 2.0, -2.0, 2.0, 0.5];
        assert_eq!(kept(&values, 0.5), [0.0, -3.0, 2.0, -2.0, 0.0, 0.0]);
        assert_eq!(kept(&values, 0.34), [0.0, -3.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(&values, 0.1), [0.0; 6]);
        assert_eq!(kept(&values, 1.0), values.map(f64::from));
        assert_eq!(kept(&[0.0; 4], 0.5), [0.0; 4]);
        assert_eq!(kept(&[], 0.5), [0.0; 0]);
    }

    #[test]
    fn the_elected_sign_decides_who_is_averaged_and_a_draw_is_positive() {
        use MajoritySign::{Frequency, Total};
        let agree = |pairs: &[(f64, f64)], election| agreeing(pairs.iter().copied(), election);
        let values = [(1.0, 5.0), (1.0, -2.0), (2.0, -2.0)];
        assert_eq!(agree(&values, Total), 5.0);
        assert_eq!(agree(&values, Frequency), -3.0);
        assert_eq!(agree(&[(1.0, 3.0), (1.0, -3.0)], Total), 3.0);
        assert_eq!(agree(&[(-1.0, 3.0), (0.5, 1.0)], Total), -1.25);
        assert_eq!(agree(&[(1.0, 0.0), (1.0, 0.0)], Frequency), 0.0);
        assert_eq!(agree(&[(1.0, 0.0), (1.0, -4.0)], Total), -4.0);
    }
}

//! Plain statistics of samples.

use serde::Serialize;

/// A distribution in a few numbers; the unit is that of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// Samples.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// Nine in ten are below.
    pub p90: f64,
    /// Nineteen in twenty are below.
    pub p95: f64,
    /// All but one in a hundred are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// `None` without samples. NaN must not be among them.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let max = *samples.last()?;
        Some(Self {
            count: samples.len(),
            mean: samples.iter().sum::<f64>() / samples.len() as f64,
            p50: quantile(&samples, 0.5),
            p90: quantile(&samples, 0.9),
            p95: quantile(&samples, 0.95),
            p99: quantile(&samples, 0.99),
            max,
        })
    }
}

/// The quantile `q` of sorted samples, between two of them in a straight line (numpy's default, R's type 7).
///
/// # Panics
/// Without samples, or with a `q` outside 0 to 1.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    assert!(!sorted.is_empty() && (0.0..=1.0).contains(&q), "a quantile of nothing, or {q}");
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// The middle; NaN without samples.
#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { f64::NAN } else { quantile(&sorted, 0.5) }
}

/// Jain's fairness index of what each got: 1 if all got the same, 1 ÷ n if one got everything (Jain, Chiu, Hawe 1984).
/// 1 if nobody got anything.
#[must_use]
pub fn jain(got: &[f64]) -> f64 {
    let (sum, squares) = got.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    if squares == 0.0 { 1.0 } else { sum * sum / (got.len() as f64 * squares) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        let numbers = Quantiles::of((1..=101).map(f64::from).collect()).unwrap();
        assert_eq!((numbers.p50, numbers.p90, numbers.p95, numbers.p99), (51.0, 91.0, 96.0, 100.0));
        assert_eq!((numbers.count, numbers.mean, numbers.max), (101, 51.0, 101.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(Quantiles::of(Vec::new()), None);
        assert!((jain(&[3.0, 3.0, 3.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[5.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
        assert_eq!(jain(&[0.0, 0.0]), 1.0);
    }

    /// The definition, counted: the least value with at least `q` of the steps between samples at or below it.
    fn brute_force(samples: &[f64], q: f64) -> (f64, f64) {
        let steps = (samples.len() - 1) as f64;
        let rank = |value: f64| samples.iter().filter(|&&other| other < value).count() as f64;
        let last = |value: f64| samples.iter().filter(|&&other| other <= value).count() as f64 - 1.0;
        let low = samples.iter().copied().filter(|&value| rank(value) <= q * steps).fold(f64::MIN, f64::max);
        let high = samples.iter().copied().filter(|&value| last(value) >= q * steps).fold(f64::MAX, f64::min);
        (low, high)
    }

    proptest! {
        #[test]
        fn a_quantile_lies_between_the_samples_that_counting_finds(
            samples in proptest::collection::vec(-1e6..1e6f64, 1..60), q in 0.0..=1.0f64,
        ) {
            let mut sorted = samples.clone();
            sorted.sort_by(f64::total_cmp);
            let (low, high) = brute_force(&samples, q);
            let got = quantile(&sorted, q);
            prop_assert!(low.min(high) - 1e-6 <= got && got <= low.max(high) + 1e-6, "{low} {got} {high}");
        }

        #[test]
        fn the_index_is_between_one_nth_and_one_and_blind_to_scale(
            got in proptest::collection::vec(0.0..1e6f64, 1..20), scale in 0.1..10f64,
        ) {
            let index = jain(&got);
            prop_assert!(index <= 1.0 + 1e-9 && index >= 1.0 / got.len() as f64 - 1e-9);
            let scaled: Vec<f64> = got.iter().map(|x| x * scale).collect();
            prop_assert!((jain(&scaled) - index).abs() < 1e-9);
        }
    }
}

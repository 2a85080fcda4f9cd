//! Statistics: counted once, refused when they are none of the metric's, added up exactly in any order.

use crate::support::{expose, record, running};
use proptest::prelude::*;
use weft_experiments::{Experiment, Histogram, Moments, PHASES_MAX, QUANTILE_ERROR, Sample, Statistics};

#[test]
fn sums_are_those_of_the_values_within_a_step() {
    let experiment = running();
    let mut statistics = Statistics::new(&experiment);
    record(&mut statistics, &experiment, 1, "feedback", 4.0, 3);
    record(&mut statistics, &experiment, 1, "feedback", 1.0, 1);
    assert_eq!(statistics.sample(0, 1, 0), Sample { count: 4.0, sum: 2.25, squares: 1.6875 });
    assert_eq!(statistics.sample(0, 0, 0), Sample::default());
    assert_eq!(statistics.sample(9, 9, 9), Sample::default());
    // A tenth is no multiple of 2^-20: the sum is off by at most half a step, the squares are never too small.
    let mut moments = Moments::default();
    (0..1000).for_each(|_| moments.record(0.1));
    let sample = moments.sample();
    assert!((sample.sum - 100.0).abs() < 1000.0 * 0.5 / f64::from(1 << 20));
    assert!(sample.squares >= sample.sum * sample.sum / 1000.0);
    assert!(sample.squares - sample.sum * sample.sum / 1000.0 < 1000.0 / f64::from(1 << 20));
}

#[test]
fn a_value_that_is_none_of_the_metrics_is_refused_and_not_counted() {
    let experiment = running();
    let mut statistics = Statistics::new(&experiment);
    for (metric, value, expected) in [
        (0, 0.5, "feedback is 0.5, allowed is 1 to 5"),
        (0, f64::NAN, "feedback is NaN, allowed is 1 to 5"),
        (1, 0.5, "error is 0.5, allowed is 0 or 1"),
        (2, -1.0, "ttft_ms is -1, allowed is a number from 0 on"),
        (2, f64::INFINITY, "ttft_ms is inf, allowed is a number from 0 on"),
        (3, 1.0, "metric 3 is not in the experiment, it has 3"),
    ] {
        let error = statistics.record(&experiment, 0, 1, metric, value).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
    let error = statistics.record(&experiment, 1, 1, 0, 2.0).unwrap_err().to_string();
    assert_eq!(error, "phase 1 is not in the experiment, it has 1");
    let error = statistics.expose(&experiment, 0, 2, true).unwrap_err().to_string();
    assert_eq!(error, "arm 2 is not in the experiment, it has 2");
    assert_eq!(statistics, Statistics::new(&experiment));
    // What is above a positive metric's largest value counts as that.
    statistics.record(&experiment, 0, 1, 2, 1e30).unwrap();
    assert_eq!(statistics.sample(0, 1, 2).sum, 1.0);
}

#[test]
fn statistics_of_another_experiment_are_not_added() {
    let experiment = running();
    let other = Experiment { id: "tone-1".to_owned(), ..experiment.clone() };
    let error = Statistics::new(&experiment).merge(&Statistics::new(&other)).unwrap_err().to_string();
    assert_eq!(error, "statistics of experiment \"tone-1\" cannot be added to those of \"summaries-2\"");
}

#[test]
fn a_full_set_of_statistics_has_a_bounded_size() {
    let mut experiment = crate::support::with_arms(&["v2", "v3", "v4", "v5", "v6", "v7", "v8"]);
    let metric = experiment.metrics[2].clone();
    experiment.metrics =
        (0..16).map(|at| weft_experiments::Metric { name: format!("m{at}"), ..metric.clone() }).collect();
    experiment.earlier_weights = vec![vec![100; 8]; PHASES_MAX - 1];
    let mut statistics = Statistics::new(&experiment);
    for phase in 0..PHASES_MAX {
        for arm in 0..8 {
            expose(&mut statistics, &experiment, arm, 1);
            for metric in 0..16 {
                (0..8).for_each(|power| {
                    statistics.record(&experiment, phase, arm, metric, 10f64.powi(4 - power)).unwrap();
                });
            }
        }
    }
    let bytes = serde_json::to_vec(&statistics).unwrap();
    assert!(bytes.len() < 512 << 10, "{} bytes", bytes.len());
    assert_eq!(serde_json::from_slice::<Statistics>(&bytes).unwrap(), statistics);
}

#[test]
fn quantiles_are_within_their_error() {
    let mut histogram = Histogram::default();
    let values: Vec<f64> = (1..=10_000).map(|at| (f64::from(at) / 10_000.0).powi(3)).collect();
    values.iter().for_each(|value| histogram.record(*value));
    for rank in [0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0] {
        let exact = values[f64::round(rank * 9_999.0) as usize];
        let quantile = histogram.quantile(rank).unwrap();
        assert!((quantile / exact - 1.0).abs() <= QUANTILE_ERROR + 1e-9, "{rank}: {quantile} is not {exact}");
    }
    assert_eq!(Histogram::default().quantile(0.5), None);
    histogram.record(0.0);
    assert!(histogram.quantile(0.0).unwrap() <= 1e-6);
}

/// One thing that a gateway saw: phase, arm, metric, value as a share of its range.
type Seen = (usize, usize, usize, f64);

fn gateway(experiment: &Experiment, seen: &[Seen]) -> Statistics {
    let mut statistics = Statistics::new(experiment);
    for (phase, arm, metric, share) in seen {
        let (min, max) = experiment.metrics[*metric].kind.range();
        let value = if *metric == 1 { share.round() } else { min + share * (max - min) };
        statistics.expose(experiment, *phase, *arm, *share > 0.5).unwrap();
        statistics.record(experiment, *phase, *arm, *metric, value).unwrap();
    }
    statistics
}

fn merged(of: &[&Statistics]) -> Statistics {
    let mut all = of[0].clone();
    of[1..].iter().for_each(|more| all.merge(more).unwrap());
    all
}

proptest! {
    /// To the last bit: whatever the order in which gateways are added, and whatever gateway saw what.
    #[test]
    fn merging_is_associative_and_commutative_and_exact(
        seen in prop::collection::vec((0usize..3, 0usize..2, 0usize..3, 0.0f64..=1.0), 0..60),
        cuts in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let experiment = running().reweighted("v2", 20).unwrap().reweighted("v2", 30).unwrap();
        let (one, two) = (cuts.0.index(seen.len() + 1), cuts.1.index(seen.len() + 1));
        let (one, two) = (one.min(two), one.max(two));
        let [a, b, c] = [&seen[..one], &seen[one..two], &seen[two..]].map(|seen| gateway(&experiment, seen));
        let all = gateway(&experiment, &seen);
        let left = merged(&[&merged(&[&a, &b]), &c]);
        prop_assert_eq!(&left, &merged(&[&a, &merged(&[&b, &c])]));
        let others = [merged(&[&c, &a, &b]), all, left.clone()];
        for other in others {
            // Empty cells at the end are written or not; what they hold is the same.
            for phase in 0..3 {
                for arm in 0..2 {
                    prop_assert_eq!(left.exposures(phase, arm), other.exposures(phase, arm));
                    for metric in 0..3 {
                        prop_assert_eq!(left.sample(phase, arm, metric), other.sample(phase, arm, metric));
                    }
                }
            }
            for arm in 0..2 {
                prop_assert_eq!(left.quantile(arm, 2, 0.5), other.quantile(arm, 2, 0.5));
            }
        }
    }

    /// What a gateway stored, damaged: refused or read, and then whatever it says can be evaluated.
    #[test]
    fn no_foreign_statistics_panic(
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"0123456789[]{},:\"x".to_vec()),
    ) {
        let experiment = running();
        let statistics = gateway(&experiment, &[(0, 0, 0, 0.4), (0, 1, 1, 1.0), (0, 1, 2, 0.2)]);
        let mut bytes = serde_json::to_vec(&statistics).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = serde_json::from_slice::<Statistics>(&bytes) {
            let _ = weft_experiments::report(&experiment, &read, 0);
            let mut all = statistics;
            let _ = all.merge(&read);
            let _ = weft_experiments::decide(&experiment, &all, 0);
        }
    }
}

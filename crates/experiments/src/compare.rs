//! Each arm against the control, metric by metric.
//!
//! α is divided before anything is seen, by the description alone: among the compared arms equally; within an arm the
//! primary metric gets half and the others share the other half (a single metric gets all). By the union bound the
//! probability that any interval ever misses its truth is at most the experiment's α.

use crate::asymptotic::estimate;
use crate::experiment::{Better, Experiment, Kind, Promise, Role};
use crate::interval::Interval;
use crate::sequence::{Contrast, NUISANCE_SHARE, Stratum, mean_interval};
use crate::statistics::Statistics;
use serde::{Deserialize, Serialize};

/// What is known of a metric in an arm, against the control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The arm's name.
    pub arm: String,
    /// The metric's name.
    pub metric: String,
    /// Arm's mean minus control's mean, in the metric's unit; `None` as long as one has no observations.
    pub estimate: Option<f64>,
    /// The confidence sequence of it now, in the metric's unit; empty (low above high) only if the means contradict
    /// each other.
    pub interval: Interval,
    /// Always-valid p-value of "there is no difference"; `None` for shadow arms, which share their requests with the
    /// control.
    pub p_value: Option<f64>,
    /// This comparison's part of the experiment's α.
    pub alpha: f64,
    /// What is promised.
    pub promise: Promise,
    /// What may be said.
    pub verdict: Verdict,
}

/// What may be said of an arm's metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Better than the control's.
    Better,
    /// Worse than the control's.
    Worse,
    /// Neither is shown.
    Undecided,
}

impl Verdict {
    /// By an interval of the difference.
    #[must_use]
    pub fn of(interval: Interval, better: Better) -> Self {
        match better {
            _ if interval.is_empty() || interval.contains(0.0) => Self::Undecided,
            Better::Higher if interval.low > 0.0 => Self::Better,
            Better::Lower if interval.high < 0.0 => Self::Better,
            _ => Self::Worse,
        }
    }
}

/// The part of α that one comparison has.
#[must_use]
pub fn alpha_of(experiment: &Experiment, metric: usize) -> f64 {
    let arms = experiment.compared().count().max(1) as f64;
    let others = experiment.metrics.len().saturating_sub(1) as f64;
    let share = match experiment.metric(&experiment.primary) == Some(metric) {
        _ if others == 0.0 => 1.0,
        true => 0.5,
        false => 0.5 / others,
    };
    experiment.alpha * share / arms
}

/// A metric of an arm and of the control, by phase. Cost: a pass over the phases.
#[must_use]
pub fn strata(experiment: &Experiment, statistics: &Statistics, arm: usize, metric: usize) -> Vec<Stratum> {
    let control = experiment.control();
    let stratum = |phase| {
        let [ours, theirs] = [arm, control].map(|arm| f64::from(experiment.weight(phase, arm)));
        Stratum {
            control: statistics.sample(phase, control, metric),
            arm: statistics.sample(phase, arm, metric),
            arm_share: if ours > 0.0 { ours / (ours + theirs) } else { 0.0 },
        }
    };
    (0..=experiment.phase()).map(stratum).collect()
}

/// How sure an interval is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sides {
    /// Both ends hold.
    Two,
    /// One end that is chosen beforehand holds; nothing is said of the other.
    One,
}

/// What is promised of an arm's metric: a shadow arm's is always exact.
fn promise(experiment: &Experiment, arm: usize, metric: usize) -> Promise {
    match experiment.metrics[metric].kind {
        Kind::Positive { promise, .. } if experiment.arms[arm].role != Role::Shadow => promise,
        _ => Promise::Exact,
    }
}

/// The interval of the difference between an arm and the control, for values stretched to 0..1.
pub(crate) fn difference(
    experiment: &Experiment,
    statistics: &Statistics,
    arm: usize,
    metric: usize,
    alpha: f64,
    sides: Sides,
) -> Interval {
    if experiment.arms[arm].role == Role::Shadow {
        return difference_of_marginals(experiment, statistics, arm, metric, alpha);
    }
    let strata = strata(experiment, statistics, arm, metric);
    if promise(experiment, arm, metric) == Promise::Asymptotic {
        return estimate(&strata).map_or(Interval { low: -1.0, high: 1.0 }, |estimate| estimate.interval(alpha));
    }
    let nuisance_alpha = alpha * NUISANCE_SHARE;
    let side_alpha = match sides {
        Sides::Two => (alpha - nuisance_alpha) / 2.0,
        Sides::One => alpha - nuisance_alpha,
    };
    Contrast::new(&strata).interval(side_alpha, nuisance_alpha)
}

/// A shadow arm's answers belong to requests that the control may have answered too, so the two are not independent.
/// Each has its own confidence sequence, at half of α, and the difference lies between their ends, whatever the two
/// have to do with each other.
fn difference_of_marginals(
    experiment: &Experiment,
    statistics: &Statistics,
    arm: usize,
    metric: usize,
    alpha: f64,
) -> Interval {
    let of = |arm| mean_interval(&statistics.sample_of_all(arm, metric), alpha / 2.0);
    let (ours, theirs) = (of(arm), of(experiment.control()));
    Interval { low: ours.low - theirs.high, high: ours.high - theirs.low }
}

/// Every arm but the control, with every metric: in the order of the description. Cost: about a millisecond for each.
#[must_use]
pub fn compare(experiment: &Experiment, statistics: &Statistics) -> Vec<Comparison> {
    let metrics = 0..experiment.metrics.len();
    let pairs = experiment.compared().flat_map(|arm| metrics.clone().map(move |metric| (arm, metric)));
    pairs.map(|(arm, metric)| compare_one(experiment, statistics, arm, metric)).collect()
}

fn compare_one(experiment: &Experiment, statistics: &Statistics, arm: usize, metric: usize) -> Comparison {
    let described = &experiment.metrics[metric];
    let (min, max) = described.kind.range();
    let alpha = alpha_of(experiment, metric);
    let promise = promise(experiment, arm, metric);
    let strata = strata(experiment, statistics, arm, metric);
    let observed = estimate(&strata);
    let interval = difference(experiment, statistics, arm, metric, alpha, Sides::Two);
    let p_value = match promise {
        _ if experiment.arms[arm].role == Role::Shadow => None,
        Promise::Asymptotic => Some(observed.map_or(1.0, |estimate| estimate.p_value(0.0, alpha))),
        Promise::Exact => Some(Contrast::new(&strata).p_value(0.0, alpha * NUISANCE_SHARE)),
    };
    let estimate = if experiment.arms[arm].role == Role::Shadow {
        let [ours, theirs] = [arm, experiment.control()].map(|arm| statistics.sample_of_all(arm, metric));
        (ours.count > 0.0 && theirs.count > 0.0).then(|| ours.mean() - theirs.mean())
    } else {
        observed.map(|estimate| estimate.difference)
    };
    Comparison {
        arm: experiment.arms[arm].name.clone(),
        metric: described.name.clone(),
        estimate: estimate.map(|share| share * (max - min)),
        interval: interval.scaled(max - min, 0.0),
        p_value,
        alpha,
        promise,
        verdict: Verdict::of(interval, described.better),
    }
}

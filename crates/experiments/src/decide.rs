//! What follows from what was observed: a plain function of description, statistics and time.

use crate::compare::{Comparison, Sides, Verdict, compare, difference};
use crate::experiment::{Better, Experiment, Guardrail, Role, Rule, State};
use crate::sequence::mean_interval;
use crate::split::{SPLIT_ALPHA, split_p_value};
use crate::statistics::Statistics;
use serde::{Deserialize, Serialize};

/// What to do. Doing it is the caller's: [`Experiment::without_arm`], [`Experiment::promoted`],
/// [`Experiment::stopped`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decision {
    /// Nothing.
    Keep {
        /// Why not more.
        reason: KeepReason,
    },
    /// These arms get no requests any more.
    StopArms {
        /// Each arm once, with the first guardrail that it broke.
        stops: Vec<Stop>,
    },
    /// This arm is better than the control by the primary metric, and worse by none.
    Winner {
        /// Its name.
        arm: String,
    },
    /// It ends without a winner.
    End {
        /// Why.
        reason: EndReason,
    },
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepReason {
    /// It does not run.
    NotRunning,
    /// Nothing is shown yet.
    Undecided,
    /// Requests do not go where the weights send them, so nothing may be concluded; guardrails still stop arms.
    SplitBroken,
}

/// Why an experiment ends without a winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its time is over.
    Time,
    /// All arms beside the control were stopped.
    NoArms,
}

/// An arm that a guardrail stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The arm's name.
    pub arm: String,
    /// The guardrail's metric.
    pub metric: String,
    /// What did not hold.
    pub rule: Rule,
    /// How bad it is at least, in the metric's unit: the difference to the control, or the mean itself, at the end of
    /// the one-sided confidence sequence that is nearer to good.
    pub at_least: f64,
}

/// Decides. Equal inputs give equal answers; may be called after every observation. Guardrails go before winners, a
/// broken split before a winner, a winner before the end. `now_ms`: Unix milliseconds. Cost: about a
/// millisecond for each comparison and guardrail, so some tenths of a second with every limit reached.
#[must_use]
pub fn decide(experiment: &Experiment, statistics: &Statistics, now_ms: u64) -> Decision {
    decide_by(experiment, statistics, &compare(experiment, statistics), now_ms)
}

/// The same with comparisons that were made already.
pub(crate) fn decide_by(
    experiment: &Experiment,
    statistics: &Statistics,
    comparisons: &[Comparison],
    now_ms: u64,
) -> Decision {
    if experiment.state != State::Running {
        return Decision::Keep { reason: KeepReason::NotRunning };
    }
    let stops = stops(experiment, statistics);
    if !stops.is_empty() {
        return Decision::StopArms { stops };
    }
    let is_split_broken = split_p_value(experiment, statistics) <= SPLIT_ALPHA;
    if !is_split_broken && let Some(arm) = winner(experiment, statistics, comparisons) {
        return Decision::Winner { arm };
    }
    if experiment.compared().all(|arm| experiment.arms[arm].weight == 0) {
        return Decision::End { reason: EndReason::NoArms };
    }
    if experiment.ends_ms.is_some_and(|ends_ms| now_ms >= ends_ms) {
        return Decision::End { reason: EndReason::Time };
    }
    Decision::Keep { reason: if is_split_broken { KeepReason::SplitBroken } else { KeepReason::Undecided } }
}

/// Arms that still get requests and break a guardrail.
fn stops(experiment: &Experiment, statistics: &Statistics) -> Vec<Stop> {
    let running = experiment.compared().filter(|arm| experiment.arms[*arm].weight > 0);
    running
        .filter_map(|arm| experiment.guardrails.iter().find_map(|rail| broken(experiment, statistics, arm, rail)))
        .collect()
}

fn broken(experiment: &Experiment, statistics: &Statistics, arm: usize, guardrail: &Guardrail) -> Option<Stop> {
    let metric = experiment.metric(&guardrail.metric)?;
    let sample = statistics.sample_of_all(arm, metric);
    if sample.count < guardrail.observations_min as f64 {
        return None;
    }
    let described = &experiment.metrics[metric];
    let (min, max) = described.kind.range();
    let alpha = guardrail_alpha(experiment);
    let (interval, bound) = match guardrail.rule {
        Rule::WorseBy(margin) => {
            let interval = difference(experiment, statistics, arm, metric, alpha, Sides::One);
            let signed = if described.better == Better::Lower { margin } else { -margin };
            (interval.scaled(max - min, 0.0), signed)
        }
        // One end of a two-sided sequence at twice α.
        Rule::Limit(limit) => (mean_interval(&sample, 2.0 * alpha).scaled(max - min, min), limit),
    };
    let (at_least, is_broken) = match described.better {
        Better::Lower => (interval.low, interval.low > bound),
        Better::Higher => (interval.high, interval.high < bound),
    };
    (is_broken && !interval.is_empty()).then(|| Stop {
        arm: experiment.arms[arm].name.clone(),
        metric: described.name.clone(),
        rule: guardrail.rule,
        at_least,
    })
}

/// The part of the guardrails' α that one guardrail has in one arm.
#[must_use]
pub fn guardrail_alpha(experiment: &Experiment) -> f64 {
    let tests = experiment.compared().count() * experiment.guardrails.len();
    experiment.guardrail_alpha / tests.max(1) as f64
}

/// The treatment that may win with the largest difference of the primary metric.
fn winner(experiment: &Experiment, statistics: &Statistics, comparisons: &[Comparison]) -> Option<String> {
    let primary = experiment.metric(&experiment.primary)?;
    let least = experiment.observations_min as f64;
    let mut best: Option<(f64, usize)> = None;
    for arm in experiment.compared() {
        let described = &experiment.arms[arm];
        let of_arm = || comparisons.iter().filter(|comparison| comparison.arm == described.name);
        let is_better =
            of_arm().any(|comparison| comparison.metric == experiment.primary && comparison.verdict == Verdict::Better);
        let may_win = described.role == Role::Treatment
            && described.weight > 0
            && is_better
            && of_arm().all(|comparison| comparison.verdict != Verdict::Worse)
            && [arm, experiment.control()].into_iter().all(|arm| statistics.sample_of_all(arm, primary).count >= least);
        if !may_win {
            continue;
        }
        let by = of_arm().find(|comparison| comparison.metric == experiment.primary);
        let size = by.and_then(|comparison| comparison.estimate).map_or(0.0, f64::abs);
        if best.is_none_or(|(largest, _)| size > largest) {
            best = Some((size, arm));
        }
    }
    best.map(|(_, arm)| experiment.arms[arm].name.clone())
}

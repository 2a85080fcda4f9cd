//! Everything that is known of an experiment, as plain data: what an admin API returns and a page shows.

use crate::compare::{Comparison, Verdict, compare};
use crate::decide::{Decision, decide_by};
use crate::experiment::{Experiment, Kind, Role, State};
use crate::interval::Interval;
use crate::sequence::mean_interval;
use crate::split::{SPLIT_ALPHA, split_p_value};
use crate::statistics::Statistics;
use serde::{Deserialize, Serialize};
use weft_types::{AdapterName, Digest, TenantName};

/// An experiment's results at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The experiment's id.
    pub experiment: String,
    /// Whose it is.
    pub tenant: TenantName,
    /// Of which adapter.
    pub adapter: AdapterName,
    /// Of which revision of the description.
    pub revision: u64,
    /// Where it stands.
    pub state: State,
    /// When this was computed: Unix milliseconds.
    pub now_ms: u64,
    /// In the order of the description.
    pub arms: Vec<ArmReport>,
    /// Arms against the control; in the order of the description.
    pub comparisons: Vec<Comparison>,
    /// Whether requests go where the weights send them.
    pub split: SplitReport,
    /// What follows.
    pub decision: Decision,
    /// Metrics, as `arm/metric`, whose interval contradicts an earlier one: their means changed with time.
    pub contradictions: Vec<String>,
}

/// One arm's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmReport {
    /// Its name.
    pub name: String,
    /// What it serves.
    pub digest: Digest,
    /// What it is for.
    pub role: Role,
    /// Its weight now.
    pub weight: u32,
    /// Requests given or mirrored to it.
    pub exposures: u64,
    /// Those that count as one unit of the split.
    pub units: u64,
    /// In the order of the description.
    pub metrics: Vec<MetricReport>,
}

/// A metric in one arm, in the metric's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// Observations.
    pub count: u64,
    /// Their mean; `None` without observations.
    pub mean: Option<f64>,
    /// The mean's own confidence sequence, exact, at the experiment's α: for the page, not part of any decision.
    pub interval: Interval,
    /// Median, for positive metrics, within [`crate::QUANTILE_ERROR`] of itself.
    pub p50: Option<f64>,
    /// 95th percentile, likewise.
    pub p95: Option<f64>,
    /// 99th percentile, likewise.
    pub p99: Option<f64>,
}

/// The check of the split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitReport {
    /// Always-valid p-value of "requests were split as planned".
    pub p_value: f64,
    /// Whether it is so small that nothing may be concluded.
    pub is_broken: bool,
}

/// Computes the results. `now_ms`: Unix milliseconds. Cost: that of [`compare`] and [`crate::decide`].
#[must_use]
pub fn report(experiment: &Experiment, statistics: &Statistics, now_ms: u64) -> Report {
    let comparisons = compare(experiment, statistics);
    let decision = decide_by(experiment, statistics, &comparisons, now_ms);
    let p_value = split_p_value(experiment, statistics);
    Report {
        experiment: experiment.id.clone(),
        tenant: experiment.tenant.clone(),
        adapter: experiment.adapter.clone(),
        revision: experiment.revision,
        state: experiment.state.clone(),
        now_ms,
        arms: (0..experiment.arms.len()).map(|arm| arm_report(experiment, statistics, arm)).collect(),
        comparisons,
        split: SplitReport { p_value, is_broken: p_value <= SPLIT_ALPHA },
        decision,
        contradictions: Vec::new(),
    }
}

fn arm_report(experiment: &Experiment, statistics: &Statistics, arm: usize) -> ArmReport {
    let described = &experiment.arms[arm];
    let (mut exposures, mut units) = (0u64, 0u64);
    for phase in 0..=experiment.phase() {
        let (more_exposures, more_units) = statistics.exposures(phase, arm);
        exposures = exposures.saturating_add(more_exposures);
        units = units.saturating_add(more_units);
    }
    ArmReport {
        name: described.name.clone(),
        digest: described.digest,
        role: described.role,
        weight: described.weight,
        exposures,
        units,
        metrics: (0..experiment.metrics.len())
            .map(|metric| metric_report(experiment, statistics, arm, metric))
            .collect(),
    }
}

fn metric_report(experiment: &Experiment, statistics: &Statistics, arm: usize, metric: usize) -> MetricReport {
    let described = &experiment.metrics[metric];
    let (min, max) = described.kind.range();
    let sample = statistics.sample_of_all(arm, metric);
    let is_positive = matches!(described.kind, Kind::Positive { .. });
    let quantile = |rank| statistics.quantile(arm, metric, rank).filter(|_| is_positive).map(|share| share * max);
    MetricReport {
        name: described.name.clone(),
        count: sample.count as u64,
        mean: (sample.count > 0.0).then(|| sample.mean() * (max - min) + min),
        interval: mean_interval(&sample, experiment.alpha).scaled(max - min, min),
        p50: quantile(0.5),
        p95: quantile(0.95),
        p99: quantile(0.99),
    }
}

impl Report {
    /// This report with each interval of a difference cut to what an earlier report left: never wider than before,
    /// with the same probability of being right. Where nothing is left, this report's own interval stays and the
    /// metric is named in [`Report::contradictions`]. The decision stays that of [`crate::decide`]. Verdicts follow
    /// the cut intervals. A report of another experiment changes nothing.
    #[must_use]
    pub fn since(mut self, earlier: &Self, experiment: &Experiment) -> Self {
        if self.experiment != earlier.experiment {
            return self;
        }
        for now in &mut self.comparisons {
            let is_same = |before: &&Comparison| before.arm == now.arm && before.metric == now.metric;
            let Some(before) = earlier.comparisons.iter().find(is_same) else { continue };
            let both = now.interval.intersected(before.interval);
            if both.is_empty() {
                self.contradictions.push(format!("{}/{}", now.arm, now.metric));
                continue;
            }
            now.interval = both;
            if let Some(metric) = experiment.metric(&now.metric) {
                now.verdict = Verdict::of(both, experiment.metrics[metric].better);
            }
        }
        self
    }
}

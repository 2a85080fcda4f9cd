//! What was observed, as sums that add up: each gateway keeps its own, whoever evaluates adds the latest of every
//! gateway.
//!
//! Everything is by phase, arm and metric, at the positions they have in the description. The size is bounded by
//! those: at most [`crate::PHASES_MAX`] × [`crate::ARMS_MAX`] × [`crate::METRICS_MAX`] cells of 24 bytes, and a
//! histogram of at most 2.8 kB for each arm and positive metric.

use crate::experiment::{Experiment, Kind};
use crate::histogram::Histogram;
use crate::moments::{Moments, Sample};
use serde::{Deserialize, Serialize};

/// A value that is not counted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// The description has no such phase, arm or metric.
    #[error("{what} {at} is not in the experiment, it has {count}")]
    Unknown {
        /// Phase, arm or metric.
        what: &'static str,
        /// The position asked for.
        at: usize,
        /// How many there are.
        count: usize,
    },
    /// The value is none of the metric's.
    #[error("{metric} is {value}, allowed is {allowed}")]
    Value {
        /// The metric's name.
        metric: String,
        /// The value.
        value: f64,
        /// Its values.
        allowed: String,
    },
}

/// Statistics of another experiment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("statistics of experiment {theirs:?} cannot be added to those of {ours:?}")]
pub struct MergeError {
    /// What these are of.
    pub ours: String,
    /// What the others are of.
    pub theirs: String,
}

/// What was observed in an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// The experiment's id.
    experiment: String,
    phases: Vec<Phase>,
    /// Of all phases; by arm, then metric.
    histograms: Vec<Vec<Histogram>>,
}

/// What was observed under one set of weights: one entry for each arm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Phase {
    arms: Vec<Cell>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cell {
    /// Requests.
    exposures: u64,
    /// Those that count as one unit of the split.
    units: u64,
    metrics: Vec<Moments>,
}

impl Statistics {
    /// Nothing yet.
    #[must_use]
    pub fn new(experiment: &Experiment) -> Self {
        Self { experiment: experiment.id.clone(), ..Self::default() }
    }

    /// Counts that a request was given to this arm, or mirrored to it. `is_unit`: whether it is one of the
    /// independent draws of the split: a request without a key or the first of its key. Cost: constant.
    ///
    /// # Errors
    /// [`RecordError::Unknown`].
    pub fn expose(
        &mut self,
        experiment: &Experiment,
        phase: usize,
        arm: usize,
        is_unit: bool,
    ) -> Result<(), RecordError> {
        let cell = self.cell(experiment, phase, arm)?;
        cell.exposures = cell.exposures.saturating_add(1);
        cell.units = cell.units.saturating_add(u64::from(is_unit));
        Ok(())
    }

    /// Counts a value of a metric, in the metric's unit, under the phase in which its request was assigned. A
    /// positive value above the metric's `max` counts as `max`. With [`crate::Unit::Key`] the caller records only the
    /// first request of a key. Cost: constant.
    ///
    /// # Errors
    /// [`RecordError`]; then nothing was counted.
    pub fn record(
        &mut self,
        experiment: &Experiment,
        phase: usize,
        arm: usize,
        metric: usize,
        value: f64,
    ) -> Result<(), RecordError> {
        let count = experiment.metrics.len();
        let Some(described) = experiment.metrics.get(metric) else {
            return Err(RecordError::Unknown { what: "metric", at: metric, count });
        };
        let allowed = match described.kind {
            Kind::Binary if value != 0.0 && value != 1.0 => Some("0 or 1".to_owned()),
            Kind::Score { min, max } if !(min..=max).contains(&value) => Some(format!("{min} to {max}")),
            Kind::Positive { .. } if !(value.is_finite() && value >= 0.0) => Some("a number from 0 on".to_owned()),
            _ => None,
        };
        if let Some(allowed) = allowed {
            return Err(RecordError::Value { metric: described.name.clone(), value, allowed });
        }
        let (min, max) = described.kind.range();
        let share = (value - min) / (max - min);
        let cell = self.cell(experiment, phase, arm)?;
        cell.metrics.resize(cell.metrics.len().max(count), Moments::default());
        cell.metrics[metric].record(share);
        if matches!(described.kind, Kind::Positive { .. }) {
            self.histogram(experiment, arm, metric).record(share);
        }
        Ok(())
    }

    fn cell(&mut self, experiment: &Experiment, phase: usize, arm: usize) -> Result<&mut Cell, RecordError> {
        let (phases, arms) = (experiment.phase() + 1, experiment.arms.len());
        if phase >= phases {
            return Err(RecordError::Unknown { what: "phase", at: phase, count: phases });
        }
        if arm >= arms {
            return Err(RecordError::Unknown { what: "arm", at: arm, count: arms });
        }
        self.phases.resize(self.phases.len().max(phase + 1), Phase::default());
        let cells = &mut self.phases[phase].arms;
        cells.resize(cells.len().max(arms), Cell::default());
        Ok(&mut cells[arm])
    }

    fn histogram(&mut self, experiment: &Experiment, arm: usize, metric: usize) -> &mut Histogram {
        self.histograms.resize(self.histograms.len().max(experiment.arms.len()), Vec::new());
        let histograms = &mut self.histograms[arm];
        histograms.resize(histograms.len().max(experiment.metrics.len()), Histogram::default());
        &mut histograms[metric]
    }

    /// Adds what another gateway observed; associative and commutative, exactly. Not idempotent: add each gateway's
    /// latest once. Cost: a pass over both.
    ///
    /// # Errors
    /// They are of another experiment; then nothing was added.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if self.experiment != other.experiment {
            return Err(MergeError { ours: self.experiment.clone(), theirs: other.experiment.clone() });
        }
        merge_each(&mut self.phases, &other.phases, |ours, theirs| {
            merge_each(&mut ours.arms, &theirs.arms, |ours, theirs| {
                ours.exposures = ours.exposures.saturating_add(theirs.exposures);
                ours.units = ours.units.saturating_add(theirs.units);
                merge_each(&mut ours.metrics, &theirs.metrics, |ours, theirs| *ours = ours.merged(*theirs));
            });
        });
        merge_each(&mut self.histograms, &other.histograms, |ours, theirs| merge_each(ours, theirs, Histogram::merge));
        Ok(())
    }

    /// The sums of a metric in an arm and a phase, of values stretched to 0..1; empty for what there is not.
    #[must_use]
    pub fn sample(&self, phase: usize, arm: usize, metric: usize) -> Sample {
        let cell = self.phases.get(phase).and_then(|phase| phase.arms.get(arm));
        cell.and_then(|cell| cell.metrics.get(metric)).map_or(Sample::default(), |moments| moments.sample())
    }

    /// The same over all phases.
    #[must_use]
    pub fn sample_of_all(&self, arm: usize, metric: usize) -> Sample {
        let samples = (0..self.phases.len()).map(|phase| self.sample(phase, arm, metric));
        samples.fold(Sample::default(), Sample::merged)
    }

    /// Requests that an arm was given in a phase, and how many of them were units of the split.
    #[must_use]
    pub fn exposures(&self, phase: usize, arm: usize) -> (u64, u64) {
        let cell = self.phases.get(phase).and_then(|phase| phase.arms.get(arm));
        cell.map_or((0, 0), |cell| (cell.exposures, cell.units))
    }

    /// The value of a positive metric that a share `rank` of an arm's values do not exceed, as a share of the
    /// metric's `max` ([`Histogram::quantile`]).
    #[must_use]
    pub fn quantile(&self, arm: usize, metric: usize, rank: f64) -> Option<f64> {
        self.histograms.get(arm).and_then(|arm| arm.get(metric)).and_then(|histogram| histogram.quantile(rank))
    }
}

/// Position by position; what only the others have is taken over.
fn merge_each<T: Clone + Default>(ours: &mut Vec<T>, theirs: &[T], merge: impl Fn(&mut T, &T)) {
    if ours.len() < theirs.len() {
        ours.resize(theirs.len(), T::default());
    }
    for (ours, theirs) in ours.iter_mut().zip(theirs) {
        merge(ours, theirs);
    }
}

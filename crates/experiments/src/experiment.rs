//! What a split test is: arms, weights, metrics, and what stops it.

use serde::{Deserialize, Serialize};
use weft_types::{AdapterName, AliasName, Digest, TenantName};

/// Longest description, in bytes of JSON.
pub const DESCRIPTION_BYTES_MAX: usize = 64 << 10;
/// Most arms, control and shadow arms among them.
pub const ARMS_MAX: usize = 8;
/// Most metrics.
pub const METRICS_MAX: usize = 16;
/// Most guardrails.
pub const GUARDRAILS_MAX: usize = 16;
/// Most phases: every change of a weight begins one.
pub const PHASES_MAX: usize = 16;
/// Largest weight of an arm; of a shadow arm: all requests.
pub const WEIGHT_MAX: u32 = 10_000;
/// Smallest and largest α of an experiment or of its guardrails.
pub const ALPHA_RANGE: (f64, f64) = (0.0001, 0.2);
/// Largest number of any kind in a description (ranges of metrics, margins, least observations).
pub const VALUE_MAX: f64 = 1e12;

/// A split test of one adapter's versions. Read one with [`Experiment::parse`], or call [`Experiment::check`] on one
/// that was built; every function of this room takes a checked one and does not panic on any other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// `[a-z0-9][a-z0-9-]{0,62}`. Salts the assignment: two experiments split the same keys independently.
    pub id: String,
    /// Whose adapter it is.
    pub tenant: TenantName,
    /// The adapter.
    pub adapter: AdapterName,
    /// The alias whose requests are split.
    #[serde(default = "AliasName::live")]
    pub alias: AliasName,
    /// 2 to [`ARMS_MAX`]; one of them the control. Their number and order stay as they are once it runs.
    pub arms: Vec<Arm>,
    /// The weights of earlier phases, one for each arm, oldest first; written by [`Experiment::reweighted`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_weights: Vec<Vec<u32>>,
    /// 1 to [`METRICS_MAX`]. Their number and order stay as they are once it runs.
    pub metrics: Vec<Metric>,
    /// The metric that decides about a winner.
    pub primary: String,
    /// Probability that any comparison of any arm and metric with the control is ever wrong. [`ALPHA_RANGE`].
    #[serde(default = "five_percent")]
    pub alpha: f64,
    /// At most [`GUARDRAILS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guardrails: Vec<Guardrail>,
    /// Probability that any guardrail ever stops an arm that keeps it. [`ALPHA_RANGE`].
    #[serde(default = "five_percent")]
    pub guardrail_alpha: f64,
    /// Observations of the primary metric, in each of the two arms, before there can be a winner.
    #[serde(default)]
    pub observations_min: u64,
    /// What is counted as one observation.
    #[serde(default)]
    pub unit: Unit,
    /// When it ends without a winner: Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_ms: Option<u64>,
    /// Where it stands.
    #[serde(default)]
    pub state: State,
    /// One more with every change.
    #[serde(default)]
    pub revision: u64,
}

fn five_percent() -> f64 {
    0.05
}

/// One version in the test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// `[a-z0-9][a-z0-9-]{0,62}`, unlike the other arms'. Part of the assignment's hash.
    pub name: String,
    /// What it serves.
    pub digest: Digest,
    /// What it is for.
    #[serde(default)]
    pub role: Role,
    /// 0 to [`WEIGHT_MAX`]. Control and treatments: the share of requests is this over the sum of theirs; 0 is none.
    /// A shadow arm: of [`WEIGHT_MAX`] requests so many are mirrored.
    pub weight: u32,
}

/// What an arm is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What the others are compared with.
    Control,
    /// May win.
    #[default]
    Treatment,
    /// Gets copies of requests; its answers are recorded and never returned.
    Shadow,
}

/// Something measured for requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// `[a-z0-9][a-z0-9_]{0,62}`, such as `error`, `ttft_ms`, `feedback`; unlike the other metrics'.
    pub name: String,
    /// Its values.
    pub kind: Kind,
    /// Which way is good.
    pub better: Better,
}

/// The values of a metric, and by that which promise its comparison has (`docs/experiments.md`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// 0 or 1: an error, a thumb up.
    Binary,
    /// Any number from `min` to `max`: stars, an evaluation's score.
    Score {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// A number from 0 on: milliseconds, tokens. What is above `max` counts as `max`, so all that is said is said of
    /// the mean of min(value, `max`).
    Positive {
        /// Where values are cut.
        max: f64,
        /// What is promised.
        #[serde(default)]
        promise: Promise,
    },
}

impl Kind {
    /// Smallest and largest value that is counted.
    #[must_use]
    pub fn range(self) -> (f64, f64) {
        match self {
            Self::Binary => (0.0, 1.0),
            Self::Score { min, max } => (min, max),
            Self::Positive { max, .. } => (0.0, max),
        }
    }
}

/// What is promised of a positive metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// The false alarm rate tends to α as the first look is later (the first is after
    /// [`crate::ASYMPTOTIC_OBSERVATIONS_MIN`] of each arm). Sharp however far `max` is.
    #[default]
    Asymptotic,
    /// At most α at any number of observations. Sharp only if the standard deviation is not much below a tenth of
    /// `max`.
    Exact,
}

/// Which way a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What stops an arm by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guardrail {
    /// The metric.
    pub metric: String,
    /// What must hold.
    pub rule: Rule,
    /// Observations of the arm before it is stopped: for people's trust, the test is safe without it.
    #[serde(default)]
    pub observations_min: u64,
}

/// What must hold of an arm's mean. An arm is stopped once it is shown, at the guardrail's α, that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// It is not worse than the control's by more than this, in the metric's unit. 0 or more.
    WorseBy(f64),
    /// It is not worse than this: a ceiling where less is better, else a floor.
    Limit(f64),
}

/// What is counted as one observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The first request of a key that a gateway remembers ([`crate::RecentKeys`]), and each request without a key.
    /// Right where the requests of one user are alike.
    #[default]
    Key,
    /// Each request. Right only if requests of one user are no more alike than those of two.
    Request,
}

/// Where an experiment stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum State {
    /// Written, splits nothing yet.
    #[default]
    Draft,
    /// Splits requests.
    Running,
    /// Ended; everything goes where the alias points.
    Stopped,
    /// Ended; the alias was moved to this arm's version.
    Promoted {
        /// Its name.
        arm: String,
    },
}

impl Experiment {
    /// The phase that runs: how often weights were changed.
    #[must_use]
    pub fn phase(&self) -> usize {
        self.earlier_weights.len()
    }

    /// The weight of an arm in a phase; 0 for what there is not.
    #[must_use]
    pub fn weight(&self, phase: usize, arm: usize) -> u32 {
        if phase == self.phase() {
            return self.arms.get(arm).map_or(0, |arm| arm.weight);
        }
        self.earlier_weights.get(phase).and_then(|weights| weights.get(arm)).copied().unwrap_or(0)
    }

    /// The control's position among the arms.
    #[must_use]
    pub fn control(&self) -> usize {
        self.arms.iter().position(|arm| arm.role == Role::Control).unwrap_or(0)
    }

    /// The positions of the arms that are compared with the control: treatments and shadow arms.
    pub fn compared(&self) -> impl Iterator<Item = usize> {
        let others = self.arms.iter().enumerate().filter(|(_, arm)| arm.role != Role::Control);
        others.map(|(at, _)| at)
    }

    /// An arm's position.
    #[must_use]
    pub fn arm(&self, name: &str) -> Option<usize> {
        self.arms.iter().position(|arm| arm.name == name)
    }

    /// A metric's position.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<usize> {
        self.metrics.iter().position(|metric| metric.name == name)
    }
}

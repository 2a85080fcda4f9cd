//! Split tests between versions of an adapter: who gets which version, and what may be concluded, however often one
//! looks.
//!
//! Nothing here does IO, reads a clock or draws a random number: time comes in as Unix milliseconds, chance as a
//! `u64` that the caller drew. Equal inputs give equal answers. `docs/experiments.md` tells what is promised, the
//! formulas and their sources.
//!
//! This room must not know HTTP, S3, workers, how a metric is measured, or how an alias is moved.
//!
//! 1. [`Experiment`]: the description, read strictly; its changes give the next revision.
//! 2. [`assign`]: the arm of one request, the same at every gateway. [`RecentKeys`]: which users were counted.
//! 3. [`Statistics`]: sums by phase, arm and metric, which add up exactly over gateways.
//! 4. [`sequence`] and [`asymptotic`]: confidence sequences of means and differences; [`split_p_value`]: whether the
//!    split is as planned.
//! 5. [`compare`]: α divided, every arm and metric against the control. [`decide`]: guardrails, winner, end.
//!    [`report`]: all of it as data.
//! 6. [`simulation`]: how often it is wrong, and how long it takes to be right.

mod assign;
pub mod asymptotic;
mod change;
mod check;
mod compare;
mod decide;
mod experiment;
mod histogram;
mod interval;
mod moments;
mod recent;
mod report;
pub mod sequence;
pub mod simulation;
mod split;
mod statistics;

pub use assign::{Assignment, Key, assign};
pub use asymptotic::ASYMPTOTIC_OBSERVATIONS_MIN;
pub use change::{ChangeError, PHASES_REWEIGHTED_MAX};
pub use check::{DescriptionError, Problem};
pub use compare::{Comparison, Verdict, alpha_of, compare, strata};
pub use decide::{Decision, EndReason, KeepReason, Stop, decide, guardrail_alpha};
pub use experiment::{
    ALPHA_RANGE, ARMS_MAX, Arm, Better, DESCRIPTION_BYTES_MAX, Experiment, GUARDRAILS_MAX, Guardrail, Kind,
    METRICS_MAX, Metric, PHASES_MAX, Promise, Role, Rule, State, Unit, VALUE_MAX, WEIGHT_MAX,
};
pub use histogram::{BUCKETS, Histogram, QUANTILE_ERROR};
pub use interval::Interval;
pub use moments::{Moments, OBSERVATIONS_MAX, Sample};
pub use recent::RecentKeys;
pub use report::{ArmReport, MetricReport, Report, SplitReport, report};
pub use split::{CONCENTRATION, SPLIT_ALPHA, split_evidence_ln, split_p_value};
pub use statistics::{MergeError, RecordError, Statistics};

//! Reading a description, and refusing one that breaks a rule: with all that is wrong, each by field, value and limit.

use crate::experiment::{
    ALPHA_RANGE, ARMS_MAX, DESCRIPTION_BYTES_MAX, Experiment, GUARDRAILS_MAX, Guardrail, Kind, METRICS_MAX, Metric,
    PHASES_MAX, Role, Rule, State, VALUE_MAX, WEIGHT_MAX,
};
use std::fmt;

/// Most problems that are told at once.
const PROBLEMS_MAX: usize = 32;

/// One rule that a description breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field's path, such as `arms[1].weight`.
    pub field: String,
    /// Value and limit.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

/// A description that is refused.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// Longer than a description may be.
    #[error("experiment has {bytes} bytes, the limit is {DESCRIPTION_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// No JSON, or not of this shape: the cause names field, line and column.
    #[error("experiment cannot be read: {0}")]
    Json(#[source] serde_json::Error),
    /// What it says breaks rules; all of them, up to 32.
    #[error("experiment: {}", list(.0))]
    Invalid(
        /// In the order of the fields.
        Vec<Problem>,
    ),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

struct Checker(Vec<Problem>);

impl Checker {
    fn require(&mut self, is_kept: bool, field: &str, problem: impl FnOnce() -> String) {
        if !is_kept && self.0.len() < PROBLEMS_MAX {
            self.0.push(Problem { field: field.to_owned(), problem: problem() });
        }
    }

    fn count(&mut self, field: &str, count: usize, least: usize, most: usize) {
        self.require((least..=most).contains(&count), field, || {
            format!("has {count} entries, allowed are {least} to {most}")
        });
    }

    /// Not a number is in no range.
    fn range(&mut self, field: &str, value: f64, least: f64, most: f64) {
        self.require((least..=most).contains(&value), field, || format!("is {value}, allowed is {least} to {most}"));
    }

    fn label(&mut self, field: &str, value: &str, joint: u8) {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let mut bytes = value.bytes();
        let is_label = bytes.next().is_some_and(is_plain) && bytes.all(|byte| is_plain(byte) || byte == joint);
        self.require(is_label && value.len() <= 63, field, || {
            let shown: String = value.chars().take(80).collect();
            format!("is {shown:?}, it must match [a-z0-9][a-z0-9{}]{{0,62}}", char::from(joint))
        });
    }

    fn distinct<'a>(&mut self, field: &str, names: impl Iterator<Item = &'a str>) {
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        for pair in names.windows(2) {
            self.require(pair[0] != pair[1], field, || format!("has {:?} more than once, the limit is once", pair[0]));
        }
    }
}

impl Experiment {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// [`DescriptionError`], never a panic, whatever the bytes. Cost: a parse of at most [`DESCRIPTION_BYTES_MAX`].
    pub fn parse(json: &[u8]) -> Result<Self, DescriptionError> {
        if json.len() > DESCRIPTION_BYTES_MAX {
            return Err(DescriptionError::TooLong { bytes: json.len() });
        }
        let read: Self = serde_json::from_slice(json).map_err(DescriptionError::Json)?;
        read.check()?;
        Ok(read)
    }

    /// Checks a description.
    ///
    /// # Errors
    /// [`DescriptionError::Invalid`] with every rule that it breaks.
    pub fn check(&self) -> Result<(), DescriptionError> {
        let mut checker = Checker(Vec::new());
        checker.label("id", &self.id, b'-');
        self.check_arms(&mut checker);
        self.check_metrics(&mut checker);
        checker.range("alpha", self.alpha, ALPHA_RANGE.0, ALPHA_RANGE.1);
        self.check_guardrails(&mut checker);
        checker.range("guardrail_alpha", self.guardrail_alpha, ALPHA_RANGE.0, ALPHA_RANGE.1);
        checker.range("observations_min", self.observations_min as f64, 0.0, VALUE_MAX);
        if let State::Promoted { arm } = &self.state {
            let found = self.arm(arm).filter(|at| self.arms[*at].role == Role::Treatment);
            checker.require(found.is_some(), "state.promoted.arm", || {
                format!("is {:?}, it must be a treatment's name", short(arm))
            });
        }
        if checker.0.is_empty() { Ok(()) } else { Err(DescriptionError::Invalid(checker.0)) }
    }

    fn check_arms(&self, checker: &mut Checker) {
        checker.count("arms", self.arms.len(), 2, ARMS_MAX);
        for (at, arm) in self.arms.iter().enumerate().take(ARMS_MAX) {
            checker.label(&format!("arms[{at}].name"), &arm.name, b'-');
            check_weight(checker, &format!("arms[{at}].weight"), arm.weight);
            checker.require(arm.role != Role::Control || arm.weight > 0, &format!("arms[{at}].weight"), || {
                format!("is 0, a control's is 1 to {WEIGHT_MAX}")
            });
        }
        checker.distinct("arms", self.arms.iter().map(|arm| arm.name.as_str()));
        let controls = self.arms.iter().filter(|arm| arm.role == Role::Control).count();
        checker.require(controls == 1, "arms", || format!("has {controls} controls, it must have 1"));
        checker.count("earlier_weights", self.earlier_weights.len(), 0, PHASES_MAX - 1);
        for (phase, weights) in self.earlier_weights.iter().enumerate().take(PHASES_MAX) {
            let field = format!("earlier_weights[{phase}]");
            checker.count(&field, weights.len(), self.arms.len(), self.arms.len());
            weights.iter().take(ARMS_MAX).for_each(|weight| check_weight(checker, &field, *weight));
        }
    }

    fn check_metrics(&self, checker: &mut Checker) {
        checker.count("metrics", self.metrics.len(), 1, METRICS_MAX);
        for (at, metric) in self.metrics.iter().enumerate().take(METRICS_MAX) {
            checker.label(&format!("metrics[{at}].name"), &metric.name, b'_');
            check_kind(checker, &format!("metrics[{at}].kind"), metric.kind);
        }
        checker.distinct("metrics", self.metrics.iter().map(|metric| metric.name.as_str()));
        checker.require(self.metric(&self.primary).is_some(), "primary", || {
            format!("is {:?}, it must be a metric's name", short(&self.primary))
        });
    }

    fn check_guardrails(&self, checker: &mut Checker) {
        checker.count("guardrails", self.guardrails.len(), 0, GUARDRAILS_MAX);
        for (at, guardrail) in self.guardrails.iter().enumerate().take(GUARDRAILS_MAX) {
            match self.metric(&guardrail.metric) {
                Some(metric) => check_rule(checker, at, guardrail, &self.metrics[metric]),
                None => checker.require(false, &format!("guardrails[{at}].metric"), || {
                    format!("is {:?}, it must be a metric's name", short(&guardrail.metric))
                }),
            }
            let field = format!("guardrails[{at}].observations_min");
            checker.range(&field, guardrail.observations_min as f64, 0.0, VALUE_MAX);
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn check_weight(checker: &mut Checker, field: &str, weight: u32) {
    checker.require(weight <= WEIGHT_MAX, field, || format!("is {weight}, allowed is 0 to {WEIGHT_MAX}"));
}

fn check_kind(checker: &mut Checker, field: &str, kind: Kind) {
    match kind {
        Kind::Binary => {}
        Kind::Score { min, max } => {
            checker.range(&format!("{field}.score.min"), min, -VALUE_MAX, VALUE_MAX);
            checker.range(&format!("{field}.score.max"), max, -VALUE_MAX, VALUE_MAX);
            checker.require(max - min >= 1e-9, &format!("{field}.score.max"), || {
                format!("is {max}, it must be above min, {min}, by 1e-9 or more")
            });
        }
        Kind::Positive { max, .. } => checker.range(&format!("{field}.positive.max"), max, 1e-9, VALUE_MAX),
    }
}

fn check_rule(checker: &mut Checker, at: usize, guardrail: &Guardrail, metric: &Metric) {
    let (min, max) = metric.kind.range();
    match guardrail.rule {
        Rule::WorseBy(margin) => {
            checker.range(&format!("guardrails[{at}].rule.worse_by"), margin, 0.0, max - min);
        }
        Rule::Limit(limit) => checker.range(&format!("guardrails[{at}].rule.limit"), limit, min, max),
    }
}

//! What was measured, as JSON has it. `docs/gpu.md` says what fields mean.

use crate::goals::Goal;
use crate::parts::bandwidths::Rates;
use crate::parts::{Model, cold, decode, prefill, slots, streamed};
use crate::plan::{Part, Plan};
use serde::Serialize;
use weft_cuda_device::driver::Properties;

/// All of it.
#[derive(Serialize)]
pub struct Report {
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    memory_bytes: usize,
    pub(crate) rows: usize,
    context: usize,
    /// Whether logits were brought to the host; else tokens.
    logits: bool,
    /// How long it all took.
    pub(crate) seconds: f64,
    pub(crate) device: Rates,
    pub(crate) decode: Vec<decode::Case>,
    pub(crate) cold: Vec<cold::Case>,
    pub(crate) prefill: Vec<prefill::Case>,
    pub(crate) slots: Vec<slots::Case>,
    pub(crate) streamed: Vec<streamed::Case>,
    pub(crate) model: Option<Model>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) failed: Vec<Failure>,
}

/// A part that could not be measured.
#[derive(Serialize)]
pub(crate) struct Failure {
    part: String,
    error: String,
}

impl Failure {
    pub(crate) fn new(part: Part, error: &anyhow::Error) -> Self {
        Self { part: format!("{part:?}").to_lowercase(), error: format!("{error:#}") }
    }
}

impl Report {
    pub(crate) fn new(properties: &Properties, plan: &Plan) -> Self {
        Self {
            name: properties.name.clone(),
            capability: properties.capability,
            multiprocessors: properties.multiprocessors,
            memory_bytes: properties.memory_bytes,
            rows: plan.rows,
            context: plan.context,
            logits: plan.logits,
            seconds: 0.0,
            device: Rates::default(),
            decode: Vec::new(),
            cold: Vec::new(),
            prefill: Vec::new(),
            slots: Vec::new(),
            streamed: Vec::new(),
            model: None,
            goals: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Parts that could not be measured, a line each with the reason; empty if the report is whole.
    #[must_use]
    pub fn failures(&self) -> String {
        self.failed.iter().map(|Failure { part, error }| format!("{part} was not measured: {error}\n")).collect()
    }

    /// The goals, a line each.
    #[must_use]
    pub fn goals_table(&self) -> String {
        crate::goals::table(&self.goals)
    }
}

/// The middle one, and those that one in a hundred and none exceeds, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: usize,
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Spread {
    /// Of one or more times in seconds.
    pub(crate) fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * seconds.len() as f64).ceil() as usize;
            seconds[rank.clamp(1, seconds.len()) - 1] * 1e3
        };
        Self { count: seconds.len(), median_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_sorted_times() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(spread, Spread { count: 200, median_ms: 100e3, p99_ms: 198e3, max_ms: 200e3 });
        assert_eq!(Spread::of(vec![0.5]), Spread { count: 1, median_ms: 500.0, p99_ms: 500.0, max_ms: 500.0 });
    }
}

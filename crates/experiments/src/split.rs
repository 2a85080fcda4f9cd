//! Whether requests really go where the weights send them: a sequential test of a broken split.
//!
//! Counts *n* of units against planned shares θ, with a Dirichlet mixture of concentration a = [`CONCENTRATION`]·θ
//! over what the shares may really be: the ratio of Dirichlet-multinomial to multinomial likelihood is a martingale
//! that starts at 1 if the split is as planned, so it ever reaches 1/α with probability at most α (Lindon and Malek,
//! "Anytime-valid inference for multinomial count data", NeurIPS 2022). Phases are multiplied. A broken
//! split (lost exposures of one arm, a cache that pins users, an arm that crashes before it is counted) makes every
//! comparison worthless, so there is no winner while it is flagged.

use crate::experiment::{Experiment, Role};
use crate::statistics::Statistics;

/// The sum of the Dirichlet's parameters: how near to the planned shares broken ones are expected; 100 units' worth.
pub const CONCENTRATION: f64 = 100.0;
/// A split is flagged as broken below this p-value.
pub const SPLIT_ALPHA: f64 = 0.001;

/// Logarithm of the evidence of one phase's counts against its weights; 0 is none. Entries with weight 0 are left
/// out: requests that were on their way when an arm was stopped are no sign.
#[must_use]
pub fn split_evidence_ln(counts: &[u64], weights: &[u32]) -> f64 {
    let entries = counts.iter().zip(weights).filter(|(_, weight)| **weight > 0);
    let (mut total_count, mut total_weight) = (0.0, 0.0);
    for (count, weight) in entries.clone() {
        total_count += *count as f64;
        total_weight += f64::from(*weight);
    }
    let mut evidence = -rising_ln(CONCENTRATION, total_count);
    for (count, weight) in entries {
        let share = f64::from(*weight) / total_weight;
        evidence += rising_ln(CONCENTRATION * share, *count as f64) - *count as f64 * share.ln();
    }
    evidence
}

/// Logarithm of Γ(from + count) / Γ(from).
fn rising_ln(from: f64, count: f64) -> f64 {
    if count == 0.0 { 0.0 } else { libm::lgamma(from + count) - libm::lgamma(from) }
}

/// Always-valid p-value of "requests were split as planned", over all phases, control and treatments. Cost: a pass
/// over the phases.
#[must_use]
pub fn split_p_value(experiment: &Experiment, statistics: &Statistics) -> f64 {
    let split: Vec<usize> =
        (0..experiment.arms.len()).filter(|arm| experiment.arms[*arm].role != Role::Shadow).collect();
    let mut evidence = 0.0;
    for phase in 0..=experiment.phase() {
        let counts: Vec<u64> = split.iter().map(|arm| statistics.exposures(phase, *arm).1).collect();
        let weights: Vec<u32> = split.iter().map(|arm| experiment.weight(phase, *arm)).collect();
        evidence += split_evidence_ln(&counts, &weights);
    }
    (-evidence).exp().min(1.0)
}

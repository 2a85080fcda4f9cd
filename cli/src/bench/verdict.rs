//! What the figures should be.

use super::cases::{DECODE, DIFFERENT, Figures, MIXED};
use super::ceiling::Ceiling;
use serde::Serialize;

/// Different adapters of rank 8 on the attention's linears keep so much of the base's rate.
const DIFFERENT_LEAST: f64 = 0.93;
/// Mixed ranks on all linears keep so much.
const MIXED_LEAST: f64 = 0.85;
/// Decoding at full concurrency reaches so much of the machine's best product.
const DECODE_LEAST: f64 = 0.6;

/// A figure and the least it should be.
#[derive(Serialize)]
pub(super) struct Verdict {
    pub(super) what: &'static str,
    pub(super) value: f64,
    pub(super) least: f64,
    pub(super) holds: bool,
}

impl Verdict {
    fn new(what: &'static str, value: f64, least: f64) -> Self {
        Self { what, value, least, holds: value >= least }
    }

    pub(super) fn line(&self) -> String {
        let word = if self.holds { "holds" } else { "FAILS" };
        format!("{word}  {}: {:.3} (wanted ≥ {})", self.what, self.value, self.least)
    }
}

pub(super) fn of(figures: &Figures, ceiling: &Ceiling) -> Vec<Verdict> {
    let case = |name: &str| figures.cases.iter().find(|case| case.name == name);
    let ratio = |name| case(name).map_or(f64::NAN, |case| case.ratio_to_base_median);
    let decode = case(DECODE).map_or(f64::NAN, |case| case.gflops / ceiling.gflop_s);
    vec![
        Verdict::new("a different adapter each ÷ base", ratio(DIFFERENT), DIFFERENT_LEAST),
        Verdict::new("mixed ranks on all linears ÷ base", ratio(MIXED), MIXED_LEAST),
        Verdict::new("decode ÷ the machine's ceiling", decode, DECODE_LEAST),
    ]
}

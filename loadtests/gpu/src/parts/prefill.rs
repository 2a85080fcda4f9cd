//! Prompts, against the operations that they need.

use super::bandwidths::Rates;
use crate::bench::{Bench, Room, Shared};
use crate::budget::{Budget, in_turn};
use crate::memory::widths;
use anyhow::Result;
use serde::Serialize;
use weft_base_model::ModelConfig;
use weft_engine::SeqStep;
use weft_engine::device::Format;

/// Prompts that come together, each with an adapter of its own, and tokens of each.
const TOGETHER: (usize, usize) = (8, 256);

#[derive(Serialize)]
pub(crate) struct Case {
    sequences: usize,
    /// Of each.
    tokens: usize,
    /// Of rank 16 in bf16, that sequences use in turn.
    adapters: usize,
    steps: usize,
    step_ms: f64,
    tokens_per_s: f64,
    /// Against the base alone with the same tokens.
    of_base: f64,
    operations: f64,
    /// Operations over the rate of the product that was measured.
    floor_ms: f64,
    of_floor: f64,
}

/// Multiplications and additions of a step.
fn operations(config: &ModelConfig, (sequences, tokens): (usize, usize), has_adapters: bool) -> f64 {
    let weights: usize = config.linears().iter().map(|linear| linear.in_features * linear.out_features).sum();
    let of_adapter = if has_adapters { 16 * widths(config) } else { 0 };
    // Queries with keys, and weights with values, of the positions that a token sees.
    let seen = tokens * (tokens + 1) / 2;
    let attention = 2 * config.heads * config.head_dim * seen;
    let layer = tokens * (weights + of_adapter) + attention;
    let head = config.hidden_size * config.vocab_size;
    2.0 * sequences as f64 * (config.layers * layer + head) as f64
}

pub(crate) fn measure(shared: &Shared<'_>, rates: &Rates, budget: &Budget) -> Result<Vec<Case>> {
    let (plan, config) = (shared.plan, shared.config());
    let longest = plan.prompts.iter().copied().max().unwrap_or(1);
    let together = (TOGETHER.0, TOGETHER.1.min(longest));
    let shapes: Vec<(usize, usize)> = plan.prompts.iter().map(|tokens| (1, *tokens)).chain([together]).collect();
    let room = Room {
        format: Format::Bf16,
        graphs: false,
        rows: longest.max(together.0 * together.1),
        sequences: together.0,
        positions: longest,
        ranks: vec![16; together.0],
        streamed: 0,
    };
    let mut bench = Bench::new(shared, room)?;
    let slots = bench.load(together.0, &[16])?;
    let mut measured = Vec::new();
    for (shape, budget) in in_turn(shapes, budget) {
        let (sequences, tokens) = shape;
        let mut base_s = None;
        for (adapters, budget) in in_turn(vec![0, sequences], &budget) {
            let slot = |place: usize| (adapters > 0).then(|| slots[place]);
            let seqs: Vec<SeqStep> = (0..sequences).map(|place| bench.seq(place, 0, tokens, slot(place))).collect();
            let (step_s, steps) = bench.time(seqs, &budget)?;
            let operations = operations(config, shape, adapters > 0);
            let floor_s = operations / rates.product_operations_per_s;
            measured.push(Case {
                sequences,
                tokens,
                adapters,
                steps,
                step_ms: step_s * 1e3,
                tokens_per_s: (sequences * tokens) as f64 / step_s,
                of_base: *base_s.get_or_insert(step_s) / step_s,
                operations,
                floor_ms: floor_s * 1e3,
                of_floor: floor_s / step_s,
            });
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_a_prompt_are_two_for_each_weight_and_row_and_those_of_attention() {
        let config = crate::shape::llama_8b();
        // 6.98 billion weights in linears of layers, and an output matrix that one row passes.
        let weights = 32.0 * (4096.0 * (4096.0 + 2.0 * 1024.0 + 4096.0 + 3.0 * 14_336.0));
        let one = operations(&config, (1, 1), false);
        let attention = 2.0 * 2.0 * 32.0 * 4096.0;
        assert_eq!(one, 2.0 * (weights + 4096.0 * 128_256.0) + attention);
        // An adapter of rank 16 on all linears has 41.9 million numbers.
        assert_eq!(operations(&config, (1, 1), true) - one, 2.0 * 41_943_040.0);
        assert_eq!(operations(&config, (8, 1), false), 8.0 * one);
    }
}

//! Steps of one token for each sequence: the base alone, and with adapters.

use super::bandwidths::Rates;
use crate::bench::{Bench, Room, Shared};
use crate::budget::{Budget, in_turn};
use anyhow::Result;
use serde::Serialize;
use weft_engine::device::Format;

/// Formats, with graphs or without.
pub(crate) const KINDS: [(Format, bool); 4] =
    [(Format::Bf16, true), (Format::Bf16, false), (Format::Int8, true), (Format::Fp8, true)];

/// Ranks in turn where they are mixed.
pub(crate) const MIXED: [usize; 4] = [8, 16, 32, 64];

const COUNTS: [usize; 4] = [1, 8, 32, 64];

/// A step with so many adapters.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) format: &'static str,
    pub(crate) graphs: bool,
    /// That rows use in turn.
    pub(crate) adapters: usize,
    /// That are in slots.
    pub(crate) loaded: usize,
    /// Of all adapters, in turn.
    pub(crate) ranks: Vec<usize>,
    /// Of those that are used.
    adapter_bytes: u64,
    weight_bytes: u64,
    steps: usize,
    step_ms: f64,
    tokens_per_s: f64,
    /// Against the base alone in the same engine, before anything was in slots.
    pub(crate) of_base: f64,
    /// Bytes that a step must read, over the bandwidth that copies reach.
    floor_ms: f64,
    of_floor: f64,
}

/// Adapters in slots, those that rows use, and ranks.
type Adapters = (usize, usize, Vec<usize>);

fn cases(rows: usize) -> Vec<Adapters> {
    let some = COUNTS.into_iter().filter(|adapters| *adapters <= rows).map(|adapters| (adapters, adapters, vec![16]));
    let mixed = (rows >= MIXED.len()).then(|| (rows, rows, MIXED.to_vec()));
    // The one that has adapters in slots which nobody uses comes when they are there.
    [(0, 0, vec![16])].into_iter().chain(some).chain([(rows, 0, vec![16])]).chain(mixed).collect()
}

pub(crate) fn measure(
    shared: &Shared<'_>,
    kinds: &[(Format, bool)],
    rates: &Rates,
    budget: &Budget,
) -> Result<Vec<Case>> {
    let (rows, mut measured) = (shared.plan.rows, Vec::new());
    for ((format, graphs), budget) in in_turn(kinds.to_vec(), budget) {
        let all = cases(rows);
        // As much as the largest case needs.
        let largest = &all[all.len() - 1].2;
        let ranks = largest.iter().copied().cycle().take(rows).collect();
        let positions = shared.plan.context + 1;
        let mut bench =
            Bench::new(shared, Room { format, graphs, rows, sequences: rows, positions, ranks, streamed: 0 })?;
        let mut base_s = None;
        for ((loaded, adapters, ranks), budget) in in_turn(all, &budget) {
            let slots = bench.load(loaded, &ranks)?;
            let (step_s, steps) = bench.time(bench.decoding(rows, &slots[..adapters]), &budget)?;
            let adapter_bytes = bench.adapter_bytes(adapters);
            let weight_bytes = bench.engine.weight_bytes();
            let bytes = weight_bytes + adapter_bytes + bench.kv_bytes(rows);
            let floor_s = bytes as f64 / rates.bandwidth_bytes_per_s;
            measured.push(Case {
                format: format.suffix(),
                graphs,
                adapters,
                loaded,
                ranks,
                adapter_bytes,
                weight_bytes,
                steps,
                step_ms: step_s * 1e3,
                tokens_per_s: rows as f64 / step_s,
                of_base: *base_s.get_or_insert(step_s) / step_s,
                floor_ms: floor_s * 1e3,
                of_floor: floor_s / step_s,
            });
        }
    }
    Ok(measured)
}

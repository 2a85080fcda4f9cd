//! The first token of a request whose adapter is in main memory, against the same where it is on the device; all other rows decode meanwhile.

use super::bandwidths::Rates;
use crate::FORMATS;
use crate::bench::{Bench, Room, Shared};
use crate::budget::{Budget, in_turn};
use crate::report::Spread;
use anyhow::{Context, Result};
use serde::Serialize;
use std::time::Instant;
use weft_engine::{SlotId, StepBatch};

/// Loads that are timed, however late it is.
const LOADS: usize = 9;
/// Adapters of the rows that decode.
const OTHERS: usize = 8;

#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) format: &'static str,
    adapter_bytes: u64,
    /// Of the request.
    prompt: usize,
    warm: Spread,
    cold: Spread,
    /// Of cold ones the 99th percentile, less the middle one of warm ones.
    pub(crate) penalty_p99_ms: f64,
    /// An adapter's bytes over the bandwidth from pinned memory, all of which a step could hide.
    upload_ms: f64,
}

pub(crate) fn measure(shared: &Shared<'_>, rates: &Rates, budget: &Budget) -> Result<Vec<Case>> {
    let (plan, mut measured) = (shared.plan, Vec::new());
    let [prompt, _] = plan.request;
    for (format, budget) in in_turn(FORMATS.to_vec(), budget) {
        let others = plan.rows - 1;
        let ranks = vec![16; others.min(OTHERS) + 1];
        let room = Room {
            format,
            graphs: true,
            rows: others + prompt,
            sequences: plan.rows,
            positions: (plan.context + 1).max(prompt),
            ranks: ranks.clone(),
            streamed: 0,
        };
        let mut bench = Bench::new(shared, room)?;
        let slots = bench.load(ranks.len() - 1, &[16])?;
        let adapter = bench.prepared(16)?;
        let begin = |bench: &mut Bench<'_>| bench.install(&adapter)?.context("no blocks are left for an adapter");
        let request = |bench: &mut Bench<'_>, slot: SlotId| {
            let mut seqs = bench.decoding(others, &slots);
            seqs.push(bench.seq(others, 0, prompt, Some(slot)));
            bench.step(&StepBatch { seqs })
        };
        let (mut warm, mut cold) = (Vec::new(), Vec::new());
        let mut slot = begin(&mut bench)?;
        // Kernels are loaded, and products planned, by the first one.
        request(&mut bench, slot)?;
        while cold.len() < LOADS || !budget.is_over() {
            let began = Instant::now();
            request(&mut bench, slot)?;
            warm.push(began.elapsed().as_secs_f64());
            bench.engine.remove(slot);
            let began = Instant::now();
            slot = begin(&mut bench)?;
            request(&mut bench, slot)?;
            cold.push(began.elapsed().as_secs_f64());
        }
        let (warm, cold) = (Spread::of(warm), Spread::of(cold));
        measured.push(Case {
            format: format.suffix(),
            adapter_bytes: adapter.matrix_bytes(),
            prompt,
            penalty_p99_ms: cold.p99_ms - warm.median_ms,
            upload_ms: adapter.matrix_bytes() as f64 / rates.upload_bytes_per_s * 1e3,
            warm,
            cold,
        });
    }
    Ok(measured)
}

//! Adapters without blocks, which each step copies from pinned memory layer by layer, against the same in blocks.

use super::bandwidths::Rates;
use crate::bench::{Bench, Room, Shared};
use crate::budget::{Budget, in_turn};
use anyhow::{Context, Result};
use serde::Serialize;
use weft_engine::SlotId;
use weft_engine::device::Format;

const COUNTS: [usize; 3] = [1, 2, 4];

/// A decoding step with so many adapters of rank 16 in bf16, that rows use in turn.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) adapters: usize,
    adapter_bytes: u64,
    in_blocks_ms: f64,
    streamed_ms: f64,
    /// Of the step in blocks, which is replayed, the share that is reached.
    of_in_blocks: f64,
    /// Adapters' bytes over the bandwidth from pinned memory.
    upload_ms: f64,
    /// That, or the bytes that the step reads on the device over its bandwidth, whichever is more.
    floor_ms: f64,
    of_floor: f64,
}

pub(crate) fn measure(shared: &Shared<'_>, rates: &Rates, budget: &Budget) -> Result<Vec<Case>> {
    let rows = shared.plan.rows;
    let most = COUNTS[COUNTS.len() - 1];
    let room = Room {
        format: Format::Bf16,
        graphs: true,
        rows,
        sequences: rows,
        positions: shared.plan.context + 1,
        ranks: vec![16; most],
        streamed: most,
    };
    let mut bench = Bench::new(shared, room)?;
    let adapter = bench.prepared(16)?;
    let mut measured = Vec::new();
    for (adapters, budget) in in_turn(COUNTS.to_vec(), budget) {
        let slots = bench.load(adapters, &[16])?;
        let (in_blocks_s, _) = bench.time(bench.decoding(rows, &slots), &budget.first_of(1, 2))?;
        let streamed = |_| bench.engine.stream(adapter.clone()).context("no room is left for streamed adapters");
        let slots: Vec<SlotId> = (0..adapters).map(streamed).collect::<Result<_>>()?;
        let (streamed_s, _) = bench.time(bench.decoding(rows, &slots), &budget)?;
        for slot in slots {
            bench.engine.remove(slot);
        }
        let adapter_bytes = bench.adapter_bytes(adapters);
        let upload_s = adapter_bytes as f64 / rates.upload_bytes_per_s;
        let bytes = bench.engine.weight_bytes() + adapter_bytes + bench.kv_bytes(rows);
        let floor_s = upload_s.max(bytes as f64 / rates.bandwidth_bytes_per_s);
        measured.push(Case {
            adapters,
            adapter_bytes,
            in_blocks_ms: in_blocks_s * 1e3,
            streamed_ms: streamed_s * 1e3,
            of_in_blocks: in_blocks_s / streamed_s,
            upload_ms: upload_s * 1e3,
            floor_ms: floor_s * 1e3,
            of_floor: floor_s / streamed_s,
        });
    }
    Ok(measured)
}

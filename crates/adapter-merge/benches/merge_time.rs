//! How long it takes to merge two rank-16 adapters over all linears of a 135M model (30 layers, hidden 576), by method.
//!
//!     cargo bench -p weft-adapter-merge
//!
//! Prints a table; asserts nothing. `docs/merging.md` has a run of it.

#[path = "../tests/support/mod.rs"]
mod support;

use serde_json::json;
use std::time::Instant;
use support::{Wanted, check, llama, recipe, weights};
use weft_adapter_merge::{Limits, MajoritySign, Method, Parent, merge};

const RANK: usize = 16;

fn main() {
    let base = llama(30, 576, 192, 1536);
    let modules: Vec<Wanted> = (0..base.layers)
        .flat_map(|layer| {
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(|m| (layer, m))
        })
        .map(|(layer, module)| (layer, module, RANK, "F32"))
        .collect();
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": "all-linear"});
    let blobs: Vec<Vec<u8>> =
        (0..2).map(|seed| check(&config, &weights(&base, &modules, seed), &base).canonical_blob()).collect();
    let parents: Vec<Parent<'_>> = blobs.iter().map(|blob| Parent::open(blob).expect("a blob")).collect();
    println!("two adapters of rank {RANK} on {} linears, {} bytes each", modules.len(), blobs[0].len());
    let majority_sign = MajoritySign::Total;
    for (method, rank) in [
        (Method::Linear {}, None),
        (Method::Svd {}, Some(16)),
        (Method::Ties { density: 0.5, majority_sign }, Some(32)),
        (Method::DareLinear { density: 0.5, seed: 1 }, Some(32)),
        (Method::DareTies { density: 0.5, seed: 1, majority_sign }, Some(32)),
    ] {
        let checked = recipe(&blobs, &[0.5, 0.5], method, rank).check().expect("a recipe");
        let (start, start_busy) = (Instant::now(), busy_seconds());
        let merged = merge(&checked, &parents, &base, &Limits::default()).expect("a merge");
        let (elapsed, busy) = (start.elapsed().as_secs_f64(), busy_seconds() - start_busy);
        let (name, error) = (method.as_str(), merged.report.error);
        println!("{name:<12} target rank {rank:?}: {busy:.2} s of one core, {elapsed:.2} s elapsed, error {error:.4}");
    }
}

/// Seconds that this thread has run, which neighbours on a busy machine do not lengthen; 0 where Linux does not say.
fn busy_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default();
    nanoseconds / 1e9
}

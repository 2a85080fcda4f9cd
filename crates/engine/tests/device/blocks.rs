//! One pool for keys, values and adapters: any of them in any block.

use super::{F32_TOLERANCE, options};
use crate::common::{BLOCK_SIZE, ExpectedLogits, blob, difference, golden, golden_dir, tiny};
use weft_engine::device::{DeviceEngine, DeviceOptions, PoolBlocks, PreparedAdapter};
use weft_engine::{LogitsWanted, SeqStep, SlotId, StepBatch};
use weft_kernels::conformance::Random;

const BLOCKS: usize = 256;

fn engine(name: &str, seed: u64) -> DeviceEngine {
    DeviceEngine::new(&tiny(name), DeviceOptions { blocks: PoolBlocks::Exactly(BLOCKS), ..options(seed) }).unwrap()
}

fn prepared(engine: &DeviceEngine, name: &str) -> PreparedAdapter {
    let (golden, model) = (golden(), tiny("tiny"));
    let folder = golden_dir().join(golden.case(name).adapter.as_ref().unwrap());
    engine.preparer().prepare(&blob(&folder, &model.config)).unwrap()
}

fn prompt(tokens: &[u32], blocks: Vec<u32>, slot: Option<SlotId>) -> SeqStep {
    SeqStep { tokens: tokens.to_vec(), start: 0, blocks, slot, logits: LogitsWanted::All, draw: None }
}

/// Blocks for runs, wherever dice say.
fn anywhere(random: &mut Random, free: &mut [bool; BLOCKS], runs: &[usize]) -> Vec<u32> {
    let mut blocks = Vec::new();
    for &count in runs {
        let first = loop {
            let first = random.below(BLOCKS - count + 1);
            if free[first..first + count].iter().all(|free| *free) {
                break first;
            }
        };
        free[first..first + count].fill(false);
        blocks.extend((first..first + count).map(|block| block as u32));
    }
    blocks
}

#[test]
fn adapters_and_keys_lie_in_any_blocks() {
    let (golden, expected) = (golden(), ExpectedLogits::load());
    let names = ["rank64", "all_linear", "rank4", "dora"];
    for seed in 0..4 {
        let (mut engine, random) = (engine("tiny", seed), &mut Random::new(seed));
        let mut free = [true; BLOCKS];
        let mut long_runs = 0;
        let slots = names.map(|name| {
            let prepared = prepared(&engine, name);
            long_runs += prepared.runs().iter().filter(|blocks| **blocks > 1).count();
            let blocks = anywhere(random, &mut free, prepared.runs());
            engine.install(prepared, &blocks).unwrap()
        });
        assert!(long_runs > 0, "some matrices are longer than a block");
        let seqs = names.iter().zip(slots).map(|(name, slot)| {
            let tokens = &golden.case(name).prompt;
            let blocks = anywhere(random, &mut free, &vec![1; tokens.len().div_ceil(BLOCK_SIZE)]);
            prompt(tokens, blocks, Some(slot))
        });
        let found = engine.step(&StepBatch { seqs: seqs.collect() }).unwrap();
        for (name, found) in names.iter().zip(found.seqs) {
            let worst = difference(&found.logits, &expected.of(golden.case(name)));
            assert!(worst < F32_TOLERANCE, "{name}, seed {seed}: off by {worst}");
        }
    }
}

/// The copy of an adapter that was removed at once goes on; whoever has its blocks next comes after it, adapter or keys.
#[test]
fn keys_come_after_an_adapter_that_was_on_its_way_to_their_blocks() {
    let (golden, expected) = (golden(), ExpectedLogits::load());
    let case = golden.case("base/tiny/long");
    for seed in 0..8 {
        let mut engine = engine("tiny", seed);
        let large = prepared(&engine, "rank64");
        let blocks = engine.find_blocks(&large).unwrap();
        let slot = engine.install(large, &blocks).unwrap();
        engine.remove(slot).unwrap();
        let found = engine.step(&StepBatch { seqs: vec![prompt(&case.prompt, blocks, None)] }).unwrap();
        let worst = difference(&found.seqs[0].logits, &expected.of(case));
        assert!(worst < F32_TOLERANCE, "seed {seed}: off by {worst}");
    }
}

//! A request's answer does not depend on how it is cut into steps or on what shares its batch (design invariant 6).

mod common;

use common::{Request, engine, generate, golden, install, prefill, tiny};
use weft_engine::{Dtype, LogitsWanted, ProcessorEngine, SeqStep, SlotId, StepBatch};

fn engine_with_ranks(dtype: Dtype) -> (ProcessorEngine, Vec<Option<SlotId>>) {
    let model = tiny("tiny");
    let mut engine = engine(&model, dtype, 512);
    let golden = golden();
    let mut slots = vec![None];
    for name in ["rank4", "rank8", "rank16", "rank64", "all_linear", "mlp_only", "dora", "dora_patterns"] {
        slots.push(install(&mut engine, golden.case(name), &model.config));
    }
    (engine, slots)
}

/// 32 requests of 1 to 60 tokens that arrive over 12 steps, over all adapters and the base.
fn requests(slots: &[Option<SlotId>]) -> Vec<Request> {
    (0..32u32)
        .map(|index| Request {
            prompt: (0..1 + index * 13 % 60).map(|at| (index * 31 + at * 7) % 256).collect(),
            slot: slots[index as usize % slots.len()],
            arrives: index as usize * 5 % 12,
        })
        .collect()
}

#[test]
fn a_prompt_in_chunks_gives_the_logits_of_the_whole_prompt() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Q4] {
        let (mut engine, slots) = engine_with_ranks(dtype);
        let prompt: Vec<u32> = (0..70).map(|at| at * 37 % 256).collect();
        for &slot in &slots {
            let whole = StepBatch { seqs: vec![prefill(&prompt, slot, 0, LogitsWanted::All)] };
            let whole = engine.step(&whole).unwrap().seqs.remove(0).logits;
            for chunk in [1, 7, 16, 33] {
                let blocks: Vec<u32> = (100..105).rev().collect();
                let mut logits = Vec::new();
                for start in (0..prompt.len()).step_by(chunk) {
                    let tokens = prompt[start..prompt.len().min(start + chunk)].to_vec();
                    let seq =
                        SeqStep { tokens, start, blocks: blocks.clone(), slot, logits: LogitsWanted::All, draw: None };
                    logits.extend(engine.step(&StepBatch { seqs: vec![seq] }).unwrap().seqs.remove(0).logits);
                }
                assert_eq!(logits, whole, "chunks of {chunk}, {dtype:?}: the kernels promise equal bits");
            }
        }
    }
}

#[test]
fn a_request_alone_and_among_32_gives_the_same_text() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Q4] {
        let (mut engine, slots) = engine_with_ranks(dtype);
        let requests = requests(&slots);
        let together = generate(&mut engine, &requests, 24, 17);
        for (request, expected) in requests.iter().zip(&together) {
            let alone = Request { arrives: 0, ..request.clone() };
            assert_eq!(&generate(&mut engine, &[alone], 24, 64)[0], expected);
        }
    }
}

#[test]
fn the_order_of_the_batch_does_not_matter() {
    let (mut engine, slots) = engine_with_ranks(Dtype::F32);
    let requests = requests(&slots);
    let seqs: Vec<SeqStep> = requests
        .iter()
        .enumerate()
        .map(|(index, request)| prefill(&request.prompt, request.slot, index as u32 * 4, LogitsWanted::Last))
        .collect();
    let forward = engine.step(&StepBatch { seqs: seqs.clone() }).unwrap();
    let mut backward = engine.step(&StepBatch { seqs: seqs.into_iter().rev().collect() }).unwrap();
    backward.seqs.reverse();
    assert!(forward.seqs.iter().zip(&backward.seqs).all(|(a, b)| a == b));
}

#[test]
fn only_wanted_rows_give_logits() {
    let (mut engine, slots) = engine_with_ranks(Dtype::F32);
    let vocabulary = engine.vocabulary();
    let prompt: Vec<u32> = (0..20).collect();
    let all = StepBatch { seqs: vec![prefill(&prompt, slots[1], 0, LogitsWanted::All)] };
    let all = engine.step(&all).unwrap().seqs.remove(0).logits;
    let step = StepBatch {
        seqs: vec![
            prefill(&prompt, slots[2], 0, LogitsWanted::None),
            prefill(&prompt, slots[1], 10, LogitsWanted::Last),
            prefill(&prompt, None, 20, LogitsWanted::None),
            prefill(&prompt, slots[1], 30, LogitsWanted::All),
            prefill(&prompt, slots[1], 40, LogitsWanted::None),
        ],
    };
    let output = engine.step(&step).unwrap();
    let lengths: Vec<usize> = output.seqs.iter().map(|out| out.logits.len() / vocabulary).collect();
    assert_eq!(lengths, [0, 1, 0, 20, 0]);
    assert_eq!(output.seqs[1].logits, all[19 * vocabulary..]);
    assert_eq!(output.seqs[3].logits, all);
    // A step that wants nothing still leaves its keys and values behind.
    let silent = StepBatch { seqs: vec![prefill(&prompt[..19], slots[1], 50, LogitsWanted::None)] };
    assert!(engine.step(&silent).unwrap().seqs[0].logits.is_empty());
    let next = SeqStep {
        tokens: vec![19],
        start: 19,
        blocks: vec![50, 51],
        slot: slots[1],
        logits: LogitsWanted::Last,
        draw: None,
    };
    let next = engine.step(&StepBatch { seqs: vec![next] }).unwrap();
    assert_eq!(next.seqs[0].logits, all[19 * vocabulary..]);
}

#[test]
fn sequences_may_read_a_shared_prefix() {
    let (mut engine, slots) = engine_with_ranks(Dtype::F32);
    let prompt: Vec<u32> = (50..90).collect();
    let whole = StepBatch { seqs: vec![prefill(&prompt, slots[3], 0, LogitsWanted::Last)] };
    let whole = engine.step(&whole).unwrap().seqs.remove(0).logits;
    let rest = |own: u32| SeqStep {
        tokens: prompt[32..].to_vec(),
        start: 32,
        blocks: vec![0, 1, own],
        slot: slots[3],
        logits: LogitsWanted::Last,
        draw: None,
    };
    let output = engine.step(&StepBatch { seqs: vec![rest(7), rest(8)] }).unwrap();
    assert!(output.seqs.iter().all(|out| out.logits == whole));
}

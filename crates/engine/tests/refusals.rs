//! What a step and a preparation refuse, and that the engine is as good as before afterwards.

mod common;

use common::{blob, blob_of, cpu, engine, golden, golden_dir, install, prefill, tiny};
use weft_engine::{
    AdapterDtype, Dtype, EngineOptions, Error, LogitsWanted, Problem, ProcessorEngine, SeqStep, StepBatch,
};
use weft_fault::{Fault, Kind};
use weft_types::Digest;

fn good() -> SeqStep {
    prefill(&[1, 2, 3], None, 0, LogitsWanted::Last)
}

fn problem_of(engine: &mut ProcessorEngine, bad: SeqStep) -> Problem {
    let seqs = vec![good(), bad];
    match engine.step(&StepBatch { seqs }) {
        Err(Error::Sequence { sequence: 1, problem }) => problem,
        other => panic!("expected a refusal of sequence 1, got {other:?}"),
    }
}

fn options(kv_blocks: usize, block_size: usize) -> EngineOptions {
    let (dtype, adapter_dtype) = (Dtype::F32, AdapterDtype::F32);
    EngineOptions { dtype, adapter_dtype, kv_blocks, block_size, kernels: cpu() }
}

#[test]
fn a_bad_sequence_is_named_and_the_rest_can_run() {
    let model = tiny("tiny");
    let mut engine = engine(&model, Dtype::F32, 8);
    let before = engine.step(&StepBatch { seqs: vec![good()] }).unwrap();
    let at = |start, blocks| SeqStep { start, blocks, ..prefill(&[9], None, 1, LogitsWanted::Last) };
    assert_eq!(problem_of(&mut engine, SeqStep { tokens: vec![], ..at(0, vec![1]) }), Problem::Empty);
    assert_eq!(
        problem_of(&mut engine, prefill(&[5, 260], None, 1, LogitsWanted::Last)),
        Problem::Token { token: 260, vocabulary: 260 }
    );
    assert_eq!(problem_of(&mut engine, at(256, vec![1; 17])), Problem::Position { position: 256, context: 256 });
    assert!(matches!(problem_of(&mut engine, at(usize::MAX, vec![1])), Problem::Position { .. }));
    assert_eq!(problem_of(&mut engine, at(16, vec![1])), Problem::BlocksShort { blocks: 1, tokens: 17 });
    assert_eq!(problem_of(&mut engine, at(0, vec![])), Problem::BlocksShort { blocks: 0, tokens: 1 });
    assert_eq!(problem_of(&mut engine, at(0, vec![8])), Problem::BlockRange { block: 8, pool: 8 });
    assert_eq!(problem_of(&mut engine, at(0, vec![0])), Problem::BlockShared { block: 0, other: 0 });
    let after = engine.step(&StepBatch { seqs: vec![good()] }).unwrap();
    assert!(before.seqs == after.seqs, "refusals left something behind");
    assert!(engine.step(&StepBatch::default()).unwrap().seqs.is_empty());
}

#[test]
fn a_block_that_another_sequence_writes_cannot_be_read() {
    let model = tiny("tiny");
    let mut engine = engine(&model, Dtype::F32, 8);
    let reader =
        SeqStep { tokens: vec![9], start: 20, blocks: vec![0, 1], slot: None, logits: LogitsWanted::Last, draw: None };
    let error = engine.step(&StepBatch { seqs: vec![reader, good()] }).unwrap_err();
    assert!(
        matches!(error, Error::Sequence { sequence: 1, problem: Problem::BlockShared { block: 0, other: 0 } }),
        "{error}"
    );
    assert_eq!(Fault::from(error).kind, Kind::Internal);
}

#[test]
fn a_slot_id_dies_with_its_adapter() {
    let model = tiny("tiny");
    let mut engine = engine(&model, Dtype::F32, 8);
    let golden = golden();
    let first = install(&mut engine, golden.case("rank4"), &model.config).unwrap();
    let digest = engine.slot_digest(first).unwrap();
    let removed = engine.remove(first).unwrap();
    assert!(removed.bytes() > 0);
    assert_eq!(removed.digest(), digest);
    assert!(engine.remove(first).is_none() && engine.slot_digest(first).is_none());
    // The next adapter takes the same room; the old id must not mean it.
    let second = install(&mut engine, golden.case("rank8"), &model.config).unwrap();
    assert_ne!(first, second);
    let bad = prefill(&[1], Some(first), 1, LogitsWanted::Last);
    assert_eq!(problem_of(&mut engine, bad), Problem::Slot { slot: first });
    let good = prefill(&[1], Some(second), 1, LogitsWanted::Last);
    let output = engine.step(&StepBatch { seqs: vec![good] }).unwrap();
    assert_eq!(output.seqs[0].adapter, engine.slot_digest(second));
    // What was taken out goes in again as it is, under an id of its own.
    let again = engine.install(removed);
    assert_ne!(again, first);
    assert_eq!(engine.slot_digest(again), Some(digest));
}

#[test]
fn an_adapter_prepared_for_another_engine_is_refused() {
    let model = tiny("tiny");
    let other = engine(&model, Dtype::Bf16, 8);
    let mut engine = engine(&model, Dtype::F32, 8);
    let bytes = blob(&golden_dir().join("adapters/rank4"), &model.config);
    let slot = engine.install(other.preparer().prepare(&bytes).unwrap());
    let bad = prefill(&[1], Some(slot), 1, LogitsWanted::Last);
    assert_eq!(problem_of(&mut engine, bad), Problem::ForeignAdapter { slot });
}

#[test]
fn the_digest_is_that_of_the_bytes_that_were_packed() {
    let model = tiny("tiny");
    let engine = engine(&model, Dtype::F32, 8);
    let preparer = engine.preparer();
    let right = blob(&golden_dir().join("adapters/rank8"), &model.config);
    assert_eq!(preparer.prepare(&right).unwrap().digest(), Digest::of(&right));
    // One bit of one weight: still a sound adapter, but another one, and its digest says so.
    let mut wrong = right.clone();
    let last = wrong.len() - 4;
    wrong[last] ^= 1;
    let prepared = preparer.prepare(&wrong).unwrap();
    assert_ne!(prepared.digest(), Digest::of(&right));
    assert_eq!(prepared.digest(), Digest::of(&wrong));
}

#[test]
fn a_blob_that_cannot_be_read_or_does_not_fit_is_corrupt() {
    let (small, other) = (tiny("tiny"), tiny("tiny-untied"));
    let bytes = blob(&golden_dir().join("adapters/rank8"), &small.config);
    let preparer = engine(&small, Dtype::F32, 8).preparer();
    for cut in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        let Err(error) = preparer.prepare(&bytes[..cut]) else { panic!("cut to {cut} bytes was accepted") };
        assert_eq!(Fault::from(error).kind, Kind::Corrupt, "cut to {cut} bytes");
    }
    let Err(error) = engine(&other, Dtype::F32, 8).preparer().prepare(&bytes) else {
        // Same shapes would make this test say nothing.
        panic!("an adapter of tiny fits tiny-untied");
    };
    assert!(matches!(error, Error::AdapterShape { .. }), "{error}");
    assert_eq!(Fault::from(error).kind, Kind::Corrupt);
}

#[test]
fn factors_of_dora_count_as_bytes_of_the_slot() {
    for (name, dtype) in [("dora", Dtype::F32), ("dora_f16", Dtype::Bf16), ("dora_patterns", Dtype::Q4)] {
        let model = tiny("tiny");
        let engine = engine(&model, dtype, 8);
        let golden = golden();
        let case = golden.case(name);
        let with = engine.preparer().prepare(&blob(&golden_dir().join(case.adapter.as_ref().unwrap()), &model.config));
        let without = engine.preparer().prepare(&common::without_dora(case, &model.config));
        // One single per output of each module.
        let outputs: usize = match name {
            "dora" => 3 * (64 + 32 + 32 + 64 + 96 + 96 + 64),
            "dora_f16" => 2 * (64 + 32 + 64),
            _ => 3 * (32 + 96 + 64),
        };
        assert_eq!(with.unwrap().bytes(), without.unwrap().bytes() + 4 * outputs as u64, "{name}");
    }
}

#[test]
fn magnitudes_that_the_base_gives_no_factor_are_refused_with_layer_module_and_output() {
    // Tensors are in the order of their names: the last value is a magnitude of the last layer's v_proj.
    let model = tiny("tiny");
    let preparer = engine(&model, Dtype::F32, 8).preparer();
    let mut bytes = blob(&golden_dir().join("adapters/dora"), &model.config);
    let end = bytes.len();
    for bad in [f32::NAN, f32::INFINITY] {
        bytes[end - 4..].copy_from_slice(&bad.to_le_bytes());
        let Err(error) = preparer.prepare(&bytes) else { panic!("{bad} was accepted") };
        let text = error.to_string();
        assert!(
            text.starts_with("adapter module v_proj of layer 2 does not fit the base: output 31 has norm"),
            "{text}"
        );
    }
    bytes[end - 4..].copy_from_slice(&(-7.0f32).to_le_bytes());
    assert!(preparer.prepare(&bytes).is_ok());
}

#[test]
fn many_loads_and_removals_leave_each_answer_with_its_own_adapter() {
    let model = tiny("tiny");
    let mut engine = engine(&model, Dtype::F32, 64);
    let golden = golden();
    let names = ["rank4", "rank8", "rank16", "rank64", "rslora", "regex", "dora"];
    let cases: Vec<_> = names.iter().map(|name| golden.case(name)).collect();
    let blobs: Vec<Vec<u8>> =
        cases.iter().map(|case| blob(&golden_dir().join(case.adapter.as_ref().unwrap()), &model.config)).collect();
    let preparer = engine.preparer();
    let mut resident = Vec::new();
    for round in 0..60usize {
        let which = round * 7 % blobs.len();
        resident.push((which, engine.install(preparer.prepare(&blobs[which]).unwrap())));
        if resident.len() > 3 {
            let (_, slot) = resident.remove(round % 3);
            assert!(engine.remove(slot).is_some());
        }
        let seqs = resident.iter().enumerate();
        let seqs =
            seqs.map(|(at, &(which, slot))| prefill(&cases[which].prompt, Some(slot), at as u32, LogitsWanted::Last));
        let batch = StepBatch { seqs: seqs.collect() };
        let output = engine.step(&batch).unwrap();
        for (out, &(which, _)) in output.seqs.iter().zip(&resident) {
            assert_eq!(out.adapter, Some(Digest::of(&blobs[which])));
            assert_eq!(common::greedy(&out.logits), cases[which].greedy[0], "{}", cases[which].name);
        }
    }
}

#[test]
fn options_out_of_range_are_named() {
    let model = tiny("tiny");
    for (kv_blocks, block_size, name) in [(0, 16, "kv_blocks"), (4, 0, "block_size")] {
        let Err(error) = ProcessorEngine::new(&model, options(kv_blocks, block_size)) else {
            panic!("{name} of 0 was accepted");
        };
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(Fault::from(error).kind, Kind::Invalid);
    }
}

#[test]
fn a_package_and_its_blob_agree_on_rank_and_scale() {
    // The registry's path: package → blob → slot. A package of rank 4 holds fewer bytes than one of rank 64.
    let model = tiny("tiny");
    let preparer = engine(&model, Dtype::F32, 8).preparer();
    let bytes = |name: &str| {
        let folder = golden_dir().join("adapters").join(name);
        let read = |file| std::fs::read(folder.join(file)).unwrap();
        let blob = blob_of(&read("adapter_config.json"), &read("adapter_model.safetensors"), &model.config);
        preparer.prepare(&blob).unwrap().bytes()
    };
    assert!(bytes("rank64") > bytes("rank4"));
}

//! Parity with transformers + PEFT on the tiny models of `tests/golden`.

mod common;

use common::{
    Case, ExpectedLogits, blob, difference, engine, engine_with, generate, golden, golden_dir, install, prefill, tiny,
};
use std::collections::BTreeSet;
use weft_engine::{Dtype, LogitsWanted, StepBatch};
use weft_types::Digest;

/// Logits of these models are up to 20 in size and pass 3 layers of sums of up to 96 products; torch adds them in
/// another order. The worst difference seen is a tenth of this.
const F32_TOLERANCE: f32 = 2e-4;
/// bf16 keeps 8 bits: each weight and activation is off by up to 2^-9 of itself, at random, over some hundred products.
/// Checked against the spread of the logits rather than their size.
const BF16_TOLERANCE: f32 = 0.6;

fn logits_of(case: &Case, dtype: Dtype, kernels: std::sync::Arc<dyn weft_kernels::Kernels>) -> Vec<f32> {
    let model = tiny(&case.model);
    let mut engine = engine_with(&model, dtype, 8, kernels);
    let slot = install(&mut engine, case, &model.config);
    let batch = StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
    engine.step(&batch).unwrap().seqs.remove(0).logits
}

#[test]
fn every_case_gives_the_logits_of_transformers_and_peft() {
    let expected = ExpectedLogits::load();
    let cases = golden().cases;
    assert!(cases.len() >= 30, "the fixtures shrank to {}", cases.len());
    for case in &cases {
        for kernels in [weft_kernels::reference(), common::cpu()] {
            let isa = kernels.isa();
            let worst = difference(&logits_of(case, Dtype::F32, kernels), &expected.of(case));
            assert!(worst < F32_TOLERANCE, "{} with {isa}: off by {worst}", case.name);
        }
    }
}

#[test]
fn bf16_stays_close_to_them() {
    let expected = ExpectedLogits::load();
    for case in &golden().cases {
        let found = logits_of(case, Dtype::Bf16, common::cpu());
        let expected = expected.of(case);
        let worst = difference(&found, &expected);
        assert!(worst < BF16_TOLERANCE, "{}: off by {worst}", case.name);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
        let error = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        let signal = square(&mut expected.iter().copied());
        assert!((error / signal).sqrt() < 0.03, "{}: relative error {}", case.name, (error / signal).sqrt());
    }
}

#[test]
fn greedy_text_is_the_same() {
    for case in &golden().cases {
        let model = tiny(&case.model);
        let mut engine = engine(&model, Dtype::F32, 8);
        let slot = install(&mut engine, case, &model.config);
        let request = [common::Request { prompt: case.prompt.clone(), slot, arrives: 0 }];
        assert_eq!(generate(&mut engine, &request, 16, 64)[0], case.greedy, "{}", case.name);
    }
}

#[test]
fn adapters_of_different_ranks_and_the_base_share_one_step() {
    let golden = golden();
    let expected = ExpectedLogits::load();
    assert_eq!(golden.batches.len(), 4);
    for batch in &golden.batches {
        let cases: Vec<&Case> = batch.cases.iter().map(|name| golden.case(name)).collect();
        let model = tiny(&cases[0].model);
        let mut engine = engine(&model, Dtype::F32, 128);
        let mut step = StepBatch::default();
        for (index, case) in cases.iter().enumerate() {
            let slot = install(&mut engine, case, &model.config);
            step.seqs.push(prefill(&case.prompt, slot, index as u32 * 4, LogitsWanted::All));
        }
        let output = engine.step(&step).unwrap();
        for ((case, out), part) in cases.iter().zip(&output.seqs).zip(&step.seqs) {
            let worst = difference(&out.logits, &expected.of(case));
            assert!(worst < F32_TOLERANCE, "{} in {}: off by {worst}", case.name, batch.name);
            assert_eq!(out.adapter, part.slot.and_then(|slot| engine.slot_digest(slot)));
            let named: Option<Digest> = case.canonical_sha256.as_ref().map(|text| text.parse().unwrap());
            assert_eq!(out.adapter, named, "{}", case.name);
        }
        let digests: BTreeSet<_> = output.seqs.iter().map(|out| out.adapter).collect();
        assert!(digests.len() >= 5, "{} holds {} adapters", batch.name, digests.len());
    }
}

#[test]
fn rows_of_dora_of_plain_lora_and_of_the_base_are_each_what_they_are_alone() {
    let golden = golden();
    let names = ["dora", "rank8", "base/tiny/long", "dora_patterns", "rank64", "dora_f16", "base/tiny"];
    let cases: Vec<&Case> = names.iter().map(|name| golden.case(name)).collect();
    let model = tiny("tiny");
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Q4] {
        let mut engine = engine(&model, dtype, 128);
        let mut step = StepBatch::default();
        for (index, case) in cases.iter().enumerate() {
            let slot = install(&mut engine, case, &model.config);
            step.seqs.push(prefill(&case.prompt, slot, index as u32 * 4, LogitsWanted::All));
        }
        let together = engine.step(&step).unwrap();
        for ((name, part), out) in names.iter().zip(&step.seqs).zip(&together.seqs) {
            let alone = engine.step(&StepBatch { seqs: vec![part.clone()] }).unwrap();
            assert!(alone.seqs[0] == *out, "{name}, {dtype:?}: the kernels promise equal bits");
        }
    }
}

#[test]
fn the_magnitudes_of_dora_change_the_answer() {
    // Guards the cases above: without its magnitudes the same adapter must be far off what PEFT says.
    let golden = golden();
    let expected = ExpectedLogits::load();
    for name in ["dora", "dora_patterns", "dora_f16", "untied_dora", "llama3_dora"] {
        let case = golden.case(name);
        let model = tiny(&case.model);
        let mut engine = engine(&model, Dtype::F32, 8);
        let slot = engine.install(engine.preparer().prepare(&common::without_dora(case, &model.config)).unwrap());
        let batch = StepBatch { seqs: vec![prefill(&case.prompt, Some(slot), 2, LogitsWanted::All)] };
        let plain = engine.step(&batch).unwrap().seqs.remove(0).logits;
        assert!(difference(&plain, &expected.of(case)) > 0.5, "{name}");
    }
}

#[test]
fn an_adapter_changes_the_answer() {
    // Guards the tests above against a fixture in which B is zero.
    let golden = golden();
    let expected = ExpectedLogits::load();
    let base = expected.of(golden.case("base/tiny"));
    for case in golden.cases.iter().filter(|case| case.model == "tiny" && case.adapter.is_some()) {
        if case.prompt == golden.case("base/tiny").prompt {
            assert!(difference(&expected.of(case), &base) > 0.1, "{}", case.name);
        }
    }
    let model = tiny("tiny");
    assert_ne!(
        Digest::of(&blob(&golden_dir().join("adapters/rank4"), &model.config)),
        Digest::of(&blob(&golden_dir().join("adapters/rank8"), &model.config))
    );
}

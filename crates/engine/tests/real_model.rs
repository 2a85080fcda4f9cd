//! Greedy text on SmolLM2-135M-Instruct in F32 equals that of transformers + PEFT, for the base and the three example
//! adapters. All prompts of all adapters run in one batch: that is what the engine is for, and it keeps this quick.
//!
//! The model: `WEFT_DEMO_MODEL`, else it is fetched into `.cache/models` of the workspace. Without it these tests fail.

mod common;

use common::{Request, blob, engine, generate, open};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weft_base_model::BaseModel;
use weft_engine::{AdapterDtype, Dtype, Engine, LogitsWanted, SeqStep, SlotId, StepBatch};

const TOKENS: usize = 32;
const KV_BLOCKS: usize = 1024;

/// `smollm2_greedy.json`, made by the script beside it.
#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Folder under `examples/adapters`; none: the base.
    adapter: Option<String>,
    prompt_ids: Vec<u32>,
    /// What transformers + PEFT generate, at least [`TOKENS`] unless an end of sequence comes first.
    output_ids: Vec<u32>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model() -> BaseModel {
    let path = std::env::var_os("WEFT_DEMO_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        weft_base_model::fetch::demo_model(&workspace().join(".cache/models")).expect("the demo model can be fetched")
    });
    open(&path)
}

fn fixture() -> Vec<Case> {
    let path = common::golden_dir().join("smollm2_greedy.json");
    let text = std::fs::read_to_string(&path).expect("smollm2_greedy.json is committed");
    let fixture: Fixture = serde_json::from_str(&text).expect("it has the fields above");
    fixture.cases
}

fn slots(engine: &mut Engine, model: &BaseModel) -> BTreeMap<Option<String>, Option<SlotId>> {
    let mut slots = BTreeMap::from([(None, None)]);
    for name in ["pirate", "support-triage", "sql-writer"] {
        let bytes = blob(&workspace().join("examples/adapters").join(name), &model.config);
        let prepared = engine.preparer().prepare(&bytes).expect("the example fits");
        slots.insert(Some(name.to_owned()), Some(engine.install(prepared)));
    }
    slots
}

#[test]
fn greedy_text_equals_transformers_and_peft_and_does_not_depend_on_the_batch() {
    let model = model();
    let mut engine = engine(&model, Dtype::F32, KV_BLOCKS);
    let slots = slots(&mut engine, &model);
    let cases = fixture();
    for adapter in slots.keys() {
        let count = cases.iter().filter(|case| case.adapter == *adapter).count();
        assert!(count >= 10, "{adapter:?} has {count} prompts");
    }
    let request = |(index, case): (usize, &Case)| Request {
        prompt: case.prompt_ids.clone(),
        slot: slots[&case.adapter],
        arrives: index % 3,
    };
    let requests: Vec<Request> = cases.iter().enumerate().map(request).collect();
    let together = generate(&mut engine, &requests, TOKENS, 128);
    for (case, found) in cases.iter().zip(&together) {
        let expected = &case.output_ids[..case.output_ids.len().min(TOKENS)];
        assert!(!expected.is_empty());
        assert_eq!(
            &found[..expected.len()],
            expected,
            "{:?}: {:?}",
            case.adapter,
            model.tokenizer.decode(&case.prompt_ids, false)
        );
    }

    // One of each alone: the same text as in the batch of 40, to the last token.
    for adapter in slots.keys() {
        let index = cases.iter().position(|case| case.adapter == *adapter).expect("counted above");
        let alone = Request { arrives: 0, ..requests[index].clone() };
        assert_eq!(generate(&mut engine, &[alone], TOKENS, 512)[0], together[index], "{adapter:?} alone");
    }
}

/// How often a storage's most likely next token must be the one of transformers + PEFT in F32, given the same text before it.
/// Measured on the 40 answers (some 900 tokens) and rounded down.
const LEAST_AGREEMENT: [(Dtype, AdapterDtype, f64); 4] = [
    (Dtype::Bf16, AdapterDtype::Bf16, 0.99),
    (Dtype::Int8, AdapterDtype::Bf16, 0.98),
    (Dtype::Int8, AdapterDtype::Int8, 0.98),
    (Dtype::Q4, AdapterDtype::Bf16, 0.975),
];

#[test]
fn each_storage_agrees_with_f32_as_often_as_is_stated() {
    let model = model();
    let cases = fixture();
    for (dtype, adapters, least) in LEAST_AGREEMENT {
        let mut engine = common::engine_of(&model, dtype, adapters, KV_BLOCKS, common::cpu());
        let slots = slots(&mut engine, &model);
        let (mut same, mut all) = (0, 0);
        for case in &cases {
            let mut tokens = case.prompt_ids.clone();
            tokens.extend_from_slice(&case.output_ids[..case.output_ids.len().min(TOKENS) - 1]);
            let blocks = (0..tokens.len().div_ceil(common::BLOCK_SIZE) as u32).collect();
            let slot = slots[&case.adapter];
            let seq = SeqStep { tokens, start: 0, blocks, slot, logits: LogitsWanted::All };
            let output = engine.step(&StepBatch { seqs: vec![seq] }).expect("the batch is sound");
            let rows = output.seqs[0].logits.chunks_exact(engine.vocabulary());
            for (row, expected) in rows.skip(case.prompt_ids.len() - 1).zip(&case.output_ids) {
                same += usize::from(common::greedy(row) == *expected);
                all += 1;
            }
        }
        let rate = f64::from(same as u32) / f64::from(all as u32);
        println!("{} with adapters in {}: {same} of {all} tokens agree", dtype.as_str(), adapters.as_str());
        assert!(all > 800 && rate >= least, "{} {}: {same} of {all}", dtype.as_str(), adapters.as_str());
    }
}

//! Greedy text on SmolLM2-135M-Instruct in F32 equals that of transformers + PEFT, for the base and the three example
//! adapters. All prompts of all adapters run in one batch: that is what the engine is for, and it keeps this quick.
//!
//! The model: `WEFT_DEMO_MODEL`, else it is fetched into `.cache/models` of the workspace. Without it these tests fail.

mod common;

use common::{Request, blob, engine, generate, open};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use weft_base_model::BaseModel;
use weft_engine::{AdapterDtype, Dtype, LogitsWanted, ProcessorEngine, SeqStep, SlotId, StepBatch};

const TOKENS: usize = 32;
/// Each prompt alone, so many tokens: enough to leave the prompt behind, few enough to stay quick.
const TOKENS_ALONE: usize = 12;
/// Where transformers' two best logits are nearer than this, another order of adding up may rightly choose the other:
/// F32 logits of this model agree within about 1e-4 between implementations, and this is ten times the sum of two.
const MARGIN_MIN: f32 = 0.002;
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
    /// The user's message.
    prompt: String,
    /// The chat as transformers renders it, and its ids.
    rendered: String,
    prompt_ids: Vec<u32>,
    /// What transformers + PEFT generate, at least [`TOKENS`] unless an end of sequence comes first.
    output_ids: Vec<u32>,
    /// Best minus second-best logit of each output token.
    margins: Vec<f32>,
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

fn slots(engine: &mut ProcessorEngine, model: &BaseModel) -> BTreeMap<Option<String>, Option<SlotId>> {
    let mut slots = BTreeMap::from([(None, None)]);
    for name in ["pirate", "support-triage", "sql-writer"] {
        let bytes = blob(&workspace().join("examples/adapters").join(name), &model.config);
        let prepared = engine.preparer().prepare(&bytes).expect("the example fits");
        slots.insert(Some(name.to_owned()), Some(engine.install(prepared)));
    }
    slots
}

#[test]
fn our_template_and_tokenizer_make_the_prompts_that_transformers_makes() {
    let model = model();
    let template = model.chat_template.as_ref().expect("the demo model has a chat template");
    let cases = fixture();
    assert_eq!(cases.len(), 40);
    for case in &cases {
        let messages = serde_json::json!([{"role": "user", "content": case.prompt}]);
        let rendered = template.render(&messages, None, true, false).expect("a plain chat");
        assert_eq!(rendered.text(), case.rendered);
        assert_eq!(model.tokenizer.encode_rendered(&rendered).expect("plain text"), case.prompt_ids, "{}", case.prompt);
    }
}

/// How many of the expected tokens must be found: all, or those before a choice too close to call.
fn settled(case: &Case) -> usize {
    let close = case.margins.iter().position(|margin| *margin < MARGIN_MIN);
    close.unwrap_or(TOKENS).min(case.output_ids.len()).min(TOKENS)
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
        assert_eq!(case.margins.len(), case.output_ids.len());
        let expected = &case.output_ids[..settled(case)];
        assert!(!expected.is_empty());
        assert_eq!(
            &found[..expected.len()],
            expected,
            "{:?}: {:?}",
            case.adapter,
            model.tokenizer.decode(&case.prompt_ids, false)
        );
    }

    // So that the rule for close choices does not hollow out the test.
    let unsettled = cases.iter().filter(|case| settled(case) < case.output_ids.len().min(TOKENS)).count();
    assert!(unsettled <= 1, "{unsettled} cases hold a choice closer than {MARGIN_MIN}");

    // Each alone: the same text as in the batch of 40; of each adapter one to the last token.
    let mut seen = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let tokens = if seen.insert(&cases[index].adapter) { TOKENS } else { TOKENS_ALONE };
        let alone = Request { arrives: 0, ..request.clone() };
        let found = &generate(&mut engine, &[alone], tokens, 512)[0];
        assert_eq!(*found, together[index][..tokens], "{:?} alone: {}", cases[index].adapter, cases[index].prompt);
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
            let seq = SeqStep { tokens, start: 0, blocks, slot, logits: LogitsWanted::All, draw: None };
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

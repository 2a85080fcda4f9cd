//! What several test files need.
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use weft_base_model::{BaseModel, OpenOptions};
use weft_grammar::{Compiler, Limits, Mask};

/// The demo base: `WEFT_DEMO_MODEL`, else fetched once into `.cache/models` of the workspace.
pub(crate) fn demo() -> &'static BaseModel {
    static DEMO: OnceLock<BaseModel> = OnceLock::new();
    DEMO.get_or_init(|| {
        let cache = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/models"));
        let path = std::env::var_os("WEFT_DEMO_MODEL").map(PathBuf::from);
        let path =
            path.unwrap_or_else(|| weft_base_model::fetch::demo_model(&cache).expect("the demo base must be there"));
        weft_base_model::open(&path, &OpenOptions::default()).expect("the demo base is readable")
    })
}

/// A compiler for the demo base's vocabulary.
pub(crate) fn compiler() -> Compiler {
    compiler_with(Limits::default())
}

pub(crate) fn compiler_with(limits: Limits) -> Compiler {
    let base = demo();
    Compiler::new(base.tokenizer.clone(), base.config.vocab_size, &eos(), limits)
}

pub(crate) fn eos() -> Vec<u32> {
    let base = demo();
    [&base.config.eos_ids[..], base.tokenizer.eos_ids()].concat()
}

/// Two hundred schemas after the shapes of public APIs, each with its name.
pub(crate) fn schemas() -> Vec<(String, Value)> {
    let text = include_str!("../schemas.jsonl");
    let read = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("a line is JSON");
        let name = line["name"].as_str().expect("named").to_owned();
        (name, line["schema"].take())
    };
    text.lines().map(read).collect()
}

/// The token of the mask that `random` falls on.
pub(crate) fn pick(mask: &Mask, random: u64) -> Option<u32> {
    let mut nth = random.checked_rem(mask.len() as u64)? as u32;
    for (at, &word) in mask.words().iter().enumerate() {
        if nth < word.count_ones() {
            let mut left = word;
            for _ in 0..nth {
                left &= left - 1;
            }
            return Some(at as u32 * 32 + left.trailing_zeros());
        }
        nth -= word.count_ones();
    }
    None
}

//! Parity with PEFT's `add_weighted_adapter`, and with LoRAX's arithmetic made of PEFT's functions: golden files that
//! `make_peft_merges.py` wrote.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use support::{blob_of, deltas, difference, llama, merge_blobs};
use weft_adapter_format::{BaseShape, Limits, check_package};
use weft_adapter_merge::Recipe;
use weft_types::Digest;

/// PEFT computes deltas, sums and the decomposition in single precision; its LAPACK is good to some 1e-6 of the
/// largest singular value, and what is cut off may turn the directions that stay by as much.
const TOLERANCE: f64 = 2e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft")
}

/// Hidden 12 in three heads, one of them for keys and values, intermediate 20: as the script has it.
fn base() -> BaseShape {
    llama(2, 12, 4, 20)
}

fn blob(name: &str) -> Vec<u8> {
    let read =
        |file: &str| std::fs::read(folder().join(name).join(file)).unwrap_or_else(|e| panic!("{name} {file}: {e}"));
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    check_package(&config, &weights, &base(), None, &Limits::default())
        .unwrap_or_else(|refusal| panic!("{name}: {refusal}"))
        .canonical_blob()
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).expect("golden.json is committed"))
        .expect("JSON")
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

#[test]
fn every_merge_is_that_of_peft_or_of_lorax() {
    let golden = golden();
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 17, "only {}", cases.len());
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let parents: Vec<Vec<u8>> = texts(&case["parents"]).into_iter().map(blob).collect();
        let recipe = Recipe::from_json(case["recipe"].to_string().as_bytes()).expect(name);
        let merged = merge_blobs(recipe, &parents, &base());
        let difference = difference(&deltas(&blob_of(&merged, &base())), &deltas(&blob(name)));
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn digests_of_parents_and_recipes_are_those_of_the_script() {
    let golden = golden();
    for (name, digest) in golden["adapters"].as_object().expect("adapters") {
        assert_eq!(Digest::of(&blob(name)).to_string(), *digest, "{name}");
    }
    for case in golden["cases"].as_array().expect("cases") {
        let recipe =
            Recipe::from_json(case["recipe"].to_string().as_bytes()).and_then(Recipe::check).expect("a recipe");
        assert_eq!(recipe.digest().to_string(), case["recipe_digest"], "{}", case["name"]);
    }
}

#[test]
fn bytes_of_a_merge_never_move() {
    // A merge made at request time is known by its recipe's digest; whatever changes one of these takes a new number in
    // the tag of `recipe.rs`.
    let golden = golden();
    let mut found = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let parents: Vec<Vec<u8>> = texts(&case["parents"]).into_iter().map(blob).collect();
        let recipe = Recipe::from_json(case["recipe"].to_string().as_bytes()).expect("a recipe");
        let merged = merge_blobs(recipe, &parents, &base());
        let name = case["name"].as_str().expect("a name");
        found.push(format!("{name} {}", Digest::of(&blob_of(&merged, &base())).hex()));
    }
    let kept = std::fs::read_to_string(folder().with_file_name("digests.txt")).unwrap_or_default();
    assert_eq!(found, kept.lines().collect::<Vec<_>>(), "now:\n{}", found.join("\n"));
}

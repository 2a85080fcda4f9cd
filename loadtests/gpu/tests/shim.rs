//! The measurement runs, in the shim.

use serde_json::Value;
use std::process::{Command, Output};

fn run(more: &[&str]) -> Output {
    let tiny = "--shim --shape tiny --rows 4 --context 20 --prompts 9 --request 6,3 --registered 5,40 --seconds 0.1";
    // What is given replaces it.
    let (name, others): (&str, Vec<&str>) = ("--shim", tiny.split(' ').skip(1).collect());
    let others = others.chunks(2).filter(|other| !more.contains(&other[0])).flatten();
    Command::new(env!("CARGO_BIN_EXE_weft-gpu")).arg(name).args(others).args(more).output().unwrap()
}

fn report(more: &[&str]) -> Value {
    let output = run(more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn numbers(cases: &Value, field: &str) -> Vec<u64> {
    cases.as_array().unwrap().iter().map(|case| case[field].as_u64().unwrap()).collect()
}

/// All of these fields are there and more than zero.
fn assert_found(cases: &Value, fields: &[&str]) {
    for case in cases.as_array().unwrap() {
        for field in fields {
            // A field within another: `a.b`.
            let found = &case[field.split('.').next().unwrap()];
            let found = field.split_once('.').map_or(found, |(_, of)| &found[of]);
            assert!(found.as_f64().is_some_and(|found| found > 0.0), "{field} of {case}");
        }
    }
}

#[test]
fn decoding() {
    let report = report(&["--only", "decode"]);
    let cases = report["decode"].as_array().unwrap();
    let of = |format: &str, graphs: bool| -> Vec<[u64; 2]> {
        let found = cases.iter().filter(|case| case["format"] == format && case["graphs"] == graphs);
        found.map(|case| [&case["loaded"], &case["adapters"]].map(|count| count.as_u64().unwrap())).collect()
    };
    for (format, graphs) in [("bf16", true), ("bf16", false), ("int8", true), ("fp8", true)] {
        assert_eq!(of(format, graphs), [[0, 0], [1, 1], [4, 0], [4, 4]], "{format}, graphs: {graphs}");
    }
    assert_found(&report["decode"], &["step_ms", "tokens_per_s", "of_base", "floor_ms", "of_floor", "weight_bytes"]);
    // A byte for each number, and their scales, against two.
    let bytes = |format: &str| cases.iter().find(|case| case["format"] == format && case["adapters"] == 1).unwrap();
    let [bf16, int8] = ["bf16", "int8"].map(|format| bytes(format)["adapter_bytes"].as_u64().unwrap());
    assert!(int8 * 10 < bf16 * 7 && int8 * 2 > bf16, "{int8} and {bf16}");
    let rates = ["bandwidth_bytes_per_s", "upload_bytes_per_s", "product_operations_per_s"];
    assert_found(&Value::Array(vec![report["device"].clone()]), &rates);
    // Goals are told, those that were not measured as such.
    let goals = report["goals"].as_array().unwrap();
    assert_eq!(goals.iter().filter(|goal| goal["met"].is_null()).count(), 6, "{goals:?}");
    assert!(goals.iter().all(|goal| goal["met"].is_null() == goal["found"].is_null()), "{goals:?}");
}

#[test]
fn cold_adapters_prompts_and_streamed_ones() {
    let output = run(&["--only", "cold,prefill,streamed", "--logits"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["logits"].as_bool(), report["decode"].as_array().map(Vec::len)), (Some(true), Some(0)));
    assert_eq!(report["cold"].as_array().unwrap().len(), 3);
    assert_found(&report["cold"], &["adapter_bytes", "prompt", "warm.median_ms", "cold.p99_ms", "upload_ms"]);
    let prefill = &report["prefill"];
    let shapes = ["sequences", "tokens", "adapters"].map(|field| numbers(prefill, field));
    assert_eq!(shapes, [[1, 1, 8, 8], [9; 4], [0, 1, 0, 8]]);
    assert_found(prefill, &["step_ms", "of_base", "operations", "floor_ms", "of_floor"]);
    assert_eq!(numbers(&report["streamed"], "adapters"), [1, 2, 4]);
    assert_found(&report["streamed"], &["in_blocks_ms", "streamed_ms", "of_in_blocks", "upload_ms", "of_floor"]);
    // The goals are told for a reader, too.
    let table = String::from_utf8(output.stderr).unwrap();
    assert!(table.starts_with("goal ") && table.lines().count() == 9 && table.contains("not measured"), "{table}");
}

#[test]
fn more_adapters_than_slots() {
    let report = report(&["--only", "slots"]);
    let cases = &report["slots"];
    assert_eq!(numbers(cases, "registered"), [2, 4, 8, 16, 32, 64, 5, 40]);
    assert_found(cases, &["slots", "running", "requests", "tokens_per_s", "first_token.median_ms"]);
    assert!(cases[0]["of_half"].is_null());
    let most = &cases[5];
    // Some had to go, so that others could come.
    assert!(most["loads"].as_u64() > most["slots"].as_u64() && most["requests"].as_u64() >= Some(8), "{most}");
    assert_found(&Value::Array(cases.as_array().unwrap()[1..].to_vec()), &["of_half.tokens_per_s"]);
}

#[test]
fn a_real_model() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/engine/tests/golden/tiny");
    let report = report(&["--only", "model", "--model", model]);
    assert_eq!(numbers(&report["model"]["decode"], "adapters"), [0, 1, 0, 4]);
    assert_eq!(numbers(&report["model"]["prefill"], "sequences"), [1, 1, 8, 8]);
}

/// What an hour on a device has found is not lost because a part needs more memory than there is.
#[test]
fn a_part_that_fails_leaves_the_others() {
    let output = run(&["--only", "slots,prefill", "--rows", "20000"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("slots was not measured: build an engine: "), "{error}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["failed"][0]["part"], "slots");
    assert_eq!((numbers(&report["slots"], "registered").len(), numbers(&report["prefill"], "tokens").len()), (0, 4));
}

#[test]
fn what_does_not_fit_the_base_is_refused() {
    for (args, error) in [
        (["--context", "256"], "--context is 256, allowed are up to 255"),
        (["--prompts", "9,0"], "--prompts has 0, allowed are 1 to 255"),
        (["--request", "200,30"], "--request is 200,30: allowed are"),
        (["--rows", "0"], "--rows is 0, allowed are 1 and more"),
    ] {
        let output = run(&args);
        let found = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && found.contains(error), "{found}");
    }
}

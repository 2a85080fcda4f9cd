//! Parity with PEFT on packages that PEFT wrote, and the digests of their canonical blobs.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{llama, llama_with_heads};
use weft_adapter_format::{BaseShape, CanonicalAdapter, CheckedPackage, Limits, check_package};
use weft_types::Digest;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden")
}

fn golden() -> Value {
    let text = std::fs::read(golden_dir().join("golden.json")).expect("golden.json is committed");
    serde_json::from_slice(&text).expect("golden.json is valid")
}

/// The shapes of the tiny models, as their config.json have them.
fn tiny_base(name: &str) -> BaseShape {
    match name {
        "tiny" => llama(3, 64, 32, 96),
        "tiny-untied" => llama(2, 48, 48, 80),
        "tiny-llama3" => llama_with_heads(2, 32, 48, 24, 64),
        other => panic!("no adapter is expected for {other}"),
    }
}

fn check_folder(folder: &Path, base: &BaseShape, base_name: Option<&str>) -> CheckedPackage<'static> {
    let read =
        |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{folder:?} {name}: {error}"));
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    // Few bytes, that stay for as long as the test.
    check_package(&config, weights.leak(), base, base_name, &Limits::default())
        .unwrap_or_else(|refusal| panic!("{folder:?}: {refusal}"))
}

/// Cases with an adapter, each adapter once.
fn adapter_cases() -> Vec<Value> {
    let golden = golden();
    let cases = golden["cases"].as_array().expect("cases").iter();
    let mut by_adapter = BTreeMap::new();
    for case in cases.filter(|case| case["adapter"].is_string()) {
        by_adapter.insert(case["adapter"].to_string(), case.clone());
    }
    by_adapter.into_values().collect()
}

#[test]
fn rank_and_scale_of_every_module_are_those_of_peft() {
    let cases = adapter_cases();
    assert!(cases.len() >= 18, "only {} adapters", cases.len());
    for case in cases {
        let folder = golden_dir().join(case["adapter"].as_str().expect("a path"));
        let package = check_folder(&folder, &tiny_base(case["model"].as_str().expect("a name")), None);
        let ours: BTreeMap<String, (u64, f64)> = package
            .resolved
            .iter()
            .map(|one| (one.module.full_name(one.layer), (one.rank as u64, one.scale)))
            .collect();
        let peft: BTreeMap<String, (u64, f64)> = case["modules"]
            .as_object()
            .expect("modules")
            .iter()
            .map(|(name, module)| {
                (name.clone(), (module["rank"].as_u64().expect("rank"), module["scale"].as_f64().expect("scale")))
            })
            .collect();
        assert_eq!(ours, peft, "{folder:?}");
    }
}

#[test]
fn digests_are_those_of_the_independent_writer_and_never_move() {
    for case in adapter_cases() {
        let folder = golden_dir().join(case["adapter"].as_str().expect("a path"));
        let package = check_folder(&folder, &tiny_base(case["model"].as_str().expect("a name")), None);
        assert_eq!(package.digest().to_string(), case["canonical_sha256"], "{folder:?}");
        assert_eq!(package.digest(), Digest::of(&package.canonical_blob()));
    }
}

#[test]
fn the_source_tensors_come_back_from_the_blob() {
    let mut dora = 0;
    for case in adapter_cases() {
        let folder = golden_dir().join(case["adapter"].as_str().expect("a path"));
        let package = check_folder(&folder, &tiny_base(case["model"].as_str().expect("a name")), None);
        let source_bytes = std::fs::read(folder.join("adapter_model.safetensors")).expect("committed");
        let source = safetensors::SafeTensors::deserialize(&source_bytes).expect("PEFT wrote it");
        let blob = package.canonical_blob();
        let adapter = CanonicalAdapter::parse(&blob).expect("canonical");
        let is_dora = source.names().iter().any(|name| name.ends_with("lora_magnitude_vector"));
        assert_eq!(adapter.is_dora(), is_dora, "{folder:?}");
        dora += usize::from(is_dora);
        assert_eq!(adapter.modules().len() * if is_dora { 3 } else { 2 }, source.len());
        assert_eq!(adapter.rank_max(), package.rank_max);
        for delta in adapter.modules() {
            let name = format!("base_model.model.{}", delta.module.full_name(delta.layer));
            for (ours, which) in [(delta.a, "lora_A"), (delta.b, "lora_B")] {
                let theirs = source.tensor(&format!("{name}.{which}.weight")).expect("in the source");
                assert_eq!(ours.bytes, theirs.data(), "{name}.{which}");
                assert_eq!(ours.shape[..], *theirs.shape(), "{name}.{which}");
                assert_eq!(ours.dtype.as_str(), theirs.dtype().to_string(), "{name}.{which}");
            }
            let Some(ours) = delta.magnitude else { continue };
            let theirs = source.tensor(&format!("{name}.lora_magnitude_vector")).expect("in the source");
            assert_eq!(ours.bytes, theirs.data(), "{name}");
            assert_eq!([ours.len()], *theirs.shape(), "{name}");
            assert_eq!(ours.dtype.as_str(), theirs.dtype().to_string(), "{name}");
        }
    }
    assert!(dora >= 5, "only {dora} adapters with DoRA");
}

#[test]
fn fan_in_fan_out_is_a_warning_as_in_peft() {
    let package = check_folder(&golden_dir().join("adapters/fan_in_fan_out"), &tiny_base("tiny"), Some("weft/tiny"));
    assert!(package.warnings[0].contains("fan_in_fan_out is true"), "{:?}", package.warnings);
    let package = check_folder(&golden_dir().join("adapters/plain"), &tiny_base("tiny"), Some("weft/tiny"));
    assert_eq!(package.warnings, Vec::<String>::new());
}

#[test]
fn an_adapter_of_another_base_is_refused_by_shape_and_not_by_name() {
    let folder = golden_dir().join("adapters/plain");
    let package = check_folder(&folder, &tiny_base("tiny"), Some("/models/tiny.gguf"));
    assert!(package.warnings[0].contains("base_model_name_or_path is \"weft/tiny\", this base is"));

    let read = |name: &str| std::fs::read(folder.join(name)).expect("committed");
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let refusal = check_package(&config, &weights, &tiny_base("tiny-untied"), None, &Limits::default());
    let reasons = refusal.expect_err("another base").reasons;
    assert!(reasons.iter().any(|reason| reason.contains("the config and this base need [8, 48]")), "{reasons:?}");
    assert!(
        reasons.iter().any(|reason| reason.contains("model.layers.2") && reason.contains("no such module")),
        "{reasons:?}"
    );
}

/// SmolLM2-135M-Instruct, the demo base.
fn demo_base() -> BaseShape {
    llama(30, 576, 192, 1536)
}

#[test]
fn the_example_adapters_have_their_committed_digests() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/adapters");
    // By canonical_sha256 in make_tiny.py.
    let expected = [
        ("pirate", 4, 4.0, "sha256:d05da6c6fc0eed3fa5c04721334c380c5d9eda3edf4b5b495a3549206cf2a382"),
        ("sql-writer", 16, 2.0, "sha256:11a6dd2e5aff90e4d27fa1aca97d6e4d8eed11b3eb56854aa0b52a190e557f82"),
        ("support-triage", 8, 2.0, "sha256:65a4fd5dcffd0d6947270a3eb079228fa939aecfcfd89e4510b3f67d85e52d3c"),
    ];
    for (name, rank, scale, digest) in expected {
        let package = check_folder(&examples.join(name), &demo_base(), None);
        assert_eq!(package.rank_max, rank, "{name}");
        assert!(package.resolved.iter().all(|one| one.scale == scale), "{name}");
        assert_eq!(package.digest().to_string(), digest, "{name}");
    }
}

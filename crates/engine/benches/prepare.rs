//! What it costs to make an adapter ready for a slot, part by part, beside the floor of each part.
//!
//! ```text
//! WEFT_DEMO_MODEL=... cargo bench -p weft-engine --bench prepare
//! ```
//!
//! Least of many runs on one thread; bf16 packages and bf16 slots.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;
use weft_adapter_format::CanonicalAdapter;
use weft_base_model::ModelConfig;
use weft_engine::Dtype;
use weft_types::Digest;

const ATTENTION: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj"];
const ALL: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn main() {
    let path = std::env::var_os("WEFT_DEMO_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
        weft_base_model::fetch::demo_model(&cache).expect("the demo model can be fetched")
    });
    let model = common::open(&path);
    let engine = common::engine_with(&model, Dtype::Bf16, 16, common::cpu());
    let preparer = engine.preparer();
    println!(
        "{:<26} {:>7} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "ms", "MB", "copy", "sha256", "parse", "prepare", "ms per MB"
    );
    for (name, rank, modules, dora) in [
        ("rank 8, attention", 8, ATTENTION, false),
        ("rank 16, all linears", 16, ALL, false),
        ("rank 64, all linears", 64, ALL, false),
        ("rank 8, attention, DoRA", 8, ATTENTION, true),
        ("rank 16, all, DoRA", 16, ALL, true),
        ("rank 64, all, DoRA", 64, ALL, true),
    ] {
        let blob = random_blob(&model.config, rank, modules, dora);
        let megabytes = blob.len() as f64 / 1e6;
        let copy = best(|| drop(black_box(blob.clone())));
        let hash = best(|| {
            black_box(Digest::of(&blob));
        });
        let parse = best(|| drop(black_box(CanonicalAdapter::parse(&blob).expect("canonical"))));
        let prepare = best(|| drop(black_box(preparer.prepare(&blob).expect("it fits"))));
        println!(
            "{name:<26} {megabytes:>7.2} {copy:>8.2} {hash:>8.2} {parse:>8.2} {prepare:>9.2} {:>9.2}",
            prepare / megabytes
        );
    }
}

/// Milliseconds of the fastest run in about a second.
fn best(run: impl Fn()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 1.0 || best.is_infinite() {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    best
}

fn random_blob(config: &ModelConfig, rank: usize, modules: &[&str], dora: bool) -> Vec<u8> {
    let mut state = 1u64;
    let mut values = |count: usize| -> Vec<u8> {
        let mut value = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            half::bf16::from_f32(((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.02)
        };
        (0..count).flat_map(|_| value().to_le_bytes()).collect()
    };
    let mut tensors = Vec::new();
    for layer in 0..config.layers {
        for linear in config.linears().iter().filter(|linear| modules.contains(&linear.module)) {
            let name = format!("base_model.model.model.layers.{layer}.{}.{}", linear.parent, linear.module);
            let (inputs, outputs) = (linear.in_features, linear.out_features);
            tensors.push((format!("{name}.lora_A.weight"), vec![rank, inputs], values(rank * inputs)));
            tensors.push((format!("{name}.lora_B.weight"), vec![outputs, rank], values(rank * outputs)));
            if dora {
                tensors.push((format!("{name}.lora_magnitude_vector"), vec![outputs], values(outputs)));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name.as_str(), view.expect("sizes agree"))
    });
    let weights = safetensors::serialize(views, None).expect("tensors can be written");
    let adapter_config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "target_modules": modules, "use_dora": dora,
    });
    common::blob_of(adapter_config.to_string().as_bytes(), &weights, config)
}

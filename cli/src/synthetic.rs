//! Random PEFT packages for benchmarks: real files, publishable anywhere, with no trained meaning.

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use weft_base_model::ModelConfig;

/// A PEFT package in memory.
pub struct Package {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`, bf16.
    pub weights: Vec<u8>,
}

/// A LoRA of this rank on these modules of every layer, with entries small enough to leave the text sane.
///
/// # Panics
/// If `modules` names a linear the model lacks.
#[must_use]
pub fn lora(model: &ModelConfig, rank: usize, modules: &[&str], seed: u64) -> Package {
    let mut random = StdRng::seed_from_u64(seed);
    let mut noise = |count: usize, scale: f32| -> Vec<u8> {
        (0..count).flat_map(|_| bf16::from_f32(random.random_range(-scale..scale)).to_le_bytes()).collect()
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for layer in 0..model.layers {
        for linear in model.linears().iter().filter(|linear| modules.contains(&linear.module)) {
            let name = format!("base_model.model.model.layers.{layer}.{}.{}", linear.parent, linear.module);
            let (inputs, outputs) = (linear.in_features, linear.out_features);
            tensors.push((format!("{name}.lora_A.weight"), vec![rank, inputs], noise(rank * inputs, 0.02)));
            tensors.push((format!("{name}.lora_B.weight"), vec![outputs, rank], noise(outputs * rank, 0.02)));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("shape and bytes agree by construction"),
        )
    });
    let weights = safetensors::serialize(views, None).expect("names are unique by construction");
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "benchmark",
        "r": rank, "lora_alpha": 2 * rank, "target_modules": modules, "bias": "none",
    });
    Package { config: config.to_string().into_bytes(), weights }
}

//! Random adapters on all seven linears.

use anyhow::{Result, anyhow};
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use weft_adapter_format::{BaseShape, Limits, LinearShape, check_package};
use weft_base_model::ModelConfig;

/// Different numbers of one adapter; more would only take longer to make.
const NUMBERS: usize = 1 << 16;

/// The canonical blob of an adapter of this rank.
pub(crate) fn blob(config: &ModelConfig, rank: usize, seed: u64) -> Result<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    let noise: Vec<u8> =
        (0..NUMBERS).flat_map(|_| bf16::from_f32(random.random_range(-0.02..0.02)).to_le_bytes()).collect();
    let bytes = |values: usize| noise.iter().copied().cycle().take(2 * values).collect::<Vec<u8>>();
    let mut tensors = Vec::new();
    for layer in 0..config.layers {
        for linear in config.linears() {
            let name = format!("base_model.model.model.layers.{layer}.{}.{}", linear.parent, linear.module);
            let (inputs, outputs) = (linear.in_features, linear.out_features);
            tensors.push((format!("{name}.lora_A.weight"), vec![rank, inputs], bytes(rank * inputs)));
            tensors.push((format!("{name}.lora_B.weight"), vec![outputs, rank], bytes(outputs * rank)));
        }
    }
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    let weights = safetensors::serialize(views, None)?;
    let modules: Vec<_> = config.linears().iter().map(|linear| linear.module).collect();
    let package = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "benchmark",
        "r": rank, "lora_alpha": rank, "target_modules": modules, "bias": "none",
    });
    let linear = |linear: weft_base_model::LinearShape| LinearShape {
        module: linear.module.to_owned(),
        parent: linear.parent.to_owned(),
        in_features: linear.in_features,
        out_features: linear.out_features,
    };
    let base = BaseShape { layers: config.layers, linears: config.linears().into_iter().map(linear).collect() };
    let checked = check_package(package.to_string().as_bytes(), &weights, &base, None, &Limits::default());
    let checked =
        checked.map_err(|refusal| anyhow!("an adapter that is made here is refused: {:?}", refusal.reasons))?;
    Ok(checked.canonical_blob())
}

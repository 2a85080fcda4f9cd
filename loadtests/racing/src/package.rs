//! Packages and the base that they are for, made up.

use anyhow::Result;
use safetensors::tensor::{Dtype, TensorView};
use weft_proto::registry::v1 as pb;
use weft_types::Digest;

/// Width of the one linear of the base.
const WIDTH: usize = 1024;
/// Layers of the base: so that a package can have a hundred megabytes.
const LAYERS: usize = 256;
/// What packages may have.
const RANK_MAX: usize = 64;
const BASE: &str = "racing-base";

/// A package.
#[derive(Clone)]
pub struct Package {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

/// The base, as a worker would announce it.
#[must_use]
pub fn base() -> pb::AnnounceBaseRequest {
    pb::AnnounceBaseRequest {
        base_digest: Digest::of(BASE.as_bytes()).to_vec().into(),
        served_name: BASE.to_owned(),
        worker: "none".to_owned(),
        layers: LAYERS as u32,
        vocabulary_size: 1_000,
        hidden_size: WIDTH as u32,
        linears: vec![pb::LinearShape {
            module: "q_proj".to_owned(),
            in_features: WIDTH as u32,
            out_features: WIDTH as u32,
            parent: "self_attn".to_owned(),
        }],
    }
}

impl Package {
    /// About so many bytes of weights (8 KiB at least, 128 MiB at most); other seeds, other bytes.
    ///
    /// # Errors
    /// The weights cannot be written as safetensors.
    pub fn of(bytes: usize, seed: u64) -> Result<Self> {
        // A layer at rank r has 2 · 1,024 · r elements of four bytes.
        let per_rank = 2 * WIDTH * 4;
        let layers = bytes.div_ceil(per_rank * RANK_MAX).clamp(1, LAYERS);
        let rank = (bytes / (per_rank * layers)).clamp(1, RANK_MAX);
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |count: usize| -> Vec<u8> {
            let values = (0..count).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            });
            values.flat_map(f32::to_le_bytes).collect()
        };
        let mut tensors = Vec::new();
        for layer in 0..layers {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
            tensors.push((format!("{name}.lora_A.weight"), vec![rank, WIDTH], random(rank * WIDTH)));
            tensors.push((format!("{name}.lora_B.weight"), vec![WIDTH, rank], random(rank * WIDTH)));
        }
        let mut views = Vec::with_capacity(tensors.len());
        for (name, shape, bytes) in &tensors {
            views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
        }
        let on: Vec<String> = (0..layers).map(|layer| layer.to_string()).collect();
        let config = format!(
            r#"{{"peft_type":"LORA","task_type":"CAUSAL_LM","base_model_name_or_path":"{BASE}","r":{rank},"lora_alpha":{rank},"target_modules":["q_proj"],"layers_to_transform":[{}],"bias":"none"}}"#,
            on.join(",")
        );
        Ok(Self { config: config.into_bytes(), weights: safetensors::serialize(views, None)? })
    }
}

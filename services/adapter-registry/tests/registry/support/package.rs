//! PEFT packages for a base of SmolLM2's shape.

use safetensors::tensor::{Dtype, TensorView};
use weft_proto::registry::v1 as pb;
use weft_types::Digest;

pub(crate) const BASE_NAME: &str = "SmolLM2-135M-Instruct";
const HIDDEN: usize = 576;
pub(crate) const LAYERS: usize = 30;

#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) config: Vec<u8>,
    pub(crate) weights: Vec<u8>,
}

pub(crate) fn base_digest() -> Digest {
    Digest::of(b"the base of these tests")
}

/// What a worker with SmolLM2-135M announces.
pub(crate) fn smollm2() -> pb::AnnounceBaseRequest {
    let linear = |module: &str, parent: &str, in_features, out_features| pb::LinearShape {
        module: module.to_owned(),
        parent: parent.to_owned(),
        in_features,
        out_features,
    };
    pb::AnnounceBaseRequest {
        base_digest: base_digest().to_vec().into(),
        served_name: BASE_NAME.to_owned(),
        worker: "worker-1".to_owned(),
        layers: LAYERS as u32,
        vocabulary_size: 49_152,
        hidden_size: HIDDEN as u32,
        linears: vec![
            linear("q_proj", "self_attn", 576, 576),
            linear("k_proj", "self_attn", 576, 192),
            linear("v_proj", "self_attn", 576, 192),
            linear("o_proj", "self_attn", 576, 576),
            linear("gate_proj", "mlp", 576, 1536),
            linear("up_proj", "mlp", 576, 1536),
            linear("down_proj", "mlp", 1536, 576),
        ],
    }
}

impl Package {
    /// Rank 1 on `q_proj` of layer 0; other seeds, other bytes. About 5 KB.
    pub(crate) fn tiny(seed: u64) -> Self {
        Self::q_proj(1, 1, seed)
    }

    /// Rank 64 on `q_proj` of every layer: about 9 MB.
    pub(crate) fn large(seed: u64) -> Self {
        Self::q_proj(64, LAYERS, seed)
    }

    pub(crate) fn q_proj(rank: usize, layers: usize, seed: u64) -> Self {
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
            tensors.push((format!("{name}.lora_A.weight"), vec![rank, HIDDEN], random(rank * HIDDEN)));
            tensors.push((format!("{name}.lora_B.weight"), vec![HIDDEN, rank], random(rank * HIDDEN)));
        }
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        let layers: Vec<String> = (0..layers).map(|layer| layer.to_string()).collect();
        let config = format!(
            r#"{{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "{BASE_NAME}",
            "r": {rank}, "lora_alpha": {rank}, "target_modules": ["q_proj"], "layers_to_transform": [{}], "bias": "none"}}"#,
            layers.join(", ")
        );
        Self { config: config.into_bytes(), weights: safetensors::serialize(views, None).unwrap() }
    }

    /// One of the three examples of this repository.
    pub(crate) fn example(name: &str) -> Self {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/adapters").join(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        Self { config: read("adapter_config.json"), weights: read("adapter_model.safetensors") }
    }
}

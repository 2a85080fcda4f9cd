//! A tiny base and packages for it.

use safetensors::tensor::{Dtype, TensorView};
use weft_adapter_format::{BaseShape, Limits, LinearShape, check_package};
use weft_proto::registry::v1 as pb;
use weft_types::Digest;

/// What the base is called.
pub(crate) const BASE_NAME: &str = "simulated-base";
const HIDDEN: usize = 8;

/// Names the base's bytes.
#[must_use]
pub(crate) fn base_digest() -> Digest {
    Digest::of(b"the base of the simulation")
}

/// What a worker says of it.
#[must_use]
pub(crate) fn announcement(worker: &str) -> pb::AnnounceBaseRequest {
    pb::AnnounceBaseRequest {
        base_digest: base_digest().to_vec().into(),
        served_name: BASE_NAME.to_owned(),
        worker: worker.to_owned(),
        layers: 1,
        vocabulary_size: 1024,
        hidden_size: HIDDEN as u32,
        linears: vec![pb::LinearShape {
            module: "q_proj".to_owned(),
            parent: "self_attn".to_owned(),
            in_features: HIDDEN as u32,
            out_features: HIDDEN as u32,
        }],
    }
}

/// The two files of a package, and the digest that a registry must find in them.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    /// `adapter_config.json`
    pub(crate) config: String,
    /// `adapter_model.safetensors`
    pub(crate) weights: Vec<u8>,
    /// Of the canonical blob.
    pub(crate) digest: Digest,
}

impl Package {
    /// Rank 1 on the one linear there is; other numbers, other bytes.
    ///
    /// # Panics
    /// Never: the package is sound by construction.
    #[must_use]
    pub(crate) fn number(number: u64) -> Self {
        let values = |salt: u64| -> Vec<u8> {
            let value = |at: usize| ((number * 31 + salt * 7 + at as u64) % 1000) as f32 / 1000.0 - 0.5;
            (0..HIDDEN).flat_map(|at| value(at).to_le_bytes()).collect()
        };
        let mut first = values(1);
        // The number itself, so that no two are equal.
        first[..4].copy_from_slice(&(number as f32).to_le_bytes());
        let second = values(2);
        let name = "base_model.model.model.layers.0.self_attn.q_proj";
        let view = |shape: Vec<usize>, bytes| TensorView::new(Dtype::F32, shape, bytes).expect("as long as its shape");
        let tensors = [
            (format!("{name}.lora_A.weight"), view(vec![1, HIDDEN], &first)),
            (format!("{name}.lora_B.weight"), view(vec![HIDDEN, 1], &second)),
        ];
        let weights = safetensors::serialize(tensors, None).expect("two sound tensors");
        let config = format!(
            r#"{{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "{BASE_NAME}",
            "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "bias": "none"}}"#
        );
        let linear = LinearShape {
            module: "q_proj".to_owned(),
            parent: "self_attn".to_owned(),
            in_features: HIDDEN,
            out_features: HIDDEN,
        };
        let shape = BaseShape { layers: 1, linears: vec![linear] };
        let checked = check_package(config.as_bytes(), &weights, &shape, Some(BASE_NAME), &Limits::default());
        let digest = checked.expect("a sound package").digest();
        Self { config, weights, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_sound_and_differ() {
        let digests: std::collections::BTreeSet<_> =
            (0..50).map(|number| Package::number(number).digest.to_string()).collect();
        assert_eq!(digests.len(), 50);
        assert_eq!(Package::number(3).digest, Package::number(3).digest);
    }
}

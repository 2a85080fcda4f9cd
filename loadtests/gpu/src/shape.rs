//! Sizes of bases.

use weft_base_model::{ModelConfig, Rope, RopeScaling};

/// Llama 3.1 8B, as its `config.json` says.
#[must_use]
pub fn llama_8b() -> ModelConfig {
    ModelConfig {
        hidden_size: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        intermediate_size: 14_336,
        vocab_size: 128_256,
        context_length: 8192,
        rms_eps: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::Default },
        tied_embeddings: false,
        bos_id: None,
        eos_ids: Vec::new(),
    }
}

/// Enough to run in the shim.
#[must_use]
pub fn tiny() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate_size: 96,
        vocab_size: 260,
        context_length: 256,
        ..llama_8b()
    }
}

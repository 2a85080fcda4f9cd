//! What the model is, apart from its weights: sizes, rotary embedding, the tokens it begins and ends with.

use crate::rope::Rope;

/// Sizes and constants of a Llama-architecture decoder. Checked: see [`ModelConfig::check`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the embedding; ids are below it.
    pub vocab_size: usize,
    /// Positions the model was trained for, prompt and answer together.
    pub context_length: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// The output layer is the embedding; then there is no tensor `lm_head.weight`.
    pub tied_embeddings: bool,
    /// The token a text begins with, if the model has one.
    pub bos_id: Option<u32>,
    /// Tokens that end an answer, ascending.
    pub eos_ids: Vec<u32>,
}

/// One linear layer of a decoder layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj` or `down_proj`.
    pub module: &'static str,
    /// `self_attn` or `mlp`.
    pub parent: &'static str,
    /// Columns of its weight.
    pub in_features: usize,
    /// Rows of its weight.
    pub out_features: usize,
}

// Far above any model of this architecture; they keep every product of two sizes within 64 bits.
const LAYERS_MAX: usize = 1024;
const WIDTH_MAX: usize = 1 << 20;
const HEADS_MAX: usize = 4096;
const HEAD_DIM_MAX: usize = 4096;
const VOCAB_MAX: usize = 1 << 24;
const CONTEXT_MAX: usize = 1 << 28;

impl ModelConfig {
    /// The seven linear layers that every decoder layer has, in the order q, k, v, o, gate, up, down.
    #[must_use]
    pub fn linears(&self) -> Vec<LinearShape> {
        let (hidden, inter) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let linear =
            |module, parent, in_features, out_features| LinearShape { module, parent, in_features, out_features };
        vec![
            linear("q_proj", "self_attn", hidden, q),
            linear("k_proj", "self_attn", hidden, kv),
            linear("v_proj", "self_attn", hidden, kv),
            linear("o_proj", "self_attn", q, hidden),
            linear("gate_proj", "mlp", hidden, inter),
            linear("up_proj", "mlp", hidden, inter),
            linear("down_proj", "mlp", inter, hidden),
        ]
    }

    /// Names and shapes of all tensors the model must have, as Hugging Face names them.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, self.hidden_size])];
        for layer in 0..self.layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![self.hidden_size]));
            }
            for linear in self.linears() {
                let name = format!("model.layers.{layer}.{}.{}.weight", linear.parent, linear.module);
                tensors.push((name, vec![linear.out_features, linear.in_features]));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden_size]));
        if !self.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }

    /// Checks that sizes are positive, below generous limits, and fit each other. The error names field and value.
    pub(crate) fn check(&self) -> Result<(), String> {
        let sizes = [
            ("hidden size", self.hidden_size, WIDTH_MAX),
            ("layer count", self.layers, LAYERS_MAX),
            ("head count", self.heads, HEADS_MAX),
            ("kv head count", self.kv_heads, HEADS_MAX),
            ("head dimension", self.head_dim, HEAD_DIM_MAX),
            ("intermediate size", self.intermediate_size, WIDTH_MAX),
            ("vocabulary size", self.vocab_size, VOCAB_MAX),
            ("context length", self.context_length, CONTEXT_MAX),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return Err(format!("{field} {value} is not within 1 to {max}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("head count {} is no multiple of kv head count {}", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head dimension {} is odd", self.head_dim));
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return Err(format!("rms norm epsilon {} is not within 0 to 1", self.rms_eps));
        }
        let ids = self.bos_id.iter().chain(&self.eos_ids);
        if let Some(id) = ids.copied().find(|id| *id as usize >= self.vocab_size) {
            return Err(format!("special token id {id} is not below the vocabulary size {}", self.vocab_size));
        }
        self.rope.check(self.head_dim)
    }
}

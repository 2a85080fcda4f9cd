//! The sizes of the resident model, and where each adapter module acts.

use weft_adapter_format::Module;
use weft_base_model::ModelConfig;

/// Sizes that the forward pass and the adapters need. One per engine; adapters point at it, so that one that was
/// prepared for another engine is recognised.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) rms_eps: f32,
    /// `[head_dim / 2]`.
    pub(crate) inv_freq: Vec<f32>,
    pub(crate) attention_factor: f32,
}

/// A fused linear of a decoder layer: one pass over its packed rows for everything that reads the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Rows of q, then k, then v.
    Qkv,
    /// `o_proj`.
    Output,
    /// Rows of gate, then up.
    GateUp,
    /// `down_proj`.
    Down,
}

/// Sites of a layer.
pub(crate) const SITES: usize = 4;

/// Where a module's delta goes: the site and the columns of its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) site: Site,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) out_offset: usize,
}

impl Shape {
    pub(crate) fn of(config: &ModelConfig) -> Self {
        Self {
            layers: config.layers,
            hidden: config.hidden_size,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            intermediate: config.intermediate_size,
            vocabulary: config.vocab_size,
            context: config.context_length,
            rms_eps: config.rms_eps,
            inv_freq: config.rope.inv_freq(config.head_dim),
            attention_factor: config.rope.attention_factor(),
        }
    }

    /// Width of all query heads.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads, and of all value heads.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of a fused row of q, k and v.
    pub(crate) fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Outputs and inputs of a site.
    pub(crate) fn site(&self, site: Site) -> (usize, usize) {
        match site {
            Site::Qkv => (self.qkv_width(), self.hidden),
            Site::Output => (self.hidden, self.q_width()),
            Site::GateUp => (2 * self.intermediate, self.hidden),
            Site::Down => (self.hidden, self.intermediate),
        }
    }

    pub(crate) fn place(&self, module: Module) -> Place {
        let (hidden, q, kv, inter) = (self.hidden, self.q_width(), self.kv_width(), self.intermediate);
        let place = |site, in_features, out_features, out_offset| Place { site, in_features, out_features, out_offset };
        match module {
            Module::Q => place(Site::Qkv, hidden, q, 0),
            Module::K => place(Site::Qkv, hidden, kv, q),
            Module::V => place(Site::Qkv, hidden, kv, q + kv),
            Module::O => place(Site::Output, q, hidden, 0),
            Module::Gate => place(Site::GateUp, hidden, inter, 0),
            Module::Up => place(Site::GateUp, hidden, inter, inter),
            Module::Down => place(Site::Down, inter, hidden, 0),
        }
    }
}

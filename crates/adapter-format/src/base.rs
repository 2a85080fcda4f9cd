//! The shape of a base model, as far as adapters care.

use std::fmt;

/// What a package is held against: the linear layers that an adapter may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseShape {
    /// Number of decoder layers.
    pub layers: usize,
    /// The linears of one layer; every layer has the same.
    pub linears: Vec<LinearShape>,
}

/// One linear of a decoder layer, named as in Hugging Face's Llama: `model.layers.<layer>.<parent>.<module>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// `q_proj`, `gate_proj`, ...
    pub module: String,
    /// `self_attn` or `mlp`.
    pub parent: String,
    /// Length of an input row.
    pub in_features: usize,
    /// Length of an output row.
    pub out_features: usize,
}

impl BaseShape {
    /// The linear of this kind, if the base has it.
    #[must_use]
    pub fn linear(&self, module: Module) -> Option<&LinearShape> {
        self.linears.iter().find(|linear| linear.module == module.as_str())
    }

    /// Every linear of every layer that an adapter may change, in layer order.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (usize, Module, &LinearShape)> {
        (0..self.layers).flat_map(move |layer| {
            self.linears.iter().filter_map(move |linear| Some((layer, Module::from_name(&linear.module)?, linear)))
        })
    }
}

impl LinearShape {
    /// The full module name in this layer, as PEFT matches it.
    #[must_use]
    pub fn full_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.parent, self.module)
    }
}

/// The seven linears of a Llama decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Module {
    /// All seven, in the order a layer uses them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name in Hugging Face's Llama.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// `self_attn` or `mlp`.
    #[must_use]
    pub const fn parent(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// The module with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.as_str() == name)
    }

    /// The layer and module of a full name such as `model.layers.3.mlp.up_proj`, in exactly that spelling.
    #[must_use]
    pub fn from_full_name(name: &str) -> Option<(usize, Self)> {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (parent, module) = rest.split_once('.')?;
        let module = Self::from_name(module).filter(|module| module.parent() == parent)?;
        let plain = layer.bytes().all(|byte| byte.is_ascii_digit()) && (layer == "0" || !layer.starts_with('0'));
        Some((layer.parse().ok().filter(|_| plain)?, module))
    }

    /// The inverse of [`Module::from_full_name`].
    #[must_use]
    pub fn full_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.parent(), self.as_str())
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_read_back_and_other_spellings_do_not() {
        for module in Module::ALL {
            assert_eq!(Module::from_full_name(&module.full_name(12)), Some((12, module)));
        }
        for wrong in [
            "model.layers.01.mlp.up_proj",
            "model.layers.+1.mlp.up_proj",
            "model.layers.1.self_attn.up_proj",
            "model.layers..mlp.up_proj",
            "model.layers.99999999999999999999999.mlp.up_proj",
            "layers.1.mlp.up_proj",
            "model.layers.1.mlp.up_proj.x",
        ] {
            assert_eq!(Module::from_full_name(wrong), None, "{wrong}");
        }
    }
}

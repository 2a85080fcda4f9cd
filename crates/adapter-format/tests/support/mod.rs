//! Packages made for tests: a base, a config that fits it, and weights that fit the config.

#![allow(dead_code, reason = "each test file uses a part")]

use serde_json::{Value, json};
use weft_adapter_format::{BaseShape, CheckedPackage, Limits, LinearShape, Refusal, check_package};

/// A base with these sizes and 2 key-value heads of 16.
pub(crate) fn llama(layers: usize, hidden: usize, kv: usize, inter: usize) -> BaseShape {
    llama_with_heads(layers, hidden, hidden, kv, inter)
}

/// A base whose heads do not add up to the hidden size.
pub(crate) fn llama_with_heads(layers: usize, hidden: usize, heads: usize, kv: usize, inter: usize) -> BaseShape {
    let linear = |parent: &str, module: &str, in_features, out_features| LinearShape {
        module: module.to_owned(),
        parent: parent.to_owned(),
        in_features,
        out_features,
    };
    BaseShape {
        layers,
        linears: vec![
            linear("self_attn", "q_proj", hidden, heads),
            linear("self_attn", "k_proj", hidden, kv),
            linear("self_attn", "v_proj", hidden, kv),
            linear("self_attn", "o_proj", heads, hidden),
            linear("mlp", "gate_proj", hidden, inter),
            linear("mlp", "up_proj", hidden, inter),
            linear("mlp", "down_proj", inter, hidden),
        ],
    }
}

/// Two layers, hidden 8, key-value width 4, intermediate 12.
pub(crate) fn base() -> BaseShape {
    llama(2, 8, 4, 12)
}

/// r 2, alpha 4 on q and v.
pub(crate) fn config() -> Value {
    json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
           "target_modules": ["q_proj", "v_proj"]})
}

/// [`config`] with some keys set.
pub(crate) fn config_with(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// An F32 tensor of this shape, every element `fill`.
pub(crate) fn tensor(name: &str, shape: &[usize], fill: f32) -> Tensor {
    let bytes = (0..shape.iter().product()).flat_map(|_| fill.to_le_bytes()).collect();
    Tensor { name: name.to_owned(), dtype: "F32", shape: shape.to_vec(), bytes }
}

/// A and B of a module, as PEFT names them.
pub(crate) fn pair(base: &BaseShape, layer: usize, module: &str, rank: usize) -> [Tensor; 2] {
    let linear = base.linears.iter().find(|linear| linear.module == module).expect("a linear of the base");
    let name = format!("base_model.model.{}", linear.full_name(layer));
    [
        tensor(&format!("{name}.lora_A.weight"), &[rank, linear.in_features], 0.5),
        tensor(&format!("{name}.lora_B.weight"), &[linear.out_features, rank], 0.25),
    ]
}

/// The magnitudes of a module, as PEFT saves them.
pub(crate) fn magnitude(base: &BaseShape, layer: usize, module: &str) -> Tensor {
    let linear = base.linears.iter().find(|linear| linear.module == module).expect("a linear of the base");
    let name = format!("base_model.model.{}.lora_magnitude_vector", linear.full_name(layer));
    tensor(&name, &[linear.out_features], -1.5)
}

/// What [`config`] selects in [`base`].
const SELECTED: [(usize, &str); 4] = [(0, "q_proj"), (0, "v_proj"), (1, "q_proj"), (1, "v_proj")];

/// The tensors of the modules that [`config`] selects.
pub(crate) fn tensors() -> Vec<Tensor> {
    let base = base();
    SELECTED.iter().flat_map(|(layer, module)| pair(&base, *layer, module, 2)).collect()
}

/// [`config`] with DoRA.
pub(crate) fn dora_config() -> Value {
    config_with(json!({"use_dora": true}))
}

/// What [`dora_config`] needs: [`tensors`], and from the ninth on their magnitudes.
pub(crate) fn dora_tensors() -> Vec<Tensor> {
    let base = base();
    let mut all = tensors();
    all.extend(SELECTED.iter().map(|(layer, module)| magnitude(&base, *layer, module)));
    all
}

/// A safetensors file of these tensors.
pub(crate) fn weights(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = json!({"__metadata__": {"format": "pt"}});
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        header[&tensor.name] =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
    }
    file(&header.to_string(), &data)
}

/// A file with this header text and data.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// The weights are few bytes, and stay for as long as the test.
pub(crate) fn check(config: &Value, tensors: &[Tensor]) -> Result<CheckedPackage<'static>, Refusal> {
    check_package(config.to_string().as_bytes(), weights(tensors).leak(), &base(), None, &Limits::default())
}

/// The reasons of a refusal.
pub(crate) fn refused(config: &Value, tensors: &[Tensor]) -> Vec<String> {
    check(config, tensors).expect_err("the package must be refused").reasons
}

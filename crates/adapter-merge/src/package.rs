//! A merge as a package: the two files that PEFT would read, and that `weft_adapter_format::check_package` accepts.

use crate::error::Error;
use crate::recipe::OutputDtype;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use weft_adapter_format::{BaseShape, Module};

/// The factors of one module, in the output's dtype, little endian.
pub(crate) struct Piece {
    pub(crate) layer: usize,
    pub(crate) module: Module,
    pub(crate) rank: usize,
    /// `[rank, in]`
    pub(crate) a: Tensor,
    /// `[out, rank]`
    pub(crate) b: Tensor,
}

pub(crate) struct Tensor {
    pub(crate) shape: [usize; 2],
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    /// Rounds to the output's dtype.
    ///
    /// # Errors
    /// [`Error::Overflow`] if an element is beyond its range.
    pub(crate) fn new(name: &str, shape: [usize; 2], values: &[f64], dtype: OutputDtype) -> Result<Self, Error> {
        let mut bytes = Vec::with_capacity(values.len() * dtype.bytes());
        for value in values {
            let single = *value as f32;
            let fits = match dtype {
                OutputDtype::F32 => {
                    bytes.extend(single.to_le_bytes());
                    single.is_finite()
                }
                OutputDtype::Bf16 => {
                    let half = half::bf16::from_f32(single);
                    bytes.extend(half.to_le_bytes());
                    half.is_finite()
                }
            };
            if !fits {
                return Err(Error::Overflow { tensor: name.to_owned(), dtype: dtype.as_str() });
            }
        }
        Ok(Self { shape, bytes })
    }
}

/// `adapter_config.json` for these modules: alpha is the rank everywhere, so that every scale is 1.
pub(crate) fn config(pieces: &[Piece], base: &BaseShape) -> Vec<u8> {
    let rank = most_common(pieces.iter().map(|piece| piece.rank));
    let mut targets = Vec::new();
    let mut ranks = Map::new();
    for module in Module::ALL {
        let of_kind: Vec<&Piece> = pieces.iter().filter(|piece| piece.module == module).collect();
        let kinds: BTreeSet<usize> = of_kind.iter().map(|piece| piece.rank).collect();
        let full_name = |piece: &&Piece| module.full_name(piece.layer);
        if of_kind.len() == base.layers {
            targets.push(module.as_str().to_owned());
        } else {
            targets.extend(of_kind.iter().map(full_name));
        }
        if of_kind.len() == base.layers && kinds.len() == 1 && !kinds.contains(&rank) {
            ranks.insert(module.as_str().to_owned(), json!(of_kind[0].rank));
        } else {
            let others = of_kind.iter().filter(|piece| piece.rank != rank);
            ranks.extend(others.map(|piece| (full_name(piece), json!(piece.rank))));
        }
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        "rank_pattern": Value::Object(ranks.clone()),
        "alpha_pattern": Value::Object(ranks),
        "use_rslora": false,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "lora_dropout": 0.0,
        "init_lora_weights": true,
        "inference_mode": true,
    });
    let mut text = serde_json::to_vec_pretty(&config).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The value that most have; of several the largest.
fn most_common(values: impl Iterator<Item = usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(value, count)| (*count, *value)).map_or(1, |(value, _)| value)
}

/// `adapter_model.safetensors`: sorted by name, without gaps, its data at a multiple of 8.
pub(crate) fn weights(pieces: &[Piece], dtype: OutputDtype) -> Vec<u8> {
    let mut tensors: BTreeMap<String, &Tensor> = BTreeMap::new();
    for piece in pieces {
        let name = format!("base_model.model.{}", piece.module.full_name(piece.layer));
        tensors.insert(format!("{name}.lora_A.weight"), &piece.a);
        tensors.insert(format!("{name}.lora_B.weight"), &piece.b);
    }
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, tensor) in &tensors {
        let start = end;
        end += tensor.bytes.len();
        let entry = json!({"dtype": dtype.as_str(), "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut file = Vec::with_capacity(8 + text.len() + end);
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
    tensors.values().for_each(|tensor| file.extend(&tensor.bytes));
    file
}

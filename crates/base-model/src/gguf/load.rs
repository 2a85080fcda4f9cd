//! From a GGUF file to a base model.

use super::{Gguf, Problem, TensorEntry, Value, parse};
use crate::config::ModelConfig;
use crate::rope::{Rope, RopeScaling};
use crate::template::Sources;
use crate::tokenizer::{self, Tokenizer};
use crate::weights::{MappedFile, RowOrder, Stored, Weights};
use crate::{Error, Parts};
use std::collections::BTreeMap;
use std::path::Path;

/// Metadata that changes what the model computes and that this crate does not do: present and other than the value
/// given means refused.
const MUST_BE_ABSENT_OR_ZERO: [&str; 4] =
    ["expert_count", "attention.sliding_window", "attention.clamp_kqv", "attention.max_alibi_bias"];

/// Opens a GGUF file: header, config, tokenizer, template; maps the tensors. Reads no tensor data.
pub(crate) fn open(path: &Path) -> Result<Parts, Error> {
    let file = MappedFile::open(path)?;
    let gguf = parse(&file.map).map_err(|problem| located(path, problem))?;
    let meta = Meta { path, gguf: &gguf };
    let architecture = meta.text("general.architecture")?.unwrap_or("(none)");
    if architecture != "llama" {
        return Err(Error::unsupported(path, format!("general.architecture {architecture:?}, supported is \"llama\"")));
    }
    let (tokenizer, special_names) = tokenizer::from_gguf(&meta)?;
    let config = config(&meta, &tokenizer, &file.map)?;
    config.check().map_err(|problem| Error::broken(path, problem))?;
    let tensors = tensors(path, &gguf, &config)?;
    let name = meta.text("general.name")?.filter(|name| !name.trim().is_empty()).map(str::to_owned);
    let chat_template =
        meta.text("tokenizer.chat_template")?.map(|source| Sources { default: source.to_owned(), tool_use: None });
    let vocabulary = tokenizer::gguf_vocabulary_digest(&meta)?;
    drop(gguf);
    Ok(Parts {
        config,
        tokenizer,
        vocabulary,
        special_names,
        chat_template,
        name,
        weights: Weights::new(vec![file], tensors),
    })
}

fn located(path: &Path, problem: Problem) -> Error {
    match problem {
        Problem::Broken(text) => Error::broken(path, text),
        Problem::Unsupported(text) => Error::unsupported(path, text),
        Problem::Tensor(name, text) => Error::tensor(path, name, text),
    }
}

/// Metadata with errors that name key and file.
pub(crate) struct Meta<'a> {
    pub(crate) path: &'a Path,
    gguf: &'a Gguf<'a>,
}

impl<'a> Meta<'a> {
    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&Value<'a>) -> Option<T>) -> Result<Option<T>, Error> {
        match self.gguf.metadata.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(typed) => Ok(Some(typed)),
                None => Err(Error::broken(self.path, format!("{key} is not {what}"))),
            },
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.typed(key, "a utf-8 string", Value::as_text)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a bool", Value::as_bool)
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "a token id", |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a float", Value::as_f64)
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        self.typed(key, "an array of utf-8 strings", |value| value.as_array()?.texts())
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        self.typed(key, "an array of integers", |value| value.as_array()?.integers())
    }

    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| Error::broken(self.path, format!("metadata key {key} is missing")))
    }

    fn required_size(&self, key: &str) -> Result<usize, Error> {
        self.required(key, self.size(key)?)
    }
}

fn config(meta: &Meta<'_>, tokenizer: &Tokenizer, bytes: &[u8]) -> Result<ModelConfig, Error> {
    for key in MUST_BE_ABSENT_OR_ZERO {
        let key = format!("llama.{key}");
        let zero = |value: &Value<'_>| value.as_u64() == Some(0) || value.as_f64() == Some(0.0);
        if let Some(value) = meta.gguf.metadata.get(&*key).filter(|value| !zero(value)) {
            return Err(Error::unsupported(meta.path, format!("{key} {value:?}")));
        }
    }
    let heads = meta.required_size("llama.attention.head_count")?;
    let hidden_size = meta.required_size("llama.embedding_length")?;
    let head_dim = match meta.size("llama.attention.key_length")? {
        Some(size) => size,
        None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
        None => {
            return Err(Error::broken(
                meta.path,
                format!("llama.embedding_length {hidden_size} is no multiple of llama.attention.head_count {heads}"),
            ));
        }
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(size) = meta.size(key)?.filter(|size| *size != head_dim) {
            return Err(Error::unsupported(meta.path, format!("{key} {size} with a head dimension of {head_dim}")));
        }
    }
    let eps = "llama.attention.layer_norm_rms_epsilon";
    let vocab_size = match meta.size("llama.vocab_size")? {
        Some(size) => size,
        None => tokenizer.vocab_size(),
    };
    Ok(ModelConfig {
        hidden_size,
        layers: meta.required_size("llama.block_count")?,
        heads,
        kv_heads: meta.size("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate_size: meta.required_size("llama.feed_forward_length")?,
        vocab_size,
        context_length: meta.required_size("llama.context_length")?,
        rms_eps: meta.required(eps, meta.float(eps)?)? as f32,
        rope: rope(meta, bytes)?,
        tied_embeddings: !meta.gguf.tensors.iter().any(|tensor| tensor.name == "output.weight"),
        bos_id: tokenizer.bos_id(),
        eos_ids: tokenizer.eos_ids().to_vec(),
    })
}

fn rope(meta: &Meta<'_>, bytes: &[u8]) -> Result<Rope, Error> {
    let theta = meta.float("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let factor = match meta.float("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => meta.float("llama.rope.scale_linear")?,
    };
    let kind = meta.text("llama.rope.scaling.type")?;
    let divisors = meta.gguf.tensors.iter().find(|tensor| tensor.name == "rope_freqs.weight");
    let scaling = match (kind, factor, divisors) {
        (None | Some("none"), _, Some(tensor)) => RopeScaling::Divisors(read_divisors(meta.path, tensor, bytes)?),
        (Some("none"), _, None) => RopeScaling::Default,
        (None | Some("linear"), Some(factor), None) if factor != 1.0 && factor != 0.0 => RopeScaling::Linear { factor },
        (None | Some("linear"), _, None) => RopeScaling::Default,
        (Some(kind), _, Some(_)) => {
            let problem = format!("llama.rope.scaling.type {kind:?} together with the tensor rope_freqs.weight");
            return Err(Error::unsupported(meta.path, problem));
        }
        (Some(kind), _, None) => {
            let problem = format!("llama.rope.scaling.type {kind:?}, supported are \"none\" and \"linear\"");
            return Err(Error::unsupported(meta.path, problem));
        }
    };
    Ok(Rope { theta, scaling })
}

fn read_divisors(path: &Path, tensor: &TensorEntry<'_>, bytes: &[u8]) -> Result<Vec<f32>, Error> {
    let elements = tensor.shape.iter().product();
    if tensor.shape.len() != 1 || elements > 4096 {
        return Err(Error::tensor(path, tensor.name, format!("has shape {:?}, not [head_dim / 2]", tensor.shape)));
    }
    let mut values = vec![0.0; elements];
    tensor.dtype.to_f32(&bytes[tensor.range.clone()], &mut values);
    Ok(values)
}

/// The Hugging Face name of a tensor of a Llama GGUF file.
fn hugging_face_name(name: &str) -> Option<String> {
    let plain = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = plain {
        return Some(name.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let part = match part.strip_suffix(".weight")? {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.weight"))
}

/// Matches the file's tensors with those the config asks for: all of them, in their shapes, and no other, since
/// leaving one out (a bias, say) would change every answer.
fn tensors(path: &Path, gguf: &Gguf<'_>, config: &ModelConfig) -> Result<BTreeMap<String, Stored>, Error> {
    let mut wanted: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    let mut tensors = BTreeMap::new();
    for entry in &gguf.tensors {
        if entry.name == "rope_freqs.weight" {
            continue;
        }
        let named = hugging_face_name(entry.name).and_then(|name| wanted.remove_entry(&name));
        let Some((name, shape)) = named else {
            let problem = format!("does not belong to a llama model of {} layers", config.layers);
            return Err(Error::tensor(path, entry.name, problem));
        };
        if entry.shape != shape {
            let problem = format!("has shape {:?}, the config asks for {shape:?}", entry.shape);
            return Err(Error::tensor(path, entry.name, problem));
        }
        let rows = if name.ends_with("q_proj.weight") {
            RowOrder::Interleaved { heads: config.heads }
        } else if name.ends_with("k_proj.weight") {
            RowOrder::Interleaved { heads: config.kv_heads }
        } else {
            RowOrder::Plain
        };
        tensors.insert(name, Stored { file: 0, range: entry.range.clone(), dtype: entry.dtype, shape, rows });
    }
    if let Some((name, shape)) = wanted.into_iter().next() {
        return Err(Error::tensor(path, name, format!("of shape {shape:?} is missing")));
    }
    Ok(tensors)
}

//! From a Hugging Face folder to a base model: `config.json`, safetensors (one file or shards with an index),
//! `tokenizer.json`, and the template and end tokens from the files beside them.

use crate::config::ModelConfig;
use crate::dtype::TensorType;
use crate::record::Record;
use crate::rope::{Rope, RopeScaling};
use crate::template::{Sources, SpecialNames};
use crate::tokenizer::Tokenizer;
use crate::weights::{MappedFile, RowOrder, Stored, Weights};
use crate::{Error, Parts};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::catch_unwind;
use std::path::{Component, Path, PathBuf};

/// Sizes of the text files read whole.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const INDEX_BYTES_MAX: u64 = 64 << 20;
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// Shards a model may have.
const SHARDS_MAX: usize = 1024;

/// Opens a folder. Reads no tensor data.
pub(crate) fn open(folder: &Path) -> Result<Parts, Error> {
    let config_path = folder.join("config.json");
    let raw: RawConfig = parse_json(&config_path, &read(&config_path, CONFIG_BYTES_MAX)?)?;
    let generation: GenerationConfig = read_optional(&folder.join("generation_config.json"), CONFIG_BYTES_MAX)?;
    let tokenizer_config: TokenizerConfig = read_optional(&folder.join("tokenizer_config.json"), TOKENIZER_BYTES_MAX)?;

    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer_bytes = read(&tokenizer_path, TOKENIZER_BYTES_MAX)?;
    let hf = tokenizer_of(&tokenizer_bytes).map_err(|problem| Error::broken(&tokenizer_path, problem))?;
    let special_names = tokenizer_config.special_names();
    let bos_id = raw.bos_token_id.as_ref().and_then(|ids| ids.list().first().copied());
    let eos_ids = eos_ids(&raw, &generation, &special_names, &hf);
    let tokenizer =
        Tokenizer::new(hf, bos_id, &eos_ids).map_err(|problem| Error::unsupported(&tokenizer_path, problem))?;

    let config = config(&config_path, &raw, bos_id, eos_ids)?;
    config.check().map_err(|problem| Error::broken(&config_path, problem))?;
    let weights = weights(folder, &config)?;
    let mut vocabulary = Record::new("weft.base-model.vocabulary.tokenizer-json.v1");
    vocabulary.bytes(&tokenizer_bytes);
    Ok(Parts {
        config,
        tokenizer,
        vocabulary: vocabulary.finish(),
        chat_template: template(folder, &tokenizer_config)?,
        special_names,
        name: None,
        weights,
    })
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Json>,
    /// The name of both since transformers 5.
    rope_parameters: Option<Json>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<Json>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn list(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    #[serde(flatten)]
    rest: BTreeMap<String, Json>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// `bos_token` and its like, written as text or as an object with `content`.
    fn special_names(&self) -> SpecialNames {
        let names = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
        let text = |name: &str| match self.rest.get(name)? {
            Json::String(text) => Some(text.clone()),
            Json::Object(fields) => fields.get("content")?.as_str().map(str::to_owned),
            _ => None,
        };
        names.into_iter().filter_map(|name| Some((name.to_owned(), text(name)?))).collect()
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let bytes = path.metadata().map_err(|source| Error::io(path, source))?.len();
    if bytes > bytes_max {
        return Err(Error::broken(path, format!("it has {bytes} bytes, more than {bytes_max}")));
    }
    std::fs::read(path).map_err(|source| Error::io(path, source))
}

/// What `tokenizers` makes of the file. The crate panics over some contents instead of refusing them, e.g. JSON that ends
/// within a decoder: text that is no JSON is refused before, and a panic over the rest is caught.
fn tokenizer_of(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|error| error.to_string())?;
    match catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err("it is not a tokenizer that the tokenizers crate can read".to_owned()),
    }
}

fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::broken(path, error.to_string()))
}

/// The file's content, or the default if there is no such file.
fn read_optional<T: DeserializeOwned + Default>(path: &Path, bytes_max: u64) -> Result<T, Error> {
    match read(path, bytes_max) {
        Ok(bytes) => parse_json(path, &bytes),
        Err(Error::NotFound(_)) => Ok(T::default()),
        Err(error) => Err(error),
    }
}

/// What ends an answer: `generation_config.json`, else `config.json`; and the tokenizer's own end token.
fn eos_ids(
    raw: &RawConfig,
    generation: &GenerationConfig,
    names: &SpecialNames,
    hf: &tokenizers::Tokenizer,
) -> Vec<u32> {
    let listed = generation.eos_token_id.as_ref().or(raw.eos_token_id.as_ref()).map(Ids::list).unwrap_or_default();
    let own = names.get("eos_token").and_then(|text| hf.token_to_id(text));
    let ids: BTreeSet<u32> = listed.iter().copied().chain(own).collect();
    ids.into_iter().collect()
}

fn config(path: &Path, raw: &RawConfig, bos_id: Option<u32>, eos_ids: Vec<u32>) -> Result<ModelConfig, Error> {
    let unsupported = |problem: String| Err(Error::unsupported(path, problem));
    if raw.architectures != ["LlamaForCausalLM"] {
        return unsupported(format!("architectures {:?}, supported is [\"LlamaForCausalLM\"]", raw.architectures));
    }
    if let Some(act) = raw.hidden_act.as_deref().filter(|act| *act != "silu") {
        return unsupported(format!("hidden_act {act:?}, supported is \"silu\""));
    }
    for (field, value) in [("attention_bias", raw.attention_bias), ("mlp_bias", raw.mlp_bias)] {
        if value == Some(true) {
            return unsupported(format!("{field} true"));
        }
    }
    if let Some(value) = &raw.quantization_config {
        let method = value.get("quant_method").and_then(Json::as_str).unwrap_or("unnamed");
        return unsupported(format!("quantization_config of quant_method {method:?}"));
    }
    let heads = raw.num_attention_heads;
    let head_dim = match raw.head_dim {
        Some(size) => size,
        None if heads > 0 && raw.hidden_size.is_multiple_of(heads) => raw.hidden_size / heads,
        None => {
            let problem = format!("hidden_size {} is no multiple of num_attention_heads {heads}", raw.hidden_size);
            return Err(Error::broken(path, problem));
        }
    };
    Ok(ModelConfig {
        hidden_size: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads,
        kv_heads: raw.num_key_value_heads.unwrap_or(heads),
        head_dim,
        intermediate_size: raw.intermediate_size,
        vocab_size: raw.vocab_size,
        context_length: raw.max_position_embeddings,
        rms_eps: raw.rms_norm_eps as f32,
        rope: rope(path, raw)?,
        tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        bos_id,
        eos_ids,
    })
}

fn rope(path: &Path, raw: &RawConfig) -> Result<Rope, Error> {
    let empty = Json::Null;
    let fields = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()).unwrap_or(&empty);
    let theta = fields.get("rope_theta").and_then(Json::as_f64).or(raw.rope_theta).unwrap_or(10_000.0);
    let kind = fields.get("rope_type").or_else(|| fields.get("type")).and_then(Json::as_str).unwrap_or("default");
    let number = |field: &str| {
        let value = fields.get(field).and_then(Json::as_f64);
        value.ok_or_else(|| Error::broken(path, format!("rope scaling {kind:?} has no number {field}")))
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        },
        other => {
            let problem = format!("rope scaling {other:?}, supported are \"default\", \"linear\" and \"llama3\"");
            return Err(Error::unsupported(path, problem));
        }
    };
    Ok(Rope { theta, scaling })
}

/// `chat_template.jinja` wins over `tokenizer_config.json`, as in transformers.
fn template(folder: &Path, tokenizer_config: &TokenizerConfig) -> Result<Option<Sources>, Error> {
    let path = folder.join("chat_template.jinja");
    let tool_use = folder.join("additional_chat_templates").join("tool_use.jinja");
    if let Some(default) = read_text(&path)? {
        return Ok(Some(Sources { default, tool_use: read_text(&tool_use)? }));
    }
    match &tokenizer_config.chat_template {
        None => Ok(None),
        Some(TemplateField::One(source)) => Ok(Some(Sources { default: source.clone(), tool_use: None })),
        Some(TemplateField::Named(list)) => {
            let named = |name: &str| list.iter().find(|entry| entry.name == name).map(|entry| entry.template.clone());
            let default = named("default").ok_or_else(|| {
                Error::broken(&folder.join("tokenizer_config.json"), "chat_template has no template named \"default\"")
            })?;
            Ok(Some(Sources { default, tool_use: named("tool_use") }))
        }
    }
}

fn read_text(path: &Path) -> Result<Option<String>, Error> {
    match read(path, CONFIG_BYTES_MAX) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| Error::broken(path, "it is not utf-8")),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that hold the tensors.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let path = folder.join("model.safetensors.index.json");
    let bytes = match read(&path, INDEX_BYTES_MAX) {
        Err(Error::NotFound(_)) => return Err(Error::NotFound(single)),
        other => other?,
    };
    let index: Index = parse_json(&path, &bytes)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    if names.len() > SHARDS_MAX {
        return Err(Error::broken(&path, format!("weight_map names {} files, more than {SHARDS_MAX}", names.len())));
    }
    let mut files = Vec::new();
    for name in names {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::broken(&path, format!("weight_map names {name:?}, which is no plain file name")));
        }
        files.push(folder.join(name));
    }
    Ok(files)
}

fn weights(folder: &Path, config: &ModelConfig) -> Result<Weights, Error> {
    let mut wanted: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    let mut tensors = BTreeMap::new();
    let mut files = Vec::new();
    for (index, path) in shards(folder)?.into_iter().enumerate() {
        let file = MappedFile::open(&path)?;
        let (header_bytes, header) = safetensors::SafeTensors::read_metadata(&file.map)
            .map_err(|error| Error::broken(&path, format!("no whole safetensors file: {error}")))?;
        // Sorted, so that of several faults always the same is reported.
        let entries: BTreeMap<_, _> = header.tensors().into_iter().collect();
        for (name, info) in entries {
            let Some(shape) = wanted.remove(&name) else {
                match ignored(&name, config) {
                    true => continue,
                    false if tensors.contains_key(&name) => {
                        return Err(Error::tensor(&path, name, "occurs in two files"));
                    }
                    false => return Err(Error::tensor(&path, name, "does not belong to a LlamaForCausalLM model")),
                }
            };
            let dtype = TensorType::from_safetensors(info.dtype).ok_or_else(|| {
                Error::tensor(&path, &name, format!("has type {:?}, supported are F32, F16 and BF16", info.dtype))
            })?;
            if info.shape != shape {
                let problem = format!("has shape {:?}, the config asks for {shape:?}", info.shape);
                return Err(Error::tensor(&path, name, problem));
            }
            // The crate has checked that offsets lie within the file and fit shape and type; offsets count from the
            // end of the header, which has an 8-byte length before it.
            let start = 8 + header_bytes;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            tensors.insert(name, Stored { file: index, range, dtype, shape, rows: RowOrder::Plain });
        }
        files.push(file);
    }
    if let Some((name, shape)) = wanted.into_iter().next() {
        return Err(Error::tensor(folder, name, format!("of shape {shape:?} is missing")));
    }
    Ok(Weights::new(files, tensors))
}

/// Tensors that old checkpoints carry and nothing reads.
fn ignored(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tied_embeddings && name == "lm_head.weight")
}

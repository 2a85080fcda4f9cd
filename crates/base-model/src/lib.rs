//! The base model: what it is, its weights, its tokenizer and its chat template, read from one of two sources.
//!
//! 1. [`open`] takes a GGUF file or a Hugging Face folder and checks all of it before anything runs: every tensor the
//!    config asks for is there, in its shape, and no other. It reads headers, not weights.
//! 2. [`Weights::load_f32`] decodes one tensor from the memory map.
//! 3. [`ChatTemplate::render`] and [`Tokenizer::encode_rendered`] make a prompt of a chat; [`Tokenizer::token_bytes`]
//!    and [`Tokenizer::decode`] make text of an answer.
//! 4. [`BaseModel::digest`] says which base this is, everywhere.
//! 5. [`fetch`] brings the demo base.
//!
//! This room knows nothing of adapters, batches, devices or the network (but for [`fetch`], which runs `pip`). Only the
//! Llama architecture is known; whatever would change an answer and is not implemented is refused by name.

mod config;
mod digest;
mod dtype;
mod error;
pub mod fetch;
mod gguf;
mod hugging_face;
mod record;
mod rope;
mod template;
mod tokenizer;
mod weights;

pub use config::{LinearShape, ModelConfig};
pub use error::Error;
pub use rope::{Rope, RopeScaling};
pub use template::{ChatTemplate, Rendered};
pub use tokenizer::{SpecialText, TextToken, Tokenizer};
pub use weights::Weights;

use std::path::{Path, PathBuf};
use template::{Sources, SpecialNames};
use weft_types::Digest;

/// An opened base model.
#[derive(Clone, Debug)]
pub struct BaseModel {
    /// Sizes and constants.
    pub config: ModelConfig,
    /// Which base this is: weights, config, vocabulary and template.
    pub digest: Digest,
    /// The name requests may use for it.
    pub served_name: String,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Absent for models that were never made to chat.
    pub chat_template: Option<ChatTemplate>,
    /// The tensors.
    pub weights: Weights,
    /// Where it was opened.
    pub path: PathBuf,
}

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The served name; else GGUF's `general.name`, else the file's stem or the folder's name.
    pub served_name: Option<String>,
    /// Where to cache the digest if the model's own folder cannot be written.
    pub digest_cache_dir: Option<PathBuf>,
}

/// What a source of models gives; the rest is the same for all.
pub(crate) struct Parts {
    config: ModelConfig,
    tokenizer: Tokenizer,
    vocabulary: Digest,
    special_names: SpecialNames,
    chat_template: Option<Sources>,
    name: Option<String>,
    weights: Weights,
}

/// Opens a GGUF file or a Hugging Face folder. Blocks: some 100 ms for a vocabulary of 50,000, and the first time one
/// pass over the weights for the digest.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`]; [`Error::Broken`] and [`Error::Tensor`] for files that contradict themselves or
/// were cut short; [`Error::Unsupported`] for what is not implemented; [`Error::Template`] for a template that does not
/// compile.
pub fn open(path: &Path, options: &OpenOptions) -> Result<BaseModel, Error> {
    let metadata = path.metadata().map_err(|source| Error::io(path, source))?;
    let parts = if metadata.is_dir() { hugging_face::open(path)? } else { gguf::open(path)? };
    if parts.tokenizer.vocab_size() > parts.config.vocab_size {
        let problem = format!(
            "the tokenizer has ids up to {}, the embedding has {} rows",
            parts.tokenizer.vocab_size().saturating_sub(1),
            parts.config.vocab_size
        );
        return Err(Error::broken(path, problem));
    }
    let chat_template = match parts.chat_template {
        None => None,
        Some(sources) => Some(ChatTemplate::new(sources, parts.special_names, parts.tokenizer.special_texts())?),
    };
    let caches = digest::cache_paths(path, options.digest_cache_dir.as_deref());
    let weights_digest = digest::weights_digest(&parts.weights, &caches);
    let template_digest = chat_template.as_ref().map(ChatTemplate::digest);
    let digest = digest::base_digest(&parts.config, &weights_digest, &parts.vocabulary, template_digest.as_ref());
    let stem = || {
        let name = if metadata.is_dir() { path.file_name() } else { path.file_stem() };
        name.map_or_else(|| "base-model".to_owned(), |name| name.to_string_lossy().into_owned())
    };
    Ok(BaseModel {
        config: parts.config,
        digest,
        served_name: options.served_name.clone().or(parts.name).unwrap_or_else(stem),
        tokenizer: parts.tokenizer,
        chat_template,
        weights: parts.weights,
        path: path.to_owned(),
    })
}

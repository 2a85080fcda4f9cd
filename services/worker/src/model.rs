//! The base model as the parts beside the engine see it, and the sizes that follow from it.

use std::time::Instant;

use weft_base_model::{BaseModel, ChatTemplate, LinearShape, ModelConfig, OpenOptions, Tokenizer};
use weft_engine::{Dtype, Engine, EngineOptions};
use weft_kernels::CpuOptions;
use weft_types::Digest;

use crate::Error;
use crate::error::chain;
use crate::settings::{Checked, machine_memory_bytes};

/// Positions in a KV block: small enough to waste little at the end of a request, large enough for the kernels.
pub(crate) const BLOCK_SIZE: usize = 16;

/// Facts and text tools of the base. Shared by everything outside the step loop.
pub(crate) struct Model {
    /// Name of this worker.
    pub(crate) worker: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat_template: Option<ChatTemplate>,
    pub(crate) digest: Digest,
    pub(crate) served_name: String,
    pub(crate) model_id: String,
    pub(crate) layers: usize,
    pub(crate) hidden_size: usize,
    /// Ids that a prompt may hold are below this.
    pub(crate) vocabulary: usize,
    pub(crate) linears: Vec<LinearShape>,
    pub(crate) dtype: Dtype,
    pub(crate) isa: &'static str,
    /// Prompt and output together.
    pub(crate) context_tokens_max: usize,
    /// Prompt alone.
    pub(crate) prompt_tokens_max: usize,
    pub(crate) kv_blocks: usize,
    /// That a step reads, whatever its batch.
    pub(crate) weight_bytes: u64,
    /// Of an adapter in a slot.
    pub(crate) adapter_element_bytes: u32,
    eos_ids: Vec<u32>,
}

impl Model {
    /// Whether this token ends an answer.
    pub(crate) fn is_eos(&self, token: u32) -> bool {
        self.eos_ids.contains(&token)
    }

    pub(crate) fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    pub(crate) fn kv_tokens_max(&self) -> usize {
        self.kv_blocks * BLOCK_SIZE
    }
}

/// Reads and packs the base. Blocks for as long as that takes: about a second per GB.
///
/// # Errors
/// [`Error::Start`] with the reason; [`Error::Settings`] if the sizes do not go together.
pub(crate) fn open(checked: &Checked) -> Result<(Model, Engine), Error> {
    let failed = |problem: String| Error::Start { model: checked.model.clone(), problem };
    let options = OpenOptions {
        served_name: checked.settings.served_model_name.clone(),
        digest_cache_dir: checked.settings.digest_cache_dir.clone(),
    };
    let started = Instant::now();
    let base = weft_base_model::open(&checked.model, &options).map_err(|error| failed(chain(&error)))?;
    let opened = Instant::now();
    let kernels = weft_kernels::cpu(CpuOptions { threads: checked.settings.threads, isa: Some(checked.isa) });
    let isa = kernels.isa();
    let (kv_blocks, context_tokens_max, prompt_tokens_max) = sizes(&base.config, checked)?;
    let options = EngineOptions {
        dtype: checked.dtype,
        adapter_dtype: checked.adapter_dtype,
        kv_blocks,
        block_size: BLOCK_SIZE,
        kernels,
    };
    let engine = Engine::new(&base, options).map_err(|error| failed(chain(&error)))?;
    tracing::info!(
        open_ms = (opened - started).as_millis() as u64,
        pack_ms = opened.elapsed().as_millis() as u64,
        "read the base model"
    );
    let sizes = (kv_blocks, context_tokens_max, prompt_tokens_max);
    let mut model = facts(base, checked, isa, sizes);
    model.weight_bytes = engine.weight_bytes();
    give_back_free_memory();
    Ok((model, engine))
}

/// What packing needed and freed lies scattered between what stays: some 40 MB for a base of 135 M weights. Costs
/// milliseconds, once.
fn give_back_free_memory() {
    // SAFETY: gives pages of free memory back to the system; memory in use is not touched.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

fn facts(base: BaseModel, checked: &Checked, isa: &'static str, sizes: (usize, usize, usize)) -> Model {
    let (kv_blocks, context_tokens_max, prompt_tokens_max) = sizes;
    let mut eos_ids = base.config.eos_ids.clone();
    eos_ids.extend_from_slice(base.tokenizer.eos_ids());
    Model {
        worker: checked.settings.name.clone(),
        linears: base.config.linears(),
        layers: base.config.layers,
        hidden_size: base.config.hidden_size,
        vocabulary: base.config.vocab_size,
        tokenizer: base.tokenizer,
        chat_template: base.chat_template,
        digest: base.digest,
        served_name: base.served_name,
        model_id: checked.settings.model.clone(),
        dtype: checked.dtype,
        isa,
        context_tokens_max,
        prompt_tokens_max,
        kv_blocks,
        weight_bytes: 0,
        adapter_element_bytes: checked.adapter_dtype.element_bytes(),
        eos_ids,
    }
}

/// KV blocks, most tokens of prompt and output, most tokens of a prompt.
fn sizes(config: &ModelConfig, checked: &Checked) -> Result<(usize, usize, usize), Error> {
    let settings = &checked.settings;
    let value_bytes = checked.dtype.kv_bytes();
    let token_bytes = config.layers * 2 * config.kv_heads * config.head_dim * value_bytes;
    let by_memory = usize::try_from(settings.kv_memory_bytes).unwrap_or(usize::MAX) / (token_bytes * BLOCK_SIZE).max(1);
    let by_setting = if settings.kv_tokens_max == 0 { usize::MAX } else { settings.kv_tokens_max.div_ceil(BLOCK_SIZE) };
    let kv_blocks = by_memory.min(by_setting);
    // Block numbers are 32 bits wide.
    let kv_blocks = kv_blocks.min(u32::MAX as usize - 1);
    if kv_blocks < 2 {
        let message =
            format!("{} bytes hold no two KV blocks of {} bytes", settings.kv_memory_bytes, token_bytes * BLOCK_SIZE);
        return Err(Error::setting("kv_memory_bytes", message));
    }
    let wanted = (kv_blocks as u64).saturating_mul((token_bytes * BLOCK_SIZE) as u64);
    if let Some(there) = machine_memory_bytes().filter(|there| wanted > *there) {
        let message = format!("{wanted} bytes of KV blocks do not fit the {there} bytes of memory of this machine");
        return Err(Error::setting("kv_memory_bytes", message));
    }
    let context_limit = config.context_length.min(kv_blocks * BLOCK_SIZE);
    let context_tokens_max = match settings.context_tokens_max {
        0 => context_limit,
        wanted if wanted > config.context_length => {
            let message = format!("{wanted} exceeds the model's context of {} tokens", config.context_length);
            return Err(Error::setting("context_tokens_max", message));
        }
        wanted => wanted.min(context_limit),
    };
    if context_tokens_max < 2 {
        return Err(Error::setting("context_tokens_max", format!("{context_tokens_max}, allowed is 2 or more")));
    }
    let prompt_tokens_max = match settings.prompt_tokens_max {
        0 => context_tokens_max - 1,
        wanted if wanted >= context_tokens_max => {
            let message = format!("{wanted} leaves no room for output in a context of {context_tokens_max} tokens");
            return Err(Error::setting("prompt_tokens_max", message));
        }
        wanted => wanted,
    };
    Ok((kv_blocks, context_tokens_max, prompt_tokens_max))
}

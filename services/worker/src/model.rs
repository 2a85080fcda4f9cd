//! The base model as the parts beside the engine see it, and the sizes that follow from it.

use std::time::Instant;

use weft_base_model::{BaseModel, ChatTemplate, LinearShape, ModelConfig, OpenOptions, Tokenizer};
use weft_engine::{AdapterDtype, Dtype, Engine, EngineOptions, ProcessorEngine};
use weft_kernels::{CpuOptions, Isa};
use weft_types::Digest;

use crate::Error;
use crate::compute::Compute;
use crate::device;
use crate::settings::{Checked, Settings, machine_memory_bytes};

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
    /// Of the base.
    pub(crate) dtype: &'static str,
    /// Of keys and values.
    pub(crate) kv_dtype: &'static str,
    /// What computes: an instruction set, or a device.
    pub(crate) isa: String,
    /// Prompt and output together.
    pub(crate) context_tokens_max: usize,
    /// Prompt alone.
    pub(crate) prompt_tokens_max: usize,
    /// Blocks that nothing but keys and values takes.
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

/// The base in an engine.
pub(crate) struct Opened {
    pub(crate) model: Model,
    pub(crate) engine: Engine,
    /// Memory for resident adapters.
    pub(crate) slot_bytes: u64,
    /// Of a block that keys, values and adapters share; 0: they share none.
    pub(crate) block_bytes: u64,
}

/// Reads and packs the base. Blocks for as long as that takes: about a second per GB.
///
/// # Errors
/// [`Error::Start`] with the reason; [`Error::Settings`] if the sizes do not go together.
pub(crate) fn open(checked: &Checked) -> Result<Opened, Error> {
    let options = OpenOptions {
        served_name: checked.settings.served_model_name.clone(),
        digest_cache_dir: checked.settings.digest_cache_dir.clone(),
    };
    let started = Instant::now();
    let base = weft_base_model::open(&checked.model, &options).map_err(|error| checked.failed(&error))?;
    let opened = Instant::now();
    let compute = checked.compute.beside(&base, &checked.settings);
    let (engine, isa, slot_bytes, block_bytes, kv_blocks) = match &compute {
        &Compute::Processor { isa, dtype, adapters } => {
            let (engine, isa, slot_bytes) = on_processor(&base, checked, isa, (dtype, adapters))?;
            let kv_blocks = engine.kv_blocks();
            (engine, isa, slot_bytes, 0, kv_blocks)
        }
        Compute::Device { which, formats } => {
            let device::Opened { engine, name, slot_bytes, block_bytes, kv_blocks } =
                device::open(&base, checked, which, *formats)?;
            (engine, name, slot_bytes, block_bytes, kv_blocks)
        }
    };
    tracing::info!(
        open_ms = (opened - started).as_millis() as u64,
        pack_ms = opened.elapsed().as_millis() as u64,
        "read the base model"
    );
    let model = facts(base, checked, &compute, &engine, isa, kv_blocks)?;
    give_back_free_memory();
    Ok(Opened { model, engine, slot_bytes, block_bytes })
}

fn on_processor(
    base: &BaseModel,
    checked: &Checked,
    isa: Isa,
    (dtype, adapter_dtype): (Dtype, AdapterDtype),
) -> Result<(Engine, String, u64), Error> {
    /// Unless `kv_memory_bytes` says otherwise.
    const KV_MEMORY_BYTES: u64 = 1 << 30;
    let settings = &checked.settings;
    let kernels = weft_kernels::cpu(CpuOptions { threads: settings.threads, isa: Some(isa) });
    let isa = kernels.isa().to_owned();
    let kv_bytes = if settings.kv_memory_bytes == 0 { KV_MEMORY_BYTES } else { settings.kv_memory_bytes };
    let kv_blocks =
        blocks_of_memory(kv_bytes, kv_block_bytes(&base.config, dtype.kv_bytes()))?.min(kv_blocks_of_tokens(settings));
    let wanted = (kv_blocks as u64).saturating_mul(kv_block_bytes(&base.config, dtype.kv_bytes()) as u64);
    let machine = machine_memory_bytes();
    if let Some(there) = machine.filter(|there| wanted > *there) {
        let message = format!("{wanted} bytes of KV blocks do not fit the {there} bytes of memory of this machine");
        return Err(Error::setting("kv_memory_bytes", message));
    }
    // What is wrong with the limits is known before the base is read.
    token_limits(&base.config, settings, kv_blocks)?;
    let options = EngineOptions { dtype, adapter_dtype, kv_blocks, block_size: BLOCK_SIZE, kernels };
    let engine = ProcessorEngine::new(base, options).map_err(|error| checked.failed(&error))?;
    Ok((Engine::Processor(Box::new(engine)), isa, checked.adapter_memory.bytes(machine)))
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

fn facts(
    base: BaseModel,
    checked: &Checked,
    compute: &Compute,
    engine: &Engine,
    isa: String,
    kv_blocks: usize,
) -> Result<Model, Error> {
    let (context_tokens_max, prompt_tokens_max) = token_limits(&base.config, &checked.settings, kv_blocks)?;
    let mut eos_ids = base.config.eos_ids.clone();
    eos_ids.extend_from_slice(base.tokenizer.eos_ids());
    Ok(Model {
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
        dtype: compute.dtype(),
        kv_dtype: compute.kv_dtype(),
        isa,
        context_tokens_max,
        prompt_tokens_max,
        kv_blocks,
        weight_bytes: engine.weight_bytes(),
        adapter_element_bytes: compute.adapter_element_bytes(),
        eos_ids,
    })
}

fn kv_block_bytes(config: &ModelConfig, value_bytes: usize) -> usize {
    config.layers * 2 * config.kv_heads * config.head_dim * value_bytes * BLOCK_SIZE
}

/// KV blocks that so much memory holds.
///
/// # Errors
/// [`Error::Settings`] if those are not two.
pub(crate) fn blocks_of_memory(bytes: u64, block_bytes: usize) -> Result<usize, Error> {
    let blocks = usize::try_from(bytes).unwrap_or(usize::MAX) / block_bytes.max(1);
    if blocks < 2 {
        let message = format!("{bytes} bytes hold no two KV blocks of {block_bytes} bytes");
        return Err(Error::setting("kv_memory_bytes", message));
    }
    Ok(blocks)
}

/// Most KV blocks that `kv_tokens_max` lets there be.
pub(crate) fn kv_blocks_of_tokens(settings: &Settings) -> usize {
    // Block numbers are 32 bits wide.
    const MOST: usize = u32::MAX as usize - 1;
    match settings.kv_tokens_max {
        0 => MOST,
        tokens => tokens.div_ceil(BLOCK_SIZE).min(MOST),
    }
}

/// Most tokens of prompt and output, most tokens of a prompt.
pub(crate) fn token_limits(
    config: &ModelConfig,
    settings: &Settings,
    kv_blocks: usize,
) -> Result<(usize, usize), Error> {
    if kv_blocks < 2 {
        return Err(Error::setting(
            "kv_tokens_max",
            format!("{kv_blocks} KV blocks of {BLOCK_SIZE} tokens, 2 are needed"),
        ));
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
    Ok((context_tokens_max, prompt_tokens_max))
}

//! What the engine's tests share: fixtures, packages, and a small loop that generates greedily.
#![allow(dead_code, unreachable_pub, reason = "each test binary includes this file and uses a part")]

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_adapter_format::{BaseShape, Limits, LinearShape, check_package};
use weft_base_model::{BaseModel, ModelConfig, OpenOptions};
use weft_engine::sampling::{Sampler, SamplingParams};
use weft_engine::{AdapterDtype, Dtype, EngineOptions, LogitsWanted, ProcessorEngine, SeqStep, SlotId, StepBatch};
use weft_kernels::{CpuOptions, Kernels};

pub const BLOCK_SIZE: usize = 16;

/// `golden.json`.
#[derive(Deserialize)]
pub struct Golden {
    pub cases: Vec<Case>,
    pub batches: Vec<Batch>,
}

#[derive(Clone, Deserialize)]
pub struct Case {
    pub name: String,
    pub model: String,
    pub adapter: Option<String>,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    pub canonical_sha256: Option<String>,
}

#[derive(Deserialize)]
pub struct Batch {
    pub name: String,
    pub cases: Vec<String>,
}

pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub fn golden() -> Golden {
    let text = std::fs::read_to_string(golden_dir().join("golden.json")).expect("golden.json is committed");
    serde_json::from_str(&text).expect("golden.json has the fields above")
}

impl Golden {
    pub fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
    }
}

/// Expected logits of every case, `[prompt tokens, vocabulary]` each.
pub struct ExpectedLogits(Vec<u8>);

impl ExpectedLogits {
    pub fn load() -> Self {
        Self(std::fs::read(golden_dir().join("logits.safetensors")).expect("logits.safetensors is committed"))
    }

    pub fn of(&self, case: &Case) -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = file.tensor(&case.name).expect("one tensor per case");
        tensor.data().chunks_exact(4).map(|raw| f32::from_le_bytes(raw.try_into().expect("four bytes"))).collect()
    }
}

pub fn open(path: &Path) -> BaseModel {
    weft_base_model::open(path, &OpenOptions::default()).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
}

pub fn tiny(name: &str) -> BaseModel {
    open(&golden_dir().join(name))
}

pub fn cpu() -> Arc<dyn Kernels> {
    weft_kernels::cpu(CpuOptions { threads: 2, isa: None })
}

pub fn engine_with(model: &BaseModel, dtype: Dtype, kv_blocks: usize, kernels: Arc<dyn Kernels>) -> ProcessorEngine {
    engine_of(model, dtype, dtype.adapters(), kv_blocks, kernels)
}

pub fn engine_of(
    model: &BaseModel,
    dtype: Dtype,
    adapter_dtype: AdapterDtype,
    kv_blocks: usize,
    kernels: Arc<dyn Kernels>,
) -> ProcessorEngine {
    let options = EngineOptions { dtype, adapter_dtype, kv_blocks, block_size: BLOCK_SIZE, kernels };
    ProcessorEngine::new(model, options).expect("the model loads")
}

pub fn engine(model: &BaseModel, dtype: Dtype, kv_blocks: usize) -> ProcessorEngine {
    engine_with(model, dtype, kv_blocks, cpu())
}

pub fn base_shape(config: &ModelConfig) -> BaseShape {
    let linear = |linear: weft_base_model::LinearShape| LinearShape {
        module: linear.module.to_owned(),
        parent: linear.parent.to_owned(),
        in_features: linear.in_features,
        out_features: linear.out_features,
    };
    BaseShape { layers: config.layers, linears: config.linears().into_iter().map(linear).collect() }
}

/// The canonical blob of a PEFT folder.
pub fn blob(folder: &Path, config: &ModelConfig) -> Vec<u8> {
    let read = |name| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{folder:?}/{name}: {error}"));
    blob_of(&read("adapter_config.json"), &read("adapter_model.safetensors"), config)
}

pub fn blob_of(adapter_config: &[u8], weights: &[u8], config: &ModelConfig) -> Vec<u8> {
    check_package(adapter_config, weights, &base_shape(config), None, &Limits::default())
        .unwrap_or_else(|refusal| panic!("refused: {:?}", refusal.reasons))
        .canonical_blob()
}

/// Loads the adapter of a case into a slot.
pub fn install(engine: &mut ProcessorEngine, case: &Case, config: &ModelConfig) -> Option<SlotId> {
    let folder = golden_dir().join(case.adapter.as_ref()?);
    let prepared = engine.preparer().prepare(&blob(&folder, config)).expect("the adapter fits");
    Some(engine.install(prepared))
}

/// The blob of a DoRA case's adapter as plain LoRA: magnitudes and `use_dora` taken away.
pub fn without_dora(case: &Case, config: &ModelConfig) -> Vec<u8> {
    let folder = golden_dir().join(case.adapter.as_ref().expect("a case with an adapter"));
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).expect("committed");
    let mut tensors = safetensors::SafeTensors::deserialize(&weights).expect("safetensors").tensors();
    let all = tensors.len();
    tensors.retain(|(name, _)| !name.ends_with(".lora_magnitude_vector"));
    assert_eq!(tensors.len() * 3, all * 2, "one of three tensors is a magnitude");
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).expect("committed");
    let text = text.replace("\"use_dora\": true", "\"use_dora\": false");
    blob_of(text.as_bytes(), &safetensors::serialize(tensors, None).expect("tensors can be written"), config)
}

/// A whole prompt in one step, in blocks `first_block..`.
pub fn prefill(prompt: &[u32], slot: Option<SlotId>, first_block: u32, logits: LogitsWanted) -> SeqStep {
    let blocks = prompt.len().div_ceil(BLOCK_SIZE) as u32;
    SeqStep {
        tokens: prompt.to_vec(),
        start: 0,
        blocks: (first_block..first_block + blocks).collect(),
        slot,
        logits,
        draw: None,
    }
}

/// A request of the little loop below.
#[derive(Clone)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub slot: Option<SlotId>,
    /// Step in which it joins the batch.
    pub arrives: usize,
}

struct Running {
    tokens: Vec<u32>,
    computed: usize,
    prompt: usize,
    blocks: Vec<u32>,
}

/// Generates `count` tokens for each request greedily, prompts in chunks of `chunk`, all in the batches they share.
/// Blocks are dealt out in turn, so that no sequence has neighbouring ones. Ends of sequence are ignored.
pub fn generate(engine: &mut ProcessorEngine, requests: &[Request], count: usize, chunk: usize) -> Vec<Vec<u32>> {
    let mut running: Vec<Running> = requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let length = request.prompt.len() + count;
            let blocks = (0..length.div_ceil(BLOCK_SIZE)).map(|block| (block * requests.len() + index) as u32);
            let blocks: Vec<u32> = blocks.collect();
            Running { tokens: request.prompt.clone(), computed: 0, prompt: request.prompt.len(), blocks }
        })
        .collect();
    for step in 0.. {
        let mut batch = StepBatch::default();
        let mut members = Vec::new();
        for (index, (seq, request)) in running.iter().zip(requests).enumerate() {
            if request.arrives > step || seq.tokens.len() == seq.prompt + count {
                continue;
            }
            let end = seq.tokens.len().min(seq.computed + chunk);
            let logits = if end == seq.tokens.len() { LogitsWanted::Last } else { LogitsWanted::None };
            let tokens = seq.tokens[seq.computed..end].to_vec();
            batch.seqs.push(SeqStep {
                tokens,
                start: seq.computed,
                blocks: seq.blocks.clone(),
                slot: request.slot,
                logits,
                draw: None,
            });
            members.push(index);
        }
        if members.is_empty() && requests.iter().all(|request| request.arrives <= step) {
            break;
        }
        let output = engine.step(&batch).expect("the batch is sound");
        for ((&index, out), part) in members.iter().zip(output.seqs).zip(&batch.seqs) {
            assert_eq!(out.adapter, part.slot.and_then(|slot| engine.slot_digest(slot)));
            let seq = &mut running[index];
            seq.computed += part.tokens.len();
            if part.logits == LogitsWanted::Last {
                seq.tokens.push(greedy(&out.logits));
            }
        }
    }
    running.into_iter().map(|seq| seq.tokens[seq.prompt..].to_vec()).collect()
}

pub fn greedy(logits: &[f32]) -> u32 {
    let mut row = logits.to_vec();
    Sampler::new(SamplingParams::default(), &[]).sample(&mut row, 0, 0).expect("finite logits").token
}

/// Largest difference of two equally long rows.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

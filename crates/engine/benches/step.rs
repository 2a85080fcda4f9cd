//! Speed of the engine on the demo model: decode and prefill of the base, and what 32 different adapters cost.
//!
//! ```text
//! WEFT_DEMO_MODEL=... cargo bench -p weft-engine --bench step [-- --seconds 2 --threads 2 --dtype int8 --adapters int8 --isa avx2 --only decode]
//! ```
//!
//! Each row is the best of several steps (the machine's other work only ever adds time), beside a floor: the time to
//! read the weights once at the bandwidth measured here, or to do the multiplications at the peak that one large
//! [`weft_kernels::Kernels::linear`] reaches here, whichever is longer. "cpu ms" is how long the calling thread was on
//! a processor: where it is far below "ms" the machine was busy with other work, and `--threads 1` with this column
//! says more.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_base_model::{BaseModel, ModelConfig};
use weft_engine::sampling::{Sampler, SamplingParams};
use weft_engine::{AdapterDtype, Dtype, LogitsWanted, ProcessorEngine, SeqStep, SlotId, StepBatch, StepOutput};
use weft_kernels::{CpuOptions, Kernels, WeightFormat};

const REQUESTS: usize = 32;
const PROMPT: usize = 70;
const OUTPUT: usize = 48;
const RANK: usize = 8;
const KV_BLOCKS: usize = 2048;

const DTYPES: [Dtype; 4] = [Dtype::Q4, Dtype::Int8, Dtype::Bf16, Dtype::F32];

struct Args {
    seconds: f64,
    threads: usize,
    dtype: Option<Dtype>,
    adapters: Option<AdapterDtype>,
    isa: Option<weft_kernels::Isa>,
    /// Run only rows whose name holds this.
    only: String,
}

fn args() -> Args {
    let mut args = Args { seconds: 2.0, threads: 2, dtype: None, adapters: None, isa: None, only: String::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => args.seconds = value().parse().expect("a number of seconds"),
            "--threads" => args.threads = value().parse().expect("a number of threads"),
            "--only" => args.only = value(),
            "--isa" => args.isa = Some(value().parse().expect("an instruction set")),
            "--dtype" => {
                let name = value();
                let known = DTYPES.into_iter().find(|dtype| dtype.as_str() == name);
                args.dtype = Some(known.unwrap_or_else(|| panic!("dtype {name} is unknown")));
            }
            "--adapters" => {
                let name = value();
                let all = [AdapterDtype::F32, AdapterDtype::Bf16, AdapterDtype::Int8];
                let known = all.into_iter().find(|dtype| dtype.as_str() == name);
                args.adapters = Some(known.unwrap_or_else(|| panic!("adapter dtype {name} is unknown")));
            }
            // What cargo bench passes on.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    args
}

fn main() {
    let args = args();
    let path = std::env::var_os("WEFT_DEMO_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
        weft_base_model::fetch::demo_model(&cache).expect("the demo model can be fetched")
    });
    let model = common::open(&path);
    for dtype in DTYPES {
        if args.dtype.is_none_or(|wanted| wanted == dtype) {
            bench(&model, dtype, &args);
        }
    }
}

fn bench(model: &BaseModel, dtype: Dtype, args: &Args) {
    let kernels = weft_kernels::cpu(CpuOptions { threads: args.threads, isa: args.isa });
    let floor = Floor::measure(kernels.as_ref(), dtype, &model.config);
    let start = Instant::now();
    let adapters = args.adapters.unwrap_or(dtype.adapters());
    let mut engine = common::engine_of(model, dtype, adapters, KV_BLOCKS, Arc::clone(&kernels));
    let load = start.elapsed();
    let (slots, prepare) = random_adapters(&mut engine, &model.config);
    println!(
        "\n{} {}, adapters {}, {} threads; load {:.2} s; prepare {:.1} ms per adapter; {:.1} GB/s, {:.0} GFLOP/s",
        dtype.as_str(),
        engine.isa(),
        adapters.as_str(),
        args.threads,
        load.as_secs_f64(),
        prepare.as_secs_f64() * 1e3,
        floor.bytes_per_second / 1e9,
        floor.flops_per_second / 1e9
    );
    println!("{:<34} {:>9} {:>9} {:>9} {:>9} {:>7}", "step", "ms", "cpu ms", "tok/s", "floor ms", "x floor");
    let row = |engine: &mut ProcessorEngine, name: &str, batch: &StepBatch| {
        if !name.contains(&args.only) {
            return None;
        }
        let rows = batch.seqs.iter().map(|seq| seq.tokens.len()).sum();
        let floor = floor.seconds(rows, batch.seqs.len());
        let (seconds, cpu) = best(engine, batch, args.seconds);
        let (rate, times, floor, cpu) = (rows as f64 / seconds, seconds / floor, floor * 1e3, cpu * 1e3);
        println!("{name:<34} {:>9.2} {cpu:>9.2} {rate:>9.1} {floor:>9.2} {times:>7.2}", seconds * 1e3);
        Some(seconds)
    };
    let base = vec![None; REQUESTS];
    let engine = &mut engine;
    row(engine, "decode, 1 request", &decode(&base[..1]));
    let base_decode = row(engine, "decode, 32 requests", &decode(&base));
    let lora_decode = row(engine, "decode, 32 requests, 32 adapters", &decode(&slots));
    row(engine, "prefill, 1 x 70", &prefill(&base[..1], PROMPT));
    row(engine, "prefill, 1 x 512", &prefill(&base[..1], 512));
    let base_prefill = row(engine, "prefill, 8 x 70", &prefill(&base[..8], PROMPT));
    let lora_prefill = row(engine, "prefill, 8 x 70, 8 adapters", &prefill(&slots[..8], PROMPT));
    for (name, base, lora) in [("decode", base_decode, lora_decode), ("prefill", base_prefill, lora_prefill)] {
        if let (Some(base), Some(lora)) = (base, lora) {
            println!("32 adapters keep {:.3} of the base's {name}", base / lora);
        }
    }
    sampling(engine, &args.only);
    for (name, slots) in [("workload, base alone", &base), ("workload, 32 adapters of rank 8", &slots)] {
        if name.contains(&args.only) {
            let took = workload(engine, slots).min(workload(engine, slots));
            let rate = (REQUESTS * OUTPUT) as f64 / took.as_secs_f64();
            println!("{name}, 32 x ({PROMPT} + {OUTPUT}): {rate:.1} generated tok/s, sampling included");
        }
    }
}

/// What the machine can do at best, as far as one can measure it.
struct Floor {
    bytes_per_second: f64,
    flops_per_second: f64,
    weight_bytes: f64,
    layer_weights: f64,
    head_weights: f64,
}

impl Floor {
    fn measure(kernels: &dyn Kernels, dtype: Dtype, config: &ModelConfig) -> Self {
        let layer: usize = config.linears().iter().map(|linear| linear.in_features * linear.out_features).sum();
        let layer_weights = (layer * config.layers) as f64;
        let head_weights = (config.vocab_size * config.hidden_size) as f64;
        let (format, bytes) = match dtype {
            Dtype::F32 => (WeightFormat::F32, 4.0),
            Dtype::Bf16 => (WeightFormat::Bf16, 2.0),
            Dtype::Int8 => (WeightFormat::Int8, 9.0 / 8.0),
            Dtype::Q4 => (WeightFormat::Q4, 5.0 / 8.0),
        };
        // One row through a matrix that no cache holds reads it at the speed of memory; many rows through one that a
        // second-level cache holds multiply at the speed of the units.
        let time = |rows: usize, inputs: usize, outputs: usize| {
            let w = kernels.pack_linear(&vec![0.01; inputs * outputs], outputs, inputs, format);
            let x = vec![0.5; rows * inputs];
            let mut out = vec![0.0; rows * outputs];
            let run = || {
                let start = Instant::now();
                kernels.linear(&x, &w, &mut out);
                start.elapsed().as_secs_f64()
            };
            std::iter::repeat_with(run).take(20).fold(f64::INFINITY, f64::min)
        };
        let (inputs, outputs) = (4096, 16384);
        let bytes_per_second = (inputs * outputs) as f64 * bytes / time(1, inputs, outputs);
        let flops_per_second = 2.0 * (512 * 512 * 1024) as f64 / time(512, 512, 1024);
        let weight_bytes = (layer_weights + head_weights) * bytes;
        Self { bytes_per_second, flops_per_second, weight_bytes, layer_weights, head_weights }
    }

    fn seconds(&self, rows: usize, wanted: usize) -> f64 {
        let flops = 2.0 * (self.layer_weights * rows as f64 + self.head_weights * wanted as f64);
        (self.weight_bytes / self.bytes_per_second).max(flops / self.flops_per_second)
    }
}

/// Adapters on q, k, v and o of every layer, with small random weights, through package, blob and slot; and the least
/// time that preparing one took.
fn random_adapters(engine: &mut ProcessorEngine, config: &ModelConfig) -> (Vec<Option<SlotId>>, Duration) {
    let preparer = engine.preparer();
    let mut best = Duration::MAX;
    let mut slots = Vec::new();
    for seed in 0..REQUESTS as u64 {
        let blob = random_blob(config, seed);
        let start = Instant::now();
        let prepared = preparer.prepare(&blob).expect("it fits");
        best = best.min(start.elapsed());
        slots.push(Some(engine.install(prepared)));
    }
    (slots, best)
}

fn random_blob(config: &ModelConfig, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut values = |count: usize| -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * 4);
        for _ in 0..count {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&(((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.02).to_le_bytes());
        }
        bytes
    };
    let mut tensors = Vec::new();
    for layer in 0..config.layers {
        for linear in config.linears().iter().filter(|linear| linear.parent == "self_attn") {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.{}", linear.module);
            let (a, b) = (RANK * linear.in_features, RANK * linear.out_features);
            tensors.push((format!("{name}.lora_A.weight"), vec![RANK, linear.in_features], values(a)));
            tensors.push((format!("{name}.lora_B.weight"), vec![linear.out_features, RANK], values(b)));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.expect("sizes agree"))
    });
    let weights = safetensors::serialize(views, None).expect("tensors can be written");
    let adapter_config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    });
    common::blob_of(adapter_config.to_string().as_bytes(), &weights, config)
}

fn blocks_of(index: usize, tokens: usize) -> Vec<u32> {
    let each = tokens.div_ceil(common::BLOCK_SIZE);
    (0..each).map(|block| (index * each + block) as u32).collect()
}

/// One token each, in the middle of the output.
fn decode(slots: &[Option<SlotId>]) -> StepBatch {
    let start = PROMPT + OUTPUT / 2;
    let seq = |(index, &slot): (usize, &Option<SlotId>)| SeqStep {
        tokens: vec![1000 + index as u32],
        start,
        blocks: blocks_of(index, PROMPT + OUTPUT),
        slot,
        logits: LogitsWanted::Last,
        draw: None,
    };
    StepBatch { seqs: slots.iter().enumerate().map(seq).collect() }
}

fn prefill(slots: &[Option<SlotId>], length: usize) -> StepBatch {
    let seq = |(index, &slot): (usize, &Option<SlotId>)| SeqStep {
        tokens: (0..length).map(|at| (index * 991 + at * 37) as u32 % 40_000).collect(),
        start: 0,
        blocks: blocks_of(index, length.max(PROMPT + OUTPUT)),
        slot,
        logits: LogitsWanted::Last,
        draw: None,
    };
    StepBatch { seqs: slots.iter().enumerate().map(seq).collect() }
}

/// Least wall time and least processor time of a step, seconds.
fn best(engine: &mut ProcessorEngine, batch: &StepBatch, seconds: f64) -> (f64, f64) {
    let mut output = StepOutput::default();
    let mut best = (f64::INFINITY, f64::INFINITY);
    let begin = Instant::now();
    let mut steps = 0;
    while steps < 3 || begin.elapsed().as_secs_f64() < seconds {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        engine.step_into(batch, &mut output).expect("the batch is sound");
        best = (best.0.min(start.elapsed().as_secs_f64()), best.1.min(cpu_seconds() - cpu));
        steps += 1;
    }
    best
}

/// How long the calling thread has been on a processor; NaN where the system does not say.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).map_or(f64::NAN, |nanos| nanos / 1e9)
}

/// What the sampler costs per token, on the logits of a real step.
fn sampling(engine: &mut ProcessorEngine, only: &str) {
    let step = prefill(&[None], PROMPT);
    let logits = engine.step(&step).expect("the batch is sound").seqs.remove(0).logits;
    let greedy = SamplingParams::default();
    let drawn = SamplingParams { temperature: 0.8, ..greedy };
    for (name, params) in [
        ("sample, greedy", greedy),
        ("sample, temperature", drawn),
        ("sample, top_k 50", SamplingParams { top_k: 50, ..drawn }),
        ("sample, top_p 0.95", SamplingParams { top_p: 0.95, ..drawn }),
        ("sample, top_p 0.95 at temperature 3", SamplingParams { top_p: 0.95, temperature: 3.0, ..drawn }),
        ("sample, typical_p 0.9", SamplingParams { typical_p: 0.9, ..drawn }),
        ("sample, repetition_penalty 1.1", SamplingParams { repetition_penalty: 1.1, ..greedy }),
    ] {
        if !name.contains(only) {
            continue;
        }
        let prompt: Vec<u32> = (0..PROMPT as u32).collect();
        let mut sampler = Sampler::new(params, &prompt);
        let mut best = Duration::MAX;
        for position in 0..50 {
            let mut row = logits.clone();
            let start = Instant::now();
            sampler.sample(&mut row, position, 0).expect("finite");
            best = best.min(start.elapsed());
        }
        println!("{name:<34} {:>9.3}", best.as_secs_f64() * 1e3);
    }
}

/// 32 requests at once: prompts in two steps of 16, then decode, with sampling.
fn workload(engine: &mut ProcessorEngine, slots: &[Option<SlotId>]) -> Duration {
    let start = Instant::now();
    let mut output = StepOutput::default();
    let mut last = Vec::new();
    let prompts = prefill(slots, PROMPT).seqs;
    let mut samplers: Vec<Sampler> = (0..REQUESTS as u64)
        .map(|seed| Sampler::new(SamplingParams { seed, ..SamplingParams::default() }, &[]))
        .collect();
    for (half, seqs) in prompts.chunks(REQUESTS / 2).enumerate() {
        engine.step_into(&StepBatch { seqs: seqs.to_vec() }, &mut output).expect("the batch is sound");
        for (at, out) in output.seqs.iter_mut().enumerate() {
            let sampler = &mut samplers[half * REQUESTS / 2 + at];
            last.push(sampler.sample(&mut out.logits, PROMPT as u64, 0).expect("finite").token);
        }
    }
    for position in PROMPT..PROMPT + OUTPUT - 1 {
        let mut batch = decode(slots);
        for (seq, &token) in batch.seqs.iter_mut().zip(&last) {
            seq.tokens[0] = token;
            seq.start = position;
        }
        engine.step_into(&batch, &mut output).expect("the batch is sound");
        for ((out, sampler), token) in output.seqs.iter_mut().zip(&mut samplers).zip(&mut last) {
            *token = sampler.sample(&mut out.logits, position as u64 + 1, 0).expect("finite").token;
        }
    }
    start.elapsed()
}

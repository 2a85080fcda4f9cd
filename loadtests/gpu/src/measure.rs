//! The cases, and what each takes.

use crate::adapters;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_base_model::ModelConfig;
use weft_cuda_device::driver::Driver;
use weft_cuda_device::{Device, Options};
use weft_engine::device::{
    DeviceEngine, DeviceOptions, Format, KvFormat, PoolBlocks, Precision, PreparedAdapter, WeightFormat, block_bytes,
};
use weft_engine::sampling::{Sampler, SamplingParams};
use weft_engine::{LogitsWanted, SeqStep, SlotId, StepBatch, StepOutput};

const BLOCK_SIZE: usize = 16;
const RANK_MAX: usize = 64;
/// Steps before a case is measured: graphs are captured, caches are warm.
const WARM_STEPS: usize = 3;
/// Loads of an adapter whose time is taken.
const COLD_LOADS: usize = 9;

/// What to measure.
pub struct Plan {
    /// Sizes of the base.
    pub config: ModelConfig,
    /// Sequences that decode at once, 1 or more.
    pub rows: usize,
    /// Positions that each has behind it, less than the base's context.
    pub context: usize,
    /// How long each case is measured.
    pub each: Duration,
    /// Bring logits to the host, rather than choose tokens (greedily, with their log-probabilities) on the device.
    pub logits: bool,
}

/// All of it.
#[derive(Serialize)]
pub struct Report {
    device: String,
    capability: (i32, i32),
    multiprocessors: usize,
    memory_bytes: usize,
    rows: usize,
    context: usize,
    /// Whether logits were brought to the host; else tokens.
    logits: bool,
    /// Copies within the device, read and write counted.
    bandwidth_bytes_per_s: f64,
    upload_bytes_per_s: f64,
    weight_bytes: u64,
    cases: Vec<Case>,
    cold: Vec<Cold>,
}

/// Decoding with so many adapters.
#[derive(Serialize)]
struct Case {
    format: &'static str,
    graphs: bool,
    adapters: usize,
    /// Of all adapters, in turn.
    ranks: Vec<usize>,
    adapter_bytes: u64,
    steps: usize,
    step_ms: f64,
    tokens_per_s: f64,
    /// Against the base alone in the same engine.
    of_base: f64,
    /// Bytes that a step must read, over the bandwidth that copies reach.
    floor_ms: f64,
    of_floor: f64,
}

/// A step whose first row's adapter is copied to the device meanwhile.
#[derive(Serialize)]
struct Cold {
    format: &'static str,
    adapter_bytes: u64,
    warm_ms: f64,
    cold_ms_median: f64,
    cold_ms_max: f64,
}

/// Measures all cases, one engine after the other.
///
/// # Errors
/// The plan is out of range, or the device has too little memory or fails.
pub fn run(driver: Arc<dyn Driver>, plan: &Plan) -> Result<Report> {
    ensure!(plan.rows > 0, "--rows is 0, allowed are 1 and more");
    let most = plan.config.context_length - 1;
    ensure!(plan.context <= most, "--context is {}, allowed are up to {most}", plan.context);
    let properties = driver.properties().clone();
    let device = device(driver, plan)?;
    let [bandwidth, upload] = bandwidths(&device, plan.each)?;
    let mut report = Report {
        device: properties.name,
        capability: properties.capability,
        multiprocessors: properties.multiprocessors,
        memory_bytes: properties.memory_bytes,
        rows: plan.rows,
        context: plan.context,
        logits: plan.logits,
        bandwidth_bytes_per_s: bandwidth,
        upload_bytes_per_s: upload,
        weight_bytes: 0,
        cases: Vec::new(),
        cold: Vec::new(),
    };
    for (format, graphs) in [(Format::Bf16, true), (Format::Bf16, false), (Format::Int8, true), (Format::Fp8, true)] {
        let mut bench = Bench::new(&device, plan, format, graphs)?;
        report.weight_bytes = bench.engine.weight_bytes();
        let base = bench.decode(0, &[16])?;
        let base_s = base.0.as_secs_f64() / base.1 as f64;
        let wanted = [1, 8, 32, 64].into_iter().filter(|adapters| *adapters <= plan.rows).map(|n| (n, vec![16]));
        let mixed = (plan.rows >= 4).then(|| (plan.rows, vec![8, 16, 32, 64]));
        for (adapters, ranks) in [(0, vec![16])].into_iter().chain(wanted).chain(mixed) {
            let (took, steps) = if adapters == 0 { base } else { bench.decode(adapters, &ranks)? };
            let step_s = took.as_secs_f64() / steps as f64;
            let adapter_bytes = bench.adapter_bytes();
            let bytes = bench.engine.weight_bytes() + adapter_bytes + bench.kv_bytes();
            let floor_s = bytes as f64 / bandwidth;
            report.cases.push(Case {
                format: format.suffix(),
                graphs,
                adapters,
                ranks,
                adapter_bytes,
                steps,
                step_ms: step_s * 1e3,
                tokens_per_s: plan.rows as f64 / step_s,
                of_base: base_s / step_s,
                floor_ms: floor_s * 1e3,
                of_floor: floor_s / step_s,
            });
        }
        if graphs {
            report.cold.push(bench.cold()?);
        }
    }
    Ok(report)
}

/// Takes nine tenths of the device's memory.
fn device(driver: Arc<dyn Driver>, plan: &Plan) -> Result<Device> {
    let memory = driver.properties().memory_bytes;
    let largest = adapter_bytes(&plan.config, RANK_MAX, 2);
    let pinned_bytes = (plan.rows + 1) * largest + plan.rows * plan.config.vocab_size * 4 + (64 << 20);
    let options =
        Options { pool_bytes: memory / 10 * 9, pinned_bytes, block_bytes: 64 << 10, pinned_block_bytes: 4 << 10 };
    Device::new(driver, &options).context("take the device's memory")
}

/// Of an adapter on all linears.
fn adapter_bytes(config: &ModelConfig, rank: usize, each: usize) -> usize {
    let widths: usize = config.linears().iter().map(|linear| linear.in_features + linear.out_features).sum();
    // Whatever alignment and scales take is less than a hundredth.
    config.layers * (rank * widths * each) / 100 * 101 + (64 << 10)
}

/// Copies within the device, and to it.
fn bandwidths(device: &Device, each: Duration) -> Result<[f64; 2]> {
    let bytes = (device.usage().largest / 8).min(1 << 30);
    let pinned_bytes = (device.pinned_usage().largest / 2).min(256 << 20);
    let (from, to) = (device.allocate(bytes)?, device.allocate(bytes)?);
    let pinned = device.allocate_pinned(pinned_bytes)?;
    let stream = device.stream("bandwidth")?;
    stream.fill(from.all(), 1)?;
    let timed = |copy: &dyn Fn() -> Result<(), weft_cuda_device::Error>| -> Result<f64> {
        copy()?;
        stream.synchronize()?;
        let began = Instant::now();
        let mut copies = 0;
        while began.elapsed() < each / 2 {
            copy()?;
            stream.synchronize()?;
            copies += 1;
        }
        Ok(began.elapsed().as_secs_f64() / f64::from(copies))
    };
    let within = timed(&|| stream.copy(from.all(), to.all()))?;
    let uploads = pinned_bytes.min(bytes);
    let up = timed(&|| stream.upload(&pinned, 0..uploads, to.part(0..uploads)?))?;
    Ok([2.0 * bytes as f64 / within, uploads as f64 / up])
}

struct Bench<'a> {
    plan: &'a Plan,
    engine: DeviceEngine,
    format: Format,
    loaded: Vec<(usize, PreparedAdapter, SlotId)>,
    output: StepOutput,
}

impl<'a> Bench<'a> {
    fn new(device: &Device, plan: &'a Plan, format: Format, graphs: bool) -> Result<Self> {
        let each = plan.context.div_ceil(BLOCK_SIZE) + 2;
        let bytes = adapter_bytes(&plan.config, RANK_MAX, if format == Format::Bf16 { 2 } else { 1 });
        let block = block_bytes(&plan.config, BLOCK_SIZE, KvFormat::Precision, Precision::Bf16);
        // Half as much again for the ends of blocks.
        let of_adapters = (plan.rows + 1) * ((bytes + bytes / 2).div_ceil(block) + 1);
        let options = DeviceOptions {
            device: device.clone(),
            precision: Precision::Bf16,
            weights: WeightFormat::Precision,
            kv: KvFormat::Precision,
            adapters: format,
            batch_invariant: false,
            blocks: PoolBlocks::Exactly(plan.rows * each + of_adapters),
            block_size: BLOCK_SIZE,
            rows_max: plan.rows,
            logits_rows_max: plan.rows,
            sequences_max: plan.rows,
            adapter_blocks_max: of_adapters,
            stream_bytes: 0,
            rank_max: RANK_MAX,
            graphs,
        };
        let engine = DeviceEngine::without_meaning(&plan.config, options).context("build an engine")?;
        Ok(Self { plan, engine, format, loaded: Vec::new(), output: StepOutput::default() })
    }

    /// So many adapters with these ranks in turn are in slots, and no others.
    fn load(&mut self, adapters: usize, ranks: &[usize]) -> Result<()> {
        let wanted: Vec<usize> = ranks.iter().copied().cycle().take(adapters).collect();
        let have: Vec<usize> = self.loaded.iter().map(|(rank, ..)| *rank).collect();
        let keep = wanted.iter().zip(&have).take_while(|(wanted, have)| wanted == have).count();
        for (_, _, slot) in self.loaded.drain(keep..) {
            self.engine.remove(slot);
        }
        let preparer = self.engine.preparer();
        for (number, &rank) in wanted.iter().enumerate().skip(keep) {
            let prepared = preparer.prepare(&adapters::blob(&self.plan.config, rank, number as u64)?)?;
            let slot = self.install(&prepared)?;
            self.loaded.push((rank, prepared, slot));
        }
        Ok(())
    }

    /// In the last blocks of the pool; the first ones have the keys.
    fn install(&mut self, adapter: &PreparedAdapter) -> Result<SlotId> {
        let blocks = self.engine.find_blocks(adapter).context("no blocks are left for an adapter")?;
        Ok(self.engine.install(adapter.clone(), &blocks)?)
    }

    fn adapter_bytes(&self) -> u64 {
        self.loaded.iter().map(|(_, prepared, _)| prepared.matrix_bytes()).sum()
    }

    /// Keys and values that a step reads.
    fn kv_bytes(&self) -> u64 {
        let config = &self.plan.config;
        (self.plan.rows * self.plan.context * config.layers * config.kv_heads * config.head_dim * 2 * 2) as u64
    }

    fn batch(&self, slots: &[SlotId]) -> StepBatch {
        let each = (self.plan.context.div_ceil(BLOCK_SIZE) + 2) as u32;
        let sampler = Sampler::new(SamplingParams::default(), &[]);
        let seq = |row: usize| SeqStep {
            tokens: vec![(row % self.plan.config.vocab_size) as u32],
            start: self.plan.context,
            blocks: (row as u32 * each..(row as u32 + 1) * each).collect(),
            slot: (!slots.is_empty()).then(|| slots[row % slots.len()]),
            logits: LogitsWanted::Last,
            draw: (!self.plan.logits).then(|| sampler.draw(self.plan.context as u64 + 1, 0, None)),
        };
        StepBatch { seqs: (0..self.plan.rows).map(seq).collect() }
    }

    fn step(&mut self, batch: &StepBatch) -> Result<()> {
        Ok(self.engine.step_into(batch, &mut self.output)?)
    }

    /// How long so many steps took.
    fn decode(&mut self, adapters: usize, ranks: &[usize]) -> Result<(Duration, usize)> {
        self.load(adapters, ranks)?;
        let slots: Vec<SlotId> = self.loaded.iter().map(|(.., slot)| *slot).collect();
        let batch = self.batch(&slots);
        for _ in 0..WARM_STEPS {
            self.step(&batch)?;
        }
        let began = Instant::now();
        let mut steps = 0;
        while steps == 0 || began.elapsed() < self.plan.each {
            self.step(&batch)?;
            steps += 1;
        }
        Ok((began.elapsed(), steps))
    }

    /// The first row's adapter comes from pinned memory while its step runs; all others are there.
    fn cold(&mut self) -> Result<Cold> {
        self.load(self.plan.rows.min(8), &[16])?;
        let mut slots: Vec<SlotId> = self.loaded.iter().map(|(.., slot)| *slot).collect();
        let batch = self.batch(&slots);
        let took = |bench: &mut Self, batch: &StepBatch| {
            let began = Instant::now();
            bench.step(batch).map(|()| began.elapsed().as_secs_f64() * 1e3)
        };
        self.step(&batch)?;
        let warm_ms = took(self, &batch)?;
        let mut cold = Vec::new();
        for _ in 0..COLD_LOADS {
            let (_, prepared, slot) = &self.loaded[0];
            let (prepared, slot) = (prepared.clone(), *slot);
            self.engine.remove(slot);
            let began = Instant::now();
            let slot = self.install(&prepared)?;
            (self.loaded[0].2, slots[0]) = (slot, slot);
            let batch = self.batch(&slots);
            self.step(&batch)?;
            cold.push(began.elapsed().as_secs_f64() * 1e3);
        }
        cold.sort_by(f64::total_cmp);
        Ok(Cold {
            format: self.format.suffix(),
            adapter_bytes: self.loaded[0].1.matrix_bytes(),
            warm_ms,
            cold_ms_median: cold[cold.len() / 2],
            cold_ms_max: cold[cold.len() - 1],
        })
    }
}

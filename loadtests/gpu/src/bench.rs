//! An engine with random adapters, and its steps.

use crate::adapters;
use crate::budget::Budget;
use crate::memory::{BLOCK_SIZE, adapter_bytes};
use crate::plan::Plan;
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;
use weft_base_model::{BaseModel, ModelConfig};
use weft_cuda_device::Device;
use weft_engine::device::{
    DeviceEngine, DeviceOptions, Format, KvFormat, PoolBlocks, Precision, PreparedAdapter, WeightFormat, block_bytes,
};
use weft_engine::sampling::{Sampler, SamplingParams};
use weft_engine::{LogitsWanted, SeqStep, SlotId, StepBatch, StepOutput};

/// Steps before a case is measured: graphs are captured, caches are warm.
const WARM_STEPS: usize = 3;
/// Steps that are measured, however late it is.
const STEPS: usize = 3;

/// What an engine is built of.
#[derive(Clone, Copy)]
pub(crate) enum Base<'a> {
    /// Every weight is the same small number, which takes as long as any other.
    Shape(&'a ModelConfig),
    Model(&'a BaseModel),
}

impl<'a> Base<'a> {
    pub(crate) fn config(self) -> &'a ModelConfig {
        match self {
            Self::Shape(config) => config,
            Self::Model(model) => &model.config,
        }
    }
}

/// What engines of a base share.
pub(crate) struct Shared<'a> {
    pub(crate) device: &'a Device,
    pub(crate) plan: &'a Plan,
    pub(crate) base: Base<'a>,
    /// By rank. They take a while to make.
    blobs: RefCell<HashMap<usize, Rc<Vec<u8>>>>,
}

impl<'a> Shared<'a> {
    pub(crate) fn new(device: &'a Device, plan: &'a Plan, base: Base<'a>) -> Self {
        Self { device, plan, base, blobs: RefCell::default() }
    }

    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.base.config()
    }

    fn blob(&self, rank: usize) -> Result<Rc<Vec<u8>>> {
        if let Some(blob) = self.blobs.borrow().get(&rank) {
            return Ok(Rc::clone(blob));
        }
        let blob = Rc::new(adapters::blob(self.config(), rank, rank as u64)?);
        self.blobs.borrow_mut().insert(rank, Rc::clone(&blob));
        Ok(blob)
    }
}

/// How large an engine is.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) format: Format,
    pub(crate) graphs: bool,
    /// Of the largest step.
    pub(crate) rows: usize,
    pub(crate) sequences: usize,
    /// Of each sequence.
    pub(crate) positions: usize,
    /// Ranks of adapters that there is room for.
    pub(crate) ranks: Vec<usize>,
    /// As [`DeviceOptions::stream_bytes`], in adapters of rank 16.
    pub(crate) streamed: usize,
}

pub(crate) struct Bench<'a> {
    pub(crate) shared: &'a Shared<'a>,
    pub(crate) engine: DeviceEngine,
    room: Room,
    /// Once for each rank: adapters in slots are the same pinned memory, and different memory of the device.
    prepared: HashMap<usize, PreparedAdapter>,
    /// In slots, in order.
    loaded: Vec<(usize, SlotId)>,
    output: StepOutput,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(shared: &'a Shared<'a>, room: Room) -> Result<Self> {
        let config = shared.config();
        let block = block_bytes(config, BLOCK_SIZE, KvFormat::Precision, Precision::Bf16);
        let of_rank = |rank: usize| adapter_bytes(config, rank, room.format.value_bytes());
        // A third more for the ends of blocks, and as much as one needs for those of runs.
        let blocks_of = |rank: usize| (of_rank(rank) + of_rank(rank) / 3).div_ceil(block) + 1;
        let largest = room.ranks.iter().copied().max().unwrap_or(16).max(16);
        let of_adapters = room.ranks.iter().map(|rank| blocks_of(*rank)).sum::<usize>() + blocks_of(largest);
        let options = DeviceOptions {
            device: shared.device.clone(),
            precision: Precision::Bf16,
            weights: WeightFormat::Precision,
            kv: KvFormat::Precision,
            adapters: room.format,
            batch_invariant: false,
            blocks: PoolBlocks::Exactly(room.sequences * blocks_each(&room) + of_adapters),
            block_size: BLOCK_SIZE,
            rows_max: room.rows,
            logits_rows_max: room.sequences.min(room.rows),
            sequences_max: room.sequences,
            adapter_blocks_max: of_adapters,
            stream_bytes: room.streamed * of_rank(16),
            rank_max: largest,
            graphs: room.graphs,
        };
        let engine = match shared.base {
            Base::Shape(config) => DeviceEngine::without_meaning(config, options),
            Base::Model(model) => DeviceEngine::new(model, options),
        };
        let engine = engine.context("build an engine")?;
        Ok(Self { shared, engine, room, prepared: HashMap::new(), loaded: Vec::new(), output: StepOutput::default() })
    }

    /// An adapter in pinned memory of its own.
    pub(crate) fn prepare(&self, rank: usize) -> Result<PreparedAdapter> {
        Ok(self.engine.preparer().prepare(&self.shared.blob(rank)?)?)
    }

    /// The one of this rank, always in the same pinned memory.
    pub(crate) fn prepared(&mut self, rank: usize) -> Result<PreparedAdapter> {
        if let Some(prepared) = self.prepared.get(&rank) {
            return Ok(prepared.clone());
        }
        let prepared = self.prepare(rank)?;
        self.prepared.insert(rank, prepared.clone());
        Ok(prepared)
    }

    /// So many adapters with these ranks in turn are in slots, and no others. They are the slots.
    pub(crate) fn load(&mut self, adapters: usize, ranks: &[usize]) -> Result<Vec<SlotId>> {
        let wanted: Vec<usize> = ranks.iter().copied().cycle().take(adapters).collect();
        let keep = wanted.iter().zip(&self.loaded).take_while(|(wanted, (have, _))| *wanted == have).count();
        for (_, slot) in self.loaded.drain(keep..) {
            self.engine.remove(slot);
        }
        for &rank in &wanted[keep..] {
            let prepared = self.prepared(rank)?;
            let slot = self.install(&prepared)?.context("no blocks are left for an adapter")?;
            self.loaded.push((rank, slot));
        }
        Ok(self.loaded.iter().map(|(_, slot)| *slot).collect())
    }

    /// In the last free blocks of the pool; the first ones have the keys. None: there are too few.
    pub(crate) fn install(&mut self, adapter: &PreparedAdapter) -> Result<Option<SlotId>> {
        match self.engine.find_blocks(adapter) {
            // The first blocks are those of keys.
            Some(blocks)
                if blocks.iter().all(|block| *block as usize >= self.room.sequences * blocks_each(&self.room)) =>
            {
                Ok(Some(self.engine.install(adapter.clone(), &blocks)?))
            }
            _ => Ok(None),
        }
    }

    /// Of those in slots, the first so many.
    pub(crate) fn adapter_bytes(&self, adapters: usize) -> u64 {
        let of_rank = |(rank, _): &(usize, SlotId)| self.prepared[rank].matrix_bytes();
        self.loaded.iter().take(adapters).map(of_rank).sum()
    }

    /// Keys and values that a step of decoding rows reads.
    pub(crate) fn kv_bytes(&self, rows: usize) -> u64 {
        let config = self.shared.config();
        (rows * self.shared.plan.context * config.layers * config.kv_heads * config.head_dim * 2 * 2) as u64
    }

    /// Tokens of the sequence at a place, whose blocks are its own.
    pub(crate) fn seq(&self, place: usize, start: usize, tokens: usize, slot: Option<SlotId>) -> SeqStep {
        let (plan, each) = (self.shared.plan, blocks_each(&self.room) as u32);
        let token = |at: usize| ((place + at) % self.shared.config().vocab_size) as u32;
        let sampler = Sampler::new(SamplingParams::default(), &[]);
        SeqStep {
            tokens: (0..tokens).map(token).collect(),
            start,
            blocks: (place as u32 * each..(place as u32 + 1) * each).collect(),
            slot,
            logits: LogitsWanted::Last,
            draw: (!plan.logits).then(|| sampler.draw((start + tokens) as u64, 0, None)),
        }
    }

    /// Sequences at so many first places that decode, with these adapters in turn.
    pub(crate) fn decoding(&self, rows: usize, slots: &[SlotId]) -> Vec<SeqStep> {
        let slot = |row: usize| (!slots.is_empty()).then(|| slots[row % slots.len()]);
        (0..rows).map(|row| self.seq(row, self.shared.plan.context, 1, slot(row))).collect()
    }

    pub(crate) fn step(&mut self, batch: &StepBatch) -> Result<()> {
        Ok(self.engine.step_into(batch, &mut self.output)?)
    }

    /// How long a step takes, in seconds, of so many, once it is warm.
    pub(crate) fn time(&mut self, seqs: Vec<SeqStep>, budget: &Budget) -> Result<(f64, usize)> {
        let batch = StepBatch { seqs };
        for _ in 0..WARM_STEPS {
            self.step(&batch)?;
        }
        let began = Instant::now();
        let mut steps = 0;
        while steps < STEPS || !budget.is_over() {
            self.step(&batch)?;
            steps += 1;
        }
        Ok((began.elapsed().as_secs_f64() / steps as f64, steps))
    }
}

/// Blocks of a sequence.
fn blocks_each(room: &Room) -> usize {
    room.positions.div_ceil(BLOCK_SIZE)
}

//! The engine: base weights, slots and KV memory, and the step that uses them.

use crate::adapter::{PreparedAdapter, Preparer, Resident};
use crate::forward::forward;
use crate::ops::Read;
use crate::plan::{BlockOwners, Limits, Plan};
use crate::processor::{Scratch, Step};
use crate::sampling::{Draw, NoToken, Sampled};
use crate::shape::Shape;
use crate::slots::{SlotId, Table};
use crate::timed::{StepTimes, Timed};
use crate::weights::Base;
use crate::workspace::Workspace;
use crate::{Error, ops};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;
use weft_base_model::BaseModel;
use weft_kernels::{Kernels, KvFormat, KvLayer, WeightFormat};
use weft_types::Digest;

/// What base weights and KV are stored in. Activations are f32 in each, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// The parity reference.
    F32,
    /// Half the memory traffic; products may be taken from rounded activations.
    Bf16,
    /// Weights in 8 bits with a scale per group, activations of linears rounded to 8 bits; KV in bf16.
    Int8,
    /// Weights of the layers in 4 bits with a scale and a minimum per group, the output matrix as in `Int8`.
    Q4,
}

impl Dtype {
    /// As it is written in settings and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Q4 => "q4",
        }
    }

    pub(crate) fn weights(self) -> WeightFormat {
        match self {
            Self::F32 => WeightFormat::F32,
            Self::Bf16 => WeightFormat::Bf16,
            Self::Int8 => WeightFormat::Int8,
            Self::Q4 => WeightFormat::Q4,
        }
    }

    /// The output matrix decides between tokens: it keeps 8 bits, as ggml's 4-bit models do (`Q6_K` or `Q8_0`).
    pub(crate) fn head(self) -> WeightFormat {
        match self {
            Self::Q4 => WeightFormat::Int8,
            other => other.weights(),
        }
    }

    /// What adapters are stored in unless asked otherwise.
    #[must_use]
    pub fn adapters(self) -> AdapterDtype {
        match self {
            Self::F32 => AdapterDtype::F32,
            Self::Bf16 | Self::Int8 | Self::Q4 => AdapterDtype::Bf16,
        }
    }

    /// Bytes of one stored key or value.
    #[must_use]
    pub fn kv_bytes(self) -> usize {
        match self.kv() {
            KvFormat::F32 => 4,
            KvFormat::Bf16 => 2,
        }
    }

    fn kv(self) -> KvFormat {
        match self {
            Self::F32 => KvFormat::F32,
            Self::Bf16 | Self::Int8 | Self::Q4 => KvFormat::Bf16,
        }
    }
}

/// What adapters are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdapterDtype {
    /// As published, or wider: the parity reference.
    F32,
    /// Half of that; exact for adapters published in bf16.
    Bf16,
    /// 8 bits with a scale per rank: half the bytes that a step reads for each adapter; about 0.7 % off per weight. Activations meet
    /// them as codes of 8 bits, and so does what is between the halves. Ranks are filled up to 8 in A, to 4 in B.
    Int8,
}

impl AdapterDtype {
    /// As it is written in settings and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of an element in a slot; the scales of [`AdapterDtype::Int8`] come on top.
    #[must_use]
    pub fn element_bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    pub(crate) fn format(self) -> WeightFormat {
        match self {
            Self::F32 => WeightFormat::F32,
            Self::Bf16 => WeightFormat::Bf16,
            Self::Int8 => WeightFormat::Int8,
        }
    }
}

/// How to build an engine.
pub struct EngineOptions {
    /// Storage of weights and KV.
    pub dtype: Dtype,
    /// Storage of adapters.
    pub adapter_dtype: AdapterDtype,
    /// Physical blocks in the KV pool, 1 or more. Memory is taken by the system only as blocks are first written.
    pub kv_blocks: usize,
    /// Positions per block, 1 or more; 16 suits the kernels.
    pub block_size: usize,
    /// The compute.
    pub kernels: Arc<dyn Kernels>,
}

/// Which rows of a sequence give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: a prompt chunk that is not the last.
    None,
    /// The last row: the next token is sampled from it.
    Last,
    /// Every row: prompt log-probabilities, verification of drafts.
    All,
}

/// A sequence's part in a step.
#[derive(Clone, Debug)]
pub struct SeqStep {
    /// New tokens, at least one: a chunk of the prompt, or the last sampled token.
    pub tokens: Vec<u32>,
    /// Position of the first new token; positions before it must have been computed into `blocks`.
    pub start: usize,
    /// Physical blocks in order of position, covering at least `start + tokens.len()` positions. Blocks before the one
    /// that holds `start` may be shared with other sequences of the step.
    pub blocks: Vec<u32>,
    /// The adapter; none: the base alone.
    pub slot: Option<SlotId>,
    /// Rows that give logits.
    pub logits: LogitsWanted,
    /// Chooses the token behind the last row, whatever `logits` says. The step then keeps that row's logits to itself, unless all rows are
    /// wanted: on a device they do not cross the bus.
    pub draw: Option<Draw>,
}

impl SeqStep {
    /// Whether the rows that are computed to logits are part of the result.
    pub(crate) fn returns_logits(&self) -> bool {
        match self.logits {
            LogitsWanted::None => false,
            LogitsWanted::Last => self.draw.is_none(),
            LogitsWanted::All => true,
        }
    }
}

/// What one step computes.
#[derive(Clone, Debug, Default)]
pub struct StepBatch {
    /// In any order.
    pub seqs: Vec<SeqStep>,
}

/// What one step computed.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// In the order of the batch.
    pub seqs: Vec<SeqOutput>,
    /// Where the time went.
    pub times: StepTimes,
}

/// One sequence's result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeqOutput {
    /// Digest in the slot entry that the step used; none: the base alone.
    pub adapter: Option<Digest>,
    /// `[rows wanted, vocabulary]`; empty for the last row alone if a token was drawn from it.
    pub logits: Vec<f32>,
    /// What the draw chose, if there was one; an error is this sequence's alone.
    pub drawn: Option<Result<Sampled, NoToken>>,
}

/// One base model with its adapter slots and KV memory. Owned by one step loop.
pub struct ProcessorEngine {
    shape: Arc<Shape>,
    /// Shared with preparers: DoRA needs the weights.
    base: Arc<Base>,
    kernels: Timed,
    dtype: Dtype,
    adapter_dtype: AdapterDtype,
    block_size: usize,
    kv_blocks: usize,
    kv: Vec<KvLayer>,
    slots: Table<Box<Resident>>,
    owners: BlockOwners,
    scratch: Scratch,
    /// Flat, for `logits_rows * vocabulary` values.
    logits: Option<Tensor>,
    logits_rows: usize,
}

impl ProcessorEngine {
    /// Loads and packs the base.
    ///
    /// Cost: reads the whole model, about a second per GB; see [`EngineOptions`] for the KV pool.
    ///
    /// # Errors
    /// [`Error::Option`] for a size out of range, [`Error::Model`] and [`Error::TensorSize`] for unusable weights.
    pub fn new(model: &BaseModel, options: EngineOptions) -> Result<Self, Error> {
        let positive = |option, value| {
            if value == 0 { Err(Error::Option { option, value, allowed: "1 or more" }) } else { Ok(()) }
        };
        positive("kv_blocks", options.kv_blocks)?;
        positive("block_size", options.block_size)?;
        positive("layers", model.config.layers)?;
        if options.kv_blocks > u32::MAX as usize {
            return Err(Error::Option { option: "kv_blocks", value: options.kv_blocks, allowed: "below 2^32" });
        }
        let shape = Arc::new(Shape::of(&model.config));
        let base = Arc::new(Base::load(model, &shape, options.kernels.as_ref(), options.dtype)?);
        let layer = || {
            options.kernels.new_kv(
                options.kv_blocks,
                options.block_size,
                shape.kv_heads,
                shape.head_dim,
                options.dtype.kv(),
            )
        };
        Ok(Self {
            base,
            kv: std::iter::repeat_with(layer).take(shape.layers).collect(),
            kernels: Timed::new(options.kernels),
            dtype: options.dtype,
            adapter_dtype: options.adapter_dtype,
            block_size: options.block_size,
            kv_blocks: options.kv_blocks,
            slots: Table::default(),
            owners: BlockOwners::default(),
            scratch: Scratch {
                rows: Workspace::new(Device::Cpu),
                wanted: Workspace::new(Device::Cpu),
                split: RefCell::new(ops::Split::default()),
            },
            logits: None,
            logits_rows: 0,
            shape,
        })
    }

    /// What makes adapters ready for this engine, on any thread. Keeps the base's weights in memory as long as it lives.
    #[must_use]
    pub fn preparer(&self) -> Preparer {
        let (shape, base, kernels) = (&self.shape, &self.base, self.kernels.inner());
        Preparer::new(Arc::clone(shape), Arc::clone(base), Arc::clone(kernels), self.adapter_dtype.format())
    }

    /// Puts a prepared adapter into a slot. Moves a pointer; never waits.
    pub fn install(&mut self, adapter: PreparedAdapter) -> SlotId {
        self.slots.install(adapter.0)
    }

    /// Empties a slot and gives back what was in it, as ready for a slot as before; none if it holds no such adapter.
    /// The id is never valid again. Moves a pointer; never waits.
    pub fn remove(&mut self, slot: SlotId) -> Option<PreparedAdapter> {
        self.slots.remove(slot).map(PreparedAdapter)
    }

    /// The digest in a slot's entry.
    #[must_use]
    pub fn slot_digest(&self, slot: SlotId) -> Option<Digest> {
        self.slots.get(slot).map(|adapter| adapter.digest)
    }

    /// Ids in the vocabulary: the width of a row of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// Bytes of packed weights that a step reads, whatever its batch: all linears and the head, each once.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let of_layer = |layer: &crate::weights::Layer| {
            [&layer.qkv, &layer.output, &layer.gate_up, &layer.down].iter().map(|linear| linear.bytes()).sum::<usize>()
        };
        (self.base.layers.iter().map(of_layer).sum::<usize>() + self.base.lm_head.bytes()) as u64
    }

    /// Positions per KV block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the KV pool.
    #[must_use]
    pub fn kv_blocks(&self) -> usize {
        self.kv_blocks
    }

    /// Storage of weights and KV.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Name of the instruction set in use.
    #[must_use]
    pub fn isa(&self) -> &'static str {
        self.kernels.isa()
    }

    /// One pass of the base over all rows of the batch.
    ///
    /// # Errors
    /// [`Error::Sequence`] names the one sequence that cannot be computed; nothing was written, and the batch without
    /// it can be run. [`Error::Tensor`] is a bug.
    pub fn step(&mut self, batch: &StepBatch) -> Result<StepOutput, Error> {
        let mut output = StepOutput::default();
        self.step_into(batch, &mut output)?;
        Ok(output)
    }

    /// [`Self::step`] into an output whose memory is used again: saves mapping some megabytes of logits per step.
    /// After an error the output is empty.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_into(&mut self, batch: &StepBatch, output: &mut StepOutput) -> Result<(), Error> {
        let start = Instant::now();
        let mut recycled = std::mem::take(&mut output.seqs);
        if batch.seqs.is_empty() {
            return Ok(());
        }
        let limits = Limits {
            shape: &self.shape,
            slots: &self.slots,
            kv_blocks: self.kv_blocks,
            block_size: self.block_size,
            taken: &[],
        };
        let plan = Plan::new(&batch.seqs, &limits, &mut self.owners)?;
        let vocabulary = self.shape.vocabulary;
        let logits = logits_view(&mut self.logits, &mut self.logits_rows, plan.wanted.len(), vocabulary)?;
        let mut step = Step {
            shape: &self.shape,
            base: &self.base,
            kernels: &self.kernels,
            plan: &plan,
            kv: &mut self.kv,
            scratch: &mut self.scratch,
            logits: logits.as_ref(),
        };
        forward(&mut step, self.shape.layers, logits.is_some())?;

        recycled.resize_with(batch.seqs.len(), SeqOutput::default);
        for (computed, &at) in plan.order.iter().enumerate() {
            let out = &mut recycled[at];
            out.logits.clear();
            out.drawn = None;
            // The entry, not the request: this is the digest whose matrices the rows went through.
            out.adapter = plan.adapters[computed].map(|adapter| adapter.digest);
        }
        if let Some(logits) = logits {
            let outputs = RefCell::new((&mut recycled, Vec::new()));
            logits.inplace_op1(&Read(|values: &[f32]| {
                let (outputs, row) = &mut *outputs.borrow_mut();
                for (rows, &at) in plan.wanted_of.iter().zip(&plan.order) {
                    let (seq, values) = (&batch.seqs[at], &values[rows.start * vocabulary..rows.end * vocabulary]);
                    if seq.returns_logits() {
                        outputs[at].logits.extend_from_slice(values);
                    }
                    if let Some(draw) = &seq.draw {
                        row.clear();
                        row.extend_from_slice(&values[values.len() - vocabulary..]);
                        outputs[at].drawn = Some(draw.sample(row));
                    }
                }
            }))?;
        }
        output.seqs = recycled;
        output.times = self.kernels.take(start.elapsed());
        Ok(())
    }
}

/// The first `rows` rows of the logits buffer, grown when needed; none for no rows.
fn logits_view(
    buffer: &mut Option<Tensor>,
    capacity: &mut usize,
    rows: usize,
    vocabulary: usize,
) -> candle_core::Result<Option<Tensor>> {
    if rows == 0 {
        return Ok(None);
    }
    let tensor = match buffer {
        Some(tensor) if rows <= *capacity => tensor,
        stale => {
            *stale = None;
            *capacity = rows.next_power_of_two();
            stale.insert(Tensor::zeros(*capacity * vocabulary, DType::F32, &Device::Cpu)?)
        }
    };
    Ok(Some(tensor.narrow(0, 0, rows * vocabulary)?.reshape((rows, vocabulary))?))
}

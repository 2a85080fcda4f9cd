//! The engine on a device: the base and one pool for keys, values and adapters in its memory, steps as launches, decoding steps as graphs.
//!
//! A step has two forms. One that decodes a single token for each sequence is *replayed*: the graph for the next size of batch and for base rows alone, or
//! with adapters, is captured once; rows beyond the step's are padding that belongs to nobody. Tables in device memory say which rows use which
//! adapter of which rank, and which rows draw a token and how, so no number of adapters, no rank and no setting needs another graph. All other
//! steps, and those with an adapter that is still being copied, or has no blocks and is copied by each step (`streamed`), are launched one by one.
//!
//! Everything of a step is on one stream but the copies of adapters, which events order before the layers that use them.

mod activations;
mod adapter;
mod agreement;
mod answers;
mod dora;
mod draws;
mod graphs;
mod kv;
mod linear;
mod options;
mod place;
mod pool;
mod precision;
mod products;
mod ranks;
mod shard;
mod sharded;
mod slots;
mod step;
mod streamed;
mod tables;
mod weights;

pub use adapter::{PreparedAdapter, Preparer};
pub use draws::TOP_LOGPROBS_MAX;
pub use kv::KvFormat;
pub use linear::WeightFormat;
pub use options::{DeviceOptions, ROWS_MAX, StepRoom, block_bytes};
pub use pool::PoolBlocks;
pub use precision::Precision;
pub use sharded::{ShardedAdapter, ShardedEngine, ShardedPreparer};
pub use weft_cuda_kernels::pack::Format;

use crate::forward::forward;
use crate::plan::{BlockOwners, Limits, Plan};
use crate::shape::{SITES, Shape};
use crate::{Error, LogitsWanted, SeqOutput, SeqStep, SlotId, StepBatch, StepOutput};
use activations::{Activations, Buffers};
use adapter::{Packing, Part};
use answers::{Answers, Host};
use draws::{Draws, Memory, Piece};
use graphs::{Bucket, Graphs};
use options::TARGETS_MAX;
use pool::Pool;
use ranks::{Gathered, Ranks, Together};
use shard::Shard;
use slots::{Resident, Slots};
use std::sync::Arc;
use std::time::Instant;
use step::{LoraLaunch, Step, coming, lora_launches};
use streamed::{Streamed, Streaming};
use tables::{Caps, Layout, StepTables};
use weft_base_model::{BaseModel, ModelConfig};
use weft_cuda_device::{Buffer, Graph, Pinned, Stream};
pub use weft_cuda_kernels::table::RANK_MAX;
use weft_cuda_kernels::table::{self, Choice, Path};
use weft_cuda_kernels::{attention, columns};
use weft_types::Digest;
use weights::Weights;

/// One base model with its adapter slots and KV memory, on a device. Owned by one step loop.
pub struct DeviceEngine {
    shape: Arc<Shape>,
    options: DeviceOptions,
    stream: Stream,
    weights: Weights,
    /// What preparers read again for DoRA; none without meaning.
    base: Option<dora::Base>,
    products: products::Workspace,
    pool: Pool,
    slots: Slots,
    owners: BlockOwners,
    buffers: Buffers,
    tables: Buffer,
    staging: Pinned,
    bytes: Vec<u8>,
    sampling: Memory,
    host: Host,
    attention: attention::Layer,
    /// How rows of prompts are launched.
    prefill: attention::Path,
    graphs: Graphs,
    /// None: it has the whole base.
    ranks: Option<(Ranks, Gathered)>,
}

impl DeviceEngine {
    /// Loads the base and takes all memory that steps will need.
    ///
    /// # Errors
    /// [`Error::Option`] for a size out of range, [`Error::Products`] for a model whose sizes have no product with such weights, [`Error::Model`] and
    /// [`Error::TensorSize`] for unusable weights, [`Error::Device`] if the device has too little memory or fails.
    pub fn new(model: &BaseModel, options: DeviceOptions) -> Result<Self, Error> {
        Self::load(model, options, None)
    }

    /// The whole base, or a rank's part of it.
    fn load(model: &BaseModel, options: DeviceOptions, ranks: Option<Ranks>) -> Result<Self, Error> {
        let base = dora::Base { weights: model.weights.clone(), precision: options.precision, format: options.weights };
        let shard = ranks.as_ref().map_or(Shard::WHOLE, |ranks| ranks.shard);
        let weights = |shape: &Shape, options: &DeviceOptions, stream: &Stream| {
            Weights::load(model, shape, shard, options, stream)
        };
        let mut engine = Self::build(&model.config, options, ranks, weights)?;
        engine.base = Some(base);
        Ok(engine)
    }

    /// An engine for these sizes whose every weight is the same small number: for measurements, where no model is at hand.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_meaning(config: &ModelConfig, options: DeviceOptions) -> Result<Self, Error> {
        let weights = |shape: &Shape, options: &DeviceOptions, stream: &Stream| {
            Weights::without_meaning(config, shape, options, stream)
        };
        Self::build(config, options, None, weights)
    }

    fn build(
        config: &ModelConfig,
        options: DeviceOptions,
        ranks: Option<Ranks>,
        weights: impl FnOnce(&Shape, &DeviceOptions, &Stream) -> Result<Weights, Error>,
    ) -> Result<Self, Error> {
        let shard = ranks.as_ref().map_or(Shard::WHOLE, |ranks| ranks.shard);
        let shape = Arc::new(shard.shape(&Shape::of(config), options.weights)?);
        let attention = options::check(&shape, &options)?;
        let (device, precision) = (&options.device, options.precision);
        let stream = device.stream("compute")?;
        // Whatever is dropped on the way out gives its memory back at once: nothing may be on its way to it.
        let idle = Idle(&stream);
        stream.prepare_products()?;
        let weights = weights(&shape, &options, &stream)?;
        let products = products::Workspace::new(device, &weights, [options.rows_max, options.logits_rows_max])?;
        let room = options.room();
        let buffers = Buffers::new(device, &shape, precision, &room)?;
        buffers.clear(&stream)?;
        let largest = Layout::new(room.caps(&shape)).bytes;
        let (tables, staging) = (device.allocate(largest)?, device.allocate_pinned(largest)?);
        let sampling = Memory::new(device, shape.vocabulary, shape.context, options.sequences_max)?;
        let host = Host::new(device, options.logits_rows_max, shape.vocabulary, &sampling)?;
        let with_room = |ranks: Ranks| {
            let gathered = ranks.gathered(device, options.logits_rows_max, shape.vocabulary)?;
            Ok::<_, Error>((ranks, gathered))
        };
        let ranks = ranks.map(with_room).transpose()?;
        let streamed = Streamed::new(device, options.stream_bytes, shape.layers)?;
        // Last: it may take what is left.
        let element_bytes = options.kv.bytes(precision);
        let blocks = Pool::room(device, (&attention, shape.layers), options.blocks, element_bytes);
        let blocks = match &ranks {
            Some((ranks, _)) => ranks.agreement.least(blocks)?,
            None => blocks,
        };
        let pool = Pool::new(device, &stream, (&attention, shape.layers), blocks, element_bytes)?;
        let slots = Slots::new(device, pool.blocks(), streamed)?;
        drop(idle);
        Ok(Self {
            stream,
            weights,
            base: None,
            products,
            pool,
            slots,
            owners: BlockOwners::default(),
            buffers,
            tables,
            staging,
            bytes: Vec::new(),
            sampling,
            host,
            attention,
            prefill: attention::Path::of(attention::Choice {
                activations: options.precision.format(),
                batch_invariant: options.batch_invariant,
            }),
            graphs: Graphs::default(),
            ranks,
            shape,
            options,
        })
    }

    /// What makes adapters ready for this engine, on any thread.
    #[must_use]
    pub fn preparer(&self) -> Preparer {
        Preparer { packing: self.packing(Arc::clone(&self.shape)), part: self.part() }
    }

    /// What this engine has of adapters, whose base is `whole`.
    fn packing(&self, whole: Arc<Shape>) -> Packing {
        Packing {
            whole,
            format: self.options.adapters,
            rank_max: self.options.rank_max,
            block_bytes: self.pool.block_bytes(),
            blocks_max: self.options.adapter_blocks_max.min(self.pool.blocks()),
            base: self.base.clone(),
        }
    }

    fn part(&self) -> Part {
        let shard = self.ranks.as_ref().map_or(Shard::WHOLE, |(ranks, _)| ranks.shard);
        Part { shape: Arc::clone(&self.shape), shard, device: self.options.device.clone() }
    }

    /// Begins to copy a prepared adapter into these blocks of the pool, those that [`PreparedAdapter::runs`] asks for, run after run. They are the adapter's
    /// until it is removed; a step that uses it meanwhile waits layer by layer.
    ///
    /// # Errors
    /// [`Error::AdapterBlocks`] for other blocks than it needs, or blocks of another adapter: nothing has changed then. [`Error::Device`].
    pub fn install(&mut self, adapter: PreparedAdapter, blocks: &[u32]) -> Result<SlotId, Error> {
        self.slots.install(adapter, &self.pool, blocks)
    }

    /// Lets a prepared adapter run without blocks, until it is removed: each step that uses it copies it from pinned memory, layer by layer, beside the layers
    /// that are computed, and is launched instead of replayed. None: together with those that do so already it is more than
    /// [`DeviceOptions::stream_bytes`], or its layers find no room.
    pub fn stream(&mut self, adapter: PreparedAdapter) -> Option<SlotId> {
        self.slots.stream(adapter)
    }

    /// Blocks for an adapter, the last ones of the pool that no other adapter has, whoever's keys they hold: for measurements, where nobody else gives them
    /// out. None: there are no more.
    #[must_use]
    pub fn find_blocks(&self, adapter: &PreparedAdapter) -> Option<Vec<u32>> {
        self.slots.find(adapter.runs())
    }

    /// Empties a slot and gives back what was in it, as ready for a slot as before; none if it holds no such adapter.
    pub fn remove(&mut self, slot: SlotId) -> Option<PreparedAdapter> {
        self.slots.remove(slot)
    }

    /// The digest in a slot's entry.
    #[must_use]
    pub fn slot_digest(&self, slot: SlotId) -> Option<Digest> {
        self.slots.get(slot).map(Resident::digest)
    }

    /// Blocks in the pool.
    #[must_use]
    pub fn kv_blocks(&self) -> usize {
        self.pool.blocks()
    }

    /// Ids in the vocabulary: the width of a row of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// Bytes of weights that a step reads, whatever its batch.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Device memory beside weights and activations that products with codes take; zero for floats.
    #[must_use]
    pub fn product_workspace_bytes(&self) -> u64 {
        self.products.bytes() as u64
    }

    /// Device memory of the pool.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.pool.memory().bytes() as u64
    }

    /// Graphs captured so far.
    #[must_use]
    pub fn graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Runs the largest prompts and decoding steps of each size once, on pages that nobody has yet: kernels are loaded, products planned, the graphs of
    /// short contexts made, of the base alone and, with no adapter in their tables, of steps with adapters. What longer contexts, DoRA and prompts with
    /// adapters need of that comes when they do. Cost: that many steps.
    ///
    /// # Errors
    /// [`Error::Device`]: too little is left beside the pool, or the device fails.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        let block = self.options.block_size;
        let longest = self.shape.context.min(self.pool.blocks() * block);
        let rows = self.options.rows_max.min(self.pool.blocks() * block);
        let sequences = self.options.sequences_max;
        let prompt = |tokens: usize, first: usize| SeqStep {
            tokens: vec![0; tokens],
            start: 0,
            blocks: (first..first + tokens.div_ceil(block)).map(|block| block as u32).collect(),
            slot: None,
            logits: LogitsWanted::Last,
            draw: None,
        };
        // As few prompts as make a full step.
        let mut seqs = Vec::new();
        let (mut left, mut first) = (rows, 0);
        while left > 0 && seqs.len() < sequences && first < self.pool.blocks() {
            let tokens = left.min(longest).min((self.pool.blocks() - first) * block);
            seqs.push(prompt(tokens, first));
            first += tokens.div_ceil(block);
            left -= tokens;
        }
        let mut output = StepOutput::default();
        self.step_into(&StepBatch { seqs }, &mut output)?;
        let most = sequences.min(self.pool.blocks()).min(rows);
        let paths = self.warm_paths();
        let mut rows = 1;
        loop {
            let batch = StepBatch { seqs: (0..rows).map(|first| prompt(1, first)).collect() };
            self.step_into(&batch, &mut output)?;
            for &path in &paths {
                self.run(&batch, &mut output, Some(path))?;
            }
            if rows == most {
                return Ok(());
            }
            rows = (2 * rows).min(most);
        }
    }

    /// How adapters are launched within graphs: single rows of each, and several of one.
    fn warm_paths(&self) -> Vec<Path> {
        let (precision, adapters) = (self.options.precision.format(), self.options.adapters);
        let has_tensor_cores =
            !self.options.batch_invariant && table::kernel(Path::Prefill, precision, adapters).is_ok();
        let several = if has_tensor_cores { Path::Prefill } else { Path::Mixed };
        if self.options.graphs { vec![Path::Decode, several] } else { Vec::new() }
    }

    /// One pass of the base over all rows of the batch.
    ///
    /// # Errors
    /// [`Error::Sequence`] names the one sequence that cannot be computed; nothing was written. [`Error::Batch`] if it is larger than the engine
    /// was made for. [`Error::Device`] if the device fails.
    pub fn step(&mut self, batch: &StepBatch) -> Result<StepOutput, Error> {
        let mut output = StepOutput::default();
        self.step_into(batch, &mut output)?;
        Ok(output)
    }

    /// [`Self::step`] into an output whose memory is used again. After an error the output is empty.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_into(&mut self, batch: &StepBatch, output: &mut StepOutput) -> Result<(), Error> {
        self.run(batch, output, None)
    }

    /// A step; `warm`: how adapters are launched in a decoding step that has none.
    fn run(&mut self, batch: &StepBatch, output: &mut StepOutput, warm: Option<Path>) -> Result<(), Error> {
        let start = Instant::now();
        let mut recycled = std::mem::take(&mut output.seqs);
        if batch.seqs.is_empty() {
            return Ok(());
        }
        let mut is_there = true;
        for event in self.slots.leaving() {
            self.stream.wait(event)?;
        }
        for slot in batch.seqs.iter().filter_map(|seq| seq.slot) {
            is_there &= self.slots.is_there(slot)?;
        }
        if let Some((ranks, _)) = &self.ranks {
            // Copies end when they end, on each device. All else that a step depends on is the same on all ranks.
            is_there = ranks.all(is_there)?;
        }
        let limits = Limits {
            shape: &self.shape,
            slots: self.slots.table(),
            kv_blocks: self.pool.blocks(),
            block_size: self.options.block_size,
            taken: self.slots.taken(),
        };
        let plan = Plan::new(&batch.seqs, &limits, &mut self.owners)?;
        for (what, value, limit) in
            [("rows", plan.rows(), self.options.rows_max), ("sequences", plan.seqs.len(), self.options.sequences_max)]
        {
            if value > limit {
                return Err(Error::Batch { what, value, limit });
            }
        }
        let (prefill, blocks) = (self.prefill, self.pool.blocks());
        let attention = attention::Step::new(&self.attention, prefill, plan.rows(), blocks, &plan.seqs)?;
        let choice = Choice {
            activations: self.options.precision.format(),
            batch_invariant: self.options.batch_invariant,
            rank_max: 0,
        };
        let kv_bytes = self.options.kv.bytes(self.options.precision);
        let prefill_work = attention.prefill_work(&self.attention, [self.options.precision.bytes(), kv_bytes]);
        let tables = StepTables::new(&plan, attention, self.shape.layers, choice);
        let draws = Draws::new(&plan, &batch.seqs, &self.sampling, self.options.logits_rows_max)?;
        let exact = tables.caps(&plan, &draws);
        let decodes = exact.prefill == 0 && exact.wanted == exact.rows && exact.pieces == 1;
        let bucket = (self.options.graphs && decodes && is_there).then(|| Bucket {
            rows: Self::bucket_rows(&self.options, exact.rows),
            table_stride: exact.table_stride.next_power_of_two().min(self.options.room().table_stride(&self.shape)),
            adapters: tables.path().or(warm),
            has_dora: tables.has_dora(),
        });
        let (layout, lora, pieces) = match bucket {
            Some(bucket) => {
                let caps = self.bucket_caps(bucket);
                let launch = bucket.adapters.map(|path| LoraLaunch {
                    path,
                    items: bucket.rows,
                    rank_max: self.options.rank_max.min(path.rank_max()),
                    scaled: caps.scaled,
                });
                let piece = Piece { rows: 0..caps.wanted, draws: 0..caps.draws };
                (Layout::new(caps), vec![launch; caps.sites], vec![piece])
            }
            None => (Layout::new(exact), lora_launches(&tables.sites), draws.pieces.clone()),
        };
        tables.write(&plan, &draws, &layout, &mut self.bytes);

        // What fails half way leaves nothing on its way: the next step writes where this one reads.
        let idle = Idle(&self.stream);
        self.staging.write(0, &self.bytes)?;
        self.stream.upload(&self.staging, 0..layout.bytes, self.tables.part(0..layout.bytes)?)?;
        draws.upload(&self.sampling, &self.stream)?;
        let mut step = Step {
            shape: &self.shape,
            precision: self.options.precision,
            device: &self.options.device,
            stream: &self.stream,
            weights: &self.weights,
            products: &self.products,
            pool: &self.pool,
            kv_format: self.options.kv,
            adapters: self.options.adapters,
            buffers: &self.buffers,
            tables: &self.tables,
            layout,
            attention: self.attention,
            prefill: (prefill, prefill_work),
            positions: layout.caps.table_stride * self.options.block_size,
            lora,
            coming: coming(plan.runs.iter().map(|run| run.adapter)),
            adapter_memory: std::iter::once(self.pool.memory().all().reads().in_parts())
                .chain(self.slots.streamed().map(Streamed::reads))
                .collect(),
            streaming: Streaming::of(self.slots.streamed(), plan.runs.iter().map(|run| run.adapter)),
            sampling: &self.sampling,
            pieces,
            together: self.ranks.as_ref().map(|(ranks, gathered)| Together { ranks, gathered }),
        };
        match bucket.and_then(|bucket| self.graphs.use_of(&bucket)) {
            Some(graph) => graph.replay(&self.stream)?,
            None => {
                step.streaming.iter().try_for_each(Streaming::begin)?;
                forward(&mut step, self.shape.layers, exact.wanted > 0)?;
            }
        }
        recycled.resize_with(batch.seqs.len(), SeqOutput::default);
        for (computed, &at) in plan.order.iter().enumerate() {
            let out = &mut recycled[at];
            // The entry, not the request: this is the digest whose matrices the rows went through.
            out.adapter = plan.adapters[computed].map(Resident::digest);
            out.logits.clear();
            out.drawn = None;
        }
        let answers = Answers {
            host: &self.host,
            stream: &self.stream,
            buffers: &self.buffers,
            memory: &self.sampling,
            plan: &plan,
            seqs: &batch.seqs,
            draws: &draws,
        };
        for (number, piece) in draws.pieces.iter().enumerate() {
            if number > 0 {
                step.answer(&Activations { rows: exact.wanted, is_part: exact.wanted < exact.rows }, number)?;
            }
            if step.answers() {
                answers.download(piece)?;
                self.stream.synchronize()?;
                answers.read(piece, &mut recycled)?;
            }
        }
        if draws.pieces.is_empty() || !step.answers() {
            self.stream.synchronize()?;
        }
        drop(idle);
        if let Some(bucket) = bucket
            && self.graphs.lack(&bucket)
        {
            // Only now: kernels are loaded and products are planned by a run, which a capture may not do.
            let captured = capture(&self.stream, &mut step, self.shape.layers);
            let is_by_all = match &self.ranks {
                Some((ranks, _)) => ranks.all(captured.is_ok())?,
                None => true,
            };
            match captured {
                Ok(graph) if is_by_all => self.graphs.put(bucket, graph),
                Ok(_) => self.graphs.refuse(bucket),
                Err(error) => {
                    tracing::warn!(%error, ?bucket, "a step cannot be captured; it stays launches");
                    self.graphs.refuse(bucket);
                }
            }
        }

        output.seqs = recycled;
        output.times = crate::StepTimes { base: start.elapsed(), ..crate::StepTimes::default() };
        Ok(())
    }

    /// The next power of two, up to the largest batch: every row of it, the padding too, leaves logits.
    fn bucket_rows(options: &DeviceOptions, rows: usize) -> usize {
        let most = options.sequences_max.min(options.logits_rows_max);
        rows.next_power_of_two().min(most).max(rows)
    }

    fn bucket_caps(&self, bucket: Bucket) -> Caps {
        let rows = bucket.rows;
        let (items, targets, sites) = match bucket.adapters {
            Some(_) => (rows, rows * TARGETS_MAX, (self.shape.layers + 1) * SITES),
            None => (0, 0, 0),
        };
        Caps {
            rows,
            wanted: rows,
            prefill: 0,
            decode: rows,
            sequences: rows,
            table_stride: bucket.table_stride,
            items,
            targets,
            scaled: if bucket.has_dora { columns::items_max(rows, rows, TARGETS_MAX) } else { 0 },
            sites,
            draws: rows,
            starts: rows,
            pieces: 1,
        }
    }
}

/// Waits for a stream when it goes.
struct Idle<'a>(&'a Stream);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        // An error comes again with the next call.
        let _ = self.0.synchronize();
    }
}

impl Drop for DeviceEngine {
    fn drop(&mut self) {
        // Its memory may be another engine's next.
        self.slots.wait();
        drop(Idle(&self.stream));
    }
}

/// A graph of a decoding step.
fn capture(stream: &Stream, step: &mut Step<'_>, layers: usize) -> Result<Graph, Error> {
    let mut failed = None;
    let captured = stream.capture(|| match forward(step, layers, true) {
        Err(Error::Device(error)) => Err(error),
        Err(other) => {
            failed = Some(other);
            Ok(())
        }
        Ok(()) => Ok(()),
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(captured?),
    }
}

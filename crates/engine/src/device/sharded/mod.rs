//! One engine over several devices of a machine: each has a part of every layer, of every adapter and of all keys and values.
//!
//! A rank is a [`DeviceEngine`] that has its part of the base (`shard`), on a thread of its own (`threads`). All do the same at the same time: they
//! check the same batch against the same tables, launch the same kernels over other weights, and add up their outputs after o and down of each
//! layer (`ranks`). What could differ from device to device they agree on first (`agreement`): how many KV blocks there are, whether an adapter has
//! arrived, whether a graph could be made. The first rank chooses tokens and returns logits.

mod adapter;
mod threads;

pub use adapter::{ShardedAdapter, ShardedPreparer};

use super::adapter::{Packing, Part, PreparedAdapter};
use super::agreement::Agreement;
use super::ranks::Ranks;
use super::shard::Shard;
use super::{DeviceEngine, DeviceOptions};
use crate::shape::Shape;
use crate::{Error, SlotId, StepBatch, StepOutput};
use std::fmt::Debug;
use std::sync::Arc;
use std::thread;
use threads::{Ending, Threads, is_echo};
use weft_base_model::BaseModel;
use weft_cuda_device::Group;
use weft_types::Digest;

/// One base model with its adapter slots and KV memory, over several devices. Owned by one step loop.
///
/// A device that fails ends all of it: the call that saw it, and every later one, is an error that is fatal ([`Error::is_fatal`]), and no rank waits
/// for another any more. So does a device whose memory runs out within a step.
pub struct ShardedEngine {
    threads: Threads,
    packing: Packing,
    parts: Vec<Part>,
    kv_blocks: usize,
    vocabulary: usize,
    weight_bytes: u64,
    pool_bytes: u64,
}

impl ShardedEngine {
    /// Loads each device's part of the base and takes all memory that steps will need. All have the same options, on `groups[rank].device()`
    /// instead of `options.device`; [`super::PoolBlocks::UpTo`] gives each as many blocks as the fullest has room for. Cost: every device's thread reads the whole model, one fused f32 matrix at a time.
    ///
    /// # Errors
    /// As [`DeviceEngine::new`], of whichever rank comes first; [`Error::Shard`] for a base that so many devices cannot share evenly;
    /// [`Error::Option`] for groups that are not all ranks in order, or devices of different capabilities.
    pub fn new(model: &BaseModel, options: &DeviceOptions, groups: Vec<Group>) -> Result<Self, Error> {
        check(&groups)?;
        let agreement = Arc::new(Agreement::new(groups.len()));
        let load = |group: &Group| {
            let options = DeviceOptions { device: group.device().clone(), ..options.clone() };
            let shard = Shard { rank: group.rank(), ranks: group.ranks() };
            let ranks = Ranks { shard, group: group.clone(), agreement: Arc::clone(&agreement) };
            DeviceEngine::load(model, options, Some(ranks))
        };
        let engines = on_each(&groups, &agreement, &load)?;
        let whole = Arc::new(Shape::of(&model.config));
        let first = &engines[0];
        let (kv_blocks, vocabulary) = (first.kv_blocks(), first.vocabulary());
        Ok(Self {
            packing: first.packing(whole),
            parts: engines.iter().map(DeviceEngine::part).collect(),
            kv_blocks,
            vocabulary,
            weight_bytes: engines.iter().map(DeviceEngine::weight_bytes).sum(),
            pool_bytes: engines.iter().map(DeviceEngine::pool_bytes).sum(),
            threads: Threads::start(engines, Ending { groups, agreement }),
        })
    }

    /// How many devices.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.parts.len()
    }

    /// What makes adapters ready for this engine, on any thread.
    #[must_use]
    pub fn preparer(&self) -> ShardedPreparer {
        ShardedPreparer { packing: self.packing.clone(), parts: self.parts.clone() }
    }

    /// Begins to copy each device's part of a prepared adapter into these blocks of its pool, on all devices or on none: as [`DeviceEngine::install`].
    ///
    /// # Errors
    /// [`Error::AdapterBlocks`] as there: parts are equally large, and all devices have the same adapters in the same blocks.
    /// [`Error::OtherKind`] if it was prepared for another number of devices. [`Error::Device`].
    pub fn install(&mut self, adapter: &ShardedAdapter, blocks: &[u32]) -> Result<SlotId, Error> {
        self.with_parts(adapter, |part| {
            let blocks = blocks.to_vec();
            move |engine| engine.install(part, &blocks)
        })
    }

    /// Lets a prepared adapter run without blocks, as [`DeviceEngine::stream`]: on all devices or on none. None: it finds no room; parts are equally large.
    ///
    /// # Errors
    /// [`Error::OtherKind`] if it was prepared for another number of devices. [`Error::Device`].
    pub fn stream(&mut self, adapter: &ShardedAdapter) -> Result<Option<SlotId>, Error> {
        self.with_parts(adapter, |part| move |engine| Ok(engine.stream(part)))
    }

    /// Has each rank do this with its part, and returns what all of them say.
    fn with_parts<T, J>(&mut self, adapter: &ShardedAdapter, job_of: impl Fn(PreparedAdapter) -> J) -> Result<T, Error>
    where
        T: Copy + PartialEq + Debug + Send + 'static,
        J: FnOnce(&mut DeviceEngine) -> Result<T, Error> + Send + 'static,
    {
        if adapter.0.len() != self.ranks() {
            return Err(Error::OtherKind);
        }
        let said = self.threads.on_all(|rank| job_of(adapter.0[rank].clone()))?;
        debug_assert!(said.iter().all(|one| *one == said[0]), "slots and rooms are filled and emptied alike: {said:?}");
        Ok(said[0])
    }

    /// Empties a slot on all devices and gives back what was in it, as ready for a slot as before; none if it holds no such adapter.
    pub fn remove(&mut self, slot: SlotId) -> Option<ShardedAdapter> {
        let parts = self.threads.on_all(|_| move |engine| Ok(engine.remove(slot))).ok()?;
        Some(ShardedAdapter(parts.into_iter().collect::<Option<_>>()?))
    }

    /// The digest in a slot's entry.
    #[must_use]
    pub fn slot_digest(&self, slot: SlotId) -> Option<Digest> {
        self.threads.ask_first(move |engine| engine.slot_digest(slot)).flatten()
    }

    /// Blocks for an adapter, as [`DeviceEngine::find_blocks`].
    #[must_use]
    pub fn find_blocks(&self, adapter: &ShardedAdapter) -> Option<Vec<u32>> {
        let first = adapter.0[0].clone();
        self.threads.ask_first(move |engine| engine.find_blocks(&first)).flatten()
    }

    /// Blocks in the pool: each has its heads' part on every device.
    #[must_use]
    pub fn kv_blocks(&self) -> usize {
        self.kv_blocks
    }

    /// Ids in the vocabulary: the width of a row of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Bytes of weights that a step reads, whatever its batch, on all devices together.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Memory of the pools of all devices together.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.pool_bytes
    }

    /// Graphs captured so far, by each device.
    #[must_use]
    pub fn graphs(&self) -> usize {
        self.threads.ask_first(|engine| engine.graphs()).unwrap_or(0)
    }

    /// As [`DeviceEngine::warm_up`], on all devices; besides, ranks connect.
    ///
    /// # Errors
    /// [`Error::Device`]: too little is left beside a pool, or a device fails.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        self.threads.on_all(|_| |engine: &mut DeviceEngine| engine.warm_up()).map(drop)
    }

    /// One pass of the base over all rows of the batch.
    ///
    /// # Errors
    /// As [`Self::step_into`].
    pub fn step(&mut self, batch: &StepBatch) -> Result<StepOutput, Error> {
        let mut output = StepOutput::default();
        self.step_into(batch, &mut output)?;
        Ok(output)
    }

    /// [`Self::step`] into an output whose memory is used again. After an error the output is empty. Cost beside the step: a copy of the batch, and
    /// a message to each thread and back.
    ///
    /// # Errors
    /// [`Error::Sequence`] names the one sequence that cannot be computed, [`Error::Batch`] says what is too large: nothing was written on any device,
    /// and another batch can be run. [`Error::Device`] if a device fails.
    pub fn step_into(&mut self, batch: &StepBatch, output: &mut StepOutput) -> Result<(), Error> {
        let batch = Arc::new(batch.clone());
        let mut first = Some(std::mem::take(output));
        let outputs = self.threads.on_all(|_| {
            let batch = Arc::clone(&batch);
            let mut output = first.take().unwrap_or_default();
            move |engine| engine.step_into(&batch, &mut output).map(|()| output)
        })?;
        *output = outputs.into_iter().next().expect("there is a first rank");
        Ok(())
    }
}

/// Whether these are all ranks, in order, on devices that take the same kernels.
fn check(groups: &[Group]) -> Result<(), Error> {
    let capability = |group: &Group| group.device().properties().capability;
    for (rank, group) in groups.iter().enumerate() {
        let (major, minor) = capability(group);
        let number = (10 * major + minor) as usize;
        for (option, value, is_so, allowed) in [
            ("rank", group.rank(), group.rank() == rank, "its place among the groups"),
            ("ranks", group.ranks(), group.ranks() == groups.len(), "as many as there are groups"),
            ("capability", number, capability(group) == capability(&groups[0]), "that of the first device"),
        ] {
            if !is_so {
                return Err(Error::Option { option, value, allowed });
            }
        }
    }
    if groups.is_empty() { Err(Error::Option { option: "ranks", value: 0, allowed: "1 or more" }) } else { Ok(()) }
}

/// Loads all ranks at once, each in a thread. If one fails none waits for it, and its error is the one to tell.
fn on_each(
    groups: &[Group],
    agreement: &Agreement,
    load: &(impl Fn(&Group) -> Result<DeviceEngine, Error> + Sync),
) -> Result<Vec<DeviceEngine>, Error> {
    let load = |group| {
        let ends = EndsAgreement(agreement);
        let loaded = load(group)?;
        std::mem::forget(ends);
        Ok(loaded)
    };
    let load = &load;
    let results: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = groups.iter().map(|group| scope.spawn(move || load(group))).collect();
        running.into_iter().map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let (mut engines, mut errors): (_, Vec<Error>) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(engine) => engines.push(engine),
            Err(error) => errors.push(error),
        }
    }
    // A cause comes before its echoes on other ranks.
    errors.sort_by_key(is_echo);
    errors.into_iter().next().map_or(Ok(engines), Err)
}

/// Ends it when it is dropped, by an error or a panic.
struct EndsAgreement<'a>(&'a Agreement);

impl Drop for EndsAgreement<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

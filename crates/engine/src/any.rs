//! An engine of either kind, as a step loop uses it.

use crate::device::{self, DeviceEngine, ShardedEngine};
use crate::{Error, ProcessorEngine, SlotId, StepBatch, StepOutput, adapter};
use weft_types::Digest;

/// One base model with its adapter slots and KV memory, on processors or on devices. Owned by one step loop.
pub enum Engine {
    /// In main memory.
    Processor(Box<ProcessorEngine>),
    /// In a device's memory.
    Device(Box<DeviceEngine>),
    /// A part in the memory of each of several devices.
    Sharded(Box<ShardedEngine>),
}

/// A packed adapter, ready to be put into a slot of the kind of engine that it was prepared for.
pub enum PreparedAdapter {
    /// Is what a slot holds.
    Processor(adapter::PreparedAdapter),
    /// In pinned memory; a slot holds a copy.
    Device(device::PreparedAdapter),
    /// The same in parts.
    Sharded(device::ShardedAdapter),
}

/// Packs adapters for one engine, on any thread, beside the step loop. Cheap to clone.
#[derive(Clone)]
pub enum Preparer {
    /// See [`adapter::Preparer`].
    Processor(adapter::Preparer),
    /// See [`device::Preparer`].
    Device(device::Preparer),
    /// See [`device::ShardedPreparer`].
    Sharded(device::ShardedPreparer),
}

/// An adapter that got no slot.
pub struct NotInstalled {
    /// As ready for a slot as before.
    pub adapter: PreparedAdapter,
    /// Why.
    pub error: Error,
}

impl Engine {
    /// What makes adapters ready for this engine, on any thread.
    #[must_use]
    pub fn preparer(&self) -> Preparer {
        match self {
            Self::Processor(engine) => Preparer::Processor(engine.preparer()),
            Self::Device(engine) => Preparer::Device(engine.preparer()),
            Self::Sharded(engine) => Preparer::Sharded(engine.preparer()),
        }
    }

    /// Puts a prepared adapter into a slot. Never waits for it: on processors a pointer is moved, on devices copies into these blocks of their pools begin, which
    /// are the adapter's until it is removed: those that [`PreparedAdapter::runs`] asks for.
    ///
    /// # Errors
    /// On a device: [`Error::AdapterBlocks`] for other blocks than those, or blocks of another adapter; [`Error::Device`] if it fails.
    /// [`Error::OtherKind`] if it was prepared for the other kind of engine. The adapter comes back.
    pub fn install(&mut self, adapter: PreparedAdapter, blocks: &[u32]) -> Result<SlotId, Box<NotInstalled>> {
        match (self, adapter) {
            (Self::Processor(engine), PreparedAdapter::Processor(adapter)) => Ok(engine.install(adapter)),
            (Self::Device(engine), PreparedAdapter::Device(adapter)) => {
                let installed = engine.install(adapter.clone(), blocks);
                installed.map_err(|error| {
                    let adapter = PreparedAdapter::Device(adapter);
                    Box::new(NotInstalled { adapter, error })
                })
            }
            (Self::Sharded(engine), PreparedAdapter::Sharded(adapter)) => {
                let installed = engine.install(&adapter, blocks);
                installed.map_err(|error| {
                    let adapter = PreparedAdapter::Sharded(adapter);
                    Box::new(NotInstalled { adapter, error })
                })
            }
            (_, adapter) => Err(Box::new(NotInstalled { adapter, error: Error::OtherKind })),
        }
    }

    /// Lets a prepared adapter run without blocks, until it is removed: from pinned memory, layer by layer. The adapter stays in the caller's hands, too. None:
    /// there is no room for it, or, on processors, never any need.
    ///
    /// # Errors
    /// [`Error::OtherKind`] if it was prepared for the other kind of engine. On several devices [`Error::Device`] if one fails.
    pub fn stream(&mut self, adapter: &PreparedAdapter) -> Result<Option<SlotId>, Error> {
        match (self, adapter) {
            (Self::Processor(_), PreparedAdapter::Processor(_)) => Ok(None),
            (Self::Device(engine), PreparedAdapter::Device(adapter)) => Ok(engine.stream(adapter.clone())),
            (Self::Sharded(engine), PreparedAdapter::Sharded(adapter)) => engine.stream(adapter),
            _ => Err(Error::OtherKind),
        }
    }

    /// Empties a slot and gives back what was in it, as ready for a slot as before; none if it holds no such adapter.
    /// The id is never valid again. Never waits.
    pub fn remove(&mut self, slot: SlotId) -> Option<PreparedAdapter> {
        match self {
            Self::Processor(engine) => engine.remove(slot).map(PreparedAdapter::Processor),
            Self::Device(engine) => engine.remove(slot).map(PreparedAdapter::Device),
            Self::Sharded(engine) => engine.remove(slot).map(PreparedAdapter::Sharded),
        }
    }

    /// Whether a slot is the very memory that a prepared adapter lies in. True for processors: then bytes of prepared
    /// adapters and bytes of slots are the same bytes. A device has its own memory for slots.
    #[must_use]
    pub fn slots_are_main_memory(&self) -> bool {
        matches!(self, Self::Processor(_))
    }

    /// Whether a step had better choose tokens itself ([`crate::SeqStep::draw`]): on a device logits then stay where they are. On processors they are
    /// in reach, and choosing behind the step leaves helpers its time for masks of grammars.
    #[must_use]
    pub fn prefers_draws(&self) -> bool {
        matches!(self, Self::Device(_) | Self::Sharded(_))
    }

    /// Bytes of weights that a step reads, whatever its batch: all linears and the head, each once.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        match self {
            Self::Processor(engine) => engine.weight_bytes(),
            Self::Device(engine) => engine.weight_bytes(),
            Self::Sharded(engine) => engine.weight_bytes(),
        }
    }

    /// Blocks in the KV pool. On a device adapters lie in some of them.
    #[must_use]
    pub fn kv_blocks(&self) -> usize {
        match self {
            Self::Processor(engine) => engine.kv_blocks(),
            Self::Device(engine) => engine.kv_blocks(),
            Self::Sharded(engine) => engine.kv_blocks(),
        }
    }

    /// One pass of the base over all rows of the batch, into an output whose memory is used again. After an error the output is empty.
    ///
    /// # Errors
    /// [`Error::Sequence`] names the one sequence that cannot be computed; nothing was written, and the batch without it can be run.
    /// [`Error::is_fatal`] says whether another step has any use.
    pub fn step_into(&mut self, batch: &StepBatch, output: &mut StepOutput) -> Result<(), Error> {
        match self {
            Self::Processor(engine) => engine.step_into(batch, output),
            Self::Device(engine) => engine.step_into(batch, output),
            Self::Sharded(engine) => engine.step_into(batch, output),
        }
    }
}

impl PreparedAdapter {
    /// SHA-256 of the blob, taken from the private copy that was packed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self {
            Self::Processor(adapter) => adapter.digest(),
            Self::Device(adapter) => adapter.digest(),
            Self::Sharded(adapter) => adapter.digest(),
        }
    }

    /// What it takes in a slot, and where it lies now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Processor(adapter) => adapter.bytes(),
            Self::Device(adapter) => adapter.bytes(),
            Self::Sharded(adapter) => adapter.bytes(),
        }
    }

    /// Blocks of the engine's pool that it needs in a slot: the sum of these, each of them so many neighbours. None on processors.
    #[must_use]
    pub fn runs(&self) -> &[usize] {
        match self {
            Self::Processor(_) => &[],
            Self::Device(adapter) => adapter.runs(),
            Self::Sharded(adapter) => adapter.runs(),
        }
    }
}

impl Preparer {
    /// Packs a canonical blob. `blob` may be a mapped file that somebody overwrites meanwhile: it is read once, into
    /// private memory, and both the digest and the matrices come from that copy.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the blob cannot be parsed, [`Error::AdapterShape`] if it does not fit the base or its engine;
    /// [`Error::Device`] if there is no pinned memory left ([`Error::is_out_of_memory`]).
    pub fn prepare(&self, blob: &[u8]) -> Result<PreparedAdapter, Error> {
        match self {
            Self::Processor(preparer) => preparer.prepare(blob).map(PreparedAdapter::Processor),
            Self::Device(preparer) => preparer.prepare(blob).map(PreparedAdapter::Device),
            Self::Sharded(preparer) => preparer.prepare(blob).map(PreparedAdapter::Sharded),
        }
    }
}

//! Adapters in device memory: copied layer by layer on a stream of their own, so that the first layers of a step run while later ones are on
//! their way.

use super::adapter::PreparedAdapter;
use crate::plan::Entry;
use crate::shape::{SITES, Shape};
use crate::slots::SlotId;
use crate::{Error, slots};
use std::sync::Arc;
use weft_cuda_device::{Blocks, Buffer, Device, Event, Stream};
use weft_cuda_kernels::columns::Factors;
use weft_cuda_kernels::table::Target;
use weft_types::Digest;

/// Granularity of the memory for adapters.
pub(super) const BLOCK_BYTES: usize = 4 << 10;

/// What a slot holds.
pub(crate) struct Resident {
    pub(crate) prepared: PreparedAdapter,
    /// `[layers][SITES]`, with addresses on the device.
    pub(crate) targets: Vec<[Vec<Target>; SITES]>,
    /// Of DoRA.
    pub(crate) factors: Vec<[Vec<Factors>; SITES]>,
    /// Layers whose copy was enqueued; the step waits for each before it uses it. Empty: all are there.
    pub(crate) coming: Vec<Event>,
    first: usize,
    blocks: usize,
}

impl Entry for Resident {
    fn shape(&self) -> &Arc<Shape> {
        &self.prepared.0.shape
    }
}

impl Resident {
    pub(crate) fn digest(&self) -> Digest {
        self.prepared.digest()
    }
}

/// All slots, in one buffer: a captured graph names it whole, whatever lies in it.
pub(crate) struct Slots {
    device: Device,
    memory: Buffer,
    blocks: Blocks,
    copies: Stream,
    table: slots::Table<Resident>,
    /// Were removed while they were copied: their pinned memory is read until the last copy is over.
    leaving: Vec<(Event, PreparedAdapter)>,
}

impl Slots {
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Self, Error> {
        let memory = device.allocate(bytes)?;
        let blocks = Blocks::new(bytes / BLOCK_BYTES);
        Ok(Self {
            device: device.clone(),
            memory,
            blocks,
            copies: device.stream("copies")?,
            table: slots::Table::default(),
            leaving: Vec::new(),
        })
    }

    pub(crate) fn memory(&self) -> &Buffer {
        &self.memory
    }

    /// Begins to copy an adapter into a free place.
    pub(crate) fn install(&mut self, prepared: PreparedAdapter) -> Result<SlotId, Error> {
        let packed = &prepared.0;
        let blocks = packed.bytes.div_ceil(BLOCK_BYTES).max(1);
        let Some(first) = self.blocks.take(blocks) else {
            let [free, largest] = [self.blocks.free(), self.blocks.largest()].map(|blocks| blocks * BLOCK_BYTES);
            return Err(Error::SlotsFull { bytes: packed.bytes, free, largest });
        };
        match self.copy(&prepared, first) {
            Ok(coming) => {
                let at = self.memory.address() + (first * BLOCK_BYTES) as u64;
                let placed = |target: &Target| Target { a: target.a + at, b: target.b + at, ..*target };
                let scaled = |factors: &Factors| Factors { at: factors.at + at, ..*factors };
                let targets =
                    packed.targets.iter().map(|sites| sites.each_ref().map(|site| site.iter().map(placed).collect()));
                let factors =
                    packed.factors.iter().map(|sites| sites.each_ref().map(|site| site.iter().map(scaled).collect()));
                let (targets, factors) = (targets.collect(), factors.collect());
                Ok(self.table.install(Resident { prepared, targets, factors, coming, first, blocks }))
            }
            Err(error) => {
                self.blocks.give(first, blocks);
                Err(error)
            }
        }
    }

    fn copy(&self, prepared: &PreparedAdapter, first: usize) -> Result<Vec<Event>, Error> {
        let packed = &prepared.0;
        let at = first * BLOCK_BYTES;
        let mut coming = Vec::with_capacity(packed.layers.len());
        for layer in &packed.layers {
            if !layer.is_empty() {
                let to = self.memory.part(at + layer.start..at + layer.end)?;
                self.copies.upload(&packed.memory, layer.clone(), to)?;
            }
            let event = self.device.event()?;
            self.copies.record(&event)?;
            coming.push(event);
        }
        Ok(coming)
    }

    /// Forgets the events of copies that are over. True if the adapter is all there.
    pub(crate) fn is_there(&mut self, slot: SlotId) -> Result<bool, Error> {
        let Some(resident) = self.table.get_mut(slot) else { return Ok(true) };
        let is_there = match resident.coming.last() {
            Some(last) => last.is_done()?,
            None => true,
        };
        if is_there {
            resident.coming.clear();
        }
        Ok(is_there)
    }

    /// Empties a slot. Copies into it that are still on their way come before those of whoever gets its memory next: they are on one stream. No step
    /// reads there any more: the engine waits for each before it returns.
    pub(crate) fn remove(&mut self, slot: SlotId) -> Option<PreparedAdapter> {
        let mut resident = self.table.remove(slot)?;
        self.blocks.give(resident.first, resident.blocks);
        // Events that cannot be asked are kept, and wait for the end.
        self.leaving.retain(|(last, _)| !matches!(last.is_done(), Ok(true)));
        if let Some(last) = resident.coming.pop() {
            self.leaving.push((last, resident.prepared.clone()));
        }
        Some(resident.prepared)
    }

    /// Until no copy is on its way.
    pub(crate) fn wait(&self) {
        // An error comes again with the next call.
        let _ = self.copies.synchronize();
    }

    pub(crate) fn table(&self) -> &slots::Table<Resident> {
        &self.table
    }

    pub(crate) fn get(&self, slot: SlotId) -> Option<&Resident> {
        self.table.get(slot)
    }

    pub(crate) fn free_bytes(&self) -> usize {
        self.blocks.free() * BLOCK_BYTES
    }
}

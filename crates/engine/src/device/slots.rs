//! Adapters in device memory: copied layer by layer on a stream of their own, so that the first layers of a step run while later ones are on
//! their way.

use super::adapter::{Packed, PreparedAdapter};
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
    place: Place,
}

/// Where the layers of an adapter lie.
struct Place {
    /// First block and number of blocks of each layer that the adapter changes.
    runs: Vec<(usize, usize)>,
    /// Byte at which each layer begins.
    layers: Vec<usize>,
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

    /// Begins to copy an adapter into free memory, a run for each layer.
    pub(crate) fn install(&mut self, prepared: PreparedAdapter) -> Result<SlotId, Error> {
        let packed = &prepared.0;
        self.forget_copied();
        let Some(place) = self.take(packed) else {
            let [free, largest] = [self.blocks.free(), self.blocks.largest()].map(|blocks| blocks * BLOCK_BYTES);
            return Err(Error::SlotsFull { bytes: packed.bytes, free, largest });
        };
        match self.copy(&prepared, &place) {
            Ok(coming) => {
                let memory = self.memory.address();
                // Addresses in `packed` count from its beginning, not from the layer's.
                let moved = |layer: usize, from: u64| {
                    from - packed.layers[layer].start as u64 + memory + place.layers[layer] as u64
                };
                let targets = packed.targets.iter().enumerate().map(|(layer, sites)| {
                    let placed =
                        |target: &Target| Target { a: moved(layer, target.a), b: moved(layer, target.b), ..*target };
                    sites.each_ref().map(|site| site.iter().map(placed).collect())
                });
                let factors = packed.factors.iter().enumerate().map(|(layer, sites)| {
                    let placed = |factors: &Factors| Factors { at: moved(layer, factors.at), ..*factors };
                    sites.each_ref().map(|site| site.iter().map(placed).collect())
                });
                let (targets, factors) = (targets.collect(), factors.collect());
                Ok(self.table.install(Resident { prepared, targets, factors, coming, place }))
            }
            Err(error) => {
                self.give(&place);
                Err(error)
            }
        }
    }

    fn take(&mut self, packed: &Packed) -> Option<Place> {
        let mut place = Place { runs: Vec::new(), layers: Vec::with_capacity(packed.layers.len()) };
        for layer in &packed.layers {
            let count = layer.len().div_ceil(BLOCK_BYTES);
            let first = if count == 0 { Some(0) } else { self.blocks.take(count) };
            let Some(first) = first else {
                self.give(&place);
                return None;
            };
            place.layers.push(first * BLOCK_BYTES);
            if count > 0 {
                place.runs.push((first, count));
            }
        }
        Some(place)
    }

    fn give(&mut self, place: &Place) {
        for &(first, count) in &place.runs {
            self.blocks.give(first, count);
        }
    }

    fn copy(&self, prepared: &PreparedAdapter, place: &Place) -> Result<Vec<Event>, Error> {
        let packed = &prepared.0;
        let mut coming = Vec::with_capacity(packed.layers.len());
        for ((layer, memory), &at) in packed.layers.iter().zip(&packed.memory).zip(&place.layers) {
            if let Some(memory) = memory {
                let to = self.memory.part(at..at + layer.len())?;
                self.copies.upload(memory, 0..layer.len(), to)?;
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
        self.give(&resident.place);
        self.forget_copied();
        if let Some(last) = resident.coming.pop() {
            self.leaving.push((last, resident.prepared.clone()));
        }
        Some(resident.prepared)
    }

    fn forget_copied(&mut self) {
        // Events that cannot be asked are kept, and wait for the end.
        self.leaving.retain(|(last, _)| !matches!(last.is_done(), Ok(true)));
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

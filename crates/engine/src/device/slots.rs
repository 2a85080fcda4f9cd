//! Adapters in device memory: copied layer by layer on a stream of their own, so that the first layers of a step run while later ones are on
//! their way.

use super::adapter::{Packed, PreparedAdapter};
use super::pool::Pool;
use super::streamed::{Room, Streamed};
use crate::plan::Entry;
use crate::shape::{SITES, Shape};
use crate::slots::SlotId;
use crate::{Error, slots};
use std::sync::Arc;
use weft_cuda_device::{Device, Event, Stream};
use weft_cuda_kernels::columns::Factors;
use weft_cuda_kernels::table::Target;
use weft_types::Digest;

/// What a slot holds.
pub(crate) struct Resident {
    pub(crate) prepared: PreparedAdapter,
    /// `[layers][SITES]`, with addresses on the device.
    pub(crate) targets: Vec<[Vec<Target>; SITES]>,
    /// Of DoRA.
    pub(crate) factors: Vec<[Vec<Factors>; SITES]>,
    /// Layers whose copy was enqueued; the step waits for each before it uses it. Empty: all are there.
    pub(crate) coming: Vec<Event>,
    /// Of the pool, run after run; none if it is streamed.
    blocks: Vec<u32>,
    /// Where its layers go one after the other, step by step, if it has no blocks.
    pub(crate) streamed: Option<Room>,
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

/// All slots: which adapters lie in which blocks of the pool.
pub(crate) struct Slots {
    device: Device,
    copies: Stream,
    table: slots::Table<Resident>,
    /// By block of the pool: whether an adapter lies there.
    taken: Vec<bool>,
    /// Were removed while they were copied: their pinned memory is read, and their blocks are written, until the last copy is over.
    leaving: Vec<(Event, PreparedAdapter)>,
    /// For adapters without blocks; none: there are no such.
    streamed: Option<Streamed>,
}

impl Slots {
    pub(crate) fn new(device: &Device, blocks: usize, streamed: Option<Streamed>) -> Result<Self, Error> {
        Ok(Self {
            device: device.clone(),
            copies: device.stream("copies")?,
            table: slots::Table::default(),
            taken: vec![false; blocks],
            leaving: Vec::new(),
            streamed,
        })
    }

    /// An adapter without blocks; none: there is no room for its layers.
    pub(crate) fn stream(&mut self, prepared: PreparedAdapter) -> Option<SlotId> {
        let streamed = self.streamed.as_mut()?;
        let room = streamed.take(&prepared)?;
        let packed = &prepared.0;
        let mut addresses = vec![0; packed.pieces.len()];
        for (layer, pieces) in packed.layers.iter().enumerate() {
            let start = packed.layer_bytes(pieces).start;
            for piece in pieces.clone() {
                addresses[piece] = streamed.address(&room, layer, packed.pieces[piece].start - start);
            }
        }
        let (targets, factors) = placed(packed, |piece| addresses[piece as usize]);
        let (coming, blocks) = (Vec::new(), Vec::new());
        Some(self.table.install(Resident { prepared, targets, factors, coming, blocks, streamed: Some(room) }))
    }

    pub(crate) fn streamed(&self) -> Option<&Streamed> {
        self.streamed.as_ref()
    }

    /// Begins to copy an adapter into these blocks: as many as it needs, neighbours within each of its runs.
    pub(crate) fn install(&mut self, prepared: PreparedAdapter, pool: &Pool, blocks: &[u32]) -> Result<SlotId, Error> {
        let packed = &prepared.0;
        self.forget_copied();
        let runs = self.runs(packed, blocks)?;
        // Bytes of the pool at which pieces begin.
        let begins: Vec<usize> =
            packed.places.places.iter().map(|place| runs[place.run] * pool.block_bytes() + place.at).collect();
        let coming = self.copy(&prepared, pool, &begins)?;
        let address = |piece: u64| pool.memory().address() + begins[piece as usize] as u64;
        let (targets, factors) = placed(packed, address);
        blocks.iter().for_each(|&block| self.taken[block as usize] = true);
        let blocks = blocks.to_vec();
        Ok(self.table.install(Resident { prepared, targets, factors, coming, blocks, streamed: None }))
    }

    /// First block of each run.
    fn runs(&self, packed: &Packed, blocks: &[u32]) -> Result<Vec<usize>, Error> {
        let wrong = |reason: String| Err(Error::AdapterBlocks { reason });
        let (given, needed) = (blocks.len(), packed.places.blocks());
        if given != needed {
            return wrong(format!("they are {given}, not {needed}"));
        }
        let mut seen = blocks.to_vec();
        seen.sort_unstable();
        for (at, &block) in seen.iter().enumerate() {
            match self.taken.get(block as usize) {
                None => return wrong(format!("block {block} is beyond the pool of {}", self.taken.len())),
                Some(true) => return wrong(format!("block {block} has an adapter")),
                Some(false) if at > 0 && seen[at - 1] == block => return wrong(format!("block {block} comes twice")),
                Some(false) => {}
            }
        }
        let mut runs = Vec::with_capacity(packed.places.runs.len());
        let mut rest = blocks;
        for &count in &packed.places.runs {
            let run;
            (run, rest) = rest.split_at(count);
            if run.windows(2).any(|two| two[1] != two[0] + 1) {
                return wrong(format!("{run:?} are no {count} neighbours"));
            }
            runs.push(run[0] as usize);
        }
        Ok(runs)
    }

    /// Layer by layer; what lies side by side on both sides is one copy.
    fn copy(&self, prepared: &PreparedAdapter, pool: &Pool, begins: &[usize]) -> Result<Vec<Event>, Error> {
        let packed = &prepared.0;
        let mut coming = Vec::with_capacity(packed.layers.len());
        for (pieces, memory) in packed.layers.iter().zip(&packed.memory) {
            if let Some(memory) = memory {
                let start = packed.pieces[pieces.start].start;
                for side_by_side in pieces.clone().collect::<Vec<_>>().chunk_by(|&one, &next| {
                    packed.pieces[next].start - packed.pieces[one].start == begins[next].wrapping_sub(begins[one])
                }) {
                    let (first, last) = (side_by_side[0], side_by_side[side_by_side.len() - 1]);
                    let from = packed.pieces[first].start - start..packed.pieces[last].end - start;
                    let to = pool.memory().part(begins[first]..begins[first] + from.len())?;
                    self.copies.upload(memory, from, to)?;
                }
            }
            let event = self.device.event()?;
            self.copies.record(&event)?;
            coming.push(event);
        }
        Ok(coming)
    }

    /// Forgets the events of copies that are over. True if the adapter is all there; a streamed one never is.
    pub(crate) fn is_there(&mut self, slot: SlotId) -> Result<bool, Error> {
        let Some(resident) = self.table.get_mut(slot) else { return Ok(true) };
        let is_there = match resident.coming.last() {
            Some(last) => last.is_done()?,
            None => resident.streamed.is_none(),
        };
        if is_there {
            resident.coming.clear();
        }
        Ok(is_there)
    }

    /// Empties a slot. No step reads its blocks any more, for the engine waits for each before it returns; and whoever gets them next comes after copies
    /// that are still on their way: other adapters are copied on the same stream, and the next step waits for [`Slots::leaving`].
    pub(crate) fn remove(&mut self, slot: SlotId) -> Option<PreparedAdapter> {
        let mut resident = self.table.remove(slot)?;
        resident.blocks.iter().for_each(|&block| self.taken[block as usize] = false);
        if let (Some(streamed), Some(room)) = (&mut self.streamed, &resident.streamed) {
            streamed.give(room, &resident.prepared);
        }
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

    /// Ends of copies into blocks that may be somebody else's by now.
    pub(crate) fn leaving(&mut self) -> impl Iterator<Item = &Event> {
        self.forget_copied();
        self.leaving.iter().map(|(last, _)| last)
    }

    /// Until no copy is on its way.
    pub(crate) fn wait(&self) {
        // An error comes again with the next call.
        let _ = self.copies.synchronize();
        self.streamed.iter().for_each(Streamed::wait);
    }

    pub(crate) fn table(&self) -> &slots::Table<Resident> {
        &self.table
    }

    pub(crate) fn get(&self, slot: SlotId) -> Option<&Resident> {
        self.table.get(slot)
    }

    /// By block of the pool: whether an adapter lies there.
    pub(crate) fn taken(&self) -> &[bool] {
        &self.taken
    }

    /// Blocks that no adapter has for such runs, the last ones of the pool.
    pub(crate) fn find(&self, runs: &[usize]) -> Option<Vec<u32>> {
        let mut end = self.taken.len();
        let mut found = Vec::new();
        for &count in runs {
            loop {
                let first = end.checked_sub(count)?;
                match self.taken[first..end].iter().rposition(|taken| *taken) {
                    Some(at) => end = first + at,
                    None => break,
                }
            }
            found.extend((end - count..end).map(|block| block as u32));
            end -= count;
        }
        Some(found)
    }
}

/// Its targets and factors, `[layers][SITES]` each, at the addresses of their pieces.
#[allow(clippy::type_complexity, reason = "as they are packed")]
fn placed(packed: &Packed, address: impl Fn(u64) -> u64) -> (Vec<[Vec<Target>; SITES]>, Vec<[Vec<Factors>; SITES]>) {
    let targets = packed.targets.iter().map(|sites| {
        let placed = |target: &Target| Target { a: address(target.a), b: address(target.b), ..*target };
        sites.each_ref().map(|site| site.iter().map(placed).collect())
    });
    let factors = packed.factors.iter().map(|sites| {
        let placed = |factors: &Factors| Factors { at: address(factors.at), ..*factors };
        sites.each_ref().map(|site| site.iter().map(placed).collect())
    });
    (targets.collect(), factors.collect())
}

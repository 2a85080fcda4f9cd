//! Adapters that run without blocks of the pool: they stay in pinned memory, and each step that uses them copies their matrices, layer by layer, into two
//! places that take turns. While a layer is computed the next one is on its way, as weights are in FlexGen (Sheng et al., 2023), so that what the bus takes
//! is hidden behind the base as far as it takes no longer than that.
//!
//! A step waits for a layer's copy before its first site, and the copy of the layer after the next one waits until the step is through with the layer whose
//! place it takes. Steps that use such adapters are launched, not replayed.

use super::adapter::PreparedAdapter;
use super::slots::Resident;
use crate::Error;
use std::ops::Range;
use weft_cuda_device::{Access, Buffer, Device, Event, Stream};

/// Places that layers take in turn.
const PLACES: usize = 2;
/// How far an adapter's largest layer may be beyond an equal part of its bytes: adapters need not change all layers alike.
const SKEW: usize = 2;
/// Where an adapter's part of a place begins.
const ALIGNMENT: usize = 256;

/// What a streamed adapter has: bytes of each place.
pub(crate) type Room = Range<usize>;

/// The places, and who has which part of them.
pub(crate) struct Streamed {
    memory: Buffer,
    place_bytes: usize,
    copies: Stream,
    /// Of each layer: its copies are over.
    there: Vec<Event>,
    /// Of each layer: the step is through with it.
    passed: Vec<Event>,
    /// In order.
    rooms: Vec<Room>,
    /// Of all adapters that have a room, and the most.
    bytes: usize,
    bytes_max: usize,
}

/// Device memory for adapters of so many bytes together.
fn place_bytes(bytes_max: usize, layers: usize) -> usize {
    (SKEW * bytes_max).div_ceil(layers).next_multiple_of(ALIGNMENT)
}

impl Streamed {
    /// Takes the memory; none for zero bytes.
    pub(crate) fn new(device: &Device, bytes_max: usize, layers: usize) -> Result<Option<Self>, Error> {
        if bytes_max == 0 {
            return Ok(None);
        }
        let place_bytes = place_bytes(bytes_max, layers);
        let events = || (0..layers).map(|_| device.event()).collect::<Result<Vec<_>, _>>();
        Ok(Some(Self {
            memory: device.allocate(PLACES * place_bytes)?,
            place_bytes,
            copies: device.stream("layers")?,
            there: events()?,
            passed: events()?,
            rooms: Vec::new(),
            bytes: 0,
            bytes_max,
        }))
    }

    /// Room for an adapter beside those that have one; none: there is too little. Cost: one look at each of them.
    pub(crate) fn take(&mut self, adapter: &PreparedAdapter) -> Option<Room> {
        let packed = &adapter.0;
        let largest = packed.layers.iter().map(|pieces| packed.layer_bytes(pieces).len()).max().unwrap_or(0);
        let largest = largest.max(1).next_multiple_of(ALIGNMENT);
        if self.bytes + packed.bytes > self.bytes_max {
            return None;
        }
        let ends = self.rooms.iter().map(|room| room.end);
        let starts = self.rooms.iter().map(|room| room.start).chain([self.place_bytes]);
        let mut gaps = std::iter::once(0).chain(ends).zip(starts).enumerate();
        let (at, (start, _)) = gaps.find(|(_, (start, end))| end - start >= largest)?;
        let room = start..start + largest;
        self.rooms.insert(at, room.clone());
        self.bytes += packed.bytes;
        Some(room)
    }

    /// Its adapter goes. No step uses it any more.
    pub(crate) fn give(&mut self, room: &Room, adapter: &PreparedAdapter) {
        self.rooms.retain(|taken| taken != room);
        self.bytes -= adapter.0.bytes;
    }

    /// Address of a byte of an adapter's layer, counted from the layer's first.
    pub(crate) fn address(&self, room: &Room, layer: usize, at: usize) -> u64 {
        self.memory.address() + self.at(room, layer, at) as u64
    }

    fn at(&self, room: &Room, layer: usize, at: usize) -> usize {
        layer % PLACES * self.place_bytes + room.start + at
    }

    /// What kernels read through tables.
    pub(crate) fn reads(&self) -> Access<'_> {
        self.memory.all().reads().in_parts()
    }

    /// Until no copy is on its way.
    pub(crate) fn wait(&self) {
        // An error comes again with the next call.
        let _ = self.copies.synchronize();
    }
}

/// The streamed adapters of a step.
pub(crate) struct Streaming<'a> {
    streamed: &'a Streamed,
    adapters: Vec<&'a Resident>,
}

impl Drop for Streaming<'_> {
    /// A step that failed leaves nothing on its way; any other has waited for all of it.
    fn drop(&mut self) {
        self.streamed.wait();
    }
}

impl<'a> Streaming<'a> {
    /// None: the step has no such adapters.
    pub(crate) fn of(streamed: Option<&'a Streamed>, adapters: impl Iterator<Item = &'a Resident>) -> Option<Self> {
        let adapters: Vec<_> = adapters.filter(|adapter| adapter.streamed.is_some()).collect();
        streamed.filter(|_| !adapters.is_empty()).map(|streamed| Self { streamed, adapters })
    }

    /// Begins the copies of the first layers. The last step is over, so nobody reads where they go.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let layers = self.streamed.there.len();
        (0..PLACES.min(layers)).try_for_each(|layer| self.copy(layer))
    }

    /// What is enqueued on `stream` from now on comes after the copies of this layer.
    pub(crate) fn wait_for(&self, layer: usize, stream: &Stream) -> Result<(), Error> {
        Ok(stream.wait(&self.streamed.there[layer])?)
    }

    /// What was enqueued on `stream` so far is all that reads this layer: another takes its place.
    pub(crate) fn passed(&self, layer: usize, stream: &Stream) -> Result<(), Error> {
        let Streamed { there, passed, copies, .. } = self.streamed;
        let next = layer + PLACES;
        if next >= there.len() {
            return Ok(());
        }
        stream.record(&passed[layer])?;
        copies.wait(&passed[layer])?;
        self.copy(next)
    }

    fn copy(&self, layer: usize) -> Result<(), Error> {
        let Streamed { memory, there, copies, .. } = self.streamed;
        for adapter in &self.adapters {
            let (packed, Some(room)) = (&adapter.prepared.0, &adapter.streamed) else { continue };
            if let Some(from) = &packed.memory[layer] {
                let bytes = packed.layer_bytes(&packed.layers[layer]).len();
                let at = self.streamed.at(room, layer, 0);
                copies.upload(from, 0..bytes, memory.part(at..at + bytes)?)?;
            }
        }
        Ok(copies.record(&there[layer])?)
    }
}

//! From a canonical blob to an adapter in pinned memory, laid out as it will lie in a slot.

use super::dora::Base;
use super::place::Places;
use super::shard::Shard;
use crate::Error;
use crate::adapter::{check, copy_hashed, unfit};
use crate::shape::{self, SITES, Shape};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use weft_adapter_format::{CanonicalAdapter, ModuleDelta};
use weft_cuda_device::{Device, Pinned};
use weft_cuda_kernels::columns::Factors;
use weft_cuda_kernels::pack::{self, Format, Half};
use weft_cuda_kernels::table::{RANK_MAX, Target};
use weft_types::Digest;

/// Where matrices begin: vector loads take 16 bytes.
const ALIGNMENT: usize = 16;

/// Packs adapters for one device engine, on any thread, beside the step loop. Cheap to clone.
#[derive(Clone)]
pub struct Preparer {
    pub(super) packing: Packing,
    pub(super) part: Part,
}

/// What an adapter has to fit, and becomes, whatever device gets it.
#[derive(Clone)]
pub(super) struct Packing {
    /// Of the base, on however many devices it lies.
    pub(super) whole: Arc<Shape>,
    pub(super) format: Format,
    /// Largest rank that captured graphs are made for.
    pub(super) rank_max: usize,
    /// Of a device's pool.
    pub(super) block_bytes: usize,
    /// Most blocks of an adapter.
    pub(super) blocks_max: usize,
    /// For DoRA; none where weights have no meaning.
    pub(super) base: Option<Base>,
}

/// A device, and which part of the base it has.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) shape: Arc<Shape>,
    pub(super) shard: Shard,
    pub(super) device: Device,
}

/// A packed adapter in pinned memory, ready to be copied into a slot. Clones are the same memory.
#[derive(Clone)]
pub struct PreparedAdapter(pub(super) Arc<Packed>);

/// Matrices one after the other, layer by layer, so that a layer is one copy.
pub(super) struct Packed {
    pub(super) digest: Digest,
    pub(super) shape: Arc<Shape>,
    /// `[layers]`; none where the adapter changes nothing. Each of its own, so that no memory is too much in pieces for one.
    pub(super) memory: Vec<Option<Pinned>>,
    /// Of matrices and factors, one behind the other; within the memory of their layer they begin with the layer's first.
    pub(super) pieces: Vec<Range<usize>>,
    /// Pieces of each layer.
    pub(super) layers: Vec<Range<usize>>,
    /// In blocks.
    pub(super) places: Places,
    pub(super) block_bytes: usize,
    /// `[layers][SITES]`; where an address will stand is the number of a piece.
    pub(super) targets: Vec<[Vec<Target>; SITES]>,
    /// The same of DoRA's factors, f32, which lie among the matrices of their layer.
    pub(super) factors: Vec<[Vec<Factors>; SITES]>,
    pub(super) bytes: usize,
}

impl Packed {
    /// Of the pieces of a layer, all bytes from the first to the last.
    pub(super) fn layer_bytes(&self, pieces: &Range<usize>) -> Range<usize> {
        range_of(&self.pieces, pieces)
    }
}

/// Bytes from the first of these pieces to the last.
fn range_of(pieces: &[Range<usize>], some: &Range<usize>) -> Range<usize> {
    if some.is_empty() { 0..0 } else { pieces[some.start].start..pieces[some.end - 1].end }
}

impl PreparedAdapter {
    /// SHA-256 of the blob, taken from the private copy that was packed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Of its matrices, which a step with it reads once.
    #[must_use]
    pub fn matrix_bytes(&self) -> u64 {
        self.0.bytes as u64
    }

    /// What it takes in the pool: whole blocks. In pinned memory it takes less: [`Self::matrix_bytes`], rounded up for each layer.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.0.places.blocks() * self.0.block_bytes) as u64
    }

    /// Blocks that it needs: the sum of these, of which each is so many neighbours.
    #[must_use]
    pub fn runs(&self) -> &[usize] {
        &self.0.places.runs
    }
}

impl Preparer {
    /// Packs a canonical blob, read once into private memory, of which the digest is taken.
    ///
    /// DoRA costs `rank + 2` multiplications for each weight of every linear that it changes: those are read from the model's files, and one linear
    /// at a time lies in main memory in f32, rounded as on the device.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the blob cannot be parsed, [`Error::AdapterShape`] if it does not fit the base or the device's kernels,
    /// [`Error::AdapterLimit`] if its rank or its blocks are more than the engine was made for,
    /// [`Error::Device`] if there is no pinned memory left.
    pub fn prepare(&self, blob: &[u8]) -> Result<PreparedAdapter, Error> {
        let mut prepared = self.packing.prepare(blob, std::slice::from_ref(&self.part))?;
        Ok(prepared.pop().expect("one for the part"))
    }
}

impl Packing {
    /// What each part of the base gets of an adapter. Matrices are packed, and factors computed, once and as a whole: parts have the same codes, and
    /// as many bytes each.
    ///
    /// # Errors
    /// As [`Preparer::prepare`].
    pub(super) fn prepare(&self, blob: &[u8], parts: &[Part]) -> Result<Vec<PreparedAdapter>, Error> {
        let mut copy = Vec::new();
        let digest = copy_hashed(blob, &mut copy);
        let adapter = CanonicalAdapter::parse(&copy)?;
        let mut modules: Vec<_> = adapter.modules().iter().collect();
        modules.sort_by_key(|delta| delta.layer);
        let mut images: Vec<Image> = parts.iter().map(|part| Image::new(part.shape.layers)).collect();
        let [mut a_values, mut b_values, mut magnitude] = [const { Vec::new() }; 3];
        for delta in modules {
            check(&self.whole, delta)?;
            let most = RANK_MAX.min(self.rank_max);
            if delta.rank > most {
                return Err(Error::AdapterLimit { what: "rank", value: delta.rank, limit: most });
            }
            let place = self.whole.place(delta.module);
            let pack = |values: &[f32], half: Half| {
                let packed = pack::half(values, half, delta.rank, self.format);
                packed.map_err(|error| unfit(delta, error.to_string()))
            };
            delta.a.read_f32(&mut a_values);
            let a = pack(&a_values, Half::Shrink(place.in_features))?;
            delta.b.read_f32(&mut b_values);
            let b = pack(&b_values, Half::Grow(place.out_features))?;
            let factors = match delta.magnitude {
                None => None,
                Some(vector) => {
                    let Some(base) = &self.base else {
                        return Err(unfit(
                            delta,
                            "its magnitudes need the weights of the base, and this one has none".to_owned(),
                        ));
                    };
                    vector.read_f32(&mut magnitude);
                    Some(base.factors(&self.whole, delta, [&a_values, &b_values, &magnitude])?.factors)
                }
            };
            let packed = PackedModule { delta, place, a: &a, b: &b, factors: factors.as_deref(), format: self.format };
            for (image, part) in images.iter_mut().zip(parts) {
                image.put(&packed, part)?;
            }
        }
        let finish = |(image, part): (Image, &Part)| image.finish(digest, part, [self.block_bytes, self.blocks_max]);
        images.into_iter().zip(parts).map(finish).collect()
    }
}

/// A module as the whole base has it.
struct PackedModule<'a> {
    delta: &'a ModuleDelta<'a>,
    place: shape::Place,
    a: &'a [u8],
    b: &'a [u8],
    /// Of DoRA, `[out_features]`.
    factors: Option<&'a [f32]>,
    format: Format,
}

impl PackedModule<'_> {
    /// Some inputs of A, and some outputs of B.
    fn halves(&self, shard: Shard) -> Result<[Cow<'_, [u8]>; 2], pack::Error> {
        if shard == Shard::WHOLE {
            return Ok([Cow::Borrowed(self.a), Cow::Borrowed(self.b)]);
        }
        let shape::Place { site, in_features, out_features, .. } = self.place;
        let part = |bytes, half, range| pack::part(bytes, half, self.delta.rank, self.format, range).map(Cow::Owned);
        Ok([
            part(self.a, Half::Shrink(in_features), shard.inputs(site, in_features))?,
            part(self.b, Half::Grow(out_features), shard.outputs(site, out_features))?,
        ])
    }
}

/// A slot's bytes while they are put together.
#[derive(Default)]
struct Image {
    pieces: Vec<Range<usize>>,
    layers: Vec<Range<usize>>,
    targets: Vec<[Vec<Target>; SITES]>,
    factors: Vec<[Vec<Factors>; SITES]>,
    bytes: Vec<u8>,
}

impl Image {
    fn new(layers: usize) -> Self {
        let mut image = Self { layers: vec![0..0; layers], ..Self::default() };
        image.targets.resize_with(layers, Default::default);
        image.factors.resize_with(layers, Default::default);
        image
    }

    /// Appends a piece; returns its number.
    fn append(&mut self, piece: &[u8]) -> u64 {
        self.bytes.resize(usize::next_multiple_of(self.bytes.len(), ALIGNMENT), 0);
        self.pieces.push(self.bytes.len()..self.bytes.len() + piece.len());
        self.bytes.extend_from_slice(piece);
        self.pieces.len() as u64 - 1
    }

    /// Appends what this part has of a module; those of a layer come one after the other.
    fn put(&mut self, module: &PackedModule<'_>, Part { shape, shard, .. }: &Part) -> Result<(), Error> {
        let PackedModule { delta, place: whole, factors, .. } = *module;
        let [a, b] = module.halves(*shard).map_err(|error| unfit(delta, error.to_string()))?;
        let (a, b) = (self.append(&a), self.append(&b));
        let place = shape.place(delta.module);
        let (out_offset, out_features) = (place.out_offset as u32, place.out_features as u32);
        if let Some(factors) = factors {
            let factors = &factors[shard.outputs(whole.site, whole.out_features)];
            let at = self.append(bytemuck::cast_slice(factors));
            self.factors[delta.layer][place.site as usize].push(Factors { at, out_offset, out_features });
        }
        let layer = &mut self.layers[delta.layer];
        let first = if Range::is_empty(layer) { a as usize } else { layer.start };
        *layer = first..self.pieces.len();
        self.targets[delta.layer][place.site as usize].push(Target {
            a,
            b,
            rank: delta.rank as u32,
            scale: delta.scale as f32,
            out_offset,
            out_features,
        });
        Ok(())
    }

    /// Copies it to pinned memory.
    fn finish(
        self,
        digest: Digest,
        part: &Part,
        [block_bytes, blocks_max]: [usize; 2],
    ) -> Result<PreparedAdapter, Error> {
        let Self { pieces, layers, targets, factors, bytes } = self;
        let places = Places::of(pieces.iter().map(Range::len), block_bytes, ALIGNMENT);
        let (value, limit) = (places.blocks(), blocks_max);
        if value > limit {
            return Err(Error::AdapterLimit { what: "size in blocks", value, limit });
        }
        let pinned = |layer: &Range<usize>| {
            if Range::is_empty(layer) {
                return Ok(None);
            }
            let range = range_of(&pieces, layer);
            let memory = part.device.allocate_pinned(range.len())?;
            memory.write(0, &bytes[range])?;
            Ok::<_, Error>(Some(memory))
        };
        let memory = layers.iter().map(pinned).collect::<Result<_, _>>()?;
        let (shape, bytes) = (Arc::clone(&part.shape), bytes.len());
        let packed = Packed { digest, shape, memory, pieces, layers, places, block_bytes, targets, factors, bytes };
        Ok(PreparedAdapter(Arc::new(packed)))
    }
}

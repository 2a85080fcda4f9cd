//! From a canonical blob to an adapter in pinned memory, laid out as it will lie in a slot.

use super::dora::Base;
use super::place::Places;
use crate::Error;
use crate::adapter::{check, copy_hashed, unfit};
use crate::shape::{SITES, Shape};
use std::ops::Range;
use std::sync::Arc;
use weft_adapter_format::CanonicalAdapter;
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
    pub(super) shape: Arc<Shape>,
    pub(super) device: Device,
    pub(super) format: Format,
    /// Largest rank that captured graphs are made for.
    pub(super) rank_max: usize,
    /// Of the pool.
    pub(super) block_bytes: usize,
    /// Most blocks of an adapter.
    pub(super) blocks_max: usize,
    /// For DoRA; none where weights have no meaning.
    pub(super) base: Option<Base>,
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
        let mut copy = Vec::new();
        let digest = copy_hashed(blob, &mut copy);
        let adapter = CanonicalAdapter::parse(&copy)?;
        let mut modules: Vec<_> = adapter.modules().iter().collect();
        modules.sort_by_key(|delta| delta.layer);
        let mut targets: Vec<[Vec<Target>; SITES]> = Vec::new();
        targets.resize_with(self.shape.layers, Default::default);
        let mut factors: Vec<[Vec<Factors>; SITES]> = Vec::new();
        factors.resize_with(self.shape.layers, Default::default);
        let mut layers = vec![0..0; self.shape.layers];
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let mut bytes = Vec::new();
        let [mut a_values, mut b_values, mut magnitude] = [const { Vec::new() }; 3];
        for delta in modules {
            check(&self.shape, delta)?;
            let most = RANK_MAX.min(self.rank_max);
            if delta.rank > most {
                return Err(Error::AdapterLimit { what: "rank", value: delta.rank, limit: most });
            }
            let place = self.shape.place(delta.module);
            let mut add = |piece: &[u8]| {
                bytes.resize(usize::next_multiple_of(bytes.len(), ALIGNMENT), 0);
                pieces.push(bytes.len()..bytes.len() + piece.len());
                bytes.extend_from_slice(piece);
                pieces.len() as u64 - 1
            };
            let mut put = |values: &[f32], half: Half| {
                let packed = pack::half(values, half, delta.rank, self.format);
                let packed = packed.map_err(|error| unfit(delta, error.to_string()))?;
                Ok::<_, Error>(add(&packed))
            };
            delta.a.read_f32(&mut a_values);
            let a = put(&a_values, Half::Shrink(place.in_features))?;
            delta.b.read_f32(&mut b_values);
            let b = put(&b_values, Half::Grow(place.out_features))?;
            if let Some(vector) = delta.magnitude {
                let Some(base) = &self.base else {
                    return Err(unfit(
                        delta,
                        "its magnitudes need the weights of the base, and this one has none".to_owned(),
                    ));
                };
                vector.read_f32(&mut magnitude);
                let scales = base.factors(&self.shape, delta, [&a_values, &b_values, &magnitude])?.factors;
                factors[delta.layer][place.site as usize].push(Factors {
                    at: add(bytemuck::cast_slice(&scales)),
                    out_offset: place.out_offset as u32,
                    out_features: place.out_features as u32,
                });
            }
            let layer = &mut layers[delta.layer];
            let first = if Range::is_empty(layer) { a as usize } else { layer.start };
            *layer = first..pieces.len();
            targets[delta.layer][place.site as usize].push(Target {
                a,
                b,
                rank: delta.rank as u32,
                scale: delta.scale as f32,
                out_offset: place.out_offset as u32,
                out_features: place.out_features as u32,
            });
        }
        let places = Places::of(pieces.iter().map(Range::len), self.block_bytes, ALIGNMENT);
        let (value, limit) = (places.blocks(), self.blocks_max);
        if value > limit {
            return Err(Error::AdapterLimit { what: "size in blocks", value, limit });
        }
        let pinned = |layer: &Range<usize>| {
            if Range::is_empty(layer) {
                return Ok(None);
            }
            let range = pieces[layer.start].start..pieces[layer.end - 1].end;
            let memory = self.device.allocate_pinned(range.len())?;
            memory.write(0, &bytes[range])?;
            Ok::<_, Error>(Some(memory))
        };
        let memory = layers.iter().map(pinned).collect::<Result<_, _>>()?;
        let packed = Packed {
            digest,
            shape: Arc::clone(&self.shape),
            memory,
            pieces,
            layers,
            places,
            block_bytes: self.block_bytes,
            targets,
            factors,
            bytes: bytes.len(),
        };
        Ok(PreparedAdapter(Arc::new(packed)))
    }
}

//! From a canonical blob to an adapter that a step can use.

use crate::dora::{AdaptedLinear, BaseRows, OutputFactors};
use crate::plan::Entry;
use crate::shape::{SITES, Shape};
use crate::weights::Base;
use crate::{Error, shape};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_adapter_format::{CanonicalAdapter, ModuleDelta};
use weft_kernels::{Kernels, LoraTarget, WeightFormat};
use weft_types::{Digest, DigestHasher};

/// Packs adapters for one engine, on any thread, beside the step loop. Cheap to clone.
#[derive(Clone)]
pub struct Preparer {
    shape: Arc<shape::Shape>,
    base: Arc<Base>,
    kernels: Arc<dyn Kernels>,
    format: WeightFormat,
    /// Memory of earlier calls: mapping pages for a copy costs as much as making it.
    spare: Arc<Mutex<Vec<Scratch>>>,
}

/// Spare memory that is kept: as many calls at once as usually run, and no more than a usual adapter needs.
const SPARE_MAX: usize = 4;
const SPARE_BYTES_MAX: usize = 16 << 20;

#[derive(Default)]
struct Scratch {
    /// The private copy of the blob.
    copy: Vec<u8>,
    /// One module, widened.
    a: Vec<f32>,
    b: Vec<f32>,
    magnitude: Vec<f32>,
}

impl Scratch {
    fn bytes(&self) -> usize {
        let values = [&self.a, &self.b, &self.magnitude].map(Vec::capacity);
        self.copy.capacity() + values.iter().sum::<usize>() * size_of::<f32>()
    }
}

/// A packed adapter, ready to be put into a slot by [`crate::ProcessorEngine::install`].
pub struct PreparedAdapter(pub(crate) Box<Resident>);

/// What a slot holds.
pub(crate) struct Resident {
    /// Of the very bytes that `sites` was packed from.
    pub(crate) digest: Digest,
    /// Of the packed matrices and factors.
    pub(crate) bytes: u64,
    pub(crate) shape: Arc<Shape>,
    /// `[layers][SITES]`; a site that the adapter leaves alone is empty.
    sites: Vec<[Change; SITES]>,
}

/// What an adapter does to one site: one entry for each linear in it that the adapter changes.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) targets: Vec<LoraTarget>,
    /// Of DoRA adapters, and only of those.
    pub(crate) factors: Vec<OutputFactors>,
}

impl Resident {
    pub(crate) fn change(&self, layer: usize, site: shape::Site) -> &Change {
        &self.sites[layer][site as usize]
    }
}

impl Entry for Box<Resident> {
    fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }
}

impl PreparedAdapter {
    /// SHA-256 of the blob, taken from the private copy that was packed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Memory of the packed matrices, and of the factors that DoRA's magnitudes became.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }
}

impl Preparer {
    pub(crate) fn new(shape: Arc<Shape>, base: Arc<Base>, kernels: Arc<dyn Kernels>, format: WeightFormat) -> Self {
        Self { shape, base, kernels, format, spare: Arc::default() }
    }

    /// Packs a canonical blob. `blob` may be a mapped file that somebody overwrites meanwhile: it is read once, into
    /// private memory, and both the digest and the matrices come from that copy.
    ///
    /// Cost: copies, hashes and packs the blob, about 1 ms per MB on one core, half of it SHA-256 (`benches/prepare.rs`). A
    /// blob above 16 MB costs more: its copy is mapped anew every time. DoRA costs `rank + 2` multiplications for each
    /// weight of every linear it changes on top: its factors follow from the whole base.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the blob cannot be parsed, [`Error::AdapterShape`] if it does not fit the base.
    pub fn prepare(&self, blob: &[u8]) -> Result<PreparedAdapter, Error> {
        let mut scratch = self.spare().pop().unwrap_or_default();
        let prepared = self.prepare_in(blob, &mut scratch);
        let mut spare = self.spare();
        if spare.len() < SPARE_MAX && scratch.bytes() <= SPARE_BYTES_MAX {
            spare.push(scratch);
        }
        prepared
    }

    fn prepare_in(&self, blob: &[u8], scratch: &mut Scratch) -> Result<PreparedAdapter, Error> {
        let Scratch { copy, a, b, magnitude } = scratch;
        let digest = copy_hashed(blob, copy);
        let adapter = CanonicalAdapter::parse(copy)?;
        let mut sites: Vec<[Change; SITES]> = Vec::new();
        sites.resize_with(self.shape.layers, Default::default);
        let mut bytes = 0;
        for delta in adapter.modules() {
            check(&self.shape, delta)?;
            delta.a.read_f32(a);
            delta.b.read_f32(b);
            let site = self.shape.place(delta.module).site;
            let change = &mut sites[delta.layer][site as usize];
            let target = self.pack(delta, a, b);
            bytes += (target.a.bytes() + target.b.bytes()) as u64;
            change.targets.push(target);
            if let Some(vector) = delta.magnitude {
                vector.read_f32(magnitude);
                let weight = self.base.linear(delta.layer, site);
                let factors = factors(weight, &self.shape, delta, [a, b, magnitude])?;
                bytes += factors.bytes() as u64;
                change.factors.push(factors);
            }
        }
        Ok(PreparedAdapter(Box::new(Resident { digest, bytes, shape: Arc::clone(&self.shape), sites })))
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Scratch>> {
        // Whatever a panic left in it is cleared before it is used.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pack(&self, delta: &ModuleDelta<'_>, a: &[f32], b: &[f32]) -> LoraTarget {
        let place = self.shape.place(delta.module);
        let format = self.format;
        LoraTarget {
            a: self.kernels.pack_lora_a(a, delta.rank, place.in_features, format),
            b: self.kernels.pack_lora_b(b, place.out_features, delta.rank, format),
            rank: delta.rank,
            scale: delta.scale as f32,
            out_offset: place.out_offset,
            out_features: place.out_features,
        }
    }
}

/// What DoRA's magnitudes make of the outputs of a module that was checked, over these rows of its fused linear; `a`, `b` and `magnitude` are the
/// module's values.
pub(crate) fn factors(
    weight: &dyn BaseRows,
    shape: &Shape,
    delta: &ModuleDelta<'_>,
    [a, b, magnitude]: [&[f32]; 3],
) -> Result<OutputFactors, Error> {
    let out_offset = shape.place(delta.module).out_offset;
    let (rank, scale) = (delta.rank, delta.scale as f32);
    let linear = AdaptedLinear { weight, out_offset, a, b, rank, scale };
    OutputFactors::compute(&linear, magnitude).map_err(|reason| unfit(delta, reason))
}

/// Whether a module fits the base.
pub(crate) fn check(shape: &Shape, delta: &ModuleDelta<'_>) -> Result<(), Error> {
    let refuse = |reason: String| Err(unfit(delta, reason));
    if delta.layer >= shape.layers {
        return refuse(format!("the base has {} layers", shape.layers));
    }
    let place = shape.place(delta.module);
    let [rank, in_features] = delta.a.shape;
    if rank != delta.rank || in_features != place.in_features {
        return refuse(format!("lora_a is {:?}, expected {:?}", delta.a.shape, [delta.rank, place.in_features]));
    }
    if delta.b.shape != [place.out_features, rank] {
        return refuse(format!("lora_b is {:?}, expected {:?}", delta.b.shape, [place.out_features, rank]));
    }
    let found = delta.magnitude.map_or(place.out_features, |magnitude| magnitude.len());
    if found != place.out_features {
        return refuse(format!("lora_magnitude_vector is [{found}], expected [{}]", place.out_features));
    }
    if rank == 0 || !(delta.scale as f32).is_finite() {
        return refuse(format!("rank {rank} and scale {} cannot be applied", delta.scale));
    }
    Ok(())
}

pub(crate) fn unfit(delta: &ModuleDelta<'_>, reason: String) -> Error {
    Error::AdapterShape { layer: delta.layer, module: delta.module.as_str(), reason }
}

/// Copies in pieces that stay in the first cache, and hashes each piece from the copy.
pub(crate) fn copy_hashed(blob: &[u8], copy: &mut Vec<u8>) -> Digest {
    const PIECE_BYTES: usize = 16 << 10;
    copy.clear();
    copy.reserve_exact(blob.len());
    let mut hasher = DigestHasher::new();
    for piece in blob.chunks(PIECE_BYTES) {
        let start = copy.len();
        copy.extend_from_slice(piece);
        hasher.update(&copy[start..]);
    }
    hasher.finish()
}

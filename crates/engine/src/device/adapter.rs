//! From a canonical blob to an adapter in pinned memory, laid out as it will lie in a slot.

use super::slots::BLOCK_BYTES;
use crate::Error;
use crate::adapter::{check, copy_hashed, unfit};
use crate::shape::{SITES, Shape};
use std::ops::Range;
use std::sync::Arc;
use weft_adapter_format::CanonicalAdapter;
use weft_cuda_device::{Device, Pinned};
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
}

/// A packed adapter in pinned memory, ready to be copied into a slot. Clones are the same memory.
#[derive(Clone)]
pub struct PreparedAdapter(pub(super) Arc<Packed>);

/// Matrices one after the other, layer by layer, so that a layer is one copy.
pub(super) struct Packed {
    pub(super) digest: Digest,
    pub(super) shape: Arc<Shape>,
    pub(super) memory: Pinned,
    /// Of each layer in `memory`.
    pub(super) layers: Vec<Range<usize>>,
    /// `[layers][SITES]`; addresses count from the beginning of `memory`.
    pub(super) targets: Vec<[Vec<Target>; SITES]>,
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

    /// What it takes in a slot at most, whole or with a run for each layer. Pinned memory of it is no more than that.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let blocks = |layer: &Range<usize>| layer.len().div_ceil(BLOCK_BYTES);
        let in_layers = self.0.layers.iter().map(blocks).sum::<usize>();
        (self.0.bytes.div_ceil(BLOCK_BYTES).max(in_layers).max(1) * BLOCK_BYTES) as u64
    }
}

impl Preparer {
    /// Packs a canonical blob, read once into private memory, of which the digest is taken.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the blob cannot be parsed, [`Error::AdapterShape`] if it does not fit the base or the device's kernels,
    /// [`Error::Device`] if there is no pinned memory left.
    pub fn prepare(&self, blob: &[u8]) -> Result<PreparedAdapter, Error> {
        let mut copy = Vec::new();
        let digest = copy_hashed(blob, &mut copy);
        let adapter = CanonicalAdapter::parse(&copy)?;
        let mut modules: Vec<_> = adapter.modules().iter().collect();
        modules.sort_by_key(|delta| delta.layer);
        let mut targets: Vec<[Vec<Target>; SITES]> = Vec::new();
        targets.resize_with(self.shape.layers, Default::default);
        let mut layers = vec![0..0; self.shape.layers];
        let mut bytes = Vec::new();
        let mut values = Vec::new();
        for delta in modules {
            check(&self.shape, delta)?;
            let most = RANK_MAX.min(self.rank_max);
            if delta.rank > most {
                return Err(unfit(
                    delta,
                    format!("rank {} is above {most}, the most that this device engine takes", delta.rank),
                ));
            }
            if delta.magnitude.is_some() {
                return Err(unfit(delta, "it is a DoRA adapter, which device engines do not serve yet".to_owned()));
            }
            let place = self.shape.place(delta.module);
            let mut put = |values: &[f32], half: Half| {
                bytes.resize(usize::next_multiple_of(bytes.len(), ALIGNMENT), 0);
                let packed = pack::half(values, half, delta.rank, self.format);
                let packed = packed.map_err(|error| unfit(delta, error.to_string()))?;
                let at = bytes.len();
                bytes.extend(packed);
                Ok::<_, Error>(at)
            };
            delta.a.read_f32(&mut values);
            let a = put(&values, Half::Shrink(place.in_features))?;
            delta.b.read_f32(&mut values);
            let b = put(&values, Half::Grow(place.out_features))?;
            let layer = &mut layers[delta.layer];
            *layer = if Range::is_empty(layer) { a..bytes.len() } else { layer.start..bytes.len() };
            targets[delta.layer][place.site as usize].push(Target {
                a: a as u64,
                b: b as u64,
                rank: delta.rank as u32,
                scale: delta.scale as f32,
                out_offset: place.out_offset as u32,
                out_features: place.out_features as u32,
            });
        }
        let memory = self.device.allocate_pinned(bytes.len())?;
        memory.write(0, &bytes)?;
        let packed = Packed { digest, shape: Arc::clone(&self.shape), memory, layers, targets, bytes: bytes.len() };
        Ok(PreparedAdapter(Arc::new(packed)))
    }
}

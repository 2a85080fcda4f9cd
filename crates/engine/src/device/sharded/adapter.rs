//! Adapters in parts, one for each device.

use crate::Error;
use crate::device::adapter::{Packing, Part, PreparedAdapter};
use std::sync::Arc;
use weft_types::Digest;

/// Packs adapters for one engine over several devices, on any thread, beside the step loop. Cheap to clone.
#[derive(Clone)]
pub struct ShardedPreparer {
    pub(super) packing: Packing,
    pub(super) parts: Vec<Part>,
}

/// A packed adapter in pinned memory, in a part for each device. Clones are the same memory.
#[derive(Clone)]
pub struct ShardedAdapter(pub(super) Arc<[PreparedAdapter]>);

impl ShardedPreparer {
    /// Packs a canonical blob as [`crate::device::Preparer::prepare`] does, once for all devices: parts have the codes that the whole has. Of q, k, v, gate
    /// and up a device gets all of A and some outputs of B, of o and down some inputs of A and all of B.
    ///
    /// # Errors
    /// As [`crate::device::Preparer::prepare`]; limits are those of one device's part.
    pub fn prepare(&self, blob: &[u8]) -> Result<ShardedAdapter, Error> {
        Ok(ShardedAdapter(self.packing.prepare(blob, &self.parts)?.into()))
    }
}

impl ShardedAdapter {
    /// SHA-256 of the blob, taken from the private copy that was packed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0[0].digest()
    }

    /// What it takes in the pools of all devices together: whole blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(PreparedAdapter::bytes).sum()
    }

    /// Blocks that it needs, the same ones on each device: the sum of these, of which each is so many neighbours.
    #[must_use]
    pub fn runs(&self) -> &[usize] {
        self.0[0].runs()
    }
}

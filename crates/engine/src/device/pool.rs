//! The blocks that keys, values and adapters share.
//!
//! A block holds `block_size` positions of one sequence, keys and values of all layers: `[layers][keys, values][kv_heads, block_size, page_stride]`. Or it holds
//! matrices of adapters, as many bytes. Who gets which block is decided outside: by the step loop's block pool.

use super::weights::filled;
use crate::Error;
use weft_cuda_device::{Buffer, Device, Stream, View};
use weft_cuda_kernels::attention::{self, Layer};

/// How large the pool is, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolBlocks {
    /// So many, 1 or more.
    Exactly(usize),
    /// As many as the device's memory has room for once all else has its place, but no more than this.
    UpTo(usize),
}

impl PoolBlocks {
    /// No more than these.
    #[must_use]
    pub fn most(self) -> usize {
        match self {
            Self::Exactly(blocks) | Self::UpTo(blocks) => blocks,
        }
    }
}

/// Of keys, or of values, rows in a block of all layers: what lies between a layer's pages in one block and in the next.
pub(crate) fn block_rows(layers: usize, kv_heads: usize, block_size: usize) -> usize {
    2usize.saturating_mul(layers).saturating_mul(kv_heads).saturating_mul(block_size)
}

/// Bytes of a block: keys and values of `block_size` positions in all layers, in elements of `element_bytes`.
pub(crate) fn block_bytes([layers, kv_heads, head_dim]: [usize; 3], block_size: usize, element_bytes: usize) -> usize {
    let row = attention::page_stride(head_dim, element_bytes) * element_bytes;
    block_rows(layers, kv_heads, block_size).saturating_mul(row)
}

/// All blocks, in one buffer: a captured graph names it whole, whatever lies in it.
pub(crate) struct Pool {
    memory: Buffer,
    blocks: usize,
    block_bytes: usize,
    /// Of a layer's keys in a block, and of its values.
    page_bytes: usize,
}

impl Pool {
    /// How many blocks that is on a device.
    pub(crate) fn room(
        device: &Device,
        (layer, layers): (&Layer, usize),
        blocks: PoolBlocks,
        element_bytes: usize,
    ) -> usize {
        match blocks {
            PoolBlocks::Exactly(blocks) => blocks,
            PoolBlocks::UpTo(most) => {
                let of_block = block_bytes([layers, layer.kv_heads, layer.head_dim], layer.block_size, element_bytes);
                let largest = device.usage().largest / device.block_bytes() * device.block_bytes();
                (largest / of_block).clamp(1, most)
            }
        }
    }

    /// Takes the memory. What nobody has written yet is zero.
    pub(crate) fn new(
        device: &Device,
        stream: &Stream,
        (layer, layers): (&Layer, usize),
        blocks: usize,
        element_bytes: usize,
    ) -> Result<Self, Error> {
        let block_bytes = block_bytes([layers, layer.kv_heads, layer.head_dim], layer.block_size, element_bytes);
        let bytes = layer.page_elements(blocks, element_bytes)? * element_bytes;
        // Kernels write and read positions that a sequence has; what lies between their rows is nobody's, and told as such.
        let memory = filled(device, stream, bytes, 0)?;
        Ok(Self { memory, blocks, block_bytes, page_bytes: block_bytes / (2 * layers) })
    }

    pub(crate) fn memory(&self) -> &Buffer {
        &self.memory
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Where a layer's keys, and its values, begin in the first block; they go on in every further one.
    pub(crate) fn keys_and_values(&self, layer: usize) -> Result<[View<'_>; 2], Error> {
        let from = |part: usize| self.memory.part(part * self.page_bytes..self.memory.bytes());
        Ok([from(2 * layer)?, from(2 * layer + 1)?])
    }
}

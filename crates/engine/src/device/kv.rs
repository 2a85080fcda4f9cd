//! Keys and values in device memory.

use super::precision::Precision;
use crate::Error;
use weft_cuda_device::{Buffer, Device, Stream};
use weft_cuda_kernels::attention::Layer;

/// Pages of one layer, each `[blocks, kv_heads, block_size, page_stride]`.
pub(crate) struct Kv {
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
}

impl Kv {
    pub(crate) fn new(
        device: &Device,
        stream: &Stream,
        layer: &Layer,
        blocks: usize,
        precision: Precision,
    ) -> Result<Self, Error> {
        let bytes = layer.page_elements(blocks, precision.bytes())? * precision.bytes();
        let pages = || {
            let buffer = device.allocate(bytes)?;
            // Kernels write and read positions that a sequence has; what lies between their rows is nobody's, and told as such.
            stream.fill(buffer.all(), 0)?;
            Ok::<_, Error>(buffer)
        };
        Ok(Self { keys: pages()?, values: pages()? })
    }
}

/// Blocks that the pool has room for, in every layer.
pub(crate) fn blocks_that_fit(
    device: &Device,
    layer: &Layer,
    layers: usize,
    precision: Precision,
) -> Result<usize, Error> {
    let usage = device.usage();
    let of_each = usage.largest / (2 * layers) / device.block_bytes() * device.block_bytes();
    let of_block = layer.page_elements(1, precision.bytes())? * precision.bytes();
    Ok((of_each / of_block).max(1))
}

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

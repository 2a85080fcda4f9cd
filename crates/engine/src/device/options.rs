//! How a device engine is built, and how large its steps may be.

use super::draws::{Memory, TOP_LOGPROBS_MAX};
use super::kv::KvFormat;
use super::linear::WeightFormat;
use super::pool::{self, PoolBlocks};
use super::precision::Precision;
use super::tables::{Caps, Layout};
use crate::Error;
use crate::shape::{SITES, Shape};
use weft_base_model::ModelConfig;
use weft_cuda_device::Device;
use weft_cuda_kernels::pack::Format;
use weft_cuda_kernels::table::{self, Path, RANK_MAX};
use weft_cuda_kernels::{attention, columns, sampling};

/// Linears of a site: q, k and v.
pub(super) const TARGETS_MAX: usize = 3;

/// Most rows, and most sequences: grids end there.
pub const ROWS_MAX: usize = 65_535;

const STREAM_BYTES_MAX: usize = 1 << 60;

/// How to build a device engine.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Where. Its memory must hold the base, the pool of blocks and the activations.
    pub device: Device,
    /// Of everything but adapters and what has a format of its own.
    pub precision: Precision,
    /// Of the base's linears; codes of 4 bits and e4m3 go with bf16 alone.
    pub weights: WeightFormat,
    /// Of keys and values; e4m3 goes with bf16 alone.
    pub kv: KvFormat,
    /// Of adapters: one that the kernels take beside that precision.
    pub adapters: Format,
    /// Whether a row's adapter and attention give the same bits whatever shares its step; then prompts take no tensor cores for them.
    pub batch_invariant: bool,
    /// Blocks of the pool that keys, values and adapters share. What of it is an adapter's lies in pinned memory, too.
    pub blocks: PoolBlocks,
    /// Positions per block, 1 or more.
    pub block_size: usize,
    /// Most rows of a step, up to [`ROWS_MAX`].
    pub rows_max: usize,
    /// Rows whose logits are computed at a time: each takes a row of the vocabulary in f32 on the device, and one in pinned memory. A step that
    /// wants more passes the output matrix once for each such piece.
    pub logits_rows_max: usize,
    /// Most sequences of a step, up to [`ROWS_MAX`]; the largest batch that is replayed. So that a token can be drawn from it, each takes device
    /// memory: 4.25 bytes for each token of the vocabulary (counts, marks, a mask) and 4 for each position of the context.
    pub sequences_max: usize,
    /// Most bytes of matrices that a step copies from pinned memory for adapters that have no blocks ([`super::DeviceEngine::stream`]); 0: all have blocks. On the
    /// device they take `4 / layers` of that.
    pub stream_bytes: usize,
    /// Most blocks of one adapter; one that needs more is refused when it is prepared.
    pub adapter_blocks_max: usize,
    /// Largest rank of an adapter, up to [`RANK_MAX`].
    pub rank_max: usize,
    /// Whether decoding steps are replayed as graphs.
    pub graphs: bool,
}

impl DeviceOptions {
    pub(crate) fn room(&self) -> StepRoom {
        let Self { rows_max, logits_rows_max, sequences_max, block_size, .. } = *self;
        StepRoom { rows_max, logits_rows_max, sequences_max, block_size }
    }
}

/// Bytes of a block of the pool: keys and values of `block_size` positions in all layers of the model.
#[must_use]
pub fn block_bytes(config: &ModelConfig, block_size: usize, kv: KvFormat, precision: Precision) -> usize {
    pool::block_bytes([config.layers, config.kv_heads, config.head_dim], block_size, kv.bytes(precision))
}

/// How large the largest step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRoom {
    /// As [`DeviceOptions::rows_max`].
    pub rows_max: usize,
    /// As [`DeviceOptions::logits_rows_max`].
    pub logits_rows_max: usize,
    /// As [`DeviceOptions::sequences_max`].
    pub sequences_max: usize,
    /// As [`DeviceOptions::block_size`].
    pub block_size: usize,
}

impl StepRoom {
    /// Pinned memory that an engine of this size takes for its steps, but for rounding. What adapters lie in comes on top.
    #[must_use]
    pub fn pinned_bytes(&self, config: &ModelConfig) -> usize {
        let shape = Shape::of(config);
        let logits = self.logits_rows_max * shape.vocabulary * size_of::<f32>();
        let draws = Memory::pinned_bytes(shape.vocabulary, shape.context, self.sequences_max);
        Layout::new(self.caps(&shape)).bytes + logits + draws
    }

    /// What any step may need.
    pub(crate) fn caps(&self, shape: &Shape) -> Caps {
        let (rows, sequences) = (self.rows_max, self.sequences_max);
        Caps {
            rows,
            wanted: rows,
            prefill: rows,
            decode: sequences,
            sequences,
            table_stride: self.table_stride(shape),
            items: rows,
            targets: sequences * TARGETS_MAX,
            scaled: columns::items_max(rows, sequences, TARGETS_MAX),
            sites: (shape.layers + 1) * SITES,
            draws: sequences,
            starts: sequences,
            pieces: rows.div_ceil(self.logits_rows_max),
        }
    }

    /// Blocks of the longest context.
    pub(crate) fn table_stride(&self, shape: &Shape) -> usize {
        shape.context.div_ceil(self.block_size)
    }
}

/// Holds options against what kernels and grids take, before anything is loaded.
pub(super) fn check(shape: &Shape, options: &DeviceOptions) -> Result<attention::Layer, Error> {
    for (option, value, most, allowed) in [
        ("layers", shape.layers, usize::MAX, "1 or more"),
        ("blocks", options.blocks.most(), u32::MAX as usize, "1 to 2^32 - 1"),
        ("block_size", options.block_size, attention::POSITIONS_MAX, "1 to 2^30"),
        ("rows_max", options.rows_max, ROWS_MAX, "1 to 65535"),
        ("logits_rows_max", options.logits_rows_max, options.rows_max, "1 to rows_max"),
        ("sequences_max", options.sequences_max, ROWS_MAX, "1 to 65535"),
        ("rank_max", options.rank_max, RANK_MAX, "1 to 768"),
        ("adapter_blocks_max", options.adapter_blocks_max, usize::MAX, "1 or more"),
        // One more, so that none is allowed.
        ("stream_bytes", options.stream_bytes.saturating_add(1), STREAM_BYTES_MAX, "0 to 2^60"),
    ] {
        if value == 0 || value > most {
            return Err(Error::Option { option, value, allowed });
        }
    }
    // Any path has the same types, but for tensor cores with f32.
    if table::kernel(Path::Decode, options.precision.format(), options.adapters).is_err() {
        let allowed = "a format that the kernels take beside the precision";
        return Err(Error::Option { option: "adapters", value: options.adapters as usize, allowed });
    }
    options.weights.check(options.precision)?;
    if options.kv == KvFormat::Fp8 && options.precision != Precision::Bf16 {
        return Err(Error::Option {
            option: "kv",
            value: options.kv as usize,
            allowed: "that of the precision, unless that is bf16",
        });
    }
    let layer = attention::Layer {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        block_size: options.block_size,
        block_rows: Some(pool::block_rows(shape.layers, shape.kv_heads, options.block_size)),
        window: None,
        scale: 1.0 / (shape.head_dim as f32).sqrt(),
        soft_cap: None,
    };
    layer.check()?;
    sampling::check(shape.vocabulary, shape.vocabulary, options.sequences_max, TOP_LOGPROBS_MAX)?;
    Ok(layer)
}

//! The port: what an implementation of the hot operations promises.

use crate::{KvFormat, KvLayer, LoraMatrix, PackedLinear, WeightFormat};
use std::ops::Range;

/// The change one adapter makes to one linear: `out[.., out_offset..][..out_features] += scale * B(A x)`.
#[derive(Debug)]
pub struct LoraTarget {
    /// `[rank, in]`, from [`Kernels::pack_lora_a`].
    pub a: LoraMatrix,
    /// `[out_features, rank]`, from [`Kernels::pack_lora_b`].
    pub b: LoraMatrix,
    /// The actual rank of this target; zero changes nothing.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rank-stabilised adapters.
    pub scale: f32,
    /// First output column this target adds to: `k_proj` in a fused q/k/v output begins after q.
    pub out_offset: usize,
    /// Columns it adds to.
    pub out_features: usize,
}

/// Neighbouring rows of a step that use the same adapter.
#[derive(Clone, Debug)]
pub struct LoraSegment<'a> {
    /// The rows; segments of one call are disjoint, in any order, and may be empty.
    pub rows: Range<usize>,
    /// The changes to apply to them, in order. They may overlap in columns.
    pub targets: &'a [LoraTarget],
}

/// Neighbouring rows of a step that continue the same sequence.
#[derive(Clone, Debug)]
pub struct AttentionSeq<'a> {
    /// The rows; disjoint between the sequences of one call.
    pub rows: Range<usize>,
    /// Position of the first row in its sequence, counted from 0.
    pub start: usize,
    /// Physical blocks in order of position; they cover at least `start + rows.len()` positions.
    pub blocks: &'a [u32],
}

/// The hot operations of a step.
///
/// Calls block until the result is there, allocate nothing that lasts and do no IO. An object is shared freely
/// between threads; calls made at the same time are safe, but only one of them uses the pool.
///
/// Weights, adapters and key/value layers given to a call must come from the same object.
///
/// # Panics
///
/// A wrong shape is an error of the program: every method panics, before it writes anything, with a message that
/// names the operation and both shapes.
pub trait Kernels: Send + Sync + 'static {
    /// Name of the instruction set in use, for logs: `reference`, `avx512-bf16`, ...
    fn isa(&self) -> &'static str;

    /// Packs a weight `[out, in]` into the layout [`Self::linear`] reads. Cost: one pass; done once, at load.
    fn pack_linear(
        &self,
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        format: WeightFormat,
    ) -> PackedLinear;

    /// Packs the shrinking half of an adapter, `[rank, in]`. `Int8` and `Q4` both mean 8 bits and a scale per rank here;
    /// an implementation may make codes of what meets them ([`crate::conformance::BesideCodes`]).
    fn pack_lora_a(&self, a: &[f32], rank: usize, in_features: usize, format: WeightFormat) -> LoraMatrix;

    /// Packs the growing half of an adapter, `[out, rank]`; formats as in [`Self::pack_lora_a`].
    fn pack_lora_b(&self, b: &[f32], out_features: usize, rank: usize, format: WeightFormat) -> LoraMatrix;

    /// `out = x wᵀ`; `x [rows, in]`, `out [rows, out]`, overwritten. Each weight is read from memory once per call.
    fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]);

    /// Adds adapters: `out[row, offset..] += scale * B(A x[row])` for the rows of each segment.
    ///
    /// `x [rows, in_features]`, `out [rows, out_stride]`. Rows without a segment stay as they are. Work and memory
    /// traffic follow the sum of actual ranks; each A and B is read from memory once per segment.
    fn lora(&self, x: &[f32], in_features: usize, segments: &[LoraSegment<'_>], out: &mut [f32], out_stride: usize);

    /// Pages for keys and values of one layer: `blocks` of `block_size` positions each. Memory is mapped when first written.
    ///
    /// # Panics
    ///
    /// When `block_size`, `kv_heads` or `head_dim` is zero, or the size overflows.
    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer;

    /// Stores keys and values, both `[rows, kv_heads, head_dim]`, at the positions of their rows.
    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer);

    /// Causal attention with grouped heads; the row at position `p` sees positions `0..=p`, its own included,
    /// so [`Self::write_kv`] comes first. `q` and `out` are `[rows, heads, head_dim]`; query head `h` reads
    /// key head `h / (heads / kv_heads)`. Rows without a sequence stay as they are.
    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]);

    /// `out = x / sqrt(mean(x²) + eps) * weight` per row; `x` and `out` are `[rows, weight.len()]`.
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);

    /// `residual += x`, then the norm of `residual` into `out`; all three `[rows, weight.len()]`.
    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);

    /// Rotary embedding in place; `x [rows, heads, head_dim]`, pairs `(i, i + head_dim / 2)`, angle
    /// `positions[row] * inv_freq[i]`, cosine and sine both times `attention_factor`. `inv_freq [head_dim / 2]`.
    fn rope(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: &[u32],
        inv_freq: &[f32],
        attention_factor: f32,
    );

    /// `out = silu(gate) * up`; `gate_up [rows, 2 * inter]` holds gate then up, `out [rows, inter]`.
    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]);
}

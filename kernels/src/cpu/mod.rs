//! The implementation for processors.
//!
//! | file | what |
//! |---|---|
//! | `lanes.rs`, `x86.rs`, `neon.rs` | 16 lanes of `f32` in each instruction set |
//! | `bytes.rs`, `x86_bytes.rs`, `neon_bytes.rs` | 16 sums of products of bytes in each instruction set |
//! | `micro.rs`, `micro/` | micro-kernels, written once over lanes, one table per set |
//! | `pool.rs` | threads |
//! | `linear.rs`, `lora.rs`, `attention.rs`, `rows.rs` | the operations: shapes, cutting into units, calls through the table |

mod attention;
mod bytes;
mod isa;
mod lanes;
mod linear;
mod lora;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_bytes;
mod pool;
mod rows;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_bytes;

pub use isa::{Isa, ParseIsaError};

use crate::packed::{Half, Layout, Matrix, Run};
use crate::{AttentionSeq, Kernels, KvFormat, KvLayer, LoraMatrix, LoraSegment, PackedLinear, WeightFormat, shapes};
use micro::Micro;
use pool::Pool;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// How the processor is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; 1 runs everything on the caller, 0 means one per core.
    pub threads: usize,
    /// None: the fastest that this processor has.
    pub isa: Option<Isa>,
}

/// The implementation for processors.
///
/// # Panics
///
/// When `options.isa` names a set this processor lacks; settings check [`Isa::is_available`] first.
#[must_use]
pub fn cpu(options: CpuOptions) -> Arc<dyn Kernels> {
    let isa = options.isa.unwrap_or_else(Isa::detect);
    assert!(isa.is_available(), "cpu: this processor has no {}", isa.as_str());
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        threads => threads,
    };
    Arc::new(Cpu { isa, micro: isa.micro(), pool: Pool::new(threads), rope: Mutex::default() })
}

/// Values a row-wise operation must move before a second thread pays.
const INLINE_BELOW: usize = 16 << 10;

struct Cpu {
    isa: Isa,
    micro: &'static Micro,
    pool: Pool,
    /// Cosines and sines of the last step: its layers ask for the same ones.
    rope: Mutex<rows::Angles>,
}

impl Cpu {
    /// How the halves of an adapter lie.
    fn half_layout(&self, half: Half, format: WeightFormat) -> Layout {
        match (half, format.is_integer()) {
            (Half::Shrink, true) => Layout::CodeOctets,
            (Half::Shrink, false) => Layout::RankBlocks(self.micro.ranks),
            (Half::Grow, true) => Layout::CodePanels,
            (Half::Grow, false) => self.column_layout(format),
        }
    }

    /// Where outputs are lanes: with a bf16 dot product, two inputs side by side.
    fn column_layout(&self, format: WeightFormat) -> Layout {
        match (format, self.micro.pairs) {
            (WeightFormat::Bf16, Some(_)) => Layout::PairPanels,
            _ => Layout::Panels,
        }
    }

    /// Runs `body` over ranges of rows, in threads if `rows * width` values are worth it.
    fn rows(&self, rows: usize, width: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        if rows * width < INLINE_BELOW { body(0..rows) } else { self.pool.run(rows, 1, body) }
    }
}

impl Kernels for Cpu {
    fn isa(&self) -> &'static str {
        self.isa.as_str()
    }

    fn pack_linear(
        &self,
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        format: WeightFormat,
    ) -> PackedLinear {
        let layout = self.column_layout(format);
        let run: Run<'_> = &|total, body| self.pool.run(total, 1, body);
        PackedLinear(Matrix::pack("pack_linear", weight, out_features, in_features, layout, format, run))
    }

    fn pack_lora_a(&self, a: &[f32], rank: usize, in_features: usize, format: WeightFormat) -> LoraMatrix {
        // Adapters are packed while steps run: the pool stays with the steps.
        let layout = self.half_layout(Half::Shrink, format);
        LoraMatrix(Matrix::pack_half("pack_lora_a", a, Half::Shrink, [rank, in_features], layout, format))
    }

    fn pack_lora_b(&self, b: &[f32], out_features: usize, rank: usize, format: WeightFormat) -> LoraMatrix {
        let layout = self.half_layout(Half::Grow, format);
        LoraMatrix(Matrix::pack_half("pack_lora_b", b, Half::Grow, [out_features, rank], layout, format))
    }

    fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
        let rows = shapes::linear(x, w, out);
        linear::linear(self, x, w, rows, out);
    }

    fn lora(&self, x: &[f32], in_features: usize, segments: &[LoraSegment<'_>], out: &mut [f32], out_stride: usize) {
        shapes::lora(x, in_features, segments, out, out_stride);
        lora::lora(self, x, in_features, segments, out, out_stride);
    }

    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer {
        let pair = if self.micro.pairs.is_some() { 2 } else { 1 };
        KvLayer::new(blocks, [block_size, kv_heads, head_dim], format, pair)
    }

    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
        shapes::write_kv(k, v, seqs, kv);
        attention::write_kv(self, k, v, seqs, kv);
    }

    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]) {
        let group = shapes::attention(q, heads, seqs, kv, out);
        attention::attention(self, q, group, scale, seqs, kv, out);
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        shapes::norm("rms_norm", x, weight.len(), &[out.len()]);
        rows::rms_norm(self, x, weight, eps, out);
    }

    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        shapes::norm("add_rms_norm", x, weight.len(), &[residual.len(), out.len()]);
        rows::add_rms_norm(self, residual, x, weight, eps, out);
    }

    fn rope(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: &[u32],
        inv_freq: &[f32],
        attention_factor: f32,
    ) {
        shapes::rope(x, heads, head_dim, positions, inv_freq);
        rows::rope(self, x, heads, positions, inv_freq, attention_factor);
    }

    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        let rows = shapes::silu_mul(gate_up, inter, out);
        rows::silu_mul(self, gate_up, inter, rows, out);
    }
}

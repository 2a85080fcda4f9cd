//! Where the time of a step goes: the port once more, with a clock around every call.
//!
//! A step makes some hundreds of calls; two readings of the clock around each cost about 0.1 % of the smallest step.

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_kernels::{AttentionSeq, Kernels, KvFormat, KvLayer, LoraMatrix, LoraSegment, PackedLinear, WeightFormat};

/// The parts of one step, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Linears of the base, output matrix included.
    pub base: Duration,
    /// Adapters.
    pub lora: Duration,
    /// Attention, and writing keys and values.
    pub attention: Duration,
    /// Norms, rotary embedding, activation.
    pub rows: Duration,
    /// Checking the batch, embeddings, gathering rows, factors of DoRA adapters, choosing tokens, handing logits out.
    pub gather: Duration,
}

impl AddAssign for StepTimes {
    fn add_assign(&mut self, other: Self) {
        self.base += other.base;
        self.lora += other.lora;
        self.attention += other.attention;
        self.rows += other.rows;
        self.gather += other.gather;
    }
}

/// Kernels with a clock. One step runs at a time; packing is not counted.
pub(crate) struct Timed {
    inner: Arc<dyn Kernels>,
    base: AtomicU64,
    lora: AtomicU64,
    attention: AtomicU64,
    rows: AtomicU64,
}

impl Timed {
    pub(crate) fn new(inner: Arc<dyn Kernels>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { inner, base: zero(), lora: zero(), attention: zero(), rows: zero() }
    }

    /// The kernels without a clock, for use beside steps.
    pub(crate) fn inner(&self) -> &Arc<dyn Kernels> {
        &self.inner
    }

    /// What was counted since the last call; `step` is how long all of it took.
    pub(crate) fn take(&self, step: Duration) -> StepTimes {
        let take = |part: &AtomicU64| Duration::from_nanos(part.swap(0, Ordering::Relaxed));
        let (base, lora) = (take(&self.base), take(&self.lora));
        let (attention, rows) = (take(&self.attention), take(&self.rows));
        StepTimes { base, lora, attention, rows, gather: step.saturating_sub(base + lora + attention + rows) }
    }

    fn time<R>(&self, part: &AtomicU64, call: impl FnOnce(&dyn Kernels) -> R) -> R {
        let start = Instant::now();
        let result = call(self.inner.as_ref());
        part.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }
}

impl Kernels for Timed {
    fn isa(&self) -> &'static str {
        self.inner.isa()
    }

    fn pack_linear(&self, weight: &[f32], out: usize, inputs: usize, format: WeightFormat) -> PackedLinear {
        self.inner.pack_linear(weight, out, inputs, format)
    }

    fn pack_lora_a(&self, a: &[f32], rank: usize, inputs: usize, format: WeightFormat) -> LoraMatrix {
        self.inner.pack_lora_a(a, rank, inputs, format)
    }

    fn pack_lora_b(&self, b: &[f32], out: usize, rank: usize, format: WeightFormat) -> LoraMatrix {
        self.inner.pack_lora_b(b, out, rank, format)
    }

    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer {
        self.inner.new_kv(blocks, block_size, kv_heads, head_dim, format)
    }

    fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
        self.time(&self.base, |kernels| kernels.linear(x, w, out));
    }

    fn lora(&self, x: &[f32], inputs: usize, segments: &[LoraSegment<'_>], out: &mut [f32], out_stride: usize) {
        self.time(&self.lora, |kernels| kernels.lora(x, inputs, segments, out, out_stride));
    }

    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
        self.time(&self.attention, |kernels| kernels.write_kv(k, v, seqs, kv));
    }

    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]) {
        self.time(&self.attention, |kernels| kernels.attention(q, heads, scale, seqs, kv, out));
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.time(&self.rows, |kernels| kernels.rms_norm(x, weight, eps, out));
    }

    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.time(&self.rows, |kernels| kernels.add_rms_norm(residual, x, weight, eps, out));
    }

    fn rope(&self, x: &mut [f32], heads: usize, head_dim: usize, at: &[u32], inv_freq: &[f32], factor: f32) {
        self.time(&self.rows, |kernels| kernels.rope(x, heads, head_dim, at, inv_freq, factor));
    }

    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        self.time(&self.rows, |kernels| kernels.silu_mul(gate_up, inter, out));
    }
}

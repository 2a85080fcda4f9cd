//! What a device engine with codes should compute, by other means: the reference's kernels in f32, and between them every number rounded as
//! the device stores it. Nothing here calls what packs or quantises for a device.

use half::bf16;
use std::sync::Arc;
use weft_base_model::BaseModel;
use weft_engine::{Dtype, ProcessorEngine};
use weft_kernels::{AttentionSeq, Kernels, KvFormat, KvLayer, LoraMatrix, LoraSegment, PackedLinear, WeightFormat};

use crate::common::engine_with;

/// Values of 8 or 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codes {
    /// Integers, a scale for so many inputs; none: for all.
    Int8(Option<usize>),
    /// Integers, a scale and a minimum for 32 inputs.
    Four,
    /// e4m3, a scale for all inputs.
    E4m3,
}

/// Which numbers are rounded, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    /// Activations, weights and adapters to bf16.
    pub(crate) in_bf16: bool,
    /// Keys and values to three bits of fraction. Scales that are powers of two change nothing of that, unless they are too small or too large.
    pub(crate) kv_in_e4m3: bool,
    /// Weights of layers, and of the output matrix.
    pub(crate) weights: [Option<Codes>; 2],
    /// What comes into linears, and into the output matrix.
    pub(crate) inputs: [Option<Codes>; 2],
}

impl Rounding {
    pub(crate) const BF16: Self = Self { in_bf16: true, kv_in_e4m3: false, weights: [None; 2], inputs: [None; 2] };
}

/// The engine of processors over these kernels.
pub(crate) fn engine(model: &BaseModel, rounding: Rounding, kv_blocks: usize) -> ProcessorEngine {
    let kernels = Rounded { rounding, vocabulary: model.config.vocab_size, inner: weft_kernels::reference() };
    engine_with(model, Dtype::F32, kv_blocks, Arc::new(kernels))
}

struct Rounded {
    rounding: Rounding,
    vocabulary: usize,
    inner: Arc<dyn Kernels>,
}

impl Rounded {
    fn store(&self, values: &mut [f32]) {
        if self.rounding.in_bf16 {
            values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
    }

    fn stored(&self, values: &[f32]) -> Vec<f32> {
        let mut values = values.to_vec();
        self.store(&mut values);
        values
    }
}

/// What 8 or 4 bits keep of rows of `width`.
fn rounded(values: &[f32], width: usize, codes: Codes) -> Vec<f32> {
    let group = match codes {
        Codes::Int8(group) => group.unwrap_or(width),
        Codes::Four => 32,
        Codes::E4m3 => width,
    };
    let mut out = Vec::with_capacity(values.len());
    for of in values.chunks(group) {
        let most = of.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        match codes {
            Codes::Int8(_) => {
                out.extend(of.iter().map(|value| (value / most * 127.0).round_ties_even() * (most / 127.0)))
            }
            Codes::E4m3 => out.extend(of.iter().map(|value| e4m3(value / most * 448.0) * (most / 448.0))),
            Codes::Four => {
                let least = of.iter().copied().fold(f32::INFINITY, f32::min);
                let highest = of.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let [step, least] = [(highest - least) / 15.0, least].map(|value| half::f16::from_f32(value).to_f32());
                out.extend(
                    of.iter().map(|value| ((value - least) / step).round_ties_even().clamp(0.0, 15.0) * step + least),
                );
            }
        }
    }
    out.iter_mut().for_each(|value| *value = if value.is_nan() { 0.0 } else { *value });
    out
}

/// To multiples of an eighth of the power of two below, of `2^-9` at least; nothing here is above 448.
fn e4m3(value: f32) -> f32 {
    let unit = (value.abs().log2().floor() - 3.0).max(-9.0).exp2();
    (value / unit).round_ties_even() * unit
}

fn three_bits(values: &[f32]) -> Vec<f32> {
    let round = |&value: &f32| {
        let unit = (value.abs().log2().floor() - 3.0).exp2();
        if value == 0.0 { 0.0 } else { (value / unit).round_ties_even() * unit }
    };
    values.iter().map(round).collect()
}

impl Kernels for Rounded {
    fn isa(&self) -> &'static str {
        "rounded"
    }

    fn pack_linear(&self, weight: &[f32], out: usize, inputs: usize, format: WeightFormat) -> PackedLinear {
        let weight = match self.rounding.weights[usize::from(out == self.vocabulary)] {
            Some(codes) => rounded(weight, inputs, codes),
            None => self.stored(weight),
        };
        self.inner.pack_linear(&weight, out, inputs, format)
    }

    fn pack_lora_a(&self, a: &[f32], rank: usize, inputs: usize, format: WeightFormat) -> LoraMatrix {
        self.inner.pack_lora_a(&self.stored(a), rank, inputs, format)
    }

    fn pack_lora_b(&self, b: &[f32], out: usize, rank: usize, format: WeightFormat) -> LoraMatrix {
        self.inner.pack_lora_b(&self.stored(b), out, rank, format)
    }

    fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
        let is_head = w.out_features() == self.vocabulary;
        match self.rounding.inputs[usize::from(is_head)] {
            Some(codes) => self.inner.linear(&rounded(x, w.in_features(), codes), w, out),
            None => self.inner.linear(x, w, out),
        }
        if !is_head {
            self.store(out);
        }
    }

    fn lora(&self, x: &[f32], inputs: usize, segments: &[LoraSegment<'_>], out: &mut [f32], stride: usize) {
        self.inner.lora(x, inputs, segments, out, stride);
        self.store(out);
    }

    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer {
        self.inner.new_kv(blocks, block_size, kv_heads, head_dim, format)
    }

    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
        if self.rounding.kv_in_e4m3 {
            self.inner.write_kv(&three_bits(k), &three_bits(v), seqs, kv);
        } else {
            self.inner.write_kv(k, v, seqs, kv);
        }
    }

    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]) {
        self.inner.attention(q, heads, scale, seqs, kv, out);
        self.store(out);
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.inner.rms_norm(&self.stored(x), &self.stored(weight), eps, out);
        self.store(out);
    }

    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        residual.iter_mut().zip(x).for_each(|(residual, x)| *residual += x);
        self.store(residual);
        self.inner.rms_norm(residual, &self.stored(weight), eps, out);
        self.store(out);
    }

    fn rope(&self, x: &mut [f32], heads: usize, dim: usize, positions: &[u32], inv_freq: &[f32], factor: f32) {
        self.inner.rope(x, heads, dim, positions, inv_freq, factor);
        self.store(x);
    }

    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        self.inner.silu_mul(gate_up, inter, out);
        self.store(out);
    }
}

//! The definition: plain loops over plain layouts, sums in `f64`, no threads.
//!
//! Slow on purpose. Where an implementation and this file differ by more than the tolerance of the format,
//! the implementation is wrong.

use crate::packed::{ALONE, Half, Layout, Matrix};
use crate::port::{AttentionSeq, Kernels, LoraSegment};
use crate::quant::CodedRow;
use crate::{KvFormat, KvLayer, LoraMatrix, PackedLinear, WeightFormat, shapes};
use std::sync::Arc;

/// The implementation that defines what the others must compute.
#[must_use]
pub fn reference() -> Arc<dyn Kernels> {
    Arc::new(Reference)
}

struct Reference;

impl Kernels for Reference {
    fn isa(&self) -> &'static str {
        "reference"
    }

    fn pack_linear(
        &self,
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        format: WeightFormat,
    ) -> PackedLinear {
        let (rows, cols) = (out_features, in_features);
        PackedLinear(Matrix::pack("pack_linear", weight, rows, cols, Layout::RowMajor, format, ALONE))
    }

    fn pack_lora_a(&self, a: &[f32], rank: usize, in_features: usize, format: WeightFormat) -> LoraMatrix {
        LoraMatrix(Matrix::pack_half("pack_lora_a", a, Half::Shrink, [rank, in_features], Layout::RowMajor, format))
    }

    fn pack_lora_b(&self, b: &[f32], out_features: usize, rank: usize, format: WeightFormat) -> LoraMatrix {
        LoraMatrix(Matrix::pack_half("pack_lora_b", b, Half::Grow, [out_features, rank], Layout::RowMajor, format))
    }

    fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
        let rows = shapes::linear(x, w, out);
        let is_integer = matches!(w.format(), WeightFormat::Int8 | WeightFormat::Q4);
        w.0.expect_layout("linear", if is_integer { Layout::GroupPanels } else { Layout::RowMajor });
        let (inputs, outputs) = (w.in_features(), w.out_features());
        for row in 0..rows {
            let x = &x[row * inputs..(row + 1) * inputs];
            let codes = if is_integer { through_codes(x) } else { Vec::new() };
            let x = if is_integer { &codes } else { x };
            for o in 0..outputs {
                out[row * outputs + o] = dot(x, |i| w.0.at(o, i)) as f32;
            }
        }
    }

    fn lora(&self, x: &[f32], in_features: usize, segments: &[LoraSegment<'_>], out: &mut [f32], out_stride: usize) {
        shapes::lora(x, in_features, segments, out, out_stride);
        for segment in segments {
            for row in segment.rows.clone() {
                let x = &x[row * in_features..(row + 1) * in_features];
                for target in segment.targets {
                    target.a.0.expect_layout("lora", Layout::RowMajor);
                    target.b.0.expect_layout("lora", Layout::RowMajor);
                    let scale = |matrix: &LoraMatrix, r: usize| {
                        matrix.0.rank_scales().map_or(1.0, |scales| f64::from(scales[r]))
                    };
                    let shrunk: Vec<f64> = (0..target.rank)
                        .map(|r| dot(x, |i| target.a.0.at(r, i)) * scale(&target.a, r) * scale(&target.b, r))
                        .collect();
                    for o in 0..target.out_features {
                        let grown: f64 =
                            shrunk.iter().enumerate().map(|(r, value)| value * f64::from(target.b.0.at(o, r))).sum();
                        let to = &mut out[row * out_stride + target.out_offset + o];
                        *to = (f64::from(*to) + f64::from(target.scale) * grown) as f32;
                    }
                }
            }
        }
    }

    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer {
        KvLayer::new(blocks, [block_size, kv_heads, head_dim], format, 1)
    }

    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
        shapes::write_kv(k, v, seqs, kv);
        let (kv_heads, head_dim, block_size) = (kv.kv_heads(), kv.head_dim(), kv.block_size());
        for seq in seqs {
            for (position, row) in (seq.start..).zip(seq.rows.clone()) {
                let block = seq.blocks[position / block_size] as usize;
                for head in 0..kv_heads {
                    let at = (row * kv_heads + head) * head_dim;
                    let (key, value) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                    kv.store(block, head, position % block_size, key, value);
                }
            }
        }
    }

    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]) {
        let group = shapes::attention(q, heads, seqs, kv, out);
        let (head_dim, block_size) = (kv.head_dim(), kv.block_size());
        for seq in seqs {
            let place = |position: usize| (seq.blocks[position / block_size] as usize, position % block_size);
            for (position, row) in (seq.start..).zip(seq.rows.clone()) {
                for head in 0..heads {
                    let at = (row * heads + head) * head_dim;
                    let q = &q[at..at + head_dim];
                    let scores: Vec<f64> = (0..=position)
                        .map(|seen| {
                            let (block, slot) = place(seen);
                            f64::from(scale) * dot(q, |d| kv.key(block, head / group, slot, d))
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for dim in 0..head_dim {
                        let mut sum = 0.0;
                        for (seen, weight) in weights.iter().enumerate() {
                            let (block, slot) = place(seen);
                            sum += weight * f64::from(kv.value(block, head / group, slot, dim));
                        }
                        out[at + dim] = (sum / total) as f32;
                    }
                }
            }
        }
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        shapes::norm("rms_norm", x, weight.len(), &[out.len()]);
        let width = weight.len().max(1);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = dot(x, |i| x[i]) / width as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            for ((to, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *to = (f64::from(*x) * factor * f64::from(*weight)) as f32;
            }
        }
    }

    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        shapes::norm("add_rms_norm", x, weight.len(), &[residual.len(), out.len()]);
        for (to, x) in residual.iter_mut().zip(x) {
            *to += x;
        }
        self.rms_norm(residual, weight, eps, out);
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
        let half = inv_freq.len();
        for (row, &position) in positions.iter().enumerate() {
            for head in 0..heads {
                let at = (row * heads + head) * head_dim;
                let (low, high) = x[at..at + head_dim].split_at_mut(half);
                for i in 0..half {
                    // The angle is an f32 product by definition: that is what models are trained with.
                    let (sin, cos) = (position as f32 * inv_freq[i]).sin_cos();
                    let (sin, cos) = (sin * attention_factor, cos * attention_factor);
                    let (a, b) = (low[i], high[i]);
                    low[i] = a * cos - b * sin;
                    high[i] = b * cos + a * sin;
                }
            }
        }
    }

    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        let rows = shapes::silu_mul(gate_up, inter, out);
        for row in 0..rows {
            for i in 0..inter {
                let gate = f64::from(gate_up[row * 2 * inter + i]);
                let up = f64::from(gate_up[row * 2 * inter + inter + i]);
                out[row * inter + i] = (gate / (1.0 + (-gate).exp()) * up) as f32;
            }
        }
    }
}

/// A row of activations as integer weights see it.
fn through_codes(x: &[f32]) -> Vec<f32> {
    let codes = CodedRow::new(x);
    (0..x.len()).map(|input| codes.at(input) as f32).collect()
}

/// `Σ x[i] * other(i)` in `f64`.
fn dot(x: &[f32], other: impl Fn(usize) -> f32) -> f64 {
    x.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(other(i))).sum()
}

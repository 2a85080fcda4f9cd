//! The hot operations as candle custom ops: each takes the slices out of the tensors and calls one or two
//! [`weft_kernels::Kernels`] methods.
//!
//! All ops work in place on contiguous f32 tensors of `workspace`; shapes are named there.

use crate::dora::ScaledRows;
use crate::shape::Shape;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, bail};
use half::bf16;
use std::cell::RefCell;
use weft_kernels::{AttentionSeq, Kernels, KvLayer, LoraSegment, PackedLinear};

/// Rows of the embedding table `[vocabulary, hidden]` (f32 or bf16) into the residual part of `stream [2, rows, hidden]`.
pub(crate) struct Embed<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) hidden: usize,
}

impl InplaceOp2 for Embed<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(
        &self,
        stream: &mut CpuStorage,
        layout: &Layout,
        table: &CpuStorage,
        table_layout: &Layout,
    ) -> Result<()> {
        let (residual, _) = halves(slice_mut(stream, layout)?);
        let rows = residual.chunks_exact_mut(self.hidden).zip(self.tokens);
        match table {
            CpuStorage::F32(table) => {
                let table = contiguous(table, table_layout)?;
                for (row, &token) in rows {
                    row.copy_from_slice(&table[token as usize * self.hidden..][..self.hidden]);
                }
            }
            CpuStorage::BF16(table) => {
                let table: &[bf16] = contiguous(table, table_layout)?;
                for (row, &token) in rows {
                    let values = &table[token as usize * self.hidden..][..self.hidden];
                    for (to, from) in row.iter_mut().zip(values) {
                        *to = from.to_f32();
                    }
                }
            }
            _ => bail!("embed: the table is neither f32 nor bf16"),
        }
        Ok(())
    }
}

/// The same from the rows of the output matrix, in integers.
pub(crate) struct EmbedTied<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) head: &'a PackedLinear,
}

impl InplaceOp1 for EmbedTied<'_> {
    fn name(&self) -> &'static str {
        "embed_tied"
    }

    fn cpu_fwd(&self, stream: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (residual, _) = halves(slice_mut(stream, layout)?);
        for (row, &token) in residual.chunks_exact_mut(self.head.in_features()).zip(self.tokens) {
            if !self.head.read_row(token as usize, 0, row) {
                bail!("embed: the output matrix cannot be read back");
            }
        }
        Ok(())
    }
}

/// Norm of the residual part of `stream [2, rows, hidden]` into its second part; `weight [hidden]`.
pub(crate) struct Norm<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) eps: f32,
}

impl InplaceOp2 for Norm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        stream: &mut CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let (residual, normed) = halves(slice_mut(stream, layout)?);
        self.kernels.rms_norm(residual, slice(weight, weight_layout)?, self.eps, normed);
        Ok(())
    }
}

/// Adds `delta [rows, hidden]` to the residual part of `stream` and writes the norm into its second part.
pub(crate) struct AddNorm<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) eps: f32,
}

impl InplaceOp3 for AddNorm<'_> {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn cpu_fwd(
        &self,
        stream: &mut CpuStorage,
        layout: &Layout,
        delta: &CpuStorage,
        delta_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let (residual, normed) = halves(slice_mut(stream, layout)?);
        let weight = slice(weight, weight_layout)?;
        self.kernels.add_rms_norm(residual, slice(delta, delta_layout)?, weight, self.eps, normed);
        Ok(())
    }
}

/// What the adapters of a step do to one linear.
#[derive(Default)]
pub(crate) struct Adapters<'a> {
    /// What is added.
    pub(crate) deltas: Vec<LoraSegment<'a>>,
    /// What the sum is multiplied by then: the rows of DoRA adapters, and no others.
    pub(crate) scaled: Vec<ScaledRows<'a>>,
}

/// `out [rows, out] = x [rows, in] wᵀ`, the adapters' deltas on top, and DoRA's factors on that.
pub(crate) struct Linear<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) weight: &'a PackedLinear,
    pub(crate) adapters: Adapters<'a>,
}

impl InplaceOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, out_layout: &Layout, x: &CpuStorage, x_layout: &Layout) -> Result<()> {
        let (x, out) = (slice(x, x_layout)?, slice_mut(out, out_layout)?);
        self.kernels.linear(x, self.weight, out);
        let Adapters { deltas, scaled } = &self.adapters;
        let stride = self.weight.out_features();
        if !deltas.is_empty() {
            self.kernels.lora(x, self.weight.in_features(), deltas, out, stride);
        }
        for rows in scaled {
            rows.apply(out, stride);
        }
        Ok(())
    }
}

/// Takes `qkv [rows, qkv_width]` apart, turns the keys, and puts keys and values where they stay.
pub(crate) struct Store<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) shape: &'a Shape,
    /// `[rows]`.
    pub(crate) positions: &'a [u32],
    pub(crate) seqs: &'a [AttentionSeq<'a>],
    /// One layer's pages. A cell, because candle passes ops by shared reference; the step has them for itself.
    pub(crate) kv: RefCell<&'a mut KvLayer>,
    /// Keeps the queries for [`Attention`].
    pub(crate) split: &'a RefCell<Split>,
}

/// Room for q, k and v taken apart, kept between steps.
#[derive(Default)]
pub(crate) struct Split {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Split {
    fn fill(&mut self, qkv: &[f32], shape: &Shape) {
        let (q_width, kv_width) = (shape.q_width(), shape.kv_width());
        self.q.clear();
        self.k.clear();
        self.v.clear();
        for row in qkv.chunks_exact(shape.qkv_width()) {
            self.q.extend_from_slice(&row[..q_width]);
            self.k.extend_from_slice(&row[q_width..q_width + kv_width]);
            self.v.extend_from_slice(&row[q_width + kv_width..]);
        }
    }
}

fn rope(kernels: &dyn Kernels, shape: &Shape, positions: &[u32], x: &mut [f32], heads: usize) {
    kernels.rope(x, heads, shape.head_dim, positions, &shape.inv_freq, shape.attention_factor);
}

impl InplaceOp1 for Store<'_> {
    fn name(&self) -> &'static str {
        "store"
    }

    fn cpu_fwd(&self, qkv: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let mut split = self.split.borrow_mut();
        split.fill(slice(qkv, layout)?, self.shape);
        let Split { k, v, .. } = &mut *split;
        rope(self.kernels, self.shape, self.positions, k, self.shape.kv_heads);
        self.kernels.write_kv(k, v, self.seqs, &mut self.kv.borrow_mut());
        Ok(())
    }
}

/// Attention of the rows that [`Store`] took apart last: `out [rows, q_width]`.
pub(crate) struct Attention<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) shape: &'a Shape,
    /// `[rows]`.
    pub(crate) positions: &'a [u32],
    pub(crate) seqs: &'a [AttentionSeq<'a>],
    /// One layer's pages.
    pub(crate) kv: &'a KvLayer,
    pub(crate) split: &'a RefCell<Split>,
}

impl InplaceOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let shape = self.shape;
        let q = &mut self.split.borrow_mut().q;
        rope(self.kernels, shape, self.positions, q, shape.heads);
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        self.kernels.attention(q, shape.heads, scale, self.seqs, self.kv, slice_mut(out, layout)?);
        Ok(())
    }
}

/// `out [rows, inter] = silu(gate) * up` from `gate_up [rows, 2 * inter]`.
pub(crate) struct SiluMul<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) intermediate: usize,
}

impl InplaceOp2 for SiluMul<'_> {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, out_layout: &Layout, gate_up: &CpuStorage, layout: &Layout) -> Result<()> {
        self.kernels.silu_mul(slice(gate_up, layout)?, self.intermediate, slice_mut(out, out_layout)?);
        Ok(())
    }
}

/// Copies the named rows of `from [.., width]` (its first rows, if it is a stream) to the first rows of `to`.
pub(crate) struct Gather<'a> {
    pub(crate) rows: &'a [u32],
    pub(crate) width: usize,
}

impl InplaceOp2 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, from: &CpuStorage, from_layout: &Layout) -> Result<()> {
        let (from, to) = (slice(from, from_layout)?, slice_mut(to, to_layout)?);
        for (to, &row) in to.chunks_exact_mut(self.width).zip(self.rows) {
            to.copy_from_slice(&from[row as usize * self.width..][..self.width]);
        }
        Ok(())
    }
}

/// Hands the values of a tensor to a function: how logits leave the tensors.
pub(crate) struct Read<F: Fn(&[f32])>(pub(crate) F);

impl<F: Fn(&[f32])> InplaceOp1 for Read<F> {
    fn name(&self) -> &'static str {
        "read"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0)(slice(storage, layout)?);
        Ok(())
    }
}

fn halves(stream: &mut [f32]) -> (&mut [f32], &mut [f32]) {
    stream.split_at_mut(stream.len() / 2)
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        CpuStorage::F32(values) => contiguous(values, layout),
        _ => bail!("activations are f32"),
    }
}

fn contiguous<'a, T>(values: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("tensor is not contiguous"),
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("activations are contiguous f32"),
    }
}

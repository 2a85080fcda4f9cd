//! The operations of a step of a 135M Llama, with random weights.

use std::hint::black_box;
use weft_kernels::conformance::Random;
use weft_kernels::{AttentionSeq, Kernels, KvFormat, KvLayer, LoraSegment, LoraTarget, PackedLinear, WeightFormat};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const INTER: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const VOCAB: usize = 49_152;
const RANK: usize = 8;
const BLOCK: usize = 16;
const CONTEXT_MAX: usize = 128;

pub(crate) struct Model<'a> {
    kernels: &'a dyn Kernels,
    format: WeightFormat,
    /// Per layer: fused q/k/v, o, fused gate/up, down.
    layers: Vec<[PackedLinear; 4]>,
    head: PackedLinear,
}

impl<'a> Model<'a> {
    pub(crate) fn new(kernels: &'a dyn Kernels, format: WeightFormat) -> Self {
        let values = Random::new(1).normals(HIDDEN * VOCAB);
        let pack = |out_features: usize, in_features: usize| {
            let weight = &values[..out_features * in_features];
            kernels.pack_linear(weight, out_features, in_features, format)
        };
        let layer = |_| [pack(QKV, HIDDEN), pack(HIDDEN, HIDDEN), pack(2 * INTER, HIDDEN), pack(HIDDEN, INTER)];
        Self { kernels, format, layers: (0..LAYERS).map(layer).collect(), head: pack(VOCAB, HIDDEN) }
    }

    pub(crate) fn layer_values(&self) -> usize {
        self.layers.iter().flatten().map(|w| w.in_features() * w.out_features()).sum()
    }

    pub(crate) fn layer_bytes(&self) -> usize {
        self.layers.iter().flatten().map(PackedLinear::bytes).sum()
    }

    pub(crate) fn head_values(&self) -> usize {
        self.head.in_features() * self.head.out_features()
    }

    pub(crate) fn head_bytes(&self) -> usize {
        self.head.bytes()
    }

    pub(crate) fn layer_linears(&self, work: &mut Work) {
        let rows = work.rows;
        for weights in &self.layers {
            for w in weights {
                let x = &work.x[..rows * w.in_features()];
                self.kernels.linear(x, w, &mut work.out[..rows * w.out_features()]);
            }
        }
        black_box(&work.out);
    }

    pub(crate) fn head(&self, work: &mut Work) {
        let x = &work.x[..work.rows * HIDDEN];
        self.kernels.linear(x, &self.head, &mut work.logits);
        black_box(&work.logits);
    }

    /// Writes the row at `position` of every sequence, in every layer.
    pub(crate) fn write_kv(&self, work: &mut Work, position: usize) {
        let (rows, width) = (work.rows, KV_HEADS * HEAD_DIM);
        let seqs = seqs(&work.blocks, rows, position);
        for kv in &mut work.pages {
            let (k, v) = (&work.x[..rows * width], &work.x[rows * width..2 * rows * width]);
            self.kernels.write_kv(k, v, &seqs, kv);
        }
    }

    /// Attends from `position` of every sequence, in every layer.
    pub(crate) fn attention(&self, work: &mut Work, position: usize) {
        let rows = work.rows;
        let seqs = seqs(&work.blocks, rows, position);
        for kv in &work.pages {
            let q = &work.x[..rows * HIDDEN];
            self.kernels.attention(q, HEADS, 0.125, &seqs, kv, &mut work.out[..rows * HIDDEN]);
        }
        black_box(&work.out);
    }

    pub(crate) fn row_operations(&self, work: &mut Work) {
        let rows = work.rows;
        let weight = vec![1.0; HIDDEN];
        let inv_freq: Vec<f32> = (0..32).map(|i| 0.75f32.powi(i)).collect();
        let positions = vec![100; rows];
        for _ in 0..LAYERS {
            let (k, out) = (self.kernels, &mut work.out);
            let x = &work.x[..rows * HIDDEN];
            for _ in 0..2 {
                k.add_rms_norm(&mut work.residual, x, &weight, 1e-5, &mut out[..rows * HIDDEN]);
            }
            k.rope(&mut out[..rows * HIDDEN], HEADS, HEAD_DIM, &positions, &inv_freq, 1.0);
            let keys = &mut out[..rows * KV_HEADS * HEAD_DIM];
            k.rope(keys, KV_HEADS, HEAD_DIM, &positions, &inv_freq, 1.0);
            let gate_up = &work.x[..rows * 2 * INTER];
            k.silu_mul(gate_up, INTER, &mut out[..rows * INTER]);
        }
        black_box(&work.out);
    }

    /// Every row its own adapter on q, k, v and o of every layer.
    pub(crate) fn lora(&self, work: &mut Work) {
        let rows = work.rows;
        for layer in &work.adapters {
            for (targets, stride) in [(&layer[0], QKV), (&layer[1], HIDDEN)] {
                let segments: Vec<LoraSegment<'_>> = targets
                    .iter()
                    .enumerate()
                    .map(|(row, targets)| LoraSegment { rows: row..row + 1, targets })
                    .collect();
                let (x, out) = (&work.x[..rows * HIDDEN], &mut work.out[..rows * stride]);
                self.kernels.lora(x, HIDDEN, &segments, out, stride);
            }
        }
        black_box(&work.out);
    }
}

/// One row at `position` of each sequence.
fn seqs(blocks: &[u32], rows: usize, position: usize) -> Vec<AttentionSeq<'_>> {
    let each = CONTEXT_MAX / BLOCK;
    (0..rows)
        .map(|row| AttentionSeq { rows: row..row + 1, start: position, blocks: &blocks[row * each..][..each] })
        .collect()
}

/// Activations, pages and adapters of a batch.
pub(crate) struct Work {
    rows: usize,
    x: Vec<f32>,
    residual: Vec<f32>,
    out: Vec<f32>,
    logits: Vec<f32>,
    pages: Vec<KvLayer>,
    blocks: Vec<u32>,
    /// Per layer: targets of q/k/v and of o, each per adapter.
    adapters: Vec<[Vec<Vec<LoraTarget>>; 2]>,
}

impl Work {
    pub(crate) fn new(model: &Model<'_>, rows: usize, adapters: usize) -> Self {
        let mut random = Random::new(2);
        let pages = rows * CONTEXT_MAX / BLOCK;
        let values = random.normals(RANK * HIDDEN);
        let target = |out_offset: usize, out_features: usize| LoraTarget {
            a: model.kernels.pack_lora_a(&values, RANK, HIDDEN, model.format),
            b: model.kernels.pack_lora_b(&values[..out_features * RANK], out_features, RANK, model.format),
            rank: RANK,
            scale: 2.0,
            out_offset,
            out_features,
        };
        let qkv = || vec![target(0, 576), target(576, 192), target(768, 192)];
        let o = || vec![target(0, HIDDEN)];
        let format = match model.format {
            WeightFormat::F32 => KvFormat::F32,
            _ => KvFormat::Bf16,
        };
        // Adapters are loaded one after the other, all layers of one before the next.
        let mut layers: Vec<[Vec<Vec<LoraTarget>>; 2]> = (0..LAYERS).map(|_| Default::default()).collect();
        for _ in 0..adapters {
            for layer in &mut layers {
                layer[0].push(qkv());
                layer[1].push(o());
            }
        }
        Self {
            rows,
            x: random.normals(rows * 2 * INTER),
            residual: vec![0.0; rows * HIDDEN],
            out: vec![0.0; rows * 2 * INTER],
            logits: vec![0.0; rows * VOCAB],
            pages: (0..LAYERS).map(|_| model.kernels.new_kv(pages, BLOCK, KV_HEADS, HEAD_DIM, format)).collect(),
            blocks: (0..pages as u32).collect(),
            adapters: layers,
        }
    }
}

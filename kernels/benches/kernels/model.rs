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

    /// All rows in turn to each of these adapters, so many neighbours at a time, on all their sites of every layer.
    pub(crate) fn lora(&self, work: &mut Work, adapters: &Adapters) {
        let rows = work.rows;
        let each = rows / adapters.count;
        for site in &adapters.sites {
            let segment = |(at, targets)| LoraSegment { rows: at * each..(at + 1) * each, targets };
            let targets = site.targets.iter().map(Vec::as_slice);
            let segments: Vec<LoraSegment<'_>> = targets.enumerate().map(segment).collect();
            let (x, out) = (&work.x[..rows * site.inputs], &mut work.out[..rows * site.stride]);
            self.kernels.lora(x, site.inputs, &segments, out, site.stride);
        }
        black_box(&work.out);
    }
}

/// Adapters in a batch.
pub(crate) struct Adapters {
    count: usize,
    sites: Vec<Site>,
}

/// A linear of a layer, or several that are fused.
struct Site {
    inputs: usize,
    stride: usize,
    /// Of each adapter.
    targets: Vec<Vec<LoraTarget>>,
}

/// Inputs of a site, and where its targets' outputs are.
type Shape = (usize, &'static [(usize, usize)]);
pub(crate) const ATTENTION: [Shape; 2] = [(HIDDEN, &[(0, 576), (576, 192), (768, 192)]), (HIDDEN, &[(0, HIDDEN)])];
pub(crate) const ALL_LINEARS: [Shape; 4] =
    [ATTENTION[0], ATTENTION[1], (HIDDEN, &[(0, INTER), (INTER, INTER)]), (INTER, &[(0, HIDDEN)])];

impl Adapters {
    /// One for each of these ranks, with every layer its own values.
    pub(crate) fn new(model: &Model<'_>, shapes: &[Shape], ranks: &[usize]) -> Self {
        let values = Random::new(3).normals(64 * INTER);
        let target = |rank: usize, inputs: usize, out_offset: usize, out_features: usize| LoraTarget {
            a: model.kernels.pack_lora_a(&values[..rank * inputs], rank, inputs, model.format),
            b: model.kernels.pack_lora_b(&values[..out_features * rank], out_features, rank, model.format),
            rank,
            scale: 2.0,
            out_offset,
            out_features,
        };
        let site = |&(inputs, outputs): &Shape| {
            let stride = outputs.iter().map(|(_, out_features)| out_features).sum();
            Site { inputs, stride, targets: Vec::new() }
        };
        let mut sites: Vec<Site> = (0..LAYERS).flat_map(|_| shapes).map(site).collect();
        // Adapters are loaded one after the other, all layers of one before the next.
        for &rank in ranks {
            for (site, (inputs, outputs)) in sites.iter_mut().zip(shapes.iter().cycle()) {
                site.targets.push(outputs.iter().map(|&(at, width)| target(rank, *inputs, at, width)).collect());
            }
        }
        Self { count: ranks.len(), sites }
    }

    pub(crate) fn bytes(&self) -> usize {
        let targets = self.sites.iter().flat_map(|site| &site.targets).flatten();
        targets.map(|target| target.a.bytes() + target.b.bytes()).sum()
    }

    /// Multiplications of a row of each.
    pub(crate) fn values(&self) -> usize {
        let of = |site: &Site| -> usize {
            let targets = site.targets.iter().flatten();
            targets.map(|target| target.rank * (site.inputs + target.out_features)).sum()
        };
        self.sites.iter().map(of).sum()
    }
}

/// One row at `position` of each sequence.
fn seqs(blocks: &[u32], rows: usize, position: usize) -> Vec<AttentionSeq<'_>> {
    let each = CONTEXT_MAX / BLOCK;
    (0..rows)
        .map(|row| AttentionSeq { rows: row..row + 1, start: position, blocks: &blocks[row * each..][..each] })
        .collect()
}

/// Activations and pages of a batch.
pub(crate) struct Work {
    rows: usize,
    x: Vec<f32>,
    residual: Vec<f32>,
    out: Vec<f32>,
    logits: Vec<f32>,
    pages: Vec<KvLayer>,
    blocks: Vec<u32>,
}

impl Work {
    pub(crate) fn new(model: &Model<'_>, rows: usize) -> Self {
        let mut random = Random::new(2);
        let pages = rows * CONTEXT_MAX / BLOCK;
        let format = match model.format {
            WeightFormat::F32 => KvFormat::F32,
            _ => KvFormat::Bf16,
        };
        Self {
            rows,
            x: random.normals(rows * 2 * INTER),
            residual: vec![0.0; rows * HIDDEN],
            out: vec![0.0; rows * 2 * INTER],
            logits: vec![0.0; rows * VOCAB],
            pages: (0..LAYERS).map(|_| model.kernels.new_kv(pages, BLOCK, KV_HEADS, HEAD_DIM, format)).collect(),
            blocks: (0..pages as u32).collect(),
        }
    }
}

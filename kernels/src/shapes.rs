//! Shape checks shared by all implementations, made before anything is written.

use crate::{AttentionSeq, KvLayer, LoraSegment, PackedLinear};
use std::ops::Range;

/// Rows of a linear call.
pub(crate) fn linear(x: &[f32], w: &PackedLinear, out: &[f32]) -> usize {
    let (inputs, outputs) = (w.in_features(), w.out_features());
    let rows = x.len().checked_div(inputs).or(out.len().checked_div(outputs)).unwrap_or(0);
    assert!(
        x.len() == rows * inputs && out.len() == rows * outputs,
        "linear: x has {} values and out {}, for a weight [{outputs}, {inputs}]",
        x.len(),
        out.len(),
    );
    rows
}

/// Rows of a lora call; every target fits, segments are in bounds and disjoint.
pub(crate) fn lora(
    x: &[f32],
    in_features: usize,
    segments: &[LoraSegment<'_>],
    out: &[f32],
    out_stride: usize,
) -> usize {
    let rows = out.len().checked_div(out_stride).unwrap_or(0);
    assert!(
        x.len() == rows * in_features && out.len() == rows * out_stride,
        "lora: x has {} values for in_features {in_features}, out has {} for out_stride {out_stride}",
        x.len(),
        out.len(),
    );
    for target in segments.iter().flat_map(|segment| segment.targets) {
        let (a, b) = (&target.a, &target.b);
        assert!(
            a.rows() == target.rank
                && a.cols() == in_features
                && b.rows() == target.out_features
                && b.cols() == target.rank,
            "lora: rank {}, in_features {in_features}, out_features {} do not fit {a:?} and {b:?}",
            target.rank,
            target.out_features,
        );
        assert!(
            target.out_offset.checked_add(target.out_features).is_some_and(|end| end <= out_stride),
            "lora: columns {} + {} reach beyond out_stride {out_stride}",
            target.out_offset,
            target.out_features,
        );
    }
    disjoint("lora", rows, segments.iter().map(|segment| &segment.rows));
    rows
}

/// Checks sequences against `rows` rows and the pages.
pub(crate) fn sequences(op: &str, rows: usize, seqs: &[AttentionSeq<'_>], kv: &KvLayer) {
    for seq in seqs {
        let end = seq.start + seq.rows.len();
        assert!(
            seq.blocks.len().saturating_mul(kv.block_size()) >= end,
            "{op}: {} blocks of {} do not cover position {end}",
            seq.blocks.len(),
            kv.block_size(),
        );
        let used = &seq.blocks[..end.div_ceil(kv.block_size())];
        for &block in used {
            assert!((block as usize) < kv.blocks(), "{op}: block {block} of a layer with {} blocks", kv.blocks());
        }
    }
    disjoint(op, rows, seqs.iter().map(|seq| &seq.rows));
}

/// Rows of a `write_kv` call.
pub(crate) fn write_kv(k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &KvLayer) {
    let width = kv.kv_heads() * kv.head_dim();
    let rows = k.len() / width;
    assert!(
        k.len() == rows * width && v.len() == k.len(),
        "write_kv: k has {} values and v {}, for {kv:?}",
        k.len(),
        v.len(),
    );
    sequences("write_kv", rows, seqs, kv);
}

/// Checks an attention call; returns the query heads per key head.
pub(crate) fn attention(q: &[f32], heads: usize, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &[f32]) -> usize {
    let (width, group) = (heads * kv.head_dim(), heads / kv.kv_heads());
    let rows = q.len().checked_div(width).unwrap_or(0);
    assert!(
        group * kv.kv_heads() == heads && q.len() == rows * width && out.len() == q.len(),
        "attention: q has {} values, out {}, heads {heads}, for {kv:?}",
        q.len(),
        out.len(),
    );
    sequences("attention", rows, seqs, kv);
    group
}

/// Checks a norm over rows of `width`; `others` have the length of `x`.
pub(crate) fn norm(op: &str, x: &[f32], width: usize, others: &[usize]) {
    assert!(
        (x.is_empty() || width > 0) && x.len().is_multiple_of(width.max(1)) && others.iter().all(|&len| len == x.len()),
        "{op}: x has {} values, the others {others:?}, for a weight [{width}]",
        x.len(),
    );
}

/// Checks a rotary call.
pub(crate) fn rope(x: &[f32], heads: usize, head_dim: usize, positions: &[u32], inv_freq: &[f32]) {
    assert!(
        head_dim == 2 * inv_freq.len() && x.len() == positions.len() * heads * head_dim,
        "rope: x has {} values for [{}, {heads}, {head_dim}], inv_freq has {}",
        x.len(),
        positions.len(),
        inv_freq.len(),
    );
}

/// Rows of a `silu_mul` call.
pub(crate) fn silu_mul(gate_up: &[f32], inter: usize, out: &[f32]) -> usize {
    let rows = out.len().checked_div(inter).unwrap_or(0);
    assert!(
        out.len() == rows * inter && gate_up.len() == 2 * out.len(),
        "silu_mul: gate_up has {} values and out {}, for inter {inter}",
        gate_up.len(),
        out.len(),
    );
    rows
}

/// Ranges within `rows` that share no row. Cost: a sort of the ranges.
fn disjoint<'a>(op: &str, rows: usize, ranges: impl Iterator<Item = &'a Range<usize>>) {
    let mut used: Vec<(usize, usize)> =
        ranges.filter(|range| !range.is_empty()).map(|range| (range.start, range.end)).collect();
    used.sort_unstable();
    let mut free_from = 0;
    for (start, end) in used {
        assert!(start >= free_from, "{op}: rows {start}..{end} overlap rows up to {free_from}");
        assert!(end <= rows, "{op}: rows {start}..{end} of {rows}");
        free_from = end;
    }
}

//! Segmented LoRA: one region per call; a unit is some rows of one segment, shrunk and grown by one thread.
//!
//! A decode step has many segments of one row, a prefill few of many; both give enough units. An adapter's A and B
//! come from memory once per segment: units of the same segment are claimed side by side and find them in the cache.
//! The intermediate `[rows, rank]` lives in the thread's scratch. Nothing is padded to the largest rank.

use super::Cpu;
use super::micro::{Shrink, Tile};
use super::share::{OutPtr, with_scratch};
use crate::packed::{Data, Layout, PANEL};
use crate::{LoraSegment, LoraTarget};
use std::ops::Range;

const ROWS_PER_UNIT: usize = 32;
/// Multiplications below which a second thread costs more than it brings.
const INLINE_BELOW: usize = 1 << 15;

struct Unit<'a> {
    rows: Range<usize>,
    targets: &'a [LoraTarget],
}

pub(super) fn lora(
    cpu: &Cpu,
    x: &[f32],
    in_features: usize,
    segments: &[LoraSegment<'_>],
    out: &mut [f32],
    out_stride: usize,
) {
    let units = units(cpu.pool.threads(), segments);
    let work: usize = units
        .iter()
        .flat_map(|unit| unit.targets.iter().map(|target| (unit.rows.len(), target)))
        .map(|(rows, target)| rows * target.rank * (in_features + target.out_features))
        .sum();
    let to = OutPtr::new(out);
    let body = |range: Range<usize>| {
        for unit in &units[range] {
            let x = &x[unit.rows.start * in_features..unit.rows.end * in_features];
            for target in unit.targets {
                apply(cpu, x, in_features, target, unit.rows.clone(), &to, out_stride);
            }
        }
    };
    if work < INLINE_BELOW { body(0..units.len()) } else { cpu.pool.run(units.len(), 1, &body) }
}

/// Cuts segments into units. Units never share an element of the output: they differ in rows, or, where there would
/// be too few units, in targets whose columns are disjoint.
fn units<'a>(threads: usize, segments: &[LoraSegment<'a>]) -> Vec<Unit<'a>> {
    let mut units = Vec::with_capacity(segments.len());
    for segment in segments {
        for start in segment.rows.clone().step_by(ROWS_PER_UNIT) {
            let rows = start..(start + ROWS_PER_UNIT).min(segment.rows.end);
            units.push(Unit { rows, targets: segment.targets });
        }
    }
    if threads == 1 || units.len() >= 2 * threads {
        return units;
    }
    let split = |unit: Unit<'a>| {
        let size = if columns_disjoint(unit.targets) { 1 } else { unit.targets.len() };
        let parts = unit.targets.chunks(size.max(1));
        parts.map(move |targets| Unit { rows: unit.rows.clone(), targets })
    };
    units.into_iter().flat_map(split).collect()
}

fn columns_disjoint(targets: &[LoraTarget]) -> bool {
    targets.iter().enumerate().all(|(i, a)| {
        targets[..i]
            .iter()
            .all(|b| a.out_offset >= b.out_offset + b.out_features || b.out_offset >= a.out_offset + a.out_features)
    })
}

/// One target for some rows; `x` holds just those rows.
fn apply(
    cpu: &Cpu,
    x: &[f32],
    in_features: usize,
    target: &LoraTarget,
    rows: Range<usize>,
    out: &OutPtr<'_, f32>,
    out_stride: usize,
) {
    let rank = target.rank;
    if rank == 0 || target.out_features == 0 {
        return;
    }
    target.a.0.expect_layout("lora", Layout::PaddedRows);
    target.b.0.expect_layout("lora", Layout::Panels);
    with_scratch::<f32, _>(rows.len() * (rank + PANEL), |scratch| {
        let (t, side) = scratch.split_at_mut(rows.len() * rank);
        // SAFETY: the table fits this processor.
        unsafe {
            match &target.a.0.data {
                Data::F32(a) => {
                    (cpu.micro.shrink_f32)(&mut Shrink { x, width: in_features, a, rank, t });
                }
                Data::Bf16(a) => {
                    (cpu.micro.shrink_bf16)(&mut Shrink { x, width: in_features, a, rank, t });
                }
            }
        }
        for value in t.iter_mut() {
            *value *= target.scale;
        }
        let place = Place { rows, column: target.out_offset, out, out_stride };
        match &target.b.0.data {
            Data::F32(b) => grow(cpu, t, b, target, &place, side, cpu.micro.tile_f32),
            Data::Bf16(b) => grow(cpu, t, b, target, &place, side, cpu.micro.tile_bf16),
        }
    });
}

/// Where in the output a target's columns of some rows are.
struct Place<'a> {
    rows: Range<usize>,
    column: usize,
    out: &'a OutPtr<'a, f32>,
    out_stride: usize,
}

/// Adds `t bᵀ` to the output.
fn grow<W>(
    cpu: &Cpu,
    t: &[f32],
    b: &[W],
    target: &LoraTarget,
    place: &Place<'_>,
    side: &mut [f32],
    kernel: unsafe fn(usize, usize, &Tile<f32, W>),
) {
    let (rank, columns, rows) = (target.rank, target.out_features, place.rows.len());
    assert!(
        b.len() == columns.next_multiple_of(PANEL) * rank && t.len() == rows * rank,
        "lora: invariant: packed length"
    );
    let (whole, stride) = (columns / PANEL, place.out_stride);
    let start = place.rows.start * stride + place.column;
    let mut panel = 0;
    while panel < whole {
        let count = super::tile_panels(cpu.micro, whole - panel);
        let len = (rows - 1) * stride + count * PANEL;
        let to = place.out.at(start + panel * PANEL, len);
        // SAFETY: these columns of these rows belong to this unit, see `units`.
        unsafe { tiles(cpu, t, &b[panel * rank * PANEL..], rank, rows, count, to, stride, kernel) };
        panel += count;
    }
    let used = columns - whole * PANEL;
    if used > 0 {
        // The last panel is partly padding: its tile works on a copy.
        let at = |row: usize| start + row * stride + whole * PANEL;
        for (row, side) in side.chunks_exact_mut(PANEL).enumerate() {
            // SAFETY: as above.
            side[..used].copy_from_slice(unsafe { place.out.slice(at(row), used) });
            side[used..].fill(0.0);
        }
        // SAFETY: `side` has 16 columns for every row.
        unsafe {
            let b = &b[whole * rank * PANEL..];
            tiles(cpu, t, b, rank, rows, 1, side.as_mut_ptr(), PANEL, kernel);
        }
        for (row, side) in side.chunks_exact(PANEL).enumerate() {
            // SAFETY: as above.
            unsafe { place.out.slice(at(row), used) }.copy_from_slice(&side[..used]);
        }
    }
}

/// `count` panels from the start of `b` for all rows.
///
/// # Safety
///
/// `out` is valid for `rows` rows of `count * 16` values and nobody else touches them; `t` and `b` hold that many rows
/// and panels of depth `rank`.
unsafe fn tiles<W>(
    cpu: &Cpu,
    t: &[f32],
    b: &[W],
    rank: usize,
    rows: usize,
    count: usize,
    out: *mut f32,
    out_stride: usize,
    kernel: unsafe fn(usize, usize, &Tile<f32, W>),
) {
    let w = std::array::from_fn(|i| b[i.min(count - 1) * rank * PANEL..].as_ptr());
    let each = rows.div_ceil(rows.div_ceil(cpu.micro.rows_max));
    for row in (0..rows).step_by(each) {
        // SAFETY: rows stay below `rows`; the rest is the caller's duty; the table fits this processor.
        unsafe {
            let tile = Tile {
                depth: rank,
                x: t[row * rank..].as_ptr(),
                x_stride: rank,
                w,
                w_step: PANEL,
                out: out.add(row * out_stride),
                out_stride,
                add: true,
            };
            kernel(each.min(rows - row), count, &tile);
        }
    }
}

//! Segmented LoRA: one region per call; a unit is some rows of one segment, shrunk and grown by one thread.
//!
//! A decode step has many segments of one row, a prefill few of many; both give enough units. An adapter's A and B
//! come from memory once per segment: units of the same segment are claimed side by side and find them in the cache.
//! The intermediate `[rows, rank]` lives in the thread's scratch. Nothing is padded to the largest rank.
//!
//! With a bf16 dot product, activations and the intermediate are rounded to bf16, as in [`super::linear`].

use super::Cpu;
use super::linear::round_rows;
use super::micro::{Ahead, Pairs, Shrink, Tile, fetch_line};
use crate::packed::{Data, Layout, PANEL, ROW};
use crate::share::{OutPtr, with_scratch};
use crate::{LoraMatrix, LoraSegment, LoraTarget, WeightFormat};
use std::ops::Range;

const ROWS_PER_UNIT: usize = 32;
/// Multiplications below which a second thread costs more than it brings.
const INLINE_BELOW: usize = 1 << 15;
/// Most of a matrix to ask for ahead: it shares the second-level cache with the one at work.
const FETCH_BYTES_MAX: usize = 128 << 10;

struct Unit<'a> {
    rows: Range<usize>,
    /// The first of its segment.
    first: bool,
    targets: &'a [LoraTarget],
}

/// What all units of a call share.
struct Call<'a> {
    cpu: &'a Cpu,
    x: &'a [f32],
    /// The same in bf16, rows padded to `ROW`; empty where nobody needs it.
    narrow: &'a [u16],
    in_features: usize,
    out: OutPtr<'a, f32>,
    out_stride: usize,
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
    let targets = || units.iter().flat_map(|unit| unit.targets);
    let rounds = |matrix: &LoraMatrix| matrix.format() == WeightFormat::Bf16;
    let pairs = cpu.micro.pairs.filter(|_| targets().any(|target| rounds(&target.a)));
    let stride = in_features.next_multiple_of(ROW);
    let narrow_len = if pairs.is_some() { x.len() / in_features.max(1) * stride } else { 0 };
    with_scratch::<u16, _>(narrow_len, |narrow| {
        if let Some(pairs) = pairs {
            round_rows(cpu, pairs.round, x, in_features, stride, narrow);
        }
        let out = OutPtr::new(out);
        Call { cpu, x, narrow, in_features, out, out_stride }.run(&units);
    });
}

/// Cuts segments into units. Units never share an element of the output: they differ in rows, or, where there would
/// be too few units, in targets whose columns are disjoint.
fn units<'a>(threads: usize, segments: &[LoraSegment<'a>]) -> Vec<Unit<'a>> {
    let mut units = Vec::with_capacity(segments.len());
    for segment in segments {
        for start in segment.rows.clone().step_by(ROWS_PER_UNIT) {
            let rows = start..(start + ROWS_PER_UNIT).min(segment.rows.end);
            let first = start == segment.rows.start;
            units.push(Unit { rows, first, targets: segment.targets });
        }
    }
    if threads == 1 || units.len() >= 2 * threads {
        return units;
    }
    let split = |unit: Unit<'a>| {
        let size = if columns_disjoint(unit.targets) { 1 } else { unit.targets.len() };
        let parts = unit.targets.chunks(size.max(1));
        parts.map(move |targets| Unit { rows: unit.rows.clone(), targets, ..unit })
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

impl Call<'_> {
    fn run<'a>(&self, units: &'a [Unit<'a>]) {
        let work = |unit: &Unit<'_>| -> usize {
            let cost = |t: &LoraTarget| t.rank * (self.in_features + t.out_features);
            unit.rows.len() * unit.targets.iter().map(cost).sum::<usize>()
        };
        let body = |range: Range<usize>| {
            let of_unit = |unit: &'a Unit<'a>| unit.targets.iter().map(move |target| (unit, target));
            let mut tasks = units[range].iter().flat_map(of_unit).peekable();
            while let Some((unit, target)) = tasks.next() {
                // A segment's later units find its matrices in the cache.
                let next = tasks.peek().filter(|(next, _)| next.first || std::ptr::eq(*next, unit));
                self.apply(target, unit.rows.clone(), next.map(|(_, target)| *target));
            }
        };
        if units.iter().map(work).sum::<usize>() < INLINE_BELOW {
            body(0..units.len());
        } else {
            self.cpu.pool.run(units.len(), 1, &body);
        }
    }

    /// One target for some rows.
    fn apply(&self, target: &LoraTarget, rows: Range<usize>, next: Option<&LoraTarget>) {
        let rank = target.rank;
        if rank == 0 || target.out_features == 0 {
            return;
        }
        with_scratch::<f32, _>(rows.len() * (rank + PANEL), |scratch| {
            let (t, side) = scratch.split_at_mut(rows.len() * rank);
            if let Some(next) = next {
                fetch(&next.a);
            }
            self.shrink(&target.a, rows.clone(), rank, t);
            scale_ranks(target, t);
            if let Some(next) = next {
                fetch(&next.b);
            }
            self.grow(target, rows, t, side);
        });
    }

    /// `t [rows, rank] = x Aᵀ`.
    fn shrink(&self, a: &LoraMatrix, rows: Range<usize>, rank: usize, t: &mut [f32]) {
        a.0.expect_layout("lora", Layout::RankBlocks(self.cpu.micro.ranks));
        let (micro, width) = (self.cpu.micro, self.in_features);
        let x = &self.x[rows.start * width..rows.end * width];
        let ranks = micro.ranks;
        // SAFETY: the table fits this processor.
        unsafe {
            match (&a.0.data, micro.pairs) {
                (Data::F32(a), _) => (micro.shrink_f32)(&mut Shrink { x, width, a, ranks, rank, t }),
                (Data::Bf16(a), None) => (micro.shrink_bf16)(&mut Shrink { x, width, a, ranks, rank, t }),
                (Data::Bf16(a), Some(pairs)) => {
                    let stride = width.next_multiple_of(ROW);
                    let x = &self.narrow[rows.start * stride..rows.end * stride];
                    (pairs.shrink)(&mut Shrink { x, width, a, ranks, rank, t });
                }
                (Data::Codes(a, _), _) => (micro.shrink_i8)(&mut Shrink { x, width, a, ranks, rank, t }),
                (Data::Int8(_) | Data::Q4(_), _) => unreachable!("invariant: adapters in integers are codes"),
            }
        }
    }

    /// Adds `t Bᵀ` to the output.
    fn grow(&self, target: &LoraTarget, rows: Range<usize>, t: &[f32], side: &mut [f32]) {
        let (micro, rank) = (self.cpu.micro, target.rank);
        let b = &target.b.0;
        let kernel_layout = self.cpu.column_layout(b.format());
        b.expect_layout("lora", kernel_layout);
        let mut place = Place { call: self, target, rows, side };
        match (&b.data, micro.pairs) {
            (Data::F32(b), _) => place.add(t, rank, b, PANEL, micro.tile_f32),
            (Data::Bf16(b), None) => place.add(t, rank, b, PANEL, micro.tile_bf16),
            (Data::Bf16(b), Some(Pairs { tile, round, .. })) => {
                let depth = rank.div_ceil(2);
                with_scratch::<u32, _>(place.rows.len() * depth, |pairs| {
                    for (t, pairs) in t.chunks_exact(rank).zip(pairs.chunks_exact_mut(depth)) {
                        pairs[depth - 1] = 0;
                        // SAFETY: the table fits this processor.
                        unsafe { round(t, &mut bytemuck::cast_slice_mut(pairs)[..rank]) };
                    }
                    place.add(pairs, depth, b, 2 * PANEL, tile);
                });
            }
            (Data::Codes(b, _), _) => place.add(t, rank, b, PANEL, micro.tile_i8),
            (Data::Int8(_) | Data::Q4(_), _) => unreachable!("invariant: adapters in integers are codes"),
        }
    }
}

/// `t [rows, rank]` times the target's scale, and those of its codes.
fn scale_ranks(target: &LoraTarget, t: &mut [f32]) {
    match (target.a.0.rank_scales(), target.b.0.rank_scales()) {
        (None, None) => {
            for value in t {
                *value *= target.scale;
            }
        }
        (a, b) => {
            for (rank, value) in t.iter_mut().enumerate() {
                let of = |scales: Option<&[f32]>| scales.map_or(1.0, |scales| scales[rank % target.rank]);
                *value *= target.scale * of(a) * of(b);
            }
        }
    }
}

/// Where in the output a target's columns of some rows are.
struct Place<'a> {
    call: &'a Call<'a>,
    target: &'a LoraTarget,
    rows: Range<usize>,
    /// `[rows, 16]`, for the last panel.
    side: &'a mut [f32],
}

impl Place<'_> {
    /// `out += t b`; `t [rows, depth]`, `b [panels, depth, step]`.
    fn add<X, W>(&mut self, t: &[X], depth: usize, b: &[W], step: usize, kernel: unsafe fn(usize, usize, &Tile<X, W>)) {
        let (columns, rows, out) = (self.target.out_features, self.rows.len(), &self.call.out);
        let panel_len = depth * step;
        assert!(
            b.len() == columns.div_ceil(PANEL) * panel_len && t.len() == rows * depth,
            "lora: invariant: packed length"
        );
        let shape = self.call.cpu.micro.largest.shape(rows);
        let tiles = |panel: usize, count: usize, out: *mut f32, out_stride: usize| {
            let w = std::array::from_fn(|i| b[(panel + i.min(count - 1)) * panel_len..].as_ptr());
            for row in (0..rows).step_by(shape.rows) {
                let height = shape.rows.min(rows - row);
                let (x, x_stride, w_step) = (t[row * depth..].as_ptr(), depth, step);
                let out = out.wrapping_add(row * out_stride);
                let (add, ahead) = (true, Ahead::NONE);
                let tile = Tile { depth, x, x_stride, w, w_step, out, out_stride, add, ahead };
                // SAFETY: t and b hold these rows and panels; `out` is ours for all of them (below); the table fits
                // this processor, and height and count come from its shapes.
                unsafe { kernel(height, count, &tile) };
            }
        };
        let (whole, stride) = (columns / PANEL, self.call.out_stride);
        let start = self.rows.start * stride + self.target.out_offset;
        let mut panel = 0;
        while panel < whole {
            let count = shape.panels(whole - panel);
            // These columns of these rows belong to this unit, see `units`.
            let to = out.at(start + panel * PANEL, (rows - 1) * stride + count * PANEL);
            tiles(panel, count, to, stride);
            panel += count;
        }
        let used = columns - whole * PANEL;
        if used > 0 {
            // The last panel is partly padding: its tile works on a copy.
            let at = |row: usize| start + row * stride + whole * PANEL;
            for (row, side) in self.side.chunks_exact_mut(PANEL).enumerate() {
                // SAFETY: columns of rows of this unit, see `units`.
                side[..used].copy_from_slice(unsafe { out.slice(at(row), used) });
                side[used..].fill(0.0);
            }
            tiles(whole, 1, self.side.as_mut_ptr(), PANEL);
            for (row, side) in self.side.chunks_exact(PANEL).enumerate() {
                // SAFETY: as above.
                unsafe { out.slice(at(row), used) }.copy_from_slice(&side[..used]);
            }
        }
    }
}

/// Asks for a whole matrix while the one before is at work. Matrices of a decode step are a few kilobytes each: too short
/// for the hardware to guess ahead (measured: the step's adapters come in at 11 instead of 8 GB/s per thread).
fn fetch(matrix: &LoraMatrix) {
    let (start, bytes) = match &matrix.0.data {
        Data::F32(data) => (data.as_ptr().cast::<u8>(), data.bytes()),
        Data::Bf16(data) => (data.as_ptr().cast::<u8>(), data.bytes()),
        Data::Codes(data, _) => (data.as_ptr().cast::<u8>(), data.bytes()),
        Data::Int8(_) | Data::Q4(_) => return,
    };
    for line in (0..bytes.min(FETCH_BYTES_MAX)).step_by(64) {
        fetch_line(start.wrapping_add(line));
    }
}

//! Segmented LoRA: one region per call; a unit is some rows of one segment, shrunk and grown by one thread.
//!
//! A decode step has many segments of one row, a prefill few of many; both give enough units. An adapter's A and B
//! come from memory once per segment: units of the same segment are claimed side by side and find them in the cache.
//! The intermediate `[rows, rank]` lives in the thread's scratch. Nothing is padded to the largest rank.
//!
//! With a bf16 dot product, activations and the intermediate are rounded to bf16, as in [`super::linear`]. Where adapters are
//! codes, both become codes, too.

use super::Cpu;
use super::linear::{quantise_rows, round_rows};
use super::micro::codes::{GrowCodes, ShrinkCodes};
use super::micro::{Ahead, Pairs, Shrink, Tile};
use crate::packed::{Data, Layout, OCTET, PANEL, ROW};
use crate::quant::{self, GROUP, GroupX};
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
    /// The same in groups of codes; likewise.
    codes: &'a [GroupX],
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
    let any = |format: WeightFormat| targets().any(|target| target.a.format() == format);
    let pairs = cpu.micro.pairs.filter(|_| any(WeightFormat::Bf16));
    let rows = x.len() / in_features.max(1);
    let stride = in_features.next_multiple_of(ROW);
    let narrow_len = if pairs.is_some() { rows * stride } else { 0 };
    let codes_len = if any(WeightFormat::Int8) { rows * quant::groups(in_features) } else { 0 };
    with_scratch::<u16, _>(narrow_len, |narrow| {
        if let Some(pairs) = pairs {
            round_rows(cpu, pairs.round, x, in_features, stride, narrow);
        }
        with_scratch::<GroupX, _>(codes_len, |codes| {
            if codes_len > 0 {
                quantise_rows(cpu, x, in_features, codes);
            }
            let out = OutPtr::new(out);
            Call { cpu, x, narrow, codes, in_features, out, out_stride }.run(&units);
        });
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
        // Codes are made of whole groups.
        let is_codes = target.a.format().is_integer();
        let stride = if is_codes { rank.next_multiple_of(GROUP) } else { rank };
        with_scratch::<f32, _>(rows.len() * (stride + PANEL), |scratch| {
            let (t, side) = scratch.split_at_mut(rows.len() * stride);
            let [next_a, next_b] = [next.map(|next| &next.a), next.map(|next| &next.b)];
            if is_codes {
                self.shrink_codes(&target.a, rows.clone(), rank, t, next_a);
            } else {
                self.shrink(&target.a, rows.clone(), rank, t, next_a);
            }
            scale_ranks(target, t, stride);
            let place = Place { call: self, target, rows, side, next: next_b };
            if is_codes { place.add_codes(t, stride) } else { self.grow(place, t) }
        });
    }

    /// Passes of rows over codes: as many at a time as a tile has, then one by one.
    fn passes(&self, rows: usize) -> usize {
        let each = self.cpu.micro.quant.eight.largest.rows;
        rows / each + rows % each
    }

    /// `t [rows, rank rounded up to 32] = x Aᵀ` in codes, zero beyond the rank; the scales of ranks are not applied.
    fn shrink_codes(&self, a: &LoraMatrix, rows: Range<usize>, rank: usize, t: &mut [f32], next: Option<&LoraMatrix>) {
        a.0.expect_layout("lora", Layout::CodeOctets);
        let (groups, stride) = (quant::groups(self.in_features), t.len() / rows.len());
        let Data::Codes(a, _) = &a.0.data else { unreachable!("invariant: adapters in integers are codes") };
        let ahead = ahead(next, self.passes(rows.len()) * rank.div_ceil(OCTET) * groups);
        let x = &self.codes[rows.start * groups..rows.end * groups];
        t.chunks_exact_mut(stride).for_each(|t| t[rank..].fill(0.0));
        // SAFETY: the table fits this processor.
        unsafe { (self.cpu.micro.quant.shrink)(&mut ShrinkCodes { x, groups, a, rank, t, stride, ahead }) };
    }

    /// `t [rows, rank] = x Aᵀ`.
    fn shrink(&self, a: &LoraMatrix, rows: Range<usize>, rank: usize, t: &mut [f32], next: Option<&LoraMatrix>) {
        a.0.expect_layout("lora", Layout::RankBlocks(self.cpu.micro.ranks));
        let (micro, width) = (self.cpu.micro, self.in_features);
        let x = &self.x[rows.start * width..rows.end * width];
        let ranks = micro.ranks;
        let ahead = ahead(next, rows.len() * rank.div_ceil(ranks) * width.div_ceil(ROW));
        // SAFETY: the table fits this processor.
        unsafe {
            match (&a.0.data, micro.pairs) {
                (Data::F32(a), _) => (micro.shrink_f32)(&mut Shrink { x, width, a, ranks, rank, t, ahead }),
                (Data::Bf16(a), None) => (micro.shrink_bf16)(&mut Shrink { x, width, a, ranks, rank, t, ahead }),
                (Data::Bf16(a), Some(pairs)) => {
                    let stride = width.next_multiple_of(ROW);
                    let x = &self.narrow[rows.start * stride..rows.end * stride];
                    (pairs.shrink)(&mut Shrink { x, width, a, ranks, rank, t, ahead });
                }
                (Data::Codes(..) | Data::Int8(_) | Data::Q4(_), _) => unreachable!("invariant: floats"),
            }
        }
    }

    /// Adds `t Bᵀ` to the output.
    fn grow(&self, mut place: Place<'_>, t: &[f32]) {
        let (micro, rank) = (self.cpu.micro, place.target.rank);
        let b = &place.target.b.0;
        let kernel_layout = self.cpu.column_layout(b.format());
        b.expect_layout("lora", kernel_layout);
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
            (Data::Codes(..) | Data::Int8(_) | Data::Q4(_), _) => unreachable!("invariant: floats"),
        }
    }
}

/// The first `rank` of each row of `t [rows, stride]`, times the target's scale and those of its codes.
fn scale_ranks(target: &LoraTarget, t: &mut [f32], stride: usize) {
    match (target.a.0.rank_scales(), target.b.0.rank_scales()) {
        (Some(a), Some(b)) => {
            for t in t.chunks_exact_mut(stride) {
                for ((value, a), b) in t.iter_mut().zip(a).zip(b) {
                    *value *= target.scale * a * b;
                }
            }
        }
        _ => t.iter_mut().for_each(|value| *value *= target.scale),
    }
}

/// Where in the output a target's columns of some rows are.
struct Place<'a> {
    call: &'a Call<'a>,
    target: &'a LoraTarget,
    rows: Range<usize>,
    /// `[rows, 16]`, for the last panel.
    side: &'a mut [f32],
    /// The matrix after this one.
    next: Option<&'a LoraMatrix>,
}

impl Place<'_> {
    /// `out += t b`; `t [rows, depth]`, `b [panels, depth, step]`.
    fn add<X, W>(&mut self, t: &[X], depth: usize, b: &[W], step: usize, kernel: unsafe fn(usize, usize, &Tile<X, W>)) {
        let (columns, rows) = (self.target.out_features, self.rows.len());
        let panel_len = depth * step;
        assert!(
            b.len() == columns.div_ceil(PANEL) * panel_len && t.len() == rows * depth,
            "lora: invariant: packed length"
        );
        let shape = self.call.cpu.micro.largest.shape(rows);
        let widest = shape.panels((columns / PANEL).max(1));
        let mut ahead = ahead(self.next, rows.div_ceil(shape.rows) * columns.div_ceil(PANEL * widest) * depth);
        let mut tiles = |panel: usize, count: usize, out: *mut f32, out_stride: usize| {
            let w = std::array::from_fn(|i| b[(panel + i.min(count - 1)) * panel_len..].as_ptr());
            for row in (0..rows).step_by(shape.rows) {
                let height = shape.rows.min(rows - row);
                let (x, x_stride, w_step) = (t[row * depth..].as_ptr(), depth, step);
                let out = out.wrapping_add(row * out_stride);
                let tile = Tile { depth, x, x_stride, w, w_step, out, out_stride, add: true, ahead };
                // SAFETY: t and b hold these rows and panels; `out` is ours for all of them (below); the table fits
                // this processor, and height and count come from its shapes.
                unsafe { kernel(height, count, &tile) };
                ahead = ahead.after(depth);
            }
        };
        let (whole, stride) = (columns / PANEL, self.call.out_stride);
        let mut panel = 0;
        while panel < whole {
            let count = shape.panels(whole - panel);
            tiles(panel, count, self.columns(panel, count), stride);
            panel += count;
        }
        self.last_panel(|side| tiles(whole, 1, side, PANEL));
    }

    /// `out += t b` in codes; `t [rows, stride]` of whole groups, `b [panels, rank / 4, 16, 4]`.
    fn add_codes(mut self, t: &[f32], stride: usize) {
        let (columns, rank, quant) = (self.target.out_features, self.target.rank, &self.call.cpu.micro.quant);
        self.target.b.0.expect_layout("lora", Layout::CodePanels);
        let Data::Codes(b, _) = &self.target.b.0.data else {
            unreachable!("invariant: adapters in integers are codes")
        };
        let (groups, depth, panels) = (stride / GROUP, rank.div_ceil(4), columns / PANEL);
        let ahead = ahead(self.next, self.call.passes(self.rows.len()) * columns.div_ceil(PANEL) * groups);
        with_scratch::<GroupX, _>(self.rows.len() * groups, |codes| {
            for (t, codes) in t.chunks_exact(stride).zip(codes.chunks_exact_mut(groups)) {
                // SAFETY: the table fits this processor.
                unsafe { (quant.quantise)(t, codes) };
            }
            let (whole, last) = b.split_at(panels * depth * 4 * PANEL);
            let (t, out_stride) = (&*codes, self.call.out_stride);
            let (b, out) = (whole, self.columns(0, panels));
            // SAFETY: these columns of these rows are ours; the table fits this processor.
            unsafe { (quant.grow)(&mut GrowCodes { t, groups, b, depth, panels, out, out_stride, ahead }) };
            self.last_panel(|out| {
                let (b, panels, out_stride, ahead) = (last, 1, PANEL, Ahead::NONE);
                // SAFETY: the side buffer has 16 columns for every row; the table fits this processor.
                unsafe { (quant.grow)(&mut GrowCodes { t, groups, b, depth, panels, out, out_stride, ahead }) };
            });
        });
    }

    /// First row of some whole panels: these columns of these rows belong to this unit, see `units`.
    fn columns(&self, panel: usize, count: usize) -> *mut f32 {
        let stride = self.call.out_stride;
        let start = self.rows.start * stride + self.target.out_offset;
        self.call.out.at(start + panel * PANEL, (self.rows.len() - 1) * stride + count * PANEL)
    }

    /// The last panel, where it is partly padding: `tile` works on a copy, `[rows, 16]`.
    fn last_panel(&mut self, mut tile: impl FnMut(*mut f32)) {
        let (columns, stride, out) = (self.target.out_features, self.call.out_stride, &self.call.out);
        let used = columns % PANEL;
        if used == 0 {
            return;
        }
        let at = |row: usize| (self.rows.start + row) * stride + self.target.out_offset + columns - used;
        for (row, side) in self.side.chunks_exact_mut(PANEL).enumerate() {
            // SAFETY: columns of rows of this unit, see `units`.
            side[..used].copy_from_slice(unsafe { out.slice(at(row), used) });
            side[used..].fill(0.0);
        }
        tile(self.side.as_mut_ptr());
        for (row, side) in self.side.chunks_exact(PANEL).enumerate() {
            // SAFETY: as above.
            unsafe { out.slice(at(row), used) }.copy_from_slice(&side[..used]);
        }
    }
}

/// A matrix to ask for in so many steps of the one before it. Matrices of a decode step are a few kilobytes each: too short
/// for the hardware to guess ahead. Asked for at once they fill the queue of the cache, and nothing is multiplied meanwhile.
fn ahead(matrix: Option<&LoraMatrix>, steps: usize) -> Ahead {
    let (start, bytes) = match matrix.map(|matrix| &matrix.0.data) {
        Some(Data::F32(data)) => (data.as_ptr().cast::<u8>(), data.bytes()),
        Some(Data::Bf16(data)) => (data.as_ptr().cast::<u8>(), data.bytes()),
        Some(Data::Codes(data, _)) => (data.as_ptr().cast::<u8>(), data.bytes()),
        Some(Data::Int8(_) | Data::Q4(_)) | None => return Ahead::NONE,
    };
    Ahead::over(start, bytes.min(FETCH_BYTES_MAX), steps)
}

//! Linear: tiles over panels of 16 outputs.
//!
//! A thread takes some panels and runs all rows over them, so each weight comes from memory once, and again only from
//! the second-level cache. Depth is cut so that the panels of a tile stay in that cache; the sums go on from the
//! output where they stopped, which changes no bit of them.

use super::Cpu;
use super::micro::quant::Tiles;
use super::micro::{Ahead, Largest, PANELS_MAX, Tile};
use crate::packed::{Data, Layout, PANEL, PackedLinear, ROW};
use crate::quant::{self, GroupX};
use crate::share::{OutPtr, with_scratch};
use std::ops::Range;

/// Bytes of the weights of one tile that should stay in the second-level cache while rows pass over them.
const TILE_BYTES_MAX: usize = 512 << 10;
/// From this many rows on the region is cut along rows as well.
const ROWS_PER_UNIT: usize = 48;
/// Multiplications (and weights) below which a second thread costs more than it brings.
const INLINE_BELOW: usize = 1 << 17;
const INLINE_WEIGHTS_BELOW: usize = 1 << 15;

/// Up to this many passes of rows over a panel, memory is the limit and the next panels are fetched meanwhile; beyond,
/// the hints cost more than they bring (measured: 12 to 15 % faster up to 8 rows, even at 16, 5 % slower at 32).
const PASSES_MAX: usize = 2;
/// The same for integers, whose products are done sooner.
const QUANT_PASSES_MAX: usize = 16;

/// How the stored weights meet the activations.
struct Operand<'a, X, W> {
    x: &'a [X],
    x_stride: usize,
    w: &'a [W],
    inputs: usize,
    /// Steps along k, and values of `w` per step and panel.
    depth: usize,
    step: usize,
    /// Up to this many passes over a panel the next ones are fetched meanwhile.
    fetch_passes_max: usize,
    largest: Largest,
    kernel: unsafe fn(usize, usize, &Tile<X, W>),
}

pub(super) fn linear(cpu: &Cpu, x: &[f32], w: &PackedLinear, rows: usize, out: &mut [f32]) {
    let (inputs, micro) = (w.in_features(), cpu.micro);
    if out.is_empty() {
        return;
    }
    let largest = micro.largest;
    match (&w.0.data, micro.pairs) {
        (Data::F32(data), _) => {
            w.0.expect_layout("linear", Layout::Panels);
            let kernel = micro.tile_f32;
            let operand = Operand {
                x,
                inputs,
                x_stride: inputs,
                w: data,
                depth: inputs,
                step: PANEL,
                fetch_passes_max: PASSES_MAX,
                largest,
                kernel,
            };
            run(cpu, &operand, rows, w.out_features(), out);
        }
        (Data::Bf16(data), None) => {
            w.0.expect_layout("linear", Layout::Panels);
            let kernel = micro.tile_bf16;
            let operand = Operand {
                x,
                inputs,
                x_stride: inputs,
                w: data,
                depth: inputs,
                step: PANEL,
                fetch_passes_max: PASSES_MAX,
                largest,
                kernel,
            };
            run(cpu, &operand, rows, w.out_features(), out);
        }
        (Data::Bf16(data), Some(pairs)) => {
            w.0.expect_layout("linear", Layout::PairPanels);
            // A cache line between rows keeps rows of 2048 inputs out of each other's cache sets.
            let depth = inputs.div_ceil(2);
            let x_stride = inputs.next_multiple_of(ROW) / 2 + PANEL;
            with_scratch::<u32, _>(rows * x_stride, |scratch| {
                let narrow = bytemuck::cast_slice_mut(scratch);
                round_rows(cpu, pairs.round, x, inputs, 2 * x_stride, narrow);
                let (step, kernel) = (2 * PANEL, pairs.tile);
                let operand = Operand {
                    x: scratch,
                    inputs,
                    x_stride,
                    w: data,
                    depth,
                    step,
                    fetch_passes_max: PASSES_MAX,
                    largest,
                    kernel,
                };
                run(cpu, &operand, rows, w.out_features(), out);
            });
        }
        (Data::Int8(data), _) => quantised(cpu, x, data, micro.quant.eight, w, rows, out),
        (Data::Q4(data), _) => quantised(cpu, x, data, micro.quant.four, w, rows, out),
        (Data::Codes(..), _) => unreachable!("invariant: codes are halves of adapters"),
    }
}

/// Integer weights: the activations become codes first. Depth is counted in groups.
fn quantised<W: Copy + Sync>(
    cpu: &Cpu,
    x: &[f32],
    data: &[W],
    tiles: Tiles<W>,
    w: &PackedLinear,
    rows: usize,
    out: &mut [f32],
) {
    let depth = quant::groups(w.in_features());
    with_scratch::<GroupX, _>(rows * depth, |scratch| {
        quantise_rows(cpu, x, w.in_features(), scratch);
        let operand = Operand {
            x: scratch,
            inputs: w.in_features(),
            x_stride: depth,
            w: data,
            depth,
            step: 1,
            fetch_passes_max: QUANT_PASSES_MAX,
            largest: tiles.largest,
            kernel: tiles.kernel,
        };
        run(cpu, &operand, rows, w.out_features(), out);
    });
}

/// Turns each row of `x [rows, inputs]` into its groups of codes.
pub(super) fn quantise_rows(cpu: &Cpu, x: &[f32], inputs: usize, groups: &mut [GroupX]) {
    if inputs == 0 {
        return;
    }
    let (rows, depth) = (x.len() / inputs, quant::groups(inputs));
    let to = OutPtr::new(groups);
    cpu.rows(rows, inputs, &|range: Range<usize>| {
        for row in range {
            // SAFETY: rows of one region are distinct; the table belongs to an instruction set this processor has.
            unsafe { (cpu.micro.quant.quantise)(&x[row * inputs..][..inputs], to.slice(row * depth, depth)) };
        }
    });
}

/// Rounds each row of `x [rows, inputs]` to bf16, `stride` values apart. Up to the next vector the rest is zero.
pub(super) fn round_rows(
    cpu: &Cpu,
    round: unsafe fn(&[f32], &mut [u16]),
    x: &[f32],
    inputs: usize,
    stride: usize,
    narrow: &mut [u16],
) {
    if inputs == 0 {
        return;
    }
    let rows = x.len() / inputs;
    let to = OutPtr::new(narrow);
    let used = inputs.next_multiple_of(ROW);
    cpu.rows(rows, inputs, &|range: Range<usize>| {
        for row in range {
            // SAFETY: rows of one region are distinct.
            let narrow = unsafe { to.slice(row * stride, used) };
            narrow[inputs..].fill(0);
            // SAFETY: the table belongs to an instruction set this processor has.
            unsafe { round(&x[row * inputs..][..inputs], &mut narrow[..inputs]) };
        }
    });
}

fn run<X: Copy + Sync, W: Copy + Sync>(
    cpu: &Cpu,
    operand: &Operand<'_, X, W>,
    rows: usize,
    outputs: usize,
    out: &mut [f32],
) {
    let panels = outputs.div_ceil(PANEL);
    let weights = outputs * operand.inputs;
    assert!(
        operand.w.len() == panels * operand.depth * operand.step
            && operand.x.len() >= (rows - 1) * operand.x_stride + operand.depth
            && out.len() == rows * outputs,
        "linear: invariant: operands match the packed shape"
    );
    let to = OutPtr::new(out);
    let panels_max = operand.largest.shape(rows).panels;
    let small = weights < INLINE_WEIGHTS_BELOW || weights * rows < INLINE_BELOW;
    if rows < ROWS_PER_UNIT {
        let body = |range: Range<usize>| block(operand, 0..rows, range, outputs, &to);
        return if small { body(0..panels) } else { cpu.pool.run(panels, panels_max, &body) };
    }
    // Neighbouring units share their panels, so that they are still in the cache.
    let panels_each = PANELS_MAX.next_multiple_of(panels_max);
    let (row_units, panel_units) = (rows.div_ceil(ROWS_PER_UNIT), panels.div_ceil(panels_each));
    let body = |range: Range<usize>| {
        for unit in range {
            let (panel, row) = (unit / row_units * panels_each, unit % row_units * ROWS_PER_UNIT);
            let panels = panel..(panel + panels_each).min(panels);
            block(operand, row..(row + ROWS_PER_UNIT).min(rows), panels, outputs, &to);
        }
    };
    if small { body(0..row_units * panel_units) } else { cpu.pool.run(row_units * panel_units, 1, &body) }
}

/// All of `rows` times all of `panels`.
fn block<X: Copy, W: Copy>(
    operand: &Operand<'_, X, W>,
    rows: Range<usize>,
    panels: Range<usize>,
    outputs: usize,
    out: &OutPtr<f32>,
) {
    let whole = panels.end.min(outputs / PANEL);
    let mut panel = panels.start;
    while panel < whole {
        let count = operand.largest.shape(rows.len()).panels(whole - panel);
        // SAFETY: columns of whole panels in rows of this unit: nobody else's.
        unsafe {
            let start = out.at(rows.start * outputs + panel * PANEL, (rows.len() - 1) * outputs + count * PANEL);
            stripe(operand, rows.clone(), panel, count, start, outputs);
        }
        panel += count;
    }
    if panel < panels.end {
        // The last panel is partly padding: its tile goes to a side buffer.
        let used = outputs - panel * PANEL;
        let mut side = vec![0.0f32; rows.len() * PANEL];
        // SAFETY: the side buffer has 16 columns for every row.
        unsafe { stripe(operand, rows.clone(), panel, 1, side.as_mut_ptr(), PANEL) };
        for (row, side) in rows.zip(side.chunks_exact(PANEL)) {
            // SAFETY: the last columns of rows of this unit: nobody else's.
            unsafe { out.slice(row * outputs + panel * PANEL, used) }.copy_from_slice(&side[..used]);
        }
    }
}

/// `count` neighbouring panels for all rows, depth cut to fit the cache.
///
/// # Safety
///
/// `out` is valid for `rows.len()` rows of `count * 16` values, `out_stride` apart, and nobody else touches them.
unsafe fn stripe<X: Copy, W: Copy>(
    operand: &Operand<'_, X, W>,
    rows: Range<usize>,
    panel: usize,
    count: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let rows_each = operand.largest.shape(rows.len()).rows;
    let passes = rows.len().div_ceil(rows_each);
    let fitting = TILE_BYTES_MAX / (count * operand.step * size_of::<W>());
    let depth_each = if passes == 1 { operand.depth } else { fitting.max(PANEL) }.max(1);
    let panel_len = operand.depth * operand.step;
    let at = |panel: usize, from: usize| operand.w.as_ptr().wrapping_add(panel * panel_len + from * operand.step);
    // The passes share in fetching the panels after these, which follow in memory; beyond the last a hint does no harm.
    let fetches = passes <= operand.fetch_passes_max && depth_each >= operand.depth;
    let bytes = count * panel_len * size_of::<W>();
    let ahead = Ahead::over(at(panel + count, 0).cast(), bytes, passes * operand.depth);
    let mut from = 0;
    loop {
        let depth = depth_each.min(operand.depth - from);
        for pass in 0..passes {
            let row = rows.start + pass * rows_each;
            let height = rows_each.min(rows.end - row);
            // SAFETY: `run` checked x, w and the shape of the block; the caller vouches for `out`; the table belongs
            // to an instruction set this processor has, and `height` and `count` come from its limits.
            unsafe {
                let tile = Tile {
                    depth,
                    x: operand.x.as_ptr().add(row * operand.x_stride + from),
                    x_stride: operand.x_stride,
                    w: std::array::from_fn(|i| at(panel + i, from)),
                    w_step: operand.step,
                    out: out.add((row - rows.start) * out_stride),
                    out_stride,
                    add: from > 0,
                    ahead: if fetches { ahead.after(pass * operand.depth) } else { Ahead::NONE },
                };
                (operand.kernel)(height, count, &tile);
            }
        }
        from += depth;
        if from >= operand.depth {
            return;
        }
    }
}

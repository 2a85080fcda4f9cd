//! Integers in groups: how `Int8` and `Q4` weights, and the activations that meet them, are stored.
//!
//! A *group* is [`GROUP`] neighbouring inputs that share a scale; the last one of a row is filled up with zeroes.
//!
//! | what | value of a code | stored |
//! |---|---|---|
//! | `Int8` weight | `scale * (code - 128)`, code 1 to 255 | per panel of 16 outputs and group: 16 scales in f32, then `[GROUP/4][16][4]` codes |
//! | `Q4` weight | `scale * code + min`, code 0 to 15 | per panel and group: 16 scales and 16 minima in f16, then `[GROUP/8][16][4]` bytes; low halves hold the first four inputs of eight, high halves the other four |
//! | activation | `scale * code`, code -127 to 127 | per row and group: the scale, what their sum adds where weights have a minimum and where they are stored too high, the codes |
//!
//! A linear is then `Σ over groups of x.scale * (w.scale * Σ w.code x.code + w.min * Σ x.code)`. The sums over codes are exact
//! integers, so that every instruction set agrees in them, and only the sum over groups rounds. `Q4` is the `Q4_1` of
//! ggml (`ggml-quants.c`): packing a tensor that came from `Q4_1` gives its codes, scales and minima back.
//!
//! Four inputs lie side by side because the dot products of integers (`vpdpbusd`, `sdot`) take four at a time; weights are
//! unsigned because the first of `vpdpbusd`'s operands is.

use crate::aligned::AlignedBuf;
use crate::packed::{PANEL, Run};
use crate::share::OutPtr;
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::ops::Range;

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 32;

/// Below this, a group counts as zero: the reciprocal of its scale would not be finite.
pub(crate) const LEAST: f32 = 1e-30;

/// Adding it moves the integer part of a small number into the low bits of the mantissa: 1.5 · 2²³.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of a value within ±2²²; anything for others. Not [`f32::round_ties_even`]: that is a
/// call of the C library wherever the oldest processor of the architecture lacks the instruction, and no loop over it becomes vectors.
pub(crate) fn nearest(value: f32) -> i32 {
    (value + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

/// A panel and group of `Int8` weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Group8 {
    pub(crate) scale: [f32; PANEL],
    pub(crate) codes: [[[u8; 4]; PANEL]; GROUP / 4],
}

/// A panel and group of `Q4` weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Group4 {
    pub(crate) scale: [u16; PANEL],
    pub(crate) min: [u16; PANEL],
    pub(crate) codes: [[[u8; 4]; PANEL]; GROUP / 8],
}

/// A row and group of activations.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GroupX {
    pub(crate) scale: f32,
    /// `scale * Σ codes`.
    pub(crate) shift: f32,
    /// `-128 * Σ codes`.
    pub(crate) start: i32,
    pub(crate) codes: [i8; GROUP],
}

impl GroupX {
    /// What goes with codes of this scale and sum.
    #[inline(always)]
    pub(crate) fn set(&mut self, scale: f32, sum: i32) {
        (self.scale, self.shift, self.start) = (scale, scale * sum as f32, -128 * sum);
    }
}

/// Groups of a row of `cols` values.
pub(crate) fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// A panel and group of weights, as packing and the reference see it.
pub(crate) trait Group: Pod + Send + Sync {
    /// Stores the weights of one output, at most [`GROUP`] of them.
    fn store(&mut self, output: usize, weights: &[f32]);
    /// The value of one weight.
    fn at(&self, output: usize, input: usize) -> f32;
}

impl Group for Group8 {
    fn store(&mut self, output: usize, weights: &[f32]) {
        let most = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        let bad: f32 = weights.iter().map(|w| w * 0.0).sum();
        let scale = if most < LEAST { 0.0 } else { most / 127.0 };
        let inverse = if scale == 0.0 { 0.0 } else { 127.0 / most };
        // What is not finite stays so.
        self.scale[output] = scale + bad;
        for step in 0..GROUP / 4 {
            for lane in 0..4 {
                let weight = weights.get(4 * step + lane).copied().unwrap_or(0.0);
                self.codes[step][output][lane] = (nearest(weight * inverse).clamp(-127, 127) + 128) as u8;
            }
        }
    }

    fn at(&self, output: usize, input: usize) -> f32 {
        let code = self.codes[input / 4][output][input % 4];
        self.scale[output] * (i32::from(code) - 128) as f32
    }
}

impl Group for Group4 {
    fn store(&mut self, output: usize, weights: &[f32]) {
        let least = weights.iter().copied().fold(f32::INFINITY, f32::min);
        let most = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let bad: f32 = weights.iter().map(|w| w * 0.0).sum();
        let (scale, min) = (f16::from_f32((most - least) / 15.0), f16::from_f32(least));
        // A call of another function each, where the oldest processor of the architecture has no f16.
        let (step_size, least) = (scale.to_f32(), min.to_f32());
        let inverse = if step_size < LEAST { 0.0 } else { 1.0 / step_size };
        self.scale[output] = scale.to_bits();
        self.min[output] = f16::from_f32(least + bad).to_bits();
        let mut codes = [0; GROUP];
        for (code, weight) in codes.iter_mut().zip(weights) {
            *code = nearest(((weight - least) * inverse).clamp(0.0, 15.0)) as u8;
        }
        for (step, eight) in codes.as_chunks::<8>().0.iter().enumerate() {
            for lane in 0..4 {
                self.codes[step][output][lane] = eight[lane] | eight[lane + 4] << 4;
            }
        }
    }

    fn at(&self, output: usize, input: usize) -> f32 {
        let both = self.codes[input / 8][output][input % 4];
        let code = if input % 8 < 4 { both & 15 } else { both >> 4 };
        let [scale, min] = [self.scale[output], self.min[output]].map(|bits| f16::from_bits(bits).to_f32());
        scale * f32::from(code) + min
    }
}

/// Part of one row of `[rows/16][cols/GROUP]`, as stored; it begins at `first`, a multiple of [`GROUP`].
pub(crate) fn read_row<G: Group>(data: &[G], cols: usize, row: usize, first: usize, to: &mut [f32]) {
    let groups = groups(cols);
    let panel = &data[row / PANEL * groups..][..groups];
    for (group, to) in panel[first / GROUP..].iter().zip(to.chunks_mut(GROUP)) {
        for (input, value) in to.iter_mut().enumerate() {
            *value = group.at(row % PANEL, input);
        }
    }
}

/// Packs `source [rows, cols]` into panels of groups, `[rows/16][cols/GROUP]`.
pub(crate) fn pack<G: Group>(source: &[f32], rows: usize, cols: usize, run: Run<'_>) -> AlignedBuf<G> {
    let (panels, groups) = (rows.div_ceil(PANEL), groups(cols));
    let mut data = AlignedBuf::zeroed(panels * groups);
    if panels * groups == 0 {
        return data;
    }
    let to = OutPtr::new(&mut data);
    run(panels, &|range: Range<usize>| {
        for panel in range {
            // SAFETY: panels do not overlap, and each is given to one thread.
            let to: &mut [G] = unsafe { to.slice(panel * groups, groups) };
            for output in 0..PANEL.min(rows - panel * PANEL) {
                let row = &source[(panel * PANEL + output) * cols..][..cols];
                for (to, weights) in to.iter_mut().zip(row.chunks(GROUP)) {
                    to.store(output, weights);
                }
            }
        }
    });
    data
}

/// The codes of one row of activations: the definition of what a linear over integer weights does to its input.
///
/// `scale = max |x| / 127`, `code = x * (127 / max |x|)` to the nearest integer, ties to even. A group that holds what is not
/// finite has a scale that is not.
pub(crate) fn quantise_row(x: &[f32], to: &mut [GroupX]) {
    for (x, to) in x.chunks(GROUP).zip(to) {
        let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let bad: f32 = x.iter().map(|x| x * 0.0).sum();
        let (scale, inverse) = if most < LEAST { (0.0, 0.0) } else { (most / 127.0, 127.0 / most) };
        to.codes = [0; GROUP];
        for (code, x) in to.codes.iter_mut().zip(x) {
            // Saturates; what is not finite may become anything, its scale says so.
            *code = (x * inverse).round_ties_even() as i8;
        }
        to.set(scale + bad, to.codes.iter().map(|code| i32::from(*code)).sum());
    }
}

/// A row of activations as integer weights see it.
pub(crate) struct CodedRow(Vec<GroupX>);

impl CodedRow {
    pub(crate) fn new(x: &[f32]) -> Self {
        let mut groups = vec![GroupX::zeroed(); groups(x.len())];
        quantise_row(x, &mut groups);
        Self(groups)
    }

    /// Between two codes of the group of this input.
    pub(crate) fn step(&self, input: usize) -> f64 {
        f64::from(self.0[input / GROUP].scale)
    }

    /// Exact.
    pub(crate) fn at(&self, input: usize) -> f64 {
        self.step(input) * f64::from(self.0[input / GROUP].codes[input % GROUP])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Random;
    use crate::packed::ALONE;

    #[test]
    fn a_code_is_off_by_half_a_step_at_most() {
        let (rows, cols) = (19, 77);
        let source = Random::new(1).normals(rows * cols);
        let eight: AlignedBuf<Group8> = pack(&source, rows, cols, ALONE);
        let four: AlignedBuf<Group4> = pack(&source, rows, cols, ALONE);
        for (row, values) in source.chunks_exact(cols).enumerate() {
            for (col, value) in values.iter().enumerate() {
                let group = &values[col - col % GROUP..(col - col % GROUP + GROUP).min(cols)];
                let most = group.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let span =
                    group.iter().copied().fold(f32::MIN, f32::max) - group.iter().copied().fold(f32::MAX, f32::min);
                let at = row / PANEL * groups(cols) + col / GROUP;
                let (a, b) = (eight[at].at(row % PANEL, col % GROUP), four[at].at(row % PANEL, col % GROUP));
                assert!((a - value).abs() <= most / 254.0 * 1.001, "{row} {col}: {a} for {value}");
                // Scale and minimum are rounded to f16 besides.
                assert!((b - value).abs() <= span / 30.0 + span / 500.0, "{row} {col}: {b} for {value}");
            }
        }
    }

    #[test]
    fn what_came_from_four_bits_comes_back() {
        let random = &mut Random::new(2);
        let (scale, min) = (f16::from_f32(0.013).to_f32(), f16::from_f32(-0.11).to_f32());
        let mut codes: Vec<usize> = (0..GROUP).map(|_| random.below(16)).collect();
        (codes[3], codes[20]) = (0, 15);
        let weights: Vec<f32> = codes.iter().map(|code| *code as f32 * scale + min).collect();
        let mut group = Group4::zeroed();
        group.store(5, &weights);
        for (input, weight) in weights.iter().enumerate() {
            assert_eq!(group.at(5, input).to_bits(), weight.to_bits());
        }
    }

    #[test]
    fn zeroes_and_what_is_not_finite_keep_their_nature() {
        let mut to = [GroupX::zeroed(); 3];
        let mut x = vec![0.0; 2 * GROUP + 1];
        x[GROUP] = f32::INFINITY;
        x[2 * GROUP] = -3.0;
        quantise_row(&x, &mut to);
        assert_eq!((to[0].scale, to[0].start), (0.0, 0));
        assert!(to[1].scale.is_nan());
        assert_eq!((to[2].codes[0], to[2].start), (-127, 127 * 128));
        let mut group = Group8::zeroed();
        group.store(0, &[f32::NAN, 1.0]);
        group.store(1, &[0.0; GROUP]);
        assert!(group.at(0, 1).is_nan());
        assert_eq!(group.at(1, 7), 0.0);
    }
}

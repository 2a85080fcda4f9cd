//! Weights and adapter halves in the layouts the kernels read.
//!
//! | layout | logical | stored |
//! |---|---|---|
//! | `RowMajor` | `[out, in]` | as it is; the reference reads it |
//! | `RankBlocks(n)` | `[rank, in]` | `[rank/n][in/32][n][32]`, zeroes beyond `in`; the last block holds only the ranks left. One stream for the ranks that an instruction set takes at once: short ones of their own start too slowly to be fetched ahead |
//! | `CodeOctets` | `[rank, in]` | `[rank/8][in/8][8][8]` codes of an adapter, 128 too high, `in` filled up to groups of 32 |
//! | `CodePanels` | `[out, rank]` | `[out/16][rank/4][16][4]`, likewise |
//! | `Panels` | `[out, in]` | `[out/16][in][16]`: for each input, the weights of 16 outputs side by side |
//! | `PairPanels` | `[out, in]` | `[out/16][in/2][16][2]`: as `Panels`, two inputs side by side per output, for `vdpbf16ps` |
//! | `GroupPanels` | `[out, in]` | `[out/16][in/32]` groups of integers, see [`crate::quant`]; all implementations read it |

use crate::aligned::AlignedBuf;
use crate::quant::{self, GROUP, Group, Group4, Group8, nearest};
use crate::share::OutPtr;
use bytemuck::Zeroable;
use std::ops::Range;

/// Outputs side by side in a panel, and lanes of the vectors every implementation works with.
pub(crate) const PANEL: usize = 16;

/// Inputs side by side in `RankBlocks`: a cache line of bf16.
pub(crate) const ROW: usize = 32;

/// Ranks, and inputs of each, side by side in `CodeOctets`.
pub(crate) const OCTET: usize = 8;

/// How weights are stored. Activations and results are `f32` in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes per weight; the parity reference.
    F32,
    /// 2 bytes per weight, rounded to nearest even. An implementation may round activations as well.
    Bf16,
    /// 8 bits per weight and a scale per 32 inputs: 9 bits. Activations are rounded to 8 bits per row and 32 inputs.
    Int8,
    /// 4 bits per weight, a scale and a minimum per 32 inputs: 5 bits. Activations as in `Int8`.
    Q4,
}

impl WeightFormat {
    /// Whether weights are codes with scales.
    #[must_use]
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Q4)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    RowMajor,
    RankBlocks(usize),
    CodeOctets,
    CodePanels,
    Panels,
    PairPanels,
    GroupPanels,
}

pub(crate) enum Data {
    F32(AlignedBuf<f32>),
    Bf16(AlignedBuf<u16>),
    Int8(AlignedBuf<Group8>),
    Q4(AlignedBuf<Group4>),
    /// Half of an adapter: the value is the code times the scale of its rank. What lies 128 too high is so in its bits.
    Codes(AlignedBuf<i8>, Box<[f32]>),
}

/// Which side of an adapter a matrix is: where its ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// A `[rank, in]`.
    Shrink,
    /// B `[out, rank]`.
    Grow,
}

/// A matrix in one of the layouts of this module.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) layout: Layout,
    pub(crate) data: Data,
}

/// Runs a function over all of `0..total`, in one thread or several.
pub(crate) type Run<'a> = &'a dyn Fn(usize, &(dyn Fn(Range<usize>) + Sync));

/// Everything in this thread.
pub(crate) const ALONE: Run<'static> = &|total, body| body(0..total);

impl Matrix {
    /// Packs `source [rows, cols]`. Integers lie in `GroupPanels`, whatever `layout` the floats would have.
    pub(crate) fn pack(
        op: &str,
        source: &[f32],
        rows: usize,
        cols: usize,
        layout: Layout,
        format: WeightFormat,
        run: Run<'_>,
    ) -> Self {
        assert!(
            rows.checked_mul(cols) == Some(source.len()),
            "{op}: {} values given for a matrix [{rows}, {cols}]",
            source.len()
        );
        let layout = match format {
            WeightFormat::F32 | WeightFormat::Bf16 => layout,
            WeightFormat::Int8 | WeightFormat::Q4 => Layout::GroupPanels,
        };
        let data = match format {
            WeightFormat::F32 => Data::F32(fill(source, rows, cols, layout, run, |value| value)),
            WeightFormat::Bf16 => Data::Bf16(fill(source, rows, cols, layout, run, round_bf16)),
            WeightFormat::Int8 => Data::Int8(quant::pack(source, rows, cols, run)),
            WeightFormat::Q4 => Data::Q4(quant::pack(source, rows, cols, run)),
        };
        Self { rows, cols, layout, data }
    }

    /// Packs half an adapter. Integers get a scale per rank, so that they need one byte each; ranks are filled up to 8 in
    /// `CodeOctets`, to 4 in `CodePanels`.
    pub(crate) fn pack_half(
        op: &str,
        source: &[f32],
        half: Half,
        [rows, cols]: [usize; 2],
        layout: Layout,
        format: WeightFormat,
    ) -> Self {
        if matches!(format, WeightFormat::F32 | WeightFormat::Bf16) {
            return Self::pack(op, source, rows, cols, layout, format, ALONE);
        }
        assert!(
            rows.checked_mul(cols) == Some(source.len()),
            "{op}: {} values given for a matrix [{rows}, {cols}]",
            source.len()
        );
        // A maximum that keeps NaN.
        let larger = |most: f32, value: f32| if most >= value.abs() || most.is_nan() { most } else { value.abs() };
        let code = |value: f32, scale: f32| if scale > 0.0 { value / scale } else { 0.0 };
        let each_row = || source.chunks_exact(cols.max(1));
        let mut codes = Vec::with_capacity(source.len());
        let mut scales = match half {
            Half::Shrink => vec![0.0f32; rows].into_boxed_slice(),
            Half::Grow => vec![0.0f32; cols].into_boxed_slice(),
        };
        match half {
            Half::Shrink => {
                for (row, scale) in each_row().zip(&mut scales) {
                    *scale = row.iter().fold(0.0, |most, &value| larger(most, value)) / 127.0;
                    codes.extend(row.iter().map(|&value| code(value, *scale)));
                }
            }
            Half::Grow => {
                for row in each_row() {
                    scales.iter_mut().zip(row).for_each(|(most, &value)| *most = larger(*most, value));
                }
                scales.iter_mut().for_each(|scale| *scale /= 127.0);
                for row in each_row() {
                    codes.extend(row.iter().zip(&scales).map(|(&value, &scale)| code(value, scale)));
                }
            }
        }
        let high = if matches!(layout, Layout::CodeOctets | Layout::CodePanels) { i8::MIN } else { 0 };
        let data = fill(&codes, rows, cols, layout, ALONE, |code| nearest(code).clamp(-127, 127) as i8 ^ high);
        Self { rows, cols, layout, data: Data::Codes(data, scales) }
    }

    /// Scale of each rank; none where values are stored as they are.
    pub(crate) fn rank_scales(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Codes(_, scales) => Some(scales),
            _ => None,
        }
    }

    pub(crate) fn format(&self) -> WeightFormat {
        match self.data {
            Data::F32(_) => WeightFormat::F32,
            Data::Bf16(_) => WeightFormat::Bf16,
            Data::Int8(_) => WeightFormat::Int8,
            Data::Q4(_) => WeightFormat::Q4,
            Data::Codes(..) => WeightFormat::Int8,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.bytes(),
            Data::Bf16(data) => data.bytes(),
            Data::Int8(data) => data.bytes(),
            Data::Q4(data) => data.bytes(),
            Data::Codes(data, scales) => data.bytes() + size_of_val(&**scales),
        }
    }

    /// One value of a `RowMajor` or `GroupPanels` matrix; of half an adapter in integers the code.
    pub(crate) fn at(&self, row: usize, col: usize) -> f32 {
        let index = row * self.cols + col;
        let group = row / PANEL * quant::groups(self.cols) + col / GROUP;
        match &self.data {
            Data::F32(data) => data[index],
            Data::Bf16(data) => widen_bf16(data[index]),
            Data::Int8(data) => data[group].at(row % PANEL, col % GROUP),
            Data::Q4(data) => data[group].at(row % PANEL, col % GROUP),
            Data::Codes(data, _) => f32::from(data[index]),
        }
    }

    /// Part of a row of `data`, which is all of this matrix, from an even column on; false for a layout that no linear has.
    fn read_floats<T: Copy>(
        &self,
        data: &[T],
        row: usize,
        first: usize,
        to: &mut [f32],
        widen: impl Fn(T) -> f32,
    ) -> bool {
        let (block, lane) = (row / PANEL, row % PANEL);
        match self.layout {
            Layout::RowMajor => {
                for (to, &value) in to.iter_mut().zip(&data[row * self.cols + first..]) {
                    *to = widen(value);
                }
            }
            Layout::Panels => {
                let panel = &data[block * PANEL * self.cols..][..PANEL * self.cols];
                for (to, values) in to.iter_mut().zip(panel[PANEL * first..].chunks_exact(PANEL)) {
                    *to = widen(values[lane]);
                }
            }
            Layout::PairPanels => {
                let len = PANEL * self.cols.next_multiple_of(2);
                let panel = &data[block * len..][..len];
                for (to, pairs) in to.chunks_mut(2).zip(panel[PANEL * first..].chunks_exact(2 * PANEL)) {
                    for (to, &value) in to.iter_mut().zip(&pairs[2 * lane..]) {
                        *to = widen(value);
                    }
                }
            }
            Layout::RankBlocks(_) | Layout::CodeOctets | Layout::CodePanels | Layout::GroupPanels => return false,
        }
        true
    }

    /// Stops a matrix packed by another implementation before it is misread.
    pub(crate) fn expect_layout(&self, op: &str, layout: Layout) {
        assert!(
            self.layout == layout,
            "{op}: matrix [{}, {}] was packed as {:?} by another implementation, this one reads {layout:?}",
            self.rows,
            self.cols,
            self.layout,
        );
    }
}

/// Stores a matrix block of rows by block of rows; places without a value stay zero and add nothing. (In codes that lie 128 too high
/// zero is -128: there activations are zero, or the sums are dropped.)
fn fill<T: Zeroable + Copy + Send>(
    source: &[f32],
    rows: usize,
    cols: usize,
    layout: Layout,
    run: Run<'_>,
    convert: impl Fn(f32) -> T + Sync,
) -> AlignedBuf<T> {
    // Rows that are stored together, and how many values their block takes.
    let (height, len) = match layout {
        Layout::RowMajor => (1, cols),
        Layout::RankBlocks(ranks) => (ranks, ranks * cols.next_multiple_of(ROW)),
        Layout::CodeOctets => (OCTET, OCTET * cols.next_multiple_of(GROUP)),
        Layout::CodePanels => (PANEL, PANEL * cols.next_multiple_of(4)),
        Layout::Panels => (PANEL, PANEL * cols),
        Layout::PairPanels => (PANEL, PANEL * cols.next_multiple_of(2)),
        Layout::GroupPanels => unreachable!("invariant: integers are packed by `quant::pack`"),
    };
    let total = match layout {
        Layout::RankBlocks(_) => rows * cols.next_multiple_of(ROW),
        _ => rows.div_ceil(height) * len,
    };
    let mut data = AlignedBuf::zeroed(total);
    if total == 0 {
        return data;
    }
    let to = OutPtr::new(&mut data);
    run(rows.div_ceil(height), &|blocks: Range<usize>| {
        for block in blocks {
            let (first, start) = (block * height, block * len);
            let used = height.min(rows - first);
            let source = &source[first * cols..(first + used) * cols];
            // SAFETY: blocks do not overlap, and each is given to one thread.
            let to = unsafe { to.slice(start, len.min(total - start)) };
            fill_block(source, used, cols, layout, to, &convert);
        }
    });
    data
}

/// One block: `source [rows, cols]`, all that `to` holds.
fn fill_block<T: Copy>(
    source: &[f32],
    rows: usize,
    cols: usize,
    layout: Layout,
    to: &mut [T],
    convert: &impl Fn(f32) -> T,
) {
    // Where the values of one input begin, and how far its rows are apart: writes run along the block.
    let (pair, lanes) = match layout {
        Layout::RowMajor => (1, 1),
        Layout::RankBlocks(_) => (ROW, rows),
        Layout::CodeOctets => (OCTET, OCTET),
        Layout::CodePanels => (4, PANEL),
        Layout::Panels => (1, PANEL),
        Layout::PairPanels => (2, PANEL),
        Layout::GroupPanels => unreachable!("invariant: integers are packed by `quant::pack`"),
    };
    for (step, group) in to.chunks_exact_mut(pair * lanes).enumerate() {
        let from = step * pair;
        let used = pair.min(cols.saturating_sub(from));
        for (row, to) in group.chunks_exact_mut(pair).take(rows).enumerate() {
            let values = &source[row * cols + from.min(cols)..][..used];
            for (to, &value) in to.iter_mut().zip(values) {
                *to = convert(value);
            }
        }
    }
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
pub(crate) fn round_bf16(value: f32) -> u16 {
    // Not `half`'s: without branches, loops over it become vectors.
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// The exact value of a bf16.
pub(crate) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// A weight `[out_features, in_features]`, packed for one implementation.
pub struct PackedLinear(pub(crate) Matrix);

impl PackedLinear {
    /// The weights of output `row` for the inputs from `first` on, as stored: rounded to their format, exact in `f32`. `to`
    /// has a place for each input that is wanted. False, and `to` is as it was: the matrix lies where this cannot read it.
    ///
    /// Cost: one pass. 16 neighbouring rows share their cache lines, so whoever reads many rows reads a few hundred inputs
    /// of 16 rows, then the next inputs of these rows.
    ///
    /// # Panics
    /// `row` is no output, `first` is no multiple of 32, or the inputs end before `to`.
    pub fn read_row(&self, row: usize, first: usize, to: &mut [f32]) -> bool {
        let Self(matrix) = self;
        let (rows, cols) = (matrix.rows, matrix.cols);
        assert!(
            row < rows && first.is_multiple_of(GROUP) && first.checked_add(to.len()).is_some_and(|end| end <= cols),
            "read_row: {} inputs from {first} of row {row}, for a weight [{rows}, {cols}]",
            to.len()
        );
        match &matrix.data {
            Data::F32(data) => return matrix.read_floats(data, row, first, to, |value| value),
            Data::Bf16(data) => return matrix.read_floats(data, row, first, to, widen_bf16),
            Data::Int8(data) => quant::read_row(data, cols, row, first, to),
            Data::Q4(data) => quant::read_row(data, cols, row, first, to),
            Data::Codes(..) => return false,
        }
        true
    }

    /// Width of the input.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.0.cols
    }

    /// Width of the output.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.0.rows
    }

    /// Memory held, padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// How the weights are stored.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.0.format()
    }
}

/// One half of an adapter: A `[rank, in]` or B `[out, rank]`, packed for one implementation.
pub struct LoraMatrix(pub(crate) Matrix);

impl LoraMatrix {
    /// Rows of the logical matrix: the rank of an A, the outputs of a B.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Columns of the logical matrix: the inputs of an A, the rank of a B.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// Memory held, padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// How the values are stored.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.0.format()
    }

    /// The values row by row, of floats that the reference packed; none of others. Cost: a copy.
    #[must_use]
    pub fn to_row_major(&self) -> Option<Vec<f32>> {
        let values = |row| (0..self.cols()).map(move |col| self.0.at(row, col));
        let is_plain = self.0.layout == Layout::RowMajor && !self.format().is_integer();
        is_plain.then(|| (0..self.rows()).flat_map(values).collect())
    }

    /// The codes row by row and the scale of each rank, of integers that the reference packed; none of others. Cost: a copy.
    #[must_use]
    pub fn to_codes(&self) -> Option<(Vec<i8>, Vec<f32>)> {
        match &self.0.data {
            Data::Codes(codes, scales) if self.0.layout == Layout::RowMajor => Some((codes.to_vec(), scales.to_vec())),
            _ => None,
        }
    }
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedLinear([{}, {}], {:?})", self.0.rows, self.0.cols, self.format())
    }
}

impl std::fmt::Debug for LoraMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoraMatrix([{}, {}], {:?})", self.0.rows, self.0.cols, self.format())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        for bits in (0..=u32::MAX).step_by(9973).chain([0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7f80_0001]) {
            let value = f32::from_bits(bits);
            assert_eq!(round_bf16(value), bf16::from_f32(value).to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn rows_of_integers_are_read_back_as_they_are_stored() {
        let (rows, cols) = (35, 70);
        let source: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        for format in [WeightFormat::Int8, WeightFormat::Q4] {
            let packed = PackedLinear(Matrix::pack("test", &source, rows, cols, Layout::Panels, format, ALONE));
            let mut row = vec![0.0; cols];
            for index in [0, 15, 16, 34] {
                assert!(packed.read_row(index, 0, &mut row));
                let expected: Vec<f32> = (0..cols).map(|col| packed.0.at(index, col)).collect();
                assert_eq!(row, expected);
                assert!(packed.read_row(index, 32, &mut row[..7]));
                assert_eq!(row[..7], expected[32..39]);
            }
        }
    }

    #[test]
    fn rows_of_floats_are_read_back_from_every_layout() {
        for (rows, cols) in [(35, 70), (17, 71), (1, 1)] {
            let source: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
            let bf16: Vec<f32> = source.iter().map(|&value| widen_bf16(round_bf16(value))).collect();
            for layout in [Layout::RowMajor, Layout::Panels, Layout::PairPanels] {
                for (format, stored) in [(WeightFormat::F32, &source), (WeightFormat::Bf16, &bf16)] {
                    let packed = PackedLinear(Matrix::pack("test", &source, rows, cols, layout, format, ALONE));
                    let mut row = vec![0.0; cols];
                    for (index, expected) in stored.chunks_exact(cols).enumerate() {
                        assert!(packed.read_row(index, 0, &mut row), "{layout:?}");
                        assert_eq!(row, expected, "{layout:?} {format:?}, row {index} of [{rows}, {cols}]");
                        for first in (0..cols).step_by(32) {
                            let part = &mut row[..(cols - first).min(33)];
                            assert!(packed.read_row(index, first, part));
                            assert_eq!(
                                part,
                                &expected[first..first + part.len()],
                                "{layout:?} {format:?} from {first}"
                            );
                        }
                    }
                }
            }
        }
        let ranks = Matrix::pack("test", &[1.0; 8], 2, 4, Layout::RankBlocks(8), WeightFormat::F32, ALONE);
        assert!(!PackedLinear(ranks).read_row(0, 0, &mut [0.0; 4]));
    }

    #[test]
    fn values_lie_where_the_layouts_say() {
        let (rows, cols) = (19, 37);
        let source: Vec<f32> = (0..rows * cols).map(|i| 1.0 + i as f32).collect();
        type Place = fn(usize, usize) -> usize;
        let places: [(Layout, Place); 6] = [
            (Layout::CodeOctets, |row, col| ((row / 8 * 8 + col / 8) * 8 + row % 8) * 8 + col % 8),
            (Layout::CodePanels, |row, col| ((row / 16 * 10 + col / 4) * 16 + row % 16) * 4 + col % 4),
            (Layout::RowMajor, |row, col| row * 37 + col),
            (Layout::RankBlocks(8), |row, col| {
                let ranks = if row < 16 { 8 } else { 3 };
                row / 8 * 8 * 64 + (col / 32 * ranks + row % 8) * 32 + col % 32
            }),
            (Layout::Panels, |row, col| (row / 16 * 37 + col) * 16 + row % 16),
            (Layout::PairPanels, |row, col| (row / 16 * 19 + col / 2) * 32 + row % 16 * 2 + col % 2),
        ];
        for (layout, place) in places {
            let matrix = Matrix::pack("test", &source, rows, cols, layout, WeightFormat::F32, ALONE);
            let Data::F32(data) = &matrix.data else { panic!("packed as asked") };
            for row in 0..rows {
                for col in 0..cols {
                    assert_eq!(data[place(row, col)], source[row * cols + col], "{layout:?} {row} {col}");
                }
            }
            assert_eq!(data.iter().filter(|value| **value != 0.0).count(), rows * cols, "{layout:?}");
        }
    }
}

//! Weights and adapter halves in the layouts the kernels read.
//!
//! | layout | logical | stored |
//! |---|---|---|
//! | `RowMajor` | `[out, in]` | as it is; the reference reads it |
//! | `RankBlocks` | `[rank, in]` | `[rank/8][in/32][8][32]`, zeroes beyond `in`; the last block holds only the ranks left. One stream for all ranks: eight short ones start too slowly to be fetched ahead |
//! | `Panels` | `[out, in]` | `[out/16][in][16]`: for each input, the weights of 16 outputs side by side |
//! | `PairPanels` | `[out, in]` | `[out/16][in/2][16][2]`: as `Panels`, two inputs side by side per output, for `vdpbf16ps` |

use crate::aligned::AlignedBuf;
use half::bf16;

/// Outputs side by side in a panel, and lanes of the vectors every implementation works with.
pub(crate) const PANEL: usize = 16;

/// Inputs side by side in `RankBlocks`: a cache line of bf16.
pub(crate) const ROW: usize = 32;

/// Ranks in a block of `RankBlocks`.
pub(crate) const RANKS: usize = 8;

/// How weights are stored. Activations and sums are `f32` in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes per weight; the parity reference.
    F32,
    /// 2 bytes per weight, rounded to nearest even. An implementation may round activations as well.
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    RowMajor,
    RankBlocks,
    Panels,
    PairPanels,
}

pub(crate) enum Data {
    F32(AlignedBuf<f32>),
    Bf16(AlignedBuf<u16>),
}

/// A matrix in one of the layouts of this module.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) layout: Layout,
    pub(crate) data: Data,
}

impl Matrix {
    /// Packs `source [rows, cols]`.
    pub(crate) fn pack(
        op: &str,
        source: &[f32],
        rows: usize,
        cols: usize,
        layout: Layout,
        format: WeightFormat,
    ) -> Self {
        assert!(
            rows.checked_mul(cols) == Some(source.len()),
            "{op}: {} values given for a matrix [{rows}, {cols}]",
            source.len()
        );
        let len = match layout {
            Layout::RowMajor => rows * cols,
            Layout::RankBlocks => rows * cols.next_multiple_of(ROW),
            Layout::Panels => rows.next_multiple_of(PANEL) * cols,
            Layout::PairPanels => rows.next_multiple_of(PANEL) * cols.next_multiple_of(2),
        };
        let data = match format {
            WeightFormat::F32 => {
                let mut data = AlignedBuf::zeroed(len);
                fill(source, rows, cols, layout, &mut data, |value| value);
                Data::F32(data)
            }
            WeightFormat::Bf16 => {
                let mut data = AlignedBuf::zeroed(len);
                fill(source, rows, cols, layout, &mut data, round_bf16);
                Data::Bf16(data)
            }
        };
        Self { rows, cols, layout, data }
    }

    pub(crate) fn format(&self) -> WeightFormat {
        match self.data {
            Data::F32(_) => WeightFormat::F32,
            Data::Bf16(_) => WeightFormat::Bf16,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.bytes(),
            Data::Bf16(data) => data.bytes(),
        }
    }

    /// One value of a `RowMajor` matrix.
    pub(crate) fn at(&self, row: usize, col: usize) -> f32 {
        let index = row * self.cols + col;
        match &self.data {
            Data::F32(data) => data[index],
            Data::Bf16(data) => widen_bf16(data[index]),
        }
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

/// Writes each row of `source` to its place; places not written stay zero and add nothing.
fn fill<T: Copy>(source: &[f32], rows: usize, cols: usize, layout: Layout, data: &mut [T], convert: impl Fn(f32) -> T) {
    if cols == 0 {
        return;
    }
    for row in 0..rows {
        let values = source[row * cols..(row + 1) * cols].iter().map(|&value| convert(value));
        let (panel, lane) = (row / PANEL, row % PANEL);
        match layout {
            Layout::RowMajor => {
                data[row * cols..].iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
            Layout::RankBlocks => {
                let (first, place) = (row - row % RANKS, row % RANKS);
                let ranks = RANKS.min(rows - first);
                let block = &mut data[first * cols.next_multiple_of(ROW)..];
                for (col, value) in values.enumerate() {
                    block[(col / ROW * ranks + place) * ROW + col % ROW] = value;
                }
            }
            Layout::Panels => {
                let panel = &mut data[panel * cols * PANEL..][..cols * PANEL];
                for (lanes, value) in panel.chunks_exact_mut(PANEL).zip(values) {
                    lanes[lane] = value;
                }
            }
            Layout::PairPanels => {
                let len = cols.next_multiple_of(2) * PANEL;
                let panel = &mut data[panel * len..][..len];
                for (col, value) in values.enumerate() {
                    panel[(col / 2) * 2 * PANEL + lane * 2 + col % 2] = value;
                }
            }
        }
    }
}

/// Rounds to the nearest bf16, ties to even.
pub(crate) fn round_bf16(value: f32) -> u16 {
    bf16::from_f32(value).to_bits()
}

/// The exact value of a bf16.
pub(crate) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// A weight `[out_features, in_features]`, packed for one implementation.
pub struct PackedLinear(pub(crate) Matrix);

impl PackedLinear {
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

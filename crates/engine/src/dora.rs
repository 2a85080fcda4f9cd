//! DoRA: what an adapter's magnitudes make of the outputs of a linear.
//!
//! PEFT (`DoraLinearLayer` in `src/peft/tuners/lora/dora.py`) computes `y = bias + m / ‖W + s B A‖ ∘ (W x + s B (A x))`, where
//! the norm is that of each output's row and `m` the trained magnitudes (Liu et al., "DoRA: Weight-Decomposed Low-Rank
//! Adaptation", 2024, section 4.3). Base and adapter are fixed while an adapter is served, so the quotient is one factor
//! per output: it is computed once, when the adapter is prepared, and multiplies the outputs of the adapter's rows after
//! base and delta are added up. The linears of the bases that we serve have no bias.
//!
//! `W` is what the engine computes with: rounded to bf16 or read back from integers, as PEFT dequantises the base it is
//! loaded on. `A` and `B` are as published.

use std::ops::Range;
use weft_kernels::PackedLinear;

/// What the outputs of one linear are multiplied by.
#[derive(Debug, PartialEq)]
pub(crate) struct OutputFactors {
    /// First column of the fused site's output.
    pub(crate) out_offset: usize,
    /// `[out_features]`, finite.
    pub(crate) factors: Box<[f32]>,
}

/// Rows of a step whose adapter has factors for this site; the rows of one call are disjoint.
pub(crate) struct ScaledRows<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) factors: &'a [OutputFactors],
}

/// The base's weights of a site `[out of the site, in_features]`, as the engine computes with them.
pub(crate) trait BaseRows {
    /// Width of a row.
    fn inputs(&self) -> usize;

    /// Inputs of output `row` from `first` on, a multiple of 32; false if they cannot be had.
    fn read_row(&self, row: usize, first: usize, to: &mut [f32]) -> bool;
}

impl BaseRows for PackedLinear {
    fn inputs(&self) -> usize {
        self.in_features()
    }

    fn read_row(&self, row: usize, first: usize, to: &mut [f32]) -> bool {
        Self::read_row(self, row, first, to)
    }
}

/// One linear with an adapter.
pub(crate) struct AdaptedLinear<'a> {
    /// This linear's rows begin at `out_offset`.
    pub(crate) weight: &'a dyn BaseRows,
    pub(crate) out_offset: usize,
    /// `[rank, in_features]`.
    pub(crate) a: &'a [f32],
    /// `[out_features, rank]`.
    pub(crate) b: &'a [f32],
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

impl OutputFactors {
    /// `magnitude / ‖W + scale * B A‖` per output; `magnitude [out_features]`.
    ///
    /// The rows of `W + scale * B A` are written out and their norms taken, tile by tile. The expanded form with `W Aᵀ` and
    /// `A Aᵀ` takes as many operations, and cancels where the delta undoes most of a row.
    ///
    /// Cost: `out_features * in_features * (rank + 2)` multiplications and each weight read once, in one thread; memory for
    /// the factors, as many doubles, and `TILE` columns of `A`.
    ///
    /// # Errors
    /// Says what is in the way: a row of norm zero (PEFT's answer would be NaN), a factor that is beyond single precision,
    /// or kernels that cannot read their weights back.
    pub(crate) fn compute(linear: &AdaptedLinear<'_>, magnitude: &[f32]) -> Result<Self, String> {
        let squares = linear.squares(magnitude.len())?;
        let factor = |(output, (&magnitude, squares)): (usize, (&f32, f64))| {
            let norm = squares.sqrt();
            let factor = (f64::from(magnitude) / norm) as f32;
            if factor.is_finite() {
                Ok(factor)
            } else {
                Err(format!("output {output} has norm {norm:e} and magnitude {magnitude:e}"))
            }
        };
        let factors = magnitude.iter().zip(squares).enumerate().map(factor).collect::<Result<_, _>>()?;
        Ok(Self { out_offset: linear.out_offset, factors })
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.factors)
    }
}

impl ScaledRows<'_> {
    /// Multiplies this part of `out [rows, stride]`. Cost: one multiplication per row and adapted output.
    pub(crate) fn apply(&self, out: &mut [f32], stride: usize) {
        for row in out[self.rows.start * stride..self.rows.end * stride].chunks_exact_mut(stride) {
            for OutputFactors { out_offset, factors } in self.factors {
                for (to, factor) in row[*out_offset..].iter_mut().zip(factors) {
                    *to *= factor;
                }
            }
        }
    }
}

/// Inputs of a tile: its part of `A` stays in the first cache (16 KiB at rank 16), and so does that of 16 rows of the base,
/// which share their cache lines.
const TILE: usize = 256;

impl AdaptedLinear<'_> {
    /// The squared norm of each adapted row, in double precision.
    fn squares(&self, out_features: usize) -> Result<Vec<f64>, String> {
        let Self { weight, rank, scale, .. } = *self;
        let inputs = weight.inputs();
        let mut squares = vec![0.0; out_features];
        let mut row = [0.0f32; TILE];
        let mut a = Vec::with_capacity(rank * TILE);
        for start in (0..inputs).step_by(TILE) {
            let row = &mut row[..TILE.min(inputs - start)];
            a.clear();
            for of_rank in self.a.chunks_exact(inputs) {
                a.extend_from_slice(&of_rank[start..][..row.len()]);
            }
            for (output, (squares, b)) in squares.iter_mut().zip(self.b.chunks_exact(rank)).enumerate() {
                if !weight.read_row(self.out_offset + output, start, row) {
                    return Err("its magnitudes need the base's weights, which these kernels do not give back".into());
                }
                add_delta(row, &a, b, scale);
                *squares += sum_of_squares(row);
            }
        }
        Ok(squares)
    }
}

/// `row += scale * b A`; `row [n]`, `a [rank, n]`, `b [rank]`.
fn add_delta(row: &mut [f32], a: &[f32], b: &[f32], scale: f32) {
    // Four ranks in one pass over the row: a sum that is stored and loaded for each rank costs as much as the products.
    const RANKS: usize = 4;
    let n = row.len();
    let (mut blocks, mut coefficients) = (a.chunks_exact(RANKS * n), b.chunks_exact(RANKS));
    for (a, b) in blocks.by_ref().zip(coefficients.by_ref()) {
        let [a0, a1, a2, a3] = [0, 1, 2, 3].map(|rank| &a[rank * n..][..n]);
        let [b0, b1, b2, b3] = [b[0] * scale, b[1] * scale, b[2] * scale, b[3] * scale];
        for ((((to, a0), a1), a2), a3) in row.iter_mut().zip(a0).zip(a1).zip(a2).zip(a3) {
            *to += (b0 * a0 + b1 * a1) + (b2 * a2 + b3 * a3);
        }
    }
    for (a, b) in blocks.remainder().chunks_exact(n).zip(coefficients.remainder()) {
        let b = b * scale;
        for (to, a) in row.iter_mut().zip(a) {
            *to += b * a;
        }
    }
}

/// In double precision: squares of singles neither overflow nor vanish there.
fn sum_of_squares(row: &[f32]) -> f64 {
    // Sums side by side, because one would wait for itself at every element.
    let mut sums = [0.0f64; 8];
    let mut groups = row.chunks_exact(sums.len());
    for group in &mut groups {
        for (sum, &value) in sums.iter_mut().zip(group) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let rest: f64 = groups.remainder().iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests;

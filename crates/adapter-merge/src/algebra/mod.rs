//! The little linear algebra that merging needs, in double precision and in one fixed order of operations.
//!
//! A merge is known by the digest of its recipe wherever it is computed, so its bytes must be the same everywhere. A
//! library that picks its instructions at run time (as `faer` and `nalgebra`'s products do) gives other last bits with
//! and without fused multiply-add; here every sum has one order, written down, whose steps IEEE 754 defines exactly.
//!
//! A set of vectors is a [`Matrix`] whose *rows* are the vectors, so that each lies in one piece.

mod jacobi;
mod low_rank;
mod orthogonal;
mod product;
mod subspace;

pub(crate) use jacobi::singular_values;
pub(crate) use low_rank::{Factored, truncate_factors};
pub(crate) use orthogonal::orthogonalize;
pub(crate) use product::{Panels, WIDTH, product, rows_product};
pub(crate) use subspace::{truncate_dense, workspace_bytes};

/// A matrix in double precision, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `rows * columns` elements.
    pub(crate) data: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, data: vec![0.0; rows * columns] }
    }

    pub(crate) fn identity(size: usize) -> Self {
        let mut matrix = Self::zeros(size, size);
        for index in 0..size {
            matrix.data[index * size + index] = 1.0;
        }
        matrix
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.columns..][..self.columns]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.columns..][..self.columns]
    }

    /// Two different rows, the first before the second.
    fn two_rows_mut(&mut self, first: usize, second: usize) -> (&mut [f64], &mut [f64]) {
        let (before, from_second) = self.data.split_at_mut(second * self.columns);
        (&mut before[first * self.columns..][..self.columns], &mut from_second[..self.columns])
    }

    pub(crate) fn transposed(&self) -> Self {
        let mut transposed = Self::zeros(self.columns, self.rows);
        for row in 0..self.rows {
            for (column, value) in self.row(row).iter().enumerate() {
                transposed.data[column * self.rows + row] = *value;
            }
        }
        transposed
    }

    /// The first `rows` rows; the others are given up.
    pub(crate) fn keep_rows(mut self, rows: usize) -> Self {
        self.data.truncate(rows * self.columns);
        self.rows = self.rows.min(rows);
        self
    }
}

/// The inner product, in eight interleaved sums that are added pairwise at the end.
pub(crate) fn dot(left: &[f64], right: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (left_chunks, left_rest) = left.as_chunks::<8>();
    let (right_chunks, right_rest) = right.as_chunks::<8>();
    for (left, right) in left_chunks.iter().zip(right_chunks) {
        for (lane, (left, right)) in lanes.iter_mut().zip(left.iter().zip(right)) {
            *lane += left * right;
        }
    }
    for (lane, (left, right)) in lanes.iter_mut().zip(left_rest.iter().zip(right_rest)) {
        *lane += left * right;
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Adds `factor * other` to `vector`.
fn add_scaled(vector: &mut [f64], factor: f64, other: &[f64]) {
    for (element, other) in vector.iter_mut().zip(other) {
        *element += factor * other;
    }
}

/// Vectors that are sums of others: row `i` of the result is the sum over `j` of `weights[i][j] * vectors[j]`.
pub(crate) fn combine(weights: &Matrix, vectors: &Matrix) -> Matrix {
    let panels = Panels::of_rows(vectors);
    product(weights.rows, weights.columns, &panels, |first, panel| {
        for (depth, lanes) in panel.iter_mut().enumerate() {
            for (lane, element) in lanes.iter_mut().enumerate() {
                let row = first + lane;
                *element = if row < weights.rows { weights.row(row)[depth] } else { 0.0 };
            }
        }
    })
}

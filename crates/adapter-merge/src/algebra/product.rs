//! Products of matrices, in tiles of four by four whose operands come in panels of four.
//!
//! Each element of a product is one sum in the order of the inner dimension, whatever the tile it lies in, so neither
//! the size of a matrix nor what is computed beside an element moves its bits.

use super::Matrix;

/// Rows and columns of a tile.
pub(crate) const WIDTH: usize = 4;

/// The right operand of a product, `[depth, width]`, packed: for every four of its columns their elements side by
/// side, depth after depth. Columns beyond `width` are zero.
pub(crate) struct Panels {
    depth: usize,
    width: usize,
    data: Vec<[f64; WIDTH]>,
}

impl Panels {
    /// Of a matrix whose rows run along the width: `[depth, width]`.
    pub(crate) fn of_rows(matrix: &Matrix) -> Self {
        let mut panels = Self::empty(matrix.rows, matrix.columns);
        for (depth, row) in (0..matrix.rows).map(|depth| (depth, matrix.row(depth))) {
            for (column, value) in row.iter().enumerate() {
                panels.data[column / WIDTH * matrix.rows + depth][column % WIDTH] = *value;
            }
        }
        panels
    }

    /// Of a set of vectors, `[width, depth]`.
    pub(crate) fn of_vectors(vectors: &Matrix) -> Self {
        let mut panels = Self::empty(vectors.columns, vectors.rows);
        for column in 0..vectors.rows {
            let panel = &mut panels.data[column / WIDTH * vectors.columns..][..vectors.columns];
            for (lanes, value) in panel.iter_mut().zip(vectors.row(column)) {
                lanes[column % WIDTH] = *value;
            }
        }
        panels
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn empty(depth: usize, width: usize) -> Self {
        Self { depth, width, data: vec![[0.0; WIDTH]; depth * width.div_ceil(WIDTH)] }
    }
}

/// `left · right`, `[rows, right.width]`. `fill(first, panel)` writes rows `first..first + 4` of the left operand,
/// depth after depth; rows beyond `rows` as zeros. It is called in the order of rows.
pub(crate) fn product(
    rows: usize,
    depth: usize,
    right: &Panels,
    mut fill: impl FnMut(usize, &mut [[f64; WIDTH]]),
) -> Matrix {
    let mut result = Matrix::zeros(rows, right.width);
    let mut panel = vec![[0.0; WIDTH]; depth];
    for first in (0..rows).step_by(WIDTH) {
        fill(first, &mut panel);
        let lines = &mut result.data[first * right.width..];
        let kept = WIDTH.min(rows - first);
        rows_product(&panel, right, &mut lines[..kept * right.width]);
    }
    result
}

/// Up to four rows of a product: `out` has them one after the other, `right.width` elements each.
pub(crate) fn rows_product(left: &[[f64; WIDTH]], right: &Panels, out: &mut [f64]) {
    for (index, panel) in right.data.chunks_exact(right.depth.max(1)).enumerate() {
        let tile = tile(left, panel);
        let first = index * WIDTH;
        let columns = WIDTH.min(right.width - first);
        for (line, sums) in out.chunks_exact_mut(right.width).zip(tile) {
            line[first..first + columns].copy_from_slice(&sums[..columns]);
        }
    }
}

/// Sixteen sums over the depth, each in its order: `[left lane][right lane]`.
fn tile(left: &[[f64; WIDTH]], right: &[[f64; WIDTH]]) -> [[f64; WIDTH]; WIDTH] {
    let mut sums = [[0.0; WIDTH]; WIDTH];
    for (left, right) in left.iter().zip(right) {
        for (sums, left) in sums.iter_mut().zip(left) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum += left * right;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::{Matrix, combine};

    #[test]
    fn products_of_any_shape_are_sums_in_the_order_of_the_inner_dimension() {
        for (rows, depth, columns) in [(1, 1, 1), (4, 3, 8), (5, 7, 6), (3, 0, 2), (9, 2, 1), (2, 5, 0)] {
            let numbers = |count: usize, step: f64| (0..count).map(|i| (i as f64 * step).sin()).collect();
            let left = Matrix { rows, columns: depth, data: numbers(rows * depth, 0.7) };
            let right = Matrix { rows: depth, columns, data: numbers(depth * columns, 1.3) };
            let found = combine(&left, &right);
            for row in 0..rows {
                for column in 0..columns {
                    let mut sum = 0.0;
                    for inner in 0..depth {
                        sum += left.row(row)[inner] * right.row(inner)[column];
                    }
                    assert_eq!(found.row(row)[column].to_bits(), f64::to_bits(sum), "{rows} {depth} {columns}");
                }
            }
        }
    }
}

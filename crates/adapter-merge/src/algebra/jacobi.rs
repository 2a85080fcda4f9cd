//! The singular value decomposition of a small matrix by one-sided Jacobi rotations (Hestenes 1958): slow for large
//! matrices, and accurate to the last digits for small ones, in a page of code.

use super::{Matrix, dot};

/// Two vectors count as orthogonal when the cosine between them is below this.
const ORTHOGONAL: f64 = 1e-15;
/// Seven sweeps are usual; a sweep without a rotation ends the loop.
const SWEEPS_MAX: usize = 40;

/// `matrix = sum over i of value[i] · left[i] right[i]ᵀ`.
pub(crate) struct Singular {
    /// Falling, never negative.
    pub(crate) values: Vec<f64>,
    /// `[columns, rows]`: the left singular vectors as rows, each **times its value**.
    pub(crate) scaled_left: Matrix,
    /// `[columns, columns]`: the right singular vectors as rows.
    pub(crate) right: Matrix,
}

/// Decomposes `[rows, columns]`. Cost: about `100 · columns² · (rows + columns)` operations.
pub(crate) fn singular_values(matrix: &Matrix) -> Singular {
    // Rows of these are columns of the matrix and of what turns it: a rotation works on two pieces of memory.
    let mut left = matrix.transposed();
    let mut right = Matrix::identity(matrix.columns);
    for _ in 0..SWEEPS_MAX {
        if !sweep(&mut left, &mut right) {
            break;
        }
    }
    let lengths: Vec<f64> = (0..left.rows).map(|row| dot(left.row(row), left.row(row)).sqrt()).collect();
    let mut order: Vec<usize> = (0..left.rows).collect();
    order.sort_by(|one, other| lengths[*other].total_cmp(&lengths[*one]));
    Singular {
        values: order.iter().map(|row| lengths[*row]).collect(),
        scaled_left: in_order(&left, &order),
        right: in_order(&right, &order),
    }
}

/// Turns each pair of vectors until they are orthogonal; false if all were.
fn sweep(left: &mut Matrix, right: &mut Matrix) -> bool {
    let mut turned = false;
    for first in 0..left.rows {
        for second in first + 1..left.rows {
            let (one, other) = left.two_rows_mut(first, second);
            let (one_square, other_square, inner) = (dot(one, one), dot(other, other), dot(one, other));
            if inner.abs() <= ORTHOGONAL * (one_square.sqrt() * other_square.sqrt()) {
                continue;
            }
            turned = true;
            let zeta = (other_square - one_square) / (2.0 * inner);
            let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
            let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
            rotate(one, other, cosine, cosine * tangent);
            let (one, other) = right.two_rows_mut(first, second);
            rotate(one, other, cosine, cosine * tangent);
        }
    }
    turned
}

fn rotate(one: &mut [f64], other: &mut [f64], cosine: f64, sine: f64) {
    for (one, other) in one.iter_mut().zip(other) {
        (*one, *other) = (cosine * *one - sine * *other, sine * *one + cosine * *other);
    }
}

fn in_order(matrix: &Matrix, order: &[usize]) -> Matrix {
    let mut sorted = Matrix::zeros(matrix.rows, matrix.columns);
    for (to, from) in order.iter().enumerate() {
        sorted.row_mut(to).copy_from_slice(matrix.row(*from));
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::super::combine;
    use super::*;

    #[test]
    fn the_parts_are_orthogonal_and_add_up_to_the_matrix() {
        for (rows, columns) in [(1, 1), (5, 5), (7, 4), (4, 7), (24, 24)] {
            let mut data: Vec<f64> = (0..rows * columns).map(|i| ((i * i) as f64 * 2.3).sin()).collect();
            if rows == 24 {
                // Of rank 2 only, and one column zero.
                data = (0..rows * columns)
                    .map(|i| {
                        let (row, column) = ((i / columns) as f64, (i % columns) as f64);
                        if i % columns == 3 { 0.0 } else { row.sin() * column.cos() + 1e-6 * row.cos() }
                    })
                    .collect();
            }
            let matrix = Matrix { rows, columns, data };
            let Singular { values, scaled_left, right } = singular_values(&matrix);
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
            let again = combine(&scaled_left.transposed(), &right);
            for (found, wanted) in again.data.iter().zip(&matrix.data) {
                assert!((found - wanted).abs() < 1e-13, "{rows} {columns}");
            }
            for one in 0..columns {
                for other in 0..one {
                    let (left, bound) = (dot(scaled_left.row(one), scaled_left.row(other)), 1e-13 * values[0].powi(2));
                    assert!(left.abs() <= bound && dot(right.row(one), right.row(other)).abs() < 1e-14);
                }
                assert!((dot(right.row(one), right.row(one)) - 1.0).abs() < 1e-13);
            }
        }
    }

    #[test]
    fn known_values_come_out_to_the_last_digits_whatever_their_size() {
        // Läuchli: the values are sqrt(2 + e²) and |e|, far apart.
        let small = 1e-9;
        let matrix = Matrix { rows: 3, columns: 2, data: vec![1.0, 1.0, small, 0.0, 0.0, small] };
        let values = singular_values(&matrix).values;
        assert!((values[0] - 2f64.sqrt()).abs() < 1e-15 * 4.0 && (values[1] / small - 1.0).abs() < 1e-7);
    }
}

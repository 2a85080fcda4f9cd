//! QR by modified Gram-Schmidt, twice over each vector ("twice is enough": Giraud, Langou, Rozložník 2005).

use super::{Matrix, add_scaled, dot};

/// What is left of a vector of this share of its length is rounding: the vector depends on those before it.
const DEPENDENT: f64 = 1e-13;

/// Makes the rows orthonormal, in their order; a row that depends on those before it becomes zero. Returns the
/// coefficients `[row, row]`: the old row `i` is the sum over `j <= i` of `coefficients[j][i]` times the new row `j`.
///
/// Cost: `4 · rows² · columns` operations.
pub(crate) fn orthogonalize(vectors: &mut Matrix) -> Matrix {
    let mut coefficients = Matrix::zeros(vectors.rows, vectors.rows);
    for index in 0..vectors.rows {
        let length_before = length(vectors.row(index));
        for _ in 0..2 {
            for earlier in 0..index {
                let (unit, vector) = vectors.two_rows_mut(earlier, index);
                let share = dot(unit, vector);
                add_scaled(vector, -share, unit);
                coefficients.row_mut(earlier)[index] += share;
            }
        }
        let vector = vectors.row_mut(index);
        let length = length(vector);
        if length <= length_before * DEPENDENT {
            vector.fill(0.0);
        } else {
            vector.iter_mut().for_each(|element| *element /= length);
            coefficients.row_mut(index)[index] = length;
        }
    }
    coefficients
}

fn length(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::combine;
    use super::*;

    #[test]
    fn rows_become_orthonormal_and_the_coefficients_give_them_back() {
        let data = (0..6 * 9).map(|i| (f64::from(i * i) * 1.7).sin()).collect();
        let mut vectors = Matrix { rows: 6, columns: 9, data };
        // The fourth depends on two others, the fifth is zero, the last nearly the first.
        let dependent: Vec<f64> = (0..9).map(|i| vectors.row(0)[i] * 2.0 - vectors.row(1)[i]).collect();
        let near: Vec<f64> = (0..9).map(|i| vectors.row(0)[i] + vectors.row(5)[i] * 1e-9).collect();
        vectors.row_mut(3).copy_from_slice(&dependent);
        vectors.row_mut(4).fill(0.0);
        vectors.row_mut(5).copy_from_slice(&near);
        let before = vectors.clone();
        let coefficients = orthogonalize(&mut vectors);
        for left in 0..6 {
            for right in 0..6 {
                let wanted = if left == right && left != 3 && left != 4 { 1.0 } else { 0.0 };
                let found = dot(vectors.row(left), vectors.row(right));
                assert!((found - wanted).abs() < 1e-14, "{left} {right}: {found}");
            }
        }
        let again = combine(&coefficients.transposed(), &vectors);
        for (found, wanted) in again.data.iter().zip(&before.data) {
            assert!((found - wanted).abs() < 1e-13);
        }
    }
}

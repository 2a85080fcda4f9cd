//! The best approximation of given rank to a product of two thin factors, without ever writing the product out.

use super::{Matrix, combine, dot, orthogonalize, singular_values};

/// `left[i]` and `right[i]` added up as outer products: a matrix in factors.
#[derive(Clone, Debug)]
pub(crate) struct Factored {
    /// `[rank, out]`: the columns of B as rows.
    pub(crate) left: Matrix,
    /// `[rank, in]`: A.
    pub(crate) right: Matrix,
    /// Square of the Frobenius norm of the matrix that was approximated.
    pub(crate) norm2: f64,
    /// Square of the Frobenius norm of what the factors lack of it.
    pub(crate) lost2: f64,
}

/// The best approximation of this rank (Eckart and Young) to the sum over `k` of `left[k] right[k]ᵀ`: right factors are
/// orthonormal, left ones fall. `left` is `[K, out]`, `right` is `[K, in]`; `rank` is at most the smallest of the three.
///
/// Both factors are made orthonormal; what is left to decompose is the `[K, K]` product of their coefficients. Cost:
/// `4 K² (out + in)` operations for that, about `200 K³` for the decomposition, `2 K · rank · (out + in)` for the rest.
pub(crate) fn truncate_factors(mut left: Matrix, mut right: Matrix, rank: usize) -> Factored {
    let left_coefficients = orthogonalize(&mut left);
    let right_coefficients = orthogonalize(&mut right);
    let core = combine(&left_coefficients, &right_coefficients.transposed());
    let small = singular_values(&core);
    let square = |value: &f64| value * value;
    // From the smallest on, so that nothing small is lost beside something large.
    let lost2 = small.values[rank..].iter().rev().map(square).sum();
    let norm2 = dot(&core.data, &core.data);
    let left = combine(&small.scaled_left.keep_rows(rank), &left);
    let right = combine(&small.right.keep_rows(rank), &right);
    Factored { left, right, norm2, lost2 }
}

//! The best approximation of given rank to a matrix that has no small rank of its own.
//!
//! A full decomposition of a `[14336, 4096]` delta is out of reach; the few largest singular vectors are not. Subspace
//! iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4) holds more vectors than wanted, multiplies them by the
//! matrix and its transpose in turn, and keeps them orthonormal. The energy that the first `rank` of them catch grows
//! with each turn towards that of the best approximation; when a turn gains no more than [`GAIN`] of what is still
//! lost, or after [`TURNS_MAX`] turns, it ends. What is lost is then measured against the matrix itself, so the
//! reported error is that of these factors, not an estimate.

use super::low_rank::Factored;
use super::{
    Matrix, Panels, WIDTH, combine, dot, orthogonalize, product, rows_product, singular_values, truncate_factors,
};
use crate::chance::signs;

/// A turn that gains less than this share of the square of what is lost is the last one. What later turns would gain is
/// about as much again: the error is within 10^-4 of the least there is.
const GAIN: f64 = 1e-4;
const TURNS_MAX: usize = 60;
/// A matrix whose shorter side is no longer than this is decomposed whole.
const WHOLE_MAX: usize = 64;

/// How many vectors are held for a rank, of a matrix whose shorter side has `shorter` elements.
fn held(rank: usize, shorter: usize) -> usize {
    (rank + (rank / 2).max(16)).min(shorter)
}

/// Bytes that [`truncate_dense`] needs beside the matrix: vectors of both sides, twice packed, and small squares.
pub(crate) fn workspace_bytes(rows: usize, columns: usize, rank: usize) -> u64 {
    let shorter = rows.min(columns);
    let vectors = if rank >= shorter || shorter <= WHOLE_MAX { shorter } else { held(rank, shorter) };
    let sides = (rows + columns) as u64 * vectors as u64;
    8 * (3 * sides + 8 * (vectors * vectors) as u64 + 4 * (rows + columns) as u64)
}

/// The best approximation of this rank to a row-major `[rows, columns]` matrix, to within [`GAIN`]; exact if its
/// shorter side is at most `rank`.
///
/// Cost: `4 · rows · columns · 1.5 rank` operations a turn; 5 to 30 turns are usual, more where the values behind the
/// rank hardly fall.
pub(crate) fn truncate_dense(matrix: &[f32], rows: usize, columns: usize, rank: usize) -> Factored {
    let shorter = rows.min(columns);
    if rank >= shorter {
        return whole(matrix, rows, columns);
    }
    if shorter <= WHOLE_MAX {
        let Factored { left, right, .. } = whole(matrix, rows, columns);
        return truncate_factors(left, right, rank);
    }
    let norm2 = norm2(matrix);
    let mut right = Matrix { rows: held(rank, shorter), columns, data: signs(held(rank, shorter) * columns) };
    let (mut caught, mut turn) = (0.0, 1);
    loop {
        let mut left = times(matrix, rows, columns, &right);
        orthogonalize(&mut left);
        right = times_transposed(matrix, rows, columns, &left);
        let coefficients = orthogonalize(&mut right);
        // The matrix is now close to the sum of left[i] right'[i]ᵀ, where right' = coefficientsᵀ · right.
        let small = singular_values(&coefficients.transposed());
        let caught_now: f64 = small.values[..rank].iter().map(|value| value * value).sum();
        if caught_now - caught <= GAIN * (norm2 - caught_now) || turn == TURNS_MAX {
            let left = combine(&small.scaled_left.keep_rows(rank), &left);
            let right = combine(&small.right.keep_rows(rank), &right);
            let lost2 = lost2(matrix, rows, columns, &left, &right);
            return Factored { left, right, norm2, lost2 };
        }
        caught = caught_now;
        turn += 1;
    }
}

/// The matrix as it is: one factor is the identity.
fn whole(matrix: &[f32], rows: usize, columns: usize) -> Factored {
    let data = matrix.iter().map(|value| f64::from(*value)).collect();
    let matrix_f64 = Matrix { rows, columns, data };
    let (left, right) = if rows <= columns {
        (Matrix::identity(rows), matrix_f64)
    } else {
        (matrix_f64.transposed(), Matrix::identity(columns))
    };
    Factored { left, right, norm2: norm2(matrix), lost2: 0.0 }
}

fn norm2(matrix: &[f32]) -> f64 {
    let mut sum = 0.0;
    for chunk in matrix.chunks(1024) {
        let wide: Vec<f64> = chunk.iter().map(|value| f64::from(*value)).collect();
        sum += dot(&wide, &wide);
    }
    sum
}

/// The matrix times each vector of `[vectors, columns]`: `[vectors, rows]`.
fn times(matrix: &[f32], rows: usize, columns: usize, vectors: &Matrix) -> Matrix {
    let panels = Panels::of_vectors(vectors);
    product(rows, columns, &panels, |first, panel| fill_rows(matrix, rows, columns, first, panel)).transposed()
}

/// The transposed matrix times each vector of `[vectors, rows]`: `[vectors, columns]`.
fn times_transposed(matrix: &[f32], rows: usize, columns: usize, vectors: &Matrix) -> Matrix {
    let panels = Panels::of_vectors(vectors);
    let fill = |first: usize, panel: &mut [[f64; WIDTH]]| {
        let wide = WIDTH.min(columns - first);
        for (lanes, row) in panel.iter_mut().zip(matrix.chunks_exact(columns)) {
            *lanes = [0.0; WIDTH];
            for (lane, value) in lanes.iter_mut().zip(&row[first..first + wide]) {
                *lane = f64::from(*value);
            }
        }
    };
    product(columns, rows, &panels, fill).transposed()
}

fn fill_rows(matrix: &[f32], rows: usize, columns: usize, first: usize, panel: &mut [[f64; WIDTH]]) {
    for lane in 0..WIDTH {
        let row = (first + lane < rows).then(|| &matrix[(first + lane) * columns..][..columns]);
        for (depth, lanes) in panel.iter_mut().enumerate() {
            lanes[lane] = row.map_or(0.0, |row| f64::from(row[depth]));
        }
    }
}

/// Square of the norm of the matrix less the sum of `left[i] right[i]ᵀ`.
fn lost2(matrix: &[f32], rows: usize, columns: usize, left: &Matrix, right: &Matrix) -> f64 {
    let panels = Panels::of_rows(right);
    let mut sum = 0.0;
    let mut panel = vec![[0.0; WIDTH]; left.rows];
    let mut lines = vec![0.0; WIDTH * columns];
    for first in (0..rows).step_by(WIDTH) {
        let kept = WIDTH.min(rows - first);
        for (depth, lanes) in panel.iter_mut().enumerate() {
            *lanes = [0.0; WIDTH];
            lanes[..kept].copy_from_slice(&left.row(depth)[first..first + kept]);
        }
        let lines = &mut lines[..kept * columns];
        rows_product(&panel, &panels, lines);
        for (line, row) in lines.iter_mut().zip(&matrix[first * columns..]) {
            *line -= f64::from(*row);
        }
        sum += dot(lines, lines);
    }
    sum
}

#[cfg(test)]
mod tests;

use super::super::Matrix;
use super::*;

/// `[rows, columns]` with the given singular values, the first at most `rows` and `columns` of them.
fn with_values(rows: usize, columns: usize, values: &[f64]) -> Vec<f32> {
    let directions = |length: usize, step: f64| {
        let data = (0..values.len() * length).map(|i| ((i * i) as f64 * step).sin()).collect();
        let mut matrix = Matrix { rows: values.len(), columns: length, data };
        orthogonalize(&mut matrix);
        matrix
    };
    let (mut left, right) = (directions(rows, 0.37), directions(columns, 0.91));
    for (row, value) in values.iter().enumerate() {
        left.row_mut(row).iter_mut().for_each(|element| *element *= value);
    }
    combine(&left.transposed(), &right).data.iter().map(|value| *value as f32).collect()
}

fn check_optimal(rows: usize, columns: usize, rank: usize, values: &[f64], tolerance: f64) {
    let matrix = with_values(rows, columns, values);
    let found = truncate_dense(&matrix, rows, columns, rank);
    let best: f64 = values[rank.min(values.len())..].iter().map(|value| value * value).sum();
    let all: f64 = values.iter().map(|value| value * value).sum();
    assert!((found.norm2 / all - 1.0).abs() < 1e-6);
    assert!(found.lost2 <= best * (1.0 + tolerance) + 1e-12 * all, "{} instead of {best}", found.lost2);
    assert!(found.lost2 >= best * (1.0 - 1e-5) - 1e-12 * all, "better than the best: {} {best}", found.lost2);
    for one in 0..found.right.rows {
        for other in 0..=one {
            let wanted = if one == other { 1.0 } else { 0.0 };
            assert!((dot(found.right.row(one), found.right.row(other)) - wanted).abs() < 1e-10);
        }
    }
}

#[test]
fn what_is_lost_is_what_the_best_approximation_loses() {
    let falling: Vec<f64> = (0..60).map(|i| 2f64.powi(-i / 4)).collect();
    check_optimal(40, 90, 8, &falling[..40], 1e-6);
    check_optimal(90, 140, 8, &falling, 1e-4);
    check_optimal(140, 90, 20, &falling, 1e-4);
}

#[test]
fn a_matrix_whose_values_hardly_fall_is_cut_nearly_as_well() {
    let flat: Vec<f64> = (0..100).map(|i| 1.0 - f64::from(i) * 0.004).collect();
    check_optimal(120, 110, 16, &flat, 2e-3);
}

#[test]
fn a_matrix_of_smaller_rank_than_wanted_and_an_empty_one_lose_nothing() {
    check_optimal(100, 80, 12, &[3.0, 2.0, 1e-3], 0.0);
    let nothing = truncate_dense(&vec![0.0; 100 * 80], 100, 80, 4);
    assert_eq!((nothing.norm2, nothing.lost2), (0.0, 0.0));
    let whole = truncate_dense(&with_values(6, 9, &[2.0, 1.0]), 6, 9, 6);
    assert_eq!((whole.left.rows, whole.right.rows, whole.lost2), (6, 6, 0.0));
}

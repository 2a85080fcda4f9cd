//! Promises about the operations on single rows.

use super::{Random, assert_bits, assert_close};
use crate::{Kernels, reference};

/// A few roundings and one `exp`.
const SHARE: f32 = 1e-6;

const WIDTHS: [usize; 10] = [1, 2, 15, 16, 17, 63, 64, 576, 577, 1536];
const ROWS: [usize; 5] = [0, 1, 2, 33, 70];

/// Both norms, the sum they leave behind, and that a row does not depend on its neighbours.
pub fn norms_match_the_reference(kernels: &dyn Kernels, seed: u64) {
    let random = &mut Random::new(seed);
    let reference = reference();
    for width in WIDTHS {
        for rows in ROWS {
            let what = format!("norm {rows}x{width} seed {seed}");
            let (x, weight) = (random.normals(rows * width), random.normals(width));
            let before = random.normals(rows * width);
            let (mut got, mut want) = (vec![f32::NAN; x.len()], vec![0.0; x.len()]);
            kernels.rms_norm(&x, &weight, 1e-5, &mut got);
            reference.rms_norm(&x, &weight, 1e-5, &mut want);
            assert_close(&what, &got, &want, &super::abs(&want), SHARE);

            let (mut sum, mut want_sum) = (before.clone(), before.clone());
            kernels.add_rms_norm(&mut sum, &x, &weight, 1e-5, &mut got);
            reference.add_rms_norm(&mut want_sum, &x, &weight, 1e-5, &mut want);
            assert_bits(&what, &sum, &want_sum);
            assert_close(&what, &got, &want, &super::abs(&want), SHARE);

            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let (mut alone, mut out) = (before[at.clone()].to_vec(), vec![0.0; width]);
                kernels.add_rms_norm(&mut alone, &x[at.clone()], &weight, 1e-5, &mut out);
                assert_bits(&what, &got[at], &out);
            }
        }
    }
}

/// Rotary embedding at small and large positions, twice with the same angles and once with others.
pub fn rope_matches_the_reference(kernels: &dyn Kernels, seed: u64) {
    let random = &mut Random::new(seed);
    let reference = reference();
    for head_dim in [2, 6, 32, 64, 66, 128] {
        for (rows, heads) in [(0, 3), (1, 1), (5, 3), (40, 9)] {
            let positions: Vec<u32> = (0..rows).map(|_| random.below(8192) as u32).collect();
            let inv_freq: Vec<f32> =
                (0..head_dim / 2).map(|i| 10_000f32.powf(-(2.0 * i as f32) / head_dim as f32)).collect();
            for factor in [1.0, 1.0, 1.25] {
                let what = format!("rope {rows}x{heads}x{head_dim} by {factor} seed {seed}");
                let x = random.normals(rows * heads * head_dim);
                let (mut got, mut want) = (x.clone(), x.clone());
                kernels.rope(&mut got, heads, head_dim, &positions, &inv_freq, factor);
                reference.rope(&mut want, heads, head_dim, &positions, &inv_freq, factor);
                // Either of a pair can be the large one of its sum.
                let half = head_dim / 2;
                let magnitude: Vec<f32> = (0..x.len())
                    .map(|i| {
                        let partner = if i % head_dim < half { i + half } else { i - half };
                        factor * (x[i].abs() + x[partner].abs())
                    })
                    .collect();
                assert_close(&what, &got, &want, &magnitude, SHARE);
            }
        }
    }
}

/// SiLU times up, for moderate and extreme gates.
pub fn silu_matches_the_reference(kernels: &dyn Kernels, seed: u64) {
    let random = &mut Random::new(seed);
    let reference = reference();
    for inter in WIDTHS {
        for rows in ROWS {
            let what = format!("silu_mul {rows}x{inter} seed {seed}");
            let mut x = random.normals(rows * 2 * inter);
            for (i, gate) in x.iter_mut().enumerate() {
                *gate *= [1.0, 8.0, 30.0][i % 3];
            }
            let (mut got, mut want) = (vec![f32::NAN; rows * inter], vec![0.0; rows * inter]);
            kernels.silu_mul(&x, inter, &mut got);
            reference.silu_mul(&x, inter, &mut want);
            // Below a gate of -87 the exact value underflows; anything this close to zero will do.
            let magnitude: Vec<f32> = want.iter().map(|want| want.abs() + 1e-24).collect();
            assert_close(&what, &got, &want, &magnitude, SHARE);
        }
    }
    let mut out = [0.0; 5];
    let gates = [-200.0, 200.0, 0.0, f32::NAN, -f32::INFINITY];
    kernels.silu_mul(&[gates, [1.0; 5]].concat(), 5, &mut out);
    assert!(out[0].abs() < 1e-30 && out[1] == 200.0 && out[2] == 0.0, "silu_mul at the ends: {out:?}");
    assert!(out[3].is_nan(), "silu_mul of NaN is {}", out[3]);
}

/// `exp`, seen through SiLU (`gate / silu(gate) - 1 = e^-gate`), over the range where it can be told apart.
pub fn the_exponential_is_accurate(kernels: &dyn Kernels) {
    let gates: Vec<f32> = (-80_000..=0).map(|i| i as f32 / 1000.0 - 0.5e-3).collect();
    let ones = vec![1.0; gates.len()];
    let mut got = vec![0.0; gates.len()];
    kernels.silu_mul(&[&gates[..], &ones].concat(), gates.len(), &mut got);
    for (gate, got) in gates.iter().zip(&got) {
        let want = f64::from(*gate) / (1.0 + (-f64::from(*gate)).exp());
        let error = (f64::from(*got) / want - 1.0).abs();
        assert!(error < 5e-7, "silu({gate}) is {got}, should be {want}: relative error {error}");
    }
}

use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use weft_kernels::{CpuOptions, Kernels, WeightFormat};

const FORMATS: [WeightFormat; 4] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Q4];

fn implementations() -> [Arc<dyn Kernels>; 2] {
    [weft_kernels::reference(), weft_kernels::cpu(CpuOptions { threads: 1, isa: None })]
}

fn values(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 2.0 * size
    };
    (0..count).map(|_| next()).collect()
}

/// `‖w + scale * b A‖` of one output, and the norm of the absolute values that went into it, in plain double precision.
fn plain_norms(weight: &[f32], a: &[f32], b: &[f32], scale: f32) -> (f64, f64) {
    let inputs = weight.len();
    let (mut squares, mut sizes) = (0.0, 0.0);
    for (input, &weight) in weight.iter().enumerate() {
        let (mut value, mut size) = (f64::from(weight), f64::from(weight.abs()));
        for (rank, &b) in b.iter().enumerate() {
            let part = f64::from(scale) * f64::from(b) * f64::from(a[rank * inputs + input]);
            value += part;
            size += part.abs();
        }
        squares += value * value;
        sizes += size * size;
    }
    (squares.sqrt(), sizes.sqrt())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Each part of a fused site, in every format and by every implementation, against loops in double precision.
    #[test]
    fn factors_are_magnitude_over_the_norm_of_the_adapted_row(
        parts in prop::collection::vec(1usize..40, 1..4),
        inputs in prop_oneof![4 => 1usize..90, 1 => TILE - 3..2 * TILE + 40],
        rank in 1usize..11,
        scale in prop_oneof![Just(0.0f32), Just(-0.5), 0.01f32..4.0],
        delta_size in prop_oneof![Just(0.0f32), Just(1e-3), Just(1.0), Just(30.0)],
        seed in any::<u64>(),
    ) {
        let outputs: usize = parts.iter().sum();
        let source = values(seed, outputs * inputs, 1.0);
        for (format, kernels) in FORMATS.into_iter().flat_map(|format| implementations().map(|one| (format, one))) {
            let weight = kernels.pack_linear(&source, outputs, inputs, format);
            let mut out_offset = 0;
            for &out_features in &parts {
                let seed = seed.wrapping_add(out_offset as u64);
                let a = values(seed ^ 1, rank * inputs, delta_size);
                let b = values(seed ^ 2, out_features * rank, 0.5);
                let magnitude = values(seed ^ 3, out_features, 2.0);
                let linear = AdaptedLinear { weight: &weight, out_offset, a: &a, b: &b, rank, scale };
                let found = OutputFactors::compute(&linear, &magnitude);
                let mut stored = vec![0.0; inputs];
                for output in 0..out_features {
                    prop_assert!(weight.read_row(out_offset + output, 0, &mut stored));
                    let b = &b[output * rank..][..rank];
                    let (norm, sizes) = plain_norms(&stored, &a, b, scale);
                    let expected = f64::from(magnitude[output]) / norm;
                    match &found {
                        Ok(OutputFactors { factors, .. }) => {
                            // Half a unit for each of rank + 2 roundings of an element, and those of the factor itself.
                            let share = 2f64.powi(-24) * ((rank + 3) as f64 * sizes / norm + 2.0);
                            let error = (f64::from(factors[output]) - expected).abs();
                            prop_assert!(error <= 2.0 * share * expected.abs(), "{format:?}: {error} of {expected}");
                        }
                        // A single weight may be rounded to zero, or be undone by the delta.
                        Err(reason) => prop_assert!(reason.contains("norm"), "{}", reason),
                    }
                }
                if let Ok(found) = found {
                    prop_assert_eq!((found.out_offset, found.factors.len()), (out_offset, out_features));
                    prop_assert_eq!(found.bytes(), 4 * out_features);
                }
                out_offset += out_features;
            }
        }
    }
}

#[test]
fn a_magnitude_that_is_the_norm_leaves_plain_lora() {
    // How DoRA starts: B is zero and each magnitude is the norm of its row.
    let source = [3.0, 4.0, 0.0, 5.0, 12.0, 0.0];
    let weight = weft_kernels::reference().pack_linear(&source, 2, 3, WeightFormat::F32);
    let linear = AdaptedLinear { weight: &weight, out_offset: 0, a: &[1.0; 3], b: &[0.0; 2], rank: 1, scale: 2.0 };
    let factors = OutputFactors::compute(&linear, &[5.0, -26.0]).unwrap();
    assert_eq!(*factors.factors, [1.0, -2.0]);
}

#[test]
fn a_row_without_a_norm_is_refused_with_its_number() {
    let source = [3.0, 4.0, 0.0, 0.0, 1.0, 1.0];
    let weight = weft_kernels::reference().pack_linear(&source, 3, 2, WeightFormat::F32);
    let compute = |b: &[f32], magnitude: &[f32]| {
        let linear = AdaptedLinear { weight: &weight, out_offset: 0, a: &[-1.0, -1.0], b, rank: 1, scale: 1.0 };
        OutputFactors::compute(&linear, magnitude)
    };
    // A dead row of the base, a row that the delta undoes, and a quotient that no single holds.
    assert_eq!(compute(&[0.0; 3], &[1.0; 3]).unwrap_err(), "output 1 has norm 0e0 and magnitude 1e0");
    assert_eq!(compute(&[0.0, 1.0, 1.0], &[1.0; 3]).unwrap_err(), "output 2 has norm 0e0 and magnitude 1e0");
    assert_eq!(compute(&[0.0, 1.0, 1.0], &[1.0, 1.0, 0.0]).unwrap_err(), "output 2 has norm 0e0 and magnitude 0e0");
    let error = compute(&[0.0, 1e-30, 0.0], &[1.0, 1e30, 1.0]).unwrap_err();
    assert!(error.starts_with("output 1 has norm 1.414") && error.ends_with("e-30 and magnitude 1e30"), "{error}");
    assert!(compute(&[0.0, 1.0, 0.0], &[1.0, -1.0, 0.0]).is_ok());
}

#[test]
fn only_the_adapters_rows_and_columns_are_scaled() {
    let factors = [
        OutputFactors { out_offset: 1, factors: [2.0, 3.0].into() },
        OutputFactors { out_offset: 4, factors: [-1.0].into() },
    ];
    let mut out = [1.0; 20];
    ScaledRows { rows: 1..3, factors: &factors }.apply(&mut out, 5);
    let scaled = [1.0, 2.0, 3.0, 1.0, -1.0];
    assert_eq!(out[..5], [1.0; 5]);
    assert_eq!(out[5..10], scaled);
    assert_eq!(out[10..15], scaled);
    assert_eq!(out[15..], [1.0; 5]);
}

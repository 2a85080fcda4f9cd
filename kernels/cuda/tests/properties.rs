//! Any shape, any type: what the suite does not draw (half precision activations, unaligned starts, strided rotary embedding).
//! Adapters: tests/lora.rs.

use half::{bf16, f16};
use proptest::prelude::*;
use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Device, Element};
use weft_kernels::conformance::Random;

fn elements<T: Element>(random: &mut Random, len: usize) -> Vec<T> {
    (0..len).map(|_| T::from_f32(random.normal())).collect()
}

const F32_UNIT: f64 = 1.0 / 16_777_216.0;
const BF16_UNIT: f64 = 1.0 / 256.0;
const F16_UNIT: f64 = 1.0 / 2048.0;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms_in_half_precision(seed: u64, rows in 1usize..4, width in 1usize..5000, offset in 0usize..9) {
        norms_are_right::<bf16>(seed, rows, width, offset, BF16_UNIT);
        norms_are_right::<f16>(seed, rows, width, offset, F16_UNIT);
    }

    #[test]
    fn rotary_embedding_of_strided_rows_leaves_the_rest_alone(
        seed: u64, rows in 1usize..4, heads in 1usize..5, half in 1usize..100, rest in 0usize..50,
    ) {
        rope_is_right::<bf16>(seed, [rows, heads, 2 * half, rest], BF16_UNIT);
        rope_is_right::<f32>(seed, [rows, heads, 2 * half, rest], F32_UNIT);
    }

    #[test]
    fn silu_in_half_precision(seed: u64, rows in 1usize..4, inter in 1usize..5000) {
        silu_is_right::<bf16>(seed, rows, inter, BF16_UNIT);
        silu_is_right::<f16>(seed, rows, inter, F16_UNIT);
    }

    /// The shim's conversions are those of `half`: what goes through a kernel that changes nothing stays.
    #[test]
    fn conversions_round_to_nearest_even(seed: u64) {
        let random = &mut Random::new(seed);
        let values: Vec<f32> = (0..64).map(|_| f32::from_bits(random.bits() as u32)).collect();
        round_trip::<bf16>(&values);
        round_trip::<f16>(&values.iter().map(|value| value % 7e4).collect::<Vec<_>>());
        round_trip::<f16>(&values.iter().map(|value| value % 1e-4).collect::<Vec<_>>());
    }
}

const DEVICE: Device = Device { order: Order::FORWARDS, multiprocessors: 8 };

fn norms_are_right<X: Element>(seed: u64, rows: usize, width: usize, offset: usize, unit: f64) {
    let random = &mut Random::new(seed);
    let (x, weight) = (elements::<X>(random, offset + rows * width), elements::<X>(random, width));
    let before = elements::<X>(random, rows * width);
    let (mut residual, mut out) = (before.clone(), before.clone());
    DEVICE.rms_norm(Some(&mut residual), &x[offset..], &weight, 1e-5, &mut out).unwrap();
    let mut alone = before.clone();
    DEVICE.rms_norm(None, &residual, &weight, 1e-5, &mut alone).unwrap();
    for row in 0..rows {
        let at = row * width..(row + 1) * width;
        for i in at.clone() {
            let sum = X::from_f32(before[i].to_f32() + x[offset + i].to_f32());
            assert_eq!(residual[i].to_f32(), sum.to_f32(), "residual {i}");
            assert_eq!(out[i].to_f32(), alone[i].to_f32(), "both norms are one: {i}");
        }
        let mean = residual[at.clone()].iter().map(|x| f64::from(x.to_f32()).powi(2)).sum::<f64>() / width as f64;
        for i in at.clone() {
            let want =
                f64::from(residual[i].to_f32()) / (mean + 1e-5).sqrt() * f64::from(weight[i - at.start].to_f32());
            let error = (f64::from(out[i].to_f32()) - want).abs();
            assert!(error <= (unit + 1e-6) * want.abs() + 1e-7, "norm {i}: {} for {want}", out[i].to_f32());
        }
    }
}

fn rope_is_right<X: Element>(seed: u64, [rows, heads, head_dim, rest]: [usize; 4], unit: f64) {
    let random = &mut Random::new(seed);
    let (stride, half) = (heads * head_dim + rest, head_dim / 2);
    let x = elements::<X>(random, rows * stride);
    let positions: Vec<u32> = (0..rows).map(|_| random.below(100_000) as u32).collect();
    let inv_freq: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
    let mut got = x.clone();
    DEVICE.rope(&mut got, [heads, head_dim, stride], &positions, &inv_freq, 1.0).unwrap();
    for (at, (got, value)) in got.iter().zip(&x).enumerate() {
        let (row, column) = (at / stride, at % stride);
        if column >= heads * head_dim {
            assert_eq!(got.to_f32(), value.to_f32(), "element {at} is beyond the heads");
            continue;
        }
        let i = column % head_dim % half;
        let is_low = column % head_dim < half;
        let partner = f64::from(x[if is_low { at + half } else { at - half }].to_f32());
        let (sine, cosine) = f64::from(positions[row] as f32 * inv_freq[i]).sin_cos();
        let value = f64::from(value.to_f32());
        let want = value * cosine + if is_low { -partner * sine } else { partner * sine };
        let error = (f64::from(got.to_f32()) - want).abs();
        let bound = unit * want.abs() + 1e-6 * (value.abs() + partner.abs());
        assert!(error <= bound, "element {at} is {}, should be {want}", got.to_f32());
    }
}

fn silu_is_right<X: Element>(seed: u64, rows: usize, inter: usize, unit: f64) {
    let random = &mut Random::new(seed);
    let gate_up = elements::<X>(random, rows * 2 * inter);
    let mut out = elements::<X>(random, rows * inter);
    DEVICE.silu_mul(&gate_up, inter, &mut out).unwrap();
    for (at, got) in out.iter().enumerate() {
        let gate = at / inter * 2 * inter + at % inter;
        let (a, b) = (f64::from(gate_up[gate].to_f32()), f64::from(gate_up[gate + inter].to_f32()));
        let want = a / (1.0 + (-a).exp()) * b;
        let error = (f64::from(got.to_f32()) - want).abs();
        // Half a step of f16's smallest numbers besides.
        assert!(error <= (unit + 1e-6) * want.abs() + 3e-8, "element {at} is {}, should be {want}", got.to_f32());
    }
}

/// `residual + x` with x zero rounds what is in no need of it; with the halves of a value it rounds the value.
fn round_trip<X: Element>(values: &[f32]) {
    let values: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
    if values.is_empty() {
        return;
    }
    // A value that X holds, and another that makes their sum need rounding.
    let near: Vec<X> = values.iter().map(|value| X::from_f32(*value)).collect();
    let far: Vec<X> = values.iter().map(|value| X::from_f32(*value * 0.013)).collect();
    let weight = vec![X::from_f32(1.0); near.len()];
    let (mut residual, mut out) = (near.clone(), near.clone());
    DEVICE.rms_norm(Some(&mut residual), &far, &weight, 1e-5, &mut out).unwrap();
    for ((got, near), far) in residual.iter().zip(&near).zip(&far) {
        let want = X::from_f32(near.to_f32() + far.to_f32()).to_f32();
        let is_same = got.to_f32().to_bits() == want.to_bits() || (got.to_f32().is_nan() && want.is_nan());
        assert!(is_same, "{} + {} is {}, should be {want}", near.to_f32(), far.to_f32(), got.to_f32());
    }
}

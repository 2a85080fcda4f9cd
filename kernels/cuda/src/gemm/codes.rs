//! From weights in f32 to codes and scales, all row-major `[columns, depth]`. What is not finite makes its scale or minimum NaN.

use super::STEP;
use half::f16;

/// Below this a largest value counts as zero; as in `kernels/src/quant.rs`.
const LEAST: f32 = 1e-30;
const E4M3_MAX: f32 = 448.0;

/// Codes 0 to 15 with scale and minimum per 32 inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Four {
    /// `[columns, depth]`.
    pub codes: Vec<u8>,
    /// `[columns, depth / group]`.
    pub scales: Vec<f16>,
    /// As the scales.
    pub mins: Vec<f16>,
}

/// The codes of ggml's `Q4_1`: the smallest weight of 32 is code 0, the largest 15. Weights that came from it give their codes back.
#[must_use]
pub fn four(weights: &[f32]) -> Four {
    let mut four = Four::default();
    for group in weights.chunks(STEP) {
        let least = group.iter().copied().fold(f32::INFINITY, f32::min);
        let most = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (scale, min) = (f16::from_f32((most - least) / 15.0), f16::from_f32(least));
        let inverse = if scale.to_f32() < LEAST { 0.0 } else { 1.0 / scale.to_f32() };
        let code = |w: &f32| ((w - min.to_f32()) * inverse).round_ties_even().clamp(0.0, 15.0) as u8;
        four.codes.extend(group.iter().map(code));
        four.scales.push(scale);
        four.mins.push(f16::from_f32(min.to_f32() + bad(group)));
    }
    four
}

/// Codes -127 to 127 with a scale for each `group` inputs: 32 for [`super::Weights::Int8Groups`], depth for `Int8Channels`.
#[must_use]
pub fn int8(weights: &[f32], group: usize) -> (Vec<i8>, Vec<f32>) {
    with_scales(weights, group, 127.0, |value| value.round_ties_even().clamp(-127.0, 127.0) as i8)
}

/// Codes in e4m3 with a scale for each column of `depth` inputs.
#[must_use]
pub fn e4m3(weights: &[f32], depth: usize) -> (Vec<u8>, Vec<f32>) {
    with_scales(weights, depth, E4M3_MAX, to_e4m3)
}

fn with_scales<C>(weights: &[f32], group: usize, largest: f32, code: impl Fn(f32) -> C) -> (Vec<C>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::with_capacity(weights.len()), Vec::new());
    for group in weights.chunks(group) {
        let most = group.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        let (scale, inverse) = if most < LEAST { (0.0, 0.0) } else { (most / largest, largest / most) };
        codes.extend(group.iter().map(|w| code(w * inverse)));
        scales.push(scale + bad(group));
    }
    (codes, scales)
}

/// Zero, or NaN if something is not finite.
fn bad(group: &[f32]) -> f32 {
    group.iter().map(|w| w * 0.0).sum()
}

/// To the nearest e4m3, ties to even; what is larger than 448 becomes 448.
#[must_use]
pub fn to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if value.is_nan() {
        return 0x7f;
    }
    if magnitude >= E4M3_MAX {
        return sign | 0x7e;
    }
    // Numbers lie 2^(exponent - 3) apart, and 2^-9 below 2^-6.
    let exponent = (magnitude.to_bits() >> 23).cast_signed() - 127;
    let exponent = exponent.max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as u8;
    // Eight steps are the 1 that is not stored; sixteen carry into the exponent.
    sign | ((exponent + 6) as u8 * 8 + steps)
}

/// Exact.
#[must_use]
pub fn from_e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match code & 0x7f {
        0x7f => f32::NAN,
        _ if exponent == 0 => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernels::conformance::Random;

    #[test]
    fn every_code_of_e4m3_comes_back_and_middles_go_to_even() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(to_e4m3(from_e4m3(code)), code);
            if code & 0x7f < 0x7e {
                let middle = f32::midpoint(from_e4m3(code), from_e4m3(code + 1));
                assert_eq!(to_e4m3(middle), code + code % 2, "{middle}");
                let (below, above) = (middle.abs().next_down(), middle.abs().next_up());
                assert_eq!([below, above].map(to_e4m3), [code & 0x7f, (code & 0x7f) + 1]);
            }
        }
        let ends = [1e9, f32::NEG_INFINITY, f32::NAN, 1e-40].map(to_e4m3);
        assert_eq!(ends, [0x7e, 0xfe, 0x7f, 0]);
    }

    #[test]
    fn codes_of_four_bits_come_back_from_their_values() {
        let weights = Random::new(1).normals(640);
        let four = super::four(&weights);
        let value = |i: usize| four.scales[i / 32].to_f32() * f32::from(four.codes[i]) + four.mins[i / 32].to_f32();
        assert_eq!(super::four(&(0..640).map(value).collect::<Vec<_>>()), four);
        let worst = (0..640).map(|i| (value(i) - weights[i]).abs() / four.scales[i / 32].to_f32()).fold(0.0, f32::max);
        assert!(worst < 0.52, "off by {worst} steps");
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut weights = [1.0f32; 64];
        weights[40] = f32::INFINITY;
        let (_, scales) = int8(&weights, 32);
        assert!(scales[0].is_finite() && scales[1].is_nan());
        assert!(e4m3(&weights, 64).1[0].is_nan());
        assert!(!four(&weights).mins[0].is_nan() && four(&weights).mins[1].is_nan());
    }
}

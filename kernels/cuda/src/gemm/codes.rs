//! From weights in f32 to codes and scales, all row-major `[columns, depth]`. What is not finite makes its scale or minimum NaN.

use super::STEP;
use crate::e4m3;
use half::f16;

/// Below this a largest value counts as zero; as in `kernels/src/quant.rs`.
const LEAST: f32 = 1e-30;

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
    with_scales(weights, depth, e4m3::MAX, e4m3::encode)
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

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernels::conformance::Random;

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

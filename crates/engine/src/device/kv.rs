//! How keys and values are stored on a device.

use super::precision::Precision;
use crate::shape::Shape;
use weft_cuda_kernels::e4m3;

/// Storage of keys and values on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// That of everything else.
    Precision,
    /// e4m3, beside activations in bf16: a byte each, half of bf16's.
    ///
    /// A head's keys, and its values, are codes times a power of two that follows from the base's weights ([`crate::device`] needs no prompts to
    /// calibrate it). A stored number is off by at most 1/16 of itself, or by `2^-10` of that power of two if it is smaller than `2^-6` of it; what
    /// is larger than 448 times it, which takes an adapter that more than doubles the largest key that the base can make, becomes that.
    Fp8,
}

impl KvFormat {
    /// How names of kernels end, after the precision.
    pub(crate) fn suffix(self, precision: Precision) -> &'static str {
        match self {
            Self::Precision => precision.suffix(),
            Self::Fp8 => "e4m3",
        }
    }

    /// Of an element.
    #[must_use]
    pub fn bytes(self, precision: Precision) -> usize {
        match self {
            Self::Precision => precision.bytes(),
            Self::Fp8 => 1,
        }
    }
}

/// How much more than the base's largest key or value there is room for: adapters change both.
const ROOM: f64 = 2.0;

/// What codes of the keys, and of the values, of each head are multiplied by. `qkv [qkv_width, hidden]`, `norm [hidden]`: that of the layer's input.
///
/// The input of a linear is `norm * x / rms(x)`, whose second factor has a length of at most `sqrt(hidden)`. So an output is at most that times the
/// length of its weights, each times its norm; two keys that rotate together are at most the length of both. The scale is the power of two
/// at which twice the largest of these in a head is still a code. With it codes are exact quotients; a number of usual size, `1 / sqrt(hidden)` of
/// the bound, lies some hundred times above the smallest that has all bits of its fraction.
///
/// Cost: one pass over the weights of keys and values.
pub(crate) fn scales(qkv: &[f32], norm: &[f32], shape: &Shape) -> [Vec<f32>; 2] {
    let square = |row: usize| {
        let row = &qkv[row * shape.hidden..][..shape.hidden];
        let squares = row.iter().zip(norm).map(|(&weight, &norm)| (f64::from(weight) * f64::from(norm)).powi(2));
        shape.hidden as f64 * squares.sum::<f64>()
    };
    let (dim, half) = (shape.head_dim, shape.head_dim / 2);
    let heads = |first: usize, most: &dyn Fn(&[f64]) -> f64| {
        let of_head = |head: usize| {
            let squares: Vec<f64> = (0..dim).map(|at| square(first + head * dim + at)).collect();
            power_of_two(most(&squares).sqrt() * ROOM / f64::from(e4m3::MAX))
        };
        (0..shape.kv_heads).map(of_head).collect()
    };
    let rotated = |squares: &[f64]| {
        let pairs = (0..half).map(|at| squares[at] + squares[at + half]).fold(0.0, f64::max);
        pairs * f64::from(shape.attention_factor).powi(2)
    };
    let largest = |squares: &[f64]| squares.iter().copied().fold(0.0, f64::max);
    [heads(shape.q_width(), &rotated), heads(shape.q_width() + shape.kv_width(), &largest)]
}

/// The next one that is not smaller, of those that f32 divides by without loss; 1 if there is nothing to scale.
fn power_of_two(least: f64) -> f32 {
    if least > 0.0 && least.is_finite() { least.log2().ceil().clamp(-96.0, 96.0).exp2() as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernels::conformance::Random;

    /// The largest keys and values that inputs can make, at any angle, are codes with a factor of two to spare; and no scale wastes more than that
    /// and a power of two.
    #[test]
    fn no_input_of_the_base_is_beyond_the_codes() {
        let mut random = Random::new(3);
        let shape = Shape {
            layers: 1,
            hidden: 40,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            intermediate: 8,
            vocabulary: 8,
            context: 8,
            rms_eps: 1e-5,
            inv_freq: vec![1.0; 3],
            attention_factor: 1.25,
        };
        let mut qkv = random.normals(shape.qkv_width() * shape.hidden);
        // One head's weights are a thousand times another's.
        qkv[(shape.q_width() + 6) * shape.hidden..(shape.q_width() + 12) * shape.hidden]
            .iter_mut()
            .for_each(|w| *w *= 1e-3);
        let norm = random.normals(shape.hidden);
        let [keys, values] = scales(&qkv, &norm, &shape);
        let row = |row: usize| -> Vec<f64> {
            let row = &qkv[row * shape.hidden..][..shape.hidden];
            row.iter().zip(&norm).map(|(w, n)| f64::from(*w) * f64::from(*n)).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // The input of this root mean square that makes the most of a combination of outputs.
        let most = |of: &[f64]| {
            let length = dot(of, of).sqrt();
            let input: Vec<f64> = of.iter().map(|x| x / length * (shape.hidden as f64).sqrt()).collect();
            assert!((dot(&input, &input) / shape.hidden as f64 - 1.0).abs() < 1e-9);
            dot(of, &input)
        };
        for head in 0..2 {
            let first = shape.q_width() + head * 6;
            let mut largest = [0.0f64; 2];
            for at in 0..6 {
                for step in 0..64 {
                    let (sin, cos) = (f64::from(step) * 0.1).sin_cos();
                    let (a, b) = (row(first + at % 3), row(first + at % 3 + 3));
                    let turned: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 1.25 * (cos * a - sin * b)).collect();
                    largest[0] = largest[0].max(most(&turned));
                }
                largest[1] = largest[1].max(most(&row(first + shape.kv_width() + at)));
            }
            for (largest, scale) in largest.into_iter().zip([keys[head], values[head]]) {
                let code = largest / f64::from(scale);
                assert!(code <= 224.0 && code > 224.0 / 2.0 / 1.5, "{code}");
                assert_eq!(scale.to_bits() & 0x7f_ffff, 0, "{scale} is no power of two");
            }
        }
        assert!(keys[0] > 100.0 * keys[1]);
        assert_eq!([0.0, f64::NAN, f64::INFINITY, 3.0, 4.0].map(power_of_two), [1.0, 1.0, 1.0, 4.0, 4.0]);
    }
}

//! Passes over one row of logits. Plain arithmetic in a fixed order (sixteen lanes, then pairwise), compiled for
//! several vector widths and chosen at run time: multiplications and additions are never fused, so that the same logits
//! give the same bits on every platform.

use super::NoToken;

const LANES: usize = 16;
/// Values whose maximum [`block_maxima`] takes.
pub(super) const BLOCK: usize = 64;
/// Values summed in f32 before the sum goes on in f64: keeps the error of a whole vocabulary below 1e-6.
const CHUNK: usize = 1024;

/// Defines a function whose body, an `#[inline(always)]` function of the same arguments, is compiled for each vector
/// width of the target, and which picks the widest that the processor has.
macro_rules! widest {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:ident) => {
        $(#[$doc])*
        #[inline]
        $visibility fn $name($($argument: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) -> $result {
                    $body($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) -> $result {
                    $body($($argument),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has AVX-512F, as the line above asked.
                    return unsafe { avx512($($argument),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, as the line above asked.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body($($argument),*)
        }
    };
}

/// `exp(x)` for `x <= 0`, relative error below 2e-7; exactly 0 below -87 (where f32 turns subnormal).
///
/// Cephes' polynomial after splitting `x = n ln 2 + r`. The standard library's is a call per value, which would cost
/// more than the rest of the sampler together.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then sits in the low bits of the float.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let fraction = p * r * r + r + 1.0;
    let value = f32::from_bits(fraction.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { value }
}

/// The largest value.
///
/// # Errors
/// [`NoToken`] if there is a NaN or +inf, or nothing above -inf. (-inf marks a forbidden token.)
pub(super) fn max_finite(values: &[f32]) -> Result<f32, NoToken> {
    let (max, has_nan) = max_and_nan(values);
    if has_nan || !max.is_finite() { Err(NoToken) } else { Ok(max) }
}

widest! {
    /// The largest value that is a number (-inf if none is), and whether there is one that is not.
    fn max_and_nan(values: &[f32]) -> (f32, bool) = max_and_nan_body
}

#[inline(always)]
fn max_and_nan_body(values: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut unordered = [0u32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            unordered[lane] |= u32::from(chunk[lane].is_nan());
        }
    }
    let mut max = f32::NEG_INFINITY;
    for &value in lanes.iter().chain(tail) {
        max = max.max(value);
    }
    (max, unordered.iter().any(|&lane| lane != 0) || tail.iter().any(|value| value.is_nan()))
}

widest! {
    /// Sum of `exp((value - max) * inverse_temperature)`.
    pub(super) fn exp_sum(values: &[f32], max: f32, inverse_temperature: f32) -> f64 = exp_sum_body
}

#[inline(always)]
fn exp_sum_body(values: &[f32], max: f32, inverse_temperature: f32) -> f64 {
    let mut sum = 0.0;
    for chunk in values.chunks(CHUNK) {
        sum += f64::from(exp_sum_chunk(chunk, max, inverse_temperature));
    }
    sum
}

#[inline(always)]
fn exp_sum_chunk(values: &[f32], max: f32, inverse_temperature: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += exp((chunk[lane] - max) * inverse_temperature);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    let mut sum = lanes[0];
    for &value in tail {
        sum += exp((value - max) * inverse_temperature);
    }
    sum
}

widest! {
    /// The largest value of each block of [`BLOCK`].
    pub(super) fn block_maxima(values: &[f32]) -> Vec<f32> = block_maxima_body
}

#[inline(always)]
fn block_maxima_body(values: &[f32]) -> Vec<f32> {
    let mut maxima = Vec::with_capacity(values.len().div_ceil(BLOCK));
    for block in values.chunks(BLOCK) {
        maxima.push(max_and_nan_body(block).0);
    }
    maxima
}

/// Turns values whose bit is not set into -inf: bit `i % 32` of word `i / 32`, a missing word being 0.
pub(super) fn forbid(values: &mut [f32], allowed: &[u32]) {
    let (covered, rest) = values.split_at_mut(values.len().min(allowed.len() * 32));
    forbid_covered(covered, allowed);
    rest.fill(f32::NEG_INFINITY);
}

widest! {
    fn forbid_covered(values: &mut [f32], allowed: &[u32]) -> () = forbid_covered_body
}

#[inline(always)]
fn forbid_covered_body(values: &mut [f32], allowed: &[u32]) {
    for (chunk, &word) in values.chunks_mut(32).zip(allowed) {
        // Most words are all or nothing.
        if word == u32::MAX {
            continue;
        }
        for (bit, value) in chunk.iter_mut().enumerate() {
            *value = if word >> bit & 1 == 1 { *value } else { f32::NEG_INFINITY };
        }
    }
}

widest! {
    /// The first index that holds `max`.
    pub(super) fn index_of(values: &[f32], max: f32) -> usize = index_of_body
}

#[inline(always)]
fn index_of_body(values: &[f32], max: f32) -> usize {
    const BLOCK: usize = 256;
    for (block, chunk) in values.chunks(BLOCK).enumerate() {
        // Whether, before where: the first question vectorises.
        let mut found = false;
        for &value in chunk {
            found |= value == max;
        }
        if found {
            let offset = chunk.iter().position(|&value| value == max).unwrap_or(0);
            return block * BLOCK + offset;
        }
    }
    0
}

widest! {
    /// Walks the weights `exp((value - max) * inverse_temperature)` in order of index until their sum exceeds
    /// `target`. Rounding can leave a target just below the whole sum unreached; then the last index of positive weight
    /// is returned.
    pub(super) fn index_at_mass(values: &[f32], max: f32, inverse_temperature: f32, target: f64) -> usize = index_at_mass_body
}

#[inline(always)]
fn index_at_mass_body(values: &[f32], max: f32, inverse_temperature: f32, target: f64) -> usize {
    let mut before = 0.0f64;
    let (mut block, mut inside) = (0, 0.0);
    for (number, chunk) in values.chunks(CHUNK).enumerate() {
        let mass = f64::from(exp_sum_chunk(chunk, max, inverse_temperature));
        if mass == 0.0 {
            continue;
        }
        (block, inside) = (number, before);
        if before + mass > target {
            break;
        }
        before += mass;
    }
    let first = block * CHUNK;
    let chunk = &values[first..values.len().min(first + CHUNK)];
    let mut last = first;
    for (offset, &value) in chunk.iter().enumerate() {
        let weight = exp((value - max) * inverse_temperature);
        if weight > 0.0 {
            last = first + offset;
            inside += f64::from(weight);
            if inside > target {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_good_as_the_standard_one() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
    }

    #[test]
    fn refuses_logits_without_a_largest_finite_value() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 3, 8, 9] {
                let mut values = vec![0.5f32; 10];
                values[at] = bad;
                assert!(max_finite(&values).is_err(), "{bad} at {at}");
            }
        }
        assert!(max_finite(&[f32::NEG_INFINITY; 10]).is_err());
        assert!(max_finite(&[]).is_err());
        assert_eq!(max_finite(&[f32::NEG_INFINITY, -3.0]).unwrap(), -3.0);
    }

    #[test]
    fn forbids_exactly_what_has_no_bit() {
        for len in [0usize, 1, 31, 32, 33, 100, 1000] {
            for words in [0usize, 1, 3, len.div_ceil(32), len.div_ceil(32) + 1] {
                let mask: Vec<u32> =
                    (0..words as u32).map(|i| [0, u32::MAX, i.wrapping_mul(2_654_435_761)][i as usize % 3]).collect();
                let mut values = vec![1.5f32; len];
                forbid(&mut values, &mask);
                for (at, value) in values.iter().enumerate() {
                    let allowed = mask.get(at / 32).is_some_and(|word| word >> (at % 32) & 1 == 1);
                    assert_eq!(*value, if allowed { 1.5 } else { f32::NEG_INFINITY }, "{at} of {len}, {words} words");
                }
            }
        }
    }

    #[test]
    fn finds_the_first_of_equal_maxima() {
        let mut values = vec![0.0f32; 1000];
        values[700] = 2.0;
        values[701] = 2.0;
        assert_eq!(index_of(&values, 2.0), 700);
    }

    #[test]
    fn sums_a_vocabulary_to_six_digits() {
        let values: Vec<f32> = (0..50_000).map(|i| ((i * 7919) % 1000) as f32 * -0.01).collect();
        let expected: f64 = values.iter().map(|&value| f64::from(value).exp()).sum();
        assert!((exp_sum(&values, 0.0, 1.0) / expected - 1.0).abs() < 1e-6);
    }

    #[test]
    fn every_vector_width_gives_the_same_bits() {
        let values: Vec<f32> = (0..49_157u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 12) as f32 * -1e-5).collect();
        let max = max_finite(&values).unwrap();
        assert_eq!(max_and_nan(&values), max_and_nan_body(&values));
        assert_eq!(index_of(&values, max), index_of_body(&values, max));
        for inverse_temperature in [0.3, 1.0, 7.0] {
            let sum = exp_sum(&values, max, inverse_temperature);
            assert_eq!(sum.to_bits(), exp_sum_body(&values, max, inverse_temperature).to_bits());
            for share in [0.0, 0.3, 0.999] {
                let at = index_at_mass(&values, max, inverse_temperature, share * sum);
                assert_eq!(at, index_at_mass_body(&values, max, inverse_temperature, share * sum));
            }
        }
    }

    #[test]
    fn the_walk_covers_all_mass_and_nothing_else() {
        let mut values = vec![f32::NEG_INFINITY; 3000];
        values[5] = 0.0;
        values[1500] = 0.0;
        values[2999] = 0.0;
        for (target, expected) in
            [(0.0, 5), (0.99, 5), (1.0, 1500), (1.99, 1500), (2.0, 2999), (2.99, 2999), (3.0, 2999)]
        {
            assert_eq!(index_at_mass(&values, 0.0, 1.0, target), expected, "{target}");
        }
    }
}

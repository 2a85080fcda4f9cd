//! One suite that every implementation of [`Kernels`] must pass.
//!
//! Each function states one promise of the port, checks it over shapes drawn from a seed, and panics with the seed and the
//! shape where it does not hold. [`all`] runs every one.
//!
//! # Tolerances
//!
//! An error is measured against the sum of absolute values that went into the element (its *magnitude*), because
//! that, not the possibly cancelled result, is what rounding scales with.
//!
//! | format | bound | reason |
//! |---|---|---|
//! | `F32` | `2^-24 (8 + 4 √depth)` of the magnitude | half a unit in the last place per addition, errors of a chain add up like a random walk |
//! | `Bf16` | `2^-8` of the magnitude per rounding, plus the above | weights are rounded alike on both sides; activations may be rounded (half a unit of 8 bits: `2^-8`) once in a linear, twice in an adapter |
//! | `Int8` | as `F32` | both sides round activations to the same codes and add their products exactly |
//! | `Int8`, adapters | as `F32`; where activations are [`BesideCodes::Codes`] besides a step of what is between the halves, for each value in the middle of two codes | codes of activations and their products are exact; a value between the halves is rounded twice and may tip |
//! | `Q4` | 4 times that, of the largest weights of each group | besides, a weight is a sum of two terms that may be larger than itself: a minimum and up to 15 steps |
//! | element-wise | `1e-6` relative | a few roundings and `exp` within 2.5e-7 |

mod attention;
mod linear;
mod lora;
mod random;
mod rows;

pub use attention::{
    attention_does_not_depend_on_the_cut_into_steps, attention_ignores_what_it_must_not_see,
    attention_matches_the_reference,
};
pub use linear::{linear_matches_the_reference, linear_row_alone_and_in_a_batch_is_bit_equal};
pub use lora::{
    lora_leaves_everything_else_alone, lora_matches_the_reference, lora_row_alone_and_in_a_batch_is_bit_equal,
    lora_with_overlapping_targets_adds_both,
};
pub use random::Random;
pub use rows::{
    norms_match_the_reference, rope_matches_the_reference, silu_matches_the_reference, the_exponential_is_accurate,
};

use crate::{Kernels, WeightFormat};

/// What an implementation makes of the activations that meet adapters in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BesideCodes {
    /// They stay floats.
    Floats,
    /// They become codes in groups of 32, and so does what is between the halves.
    Codes,
}

/// Runs the whole suite. Cost: seconds.
///
/// # Panics
///
/// When a promise does not hold.
pub fn all(kernels: &dyn Kernels, beside: BesideCodes, seed: u64) {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Q4] {
        linear_matches_the_reference(kernels, format, seed);
        linear_row_alone_and_in_a_batch_is_bit_equal(kernels, format, seed);
    }
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
        lora_matches_the_reference(kernels, format, beside, seed);
        lora_row_alone_and_in_a_batch_is_bit_equal(kernels, format, seed);
        lora_leaves_everything_else_alone(kernels, format, seed);
        lora_with_overlapping_targets_adds_both(kernels, format, beside, seed);
    }
    for format in [crate::KvFormat::F32, crate::KvFormat::Bf16] {
        attention_matches_the_reference(kernels, format, seed);
        attention_does_not_depend_on_the_cut_into_steps(kernels, format, seed);
        attention_ignores_what_it_must_not_see(kernels, format, seed);
    }
    norms_match_the_reference(kernels, seed);
    rope_matches_the_reference(kernels, seed);
    silu_matches_the_reference(kernels, seed);
    the_exponential_is_accurate(kernels);
}

/// The bound for a sum of `depth` products whose activations went through `roundings`, as a share of its magnitude.
fn tolerance(format: WeightFormat, depth: usize, roundings: i32) -> f32 {
    let additions = (8.0 + 4.0 * (depth as f32).sqrt()) / 16_777_216.0;
    match format {
        WeightFormat::F32 | WeightFormat::Int8 => additions,
        WeightFormat::Q4 => 4.0 * additions,
        WeightFormat::Bf16 => additions + (1.0f32 + 1.0 / 256.0).powi(roundings) - 1.0,
    }
}

/// Checks `got` against `want`, element by element: `|got - want| <= share * magnitude`.
fn assert_close(what: &str, got: &[f32], want: &[f32], magnitude: &[f32], share: f32) {
    assert!(got.len() == want.len() && got.len() == magnitude.len(), "{what}: lengths");
    for (i, ((got, want), magnitude)) in got.iter().zip(want).zip(magnitude).enumerate() {
        let (error, bound) = ((got - want).abs(), share * magnitude + f32::MIN_POSITIVE);
        assert!(error <= bound, "{what}: element {i} is {got}, should be {want}: off by {error}, bound {bound}");
    }
}

/// Checks equality of every bit; NaN equals the same NaN.
fn assert_bits(what: &str, got: &[f32], want: &[f32]) {
    assert!(got.len() == want.len(), "{what}: lengths {} and {}", got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: element {i} is {got:e}, should be exactly {want:e}");
    }
}

/// Absolute values.
fn abs(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

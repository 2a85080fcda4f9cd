//! Sums of products of bytes, sixteen outputs at a time: what each instruction set has for integer weights.
//!
//! The sums are exact, so every set gives the same integers, in whatever order it adds.

use super::lanes::{Lanes, Portable};
use crate::packed::PANEL;
#[cfg(doc)]
use crate::quant::GROUP;
use crate::quant::MAGIC;

/// The integer operations of one instruction set.
///
/// # Safety
///
/// All functions: as [`Lanes`]. Pointers to weights are valid for 64 bytes.
pub(crate) trait Bytes: Copy {
    /// The set's lanes of `f32`.
    type L: Lanes;
    /// Sixteen sums.
    type Sum: Copy;
    /// Sixteen sums over 4-bit weights: they hold those of one group.
    type Sum4: Copy;
    /// Four inputs of sixteen outputs, in 8 bits.
    type Weights8: Copy;
    /// The same in 4 bits.
    type Weights4: Copy;

    /// Four inputs of 8-bit codes.
    unsafe fn load8(from: *const u8) -> Self::Weights8;
    /// Eight inputs of 4-bit codes: the first four, the other four.
    unsafe fn load4(from: *const u8) -> [Self::Weights4; 2];
    /// What sums over 8-bit weights begin with, where `start` is [`crate::quant::GroupX::start`].
    unsafe fn start8(start: &i32) -> Self::Sum;
    /// What sums over 4-bit weights begin with.
    unsafe fn start4() -> Self::Sum4;
    /// Adds four products to each sum; `x` holds four activation codes.
    unsafe fn dot8(sum: Self::Sum, weights: Self::Weights8, x: u32) -> Self::Sum;
    /// The same for 4-bit weights; at most [`GROUP`] products in all.
    unsafe fn dot4(sum: Self::Sum4, weights: Self::Weights4, x: u32) -> Self::Sum4;
    /// What sums begin with to which [`Self::dot_octets`] adds a group: `codes` are its 32 activations.
    unsafe fn start_octets(codes: *const i8) -> Self::Sum;
    /// Adds four products to each sum, of weights that lie `[8 ranks][8 inputs]`; `x` holds eight activation codes, of which even
    /// sums take the first four and odd ones the others.
    unsafe fn dot_octets(sum: Self::Sum, weights: Self::Weights8, x: u64) -> Self::Sum;
    /// The sums over 4-bit weights as those over 8-bit ones.
    unsafe fn widen4(sum: Self::Sum4) -> Self::Sum;
    /// The sums as `f32`; exact below 2^24.
    unsafe fn float(sum: Self::Sum) -> <Self::L as Lanes>::V;
    /// Sixteen halves, widened.
    unsafe fn load_f16(from: *const u16) -> <Self::L as Lanes>::V;
    /// The largest absolute value; anything where one is NaN.
    unsafe fn most(values: [<Self::L as Lanes>::V; 2]) -> f32;
    /// Rounds to the nearest integers, ties to even, stores their low bytes at `to` (32 of them) and returns their sum.
    /// Values are within -127.5 to 127.5.
    unsafe fn encode(values: [<Self::L as Lanes>::V; 2], to: *mut i8) -> i32;
}

/// Plain arrays: what the compiler makes of them on the oldest processor of the architecture.
#[derive(Clone, Copy)]
pub(crate) struct PortableBytes;

impl Bytes for PortableBytes {
    type L = Portable;
    type Sum = [i32; PANEL];
    type Sum4 = [i32; PANEL];
    type Weights8 = [[i8; 4]; PANEL];
    type Weights4 = [[i8; 4]; PANEL];

    #[inline(always)]
    unsafe fn load8(from: *const u8) -> Self::Weights8 {
        // SAFETY: valid for 64 bytes, an array has no stricter alignment than its elements.
        let codes: [[u8; 4]; PANEL] = unsafe { *from.cast() };
        codes.map(|four| four.map(|code| (code ^ 128).cast_signed()))
    }
    #[inline(always)]
    unsafe fn load4(from: *const u8) -> [Self::Weights4; 2] {
        // SAFETY: as in `load8`.
        let codes: [[u8; 4]; PANEL] = unsafe { *from.cast() };
        [codes.map(|four| four.map(|both| (both & 15) as i8)), codes.map(|four| four.map(|both| (both >> 4) as i8))]
    }
    #[inline(always)]
    unsafe fn start8(_: &i32) -> Self::Sum {
        [0; PANEL]
    }
    #[inline(always)]
    unsafe fn start4() -> Self::Sum4 {
        [0; PANEL]
    }
    #[inline(always)]
    unsafe fn dot8(mut sum: Self::Sum, weights: Self::Weights8, x: u32) -> Self::Sum {
        let x = x.to_le_bytes().map(|byte| i16::from(byte.cast_signed()));
        for (sum, weights) in sum.iter_mut().zip(weights) {
            for (weight, x) in weights.into_iter().zip(x) {
                *sum += i32::from(i16::from(weight) * x);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn start_octets(_: *const i8) -> Self::Sum {
        [0; PANEL]
    }
    #[inline(always)]
    unsafe fn dot_octets(mut sum: Self::Sum, weights: Self::Weights8, x: u64) -> Self::Sum {
        let x = x.to_le_bytes().map(|byte| i16::from(byte.cast_signed()));
        for (index, (sum, weights)) in sum.iter_mut().zip(weights).enumerate() {
            for (weight, x) in weights.into_iter().zip(&x[index % 2 * 4..]) {
                *sum += i32::from(i16::from(weight) * x);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn dot4(sum: Self::Sum4, weights: Self::Weights4, x: u32) -> Self::Sum4 {
        // SAFETY: the caller's duty.
        unsafe { Self::dot8(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn widen4(sum: Self::Sum4) -> Self::Sum {
        sum
    }
    #[inline(always)]
    unsafe fn float(sum: Self::Sum) -> <Portable as Lanes>::V {
        let lanes = sum.map(|sum| sum as f32);
        // SAFETY: an array of 16; the instruction set is the caller's duty.
        unsafe { Portable::load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> <Portable as Lanes>::V {
        // SAFETY: valid for 16 values of 2 bytes.
        let halves: [u16; PANEL] = unsafe { *from.cast() };
        let lanes = halves.map(|bits| half::f16::from_bits(bits).to_f32());
        // SAFETY: an array of 16; the instruction set is the caller's duty.
        unsafe { Portable::load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn most(values: [<Portable as Lanes>::V; 2]) -> f32 {
        let mut lanes = [0.0f32; 2 * PANEL];
        // SAFETY: an array of 32; the instruction set is the caller's duty.
        unsafe {
            Portable::store(lanes.as_mut_ptr(), values[0]);
            Portable::store(lanes.as_mut_ptr().add(PANEL), values[1]);
        }
        lanes.into_iter().fold(0.0, |most, value| most.max(value.abs()))
    }
    #[inline(always)]
    unsafe fn encode(values: [<Portable as Lanes>::V; 2], to: *mut i8) -> i32 {
        let mut lanes = [0.0f32; 2 * PANEL];
        // SAFETY: arrays of 32; `to` is valid for 32 bytes; the instruction set is the caller's duty.
        unsafe {
            // Adding MAGIC rounds to an integer, ties to even, and leaves it in the low bits.
            Portable::store(lanes.as_mut_ptr(), Portable::add(values[0], Portable::splat(MAGIC)));
            Portable::store(lanes.as_mut_ptr().add(PANEL), Portable::add(values[1], Portable::splat(MAGIC)));
            let codes = lanes.map(|lane| lane.to_bits() as i8);
            *to.cast() = codes;
            codes.into_iter().map(i32::from).sum()
        }
    }
}

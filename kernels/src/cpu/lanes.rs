//! Sixteen `f32` lanes: the one vector shape all micro-kernels are written in.
//!
//! AVX-512 holds them in one register, AVX2 in two, NEON in four. Because the shape is the same everywhere, so is
//! the order of every sum: AVX2, AVX-512 and NEON give bit-equal results wherever they are all fused.

use crate::packed::PANEL;
use crate::quant::MAGIC;

/// The operations of one instruction set.
///
/// # Safety
///
/// All functions: the processor has the instruction set, and the caller was compiled with it enabled (they are
/// inlined into functions marked `#[target_feature]`). Pointers are valid for 16 values.
pub(crate) trait Lanes: Copy {
    /// The register, or registers.
    type V: Copy;

    /// All lanes the same.
    unsafe fn splat(value: f32) -> Self::V;
    /// Unaligned load.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Unaligned load of bf16, widened exactly.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Unaligned store.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `a * b + c`, rounded once (twice in the portable set).
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` when either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` when either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `2^n`, from the bits of `n + MAGIC` where `n` is an integer in `-126..=127`.
    unsafe fn pow2(shifted: Self::V) -> Self::V;
    /// The sum of all lanes: `i + (i + 8)`, then 4, 2, 1.
    unsafe fn sum(value: Self::V) -> f32;

    /// Loads up to 16 values; the missing ones are `fill`.
    #[inline(always)]
    unsafe fn load_part(from: &[f32], fill: f32) -> Self::V {
        let mut lanes = [fill; PANEL];
        lanes[..from.len()].copy_from_slice(from);
        // SAFETY: an array of 16; the instruction set is the caller's duty.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// Stores the first lanes.
    #[inline(always)]
    unsafe fn store_part(to: &mut [f32], value: Self::V) {
        let mut lanes = [0.0; PANEL];
        // SAFETY: an array of 16; the instruction set is the caller's duty.
        unsafe { Self::store(lanes.as_mut_ptr(), value) };
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

/// `e^x` with a relative error below 2.5e-7; inputs are held to `-87.3..=88.3`, NaN stays NaN.
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`; a polynomial for `e^r` (coefficients: Cephes `expf`), times `2^n`.
///
/// # Safety
///
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    const LN2_HIGH: f32 = 0.693_359_4; // 0.693359375: 9 bits, so that n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe {
        let x = L::min(L::splat(88.3), L::max(L::splat(-87.3), x));
        let shifted = L::fma(x, L::splat(std::f32::consts::LOG2_E), L::splat(MAGIC));
        let n = L::sub(shifted, L::splat(MAGIC));
        let r = L::fma(n, L::splat(-LN2_HIGH), x);
        let r = L::fma(n, L::splat(-LN2_LOW), r);
        let mut p = L::splat(1.987_569_1e-4);
        for coefficient in POLYNOMIAL {
            p = L::fma(p, r, L::splat(coefficient));
        }
        let p = L::fma(p, L::mul(r, r), L::add(r, L::splat(1.0)));
        L::mul(p, L::pow2(shifted))
    }
}

/// Plain arrays: what the compiler makes of them on the oldest processor of the architecture.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; PANEL], b: [f32; PANEL], op: impl Fn(f32, f32) -> f32) -> [f32; PANEL] {
    let mut out = a;
    for i in 0..PANEL {
        out[i] = op(a[i], b[i]);
    }
    out
}

impl Lanes for Portable {
    type V = [f32; PANEL];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; PANEL]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: valid for 16 values, an array has no stricter alignment than its elements.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: as in `load`.
        let bits: [u16; PANEL] = unsafe { *from.cast() };
        bits.map(crate::packed::widen_bf16)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: as in `load`.
        unsafe { *to.cast() = value };
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction that is a call into libm per lane.
        zip(zip(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn pow2(shifted: Self::V) -> Self::V {
        shifted.map(|lane| f32::from_bits(lane.to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        let mut lanes = value;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
}

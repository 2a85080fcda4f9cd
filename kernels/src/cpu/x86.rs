//! [`Lanes`] in AVX2 with FMA, and in AVX-512.

use super::lanes::Lanes;
use std::arch::x86_64::*;

/// AVX2 and FMA: two registers of 8.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// AVX-512 F, BW, VL, DQ: one register of 16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Sum of 8 lanes: `i + (i + 4)`, then 2, 1.
#[inline(always)]
unsafe fn sum8(value: __m256) -> f32 {
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Defines a lane-wise operation of two halves.
macro_rules! halves {
    ($name:ident($($arg:ident),+), $op:ident($($order:ident),+)) => {
        #[inline(always)]
        unsafe fn $name($($arg: Self::V),+) -> Self::V {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [$op($($order[0]),+), $op($($order[1]),+)] }
        }
    };
}

impl Lanes for Avx2 {
    type V = [__m256; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: valid for 16 values.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: valid for 16 values of 2 bytes.
        unsafe {
            let widen = |from: *const u16| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
            [widen(from), widen(from.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: valid for 16 values.
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }
    halves!(fma(a, b, c), _mm256_fmadd_ps(a, b, c));
    halves!(add(a, b), _mm256_add_ps(a, b));
    halves!(sub(a, b), _mm256_sub_ps(a, b));
    halves!(mul(a, b), _mm256_mul_ps(a, b));
    halves!(div(a, b), _mm256_div_ps(a, b));
    halves!(max(a, b), _mm256_max_ps(a, b));
    halves!(min(a, b), _mm256_min_ps(a, b));
    #[inline(always)]
    unsafe fn pow2(shifted: Self::V) -> Self::V {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe {
            // Not `map`: its closure would be compiled without the instruction set, and called.
            let bias = _mm256_set1_epi32(127);
            let a = _mm256_add_epi32(_mm256_castps_si256(shifted[0]), bias);
            let b = _mm256_add_epi32(_mm256_castps_si256(shifted[1]), bias);
            [_mm256_castsi256_ps(_mm256_slli_epi32::<23>(a)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(b))]
        }
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { sum8(_mm256_add_ps(value[0], value[1])) }
    }
}

/// Defines a lane-wise operation.
macro_rules! whole {
    ($name:ident($($arg:ident),+), $op:ident) => {
        #[inline(always)]
        unsafe fn $name($($arg: Self::V),+) -> Self::V {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { $op($($arg),+) }
        }
    };
}

impl Lanes for Avx512 {
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: valid for 16 values.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: valid for 16 values of 2 bytes.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: valid for 16 values.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    whole!(fma(a, b, c), _mm512_fmadd_ps);
    whole!(add(a, b), _mm512_add_ps);
    whole!(sub(a, b), _mm512_sub_ps);
    whole!(mul(a, b), _mm512_mul_ps);
    whole!(div(a, b), _mm512_div_ps);
    whole!(max(a, b), _mm512_max_ps);
    whole!(min(a, b), _mm512_min_ps);
    #[inline(always)]
    unsafe fn pow2(shifted: Self::V) -> Self::V {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe {
            let n = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(value);
            sum8(_mm256_add_ps(_mm512_castps512_ps256(value), high))
        }
    }
}

/// `acc + w[2i] * x[0] + w[2i + 1] * x[1]` for the 16 pairs at `w`; subnormals count as zero.
///
/// # Safety
///
/// The processor has AVX512-BF16; `w` is valid for 32 values.
#[inline(always)]
pub(crate) unsafe fn dot_pairs(acc: __m512, w: *const u16, x: u32) -> __m512 {
    // SAFETY: __m512i and __m512bh are 64 plain bytes; the rest is the caller's duty.
    unsafe {
        let w: __m512bh = std::mem::transmute(_mm512_loadu_si512(w.cast()));
        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x.cast_signed()));
        _mm512_dpbf16_ps(acc, w, x)
    }
}

/// `acc[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]`; subnormals count as zero.
///
/// # Safety
///
/// The processor has AVX512-BF16; both pointers are valid for 32 values.
#[inline(always)]
pub(crate) unsafe fn dot32(acc: __m512, a: *const u16, b: *const u16) -> __m512 {
    // SAFETY: __m512i and __m512bh are 64 plain bytes; the rest is the caller's duty.
    unsafe {
        let a: __m512bh = std::mem::transmute(_mm512_loadu_si512(a.cast()));
        let b: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
        _mm512_dpbf16_ps(acc, a, b)
    }
}

/// Rounds 16 values to the nearest bf16, ties to even; subnormals become zero.
///
/// # Safety
///
/// The processor has AVX512-BF16; both pointers are valid for 16 values.
#[inline(always)]
pub(crate) unsafe fn round16(from: *const f32, to: *mut u16) {
    // SAFETY: __m256bh and __m256i are 32 plain bytes; the rest is the caller's duty.
    unsafe {
        let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(from)));
        _mm256_storeu_si256(to.cast(), rounded);
    }
}

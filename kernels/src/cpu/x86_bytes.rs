//! [`Bytes`] in AVX2, AVX-512 without and with VNNI.

use super::bytes::Bytes;
use super::x86::{Avx2, Avx512};
use std::arch::x86_64::*;

/// AVX2: two registers of 32 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Bytes;

/// AVX-512 without an integer dot product: the products of AVX2, the floats in one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bytes;

/// AVX-512 VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

/// Eight outputs each.
type Halves = [__m256i; 2];

/// Weights as signed bytes, and their absolute values: `vpmaddubsw` wants one unsigned operand.
type Signed = [[__m256i; 2]; 2];

#[inline(always)]
unsafe fn load(from: *const u8) -> Halves {
    // SAFETY: valid for 64 bytes.
    unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
}

#[inline(always)]
unsafe fn load8(from: *const u8) -> Signed {
    // SAFETY: the caller's duty.
    unsafe {
        let [a, b] = load(from);
        let high = _mm256_set1_epi8(-128);
        let (a, b) = (_mm256_xor_si256(a, high), _mm256_xor_si256(b, high));
        [[_mm256_abs_epi8(a), a], [_mm256_abs_epi8(b), b]]
    }
}

#[inline(always)]
unsafe fn load4(from: *const u8) -> [Halves; 2] {
    // SAFETY: the caller's duty.
    unsafe {
        let ([a, b], low) = (load(from), _mm256_set1_epi8(15));
        let first = [_mm256_and_si256(a, low), _mm256_and_si256(b, low)];
        let (a, b) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
        [first, [_mm256_and_si256(a, low), _mm256_and_si256(b, low)]]
    }
}

/// Defines an addition that the compiler cannot reorder: it would add the products of several steps first, and has too few
/// registers for those of all rows (measured: a third of the time in going to memory and back).
macro_rules! accumulate {
    ($name:ident, $instruction:literal) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn $name(mut sum: __m256i, x: __m256i) -> __m256i {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe {
                std::arch::asm!(concat!($instruction, " {0}, {0}, {1}"), inout(ymm_reg) sum, in(ymm_reg) x,
                    options(pure, nomem, nostack, preserves_flags));
            }
            sum
        }
    };
}
accumulate!(accumulate16, "vpaddw");
accumulate!(accumulate32, "vpaddd");

/// `vpmaddubsw` adds two products in 16 bits: at most 2 * 128 * 127, which fits.
#[inline(always)]
unsafe fn dot8(sum: Halves, weights: Signed, x: __m256i) -> Halves {
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let [[size0, sign0], [size1, sign1]] = weights;
        let pairs0 = _mm256_maddubs_epi16(size0, _mm256_sign_epi8(x, sign0));
        let pairs1 = _mm256_maddubs_epi16(size1, _mm256_sign_epi8(x, sign1));
        [accumulate32(sum[0], _mm256_madd_epi16(pairs0, ones)), accumulate32(sum[1], _mm256_madd_epi16(pairs1, ones))]
    }
}

/// Sums of two products stay in 16 bits: those of a group are at most 8 * 2 * 15 * 127, which fits. Half the work of 8 bits.
#[inline(always)]
unsafe fn dot4(sum: Halves, weights: Halves, x: u32) -> Halves {
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe {
        let x = _mm256_set1_epi32(x.cast_signed());
        [
            accumulate16(sum[0], _mm256_maddubs_epi16(weights[0], x)),
            accumulate16(sum[1], _mm256_maddubs_epi16(weights[1], x)),
        ]
    }
}

/// What AVX2's integers share, whatever its floats are.
macro_rules! of_avx2 {
    () => {
        type Sum = Halves;
        /// Two of 16 bits for each output.
        type Sum4 = Halves;
        type Weights8 = Signed;
        type Weights4 = Halves;

        #[inline(always)]
        unsafe fn load8(from: *const u8) -> Self::Weights8 {
            // SAFETY: the caller's duty.
            unsafe { load8(from) }
        }
        #[inline(always)]
        unsafe fn load4(from: *const u8) -> [Self::Weights4; 2] {
            // SAFETY: the caller's duty.
            unsafe { load4(from) }
        }
        #[inline(always)]
        unsafe fn start8(_: &i32) -> Self::Sum {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        unsafe fn start4() -> Self::Sum4 {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        unsafe fn dot8(sum: Self::Sum, weights: Self::Weights8, x: u32) -> Self::Sum {
            // SAFETY: the caller's duty.
            unsafe { dot8(sum, weights, _mm256_set1_epi32(x.cast_signed())) }
        }
        #[inline(always)]
        unsafe fn start_octets(_: *const i8) -> Self::Sum {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        unsafe fn dot_octets(sum: Self::Sum, weights: Self::Weights8, x: u64) -> Self::Sum {
            // SAFETY: the caller's duty.
            unsafe { dot8(sum, weights, _mm256_set1_epi64x(x.cast_signed())) }
        }
        #[inline(always)]
        unsafe fn dot4(sum: Self::Sum4, weights: Self::Weights4, x: u32) -> Self::Sum4 {
            // SAFETY: the caller's duty.
            unsafe { dot4(sum, weights, x) }
        }
        #[inline(always)]
        unsafe fn widen4(sum: Self::Sum4) -> Self::Sum {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe {
                let ones = _mm256_set1_epi16(1);
                [_mm256_madd_epi16(sum[0], ones), _mm256_madd_epi16(sum[1], ones)]
            }
        }
    };
}

/// AVX-512's way from halves to floats and from floats to codes.
macro_rules! of_avx512 {
    () => {
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> __m512 {
            // SAFETY: valid for 16 values of 2 bytes.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn most(values: [__m512; 2]) -> f32 {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(values[0]), _mm512_abs_ps(values[1]))) }
        }
        #[inline(always)]
        unsafe fn encode(values: [__m512; 2], to: *mut i8) -> i32 {
            // SAFETY: `to` is valid for 32 bytes; the instruction set is the caller's duty.
            unsafe {
                let (a, b) = (_mm512_cvtps_epi32(values[0]), _mm512_cvtps_epi32(values[1]));
                _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a));
                _mm_storeu_si128(to.add(16).cast(), _mm512_cvtepi32_epi8(b));
                _mm512_reduce_add_epi32(_mm512_add_epi32(a, b))
            }
        }
    };
}

impl Bytes for Avx2Bytes {
    type L = Avx2;
    of_avx2!();

    #[inline(always)]
    unsafe fn float(sum: Self::Sum) -> [__m256; 2] {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])] }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> [__m256; 2] {
        // SAFETY: valid for 16 values of 2 bytes.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn most(values: [[__m256; 2]; 2]) -> f32 {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            let [[a, b], [c, d]] = values;
            let (a, b) = (_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b));
            let (c, d) = (_mm256_andnot_ps(sign, c), _mm256_andnot_ps(sign, d));
            let eight = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn encode(values: [[__m256; 2]; 2], to: *mut i8) -> i32 {
        // SAFETY: `to` is valid for 32 bytes; the instruction set is the caller's duty.
        unsafe {
            let [[a, b], [c, d]] = values;
            let (a, b) = (_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            let (c, d) = (_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
            // Packing works within halves of 128 bits; the permutation puts the quarters in order.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(bytes, order));
            let eight = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
}

impl Bytes for Avx512Bytes {
    type L = Avx512;
    of_avx2!();

    #[inline(always)]
    unsafe fn float(sum: Self::Sum) -> __m512 {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_cvtepi32_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(sum[0]), sum[1])) }
    }
    of_avx512!();
}

impl Bytes for Vnni {
    type L = Avx512;
    type Sum = __m512i;
    type Sum4 = __m512i;
    /// Unsigned, as stored.
    type Weights8 = __m512i;
    type Weights4 = __m512i;

    #[inline(always)]
    unsafe fn load8(from: *const u8) -> __m512i {
        // SAFETY: valid for 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load4(from: *const u8) -> [__m512i; 2] {
        // SAFETY: valid for 64 bytes.
        unsafe {
            let (both, low) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
        }
    }
    #[inline(always)]
    unsafe fn start8(start: &i32) -> __m512i {
        // Weights are stored 128 too high. SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_set1_epi32(*start) }
    }
    #[inline(always)]
    unsafe fn start4() -> __m512i {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot8(sum: __m512i, weights: __m512i, x: u32) -> __m512i {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(x.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn start_octets(codes: *const i8) -> __m512i {
        // Weights are stored 128 too high: what that adds to each sum goes off. SAFETY: 32 codes; the instruction set is the
        // caller's duty.
        unsafe {
            let (high, mut over) = (_mm512_set1_epi8(-128), _mm512_setzero_si512());
            for step in 0..4 {
                let x = codes.cast::<i64>().add(step).read_unaligned();
                over = _mm512_dpbusd_epi32(over, high, _mm512_set1_epi64(x));
            }
            _mm512_sub_epi32(_mm512_setzero_si512(), over)
        }
    }
    #[inline(always)]
    unsafe fn dot_octets(sum: __m512i, weights: __m512i, x: u64) -> __m512i {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi64(x.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn dot4(sum: __m512i, weights: __m512i, x: u32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { Self::dot8(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn widen4(sum: __m512i) -> __m512i {
        sum
    }
    #[inline(always)]
    unsafe fn float(sum: __m512i) -> __m512 {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
    of_avx512!();
}

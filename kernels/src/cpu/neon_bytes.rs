//! [`Bytes`] in NEON, without and with its dot product of bytes.

use super::bytes::Bytes;
use super::neon::Neon;
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON, on every aarch64: products of 16 bits, added in pairs.
#[derive(Clone, Copy)]
pub(crate) struct NeonBytes;

/// NEON with `sdot` (the extension `dotprod`: processors since 2018).
#[derive(Clone, Copy)]
pub(crate) struct NeonDot;

/// Four outputs, or two ranks, each.
type Sums = [int32x4_t; 4];
type Codes = [int8x16_t; 4];

#[inline(always)]
unsafe fn load8(from: *const u8) -> Codes {
    // SAFETY: valid for 64 bytes.
    unsafe { [0, 16, 32, 48].map(|at| vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from.add(at)), vdupq_n_u8(128)))) }
}

#[inline(always)]
unsafe fn load4(from: *const u8) -> [Codes; 2] {
    // SAFETY: valid for 64 bytes.
    unsafe {
        let both = [0, 16, 32, 48].map(|at| vld1q_u8(from.add(at)));
        [
            both.map(|both| vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)))),
            both.map(|both| vreinterpretq_s8_u8(vshrq_n_u8::<4>(both))),
        ]
    }
}

/// Four codes, again and again.
#[inline(always)]
unsafe fn fours(x: u32) -> int8x16_t {
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe { vreinterpretq_s8_u32(vdupq_n_u32(x)) }
}

/// Eight codes, twice.
#[inline(always)]
unsafe fn eights(x: u64) -> int8x16_t {
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe { vreinterpretq_s8_u64(vdupq_n_u64(x)) }
}

/// Adds to each sum the products of its four bytes. A product is at most 128 * 127, two of them fit 16 bits as well.
#[inline(always)]
unsafe fn widened(sums: Sums, weights: Codes, x: int8x16_t) -> Sums {
    // SAFETY: register arithmetic; the instruction set is the caller's duty.
    unsafe {
        [0, 1, 2, 3].map(|i| {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(weights[i]), vget_low_s8(x)));
            let high = vpaddlq_s16(vmull_high_s8(weights[i], x));
            vaddq_s32(sums[i], vpaddq_s32(low, high))
        })
    }
}

/// The same in one instruction for each register. Assembler, as the intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dotted(mut sums: Sums, weights: Codes, x: int8x16_t) -> Sums {
    for (sum, weights) in sums.iter_mut().zip(weights) {
        // SAFETY: register arithmetic; the function has the instruction.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) *sum, in(vreg) weights, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
    }
    sums
}

/// Four halves, widened exactly. Assembler, as a type of 16 bits is not stable.
#[inline(always)]
unsafe fn widen_f16(from: *const u16) -> float32x4_t {
    // SAFETY: valid for 4 values of 2 bytes; every aarch64 has the instruction.
    unsafe {
        let (halves, wide): (uint16x4_t, float32x4_t);
        halves = vld1_u16(from);
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) halves, options(pure, nomem, nostack));
        wide
    }
}

/// What both share.
macro_rules! of_neon {
    ($dot:ident) => {
        type L = Neon;
        type Sum = Sums;
        type Sum4 = Sums;
        type Weights8 = Codes;
        type Weights4 = Codes;

        #[inline(always)]
        unsafe fn load8(from: *const u8) -> Codes {
            // SAFETY: the caller's duty.
            unsafe { load8(from) }
        }
        #[inline(always)]
        unsafe fn load4(from: *const u8) -> [Codes; 2] {
            // SAFETY: the caller's duty.
            unsafe { load4(from) }
        }
        #[inline(always)]
        unsafe fn start8(_: &i32) -> Sums {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [vdupq_n_s32(0); 4] }
        }
        #[inline(always)]
        unsafe fn start4() -> Sums {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [vdupq_n_s32(0); 4] }
        }
        #[inline(always)]
        unsafe fn dot8(sums: Sums, weights: Codes, x: u32) -> Sums {
            // SAFETY: the caller's duty.
            unsafe { $dot(sums, weights, fours(x)) }
        }
        #[inline(always)]
        unsafe fn start_octets(_: *const i8) -> Sums {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [vdupq_n_s32(0); 4] }
        }
        #[inline(always)]
        unsafe fn dot_octets(sums: Sums, weights: Codes, x: u64) -> Sums {
            // SAFETY: the caller's duty.
            unsafe { $dot(sums, weights, eights(x)) }
        }
        #[inline(always)]
        unsafe fn dot4(sums: Sums, weights: Codes, x: u32) -> Sums {
            // SAFETY: the caller's duty.
            unsafe { $dot(sums, weights, fours(x)) }
        }
        #[inline(always)]
        unsafe fn widen4(sums: Sums) -> Sums {
            sums
        }
        #[inline(always)]
        unsafe fn float(sums: Sums) -> [float32x4_t; 4] {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { sums.map(|sum| vcvtq_f32_s32(sum)) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> [float32x4_t; 4] {
            // SAFETY: valid for 16 values of 2 bytes.
            unsafe { [0, 4, 8, 12].map(|at| widen_f16(from.add(at))) }
        }
        #[inline(always)]
        unsafe fn most(values: [[float32x4_t; 4]; 2]) -> f32 {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe {
                let mut most = vdupq_n_f32(0.0);
                for quarter in values.into_iter().flatten() {
                    most = vmaxq_f32(most, vabsq_f32(quarter));
                }
                vmaxvq_f32(most)
            }
        }
        #[inline(always)]
        unsafe fn encode(values: [[float32x4_t; 4]; 2], to: *mut i8) -> i32 {
            // SAFETY: `to` is valid for 32 bytes; the instruction set is the caller's duty.
            unsafe {
                let mut sum = 0;
                for (half, values) in values.into_iter().enumerate() {
                    let [a, b, c, d] = values.map(|quarter| vcvtnq_s32_f32(quarter));
                    let words = [[a, b], [c, d]].map(|[a, b]| vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
                    vst1q_s8(to.add(16 * half), vcombine_s8(vmovn_s16(words[0]), vmovn_s16(words[1])));
                    sum += vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
                }
                sum
            }
        }
    };
}

impl Bytes for NeonBytes {
    of_neon!(widened);
}

impl Bytes for NeonDot {
    of_neon!(dotted);
}

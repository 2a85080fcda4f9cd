//! [`Lanes`] in NEON: four registers of 4.

use super::lanes::Lanes;
use std::arch::aarch64::*;

/// NEON with fused multiply-add, on every aarch64.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Defines a lane-wise operation of four quarters.
macro_rules! quarters {
    ($name:ident($($arg:ident),+), $op:ident($($order:ident),+)) => {
        #[inline(always)]
        unsafe fn $name($($arg: Self::V),+) -> Self::V {
            // SAFETY: register arithmetic; the instruction set is the caller's duty.
            unsafe { [0, 1, 2, 3].map(|i| $op($($order[i]),+)) }
        }
    };
}

impl Lanes for Neon {
    type V = [float32x4_t; 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: valid for 16 values.
        unsafe { [0, 4, 8, 12].map(|at| vld1q_f32(from.add(at))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: valid for 16 values of 2 bytes.
        unsafe {
            [0, 4, 8, 12].map(|at| {
                let bits = vmovl_u16(vld1_u16(from.add(at)));
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits))
            })
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: valid for 16 values.
        unsafe {
            for (i, quarter) in value.into_iter().enumerate() {
                vst1q_f32(to.add(4 * i), quarter);
            }
        }
    }
    quarters!(fma(a, b, c), vfmaq_f32(c, a, b));
    quarters!(add(a, b), vaddq_f32(a, b));
    quarters!(sub(a, b), vsubq_f32(a, b));
    quarters!(mul(a, b), vmulq_f32(a, b));
    quarters!(div(a, b), vdivq_f32(a, b));
    // NEON's own maximum is NaN when either is; with `b` the NaN that is the same, and `a` is never NaN here.
    quarters!(max(a, b), vmaxq_f32(a, b));
    quarters!(min(a, b), vminq_f32(a, b));
    #[inline(always)]
    unsafe fn pow2(shifted: Self::V) -> Self::V {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe {
            shifted.map(|quarter| {
                let n = vaddq_u32(vreinterpretq_u32_f32(quarter), vdupq_n_u32(127));
                vreinterpretq_f32_u32(vshlq_n_u32::<23>(n))
            })
        }
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        // SAFETY: register arithmetic; the instruction set is the caller's duty.
        unsafe {
            let low = vaddq_f32(value[0], value[2]);
            let high = vaddq_f32(value[1], value[3]);
            let four = vaddq_f32(low, high);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}

//! Operations on one row.

use crate::cpu::lanes::{Lanes, exp};
use crate::packed::PANEL;

/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn rms_norm<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "rms_norm: rows of one length");
    let width = x.len();
    // SAFETY: chunks of exactly 16; the instruction set is the caller's duty.
    unsafe {
        let mut sums = [L::splat(0.0); 4];
        for (i, x) in x.chunks(PANEL).enumerate() {
            let x = if x.len() == PANEL { L::load(x.as_ptr()) } else { L::load_part(x, 0.0) };
            sums[i % 4] = L::fma(x, x, sums[i % 4]);
        }
        let squares = L::sum(L::add(L::add(sums[0], sums[1]), L::add(sums[2], sums[3])));
        let factor = 1.0 / (squares / width as f32 + eps).sqrt();
        let factor = L::splat(factor);
        let parts = x.chunks(PANEL).zip(weight.chunks(PANEL)).zip(out.chunks_mut(PANEL));
        for ((x, weight), out) in parts {
            if x.len() == PANEL {
                let scaled = L::mul(L::load(x.as_ptr()), factor);
                L::store(out.as_mut_ptr(), L::mul(scaled, L::load(weight.as_ptr())));
            } else {
                let scaled = L::mul(L::load_part(x, 0.0), factor);
                L::store_part(out, L::mul(scaled, L::load_part(weight, 0.0)));
            }
        }
    }
}

/// `to += x`.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn add<L: Lanes>(to: &mut [f32], x: &[f32]) {
    assert!(to.len() == x.len(), "add: rows of one length");
    for (to, x) in to.chunks_mut(PANEL).zip(x.chunks(PANEL)) {
        if let (Ok(to), Ok(x)) = (<&mut [f32; PANEL]>::try_from(&mut *to), <&[f32; PANEL]>::try_from(x)) {
            // SAFETY: arrays of 16; the instruction set is the caller's duty.
            unsafe { L::store(to.as_mut_ptr(), L::add(L::load(to.as_ptr()), L::load(x.as_ptr()))) };
        } else {
            to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
        }
    }
}

/// `out = x * factor`.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn scale<L: Lanes>(x: &[f32], factor: f32, out: &mut [f32]) {
    assert!(out.len() == x.len(), "scale: rows of one length");
    for (x, out) in x.chunks(PANEL).zip(out.chunks_mut(PANEL)) {
        if let (Ok(x), Ok(out)) = (<&[f32; PANEL]>::try_from(x), <&mut [f32; PANEL]>::try_from(&mut *out)) {
            // SAFETY: arrays of 16; the instruction set is the caller's duty.
            unsafe { L::store(out.as_mut_ptr(), L::mul(L::load(x.as_ptr()), L::splat(factor))) };
        } else {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
        }
    }
}

/// `out = gate / (1 + e^-gate) * up`.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn silu_mul<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len(), "silu_mul: rows of one length");
    let parts = gate.chunks(PANEL).zip(up.chunks(PANEL)).zip(out.chunks_mut(PANEL));
    for ((gate, up), out) in parts {
        // SAFETY: `load_part` and `store_part` take any length up to 16; the instruction set is the caller's duty.
        unsafe {
            let whole = out.len() == PANEL;
            let gate = if whole { L::load(gate.as_ptr()) } else { L::load_part(gate, 0.0) };
            let up = if whole { L::load(up.as_ptr()) } else { L::load_part(up, 0.0) };
            let below = L::add(L::splat(1.0), exp::<L>(L::sub(L::splat(0.0), gate)));
            let value = L::mul(L::div(gate, below), up);
            if whole {
                L::store(out.as_mut_ptr(), value);
            } else {
                L::store_part(out, value);
            }
        }
    }
}

/// `(low, high) = (low cos - high sin, high cos + low sin)`.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn rotate<L: Lanes>(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
    let len = low.len();
    assert!(high.len() == len && cos.len() == len && sin.len() == len, "rotate: one length");
    let whole = len - len % PANEL;
    // SAFETY: whole vectors stay below `whole`, which no slice is shorter than.
    unsafe {
        for i in (0..whole).step_by(PANEL) {
            let (a, b) = (L::load(low.as_ptr().add(i)), L::load(high.as_ptr().add(i)));
            let (cos, sin) = (L::load(cos.as_ptr().add(i)), L::load(sin.as_ptr().add(i)));
            L::store(low.as_mut_ptr().add(i), L::sub(L::mul(a, cos), L::mul(b, sin)));
            L::store(high.as_mut_ptr().add(i), L::add(L::mul(b, cos), L::mul(a, sin)));
        }
    }
    for i in whole..len {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

/// The largest value; negative infinity for an empty slice.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn max<L: Lanes>(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; PANEL];
    // SAFETY: chunks of exactly 16, or copied into an array; the instruction set is the caller's duty.
    unsafe {
        let mut best = L::splat(f32::NEG_INFINITY);
        for x in x.chunks(PANEL) {
            let whole = x.len() == PANEL;
            let x = if whole { L::load(x.as_ptr()) } else { L::load_part(x, f32::NEG_INFINITY) };
            best = L::max(x, best);
        }
        L::store(lanes.as_mut_ptr(), best);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// `x = e^(x - max)` in place; returns the sum, lanes first.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn exp_sum<L: Lanes>(x: &mut [f32], max: f32) -> f32 {
    // SAFETY: chunks of exactly 16, or copied through an array; the instruction set is the caller's duty.
    unsafe {
        let mut total = L::splat(0.0);
        let max = L::splat(max);
        let mut chunks = x.chunks_exact_mut(PANEL);
        for x in &mut chunks {
            let value = exp::<L>(L::sub(L::load(x.as_ptr()), max));
            L::store(x.as_mut_ptr(), value);
            total = L::add(total, value);
        }
        let rest = chunks.into_remainder();
        if !rest.is_empty() {
            let value = exp::<L>(L::sub(L::load_part(rest, 0.0), max));
            L::store_part(rest, value);
            total = L::add(total, L::load_part(rest, 0.0));
        }
        L::sum(total)
    }
}

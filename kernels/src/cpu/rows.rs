//! Operations on one row at a time: norms, rotary embedding, SiLU.

use super::Cpu;
use crate::share::OutPtr;
use std::ops::Range;

pub(super) fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    if x.is_empty() {
        return;
    }
    let to = OutPtr::new(out);
    cpu.rows(x.len() / width, width, &|rows: Range<usize>| {
        for row in rows {
            // SAFETY: rows of one region are distinct; the table fits this processor.
            unsafe {
                let out = to.slice(row * width, width);
                (cpu.micro.rms_norm)(&x[row * width..][..width], weight, eps, out);
            }
        }
    });
}

pub(super) fn add_rms_norm(cpu: &Cpu, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    if x.is_empty() {
        return;
    }
    let (sum, to) = (OutPtr::new(residual), OutPtr::new(out));
    cpu.rows(x.len() / width, width, &|rows: Range<usize>| {
        for row in rows {
            // SAFETY: rows of one region are distinct; the table fits this processor.
            unsafe {
                let (sum, out) = (sum.slice(row * width, width), to.slice(row * width, width));
                (cpu.micro.add)(sum, &x[row * width..][..width]);
                (cpu.micro.rms_norm)(sum, weight, eps, out);
            }
        }
    });
}

pub(super) fn silu_mul(cpu: &Cpu, gate_up: &[f32], inter: usize, rows: usize, out: &mut [f32]) {
    let to = OutPtr::new(out);
    cpu.rows(rows, 3 * inter, &|rows: Range<usize>| {
        for row in rows {
            let (gate, up) = gate_up[row * 2 * inter..][..2 * inter].split_at(inter);
            // SAFETY: rows of one region are distinct; the table fits this processor.
            unsafe { (cpu.micro.silu_mul)(gate, up, to.slice(row * inter, inter)) };
        }
    });
}

/// Cosines and sines, both `[rows, head_dim / 2]`, and what they were computed for.
#[derive(Default)]
pub(super) struct Angles {
    positions: Vec<u32>,
    inv_freq: Vec<f32>,
    factor: f32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// Computes them unless they are the ones at hand.
    fn prepare(&mut self, positions: &[u32], inv_freq: &[f32], factor: f32) {
        if self.positions == positions && self.inv_freq == inv_freq && self.factor == factor {
            return;
        }
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.inv_freq.clear();
        self.inv_freq.extend_from_slice(inv_freq);
        self.factor = factor;
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for frequency in inv_freq {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos * factor);
                self.sin.push(sin * factor);
            }
        }
    }
}

pub(super) fn rope(cpu: &Cpu, x: &mut [f32], heads: usize, positions: &[u32], inv_freq: &[f32], factor: f32) {
    let mut own = Angles::default();
    let mut shared = cpu.rope.try_lock();
    let angles = shared.as_deref_mut().unwrap_or(&mut own);
    angles.prepare(positions, inv_freq, factor);
    let (half, width) = (inv_freq.len(), heads * 2 * inv_freq.len());
    if half == 0 {
        return;
    }
    let (angles, to) = (&*angles, OutPtr::new(x));
    cpu.rows(positions.len(), width, &|rows: Range<usize>| {
        for row in rows {
            let cos = &angles.cos[row * half..][..half];
            let sin = &angles.sin[row * half..][..half];
            // SAFETY: rows of one region are distinct; the table fits this processor.
            unsafe {
                for head in to.slice(row * width, width).chunks_exact_mut(2 * half) {
                    let (low, high) = head.split_at_mut(half);
                    (cpu.micro.rotate)(low, high, cos, sin);
                }
            }
        }
    });
}

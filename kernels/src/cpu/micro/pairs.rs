//! What AVX512-BF16 adds: products of bf16 pairs, summed in `f32`.

use super::{Pairs, Shrink, Tile};
use crate::cpu::lanes::Lanes;
use crate::cpu::x86::{Avx512, dot_pairs, dot32, round16};
use crate::packed::{PANEL, ROW};
use std::arch::x86_64::*;

pub(super) const PAIRS: Pairs = Pairs { tile, shrink, round };

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tile(rows: usize, panels: usize, t: &Tile<u32, u16>) {
    // SAFETY: the caller's duty.
    unsafe {
        compile!(@pick rows, panels, [one], t,
            1: [1 2 3 4 5 6] 2: [1 2 3 4 5 6] 4: [1 2 3 4 5 6])
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn one<const ROWS: usize, const PANELS: usize>(t: &Tile<u32, u16>) {
    // SAFETY: the block is valid by the caller's duty; k stays below depth, rows and panels below the tile's.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); PANELS]; ROWS];
        if t.add {
            for r in 0..ROWS {
                for p in 0..PANELS {
                    acc[r][p] = _mm512_loadu_ps(t.out.add(r * t.out_stride + p * PANEL));
                }
            }
        }
        let mut ahead = t.ahead;
        for k in 0..t.depth {
            ahead.fetch();
            for r in 0..ROWS {
                let x = *t.x.add(r * t.x_stride + k);
                for p in 0..PANELS {
                    acc[r][p] = dot_pairs(acc[r][p], t.w[p].add(k * t.w_step), x);
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                _mm512_storeu_ps(t.out.add(r * t.out_stride + p * PANEL), acc[r][p]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn shrink(s: &mut Shrink<'_, u16, u16>) {
    let rows = s.rows(s.width.next_multiple_of(ROW));
    let mut row = 0;
    // SAFETY: blocks stay inside the shapes just checked.
    unsafe {
        while row < rows {
            let tall = row + 4 <= rows;
            let mut rank = 0;
            while rank < s.rank {
                let left = s.rank - rank;
                match (tall, left) {
                    (true, 4..) => dots::<4, 4>(s, row, rank),
                    (true, _) => dots::<4, 1>(s, row, rank),
                    (false, 8..) => dots::<1, 8>(s, row, rank),
                    (false, 4..8) => dots::<1, 4>(s, row, rank),
                    (false, _) => dots::<1, 1>(s, row, rank),
                }
                rank += match (tall, left) {
                    (false, 8..) => 8,
                    (_, 4..) => 4,
                    _ => 1,
                };
            }
            row += if tall { 4 } else { 1 };
        }
    }
}

/// Dot products of `ROWS` rows with `COUNT` ranks of one block. Each is one vector chain along k.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn dots<const ROWS: usize, const COUNT: usize>(s: &mut Shrink<'_, u16, u16>, row: usize, rank: usize) {
    let stride = s.width.next_multiple_of(ROW);
    let (a, chunk) = s.chunks(rank);
    // SAFETY: the caller checked that the rows and ranks lie inside x, a and t, padded to whole chunks.
    unsafe {
        let x = s.x.as_ptr().add(row * stride);
        let mut acc = [[_mm512_setzero_ps(); COUNT]; ROWS];
        let mut ahead = s.ahead;
        for k in 0..stride / ROW {
            ahead.fetch();
            for r in 0..ROWS {
                for j in 0..COUNT {
                    let a = a.add(k * chunk + j * ROW);
                    acc[r][j] = dot32(acc[r][j], a, x.add(r * stride + k * ROW));
                }
            }
        }
        s.ahead = ahead;
        for r in 0..ROWS {
            for j in 0..COUNT {
                s.t[(row + r) * s.rank + rank + j] = Avx512::sum(acc[r][j]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn round(from: &[f32], to: &mut [u16]) {
    assert!(from.len() == to.len(), "round: slices of one length");
    for (from, to) in from.chunks(PANEL).zip(to.chunks_mut(PANEL)) {
        let (mut wide, mut narrow) = ([0.0; PANEL], [0; PANEL]);
        if from.len() == PANEL {
            // SAFETY: chunks of exactly 16.
            unsafe { round16(from.as_ptr(), to.as_mut_ptr()) };
        } else {
            wide[..from.len()].copy_from_slice(from);
            // SAFETY: arrays of 16.
            unsafe { round16(wide.as_ptr(), narrow.as_mut_ptr()) };
            to.copy_from_slice(&narrow[..from.len()]);
        }
    }
}

//! Products with matrices.

use super::{Shrink, Stored, Tile};
use crate::cpu::lanes::Lanes;
use crate::packed::{PANEL, ROW};

/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, W: Stored, const ROWS: usize, const PANELS: usize>(t: &Tile<f32, W>) {
    // SAFETY: the block is valid by the caller's duty; k stays below depth, rows and panels below the tile's.
    unsafe {
        let mut acc = [[L::splat(0.0); PANELS]; ROWS];
        if t.add {
            for r in 0..ROWS {
                for p in 0..PANELS {
                    acc[r][p] = L::load(t.out.add(r * t.out_stride + p * PANEL));
                }
            }
        }
        let (mut ahead, mut from) = (t.ahead, t.w);
        for k in 0..t.depth {
            ahead.fetch();
            let mut w = [L::splat(0.0); PANELS];
            for p in 0..PANELS {
                w[p] = W::load::<L>(from[p]);
                // Past the last step it is not read.
                from[p] = from[p].wrapping_add(t.w_step);
            }
            for r in 0..ROWS {
                let x = L::splat(*t.x.add(r * t.x_stride + k));
                for p in 0..PANELS {
                    acc[r][p] = L::fma(x, w[p], acc[r][p]);
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                L::store(t.out.add(r * t.out_stride + p * PANEL), acc[r][p]);
            }
        }
    }
}

/// Dot products of `ROWS` rows with `COUNT` ranks of one block, from `(row, rank)` on. Each is one vector chain along k.
///
/// # Safety
///
/// As [`Micro`]; the rows and ranks exist, the ranks within one block.
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes, W: Stored, const ROWS: usize, const COUNT: usize>(
    s: &mut Shrink<'_, f32, W>,
    row: usize,
    rank: usize,
) {
    let width = s.width;
    let (a, chunk) = s.chunks(rank);
    // SAFETY: `shrink` checked the lengths of x, a and t against the rows, width and rank it loops over; the last,
    // partial vector of x is loaded through a slice, while `a` is padded to whole chunks.
    unsafe {
        let x = s.x.as_ptr().add(row * width);
        let at = |k: usize, j: usize| a.add(k / ROW * chunk + j * ROW + k % ROW);
        let mut acc = [[L::splat(0.0); COUNT]; ROWS];
        let whole = width - width % PANEL;
        let mut ahead = s.ahead;
        for k in (0..whole).step_by(PANEL) {
            ahead.fetch();
            let mut w = [L::splat(0.0); COUNT];
            for j in 0..COUNT {
                w[j] = W::load::<L>(at(k, j));
            }
            for r in 0..ROWS {
                let x = L::load(x.add(r * width + k));
                for j in 0..COUNT {
                    acc[r][j] = L::fma(x, w[j], acc[r][j]);
                }
            }
        }
        s.ahead = ahead;
        if whole < width {
            for r in 0..ROWS {
                let x = L::load_part(&s.x[(row + r) * width..][whole..width], 0.0);
                for j in 0..COUNT {
                    acc[r][j] = L::fma(x, W::load::<L>(at(whole, j)), acc[r][j]);
                }
            }
        }
        for r in 0..ROWS {
            for j in 0..COUNT {
                s.t[(row + r) * s.rank + rank + j] = L::sum(acc[r][j]);
            }
        }
    }
}

/// `WIDE` ranks at once for a single row, `TALL` rows by `TALL` ranks for many.
///
/// # Safety
///
/// As [`Micro`].
#[inline(always)]
pub(super) unsafe fn shrink<L: Lanes, W: Stored, const WIDE: usize, const TALL: usize>(s: &mut Shrink<'_, f32, W>) {
    let rows = s.rows(s.width);
    let mut row = 0;
    // SAFETY: every block stays inside the shapes just checked.
    unsafe {
        while row + TALL <= rows && s.rank >= TALL {
            let mut rank = 0;
            while rank + TALL <= s.rank {
                dots::<L, W, TALL, TALL>(s, row, rank);
                rank += TALL;
            }
            while rank < s.rank {
                dots::<L, W, TALL, 1>(s, row, rank);
                rank += 1;
            }
            row += TALL;
        }
        while row < rows {
            let mut rank = 0;
            while rank + WIDE <= s.rank {
                dots::<L, W, 1, WIDE>(s, row, rank);
                rank += WIDE;
            }
            while rank + TALL <= s.rank {
                dots::<L, W, 1, TALL>(s, row, rank);
                rank += TALL;
            }
            while rank < s.rank {
                dots::<L, W, 1, 1>(s, row, rank);
                rank += 1;
            }
            row += 1;
        }
    }
}

//! Micro-kernels: each written once over [`Lanes`], compiled once per instruction set, reached through a table.
//!
//! Everything that multiplies a matrix is a [`Tile`]: some rows of activations times some panels of 16 columns,
//! kept in registers over the whole depth. Each element is one chain of additions in the order of `k`, so its value
//! does not depend on which rows and panels share the tile.

#![allow(
    clippy::needless_range_loop,
    clippy::type_complexity,
    reason = "blocks of registers are clearest with plain indices, a table of functions with their plain types"
)]

use super::lanes::{Lanes, Portable, exp};
use crate::packed::{PANEL, RANKS, ROW};

/// Most panels in a tile of any instruction set.
pub(crate) const PANELS_MAX: usize = 4;

/// A block of `out[rows, panels * 16] (+)= x[rows, depth] * w[depth, panels * 16]`.
pub(crate) struct Tile<X, W> {
    /// Steps along k (pairs for the pair kernel).
    pub(crate) depth: usize,
    /// First row, `depth` values.
    pub(crate) x: *const X,
    /// Distance of two rows.
    pub(crate) x_stride: usize,
    /// One per panel: 16 columns (16 pairs) at step 0.
    pub(crate) w: [*const W; PANELS_MAX],
    /// Distance of two steps, the same for all panels.
    pub(crate) w_step: usize,
    /// First row; the panels are neighbours.
    pub(crate) out: *mut f32,
    /// Distance of two rows.
    pub(crate) out_stride: usize,
    /// Goes on from what `out` holds instead of zero.
    pub(crate) add: bool,
    /// What to fetch meanwhile.
    pub(crate) ahead: Ahead<W>,
}

/// Weights of a later tile to fetch into the second-level cache while this one multiplies.
pub(crate) struct Ahead<W> {
    pub(crate) w: [*const W; PANELS_MAX],
    pub(crate) panels: usize,
}

impl<W> Ahead<W> {
    pub(crate) const NONE: Self = Self { w: [std::ptr::null(); PANELS_MAX], panels: 0 };
}

impl<X, W> Tile<X, W> {
    /// Hints at the weights that a later tile reads at step `k`.
    #[inline(always)]
    fn fetch(&self, k: usize) {
        for w in self.ahead.w.iter().take(self.ahead.panels) {
            fetch_line(w.wrapping_add(k * self.w_step));
        }
    }
}

/// Asks for a cache line in the second-level cache. Only a hint: the address may be anything.
#[inline(always)]
pub(crate) fn fetch_line<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 has it, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `t[row, j] = x[row] · a[j]`: the shrinking half of an adapter.
pub(crate) struct Shrink<'a, X, W> {
    /// `[rows, width]`; for the pair kernel rows are padded to 32 with zeroes.
    pub(crate) x: &'a [X],
    pub(crate) width: usize,
    /// `[rank, width]` in rank blocks.
    pub(crate) a: &'a [W],
    pub(crate) rank: usize,
    /// `[rows, rank]`.
    pub(crate) t: &'a mut [f32],
}

impl<X, W> Shrink<'_, X, W> {
    /// Rows of `x` and `t`, after checking all lengths; `x_width` is the distance of two rows of `x`.
    fn rows(&self, x_width: usize) -> usize {
        let rows = self.t.len() / self.rank;
        assert!(
            self.t.len() == rows * self.rank
                && self.x.len() == rows * x_width
                && self.a.len() == self.rank * self.width.next_multiple_of(ROW),
            "shrink: x {}, a {}, t {} for width {} and rank {}",
            self.x.len(),
            self.a.len(),
            self.t.len(),
            self.width,
            self.rank,
        );
        rows
    }

    /// Where rank `rank` begins in `a`, and the distance of two of its chunks of 32.
    fn chunks(&self, rank: usize) -> (*const W, usize) {
        let first = rank - rank % RANKS;
        let ranks = RANKS.min(self.rank - first);
        let start = first * self.width.next_multiple_of(ROW) + rank % RANKS * ROW;
        (self.a[start..].as_ptr(), ranks * ROW)
    }
}

/// The micro-kernels of one instruction set.
///
/// # Safety
///
/// All functions: the processor has the instruction set ([`super::Isa::is_available`]). Tiles: the pointers are valid for
/// the block described, `out` is not touched by anybody else meanwhile, rows and panels are at least 1,
/// at most those of `shape`, and `panels` is a power of two. The functions on slices check lengths themselves.
pub(crate) struct Micro {
    /// The largest tile.
    pub(crate) shape: Shape,
    pub(crate) tile_f32: unsafe fn(usize, usize, &Tile<f32, f32>),
    pub(crate) tile_bf16: unsafe fn(usize, usize, &Tile<f32, u16>),
    /// bf16 activations and weights in pairs; with it comes `round_bf16`.
    pub(crate) pairs: Option<Pairs>,
    pub(crate) shrink_f32: unsafe fn(&mut Shrink<'_, f32, f32>),
    pub(crate) shrink_bf16: unsafe fn(&mut Shrink<'_, f32, u16>),
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    pub(crate) scale: unsafe fn(&[f32], f32, &mut [f32]),
    pub(crate) silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) rotate: unsafe fn(&mut [f32], &mut [f32], &[f32], &[f32]),
    pub(crate) max: unsafe fn(&[f32]) -> f32,
    pub(crate) exp_sum: unsafe fn(&mut [f32], f32) -> f32,
}

/// A size of tile that fits the registers.
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) panels: usize,
}

impl Micro {
    /// The tiles for `rows` rows: rows each takes (the last one may be lower), and most panels.
    pub(crate) fn shape(&self, rows: usize) -> Shape {
        let tiles = rows.div_ceil(self.shape.rows).max(1);
        Shape { rows: rows.div_ceil(tiles), panels: self.shape.panels }
    }
}

impl Shape {
    /// The widest tile for `left` panels: a power of two.
    pub(crate) fn panels(&self, left: usize) -> usize {
        1 << left.min(self.panels).ilog2()
    }
}

/// What processors with a bf16 dot product have on top.
#[derive(Clone, Copy)]
pub(crate) struct Pairs {
    pub(crate) tile: unsafe fn(usize, usize, &Tile<u32, u16>),
    pub(crate) shrink: unsafe fn(&mut Shrink<'_, u16, u16>),
    /// Rounds a slice to bf16.
    pub(crate) round: unsafe fn(&[f32], &mut [u16]),
}

/// A stored weight that widens to lanes.
pub(crate) trait Stored: Copy {
    /// # Safety
    ///
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L::V;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L::V {
        // SAFETY: the caller's duty.
        unsafe { L::load(from) }
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L::V {
        // SAFETY: the caller's duty.
        unsafe { L::load_bf16(from) }
    }
}

/// # Safety
///
/// As [`Micro`].
#[inline(always)]
unsafe fn tile<L: Lanes, W: Stored, const ROWS: usize, const PANELS: usize>(t: &Tile<f32, W>) {
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
        for k in 0..t.depth {
            t.fetch(k);
            let mut w = [L::splat(0.0); PANELS];
            for p in 0..PANELS {
                w[p] = W::load::<L>(t.w[p].add(k * t.w_step));
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
unsafe fn dots<L: Lanes, W: Stored, const ROWS: usize, const COUNT: usize>(
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
        for k in (0..whole).step_by(PANEL) {
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
unsafe fn shrink<L: Lanes, W: Stored, const WIDE: usize, const TALL: usize>(s: &mut Shrink<'_, f32, W>) {
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

/// # Safety
///
/// As [`Micro`].
#[inline(always)]
unsafe fn rms_norm<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
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
unsafe fn add<L: Lanes>(to: &mut [f32], x: &[f32]) {
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
unsafe fn scale<L: Lanes>(x: &[f32], factor: f32, out: &mut [f32]) {
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
unsafe fn silu_mul<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
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
unsafe fn rotate<L: Lanes>(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
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
unsafe fn max<L: Lanes>(x: &[f32]) -> f32 {
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
unsafe fn exp_sum<L: Lanes>(x: &mut [f32], max: f32) -> f32 {
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

/// Compiles the micro-kernels for one instruction set: a module with a `TABLE`.
macro_rules! compile {
    (
        $name:ident, $lanes:ty, enable($($feature:literal)?),
        tiles($($panels:literal: [$($rows:literal)+])+), shape($most_rows:literal, $most_panels:literal),
        shrink($wide:literal, $tall:literal)
    ) => {
        pub(crate) mod $name {
            use super::*;

            pub(crate) static TABLE: Micro = MICRO;

            pub(super) const MICRO: Micro = Micro {
                shape: Shape { rows: $most_rows, panels: $most_panels },
                tile_f32: tile_any::<f32>,
                tile_bf16: tile_any::<u16>,
                pairs: None,
                shrink_f32: shrink_any::<f32>,
                shrink_bf16: shrink_any::<u16>,
                rms_norm, add, scale, silu_mul, rotate, max, exp_sum,
            };

            $(#[target_feature(enable = $feature)])?
            unsafe fn tile_any<W: Stored>(rows: usize, panels: usize, t: &Tile<f32, W>) {
                $(#[target_feature(enable = $feature)])?
                unsafe fn one<W: Stored, const R: usize, const P: usize>(t: &Tile<f32, W>) {
                    // SAFETY: the caller's duty.
                    unsafe { super::tile::<$lanes, W, R, P>(t) }
                }
                // SAFETY: the caller's duty.
                unsafe { compile!(@pick rows, panels, [one W], t, $($panels: [$($rows)+])+) }
            }

            compile!(@one [$($feature)?] shrink_any<W: Stored>(s: &mut Shrink<'_, f32, W>),
                super::shrink::<$lanes, W, $wide, $tall>(s));
            compile!(@one [$($feature)?] rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
                super::rms_norm::<$lanes>(x, weight, eps, out));
            compile!(@one [$($feature)?] add(to: &mut [f32], x: &[f32]), super::add::<$lanes>(to, x));
            compile!(@one [$($feature)?] scale(x: &[f32], factor: f32, out: &mut [f32]),
                super::scale::<$lanes>(x, factor, out));
            compile!(@one [$($feature)?] silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]),
                super::silu_mul::<$lanes>(gate, up, out));
            compile!(@one [$($feature)?] rotate(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]),
                super::rotate::<$lanes>(low, high, cos, sin));
            compile!(@one [$($feature)?] max(x: &[f32]) -> f32, super::max::<$lanes>(x));
            compile!(@one [$($feature)?] exp_sum(x: &mut [f32], max: f32) -> f32,
                super::exp_sum::<$lanes>(x, max));
        }
    };
    (@pick $r:expr, $p:expr, $one:tt, $t:expr, $($panels:literal: $rows:tt)+) => {
        match $p {
            $($panels => compile!(@rows $r, $panels, $one, $t, $rows),)+
            _ => unreachable!("invariant: panels of a tile within the table"),
        }
    };
    (@rows $r:expr, $panels:literal, $one:tt, $t:expr, [$($rows:literal)+]) => {
        match $r {
            $($rows => compile!(@call $one $rows, $panels, $t),)+
            _ => unreachable!("invariant: rows of a tile within the table"),
        }
    };
    (@call [$one:ident $($w:ident)?] $rows:literal, $panels:literal, $t:expr) => {
        $one::<$($w,)? $rows, $panels>($t)
    };
    (@one [$($feature:literal)?] $name:ident$(<$w:ident: $bound:ident>)?($($arg:ident: $type:ty),*) $(-> $ret:ty)?,
        $body:expr) => {
        $(#[target_feature(enable = $feature)])?
        unsafe fn $name$(<$w: $bound>)?($($arg: $type),*) $(-> $ret)? {
            // SAFETY: the caller's duty.
            unsafe { $body }
        }
    };
}

compile!(
    portable, Portable, enable(), tiles(1: [1 2 3]), shape(3, 1), shrink(2, 1)
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx2, crate::cpu::x86::Avx2, enable("avx2,fma"), tiles(1: [1 2 3 4 5 6]), shape(6, 1), shrink(4, 2)
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx512, crate::cpu::x86::Avx512, enable("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"),
    tiles(1: [1 2 3 4 5 6] 2: [1 2 3 4 5 6] 4: [1 2 3 4 5 6]), shape(6, 4), shrink(8, 4)
);
#[cfg(target_arch = "aarch64")]
compile!(
    neon, crate::cpu::neon::Neon, enable("neon"), tiles(1: [1 2 3 4 5 6]), shape(6, 1), shrink(4, 2)
);

/// AVX-512 with its bf16 dot product.
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_BF16: Micro = Micro { pairs: Some(pairs::PAIRS), ..avx512::MICRO };

/// The bf16 dot product of AVX512-BF16.
#[cfg(target_arch = "x86_64")]
mod pairs {
    use super::{PANEL, Pairs, ROW, Shrink, Tile};
    use crate::cpu::lanes::Lanes;
    use crate::cpu::x86::{Avx512, dot_pairs, dot32, round16};
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
            for k in 0..t.depth {
                t.fetch(k);
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
            for k in 0..stride / ROW {
                for r in 0..ROWS {
                    for j in 0..COUNT {
                        let a = a.add(k * chunk + j * ROW);
                        acc[r][j] = dot32(acc[r][j], a, x.add(r * stride + k * ROW));
                    }
                }
            }
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
}

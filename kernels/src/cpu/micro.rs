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

pub(crate) mod codes;
mod matrix;
pub(crate) mod quant;
mod vector;

use super::lanes::{Lanes, Portable};
use crate::packed::ROW;

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
    pub(crate) ahead: Ahead,
}

/// Weights of later tiles to fetch into the second-level cache while this one multiplies: some lines at each step.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    from: *const u8,
    /// Lines of a step, and of all that are left.
    each: usize,
    left: usize,
}

impl Ahead {
    pub(crate) const NONE: Self = Self { from: std::ptr::null(), each: 0, left: 0 };

    /// `bytes` from `from` on, in about `steps` steps.
    pub(crate) fn over(from: *const u8, bytes: usize, steps: usize) -> Self {
        let left = bytes.div_ceil(LINE_BYTES);
        Self { from, each: left.div_ceil(steps.max(1)), left }
    }

    /// Hints at the lines of the next step.
    #[inline(always)]
    fn fetch(&mut self) {
        let lines = self.each.min(self.left);
        for _ in 0..lines {
            fetch_line(self.from);
            self.from = self.from.wrapping_add(LINE_BYTES);
        }
        self.left -= lines;
    }

    /// What is left after some steps.
    pub(crate) fn after(self, steps: usize) -> Self {
        let lines = (self.each * steps).min(self.left);
        Self { from: self.from.wrapping_add(lines * LINE_BYTES), left: self.left - lines, ..self }
    }
}

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

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
    /// `[rank, width]` in blocks of `ranks`.
    pub(crate) a: &'a [W],
    pub(crate) ranks: usize,
    pub(crate) rank: usize,
    /// `[rows, rank]`.
    pub(crate) t: &'a mut [f32],
    /// What to fetch meanwhile; a step is a vector of inputs.
    pub(crate) ahead: Ahead,
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
        let within = rank % self.ranks;
        let first = rank - within;
        let ranks = self.ranks.min(self.rank - first);
        let start = first * self.width.next_multiple_of(ROW) + within * ROW;
        (self.a[start..].as_ptr(), ranks * ROW)
    }
}

/// The micro-kernels of one instruction set.
///
/// # Safety
///
/// All functions: the processor has the instruction set ([`super::Isa::is_available`]). Tiles: the pointers are valid for
/// the block described, `out` is not touched by anybody else meanwhile, rows and panels are at least 1,
/// of a shape that [`Largest::shape`] gives, and `panels` is one that [`Shape::panels`] gives for it. The functions on slices check lengths themselves.
pub(crate) struct Micro {
    pub(crate) largest: Largest,
    pub(crate) tile_f32: unsafe fn(usize, usize, &Tile<f32, f32>),
    pub(crate) tile_bf16: unsafe fn(usize, usize, &Tile<f32, u16>),
    /// bf16 activations and weights in pairs; with it comes `round_bf16`.
    pub(crate) pairs: Option<Pairs>,
    pub(crate) quant: quant::Quant,
    /// Ranks in a block of an adapter's A: those that a single row meets at once.
    pub(crate) ranks: usize,
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
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) panels: usize,
}

/// The largest tiles of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Largest {
    pub(crate) rows: usize,
    pub(crate) panels: usize,
    /// Most rows times panels: each takes registers for its sums.
    pub(crate) cells: usize,
}

impl Largest {
    /// The tiles for `rows` rows, equally high but for the last one; low ones are wide, so that enough sums are under way at
    /// once to hide how long one takes.
    pub(crate) fn shape(&self, rows: usize) -> Shape {
        let tiles = rows.div_ceil(self.rows).max(1);
        let rows = rows.div_ceil(tiles);
        let panels = match self.cells / rows.max(1) {
            fitting if fitting >= self.panels => self.panels,
            fitting => 1 << fitting.max(1).ilog2(),
        };
        Shape { rows, panels }
    }
}

impl Shape {
    /// The widest tile for `left` panels: the widest of all, or a power of two.
    pub(crate) fn panels(&self, left: usize) -> usize {
        if left >= self.panels { self.panels } else { 1 << left.ilog2() }
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

/// Compiles the micro-kernels for one instruction set: a module with a `TABLE`.
macro_rules! compile {
    (
        $name:ident, $lanes:ty, enable($($feature:literal)?),
        tiles($($panels:literal: [$($rows:literal)+])+), largest($most_rows:literal, $most_panels:literal, $most_cells:literal),
        shrink($wide:literal, $tall:literal)
    ) => {
        pub(crate) mod $name {
            use super::*;

            pub(crate) static TABLE: Micro = MICRO;

            pub(super) const MICRO: Micro = Micro {
                largest: Largest { rows: $most_rows, panels: $most_panels, cells: $most_cells },
                tile_f32: tile_any::<f32>,
                tile_bf16: tile_any::<u16>,
                pairs: None,
                quant: quant::$name::TABLE,
                ranks: $wide,
                shrink_f32: shrink_any::<f32>,
                shrink_bf16: shrink_any::<u16>,
                rms_norm, add, scale, silu_mul, rotate, max, exp_sum,
            };

            $(#[target_feature(enable = $feature)])?
            unsafe fn tile_any<W: Stored>(rows: usize, panels: usize, t: &Tile<f32, W>) {
                $(#[target_feature(enable = $feature)])?
                unsafe fn one<W: Stored, const R: usize, const P: usize>(t: &Tile<f32, W>) {
                    // SAFETY: the caller's duty.
                    unsafe { super::matrix::tile::<$lanes, W, R, P>(t) }
                }
                // SAFETY: the caller's duty.
                unsafe { compile!(@pick rows, panels, [one W], t, $($panels: [$($rows)+])+) }
            }

            compile!(@one [$($feature)?] shrink_any<W: Stored>(s: &mut Shrink<'_, f32, W>),
                super::matrix::shrink::<$lanes, W, $wide, $tall>(s));
            compile!(@one [$($feature)?] rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
                super::vector::rms_norm::<$lanes>(x, weight, eps, out));
            compile!(@one [$($feature)?] add(to: &mut [f32], x: &[f32]), super::vector::add::<$lanes>(to, x));
            compile!(@one [$($feature)?] scale(x: &[f32], factor: f32, out: &mut [f32]),
                super::vector::scale::<$lanes>(x, factor, out));
            compile!(@one [$($feature)?] silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]),
                super::vector::silu_mul::<$lanes>(gate, up, out));
            compile!(@one [$($feature)?] rotate(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]),
                super::vector::rotate::<$lanes>(low, high, cos, sin));
            compile!(@one [$($feature)?] max(x: &[f32]) -> f32, super::vector::max::<$lanes>(x));
            compile!(@one [$($feature)?] exp_sum(x: &mut [f32], max: f32) -> f32,
                super::vector::exp_sum::<$lanes>(x, max));
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
    portable, Portable, enable(), tiles(1: [1 2 3]), largest(3, 1, 3), shrink(2, 1)
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx2, crate::cpu::x86::Avx2, enable("avx2,fma"),
    tiles(1: [1 2 3 4 5 6] 2: [1 2 3] 4: [1]), largest(6, 4, 6), shrink(4, 2)
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx512, crate::cpu::x86::Avx512, enable("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"),
    tiles(1: [1 2 3 4 5 6] 2: [1 2 3 4 5 6] 4: [1 2 3 4 5 6]), largest(6, 4, 24), shrink(8, 4)
);
#[cfg(target_arch = "aarch64")]
compile!(
    neon, crate::cpu::neon::Neon, enable("neon"),
    tiles(1: [1 2 3 4 5 6] 2: [1 2 3] 4: [1]), largest(6, 4, 6), shrink(4, 2)
);

/// AVX-512 with its dot products of bf16 and of integers.
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_BF16: Micro = Micro { pairs: Some(pairs::PAIRS), quant: quant::vnni::TABLE, ..avx512::MICRO };

/// AVX-512 with its integer dot product.
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_VNNI: Micro = Micro { quant: quant::vnni::TABLE, ..avx512::MICRO };

/// NEON with its integer dot product.
#[cfg(target_arch = "aarch64")]
pub(crate) static NEON_DOT: Micro = Micro { quant: quant::neon_dot::TABLE, ..neon::MICRO };

// After the macro, which it uses.
#[cfg(target_arch = "x86_64")]
mod pairs;

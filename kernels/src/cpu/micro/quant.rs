//! Products with integer weights, and the codes of the activations that meet them. See [`crate::quant`] for the formats.

use super::codes::{GrowCodes, ShrinkCodes};
use super::{Largest, Tile};
use crate::cpu::bytes::Bytes;
use crate::cpu::lanes::Lanes;
use crate::packed::PANEL;
use crate::quant::{GROUP, Group4, Group8, GroupX, LEAST, quantise_row};

/// The integer micro-kernels of one instruction set. Depth is counted in groups, columns of a step are one group.
///
/// # Safety
///
/// As [`super::Micro`].
#[derive(Clone, Copy)]
pub(crate) struct Quant {
    pub(crate) eight: Tiles<Group8>,
    pub(crate) four: Tiles<Group4>,
    pub(crate) shrink: unsafe fn(&mut ShrinkCodes<'_>),
    pub(crate) grow: unsafe fn(&mut GrowCodes<'_>),
    /// One row, as [`quantise_row`] defines it.
    pub(crate) quantise: unsafe fn(&[f32], &mut [GroupX]),
}

/// The tiles of one format of weights.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<W> {
    pub(crate) kernel: unsafe fn(usize, usize, &Tile<GroupX, W>),
    pub(crate) largest: Largest,
}

/// A group of weights that a tile multiplies: the two formats differ in how sums begin, how codes load and what scales.
trait Weights: Copy {
    /// Inputs per 64 bytes of codes.
    const INPUTS: usize;
    /// Sums over a group.
    type Sum<B: Bytes>: Copy;
    unsafe fn start<B: Bytes>(x: &GroupX) -> Self::Sum<B>;
    /// Adds the products of one 64 bytes of codes of every panel.
    unsafe fn multiply<B: Bytes, const ROWS: usize, const PANELS: usize>(
        weights: [&Self; PANELS],
        step: usize,
        x: [*const u32; ROWS],
        sums: &mut [[Self::Sum<B>; PANELS]; ROWS],
    );
    /// `total + min * x.shift + scale * (x.scale * sum)`.
    unsafe fn finish<B: Bytes>(&self, x: &GroupX, sum: Self::Sum<B>, total: <B::L as Lanes>::V) -> <B::L as Lanes>::V;
}

impl Weights for Group8 {
    const INPUTS: usize = 4;
    type Sum<B: Bytes> = B::Sum;

    #[inline(always)]
    unsafe fn start<B: Bytes>(x: &GroupX) -> Self::Sum<B> {
        // SAFETY: the caller's duty.
        unsafe { B::start8(&x.start) }
    }

    #[inline(always)]
    unsafe fn multiply<B: Bytes, const ROWS: usize, const PANELS: usize>(
        weights: [&Self; PANELS],
        step: usize,
        x: [*const u32; ROWS],
        sums: &mut [[Self::Sum<B>; PANELS]; ROWS],
    ) {
        // SAFETY: the step is below those of a group; the instruction set is the caller's duty.
        unsafe {
            let mut loaded = [B::load8(weights[0].codes[step].as_ptr().cast()); PANELS];
            for p in 1..PANELS {
                loaded[p] = B::load8(weights[p].codes[step].as_ptr().cast());
            }
            for r in 0..ROWS {
                let x = x[r].add(step).read_unaligned();
                for p in 0..PANELS {
                    sums[r][p] = B::dot8(sums[r][p], loaded[p], x);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<B: Bytes>(&self, x: &GroupX, sum: Self::Sum<B>, total: <B::L as Lanes>::V) -> <B::L as Lanes>::V {
        // SAFETY: the caller's duty.
        unsafe {
            let sum = B::L::mul(B::float(sum), B::L::splat(x.scale));
            B::L::fma(sum, B::L::load(self.scale.as_ptr()), total)
        }
    }
}

impl Weights for Group4 {
    const INPUTS: usize = 8;
    type Sum<B: Bytes> = B::Sum4;

    #[inline(always)]
    unsafe fn start<B: Bytes>(_: &GroupX) -> Self::Sum<B> {
        // SAFETY: the caller's duty.
        unsafe { B::start4() }
    }

    #[inline(always)]
    unsafe fn multiply<B: Bytes, const ROWS: usize, const PANELS: usize>(
        weights: [&Self; PANELS],
        step: usize,
        x: [*const u32; ROWS],
        sums: &mut [[Self::Sum<B>; PANELS]; ROWS],
    ) {
        // SAFETY: the step is below those of a group; the instruction set is the caller's duty.
        unsafe {
            let mut loaded = [B::load4(weights[0].codes[step].as_ptr().cast()); PANELS];
            for p in 1..PANELS {
                loaded[p] = B::load4(weights[p].codes[step].as_ptr().cast());
            }
            for half in 0..2 {
                for r in 0..ROWS {
                    let x = x[r].add(2 * step + half).read_unaligned();
                    for p in 0..PANELS {
                        sums[r][p] = B::dot4(sums[r][p], loaded[p][half], x);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<B: Bytes>(&self, x: &GroupX, sum: Self::Sum<B>, total: <B::L as Lanes>::V) -> <B::L as Lanes>::V {
        // SAFETY: the caller's duty.
        unsafe {
            let total = B::L::fma(B::load_f16(self.min.as_ptr()), B::L::splat(x.shift), total);
            let sum = B::L::mul(B::float(B::widen4(sum)), B::L::splat(x.scale));
            B::L::fma(sum, B::load_f16(self.scale.as_ptr()), total)
        }
    }
}

/// # Safety
///
/// As [`super::Micro`].
#[inline(always)]
unsafe fn tile<B: Bytes, W: Weights, const ROWS: usize, const PANELS: usize>(t: &Tile<GroupX, W>) {
    // SAFETY: the block is valid by the caller's duty; groups stay below depth, rows and panels below the tile's.
    unsafe {
        let mut totals = [[B::L::splat(0.0); PANELS]; ROWS];
        if t.add {
            for r in 0..ROWS {
                for p in 0..PANELS {
                    totals[r][p] = B::L::load(t.out.add(r * t.out_stride + p * PANEL));
                }
            }
        }
        let mut ahead = t.ahead;
        for k in 0..t.depth {
            // Plain loops: closures given to `map` would be compiled without the instruction set.
            let mut weights = [&*t.w[0].add(k * t.w_step); PANELS];
            for p in 1..PANELS {
                weights[p] = &*t.w[p].add(k * t.w_step);
            }
            let mut x = [&*t.x.add(k); ROWS];
            let mut codes = [x[0].codes.as_ptr().cast::<u32>(); ROWS];
            let mut sums = [[W::start::<B>(x[0]); PANELS]; ROWS];
            for r in 1..ROWS {
                x[r] = &*t.x.add(r * t.x_stride + k);
                codes[r] = x[r].codes.as_ptr().cast::<u32>();
                sums[r] = [W::start::<B>(x[r]); PANELS];
            }
            ahead.fetch();
            for step in 0..GROUP / W::INPUTS {
                W::multiply::<B, ROWS, PANELS>(weights, step, codes, &mut sums);
            }
            for p in 0..PANELS {
                for r in 0..ROWS {
                    totals[r][p] = weights[p].finish::<B>(x[r], sums[r][p], totals[r][p]);
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                B::L::store(t.out.add(r * t.out_stride + p * PANEL), totals[r][p]);
            }
        }
    }
}

/// # Safety
///
/// As [`super::Micro`].
#[inline(always)]
unsafe fn quantise<B: Bytes>(x: &[f32], to: &mut [GroupX]) {
    let whole = x.len() / GROUP;
    let (x, rest) = x.split_at(whole * GROUP);
    let (to, last) = to.split_at_mut(whole);
    for (x, to) in x.chunks_exact(GROUP).zip(to) {
        // SAFETY: groups are two vectors of 16; the instruction set is the caller's duty.
        unsafe {
            let (a, b) = (B::L::load(x.as_ptr()), B::L::load(x.as_ptr().add(PANEL)));
            let (most, zero) = (B::most([a, b]), B::L::splat(0.0));
            // Zero, unless something is not finite.
            let bad = B::L::sum(B::L::fma(a, zero, B::L::mul(b, zero)));
            if !(LEAST..f32::MAX).contains(&most) || bad != 0.0 {
                quantise_row(x, std::slice::from_mut(to));
                continue;
            }
            let inverse = B::L::splat(127.0 / most);
            let sum = B::encode([B::L::mul(a, inverse), B::L::mul(b, inverse)], to.codes.as_mut_ptr());
            to.set(most / 127.0, sum);
        }
    }
    if !rest.is_empty() {
        quantise_row(rest, last);
    }
}

/// Compiles the micro-kernels for one instruction set: a module with a `TABLE`.
macro_rules! compile {
    ($name:ident, $bytes:ty, enable($($feature:literal)?), rows($($rows:literal)+), panels($($panels:literal)+),
        eight($rows8:literal, $panels8:literal, $cells8:literal), four($rows4:literal, $panels4:literal, $cells4:literal)) => {
        pub(crate) mod $name {
            use super::*;

            pub(crate) const TABLE: Quant = Quant {
                eight: Tiles {
                    kernel: pick::<Group8>,
                    largest: Largest { rows: $rows8, panels: $panels8, cells: $cells8 },
                },
                four: Tiles {
                    kernel: pick::<Group4>,
                    largest: Largest { rows: $rows4, panels: $panels4, cells: $cells4 },
                },
                shrink,
                grow,
                quantise,
            };

            $(#[target_feature(enable = $feature)])?
            unsafe fn pick<W: Weights>(rows: usize, panels: usize, t: &Tile<GroupX, W>) {
                // SAFETY: the caller's duty.
                unsafe { compile!(@panels panels, rows, t, [$($rows)+], $($panels)+) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn one<W: Weights, const ROWS: usize, const PANELS: usize>(t: &Tile<GroupX, W>) {
                // SAFETY: the caller's duty.
                unsafe { tile::<$bytes, W, ROWS, PANELS>(t) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn shrink(s: &mut ShrinkCodes<'_>) {
                // SAFETY: the caller's duty.
                unsafe { super::super::codes::shrink::<$bytes, $rows8>(s) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn grow(s: &mut GrowCodes<'_>) {
                // SAFETY: the caller's duty.
                unsafe { super::super::codes::grow::<$bytes, $rows8>(s) }
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn quantise(x: &[f32], to: &mut [GroupX]) {
                // SAFETY: the caller's duty.
                unsafe { super::quantise::<$bytes>(x, to) }
            }
        }
    };
    (@panels $panels:expr, $rows:expr, $t:expr, $all:tt, $($each:literal)+) => {
        match $panels {
            $($each => compile!(@rows $each, $rows, $t, $all),)+
            _ => unreachable!("invariant: panels of a tile within the table"),
        }
    };
    (@rows $panels:literal, $rows:expr, $t:expr, [$($each:literal)+]) => {
        match $rows {
            $($each => one::<W, $each, $panels>($t),)+
            _ => unreachable!("invariant: rows of a tile within the table"),
        }
    };
}

// A tile holds the integers of a row and panel, and their floats; these may lie in memory, where they are touched once a group.
compile!(
    portable, crate::cpu::bytes::PortableBytes, enable(), rows(1 2), panels(1), eight(2, 1, 2), four(2, 1, 2)
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx2, crate::cpu::x86_bytes::Avx2Bytes, enable("avx2,fma,f16c"),
    rows(1 2 3 4), panels(1), eight(4, 1, 4), four(4, 1, 4)
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx512, crate::cpu::x86_bytes::Avx512Bytes, enable("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"),
    rows(1 2 3 4), panels(1), eight(4, 1, 4), four(4, 1, 4)
);
#[cfg(target_arch = "x86_64")]
compile!(
    vnni, crate::cpu::x86_bytes::Vnni, enable("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"),
    rows(1 2 3 4), panels(1 2 3), eight(4, 3, 12), four(4, 3, 12)
);
#[cfg(target_arch = "aarch64")]
compile!(
    neon, crate::cpu::neon_bytes::NeonBytes, enable("neon"),
    rows(1 2 3 4), panels(1), eight(4, 1, 4), four(4, 1, 4)
);
#[cfg(target_arch = "aarch64")]
compile!(
    neon_dot, crate::cpu::neon_bytes::NeonDot, enable("neon,dotprod"),
    rows(1 2 3 4), panels(1), eight(4, 1, 4), four(4, 1, 4)
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Random;
    use crate::cpu::Isa;
    use bytemuck::Zeroable;

    #[test]
    fn every_set_finds_the_same_codes() {
        let mut x = Random::new(3).normals(10 * GROUP + 5);
        x[1] = 0.5;
        x[4 * GROUP] = f32::NEG_INFINITY;
        x[5 * GROUP + 3] = f32::NAN;
        x[6 * GROUP..7 * GROUP].fill(1e-38);
        let mut want = [GroupX::zeroed(); 11];
        quantise_row(&x, &mut want);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut got = [GroupX::zeroed(); 11];
            // SAFETY: the set is available.
            unsafe { (isa.micro().quant.quantise)(&x, &mut got) };
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(got.scale.to_bits(), want.scale.to_bits(), "{}", isa.as_str());
                assert_eq!((got.start, got.codes), (want.start, want.codes), "{}", isa.as_str());
            }
        }
    }
}

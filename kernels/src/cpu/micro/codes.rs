//! Adapters in 8 bits: both halves multiply codes by codes, so that a step is bound by their bytes. See [`crate::packed`] for the
//! layouts and [`crate::quant`] for how activations, and what is between the halves, become codes.
//!
//! Sums within a group of [`GROUP`] are exact integers; groups are added in order, in `f32`.

use super::Ahead;
use crate::cpu::bytes::Bytes;
use crate::cpu::lanes::Lanes;
use crate::packed::{OCTET, PANEL};
use crate::quant::{GROUP, GroupX};

/// Bytes of weights that meet the activations at once: four inputs of 16 outputs, eight of 8 ranks.
const STEP_BYTES: usize = 64;
/// Steps of a group when 8 inputs lie side by side, and when 4 do.
const STEPS: usize = GROUP / OCTET;
const STEPS_OF_FOUR: usize = GROUP / 4;

/// `t[row, j] = x[row] · a[j]`, of codes: the scales of ranks are the caller's.
pub(crate) struct ShrinkCodes<'a> {
    /// `[rows, groups]`.
    pub(crate) x: &'a [GroupX],
    pub(crate) groups: usize,
    /// `[rank, groups * 32]` in `CodeOctets`.
    pub(crate) a: &'a [i8],
    pub(crate) rank: usize,
    /// `[rows, stride]`, of which the first `rank` of each row are written.
    pub(crate) t: &'a mut [f32],
    pub(crate) stride: usize,
    /// What to fetch meanwhile; a step is a group.
    pub(crate) ahead: Ahead,
}

/// `out += t b`, of codes, for whole panels.
pub(crate) struct GrowCodes<'a> {
    /// `[rows, groups]`: what is between the halves, all scales applied.
    pub(crate) t: &'a [GroupX],
    pub(crate) groups: usize,
    /// `[panels, depth, 16, 4]`.
    pub(crate) b: &'a [i8],
    /// Ranks in fours, rounded up.
    pub(crate) depth: usize,
    pub(crate) panels: usize,
    /// First row; `panels * 16` columns that are nobody else's, rows `out_stride` apart.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// What to fetch meanwhile; a step is a group of a panel.
    pub(crate) ahead: Ahead,
}

/// `ROWS` rows at a time, then one by one.
///
/// # Safety
///
/// As [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn shrink<B: Bytes, const ROWS: usize>(s: &mut ShrinkCodes<'_>) {
    let (blocks, rows) = (s.rank.div_ceil(OCTET), s.t.len() / s.stride);
    assert!(
        s.stride >= s.rank
            && s.t.len() == rows * s.stride
            && s.x.len() == rows * s.groups
            && s.a.len() == blocks * s.groups * STEPS * STEP_BYTES,
        "shrink: x {}, a {}, t {} for {} groups and rank {}",
        s.x.len(),
        s.a.len(),
        s.t.len(),
        s.groups,
        s.rank,
    );
    for block in 0..blocks {
        let mut row = 0;
        // SAFETY: rows and blocks are within the shapes just checked.
        unsafe {
            while row + ROWS <= rows {
                octet::<B, ROWS>(s, row, block);
                row += ROWS;
            }
            while row < rows {
                octet::<B, 1>(s, row, block);
                row += 1;
            }
        }
    }
}

/// Some rows times the 8 ranks of a block. Of the 16 sums two neighbours belong to a rank: inputs 0 to 3 of every 8, and 4 to 7.
///
/// # Safety
///
/// As [`super::Micro`]; the rows and the block exist.
#[inline(always)]
unsafe fn octet<B: Bytes, const ROWS: usize>(s: &mut ShrinkCodes<'_>, row: usize, block: usize) {
    // SAFETY: the caller's duty; `shrink` checked the lengths.
    unsafe {
        let (mut ahead, groups) = (s.ahead, s.groups);
        let mut a = s.a.as_ptr().cast::<u8>().add(block * groups * STEPS * STEP_BYTES);
        let x = s.x.as_ptr().add(row * groups);
        let mut totals = [B::L::splat(0.0); ROWS];
        for group in 0..groups {
            ahead.fetch();
            let mut from = [&*x.add(group); ROWS];
            let mut sums = [B::start_octets(from[0].codes.as_ptr()); ROWS];
            for r in 1..ROWS {
                from[r] = &*x.add(r * groups + group);
                sums[r] = B::start_octets(from[r].codes.as_ptr());
            }
            for step in 0..STEPS {
                let weights = B::load8(a);
                a = a.add(STEP_BYTES);
                for r in 0..ROWS {
                    let codes = from[r].codes.as_ptr().cast::<u64>().add(step).read_unaligned();
                    sums[r] = B::dot_octets(sums[r], weights, codes);
                }
            }
            for r in 0..ROWS {
                totals[r] = B::L::fma(B::float(sums[r]), B::L::splat(from[r].scale), totals[r]);
            }
        }
        s.ahead = ahead;
        let ranks = OCTET.min(s.rank - block * OCTET);
        for r in 0..ROWS {
            let mut lanes = [0.0f32; PANEL];
            B::L::store(lanes.as_mut_ptr(), totals[r]);
            let to = &mut s.t[(row + r) * s.stride + block * OCTET..][..ranks];
            for (to, pair) in to.iter_mut().zip(lanes.chunks_exact(2)) {
                *to = pair[0] + pair[1];
            }
        }
    }
}

/// `ROWS` rows at a time, then one by one.
///
/// # Safety
///
/// As [`super::Micro`]; `out` is valid for the rows of `t` and nobody else touches its columns.
#[inline(always)]
pub(super) unsafe fn grow<B: Bytes, const ROWS: usize>(s: &mut GrowCodes<'_>) {
    let rows = s.t.len() / s.groups;
    assert!(
        s.groups == s.depth.div_ceil(STEPS_OF_FOUR)
            && s.t.len() == rows * s.groups
            && s.b.len() == s.panels * s.depth * STEP_BYTES,
        "grow: t {}, b {} for {} groups, depth {} and {} panels",
        s.t.len(),
        s.b.len(),
        s.groups,
        s.depth,
        s.panels,
    );
    for panel in 0..s.panels {
        let mut row = 0;
        // SAFETY: rows and panels are within the shapes just checked.
        unsafe {
            while row + ROWS <= rows {
                panel_of::<B, ROWS>(s, row, panel);
                row += ROWS;
            }
            while row < rows {
                panel_of::<B, 1>(s, row, panel);
                row += 1;
            }
        }
    }
}

/// Some rows times a panel of 16 outputs.
///
/// # Safety
///
/// As [`grow`]; the rows and the panel exist.
#[inline(always)]
unsafe fn panel_of<B: Bytes, const ROWS: usize>(s: &mut GrowCodes<'_>, row: usize, panel: usize) {
    // SAFETY: the caller's duty; `grow` checked the lengths.
    unsafe {
        let (mut ahead, groups) = (s.ahead, s.groups);
        let mut b = s.b.as_ptr().cast::<u8>().add(panel * s.depth * STEP_BYTES);
        let t = s.t.as_ptr().add(row * groups);
        let out = s.out.add(row * s.out_stride + panel * PANEL);
        let mut totals = [B::L::load(out); ROWS];
        for r in 1..ROWS {
            totals[r] = B::L::load(out.add(r * s.out_stride));
        }
        for group in 0..groups {
            ahead.fetch();
            let mut from = [&*t.add(group); ROWS];
            let mut sums = [B::start8(&from[0].start); ROWS];
            for r in 1..ROWS {
                from[r] = &*t.add(r * groups + group);
                sums[r] = B::start8(&from[r].start);
            }
            for step in 0..STEPS_OF_FOUR.min(s.depth - group * STEPS_OF_FOUR) {
                let weights = B::load8(b);
                b = b.add(STEP_BYTES);
                for r in 0..ROWS {
                    let codes = from[r].codes.as_ptr().cast::<u32>().add(step).read_unaligned();
                    sums[r] = B::dot8(sums[r], weights, codes);
                }
            }
            for r in 0..ROWS {
                totals[r] = B::L::fma(B::float(sums[r]), B::L::splat(from[r].scale), totals[r]);
            }
        }
        s.ahead = ahead;
        for r in 0..ROWS {
            B::L::store(out.add(r * s.out_stride), totals[r]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightFormat;
    use crate::conformance::Random;
    use crate::cpu::Isa;
    use crate::packed::{Data, Half, Layout, Matrix};
    use crate::quant::{self, quantise_row};
    use bytemuck::Zeroable;

    const ROWS: usize = 6;

    fn pack(random: &mut Random, half: Half, [rows, cols]: [usize; 2]) -> [Matrix; 2] {
        let source = random.normals(rows * cols);
        let layout = if half == Half::Shrink { Layout::CodeOctets } else { Layout::CodePanels };
        [layout, Layout::RowMajor]
            .map(|layout| Matrix::pack_half("t", &source, half, [rows, cols], layout, WeightFormat::Int8))
    }

    fn codes(matrix: &Matrix) -> &[i8] {
        let Data::Codes(codes, _) = &matrix.data else { panic!("packed as codes") };
        codes
    }

    fn groups(random: &mut Random, width: usize) -> Vec<GroupX> {
        let each = quant::groups(width);
        let mut groups = vec![GroupX::zeroed(); ROWS * each];
        for groups in groups.chunks_exact_mut(each) {
            quantise_row(&random.normals(width), groups);
        }
        groups
    }

    /// Σ over groups of the scale times the exact sum of products.
    fn dot(x: &[GroupX], weights: impl Fn(usize) -> i8, width: usize) -> f64 {
        let product = |i: usize| i32::from(x[i / GROUP].codes[i % GROUP]) * i32::from(weights(i));
        let of_group = |group: usize| (group * GROUP..((group + 1) * GROUP).min(width)).map(product).sum::<i32>();
        (0..x.len()).map(|group| f64::from(x[group].scale) * f64::from(of_group(group))).sum()
    }

    fn close(what: &str, got: f32, want: f64, size: f64) {
        assert!((f64::from(got) - want).abs() <= 3e-7 * size, "{what}: {got} should be {want}");
    }

    #[test]
    fn both_halves_add_exact_products_in_every_set() {
        let random = &mut Random::new(4);
        for (rank, width) in [(8, 576), (1, 33), (3, 1), (12, 64), (33, 100), (64, 1536)] {
            let [packed, plain] = pack(random, Half::Shrink, [rank, width]);
            let x = groups(random, width);
            let each = quant::groups(width);
            let stride = rank.next_multiple_of(GROUP);
            let (outputs, panels) = (48, 3);
            let [b_packed, b_plain] = pack(random, Half::Grow, [outputs, rank]);
            let between = groups(random, rank);
            let base = random.normals(ROWS * outputs);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let what = format!("{} rank {rank} width {width}", isa.as_str());
                let quant = &isa.micro().quant;
                let mut t = vec![f32::NAN; ROWS * stride];
                let (a, ahead) = (codes(&packed), Ahead::NONE);
                // SAFETY: the set is available.
                unsafe { (quant.shrink)(&mut ShrinkCodes { x: &x, groups: each, a, rank, t: &mut t, stride, ahead }) };
                for (row, t) in t.chunks_exact(stride).enumerate() {
                    for (j, got) in t[..rank].iter().enumerate() {
                        let x = &x[row * each..][..each];
                        let want = dot(x, |i| codes(&plain)[j * width + i], width);
                        close(&what, *got, want, 127.0 * 127.0 * width as f64 * f64::from(x[0].scale));
                    }
                    assert!(t[rank..].iter().all(|rest| rest.is_nan()), "{what}: only ranks are written");
                }
                let mut out = base.clone();
                let (t, groups, b) = (&between[..], quant::groups(rank), codes(&b_packed));
                let (depth, out_stride) = (rank.div_ceil(4), outputs);
                let to = out.as_mut_ptr();
                // SAFETY: the set is available; `out` has these rows and columns.
                unsafe { (quant.grow)(&mut GrowCodes { t, groups, b, depth, panels, out: to, out_stride, ahead }) };
                for (row, out) in out.chunks_exact(outputs).enumerate() {
                    for (o, got) in out.iter().enumerate() {
                        let t = &t[row * groups..][..groups];
                        let change = dot(t, |r| codes(&b_plain)[o * rank + r], rank);
                        let before = f64::from(base[row * outputs + o]);
                        close(&what, *got, before + change, 10.0 + 127.0 * 127.0 * rank as f64 * f64::from(t[0].scale));
                    }
                }
            }
        }
    }
}

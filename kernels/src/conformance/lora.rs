//! Promises about `lora`.

use super::{BesideCodes, Random, abs, assert_bits, assert_close, tolerance};
use crate::quant::CodedRow;
use crate::{Kernels, LoraSegment, LoraTarget, WeightFormat, reference};
use std::ops::Range;

/// An adapter for one linear, not packed yet.
struct Plain {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f32,
    out_offset: usize,
    out_features: usize,
}

impl Plain {
    fn draw(random: &mut Random, inputs: usize, rank: usize, columns: Range<usize>) -> Self {
        Self {
            a: random.normals(rank * inputs),
            b: random.normals(columns.len() * rank),
            rank,
            scale: 0.25 + random.normal().abs(),
            out_offset: columns.start,
            out_features: columns.len(),
        }
    }

    fn abs(&self) -> Self {
        Self { a: abs(&self.a), b: abs(&self.b), ..*self }
    }

    fn pack(&self, kernels: &dyn Kernels, inputs: usize, format: WeightFormat) -> LoraTarget {
        LoraTarget {
            a: kernels.pack_lora_a(&self.a, self.rank, inputs, format),
            b: kernels.pack_lora_b(&self.b, self.out_features, self.rank, format),
            rank: self.rank,
            scale: self.scale,
            out_offset: self.out_offset,
            out_features: self.out_features,
        }
    }
}

/// A call with several segments, each with targets of its own.
struct Case {
    rows: usize,
    inputs: usize,
    stride: usize,
    segments: Vec<(Range<usize>, Vec<Plain>)>,
}

impl Case {
    /// Segments of zero to many rows with gaps, in any order; up to three targets each, as in a fused q/k/v.
    fn draw(random: &mut Random) -> Self {
        let inputs = random.pick(&[1, 2, 15, 16, 33, 64, 100, 576]);
        let stride = random.pick(&[1, 7, 16, 48, 100, 321]);
        let (mut rows, mut segments) = (random.below(3), Vec::new());
        for _ in 0..random.below(8) {
            let len = random.pick(&[0, 1, 1, 1, 2, 3, 7, 33, 70]);
            let targets = Self::columns(random, stride)
                .into_iter()
                .map(|columns| {
                    let rank = random.pick(&[0, 1, 2, 3, 4, 7, 8, 12, 16, 17, 33, 64]);
                    Plain::draw(random, inputs, rank, columns)
                })
                .collect();
            segments.push((rows..rows + len, targets));
            rows += len + random.below(3);
        }
        for i in (1..segments.len()).rev() {
            segments.swap(i, random.below(i + 1));
        }
        Self { rows, inputs, stride, segments }
    }

    /// Up to three disjoint ranges of columns, unaligned, empty ones too.
    fn columns(random: &mut Random, stride: usize) -> Vec<Range<usize>> {
        let (mut from, mut columns) = (0, Vec::new());
        for _ in 0..1 + random.below(3) {
            let start = from + random.below(stride - from + 1);
            from = start + random.below(stride - start + 1);
            columns.push(start..from);
        }
        columns
    }

    fn run(&self, kernels: &dyn Kernels, format: WeightFormat, x: &[f32], out: &mut [f32]) {
        self.run_with(kernels, format, x, out, |plain| plain.pack(kernels, self.inputs, format));
    }

    fn run_with(
        &self,
        kernels: &dyn Kernels,
        format: WeightFormat,
        x: &[f32],
        out: &mut [f32],
        pack: impl Fn(&Plain) -> LoraTarget,
    ) {
        let packed: Vec<(Range<usize>, Vec<LoraTarget>)> =
            self.segments.iter().map(|(rows, targets)| (rows.clone(), targets.iter().map(&pack).collect())).collect();
        for target in packed.iter().flat_map(|(_, targets)| targets) {
            assert_eq!((target.a.format(), target.b.format()), (format, format));
        }
        let segments: Vec<LoraSegment<'_>> =
            packed.iter().map(|(rows, targets)| LoraSegment { rows: rows.clone(), targets }).collect();
        kernels.lora(x, self.inputs, &segments, out, self.stride);
    }

    /// Checks `got`, which was `base` before, against the reference, or, where activations become codes, against that definition.
    fn check(&self, format: WeightFormat, beside: BesideCodes, seed: u64, x: &[f32], [base, got]: [&[f32]; 2]) {
        let name = self.name(format, seed);
        if (format, beside) == (WeightFormat::Int8, BesideCodes::Codes) {
            let (want, bounds) = self.through_codes(x, base);
            return assert_close(&name, got, &want, &bounds, 1.0);
        }
        let (mut want, mut magnitude) = (base.to_vec(), abs(base));
        let reference = reference();
        self.run(&*reference, format, x, &mut want);
        self.run_with(&*reference, format, &abs(x), &mut magnitude, |plain| {
            plain.abs().pack(&*reference, self.inputs, format)
        });
        assert_close(&name, got, &want, &magnitude, tolerance(format, self.inputs + 64, 2));
    }

    /// What adapters in 8 bits make of `base` where activations, and what is between the halves, become codes; and how far off
    /// that may be: as in `F32`, and by a step of the codes between the halves where a value lies between two of them.
    fn through_codes(&self, x: &[f32], base: &[f32]) -> (Vec<f32>, Vec<f32>) {
        /// Of a step: how close to the middle of two codes a value may become either.
        const UNDECIDED: f64 = 0.02;
        let share = f64::from(tolerance(WeightFormat::F32, self.inputs + 64, 2));
        let mut want: Vec<f64> = base.iter().map(|value| f64::from(*value)).collect();
        let mut bounds: Vec<f64> = base.iter().map(|value| share * f64::from(value.abs())).collect();
        let reference = reference();
        let all = self.segments.iter().flat_map(|(rows, targets)| targets.iter().map(move |plain| (rows, plain)));
        for (rows, plain) in all {
            let target = plain.pack(&*reference, self.inputs, WeightFormat::Int8);
            let [(a, a_scales), (b, b_scales)] = [&target.a, &target.b].map(|half| half.to_codes().expect("codes"));
            for row in rows.clone() {
                let x = CodedRow::new(&x[row * self.inputs..][..self.inputs]);
                let scale = |r: usize| f64::from(plain.scale * a_scales[r] * b_scales[r]);
                let products = |r: usize| (0..self.inputs).map(move |i| (r, i));
                let product = |(r, i): (usize, usize)| f64::from(a[r * self.inputs + i]) * x.at(i);
                let between: Vec<f64> =
                    (0..plain.rank).map(|r| scale(r) * products(r).map(product).sum::<f64>()).collect();
                let largest = (0..plain.rank)
                    .map(|r| scale(r).abs() * products(r).map(|at| product(at).abs()).sum::<f64>())
                    .fold(0.0, f64::max);
                let t = CodedRow::new(&between.iter().map(|t| *t as f32).collect::<Vec<_>>());
                for o in 0..plain.out_features {
                    let at = row * self.stride + plain.out_offset + o;
                    for (r, between) in between.iter().enumerate() {
                        let (b, step) = (f64::from(b[o * plain.rank + r]), t.step(r));
                        want[at] += b * t.at(r);
                        let is_between = step > 0.0 && ((between / step).rem_euclid(1.0) - 0.5).abs() < UNDECIDED;
                        bounds[at] += b.abs() * (2.0 * share * largest + if is_between { step } else { 0.0 });
                    }
                }
            }
        }
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        (narrow(want), narrow(bounds))
    }

    fn name(&self, format: WeightFormat, seed: u64) -> String {
        let segments: Vec<_> = self
            .segments
            .iter()
            .map(|(rows, targets)| (rows.clone(), targets.iter().map(|t| (t.rank, t.out_features)).collect::<Vec<_>>()))
            .collect();
        let Self { rows, inputs, stride, .. } = self;
        format!("lora {rows}x{inputs}x{stride} {segments:?} {format:?} seed {seed}")
    }
}

/// Mixed ranks, several targets per segment, segments without rows and rows without segment come out right.
pub fn lora_matches_the_reference(kernels: &dyn Kernels, format: WeightFormat, beside: BesideCodes, seed: u64) {
    let random = &mut Random::new(seed);
    for _ in 0..120 {
        let case = Case::draw(random);
        let (x, base) = (random.normals(case.rows * case.inputs), random.normals(case.rows * case.stride));
        let mut got = base.clone();
        case.run(kernels, format, &x, &mut got);
        case.check(format, beside, seed, &x, [&base, &got]);
    }
}

/// Rows without a segment and columns without a target keep every bit.
pub fn lora_leaves_everything_else_alone(kernels: &dyn Kernels, format: WeightFormat, seed: u64) {
    let random = &mut Random::new(seed);
    for _ in 0..60 {
        let case = Case::draw(random);
        let x = random.normals(case.rows * case.inputs);
        let base = random.normals(case.rows * case.stride);
        let mut got = base.clone();
        case.run(kernels, format, &x, &mut got);
        for row in 0..case.rows {
            let segment = case.segments.iter().find(|(rows, _)| rows.contains(&row));
            let targets = segment.map_or(&[][..], |(_, targets)| targets);
            for column in 0..case.stride {
                let touched = targets
                    .iter()
                    .any(|target| (target.out_offset..target.out_offset + target.out_features).contains(&column));
                let at = row * case.stride + column;
                if !touched {
                    assert_bits(&case.name(format, seed), &got[at..=at], &base[at..=at]);
                }
            }
        }
    }
}

/// A row with its adapter gives the same bits alone and in any batch of other adapters.
pub fn lora_row_alone_and_in_a_batch_is_bit_equal(kernels: &dyn Kernels, format: WeightFormat, seed: u64) {
    let random = &mut Random::new(seed);
    for _ in 0..60 {
        let case = Case::draw(random);
        let x = random.normals(case.rows * case.inputs);
        let base = random.normals(case.rows * case.stride);
        let mut batch = base.clone();
        case.run(kernels, format, &x, &mut batch);
        for (rows, targets) in &case.segments {
            let targets: Vec<LoraTarget> =
                targets.iter().map(|plain| plain.pack(kernels, case.inputs, format)).collect();
            for row in rows.clone() {
                let columns = row * case.stride..(row + 1) * case.stride;
                let mut alone = base[columns.clone()].to_vec();
                let x = &x[row * case.inputs..(row + 1) * case.inputs];
                let segment = LoraSegment { rows: 0..1, targets: &targets };
                kernels.lora(x, case.inputs, &[segment], &mut alone, case.stride);
                assert_bits(&case.name(format, seed), &batch[columns], &alone);
            }
        }
    }
}

/// Targets of one segment may share columns: both are added, in any cut of the work.
pub fn lora_with_overlapping_targets_adds_both(
    kernels: &dyn Kernels,
    format: WeightFormat,
    beside: BesideCodes,
    seed: u64,
) {
    let random = &mut Random::new(seed);
    let (inputs, stride) = (576, 300);
    let targets = vec![
        Plain::draw(random, inputs, 16, 0..200),
        Plain::draw(random, inputs, 64, 100..300),
        Plain::draw(random, inputs, 8, 0..300),
    ];
    let case = Case { rows: 2, inputs, stride, segments: vec![(0..2, targets)] };
    let (x, base) = (random.normals(2 * inputs), vec![0.0; 2 * stride]);
    let mut got = base.clone();
    case.run(kernels, format, &x, &mut got);
    case.check(format, beside, seed, &x, [&base, &got]);
}

//! Products with quantised weights against sums in f64, over all that may differ between devices and batches.
//!
//! Bounds: a sum of terms that each go through at most n roundings to f32 is off by at most n * 2^-24 of the sum of their absolute values
//! (to first order; one more rounding is granted for the rest), and then rounded once to the type of the result.

use half::{bf16, f16};
use proptest::prelude::*;
use weft_cuda_kernels::gemm::on_host::X;
use weft_cuda_kernels::gemm::pack::{self, Packed};
use weft_cuda_kernels::gemm::{Inputs, Weights, codes, launch};
use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Device, Element, kernels};
use weft_kernels::WeightFormat;
use weft_kernels::conformance::{self, Random};

const UNIT: f64 = 1.0 / 16_777_216.0;

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    rows: usize,
    columns: usize,
    depth: usize,
    group: usize,
    /// Columns of `out` beyond.
    rest: usize,
    device: Device,
}

fn cases() -> impl Strategy<Value = Case> {
    let rows = prop_oneof![3 => 1usize..9, 2 => 9usize..33, 1 => 33usize..100, 1 => prop::sample::select(vec![8usize, 64, 65])];
    let depth = prop_oneof![2 => 1usize..12, 1 => 12usize..50];
    let device = (0u32..8, 1usize..40).prop_map(|(order, multiprocessors)| Device {
        order: Order {
            warps_backwards: order & 1 != 0,
            lanes_backwards: order & 2 != 0,
            blocks_backwards: order & 4 != 0,
        },
        multiprocessors,
    });
    (any::<u64>(), rows, 1usize..18, depth, 0u32..3, 0usize..5, device).prop_map(
        |(seed, rows, columns, depth, group, rest, device)| {
            let group = 32 << group;
            let depth = (32 * depth).next_multiple_of(group);
            Case { seed, rows, columns: 8 * columns, depth, group, rest, device }
        },
    )
}

/// Weights and inputs with what a result should be, and the bound for it before it is rounded to its type.
struct Filled {
    weights: Packed,
    x: X,
    /// `(want, bound)` of row and column.
    oracle: Box<dyn Fn(usize, usize) -> (f64, f64)>,
}

impl Case {
    fn shape(&self) -> [usize; 2] {
        [self.columns, self.depth]
    }

    fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// Values of different sizes in different places, so that a wrong scale shows.
    fn values(&self, random: &mut Random, rows: usize) -> Vec<f32> {
        let mut values = Vec::new();
        for _ in 0..rows * self.depth / 32 {
            let factor = 2f32.powi(random.below(5) as i32 - 3);
            values.extend(random.normals(32).into_iter().map(|value| value * factor));
        }
        values
    }

    /// Roundings of sums over the steps of a part and over parts, with `each` roundings for a step.
    fn roundings(&self, each: usize) -> f64 {
        let weights = Weights::Int8Groups;
        let shape = [self.rows, self.columns, self.depth];
        let splits = launch(weights, Inputs::Int8Groups, shape, self.device.multiprocessors).unwrap().splits;
        let steps = (self.depth / 32).div_ceil(4 * splits);
        (each * steps + 4 * splits + 1) as f64
    }
}

/// Codes, scales and minima as a model's file might have them.
fn four(case: &Case, random: &mut Random, is_symmetric: bool) -> (Packed, Vec<[f64; 3]>) {
    let groups = case.depth / case.group;
    let codes: Vec<u8> = (0..case.columns * case.depth).map(|_| random.below(16) as u8).collect();
    let scales: Vec<f16> =
        (0..case.columns * groups).map(|_| f16::from_f32(0.01 + 0.1 * random.normal().abs())).collect();
    let mins: Vec<f16> = if is_symmetric {
        scales.iter().map(|scale| f16::from_f32(scale.to_f32() * -8.0)).collect()
    } else {
        scales.iter().map(|_| f16::from_f32(random.normal())).collect()
    };
    let packed = if is_symmetric {
        pack::four_symmetric(case.shape(), case.group, &codes, &scales)
    } else {
        pack::four(case.shape(), case.group, &codes, &scales, &mins)
    };
    let parts = |i: usize| {
        let at = i / case.depth * groups + i % case.depth / case.group;
        [f64::from(scales[at].to_f32()), f64::from(codes[i]), f64::from(mins[at].to_f32())]
    };
    (packed.unwrap(), (0..codes.len()).map(parts).collect())
}

fn w4a16<T: Element>(case: Case, store: fn(&[T], usize) -> X, is_symmetric: bool) -> Filled {
    let random = &mut case.random();
    let (weights, parts) = four(&case, random, is_symmetric);
    let x: Vec<T> = case.values(random, case.rows).into_iter().map(T::from_f32).collect();
    let stored = store(&x, case.depth);
    let depth = case.depth;
    // A term (code + 16) x is added up with 31 others, multiplied with its scale, and added to a sum that gets two terms each step; -16
    // scale + min is rounded besides.
    let unit = UNIT * (32.0 + 3.0 + case.roundings(2));
    let oracle = move |row: usize, column: usize| {
        let (mut want, mut magnitude) = (0.0, 0.0);
        for k in 0..depth {
            let [scale, code, min] = parts[column * depth + k];
            let x = f64::from(x[row * depth + k].to_f32());
            want += x * (scale * code + min);
            magnitude += x.abs() * (scale * (code + 16.0) + (min - 16.0 * scale).abs());
        }
        (want, unit * magnitude)
    };
    Filled { weights, x: stored, oracle: Box::new(oracle) }
}

/// Of 32 codes of a row and a column, the exact sums of products and of the row's codes.
fn sums(x: &[u8], w: impl Fn(usize) -> f64) -> [f64; 2] {
    let code = |k: usize| f64::from(x[k].cast_signed());
    [(0..32).map(|k| code(k) * w(k)).sum(), (0..32).map(code).sum()]
}

fn w4a8(case: Case) -> Filled {
    let random = &mut case.random();
    let (weights, parts) = four(&case, random, false);
    let x = case.device.quantise(&case.values(random, case.rows), case.depth, Inputs::Int8Groups).unwrap();
    // Two products and their sum, then one term each step.
    let unit = UNIT * (3.0 + case.roundings(1));
    let (of_x, x_codes) = (x.clone(), x.codes());
    let oracle = move |row: usize, column: usize| {
        let (mut want, mut magnitude) = (0.0, 0.0);
        for group in 0..of_x.depth / 32 {
            let of = |k: usize| parts[column * of_x.depth + k];
            let [scale, _, min] = of(group * 32);
            let [products, plain] = sums(&x_codes[row * of_x.depth + group * 32..], |k| of(group * 32 + k)[1]);
            let x_scale = f64::from(of_x.scale(row, group * 32));
            want += x_scale * (scale * products + min * plain);
            magnitude += x_scale * (scale * products.abs() + (min * plain).abs());
        }
        (want, unit * magnitude)
    };
    Filled { weights, x, oracle: Box::new(oracle) }
}

fn int8_groups(case: Case) -> Filled {
    let random = &mut case.random();
    let (codes, scales) = codes::int8(&case.values(random, case.columns), 32);
    let weights = pack::int8_groups(case.shape(), &codes, &scales).unwrap();
    let x = case.device.quantise(&case.values(random, case.rows), case.depth, Inputs::Int8Groups).unwrap();
    let unit = UNIT * (2.0 + case.roundings(1));
    let (of_x, x_codes) = (x.clone(), x.codes());
    let oracle = move |row: usize, column: usize| {
        let (mut want, mut magnitude) = (0.0, 0.0);
        for group in 0..of_x.depth / 32 {
            let at = column * of_x.depth + group * 32;
            let [products, _] = sums(&x_codes[row * of_x.depth + group * 32..], |k| f64::from(codes[at + k]));
            let term = f64::from(of_x.scale(row, group * 32)) * f64::from(scales[at / 32]) * products;
            want += term;
            magnitude += term.abs();
        }
        (want, unit * magnitude)
    };
    Filled { weights, x, oracle: Box::new(oracle) }
}

fn int8_channels(case: Case) -> Filled {
    let random = &mut case.random();
    let (codes, scales) = codes::int8(&case.values(random, case.columns), case.depth);
    let weights = pack::int8_channels(case.shape(), &codes, &scales).unwrap();
    let x = case.device.quantise(&case.values(random, case.rows), case.depth, Inputs::Int8Rows).unwrap();
    let (of_x, x_codes) = (x.clone(), x.codes());
    let oracle = move |row: usize, column: usize| {
        let column_codes = &codes[column * of_x.depth..][..of_x.depth];
        let row_codes = &x_codes[row * of_x.depth..];
        let products: f64 =
            column_codes.iter().zip(row_codes).map(|(w, x)| f64::from(*w) * f64::from(x.cast_signed())).sum();
        let want = products * f64::from(scales[column]) * f64::from(of_x.scale(row, 0));
        // The sum is exact; it is rounded once, and each scale rounds.
        (want, 4.0 * UNIT * want.abs())
    };
    Filled { weights, x, oracle: Box::new(oracle) }
}

fn e4m3_weights(case: &Case, random: &mut Random) -> (Packed, Vec<f64>, Vec<f32>) {
    let (codes, scales) = codes::e4m3(&case.values(random, case.columns), case.depth);
    let values = codes.iter().map(|code| f64::from(weft_cuda_kernels::e4m3::decode(*code))).collect();
    (pack::e4m3(case.shape(), &codes, &scales).unwrap(), values, scales)
}

fn fp8(case: Case) -> Filled {
    let random = &mut case.random();
    let (weights, values, scales) = e4m3_weights(&case, random);
    let x = case.device.quantise(&case.values(random, case.rows), case.depth, Inputs::E4m3Rows).unwrap();
    let (depth, of_x) = (case.depth, x.clone());
    let x_values: Vec<f64> =
        x.codes().into_iter().map(|code| f64::from(weft_cuda_kernels::e4m3::decode(code))).collect();
    let unit = UNIT * (32.0 + 2.0 + case.roundings(1));
    let oracle = move |row: usize, column: usize| {
        let terms = (0..depth).map(|k| x_values[row * depth + k] * values[column * depth + k]);
        let (want, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
        let scale = f64::from(scales[column]) * f64::from(of_x.scale(row, 0));
        (want * scale, unit * magnitude * scale)
    };
    Filled { weights, x, oracle: Box::new(oracle) }
}

fn fp8_a16<T: Element>(case: Case, store: fn(&[T], usize) -> X) -> Filled {
    let random = &mut case.random();
    let (weights, values, scales) = e4m3_weights(&case, random);
    let x: Vec<T> = case.values(random, case.rows).into_iter().map(T::from_f32).collect();
    let stored = store(&x, case.depth);
    let depth = case.depth;
    let unit = UNIT * (1.0 + case.roundings(32));
    let oracle = move |row: usize, column: usize| {
        let terms = (0..depth).map(|k| f64::from(x[row * depth + k].to_f32()) * values[column * depth + k]);
        let (want, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
        let scale = f64::from(scales[column]);
        (want * scale, unit * magnitude * scale)
    };
    Filled { weights, x: stored, oracle: Box::new(oracle) }
}

/// `out_unit`: half a unit in the last place of `O`; f16 has steps of 2^-24 at zero besides.
fn is_right<O: Element>(case: Case, filled: Filled, out_unit: f64) {
    let Filled { weights, mut x, oracle } = filled;
    let stride = case.columns + case.rest;
    let mut out = vec![O::from_f32(-77.0); case.rows * stride];
    case.device.gemm(&weights, &mut x, &mut out, stride).unwrap();
    for (at, got) in out.iter().enumerate() {
        let (row, column) = (at / stride, at % stride);
        let got = f64::from(got.to_f32());
        if column >= case.columns {
            assert!(got == -77.0, "row {row} column {column} is beyond the columns: {case:?}");
            continue;
        }
        let (want, bound) = oracle(row, column);
        let bound = bound + out_unit * (want.abs() + bound) + 2f64.powi(-25);
        assert!(
            (got - want).abs() <= bound,
            "row {row} column {column} is {got}, should be {want}, bound {bound}: {case:?}"
        );
    }
}

const BF16_UNIT: f64 = 1.0 / 256.0;
const F16_UNIT: f64 = 1.0 / 2048.0;

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn four_bits_with_bf16(case in cases()) {
        is_right::<f32>(case, w4a16(case, X::bf16, false), UNIT);
    }

    #[test]
    fn four_bits_with_f16(case in cases()) {
        is_right::<f16>(case, w4a16(case, X::f16, false), F16_UNIT);
    }

    #[test]
    fn symmetric_four_bits(case in cases()) {
        is_right::<f32>(case, w4a16(case, X::f16, true), UNIT);
        is_right::<bf16>(case, w4a16(case, X::bf16, true), BF16_UNIT);
    }

    #[test]
    fn four_bits_with_eight(case in cases()) {
        is_right::<f32>(case, w4a8(case), UNIT);
    }

    #[test]
    fn eight_bits_in_groups(case in cases()) {
        is_right::<f32>(case, int8_groups(case), UNIT);
    }

    #[test]
    fn eight_bits_per_channel(case in cases()) {
        is_right::<f32>(case, int8_channels(case), UNIT);
    }

    #[test]
    fn e4m3_with_e4m3(case in cases()) {
        is_right::<bf16>(case, fp8(case), BF16_UNIT);
        is_right::<f32>(case, fp8(case), UNIT);
    }

    #[test]
    fn e4m3_with_bf16(case in cases()) {
        is_right::<f32>(case, fp8_a16(case, X::bf16), UNIT);
    }

    #[test]
    fn e4m3_with_f16(case in cases()) {
        is_right::<f32>(case, fp8_a16(case, X::f16), UNIT);
    }

    #[test]
    fn codes_are_those_of_the_definition(seed: u64, rows in 1usize..12, steps in 1usize..80, bad in 0usize..4) {
        let (depth, random) = (32 * steps, &mut Random::new(seed));
        let mut x = random.normals(rows * depth);
        x[..32].fill(0.0);
        if bad > 0 {
            x[random.below(rows * depth)] = [f32::NAN, f32::INFINITY, 1e-38][bad - 1];
        }
        codes_are_right::<f32>(&x, depth);
        codes_are_right::<bf16>(&x, depth);
        codes_are_right::<f16>(&x, depth);
    }
}

/// The kernels against the same rules for weights (`codes`), which have tests of their own.
fn codes_are_right<T: Element>(x: &[f32], depth: usize) {
    let device = Device { order: Order::BACKWARDS, multiprocessors: 1 };
    let x: Vec<T> = x.iter().map(|x| T::from_f32(*x)).collect();
    let exact: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let as_bytes = |(codes, scales): (Vec<i8>, Vec<f32>)| (codes.into_iter().map(i8::cast_unsigned).collect(), scales);
    for (inputs, group, (codes, scales)) in [
        (Inputs::Int8Groups, 32, as_bytes(codes::int8(&exact, 32))),
        (Inputs::Int8Rows, depth, as_bytes(codes::int8(&exact, depth))),
        (Inputs::E4m3Rows, depth, codes::e4m3(&exact, depth)),
    ] {
        let codes: Vec<u8> = codes;
        let got = device.quantise(&x, depth, inputs).unwrap();
        let got_codes = got.codes();
        for at in 0..exact.len() {
            let (want, scale) = (scales[at / group], got.scale(at / depth, at % depth));
            assert!(
                scale.to_bits() == want.to_bits() || (scale.is_nan() && want.is_nan()),
                "{inputs:?}: scale of {at}"
            );
            // Where a scale is NaN codes mean nothing.
            assert!(want.is_nan() || got_codes[at] == codes[at], "{inputs:?}: code {at} is {:#x}", got_codes[at]);
        }
    }
}

/// All formats for one shape.
fn all(case: Case) -> [Filled; 8] {
    [
        w4a16(case, X::bf16, false),
        w4a16(case, X::f16, true),
        w4a8(case),
        int8_groups(case),
        int8_channels(case),
        fp8(case),
        fp8_a16(case, X::bf16),
        fp8_a16(case, X::f16),
    ]
}

/// 200 rows and one block for all cuts, or 1 to 64 rows and a block for each: the same bits.
#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let device = Device { order: Order::FORWARDS, multiprocessors: 2 };
    let shape = |rows| Case { seed: 5, rows, columns: 72, depth: 1056, group: 32, rest: 0, device };
    let whole = |filled: Filled, rows: usize| {
        let (weights, mut x) = (filled.weights, filled.x);
        let mut out = vec![0.0f32; rows * 72];
        device.gemm(&weights, &mut x, &mut out, 72).unwrap();
        out
    };
    let plans = [200, 1].map(|rows| launch(Weights::E4m3, Inputs::Bf16, [rows, 72, 1056], 2).unwrap());
    assert!(plans[0].finish.is_none() && plans[1].finish.is_some() && plans[0].splits == 2, "both ways are taken");
    for (index, large) in all(shape(200)).into_iter().enumerate() {
        let large = whole(large, 200);
        for rows in [1, 9, 17, 40] {
            let small = all(shape(rows)).into_iter().nth(index).expect("as many formats");
            // The weights and the first rows are drawn alike.
            let small = whole(small, rows);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&small), bits(&large[..rows * 72]), "format {index}, {rows} rows");
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_its_row_alone() {
    let device = Device { order: Order::FORWARDS, multiprocessors: 8 };
    let weights = Random::new(1).normals(8 * 64);
    let (four, (eight, groups)) = (codes::four(&weights), codes::int8(&weights, 32));
    let (channels, e4m3) = (codes::int8(&weights, 64), codes::e4m3(&weights, 64));
    let mut x = Random::new(2).normals(3 * 64);
    x[70] = f32::NEG_INFINITY;
    for (weights, inputs) in [
        (pack::four([8, 64], 32, &four.codes, &four.scales, &four.mins), Inputs::Int8Groups),
        (pack::int8_groups([8, 64], &eight, &groups), Inputs::Int8Groups),
        (pack::int8_channels([8, 64], &channels.0, &channels.1), Inputs::Int8Rows),
        (pack::e4m3([8, 64], &e4m3.0, &e4m3.1), Inputs::E4m3Rows),
    ] {
        let mut out = vec![0.0f32; 24];
        device.gemm(&weights.unwrap(), &mut device.quantise(&x, 64, inputs).unwrap(), &mut out, 8).unwrap();
        let is_nan: Vec<bool> = out.iter().map(|out| out.is_nan()).collect();
        assert_eq!(is_nan, [[false; 8], [true; 8], [false; 8]].concat(), "{inputs:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_a_launch() {
    let device = Device { order: Order::FORWARDS, multiprocessors: 8 };
    let weights = pack::e4m3([8, 64], &[0; 512], &[1.0; 8]).unwrap();
    let mut out = vec![0.0f32; 24];
    let told = |x: &mut X, out: &mut [f32], stride| device.gemm(&weights, x, out, stride).unwrap_err().to_string();
    let x = |depth: usize| X::f16(&vec![f16::ONE; 3 * depth], depth);
    assert_eq!(told(&mut x(32), &mut out, 8), "gemm: a row of x has 32 elements, must have 64");
    assert_eq!(told(&mut x(64), &mut out, 7), "gemm: out_stride is 7, must be columns to 2^31 - 1");
    assert_eq!(told(&mut x(64), &mut out[1..], 8), "gemm: out has 23 elements, must have 24");
    let depth = device.quantise(&[0.0f32; 48], 48, Inputs::Int8Rows).unwrap_err().to_string();
    assert_eq!(depth, "gemm: depth is 48, must be a multiple of 32");
}

#[test]
fn the_ports_integer_linears_conform() {
    let forwards = kernels(Device { order: Order::FORWARDS, multiprocessors: 4 });
    let backwards = kernels(Device { order: Order::BACKWARDS, multiprocessors: 132 });
    conformance::linear_matches_the_reference(&*forwards, WeightFormat::Int8, 1);
    conformance::linear_matches_the_reference(&*backwards, WeightFormat::Q4, 2);
}

#[test]
fn a_row_of_the_ports_integer_linears_has_the_same_bits_alone() {
    let kernels = kernels(Device { order: Order::FORWARDS, multiprocessors: 16 });
    conformance::linear_row_alone_and_in_a_batch_is_bit_equal(&*kernels, WeightFormat::Int8, 3);
    conformance::linear_row_alone_and_in_a_batch_is_bit_equal(&*kernels, WeightFormat::Q4, 4);
}

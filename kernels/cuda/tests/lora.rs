//! Adapters of any shape and type on any device: half precision activations, codes, many column splits, unaligned starts, tensor cores.

use half::{bf16, f16};
use proptest::prelude::*;
use std::ops::Range;
use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Adapter, Device, Element, LoraError, LoraKind, LoraRows};
use weft_cuda_kernels::pack::{self, Format, Half};
use weft_kernels::conformance::Random;

/// Columns skipped, columns, rank.
type Columns = (usize, usize, usize);

/// A call to be filled with numbers from a seed.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    inputs: usize,
    /// Elements by which x and out begin off alignment.
    offset: usize,
    /// Times the alignment of its format by which each A and B begins off a multiple of 16 bytes.
    slot_offset: usize,
    /// Rows without an adapter before each segment, rows in it, and its targets.
    segments: Vec<(usize, usize, Vec<Columns>)>,
    device: Device,
}

fn devices() -> impl Strategy<Value = Device> {
    (0u32..8, 1usize..200).prop_map(|(order, multiprocessors)| Device {
        order: Order {
            warps_backwards: order & 1 != 0,
            lanes_backwards: order & 2 != 0,
            blocks_backwards: order & 4 != 0,
        },
        multiprocessors,
    })
}

/// `rows`: of a segment.
fn cases(rows: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let rank = prop_oneof![0usize..20, Just(8), Just(16), Just(32), 33usize..70];
    let target = (0usize..40, prop_oneof![1usize..60, 250usize..700], rank);
    let segment = (0usize..3, rows, prop::collection::vec(target, 0..4));
    let inputs = prop_oneof![1usize..300, Just(256), Just(520)];
    let offsets = (prop_oneof![Just(0usize), 0usize..9], prop_oneof![Just(0usize), 0usize..9]);
    (any::<u64>(), inputs, offsets, prop::collection::vec(segment, 0..5), devices()).prop_map(
        |(seed, inputs, (offset, slot_offset), segments, device)| Case {
            seed,
            inputs,
            offset,
            slot_offset,
            segments,
            device,
        },
    )
}

fn any_rows() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(1usize), 1 => Just(0), 2 => 2usize..40]
}

/// Enough for chunks: at most one segment in five has a single row.
fn prompt_rows() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1usize), 4 => 3usize..40]
}

fn elements<T: Element>(random: &mut Random, len: usize) -> Vec<T> {
    (0..len).map(|_| T::from_f32(random.normal())).collect()
}

/// Half an adapter in a slot that begins where it is told.
struct Slot {
    memory: Vec<u128>,
    begin: usize,
    bytes: usize,
    /// What its bytes stand for.
    values: Vec<f32>,
}

impl Slot {
    fn new(values: &[f32], half: Half, rank: usize, format: Format, begin: usize) -> Self {
        let bytes = pack::half(values, half, rank, format).unwrap();
        let mut memory = vec![0u128; (begin + bytes.len()).div_ceil(16)];
        let all: &mut [u8] = bytes_of(&mut memory);
        all[begin..begin + bytes.len()].copy_from_slice(&bytes);
        Self { memory, begin, bytes: bytes.len(), values: pack::values(&bytes, half, rank, format).unwrap() }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `new` made the memory large enough for these bytes, all of them initialised.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<u8>().add(self.begin), self.bytes) }
    }
}

fn bytes_of(memory: &mut [u128]) -> &mut [u8] {
    let bytes = size_of_val(memory);
    // SAFETY: the same memory; u8 takes any bytes, and so does u128.
    unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), bytes) }
}

struct Filled {
    a: Slot,
    b: Slot,
    rank: usize,
    scale: f32,
    out_offset: usize,
    out_features: usize,
}

impl Filled {
    /// Values that have ranks of different sizes, as trained ones do.
    fn draw(
        random: &mut Random,
        inputs: usize,
        rank: usize,
        columns: Range<usize>,
        case: &Case,
        format: Format,
    ) -> Self {
        let begin = case.slot_offset * format.alignment();
        let half = |random: &mut Random, half, width: usize| {
            let values: Vec<f32> = (0..rank * width).map(|i| random.normal() * (0.25 + (i % 3) as f32)).collect();
            Slot::new(&values, half, rank, format, begin)
        };
        Self {
            a: half(random, Half::Shrink(inputs), inputs),
            b: half(random, Half::Grow(columns.len()), columns.len()),
            rank,
            scale: 0.5 + random.normal().abs(),
            out_offset: columns.start,
            out_features: columns.len(),
        }
    }

    fn adapter(&self) -> Adapter<'_> {
        let Self { rank, scale, out_offset, out_features, .. } = *self;
        Adapter { a: self.a.bytes(), b: self.b.bytes(), rank, scale, out_offset, out_features }
    }
}

/// Rows, and what changes them.
type Segment = (Range<usize>, Vec<Filled>);

/// Segments with their targets, rows in all, and columns of `out`.
fn fill(random: &mut Random, case: &Case, format: Format) -> (Vec<Segment>, usize, usize) {
    let (mut rows, mut stride, mut filled) = (0, 1, Vec::new());
    for (gap, len, targets) in &case.segments {
        let first = rows + gap;
        rows = first + len;
        let mut column = 0;
        let targets = targets.iter().map(|&(skipped, columns, rank)| {
            let offset = column + skipped;
            column = offset + columns;
            Filled::draw(random, case.inputs, rank, offset..column, case, format)
        });
        let targets: Vec<Filled> = targets.collect();
        filled.push((first..rows, targets));
        stride = stride.max(column + 3);
    }
    (filled, rows, stride)
}

fn rows_of(filled: &[Segment]) -> Vec<LoraRows<'_>> {
    filled.iter().map(|(rows, targets)| (rows.clone(), targets.iter().map(Filled::adapter).collect())).collect()
}

/// Half a unit in the last place of an element.
fn unit<X: Element>() -> f64 {
    match X::SUFFIX {
        "f32" => 1.0 / 16_777_216.0,
        "f16" => 1.0 / 2048.0,
        _ => 1.0 / 256.0,
    }
}

/// The kernels against sums in f64. An element may be off by the rounding of sums in f32, as in the conformance suite, by one rounding of
/// each target's result to `X`, and, on tensor cores, by what two numbers of `X` leave out of a row's A x: `unit` squared of its
/// largest rank, for each of them.
fn lora_is_right<X: Element>(case: &Case, kind: LoraKind) {
    let random = &mut Random::new(case.seed);
    let (filled, rows, stride) = fill(random, case, kind.format);
    let (x, out) =
        (elements::<X>(random, case.offset + rows * case.inputs), elements::<X>(random, case.offset + rows * stride));
    let mut got = out.clone();
    let x = &x[case.offset..];
    case.device.lora(x, case.inputs, &rows_of(&filled), &mut got[case.offset..], stride, kind).unwrap();

    let unit = unit::<X>();
    let (mut want, mut magnitude): (Vec<f64>, Vec<f64>) =
        out.iter().map(|value| (f64::from(value.to_f32()), 0.0)).unzip();
    let mut left_out = vec![0.0; out.len()];
    for (rows, targets) in &filled {
        for row in rows.clone() {
            let x: Vec<f64> = x[row * case.inputs..][..case.inputs].iter().map(|x| f64::from(x.to_f32())).collect();
            for Filled { a, b, rank, scale, out_offset, out_features } in targets {
                let sums: Vec<(f64, f64)> = (0..*rank)
                    .map(|r| {
                        let products = a.values[r * case.inputs..].iter().zip(&x).map(|(a, x)| f64::from(*a) * x);
                        products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()))
                    })
                    .collect();
                let most = sums.iter().fold(0.0, |most: f64, (sum, _)| most.max(sum.abs()));
                for column in 0..*out_features {
                    let at = case.offset + row * stride + out_offset + column;
                    for (r, (sum, all)) in sums.iter().enumerate() {
                        let b = f64::from(b.values[column * rank + r]) * f64::from(*scale);
                        want[at] += sum * b;
                        magnitude[at] += all * b.abs();
                        left_out[at] += unit * unit * most * b.abs();
                    }
                }
            }
        }
    }
    let sums = (8.0 + 4.0 * ((case.inputs + 70) as f64).sqrt()) / 16_777_216.0;
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        if magnitude[at] == 0.0 {
            assert_eq!(got.to_f32().to_bits(), out[at].to_f32().to_bits(), "element {at} has no adapter: {case:?}");
        }
        let error = (f64::from(got.to_f32()) - want).abs();
        let left_out = if kind.batch_invariant { 0.0 } else { left_out[at] };
        let bound = sums * (magnitude[at] + want.abs()) + unit * want.abs() + left_out;
        assert!(error <= bound, "element {at} is {}, should be {want}, bound {bound}: {kind:?} {case:?}", got.to_f32());
    }
}

/// Vectors alone.
fn plain(format: Format) -> LoraKind {
    LoraKind { format, batch_invariant: true }
}

/// Tensor cores where there are rows for them.
fn fast(format: Format) -> LoraKind {
    LoraKind { format, batch_invariant: false }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn activations_in_f32(case in cases(any_rows())) {
        for format in [Format::F32, Format::Bf16, Format::Int8, Format::Fp8] {
            lora_is_right::<f32>(&case, plain(format));
        }
    }

    #[test]
    fn activations_in_bf16(case in cases(any_rows())) {
        for format in [Format::Bf16, Format::Int8, Format::Fp8] {
            lora_is_right::<bf16>(&case, plain(format));
        }
    }

    #[test]
    fn activations_in_f16(case in cases(any_rows())) {
        for format in [Format::F16, Format::Int8, Format::Fp8] {
            lora_is_right::<f16>(&case, plain(format));
        }
    }

    #[test]
    fn bf16_on_tensor_cores(case in cases(prompt_rows())) {
        for format in [Format::Bf16, Format::Int8, Format::Fp8] {
            lora_is_right::<bf16>(&case, fast(format));
        }
    }

    #[test]
    fn f16_on_tensor_cores(case in cases(prompt_rows())) {
        for format in [Format::F16, Format::Int8, Format::Fp8] {
            lora_is_right::<f16>(&case, fast(format));
        }
    }

    /// On tensor cores a row has the same bits wherever it is in a chunk, whoever shares it, and however columns are split.
    #[test]
    fn rows_on_tensor_cores_do_not_depend_on_each_other(
        seed: u64, inputs in 1usize..300, rank in 1usize..70, columns in 1usize..700,
        others in 1usize..40, place in 0usize..40, devices in (devices(), devices()), is_bf16: bool,
    ) {
        let place = place % (others + 1);
        if is_bf16 {
            row_is_the_same::<bf16>(seed, [inputs, rank, columns, others, place], devices, Format::Fp8);
        } else {
            row_is_the_same::<f16>(seed, [inputs, rank, columns, others, place], devices, Format::F16);
        }
    }
}

/// A row first among three, and at `place` among other rows.
fn row_is_the_same<X: Element>(
    seed: u64,
    [inputs, rank, columns, others, place]: [usize; 5],
    devices: (Device, Device),
    format: Format,
) {
    let random = &mut Random::new(seed);
    let case = Case { seed, inputs, offset: 0, slot_offset: 0, segments: vec![], device: devices.0 };
    let filled = Filled::draw(random, inputs, rank, 0..columns, &case, format);
    let run = |device: Device, place: usize, x: &[X], out: &[X]| -> Vec<u32> {
        let (rows, mut out) = (x.len() / inputs, out.to_vec());
        device.lora(x, inputs, &[(0..rows, vec![filled.adapter()])], &mut out, columns, fast(format)).unwrap();
        out[place * columns..][..columns].iter().map(|value| value.to_f32().to_bits()).collect()
    };
    let (row, base) = (elements::<X>(random, inputs), elements::<X>(random, columns));
    let among = |random: &mut Random, others: usize, place: usize| {
        // Neighbours of another size, so that what they share shows.
        let mut x: Vec<X> = (0..others * inputs).map(|_| X::from_f32(50.0 * random.normal())).collect();
        let mut out = elements::<X>(random, others * columns);
        x.splice(place * inputs..place * inputs, row.iter().copied());
        out.splice(place * columns..place * columns, base.iter().copied());
        (x, out)
    };
    let others = others.max(2);
    let (x, out) = among(random, 2, 0);
    let want = run(devices.0, 0, &x, &out);
    let (x, out) = among(random, others, place);
    assert_eq!(run(devices.1, place, &x, &out), want, "row {place} of {}", others + 1);
}

const DEVICE: Device = Device { order: Order::FORWARDS, multiprocessors: 8 };

/// One adapter whose A and B are these numbers, for rows of `inputs` times `x`; the elements that come out, on zero.
fn constant<X: Element>([rows, inputs, rank, columns]: [usize; 4], x: f32, a: f32, b: f32, kind: LoraKind) -> Vec<f32> {
    let a = pack::half(&vec![a; rank * inputs], Half::Shrink(inputs), rank, kind.format).unwrap();
    let b = pack::half(&vec![b; rank * columns], Half::Grow(columns), rank, kind.format).unwrap();
    let adapter = Adapter { a: &a, b: &b, rank, scale: 1.0, out_offset: 0, out_features: columns };
    let mut out = vec![X::from_f32(0.0); rows * columns];
    let x = vec![X::from_f32(x); rows * inputs];
    DEVICE.lora(&x, inputs, &[(0..rows, vec![adapter])], &mut out, columns, kind).unwrap();
    out.into_iter().map(Element::to_f32).collect()
}

/// A x beyond the range of f16, and below it: tensor cores take it all the same.
#[test]
fn what_lies_between_the_products_may_leave_the_range_of_f16() {
    // 128 products: 1.28e7 and 2^-17. All numbers are exact in f16.
    for (x, a, b) in [(1000.0, 100.0, 2f32.powi(-20)), (2f32.powi(-12), 2f32.powi(-12), 1000.0)] {
        let want = x * a * b * 128.0 * 16.0;
        for format in [Format::F16, Format::Int8, Format::Fp8] {
            for got in constant::<f16>([20, 128, 16, 40], x, a, b, fast(format)) {
                assert!((got / want - 1.0).abs() < 1e-3, "{got}, should be {want}: {format:?}");
            }
        }
    }
}

/// The largest ranks of each path, and the error beyond.
#[test]
fn ranks_up_to_the_limit_are_taken_and_larger_ones_refused() {
    for (rank, kind) in
        [(512, fast(Format::Bf16)), (513, fast(Format::Bf16)), (768, plain(Format::Int8)), (768, fast(Format::Fp8))]
    {
        for got in constant::<bf16>([3, 8, rank, 5], 1.0, 0.5, 0.5, kind) {
            let want = 8.0 * 0.25 * rank as f32;
            assert!((got / want - 1.0).abs() < 1.0 / 256.0, "{got}, should be {want}");
        }
    }
    let bytes = vec![0u128; 769];
    // SAFETY: the same memory; u8 takes any bytes.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), 769 * 2) };
    let adapter = Adapter { a: bytes, b: bytes, rank: 769, scale: 1.0, out_offset: 0, out_features: 1 };
    let x = [bf16::ONE; 3];
    let error = DEVICE.lora(&x, 1, &[(0..3, vec![adapter])], &mut x.clone(), 1, plain(Format::Bf16)).unwrap_err();
    assert!(matches!(error, LoraError::Table(_)));
    assert_eq!(error.to_string(), "lora: rank 769 exceeds 768 of the mixed kernel");
}

/// What is not finite stays in its row, and comes out as such.
#[test]
fn a_row_that_is_not_finite_does_not_spread() {
    for kind in [plain(Format::F16), fast(Format::F16), plain(Format::Fp8), fast(Format::Fp8)] {
        for rows in [2usize, 3, 17] {
            let (inputs, rank, columns) = (40, 5, 30);
            let a = pack::half(&vec![1.0; rank * inputs], Half::Shrink(inputs), rank, kind.format).unwrap();
            let b = pack::half(&vec![1.0; rank * columns], Half::Grow(columns), rank, kind.format).unwrap();
            let adapter = Adapter { a: &a, b: &b, rank, scale: 1.0, out_offset: 0, out_features: columns };
            let mut x = vec![f16::ONE; rows * inputs];
            x[inputs + 7] = f16::INFINITY;
            let mut out = vec![f16::ZERO; rows * columns];
            DEVICE.lora(&x, inputs, &[(0..rows, vec![adapter])], &mut out, columns, kind).unwrap();
            for (at, value) in out.iter().enumerate() {
                let is_finite = at / columns != 1;
                // Without tensor cores it is what the sum says, whatever lies beyond the rank.
                assert!(is_finite || !kind.batch_invariant || *value == f16::INFINITY, "{value} for an infinite sum");
                assert_eq!(value.is_finite(), is_finite, "row {} of {rows}, {kind:?}", at / columns);
                assert!(!is_finite || value.to_f32() == 200.0, "{value}");
            }
        }
    }
}

//! The shim's product against sums in f64.

use crate::support::{device, get, put};
use half::{bf16, f16};
use proptest::prelude::*;
use weft_cuda_device::{Buffer, Device, Matmul, Stream, Type};
use weft_kernels::conformance::Random;

fn rounded(value: f32, of: Type) -> f32 {
    match of {
        Type::F32 => value,
        Type::Bf16 => bf16::from_f32(value).to_f32(),
        Type::F16 => f16::from_f32(value).to_f32(),
    }
}

fn put_as(device: &Device, stream: &Stream, values: &[f32], of: Type) -> Buffer {
    match of {
        Type::F32 => put(device, stream, values),
        Type::Bf16 => put(device, stream, &values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
        Type::F16 => put(device, stream, &values.iter().map(|x| f16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
    }
}

fn get_as(device: &Device, stream: &Stream, buffer: &Buffer, of: Type) -> Vec<f32> {
    let halves = || get::<u16>(device, stream, buffer).unwrap().into_iter();
    match of {
        Type::F32 => get(device, stream, buffer).unwrap(),
        Type::Bf16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        Type::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
    }
}

fn types() -> impl Strategy<Value = (Type, Type)> {
    use Type::{Bf16, F16, F32};
    prop_oneof![Just((F32, F32)), Just((Bf16, Bf16)), Just((Bf16, F32)), Just((F16, F16)), Just((F16, F32))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_product_is_what_sums_in_f64_say(
        seed: u64, rows in 1usize..9, inputs in 1usize..70, outputs in 1usize..20, gaps in (0usize..3, 0usize..3),
        (of, out_of) in types(), adds: bool,
    ) {
        let (device, random) = (device(seed), &mut Random::new(seed));
        let stream = device.stream("s").unwrap();
        let (x_stride, out_stride) = (inputs + gaps.0, outputs + gaps.1);
        let mut values = |len: usize, of: Type| -> Vec<f32> { (0..len).map(|_| rounded(random.normal(), of)).collect() };
        let (x, w, before) = (values(rows * x_stride, of), values(outputs * inputs, of), values(rows * out_stride, out_of));
        let buffers = [(&x, of), (&w, of), (&before, out_of)].map(|(values, of)| put_as(&device, &stream, values, of));
        let [x_at, w_at, out_at] = buffers.each_ref().map(Buffer::all);
        let matmul = Matmul { rows, inputs, outputs, x: x_at, x_stride, w: w_at, of, out: out_at, out_stride, out_of, adds };
        stream.matmul(&matmul).unwrap();
        let got = get_as(&device, &stream, &buffers[2], out_of);
        for (at, got) in got.iter().enumerate() {
            let (row, column) = (at / out_stride, at % out_stride);
            if column >= outputs {
                prop_assert_eq!(got.to_bits(), before[at].to_bits(), "the gap at {} is another's", at);
                continue;
            }
            let products = (0..inputs).map(|i| f64::from(x[row * x_stride + i]) * f64::from(w[column * inputs + i]));
            let (sum, magnitude) = products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
            let start = if adds { f64::from(before[at]) } else { 0.0 };
            let want = start + sum;
            // One rounding of f32 for each product and each addition, of at most what has been summed; then that of the result: half a unit
            // in its last place, or of the smallest numbers of f16. A hundredth for the products of these.
            let half_unit = match out_of { Type::F32 => 2f64.powi(-24), Type::Bf16 => 2f64.powi(-8), Type::F16 => 2f64.powi(-11) };
            let sums = (inputs + 2) as f64 * 2f64.powi(-24) * (magnitude + start.abs());
            let bound = 1.01 * (sums + half_unit * want.abs()) + 3e-8;
            prop_assert!((f64::from(*got) - want).abs() <= bound, "{} at {}, should be {}, bound {}", got, at, want, bound);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let device = device(0);
    let stream = device.stream("s").unwrap();
    let [x, w, out] = [64, 64, 64].map(|bytes| device.allocate(bytes).unwrap());
    let fits = Matmul {
        rows: 4,
        inputs: 8,
        outputs: 4,
        x: x.all(),
        x_stride: 8,
        w: w.all(),
        of: Type::Bf16,
        out: out.all(),
        out_stride: 4,
        out_of: Type::F32,
        adds: false,
    };
    let says =
        |matmul: Matmul<'_>| stream.matmul(&matmul).map_or_else(|error| error.to_string(), |()| "fits".to_owned());
    assert_eq!(says(fits), "fits");
    assert_eq!(says(Matmul { rows: 0, ..fits }), "matmul: rows is 0, must be 1 to 2147483647");
    assert_eq!(says(Matmul { rows: 5, ..fits }), "matmul: x is of 64 bytes, must be of 80 bytes at least");
    assert_eq!(says(Matmul { outputs: 5, ..fits }), "matmul: out_stride is 4, must be 5 to 2147483647");
    assert_eq!(says(Matmul { x_stride: 7, ..fits }), "matmul: x_stride is 7, must be 8 to 2147483647");
    assert_eq!(says(Matmul { out_of: Type::F16, ..fits }), "matmul: out_of is F16, must be Bf16 or F32");
    assert_eq!(
        says(Matmul { x_stride: usize::MAX / 2, ..fits }),
        "matmul: x_stride is 9223372036854775807, must be 8 to 2147483647"
    );
    assert!(says(Matmul { out: x.all(), ..fits }).contains("must be apart from x and w"));
    let odd = device.allocate(129).unwrap();
    assert!(says(Matmul { x: odd.part(1..129).unwrap(), ..fits }).contains("must be at a multiple of 2"));
}

//! All linears of the 30 layers of a 135M Llama by Weft's kernels, by the crate `gemm`, and by candle, which builds on it for floats and
//! has products of its own for ggml's formats. `run.sh` adds oneDNN by way of PyTorch.
//!
//! `weft-matmul [--threads 2] [--repeats 5]`. One line per library, format and number of rows: milliseconds for all layers (the fastest
//! of the repeats) and 10⁹ operations a second, two for each weight and row. Every layer has weights of its own, which come from memory.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use gemm::Parallelism;
use std::time::Instant;
use weft_kernels::conformance::Random;
use weft_kernels::{CpuOptions, PackedLinear, WeightFormat, cpu};

const LAYERS: usize = 30;
/// Outputs and inputs: fused q/k/v, o, fused gate/up, down.
const LINEARS: [[usize; 2]; 4] = [[960, 576], [576, 576], [3072, 576], [576, 1536]];
const ROWS: [usize; 4] = [1, 8, 32, 256];

/// All linears of all layers, made by one library.
type Layers<W> = Vec<(W, [usize; 2])>;

fn main() {
    let [mut threads, mut repeats] = [2, 5];
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{arg} needs a number"));
        match arg.as_str() {
            "--threads" => threads = value,
            "--repeats" => repeats = value,
            other => panic!("unknown argument {other}: --threads, --repeats"),
        }
    }
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    let kernels = cpu(CpuOptions { threads, isa: None });
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Q4] {
        let name = format!("weft {} {format:?}", kernels.isa());
        let layers: Layers<PackedLinear> =
            layers(|w, [outputs, inputs]| kernels.pack_linear(w, outputs, inputs, format));
        report(&name, repeats, &layers, |w, _, x, _, out| kernels.linear(x, w, out));
    }
    let floats: Layers<Vec<f32>> = layers(|w, _| w.to_vec());
    report("gemm F32", repeats, &floats, |w, shape, x, rows, out| multiply(w, shape, x, rows, out, threads));
    drop(floats);
    let tensors: Layers<Tensor> = layers(|w, shape| tensor(w, shape).t().expect("a matrix"));
    report("candle F32", repeats, &tensors, |w, [_, inputs], x, rows, out| {
        copy(tensor(x, [rows, *inputs]).matmul(w).expect("shapes fit"), out);
    });
    drop(tensors);
    for format in [GgmlDType::Q8_0, GgmlDType::Q4_1] {
        let matrices: Layers<QMatMul> = layers(|w, shape| {
            let quantised = QTensor::quantize(&tensor(w, shape), format).expect("a format of ggml");
            QMatMul::from_qtensor(quantised).expect("a matrix")
        });
        report(&format!("candle {format:?}"), repeats, &matrices, |w, [_, inputs], x, rows, out| {
            copy(w.forward(&tensor(x, [rows, *inputs])).expect("shapes fit"), out);
        });
    }
}

fn layers<W>(make: impl Fn(&[f32], [usize; 2]) -> W) -> Layers<W> {
    let values = Random::new(1).normals(3072 * 576);
    let one = |[outputs, inputs]: [usize; 2]| (make(&values[..outputs * inputs], [outputs, inputs]), [outputs, inputs]);
    (0..LAYERS).flat_map(|_| LINEARS).map(one).collect()
}

fn report<W>(
    name: &str,
    repeats: usize,
    layers: &Layers<W>,
    product: impl Fn(&W, &[usize; 2], &[f32], usize, &mut [f32]),
) {
    let weights: usize = layers.iter().map(|(_, [outputs, inputs])| outputs * inputs).sum();
    for rows in ROWS {
        let x = Random::new(2).normals(rows * 1536);
        let mut out = vec![0.0; rows * 3072];
        let mut fastest = f64::INFINITY;
        for _ in 0..=repeats {
            let start = Instant::now();
            for (w, shape) in layers {
                let [outputs, inputs] = *shape;
                product(w, shape, &x[..rows * inputs], rows, &mut out[..rows * outputs]);
            }
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        let rate = 2.0 * (weights * rows) as f64 / fastest / 1e9;
        println!("{name:<24} {rows:>4} rows {:>9.2} ms {rate:>8.1} GOP/s", fastest * 1e3);
    }
}

fn tensor(values: &[f32], [rows, cols]: [usize; 2]) -> Tensor {
    Tensor::from_slice(values, (rows, cols), &Device::Cpu).expect("as many values as the shape says")
}

fn copy(from: Tensor, to: &mut [f32]) {
    to.copy_from_slice(&from.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("floats"));
}

/// `out [rows, outputs] = x [rows, inputs] wᵀ`, `w [outputs, inputs]`.
fn multiply(w: &[f32], [outputs, inputs]: &[usize; 2], x: &[f32], rows: usize, out: &mut [f32], threads: usize) {
    let (outputs, inputs) = (*outputs, *inputs);
    assert!(w.len() == outputs * inputs && x.len() == rows * inputs && out.len() == rows * outputs);
    // SAFETY: the lengths were just checked, and the strides are those of row-major matrices.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            outputs as isize,
            false,
            x.as_ptr(),
            1,
            inputs as isize,
            w.as_ptr(),
            inputs as isize,
            1,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::Rayon(threads),
        );
    }
}

//! What this machine could do at most with weights in the format that was served: measured, not read from a data sheet.

use serde::Serialize;
use std::time::Instant;
use weft_kernels::{CpuOptions, Kernels, WeightFormat};

const REPEATS: usize = 20;

#[derive(Serialize)]
pub(super) struct Ceiling {
    /// The format that both were measured with.
    pub(super) format: &'static str,
    pub(super) threads: usize,
    /// One large product whose matrix a second-level cache holds.
    pub(super) gflop_s: f64,
    /// One row through a matrix that no cache holds: bytes of weights read.
    pub(super) gb_s: f64,
    /// Bytes that one weight takes, scales included.
    pub(super) weight_bytes: f64,
}

/// The format of the layers under a dtype's name; one that is not known here is measured with bf16.
fn format_of(dtype: &str) -> (WeightFormat, &'static str) {
    match dtype {
        "f32" => (WeightFormat::F32, "f32"),
        "int8" => (WeightFormat::Int8, "int8"),
        "q4" => (WeightFormat::Q4, "q4"),
        _ => (WeightFormat::Bf16, "bf16"),
    }
}

/// Threads that these settings of `weft up` compute with; 0: one for each core.
pub(super) fn threads(settings: &[String]) -> usize {
    let name = "--worker-threads";
    let joined = settings.iter().find_map(|setting| setting.strip_prefix(name)?.strip_prefix('='));
    let apart = || settings.iter().position(|setting| setting == name).and_then(|at| settings.get(at + 1));
    joined.or_else(|| apart().map(String::as_str)).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Ceiling {
    /// Takes a second or two. `threads` 0: one for each core.
    pub(super) fn measure(dtype: &str, threads: usize) -> Self {
        let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
        let kernels = weft_kernels::cpu(CpuOptions { threads, isa: None });
        let (format, name) = format_of(dtype);
        let (inputs, outputs) = (4096, 16384);
        let (seconds, bytes) = fastest(kernels.as_ref(), format, 1, inputs, outputs);
        let (multiply, _) = fastest(kernels.as_ref(), format, 512, 512, 1024);
        Self {
            format: name,
            threads,
            gflop_s: 2.0 * (512 * 512 * 1024) as f64 / multiply / 1e9,
            gb_s: bytes / seconds / 1e9,
            weight_bytes: bytes / (inputs * outputs) as f64,
        }
    }

    /// The part of the bandwidth that so many weights a second take.
    pub(super) fn share_of_bytes(&self, weights_per_second: f64) -> f64 {
        weights_per_second * self.weight_bytes / 1e9 / self.gb_s
    }
}

/// Seconds of the fastest of some products, and bytes of the matrix. Other work on the machine only ever adds time.
fn fastest(kernels: &dyn Kernels, format: WeightFormat, rows: usize, inputs: usize, outputs: usize) -> (f64, f64) {
    let w = kernels.pack_linear(&vec![0.01; inputs * outputs], outputs, inputs, format);
    let x = vec![0.5; rows * inputs];
    let mut out = vec![0.0; rows * outputs];
    let run = || {
        let start = Instant::now();
        kernels.linear(&x, &w, &mut out);
        start.elapsed().as_secs_f64()
    };
    (std::iter::repeat_with(run).take(REPEATS).fold(f64::INFINITY, f64::min), w.bytes() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_read_from_both_ways_to_write_them() {
        let settings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(threads(&settings(&["--dtype", "bf16"])), 0);
        assert_eq!(threads(&settings(&["--worker-threads", "3"])), 3);
        assert_eq!(threads(&settings(&["--worker-threads=4"])), 4);
    }
}

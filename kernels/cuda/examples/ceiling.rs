//! Prints the predicted ceiling of an 8B model in bf16 on an H100, from the bytes that the launches of a step move.

use weft_cuda_kernels::model::{H100_BYTES_PER_SECOND, H100_MULTIPROCESSORS, LLAMA_8B};
use weft_cuda_kernels::pack::Format;
use weft_cuda_kernels::table;

fn main() -> Result<(), table::Error> {
    let seconds = |bytes: usize| bytes as f64 / H100_BYTES_PER_SECOND;
    let base = LLAMA_8B.base_bytes();
    println!(
        "predicted, not measured: Llama 8B in bf16 on an H100, decode, base {:.2} GB = {:.2} ms a step",
        base as f64 / 1e9,
        seconds(base) * 1e3
    );
    println!("distinct r16 adapters   launches   adapter GB   adds ms   A again from L2, GB   ceiling, % of base");
    for format in [Format::Bf16, Format::Int8, Format::Fp8] {
        for adapters in [1, 8, 32, 64] {
            let step = LLAMA_8B.decode(&vec![16; adapters], format, H100_MULTIPROCESSORS)?;
            println!(
                "{adapters:>16} {:<4}  {:>10} {:>12.2} {:>9.2} {:>21.2} {:>20.0}",
                format.suffix(),
                step.launches,
                step.adapter_bytes as f64 / 1e9,
                seconds(step.adapter_bytes) * 1e3,
                step.again_bytes as f64 / 1e9,
                LLAMA_8B.ceiling(step) * 100.0,
            );
        }
    }
    println!(
        "predicted, not measured: a step of 64 rows, each with an adapter of its own (r16, bf16), over several H100 with NVLink"
    );
    println!("devices   base GB each   adapter GB each   sums   summed MB   ms, starting sums left out");
    for devices in [1, 2, 4, 8] {
        let share = LLAMA_8B.share(devices, &[16; 64], Format::Bf16);
        println!(
            "{devices:>7} {:>14.2} {:>17.2} {:>6} {:>11.1} {:>28.2}",
            share.base_bytes as f64 / 1e9,
            share.adapter_bytes as f64 / 1e9,
            share.sums,
            share.summed_bytes as f64 / 1e6,
            share.seconds(devices) * 1e3,
        );
    }
    Ok(())
}

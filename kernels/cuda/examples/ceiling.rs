//! Prints the predicted ceiling of an 8B model in bf16 on an H100, from the bytes that the launches of a step move.

use weft_cuda_kernels::attention::Path;
use weft_cuda_kernels::model::{
    H100_BYTES_PER_SECOND, H100_F32_OPERATIONS_PER_SECOND, H100_MULTIPROCESSORS, H100_TENSOR_OPERATIONS_PER_SECOND,
    LLAMA_8B, LLAMA_8B_ATTENTION,
};
use weft_cuda_kernels::pack::Format;
use weft_cuda_kernels::{attention, table};

/// What no table can be made for.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Lora(#[from] table::Error),
    #[error(transparent)]
    Attention(#[from] attention::Error),
}

fn main() -> Result<(), Error> {
    steps()?;
    prompts()?;
    Ok(())
}

/// Attention over a prompt, by operations over the rate of what does them; beside it the products with the base's weights.
fn prompts() -> Result<(), attention::Error> {
    println!("predicted, not measured: a prompt of Llama 8B in bf16 on an H100, by operations");
    println!("tokens   weights, ms   attention, TFLOP   in f32, ms   on tensor cores, ms");
    for tokens in [512, 2048, 8192, 32_768] {
        let work = LLAMA_8B.prompt(&LLAMA_8B_ATTENTION, Path::Tensor, tokens)?;
        let milliseconds = |operations: usize, rate: f64| operations as f64 / rate * 1e3;
        println!(
            "{tokens:>6} {:>13.1} {:>18.2} {:>12.1} {:>21.1}",
            milliseconds(LLAMA_8B.product_operations(tokens), H100_TENSOR_OPERATIONS_PER_SECOND),
            work.operations as f64 / 1e12,
            milliseconds(work.operations, H100_F32_OPERATIONS_PER_SECOND),
            milliseconds(work.products, H100_TENSOR_OPERATIONS_PER_SECOND),
        );
    }
    Ok(())
}

/// Steps of single rows, by bytes over bandwidth.
fn steps() -> Result<(), table::Error> {
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

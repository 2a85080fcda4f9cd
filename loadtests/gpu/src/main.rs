//! `weft-gpu`: one call that measures the engine on a GPU, and prints one JSON document.
//!
//! The base is a shape without a meaning: every weight is the same small number, which takes as long as any other. Adapters are random.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use weft_cuda_device::driver::Driver;
use weft_gpu::measure::{self, Plan, Report};
use weft_gpu::shape;

/// Measures decoding with many adapters on a GPU, against the base alone and against the floor of its memory.
#[derive(Parser)]
struct Args {
    /// What `scripts/build-cuda.sh` made.
    #[arg(long, default_value = "target/cuda/weft.fatbin")]
    kernels: PathBuf,
    /// Number of the device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Sizes of the base.
    #[arg(long, value_enum, default_value_t = Shape::Llama8b)]
    shape: Shape,
    /// Sequences that decode at once.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// Positions that each has behind it.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// How long each case is measured.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Run in the shim on this processor: shows that the measurement runs.
    #[arg(long)]
    shim: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// Llama 3.1 8B.
    #[value(name = "llama-8b")]
    Llama8b,
    /// Two small layers.
    Tiny,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let driver = driver(&args)?;
    let plan = Plan {
        config: match args.shape {
            Shape::Llama8b => shape::llama_8b(),
            Shape::Tiny => shape::tiny(),
        },
        rows: args.rows,
        context: args.context,
        each: Duration::try_from_secs_f64(args.seconds).context("--seconds is not a length of time")?,
    };
    let report: Report = measure::run(driver, &plan)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

fn driver(args: &Args) -> Result<Arc<dyn Driver>> {
    #[cfg(feature = "shim")]
    if args.shim {
        return Ok(weft_cuda_device::shim::Shim::new(&weft_cuda_device::shim::Options::default()));
    }
    #[cfg(not(feature = "shim"))]
    anyhow::ensure!(!args.shim, "--shim: this build has no shim");
    #[cfg(feature = "cuda")]
    {
        use weft_cuda_device::cuda;
        Ok(cuda::Cuda::open(args.device, cuda::read_kernels(&args.kernels)?)?)
    }
    #[cfg(not(feature = "cuda"))]
    anyhow::bail!("this build has no CUDA (--features cuda): device {} cannot be opened", args.device)
}

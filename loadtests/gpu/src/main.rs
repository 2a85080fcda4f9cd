//! `weft-gpu`: one call that measures the engine on a GPU, and prints one JSON document.
//!
//! The base is a shape without a meaning: every weight is the same small number, which takes as long as any other. Adapters are random.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use weft_base_model::OpenOptions;
use weft_cuda_device::driver::Driver;
use weft_gpu::{Part, Plan, shape};

/// Measures the engine with many adapters on a GPU, against the base alone and against floors. Prints JSON, and the goals on stderr.
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
    /// A GGUF file or a Hugging Face folder, for the part `model`.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Parts to measure; all if there are none.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Sequences that decode at once, and adapters that there is room for where there are more of them.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// Positions that each decoding sequence has behind it.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Tokens of prompts that come alone.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048])]
    prompts: Vec<usize>,
    /// Tokens of the prompts, and of the answers, of requests that come among others.
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [64, 32])]
    request: Vec<usize>,
    /// How many adapters requests are for, beside 0.5 to 16 times those that there is room for.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 2000])]
    registered: Vec<usize>,
    /// How long it all may take; what is measured shares it.
    #[arg(long, default_value_t = 400.0)]
    seconds: f64,
    /// Bring logits to the host instead of tokens that the device chose.
    #[arg(long)]
    logits: bool,
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
    let request = args.request.as_slice().try_into().context("--request is not two numbers, as in 64,32")?;
    let open = |path: &PathBuf| weft_base_model::open(path, &OpenOptions::default()).context("open --model");
    let plan = Plan {
        config: match args.shape {
            Shape::Llama8b => shape::llama_8b(),
            Shape::Tiny => shape::tiny(),
        },
        model: args.model.as_ref().map(open).transpose()?,
        rows: args.rows,
        context: args.context,
        prompts: args.prompts,
        request,
        registered: args.registered,
        time: Duration::try_from_secs_f64(args.seconds).context("--seconds is not a length of time")?,
        logits: args.logits,
        parts: if args.only.is_empty() { Part::value_variants().to_vec() } else { args.only },
    };
    let report = weft_gpu::run(driver, &plan)?;
    eprint!("{}", report.goals_table());
    println!("{}", serde_json::to_string_pretty(&report)?);
    let failures = report.failures();
    anyhow::ensure!(failures.is_empty(), "{failures}");
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

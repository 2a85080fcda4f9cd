//! `weft-loadtest`: traffic for any endpoint, and scenarios that start a mesh of their own.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use weft_loadtest::arrivals::Arrivals;
use weft_loadtest::client::Client;
use weft_loadtest::event::Api;
use weft_loadtest::lengths::Lengths;
use weft_loadtest::popularity::Popularity;
use weft_loadtest::report::{Report, Slo};
use weft_loadtest::scenario::{self, Setup, cliff, cold, fairness, long_prompt, many, start};
use weft_loadtest::target::{Target, read_keys};
use weft_loadtest::trace::Trace;
use weft_loadtest::weft::Launcher;
use weft_loadtest::workload::{Source, Workload};
use weft_loadtest::{chart, dispatch};

#[derive(Parser)]
#[command(name = "weft-loadtest", version, about = "Load tests of Weft and of any OpenAI or LoRAX endpoint")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send traffic to an endpoint and report
    Run(Box<Run>),
    /// Write the requests of a workload as JSON lines, to be sent with `run --trace`
    Trace(TraceOptions),
    /// Start a mesh and answer one question about many adapters
    Scenario(Box<Scenario>),
}

#[derive(Args)]
struct WorkloadOptions {
    /// When requests come: poisson:RATE, gamma:RATE,CV, uniform:RATE or closed:CONCURRENCY, for each tenant
    #[arg(long, default_value = "poisson:1")]
    arrivals: Arrivals,
    /// Which adapter each asks for: power:ALPHA (as S-LoRA's generator), uniform or round-robin
    #[arg(long, default_value = "power:1")]
    popularity: Popularity,
    /// Model names; none: the base
    #[arg(long, value_delimiter = ',')]
    adapters: Vec<String>,
    /// So many more names, `{}` in --adapter-name standing for the number
    #[arg(long, default_value_t = 0)]
    adapter_count: usize,
    #[arg(long, default_value = "adapter-{}")]
    adapter_name: String,
    /// Tenants that send alike, each with the key of its name
    #[arg(long, value_delimiter = ',', default_value = "default")]
    tenants: Vec<String>,
    /// Tokens of prompts: N or MIN-MAX
    #[arg(long, default_value = "8-512")]
    prompt_tokens: Lengths,
    /// Tokens of answers: N or MIN-MAX
    #[arg(long, default_value = "8-512")]
    output_tokens: Lengths,
    /// Seconds during which requests are sent
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Most requests of each tenant
    #[arg(long, default_value_t = 100_000)]
    requests_max: usize,
    /// The same seed gives the same trace
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Args)]
struct TraceOptions {
    #[command(flatten)]
    workload: WorkloadOptions,
    /// The file
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Run {
    /// The endpoint, e.g. http://127.0.0.1:8080
    #[arg(long)]
    url: String,
    /// What it speaks
    #[arg(long, value_enum, default_value = "completions")]
    api: Api,
    /// Prompts of completions are token ids below this; without it, words
    #[arg(long)]
    vocabulary: Option<u32>,
    /// Bearer token of every tenant that --keys has none for
    #[arg(long, env = "WEFT_LOADTEST_KEY", hide_env_values = true)]
    key: Option<String>,
    /// File with a line TENANT=SECRET for each
    #[arg(long)]
    keys: Option<PathBuf>,
    #[command(flatten)]
    workload: WorkloadOptions,
    /// Send this trace instead of the workload of the flags
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Makes the prompts; drawn at random unless given, so that no run repeats another's
    #[arg(long)]
    prompt_salt: Option<u64>,
    /// Most requests of open loops in flight; more are dropped and counted
    #[arg(long, default_value_t = 2048)]
    in_flight_max: usize,
    /// Seconds after which an answer has failed
    #[arg(long, default_value_t = 300)]
    timeout_s: u64,
    /// An answer is good with its first token within so many ms ...
    #[arg(long, default_value_t = Slo::default().ttft_ms)]
    slo_ttft_ms: f64,
    /// ... and each further one within so many on average
    #[arg(long, default_value_t = Slo::default().tpot_ms)]
    slo_tpot_ms: f64,
    /// Where the report goes
    #[arg(long, default_value = "target/bench/load.json")]
    out: PathBuf,
    /// Where a chart of the first tokens goes
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Where a JSON line for each request goes
    #[arg(long)]
    requests: Option<PathBuf>,
}

#[derive(Args)]
struct Scenario {
    #[command(subcommand)]
    which: Which,
    /// The program weft; default: beside this one
    #[arg(long, global = true)]
    weft: Option<PathBuf>,
    /// A setting of `weft up`, e.g. --set=--dtype=bf16; may be given several times
    #[arg(long = "set", global = true, allow_hyphen_values = true)]
    settings: Vec<String>,
    /// The same seed gives the same arrivals and lengths
    #[arg(long, global = true, default_value_t = 0)]
    seed: u64,
    /// Folder for JSON and SVG
    #[arg(long, global = true, default_value = "target/bench")]
    out: PathBuf,
    /// Leave with status 1 if a promise does not hold
    #[arg(long, global = true)]
    check: bool,
}

#[derive(Subcommand)]
enum Which {
    /// S-LoRA's question: 5 against 2,000 adapters
    Many(many::Options),
    /// The first token when adapters outnumber slots
    Cliff(cliff::Options),
    /// Gaps between tokens while long prompts come
    LongPrompt(long_prompt::Options),
    /// One tenant cycles cold adapters at full speed
    Fairness(fairness::Options),
    /// The first token of adapters that only the object store has, by stages
    Cold(cold::Options),
    /// Seconds to ready, and memory
    Start(start::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = match cli.command {
        Command::Run(run) => runtime.block_on(send(*run)).map(|()| true),
        Command::Trace(options) => write_trace(options).map(|()| true),
        Command::Scenario(scenario) => runtime.block_on(play(*scenario)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl WorkloadOptions {
    fn trace(self) -> Result<Trace> {
        let mut models = self.adapters;
        models.extend((0..self.adapter_count).map(|n| self.adapter_name.replace("{}", &n.to_string())));
        let source = |tenant: String| Source {
            tenant,
            models: models.clone(),
            arrivals: self.arrivals,
            popularity: self.popularity,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
        };
        let sources = self.tenants.into_iter().map(source).collect();
        let workload = Workload { sources, duration_s: self.seconds, requests_max: self.requests_max };
        Ok(Trace::generate(workload, self.seed)?)
    }
}

fn write_trace(options: TraceOptions) -> Result<()> {
    let trace = options.workload.trace()?;
    trace.write(BufWriter::new(create(&options.out)?))?;
    println!("{} requests in {}", trace.requests.len(), options.out.display());
    Ok(())
}

async fn send(run: Run) -> Result<()> {
    let trace = match &run.trace {
        None => run.workload.trace()?,
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            Trace::read(BufReader::new(file)).with_context(|| format!("{} is no trace", path.display()))?
        }
    };
    if trace.requests.is_empty() {
        bail!("the trace has no requests: give a higher rate or more --seconds");
    }
    let mut keys = HashMap::new();
    if let Some(key) = &run.key {
        keys.extend(trace.workload.sources.iter().map(|source| (source.tenant.clone(), key.clone())));
    }
    if let Some(path) = &run.keys {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        keys.extend(read_keys(&text).map_err(|problem| anyhow::anyhow!("{}: {problem}", path.display()))?);
    }
    let client = Client::new(&run.url, run.api, Duration::from_secs(run.timeout_s));
    let target = Target { client, keys, vocabulary: run.vocabulary };
    let salt = run.prompt_salt.unwrap_or_else(rand::random);
    let outcomes = dispatch::run(&trace, &target, dispatch::Options { in_flight_max: run.in_flight_max, salt }).await;
    let report = Report::of(&outcomes, Slo { ttft_ms: run.slo_ttft_ms, tpot_ms: run.slo_tpot_ms });
    print!("{}", report.table());
    let figures = serde_json::json!({ "workload": trace.workload, "prompt_salt": salt, "report": report });
    create(&run.out)?.write_all(&serde_json::to_vec_pretty(&figures)?)?;
    if let Some(path) = &run.requests {
        let mut file = BufWriter::new(create(path)?);
        for outcome in &outcomes {
            serde_json::to_writer(&mut file, outcome)?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
    }
    if let Some(path) = &run.svg {
        chart::first_tokens("Time to first token", &outcomes).save(path)?;
    }
    if report.all.completed == 0 { bail!("no request was answered") } else { Ok(()) }
}

async fn play(options: Scenario) -> Result<bool> {
    let program = match options.weft {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("weft"),
    };
    if !program.exists() {
        bail!("{} does not exist: build it with `cargo build --release --bin weft` or give --weft", program.display());
    }
    let setup = Setup { launcher: Launcher::Process { program, settings: options.settings }, seed: options.seed };
    let findings: scenario::Findings = match &options.which {
        Which::Many(options) => many::run(&setup, options).await?,
        Which::Cliff(options) => cliff::run(&setup, options).await?,
        Which::LongPrompt(options) => long_prompt::run(&setup, options).await?,
        Which::Fairness(options) => fairness::run(&setup, options).await?,
        Which::Cold(options) => cold::run(&setup, options).await?,
        Which::Start(options) => start::run(&setup, options).await?,
    };
    findings.publish(&options.out)?;
    Ok(!options.check || findings.hold())
}

fn create(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

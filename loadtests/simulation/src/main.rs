//! `weft-simulation`: the mesh under faults, in simulated time, one seed or many.

use clap::{Parser, Subcommand};
use std::io::Write;
use std::num::NonZero;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use weft_simulation::{simulate, suite};

/// Whoever computes for longer, in real time, hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// The mesh in one process, on a simulated network, with faults drawn from a seed.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed and prints what happened in it. WEFT_LOG=info shows the services' logs, too.
    Seed { seed: u64 },
    /// Runs many seeds, each in a process of its own, and prints what happened how often.
    Seeds {
        /// How many.
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// The first of them; the others follow.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// At a time. 0: as many as there are processors.
        #[arg(long, default_value_t = 0)]
        jobs: usize,
    },
    /// Runs one seed and prints one line of JSON: for the other commands.
    #[command(hide = true)]
    Line { seed: u64 },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Line { seed } => {
            watch(seed);
            println!("{}", suite::line(&simulate(seed)));
            ExitCode::SUCCESS
        }
        Command::Seed { seed } => show(seed),
        Command::Seeds { count, first, jobs } => many(count, first, jobs),
    }
}

fn watch(seed: u64) {
    std::thread::spawn(move || {
        std::thread::sleep(LIMIT);
        eprintln!("seed {seed} computes for more than {} s", LIMIT.as_secs());
        std::process::abort();
    });
}

fn show(seed: u64) -> ExitCode {
    if let Ok(filter) = std::env::var("WEFT_LOG") {
        weft_service_kit::telemetry::init(weft_service_kit::telemetry::LogFormat::Text, &filter);
    }
    watch(seed);
    let outcome = simulate(seed);
    let mut text = String::new();
    for event in &outcome.events {
        text.push_str(event);
        text.push('\n');
    }
    for (what, many) in &outcome.counts {
        text.push_str(&format!("{many:9}  {what}\n"));
    }
    text.push_str(&format!("seed {seed}, {:.1} s simulated, hash {}\n", outcome.lasted.as_secs_f64(), outcome.hash));
    for broken in &outcome.violations {
        text.push_str(&format!("{:?} is broken: {}\n", broken.rule, broken.seen));
    }
    // A reader that is gone has no use for the rest.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(count: u64, first: u64, jobs: usize) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("error: cannot find this program: {error}");
            return ExitCode::FAILURE;
        }
    };
    let jobs = if jobs == 0 { std::thread::available_parallelism().map_or(1, NonZero::get) } else { jobs };
    let began = Instant::now();
    let sum = suite::run(&program, first, count, jobs, |seed, problem| {
        println!("seed {seed} {problem}\nagain with: make simulate SEED={seed}");
    });
    for (what, many) in &sum.counts {
        println!("{many:9}  {what}");
    }
    let missing = if count >= 100 { sum.missing() } else { Vec::new() };
    for missing in &missing {
        println!("too little happened: {missing}");
    }
    println!("{} seeds, {} failed, {:.1} s", sum.seeds, sum.failures.len(), began.elapsed().as_secs_f64());
    if sum.failures.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

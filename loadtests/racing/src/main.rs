//! `weft-racing`: three registries under kills, and rates of one.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use weft_racing::world::World;
use weft_racing::{rates, workload};

#[derive(Parser)]
#[command(name = "weft-racing", version, about = "Registries that race each other under kills")]
struct Arguments {
    /// Where `weft-embedded-s3` and `weft-adapter-registry` are; default: beside this program
    #[arg(long)]
    bins: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publishes, moves and reads, with a check that there is one order of them; status 1 if there is none
    Run {
        #[arg(long, default_value_t = 100_000)]
        operations: u64,
        #[arg(long, default_value_t = 3)]
        registries: usize,
        #[arg(long, default_value_t = 24)]
        clients: usize,
        /// Seconds between two kills, on average; 0: none
        #[arg(long, default_value_t = 2.0)]
        kill_every_s: f64,
        /// Default: drawn, and printed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Publish and resolve rates against the S3 server's own PUT and GET
    Rates {
        /// Megabytes of a package
        #[arg(long, value_delimiter = ',', default_values_t = [1, 100])]
        megabytes: Vec<usize>,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        #[arg(long, default_value_t = 2)]
        at_once: usize,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match work(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work(arguments: Arguments) -> Result<ExitCode> {
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default());
    let bins = arguments.bins.map_or_else(beside, Ok)?;
    match arguments.command {
        Command::Run { operations, registries, clients, kill_every_s, seed } => {
            let seed = seed.unwrap_or_else(rand::random);
            println!("seed {seed}");
            let mut world = World::start(&bins, registries).await?;
            let kill_every = Duration::from_secs_f64(kill_every_s);
            let plan = workload::Plan { operations, clients, kill_every, seed };
            let outcome = workload::run(&mut world, plan).await?;
            for problem in outcome.wrong.iter().take(20) {
                println!("wrong: {problem}");
            }
            let [publishes, moves, reads] = outcome.answered;
            let rate = (publishes + moves + reads) as f64 / outcome.took.as_secs_f64();
            println!(
                "racing: operations {operations}, registries {registries}, kills {}, adapters {}, publishes {publishes}, moves {moves}, reads {reads}, \
                 conflicts {}, unanswered {}, per_second {rate:.0}, wrong {}",
                outcome.kills,
                outcome.keys,
                outcome.conflicts,
                outcome.unanswered,
                outcome.wrong.len()
            );
            Ok(if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Rates { megabytes, rounds, at_once } => {
            let world = World::start(&bins, 1).await?;
            println!(
                "{:>9} {:>9} {:>9} {:>11} {:>7} {:>9} {:>9} {:>11} {:>7}",
                "package", "PUT/s", "floor/s", "publish/s", "of PUT", "of floor", "GET/s", "resolve/s", "of GET"
            );
            let mut measured = Vec::new();
            for megabytes in megabytes {
                let objects = (200 / megabytes.max(1)).clamp(2, 100);
                let rates = rates::measure(&world, megabytes << 20, objects, at_once, rounds).await?;
                let [put, floor, publish, get, resolve] =
                    [rates.put, rates.floor, rates.publish, rates.get, rates.resolve].map(|rate| rate.per_second());
                println!(
                    "{megabytes:>6} MB {put:>9.2} {floor:>9.2} {publish:>11.2} {:>7.2} {:>9.2} {get:>9.2} {resolve:>11.2} {:>7.2}",
                    publish / put,
                    publish / floor,
                    resolve / get
                );
                measured.push((megabytes, rates));
            }
            println!("\nmilliseconds of processor time of each call (client + S3 server + registry)");
            for (megabytes, rates) in measured {
                print!("{megabytes:>6} MB");
                for (name, rate) in [("PUT", rates.put), ("floor", rates.floor), ("publish", rates.publish)] {
                    let [client, s3, registry] = rate.cpu_ms();
                    print!("  {name} {:.1} ({client:.1} + {s3:.1} + {registry:.1})", client + s3 + registry);
                }
                println!();
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

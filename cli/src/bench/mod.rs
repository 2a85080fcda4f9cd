//! `weft bench`: what many adapters cost, measured over HTTP on the embedded mesh in one run.
//!
//! Kinds of traffic with the same prompts, in turn, several rounds ([`cases`]): the base alone, one adapter shared by all
//! requests, a different adapter for every request, and different adapters of mixed ranks on all linears; then decoding
//! alone, and one request by itself. Prompts are fresh random token ids in every round, so that no cache flatters a
//! figure, or those of an export, each only once for each adapter; outputs have a fixed length. What counts is the ratio within a round; the median is kept. Beside each figure
//! stands the part of this machine's ceiling that it reached ([`ceiling`]), and what it should be ([`verdict`]).

mod cases;
mod ceiling;
mod grammar;
mod verdict;
mod workload;

use crate::embedded;
use anyhow::{Context, Result, bail};
use cases::{Figures, MIXED_RANKS};
use ceiling::Ceiling;
use clap::Args;
use futures::future::LocalBoxFuture;
use serde_json::json;
use std::path::PathBuf;
use verdict::Verdict;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Requests at once, and adapters in the mixed case
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 70)]
    pub prompt_tokens: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..))]
    pub output_tokens: u32,
    /// Tokens of the prompt of which the first token is timed alone
    #[arg(long, default_value_t = 256)]
    pub prefill_tokens: usize,
    /// Rank of each adapter
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// Linears each adapter changes
    #[arg(long, value_delimiter = ',', default_value = "q_proj,k_proj,v_proj,o_proj")]
    pub modules: Vec<String>,
    /// Rounds of all cases; the median is reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Measure free against constrained answers of the base instead of adapters
    #[arg(long, conflicts_with_all = ["export", "prompts"])]
    pub grammar: bool,
    /// Only write the adapters and prompts of this workload to a folder, for measuring other engines with them
    #[arg(long)]
    pub export: Option<PathBuf>,
    /// Ask the prompts that an export wrote, as other engines do, instead of fresh ones: its prompts.json
    #[arg(long, conflicts_with = "export")]
    pub prompts: Option<PathBuf>,
    /// Where the figures go
    #[arg(long, default_value = "target/bench/serve.json")]
    pub out: PathBuf,
    /// Leave with status 1 if a figure is not what it should be
    #[arg(long)]
    pub check: bool,
    /// Settings of `weft up`, after `--`
    #[arg(last = true)]
    pub settings: Vec<String>,
}

impl Options {
    fn requests(&self) -> usize {
        usize::from(self.concurrency)
    }
}

/// Measures and prints a table; writes the figures as JSON.
///
/// # Errors
/// The mesh cannot start, a request fails, or with `check` a figure is not what it should be.
pub fn run(options: Options) -> LocalBoxFuture<'static, Result<()>> {
    Box::pin(measure(options))
}

async fn measure(options: Options) -> Result<()> {
    let path = embedded::model_path(&options.settings).await?;
    let model = tokio::task::spawn_blocking(move || weft_base_model::open(&path, &Default::default())).await??.config;
    workload::check(&options, &model)?;
    if let Some(folder) = &options.export {
        return workload::export(&options, &model, folder);
    }
    let (mesh, shutdown) = embedded::start_private(options.settings.clone()).await?;
    if options.grammar {
        let measured = grammar::measure(&options, &mesh, &model).await;
        shutdown.trigger();
        mesh.finished().await?;
        return grammar::report(&options, &measured?);
    }
    let measured = cases::measure(&options, &mesh, &model).await;
    shutdown.trigger();
    mesh.finished().await?;
    let figures = measured?;
    // After the mesh has gone: two pools would measure each other.
    let (dtype, threads) = (figures.dtype.clone(), ceiling::threads(&options.settings));
    let ceiling = tokio::task::spawn_blocking(move || Ceiling::measure(&dtype, threads)).await?;
    let verdicts = verdict::of(&figures, &ceiling);
    print_tables(&options, &figures, &ceiling);
    verdicts.iter().for_each(|verdict| println!("{}", verdict.line()));
    write(&options, &figures, &ceiling, &verdicts)?;
    if options.check && verdicts.iter().any(|verdict| !verdict.holds) {
        bail!("a figure is not what it should be");
    }
    Ok(())
}

fn write(options: &Options, figures: &Figures, ceiling: &Ceiling, verdicts: &[Verdict]) -> Result<()> {
    let json = json!({
        "workload": {
            "concurrency": options.concurrency, "prompt_tokens": options.prompt_tokens,
            "output_tokens": options.output_tokens, "rank": options.rank, "modules": options.modules,
            "mixed_ranks": MIXED_RANKS,
        },
        "machine": ceiling,
        "dtype": figures.dtype,
        "cases": figures.cases,
        "single": figures.single,
        "verdicts": verdicts,
    });
    write_json(options, &json)
}

fn write_json(options: &Options, json: &serde_json::Value) -> Result<()> {
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(&options.out, serde_json::to_vec_pretty(json)?)
        .with_context(|| format!("cannot write {}", options.out.display()))
}

fn print_tables(options: &Options, figures: &Figures, ceiling: &Ceiling) {
    println!(
        "{} requests at once, prompts of {} tokens, answers of {}, rank {} on {}; median of {} rounds\n\
         weights in {}; ceilings of this machine: {:.0} GFLOP/s and {:.1} GB/s in {} ({} threads)",
        options.concurrency,
        options.prompt_tokens,
        options.output_tokens,
        options.rank,
        options.modules.join(","),
        options.rounds,
        figures.dtype,
        ceiling.gflop_s,
        ceiling.gb_s,
        ceiling.format,
        ceiling.threads
    );
    println!(
        "{:<36} {:>9} {:>7} {:>7} {:>9} {:>9} {:>12}",
        "traffic", "tokens/s", "÷ base", "floor", "GFLOP/s", "÷ ceiling", "first token"
    );
    for case in &figures.cases {
        println!(
            "{:<36} {:>9.1} {:>7.3} {:>7.3} {:>9.1} {:>9.2} {:>9.0} ms",
            case.name,
            case.tokens_per_second_median,
            case.ratio_to_base_median,
            case.ratio_floor,
            case.gflops,
            case.gflops / ceiling.gflop_s,
            case.first_token_ms_median
        );
    }
    let single = &figures.single;
    println!(
        "alone: decode {:.1} tokens/s ({:.2} of the bytes' ceiling), prefill of {} {:.0} tokens/s ({:.2} of the operations' ceiling)",
        single.decode_tokens_per_second,
        ceiling.share_of_bytes(single.decode_tokens_per_second * single.weights),
        single.prefill_tokens,
        single.prefill_tokens_per_second,
        single.prefill_gflops / ceiling.gflop_s
    );
}

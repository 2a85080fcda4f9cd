//! `weft bench`: what many adapters cost, measured over HTTP on the embedded mesh in one run.
//!
//! Three kinds of traffic, in turn, several rounds: the base alone, one adapter shared by all requests, and a different
//! adapter for every request. Prompts are fresh random token ids in every round and kind, so that no prefix cache
//! flatters a figure; outputs have a fixed length. What counts is the ratio within a round; the median is kept.

use crate::client::{Admin, Data};
use crate::embedded::{self, Mesh};
use crate::synthetic::{self, Package};
use anyhow::{Context, Result};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;
use weft_base_model::ModelConfig;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Requests at once, and adapters in the mixed case
    #[arg(long, default_value_t = 32)]
    pub concurrency: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 70)]
    pub prompt_tokens: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 48)]
    pub output_tokens: u32,
    /// Rank of each adapter
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// Linears each adapter changes
    #[arg(long, value_delimiter = ',', default_value = "q_proj,k_proj,v_proj,o_proj")]
    pub modules: Vec<String>,
    /// Rounds of all cases; the median is reported
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Only write the adapters and prompts of this workload to a folder, for measuring other engines with them
    #[arg(long)]
    pub export: Option<PathBuf>,
    /// Where the figures go
    #[arg(long, default_value = "target/bench/serve.json")]
    pub out: PathBuf,
    /// Settings of `weft up`, after `--`
    #[arg(last = true)]
    pub settings: Vec<String>,
}

#[derive(Serialize)]
struct Round {
    seconds: f64,
    tokens_per_second: f64,
    first_token_ms_median: f64,
}

#[derive(Serialize)]
struct Case {
    name: &'static str,
    tokens_per_second_median: f64,
    first_token_ms_median: f64,
    gflops: f64,
    ratio_to_base_median: f64,
    rounds: Vec<Round>,
}

const TENANT: &str = "bench";
const SEED: u64 = 20_261_124;

/// Measures and prints a table; writes the figures as JSON.
///
/// # Errors
/// The mesh cannot start, or a request fails.
pub async fn run(options: Options) -> Result<()> {
    if let Some(folder) = &options.export {
        let path = embedded::model_path(&options.settings).await?;
        let model = tokio::task::spawn_blocking(move || weft_base_model::open(&path, &Default::default())).await??;
        return export(&options, &model.config, folder);
    }
    let (mesh, shutdown) = embedded::start_private(options.settings.clone()).await?;
    let path = mesh.model_path().to_owned();
    let model = tokio::task::spawn_blocking(move || weft_base_model::open(&path, &Default::default())).await??;
    let cases = measure(&options, &mesh, &model.config).await;
    shutdown.trigger();
    mesh.finished().await?;
    let cases = cases?;
    print_table(&options, &cases);
    let figures = json!({
        "workload": {
            "concurrency": options.concurrency, "prompt_tokens": options.prompt_tokens,
            "output_tokens": options.output_tokens, "rank": options.rank, "modules": options.modules,
        },
        "cases": cases,
    });
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&options.out, serde_json::to_vec_pretty(&figures)?)
        .with_context(|| format!("cannot write {}", options.out.display()))
}

fn packages(options: &Options, model: &ModelConfig) -> Vec<Package> {
    let modules: Vec<&str> = options.modules.iter().map(String::as_str).collect();
    (0..options.concurrency as u64).map(|n| synthetic::lora(model, options.rank, &modules, SEED + n)).collect()
}

fn prompts(options: &Options, vocabulary: usize, round: u64, kind: u64) -> Vec<Vec<u32>> {
    let mut random = StdRng::seed_from_u64(SEED ^ (round << 32) ^ (kind << 56));
    // The first thousand ids hold special tokens and single bytes.
    let mut id = || random.random_range(1000.min(vocabulary as u32 / 2)..vocabulary as u32);
    (0..options.concurrency).map(|_| (0..options.prompt_tokens).map(|_| id()).collect()).collect()
}

fn adapter_name(n: usize) -> String {
    format!("bench-{n:03}")
}

fn export(options: &Options, model: &ModelConfig, folder: &Path) -> Result<()> {
    for (n, package) in packages(options, model).into_iter().enumerate() {
        let dir = folder.join(adapter_name(n));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("adapter_config.json"), package.config)?;
        std::fs::write(dir.join("adapter_model.safetensors"), package.weights)?;
    }
    let rounds: Vec<_> = (0..options.rounds as u64).map(|round| prompts(options, model.vocab_size, round, 0)).collect();
    std::fs::write(folder.join("prompts.json"), serde_json::to_vec(&rounds)?)?;
    Ok(())
}

async fn measure(options: &Options, mesh: &Mesh, model: &ModelConfig) -> Result<Vec<Case>> {
    let admin = Admin::new(&mesh.admin_url(), mesh.admin_key());
    admin.create_tenant(TENANT).await?;
    let key = admin.create_key(TENANT, Some("bench")).await?;
    for (n, package) in packages(options, model).into_iter().enumerate() {
        admin.publish_bytes(TENANT, &adapter_name(n), package.config, package.weights, Some("live")).await?;
    }
    let data = Data::new(&mesh.data_url(), &key.secret);
    let base = |_: usize| "base".to_owned();
    let shared = |_: usize| adapter_name(0);
    type Names<'a> = &'a dyn Fn(usize) -> String;
    let kinds: [(&'static str, Names); 3] =
        [("base alone", &base), ("one shared adapter", &shared), ("a different adapter each", &adapter_name)];
    let mut rounds: [Vec<Round>; 3] = Default::default();
    // One round warms up: adapters get their slots, pages get touched.
    for round in 0..=options.rounds as u64 {
        for (index, (_, names)) in kinds.iter().enumerate() {
            let prompts = prompts(options, model.vocab_size, round, index as u64);
            let measured = one_round(options, &data, &prompts, *names).await?;
            if round > 0 {
                rounds[index].push(measured);
            }
        }
    }
    let flop = workload_flop(options, model);
    let base_rates: Vec<f64> = rounds[0].iter().map(|round| round.tokens_per_second).collect();
    let mut cases = Vec::new();
    for ((name, _), rounds) in kinds.iter().zip(rounds) {
        let rates: Vec<f64> = rounds.iter().map(|round| round.tokens_per_second).collect();
        cases.push(Case {
            name,
            tokens_per_second_median: median(rates.clone()),
            first_token_ms_median: median(rounds.iter().map(|round| round.first_token_ms_median).collect()),
            gflops: flop / median(rounds.iter().map(|round| round.seconds).collect()) / 1e9,
            ratio_to_base_median: median(rates.iter().zip(&base_rates).map(|(rate, base)| rate / base).collect()),
            rounds,
        });
    }
    Ok(cases)
}

async fn one_round(
    options: &Options,
    data: &Data,
    prompts: &[Vec<u32>],
    names: &dyn Fn(usize) -> String,
) -> Result<Round> {
    let begin = Instant::now();
    let requests = prompts.iter().enumerate().map(|(n, prompt)| {
        let name = names(n);
        async move { data.complete_tokens(&name, prompt, options.output_tokens).await }
    });
    let answers = futures::future::try_join_all(requests).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let tokens: u64 = answers.iter().map(|answer| answer.completion_tokens).sum();
    Ok(Round {
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        first_token_ms_median: median(answers.iter().map(|answer| answer.first_token.as_secs_f64() * 1e3).collect()),
    })
}

/// Floating point operations the base needs: two a weight and token, the output matrix only where a token is drawn.
fn workload_flop(options: &Options, model: &ModelConfig) -> f64 {
    let per_layer: usize = model.linears().iter().map(|linear| linear.in_features * linear.out_features).sum();
    let layers = (per_layer * model.layers) as f64;
    let head = (model.hidden_size * model.vocab_size) as f64;
    let outputs = f64::from(options.output_tokens);
    let tokens = options.prompt_tokens as f64 + outputs - 1.0;
    2.0 * options.concurrency as f64 * (layers * tokens + head * outputs)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn print_table(options: &Options, cases: &[Case]) {
    println!(
        "{} requests at once, prompts of {} tokens, answers of {}, rank {} on {}; median of {} rounds",
        options.concurrency,
        options.prompt_tokens,
        options.output_tokens,
        options.rank,
        options.modules.join(","),
        options.rounds
    );
    println!("{:<26} {:>10} {:>12} {:>10} {:>14}", "traffic", "tokens/s", "÷ base", "GFLOP/s", "first token");
    for case in cases {
        println!(
            "{:<26} {:>10.1} {:>12.3} {:>10.1} {:>11.0} ms",
            case.name,
            case.tokens_per_second_median,
            case.ratio_to_base_median,
            case.gflops,
            case.first_token_ms_median
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}

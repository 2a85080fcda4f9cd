//! How long does the first token of an adapter take that only the object store has, and where does the time go?
//!
//! Adapters of three sizes are published and asked for once each, one after the other, so that the differences of the mesh's own
//! sums are the stages of that request. The floor is the bytes of the package over the rate at which they may come: the daemon's
//! `fetch_bytes_per_second_max`, or, without one, what reading the same bytes from the same object server over loopback and
//! throwing them away took.

use super::{Findings, Setup, Stage, Verdict};
use crate::client::{Answer, Ask};
use crate::stats::Quantiles;
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use serde::Serialize;
use serde_json::json;
use std::time::Instant;
use weft_base_model::ModelConfig;
use weft_cli::synthetic::{self, Package};
use weft_object_store::{EmbeddedS3, ObjectStore, S3Store};

/// How large.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Sizes of adapters in MB; each is met as nearly as whole ranks on all linears allow
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    pub megabytes: Vec<f64>,
    /// Adapters of each size
    #[arg(long, value_delimiter = ',', default_value = "100,60,24")]
    pub adapters: Vec<usize>,
    /// Most bytes a second from the object store, each a run of its own; 0: as many as come
    #[arg(long, value_delimiter = ',', default_value = "0,125000000")]
    pub bytes_per_second: Vec<u64>,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 70)]
    pub prompt_tokens: usize,
}

const TENANT: &str = "cold";
/// Sums of the mesh, in seconds, and the stage that each ends, from the inmost outwards: each contains the one before.
const SUMS: [(&str, &str); 4] = [
    ("fetch", "cache_daemon_fetch_seconds_sum"),
    ("lease", "cache_daemon_lease_wait_seconds_sum"),
    ("pack", "worker_adapter_load_seconds_sum"),
    ("step", "worker_first_token_seconds_sum"),
];
/// From this size on the network is what a fetch waits for, and checking and writing may add so much to it.
const LARGE_MB: f64 = 50.0;
const FETCH_OVER_FLOOR: f64 = 1.25;
const MEANING: &str = "ms. fetch: daemon, object store to verified file; lease: its queue and grant; pack: worker, file to slot; \
    step: queue, prefill and first token; route: HTTP, gateway and back; whole: request to first token\n";

/// Adapters of one size at one rate.
#[derive(Serialize)]
struct Row {
    bytes_per_second: u64,
    bytes: usize,
    rank: usize,
    floor_ms: f64,
    /// From the inmost outwards, then the whole.
    stages: Vec<(&'static str, Quantiles)>,
}

/// Measures it.
///
/// # Errors
/// The mesh fails, or the options do not fit each other.
pub async fn run(setup: &Setup, options: &Options) -> Result<Findings> {
    if options.adapters.len() != options.megabytes.len() {
        bail!("--adapters has {} numbers and --megabytes {}", options.adapters.len(), options.megabytes.len());
    }
    let model = setup.launcher.model().await?;
    let mut rows = Vec::new();
    for &bytes_per_second in &options.bytes_per_second {
        for (&megabytes, &count) in options.megabytes.iter().zip(&options.adapters) {
            let (package, rank) = of_size(&model, megabytes * 1e6);
            rows.push(measure(setup, options, &package, rank, count, bytes_per_second).await?);
        }
    }
    Ok(findings(&rows))
}

/// All linears at the rank that comes nearest.
fn of_size(model: &ModelConfig, bytes: f64) -> (Package, usize) {
    let modules: Vec<&str> = model.linears().iter().map(|linear| linear.module).collect();
    let per_rank: usize = model.linears().iter().map(|linear| linear.in_features + linear.out_features).sum();
    // Two bytes a value.
    let rank = (bytes / (2 * per_rank * model.layers) as f64).round().max(1.0) as usize;
    (synthetic::lora(model, rank, &modules, 20_261_129), rank)
}

async fn measure(
    setup: &Setup,
    options: &Options,
    package: &Package,
    rank: usize,
    count: usize,
    bytes_per_second: u64,
) -> Result<Row> {
    let bytes = package.weights.len() + package.config.len();
    let floor_ms = match bytes_per_second {
        0 => plain_read_ms(bytes).await?,
        rate => bytes as f64 / rate as f64 * 1e3,
    };
    let settings = ["--cache-fetch-bytes-per-second-max".to_owned(), bytes_per_second.to_string()];
    let model = setup.launcher.model().await?;
    let stage = Stage::set(setup, &settings, &[TENANT], model.vocab_size).await?;
    let names = stage.weft.publish(TENANT, "cold", package, count).await?;
    // The base's own first request is none of the adapters'.
    ask(&stage, "base", options.prompt_tokens).await?;
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); SUMS.len() + 2];
    for name in &names {
        let before = sums(&stage).await?;
        let whole_ms = ask(&stage, name, options.prompt_tokens).await?;
        let after = sums(&stage).await?;
        let mut inner_ms = 0.0;
        for at in 0..SUMS.len() {
            let outer_ms = (after[at] - before[at]) * 1e3;
            samples[at].push(outer_ms - inner_ms);
            inner_ms = outer_ms;
        }
        samples[SUMS.len()].push(whole_ms - inner_ms);
        samples[SUMS.len() + 1].push(whole_ms);
    }
    let fetched = stage.weft.metric("cache_daemon_fetch_seconds_count").await?;
    stage.weft.stop().await?;
    if fetched < count as f64 {
        bail!("{count} adapters were asked for, and {fetched} came from the object store");
    }
    let named = SUMS.iter().map(|(stage, _)| *stage).chain(["route", "whole"]);
    let stages = named.zip(samples).filter_map(|(stage, samples)| Some((stage, Quantiles::of(samples)?)));
    Ok(Row { bytes_per_second, bytes, rank, floor_ms, stages: stages.collect() })
}

async fn sums(stage: &Stage) -> Result<Vec<f64>> {
    let mut sums = Vec::new();
    for (_, name) in SUMS {
        sums.push(stage.weft.metric(name).await?);
    }
    Ok(sums)
}

/// Milliseconds from the request to the first token.
async fn ask(stage: &Stage, model: &str, prompt_tokens: usize) -> Result<f64> {
    let prompt = crate::prompt::ids(prompt_tokens as u32, stage.target.vocabulary.unwrap_or(2), 0, rand::random());
    let key = stage.target.keys.get(TENANT).map(String::as_str);
    let began = Instant::now();
    let answer = stage.target.client.ask(Ask { model, key, prompt: &prompt, output_tokens: 1 }).await;
    let ended = Instant::now();
    let Answer { pieces, usage, .. } =
        answer.map_err(|(_, reason)| anyhow::anyhow!("{model} does not answer: {reason}"))?;
    // A token without a text, such as the end, makes no piece; with one token in all it came when the answer ended.
    let first = match pieces.first() {
        Some(first) => *first,
        None if usage.is_some_and(|usage| usage.completion_tokens > 0) => ended,
        None => bail!("{model} answers nothing"),
    };
    Ok(first.duration_since(began).as_secs_f64() * 1e3)
}

/// Median of reading an object of so many bytes from the object server that `weft up` has, and keeping none.
async fn plain_read_ms(bytes: usize) -> Result<f64> {
    const KEY: &str = "floor";
    let folder = tempfile::tempdir()?;
    let server = EmbeddedS3::start(folder.path(), "127.0.0.1:0".parse()?).await?;
    let store = S3Store::connect(&server.settings("floor")).await?;
    store.ensure_bucket().await?;
    store.put(KEY, vec![7; bytes].into()).await?;
    let mut times = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        let mut stream = store.get_stream(KEY).await?.context("just put")?.stream;
        while let Some(piece) = stream.next().await {
            std::hint::black_box(piece?);
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(crate::stats::median(&times))
}

fn findings(rows: &[Row]) -> Findings {
    let mut table = "Adapters that only the object store has, one request at a time\n".to_owned();
    let mut verdicts = Vec::new();
    for row in rows {
        let rate = match row.bytes_per_second {
            0 => "loopback".to_owned(),
            rate => format!("{:.0} MB/s", rate as f64 / 1e6),
        };
        let megabytes = row.bytes as f64 / 1e6;
        table.push_str(&format!("{megabytes:.1} MB (rank {}), {rate}; floor {:.1} ms\n", row.rank, row.floor_ms));
        for (stage, times) in &row.stages {
            table.push_str(&format!("  {stage:<6} p50 {:>8.1}  p99 {:>8.1}\n", times.p50, times.p99));
        }
        let whole = row.stages.last().map_or(f64::NAN, |(_, times)| times.p50);
        table.push_str(&format!("  whole p50 ÷ floor {:.2}\n", whole / row.floor_ms));
        if row.bytes_per_second > 0 && megabytes >= LARGE_MB {
            let what = format!("{megabytes:.0} MB at {rate}: fetch ÷ floor");
            let fetch = row.stages.first().map_or(f64::NAN, |(_, times)| times.p50);
            verdicts.push(Verdict::at_most(&what, fetch / row.floor_ms, FETCH_OVER_FLOOR));
        }
    }
    table.push_str(MEANING);
    Findings { name: "cold", table, figures: json!({ "rows": rows }), charts: Vec::new(), verdicts }
}

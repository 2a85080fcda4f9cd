//! S-LoRA's question: what do 2,000 adapters cost beside 5?
//!
//! All are registered with the same mesh; traffic asks for the first few or for all, in turn, with the same arrivals
//! and lengths and other prompts (S-LoRA's generator: power law, gamma arrivals, uniform lengths). The rate is above
//! what a first closed loop reached, so that what is measured is throughput. S-LoRA lost 5.5 % (7.61 of 8.05 requests/s,
//! Llama-7B, rank 8, A100). Each adapter has been asked for once before: loads come from this node's disk.

use super::{Findings, Setup, Stage, Verdict, unanswered};
use crate::arrivals::Arrivals;
use crate::chart;
use crate::lengths::Lengths;
use crate::popularity::Popularity;
use crate::report::{Report, Slo};
use crate::stats::median;
use crate::weft::attention_lora;
use crate::workload::{Source, Workload};
use anyhow::Result;
use serde_json::json;

/// How large.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Adapters of the small set
    #[arg(long, default_value_t = 5)]
    pub few: usize,
    /// Adapters of the large set
    #[arg(long, default_value_t = 2000)]
    pub many: usize,
    /// Rank of each adapter
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// Exponent of the power law; 1 asks for each adapter alike
    #[arg(long, default_value = "power:1")]
    pub popularity: Popularity,
    /// Coefficient of variation of the gaps
    #[arg(long, default_value_t = 1.0)]
    pub cv: f64,
    /// Tokens of prompts
    #[arg(long, default_value = "8-512")]
    pub prompt_tokens: Lengths,
    /// Tokens of answers
    #[arg(long, default_value = "8-512")]
    pub output_tokens: Lengths,
    /// Seconds of each run
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Offered load ÷ what the server can do
    #[arg(long, default_value_t = 1.2)]
    pub overload: f64,
    /// Runs of each set; the median ratio counts
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

const TENANT: &str = "many";
/// Room for what an overload leaves waiting: a refusal would spare the server the work that is measured.
const QUEUE: &str = "20000";
/// Requests at once of the run that finds the rate.
const CONCURRENCY: usize = 32;

/// Measures it.
///
/// # Errors
/// The mesh fails.
pub async fn run(setup: &Setup, options: &Options) -> Result<Findings> {
    let model = setup.launcher.model().await?;
    let settings = ["--worker-queue-requests-max", QUEUE, "--gateway-max-concurrent-requests", QUEUE];
    let stage = Stage::set(setup, &settings.map(str::to_owned), &[TENANT], model.vocab_size).await?;
    let names = stage.weft.publish(TENANT, "many", &attention_lora(&model, options.rank), options.many).await?;
    // S-LoRA's adapters are in main memory from the start; here each was asked for once, so that its bytes are on this node.
    stage.touch(TENANT, &names).await?;
    let few = &names[..options.few.min(names.len())];
    let workload = |models: &[String], arrivals, seconds| {
        let source = Source {
            tenant: TENANT.to_owned(),
            models: models.to_vec(),
            arrivals,
            popularity: options.popularity,
            prompt_tokens: options.prompt_tokens,
            output_tokens: options.output_tokens,
        };
        Workload::of(vec![source], seconds)
    };
    let closed = Arrivals::Closed { concurrency: CONCURRENCY };
    let capacity = Report::of(&stage.play(workload(few, closed, options.seconds / 3.0), 0).await?, Slo::default());
    let rate = capacity.all.requests_per_second * options.overload;
    let (mut ratios, mut rounds, mut lost) = (Vec::new(), Vec::new(), 0.0);
    let mut last = Vec::new();
    for round in 1..=options.rounds as u64 {
        let gamma = Arrivals::Gamma { rate, cv: options.cv };
        let small = stage.play(workload(few, gamma, options.seconds), round).await?;
        let large = stage.play(workload(&names, gamma, options.seconds), round).await?;
        lost += unanswered(&small) + unanswered(&large);
        let reports = [Report::of(&small, Slo::default()), Report::of(&large, Slo::default())];
        ratios.push(reports[1].all.output_tokens_per_second / reports[0].all.output_tokens_per_second);
        rounds.push(reports);
        last = large;
    }
    let (used, limit) =
        (stage.weft.metric("worker_slot_bytes_used").await?, stage.weft.metric("worker_slot_bytes_limit").await?);
    let (loads, evictions) = (
        stage.weft.metric("worker_adapter_loads_total").await?,
        stage.weft.metric("worker_adapter_evictions_total").await?,
    );
    let memory = stage.weft.memory();
    stage.weft.stop().await?;
    let ratio = median(&ratios);
    let mut table = format!(
        "{} adapters against {}, rank {}, {}, gamma arrivals of {rate:.2}/s with cv {}, prompts of {} and answers of {} tokens\n{:<10} {:>9} {:>11} {:>9} {:>9} {:>9} {:>8} {:>7}\n",
        options.many,
        options.few,
        options.rank,
        options.popularity,
        options.cv,
        options.prompt_tokens,
        options.output_tokens,
        "adapters",
        "tokens/s",
        "requests/s",
        "ttft p50",
        "ttft p99",
        "itl p99",
        "cold",
        "÷ few"
    );
    for (reports, ratio) in rounds.iter().zip(&ratios) {
        for ((adapters, report), ratio) in [options.few, options.many].into_iter().zip(reports).zip([1.0, *ratio]) {
            let of = |quantiles: &Option<crate::stats::Quantiles>, p99: bool| {
                quantiles.map_or(f64::NAN, |q| if p99 { q.p99 } else { q.p50 })
            };
            let latencies = &report.all.latencies;
            table.push_str(&format!(
                "{adapters:<10} {:>9.1} {:>11.2} {:>9.0} {:>9.0} {:>9.1} {:>8} {ratio:>7.3}\n",
                report.all.output_tokens_per_second,
                report.all.requests_per_second,
                of(&latencies.ttft_ms, false),
                of(&latencies.ttft_ms, true),
                of(&latencies.itl_ms, true),
                report.cold_requests
            ));
        }
    }
    for (why, count) in rounds.iter().flatten().flat_map(|report| &report.errors) {
        table.push_str(&format!("without an answer: {count} x {why}\n"));
    }
    table.push_str(&format!(
        "slots hold {:.0} of {:.0} MB; {loads:.0} loads, {evictions:.0} evictions; process: {}\n",
        used / 1e6,
        limit / 1e6,
        memory.map_or("-".to_owned(), |memory| format!("{} MB at most", memory.most_bytes / 1_000_000))
    ));
    Ok(Findings {
        name: "many",
        table,
        figures: json!({
            "few": options.few, "many": options.many, "rank": options.rank, "rate": rate, "ratios": ratios,
            "rounds": rounds, "slot_bytes_used": used, "slot_bytes_limit": limit, "loads": loads,
            "evictions": evictions, "memory": memory,
        }),
        charts: vec![("", chart::first_tokens(&format!("Time to first token, {} adapters", options.many), &last))],
        verdicts: vec![
            Verdict::at_least("throughput with many ÷ with few adapters", ratio, 0.97),
            Verdict::at_most("slot bytes ÷ their budget", used / limit, 1.0),
            Verdict::at_most("requests without an answer", lost, 0.0),
        ],
    })
}

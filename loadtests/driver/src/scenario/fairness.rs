//! Can one tenant push the others aside by cycling through cold adapters at full speed?
//!
//! A fair run: all tenants send alike, each with one resident adapter. Then the last one has many requests in flight,
//! each for the next of so many adapters, more than the slots hold. All are backlogged, so that a fair split is an
//! equal one. The others' share of the tokens and their p99 first token are compared with the fair run.

use super::{Findings, Setup, Stage, Verdict, unanswered};
use crate::arrivals::Arrivals;
use crate::chart::{self, Chart};
use crate::outcome::Outcome;
use crate::popularity::Popularity;
use crate::report::{Report, Slo};
use crate::stats::{jain, median};
use crate::weft::attention_lora;
use crate::workload::{Source, Workload};
use anyhow::Result;
use serde_json::json;

/// How large.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Tenants that behave
    #[arg(long, default_value_t = 3)]
    pub others: usize,
    /// Requests of each of them at once
    #[arg(long, default_value_t = 8)]
    pub concurrency: usize,
    /// Requests of the greedy one at once
    #[arg(long, default_value_t = 64)]
    pub greedy_concurrency: usize,
    /// Adapters that it cycles through
    #[arg(long, default_value_t = 200)]
    pub cold_adapters: usize,
    /// Memory for slots, bytes; less than the cold adapters need
    #[arg(long, default_value_t = 64 << 20)]
    pub slot_bytes: u64,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 70)]
    pub prompt_tokens: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 32)]
    pub output_tokens: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// Runs of each kind; the median counts
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

const GREEDY: &str = "greedy";
const RANK: usize = 8;
/// A quarter off a fair split is allowed.
const TOLERANCE: f64 = 0.25;

/// One run in figures: the others' share of the tokens ÷ their fair one, and their worst p99 first token.
struct Seen {
    share: f64,
    ttft_p99_ms: f64,
    jain: f64,
    report: Report,
}

/// Measures it.
///
/// # Errors
/// The mesh fails.
pub async fn run(setup: &Setup, options: &Options) -> Result<Findings> {
    let model = setup.launcher.model().await?;
    let others: Vec<String> = (0..options.others.max(1)).map(|n| format!("tenant-{n}")).collect();
    let tenants: Vec<&str> = others.iter().map(String::as_str).chain([GREEDY]).collect();
    let settings = ["--worker-adapter-memory-bytes".to_owned(), options.slot_bytes.to_string()];
    let stage = Stage::set(setup, &settings, &tenants, model.vocab_size).await?;
    let package = attention_lora(&model, RANK);
    let closed = |concurrency| Arrivals::Closed { concurrency };
    let mut sources = Vec::new();
    for tenant in &others {
        let names = stage.weft.publish(tenant, tenant, &package, 1).await?;
        stage.touch(tenant, &names).await?;
        sources.push(Source::of(
            tenant,
            &names,
            closed(options.concurrency),
            options.prompt_tokens,
            options.output_tokens,
        ));
    }
    let cold = stage.weft.publish(GREEDY, "cold", &package, options.cold_adapters).await?;
    let modest =
        Source::of(GREEDY, &cold[..1], closed(options.concurrency), options.prompt_tokens, options.output_tokens);
    let greedy = Source {
        models: cold,
        arrivals: closed(options.greedy_concurrency),
        popularity: Popularity::RoundRobin,
        ..modest.clone()
    };
    let with = |last: &Source| Workload::of(sources.iter().chain([last]).cloned().collect(), options.seconds);
    let (mut fair, mut abused, mut lost, mut last) = (Vec::new(), Vec::new(), 0.0, Vec::new());
    for round in 0..options.rounds as u64 {
        for (source, runs) in [(&modest, &mut fair), (&greedy, &mut abused)] {
            let outcomes = stage.play(with(source), round).await?;
            lost += unanswered(&outcomes);
            runs.push(Seen::of(&outcomes, options.seconds, others.len()));
            last = outcomes;
        }
    }
    let evictions = stage.weft.metric("worker_adapter_evictions_total").await?;
    stage.weft.stop().await?;
    Ok(findings(options, &fair, &abused, &last, evictions, lost))
}

impl Seen {
    /// Tokens count that came while everybody was sending: at the end the one with most in flight has most to finish.
    fn of(outcomes: &[Outcome], seconds: f64, others: usize) -> Self {
        let until = (seconds * 1e6) as u64;
        let tokens = |outcome: &Outcome| {
            let pieces = outcome.pieces_us.iter().filter(|&&at| at <= until).count();
            // A prompt counts once its answer has begun.
            pieces as f64 + if pieces > 0 { outcome.prompt_tokens as f64 } else { 0.0 }
        };
        let mut got = std::collections::BTreeMap::<&str, f64>::new();
        for outcome in outcomes {
            *got.entry(&outcome.tenant).or_default() += tokens(outcome);
        }
        let total: f64 = got.values().sum();
        let greedy = got.get(GREEDY).copied().unwrap_or(0.0);
        let fair = others as f64 / (others + 1) as f64;
        let report = Report::of(outcomes, Slo::default());
        let worst = report.tenants.iter().filter(|(name, _)| *name != GREEDY);
        let worst = worst.filter_map(|(_, part)| part.latencies.ttft_ms).map(|ttft| ttft.p99).fold(0.0, f64::max);
        let jain = jain(&got.values().copied().collect::<Vec<_>>());
        Self { share: (total - greedy) / total / fair, ttft_p99_ms: worst, jain, report }
    }
}

fn findings(
    options: &Options,
    fair: &[Seen],
    abused: &[Seen],
    last: &[Outcome],
    evictions: f64,
    lost: f64,
) -> Findings {
    let middle = |runs: &[Seen], value: fn(&Seen) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    let mut table = format!(
        "{} tenants with {} requests at once; a greedy one with {} cycling {} adapters through {} MB of slots; floor: the fair run\n{:<8} {:>16} {:>15} {:>7} {:>13}\n",
        options.others,
        options.concurrency,
        options.greedy_concurrency,
        options.cold_adapters,
        options.slot_bytes >> 20,
        "run",
        "others ÷ fair",
        "their ttft p99",
        "Jain",
        "all tokens/s"
    );
    for (name, runs) in [("fair", fair), ("greedy", abused)] {
        table.push_str(&format!(
            "{name:<8} {:>16.3} {:>12.0} ms {:>7.3} {:>13.1}\n",
            middle(runs, |seen| seen.share),
            middle(runs, |seen| seen.ttft_p99_ms),
            middle(runs, |seen| seen.jain),
            middle(runs, |seen| seen.report.all.output_tokens_per_second)
        ));
    }
    table.push_str(&format!("{evictions:.0} evictions\n"));
    let slower = middle(abused, |seen| seen.ttft_p99_ms) / middle(fair, |seen| seen.ttft_p99_ms);
    let share = middle(abused, |seen| seen.share);
    let curve = |greedy: bool| {
        let some = last.iter().filter(|outcome| outcome.completed() && (outcome.tenant == GREEDY) == greedy);
        chart::distribution(some.map(Outcome::ttft_ms).collect())
    };
    let chart = Chart {
        title: "Time to first token beside a greedy tenant".to_owned(),
        x: "ms".to_owned(),
        y: "part of the requests".to_owned(),
        x_log: true,
        y_log: false,
        curves: vec![("the others".to_owned(), curve(false)), ("the greedy one".to_owned(), curve(true))],
    };
    let runs = |runs: &[Seen]| -> Vec<_> {
        let each = |seen: &Seen| json!({ "others_share": seen.share, "ttft_p99_ms": seen.ttft_p99_ms, "jain": seen.jain, "report": seen.report });
        runs.iter().map(each).collect()
    };
    Findings {
        name: "fairness",
        table,
        figures: json!({
            "others": options.others, "cold_adapters": options.cold_adapters, "evictions": evictions,
            "others_share": share, "ttft_p99_ratio": slower, "fair": runs(fair), "greedy": runs(abused),
        }),
        charts: vec![("", chart)],
        verdicts: vec![
            Verdict::at_least("the others' share of the tokens ÷ a fair one", share, 1.0 - TOLERANCE),
            Verdict::at_most("the others' p99 first token ÷ the fair run's", slower, 1.0 + TOLERANCE),
            Verdict::at_most("requests without an answer", lost, 0.0),
        ],
    }
}

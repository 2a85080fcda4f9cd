//! What does a long prompt do to those who are being answered?
//!
//! A closed loop of short requests, alone and then with long prompts coming at equal gaps, in turn. What counts is the
//! gap between the pieces of the short ones' answers.

use super::{Findings, Setup, Stage, Verdict, unanswered};
use crate::arrivals::Arrivals;
use crate::chart::{self, Chart};
use crate::outcome::Outcome;
use crate::report::Latencies;
use crate::weft::attention_lora;
use crate::workload::{Source, Workload};
use anyhow::Result;
use serde_json::json;

/// How large.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Tokens of a long prompt
    #[arg(long, default_value_t = 4096)]
    pub long_tokens: u32,
    /// Seconds from one long prompt to the next
    #[arg(long, default_value_t = 10.0)]
    pub every: f64,
    /// Short requests at once, each with an adapter of its own
    #[arg(long, default_value_t = 8)]
    pub concurrency: usize,
    /// Tokens of a short prompt
    #[arg(long, default_value_t = 70)]
    pub prompt_tokens: u32,
    /// Tokens of an answer to it
    #[arg(long, default_value_t = 128)]
    pub output_tokens: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// Runs of each kind; their gaps are put together
    #[arg(long, default_value_t = 2)]
    pub rounds: usize,
}

const SHORT: &str = "short";
const LONG: &str = "long";
const RANK: usize = 8;

/// Measures it.
///
/// # Errors
/// The mesh fails.
pub async fn run(setup: &Setup, options: &Options) -> Result<Findings> {
    let model = setup.launcher.model().await?;
    let stage = Stage::set(setup, &[], &[SHORT, LONG], model.vocab_size).await?;
    let names = stage.weft.publish(SHORT, "short", &attention_lora(&model, RANK), options.concurrency).await?;
    stage.touch(SHORT, &names).await?;
    let closed = Arrivals::Closed { concurrency: options.concurrency };
    let short = Source::of(SHORT, &names, closed, options.prompt_tokens, options.output_tokens);
    let long = Source::of(LONG, &[], Arrivals::Uniform { rate: 1.0 / options.every }, options.long_tokens, 4);
    let (mut alone, mut together, mut long_answers) = (Vec::new(), Vec::new(), Vec::new());
    let mut lost = 0.0;
    for round in 0..options.rounds as u64 {
        let outcomes = stage.play(Workload::of(vec![short.clone()], options.seconds), round).await?;
        lost += unanswered(&outcomes);
        alone.extend(outcomes);
        let outcomes = stage.play(Workload::of(vec![short.clone(), long.clone()], options.seconds), round).await?;
        lost += unanswered(&outcomes);
        let (long, short): (Vec<Outcome>, Vec<Outcome>) =
            outcomes.into_iter().partition(|outcome| outcome.tenant == LONG);
        together.extend(short);
        long_answers.extend(long);
    }
    stage.weft.stop().await?;
    let latencies = |outcomes: &[Outcome]| {
        Latencies::of(&outcomes.iter().filter(|outcome| outcome.completed()).collect::<Vec<_>>())
    };
    let parts = [
        ("short, alone", latencies(&alone)),
        ("short, with long", latencies(&together)),
        ("long", latencies(&long_answers)),
    ];
    let mut table = format!(
        "{} short requests at once ({} + {} tokens); a prompt of {} tokens every {} s; floor: the gaps of the short ones alone\n{:<18} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}\n",
        options.concurrency,
        options.prompt_tokens,
        options.output_tokens,
        options.long_tokens,
        options.every,
        "ms",
        "itl p50",
        "itl p95",
        "itl p99",
        "itl max",
        "ttft p50",
        "ttft p99"
    );
    for (name, latencies) in &parts {
        let (itl, ttft) = (latencies.itl_ms, latencies.ttft_ms);
        let of = |value: Option<f64>| value.unwrap_or(f64::NAN);
        table.push_str(&format!(
            "{name:<18} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>10.0} {:>10.0}\n",
            of(itl.map(|q| q.p50)),
            of(itl.map(|q| q.p95)),
            of(itl.map(|q| q.p99)),
            of(itl.map(|q| q.max)),
            of(ttft.map(|q| q.p50)),
            of(ttft.map(|q| q.p99))
        ));
    }
    let p99 = |latencies: &Latencies| latencies.itl_ms.map_or(f64::NAN, |quantiles| quantiles.p99);
    let ratio = p99(&parts[1].1) / p99(&parts[0].1);
    let gaps = |outcomes: &[Outcome]| {
        chart::distribution(outcomes.iter().flat_map(|outcome| outcome.gaps_ms().collect::<Vec<_>>()).collect())
    };
    let chart = Chart {
        title: format!("Gaps between tokens, with prompts of {} tokens coming", options.long_tokens),
        x: "gap, ms".to_owned(),
        y: "part of the gaps".to_owned(),
        x_log: true,
        y_log: false,
        curves: vec![("alone".to_owned(), gaps(&alone)), ("with long prompts".to_owned(), gaps(&together))],
    };
    let [(_, alone), (_, together), (_, long)] = parts;
    Ok(Findings {
        name: "long-prompt",
        table,
        figures: json!({
            "long_tokens": options.long_tokens, "every_s": options.every, "concurrency": options.concurrency,
            "itl_p99_ratio": ratio, "alone": alone, "with_long": together, "long": long,
        }),
        charts: vec![("", chart)],
        verdicts: vec![
            Verdict::at_most("p99 gap with long prompts ÷ without", ratio, 2.0),
            Verdict::at_most("requests without an answer", lost, 0.0),
        ],
    })
}

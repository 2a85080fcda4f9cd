//! What happens to the first token when adapters outnumber slots?
//!
//! The slots hold so many adapters; traffic asks for half as many up to sixteen times as many, each alike, at a rate
//! well below what the server can do. SGLang's median first token went from 39 ms to 6.3 s at twice the slots.

use super::{Findings, Setup, Stage, Verdict, shown, unanswered};
use crate::arrivals::Arrivals;
use crate::chart::Chart;
use crate::report::{Report, Slo};
use crate::weft::attention_lora;
use crate::workload::{Source, Workload};
use anyhow::Result;
use serde_json::json;

/// How large.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Adapters that fit into the slots
    #[arg(long, default_value_t = 16)]
    pub slots: usize,
    /// Rank of each adapter
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// Adapters ÷ slots, each a point of the curve; the first is the warm one
    #[arg(long, value_delimiter = ',', default_value = "0.5,1,2,4,8,16")]
    pub ratios: Vec<f64>,
    /// Requests a second, Poisson
    #[arg(long, default_value_t = 4.0)]
    pub rate: f64,
    /// Seconds of each point
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 70)]
    pub prompt_tokens: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 16)]
    pub output_tokens: u32,
}

const TENANT: &str = "cliff";
/// Bounds of the median first token ÷ the warm one: up to twice the slots, and above.
const NEAR: (f64, f64) = (2.0, 2.0);
const FAR: (f64, f64) = (16.0, 4.0);

struct Point {
    ratio: f64,
    adapters: usize,
    report: Report,
}

/// Measures it.
///
/// # Errors
/// The mesh fails.
pub async fn run(setup: &Setup, options: &Options) -> Result<Findings> {
    let model = setup.launcher.model().await?;
    let package = attention_lora(&model, options.rank);
    let adapter_bytes = slot_bytes(setup, &package, model.vocab_size).await?;
    // A little more than the adapters need, less than one more would.
    let budget = adapter_bytes * options.slots as f64 + adapter_bytes / 2.0;
    let settings = ["--worker-adapter-memory-bytes".to_owned(), format!("{budget:.0}")];
    let stage = Stage::set(setup, &settings, &[TENANT], model.vocab_size).await?;
    let most = options.ratios.iter().copied().fold(0.0, f64::max);
    let names = stage.weft.publish(TENANT, "cliff", &package, count(options.slots, most)).await?;
    // Every adapter has been on this node once: what is measured is its way into a slot, not the object store.
    stage.touch(TENANT, &names).await?;
    let (mut points, mut lost) = (Vec::new(), 0.0);
    for (index, &ratio) in options.ratios.iter().enumerate() {
        let adapters = count(options.slots, ratio);
        stage.touch(TENANT, &names[..adapters]).await?;
        let arrivals = Arrivals::Poisson { rate: options.rate };
        let models = &names[..adapters];
        let source = Source::of(TENANT, models, arrivals, options.prompt_tokens, options.output_tokens);
        let outcomes = stage.play(Workload::of(vec![source], options.seconds), index as u64).await?;
        lost += unanswered(&outcomes);
        points.push(Point { ratio, adapters, report: Report::of(&outcomes, Slo::default()) });
    }
    let evictions = stage.weft.metric("worker_adapter_evictions_total").await?;
    stage.weft.stop().await?;
    Ok(findings(options, &points, adapter_bytes, evictions, lost))
}

fn count(slots: usize, ratio: f64) -> usize {
    ((slots as f64 * ratio).round() as usize).max(1)
}

/// What one adapter takes of the slots' budget: asked of a mesh that has one.
async fn slot_bytes(setup: &Setup, package: &weft_cli::synthetic::Package, vocabulary: usize) -> Result<f64> {
    let stage = Stage::set(setup, &[], &[TENANT], vocabulary).await?;
    let names = stage.weft.publish(TENANT, "one", package, 1).await?;
    stage.touch(TENANT, &names).await?;
    let bytes = stage.weft.metric("worker_slot_bytes_used").await?;
    stage.weft.stop().await?;
    Ok(bytes)
}

fn median_of(report: &Report) -> f64 {
    report.all.latencies.ttft_ms.map_or(f64::NAN, |quantiles| quantiles.p50)
}

fn findings(options: &Options, points: &[Point], adapter_bytes: f64, evictions: f64, lost: f64) -> Findings {
    let warm = points.first().map_or(f64::NAN, |point| median_of(&point.report));
    let mut table = format!(
        "Adapters ÷ slots ({} slots of {:.2} MB), Poisson arrivals of {}/s; floor: the warm first token\n{:<9} {:>9} {:>9} {:>9} {:>8} {:>10} {:>10} {:>7}\n",
        options.slots,
        adapter_bytes / 1e6,
        options.rate,
        "÷ slots",
        "adapters",
        "ttft p50",
        "ttft p99",
        "cold",
        "cold p50",
        "wait p50",
        "x warm"
    );
    let mut rows = Vec::new();
    for Point { ratio, adapters, report } in points {
        let p50 = |quantiles: Option<crate::stats::Quantiles>| quantiles.map_or(f64::NAN, |q| q.p50);
        let (median, p99) = (median_of(report), report.all.latencies.ttft_ms.map_or(f64::NAN, |q| q.p99));
        let (cold, wait) = (p50(report.cold.ttft_ms), p50(report.adapter_wait_ms));
        let cold_share = report.cold_requests as f64 / report.all.completed.max(1) as f64;
        table.push_str(&format!(
            "{ratio:<9} {adapters:>9} {median:>9.1} {p99:>9.1} {:>6.0} % {:>10} {:>10} {:>7.2}\n",
            cold_share * 100.0,
            shown(cold, 1),
            shown(wait, 2),
            median / warm
        ));
        rows.push(
            json!({ "ratio": ratio, "adapters": adapters, "ttft_ms_over_warm": median / warm, "report": report }),
        );
    }
    table.push_str(&format!("ms; {evictions:.0} evictions\n"));
    let curve =
        |value: &dyn Fn(&Report) -> f64| points.iter().map(|point| (point.ratio, value(&point.report))).collect();
    let chart = Chart {
        title: "Time to first token when adapters outnumber slots".to_owned(),
        x: "adapters ÷ slots".to_owned(),
        y: "ms".to_owned(),
        x_log: true,
        y_log: true,
        curves: vec![
            ("median".to_owned(), curve(&median_of)),
            ("p99".to_owned(), curve(&|report| report.all.latencies.ttft_ms.map_or(f64::NAN, |q| q.p99))),
        ],
    };
    let worst = |from: f64, to: f64| {
        let some = points.iter().filter(|point| point.ratio > from && point.ratio <= to);
        some.map(|point| median_of(&point.report) / warm).fold(0.0, f64::max)
    };
    Findings {
        name: "cliff",
        table,
        figures: json!({
            "slots": options.slots, "adapter_bytes": adapter_bytes, "rate": options.rate, "evictions": evictions,
            "warm_ttft_ms": warm, "points": rows,
        }),
        charts: vec![("", chart)],
        verdicts: vec![
            Verdict::at_most("median first token ÷ warm, up to 2 x the slots", worst(0.0, NEAR.0), NEAR.1),
            Verdict::at_most("median first token ÷ warm, up to 16 x the slots", worst(NEAR.0, FAR.0), FAR.1),
            Verdict::at_most("requests without an answer", lost, 0.0),
        ],
    }
}

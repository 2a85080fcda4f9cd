//! The driver against a real mesh: every API, open and closed loops, and each scenario from end to end. What is asserted
//! is what was counted, never how long it took.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_loadtest::arrivals::Arrivals;
use weft_loadtest::client::Client;
use weft_loadtest::dispatch::{self, Options};
use weft_loadtest::event::Api;
use weft_loadtest::lengths::Lengths;
use weft_loadtest::outcome::{End, Outcome};
use weft_loadtest::popularity::Popularity;
use weft_loadtest::report::{Report, Slo};
use weft_loadtest::scenario::{Findings, Setup, cliff, cold, fairness, long_prompt, many, start};
use weft_loadtest::target::Target;
use weft_loadtest::trace::Trace;
use weft_loadtest::weft::{Launcher, Weft, attention_lora};
use weft_loadtest::workload::{Source, Workload};

/// A random Llama that loads in milliseconds; its context is 256.
fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/engine/tests/golden/tiny")
}

fn launcher() -> Launcher {
    Launcher::Here { settings: vec!["--model".to_owned(), tiny_model().display().to_string()] }
}

fn setup() -> Setup {
    Setup { launcher: launcher(), seed: 1 }
}

async fn mesh(tenants: &[&str], adapters: usize) -> (Weft, HashMap<String, String>, Vec<String>, u32) {
    let model = launcher().model().await.unwrap();
    let weft = launcher().up(&[]).await.unwrap();
    let (mut keys, mut names) = (HashMap::new(), Vec::new());
    for tenant in tenants {
        keys.insert((*tenant).to_owned(), weft.tenant(tenant).await.unwrap());
        names = weft.publish(tenant, "a", &attention_lora(&model, 2), adapters).await.unwrap();
    }
    (weft, keys, names, model.vocab_size as u32)
}

fn target(weft: &Weft, api: Api, keys: HashMap<String, String>, vocabulary: Option<u32>) -> Target {
    Target { client: Client::new(weft.url(), api, Duration::from_secs(60)), keys, vocabulary }
}

fn source(tenant: &str, models: &[String], arrivals: Arrivals) -> Source {
    Source {
        tenant: tenant.to_owned(),
        models: models.to_vec(),
        arrivals,
        popularity: Popularity::RoundRobin,
        prompt_tokens: Lengths::uniform(4, 12),
        output_tokens: Lengths::fixed(5),
    }
}

fn failures(outcomes: &[Outcome]) -> Vec<&End> {
    outcomes.iter().map(|outcome| &outcome.end).filter(|end| **end != End::Completed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_api_is_driven_and_every_token_counted() {
    let (weft, keys, names, vocabulary) = mesh(&["one", "two"], 3).await;
    for (api, vocabulary) in
        [(Api::Completions, Some(vocabulary)), (Api::Completions, None), (Api::Chat, None), (Api::Lorax, None)]
    {
        let sources = vec![
            source("one", &names, Arrivals::Uniform { rate: 40.0 }),
            source("two", &[], Arrivals::Poisson { rate: 20.0 }),
        ];
        let mut workload = Workload::of(sources, 30.0);
        workload.requests_max = 8;
        let trace = Trace::generate(workload, 3).unwrap();
        let outcomes = dispatch::run(&trace, &target(&weft, api, keys.clone(), vocabulary), Options::default()).await;
        assert_eq!((outcomes.len(), failures(&outcomes)), (16, vec![]), "{api:?}");
        let report = Report::of(&outcomes, Slo::default());
        assert_eq!((report.tenants["one"].completed, report.tenants["two"].completed), (8, 8));
        for outcome in &outcomes {
            assert_eq!(outcome.completion_tokens, 5, "{api:?}: the endpoint counts, whatever text its tokens have");
            assert!(outcome.pieces_us.len() <= 6 && outcome.pieces_us.is_sorted(), "{outcome:?}");
            assert!(outcome.pieces_us.first().is_none_or(|&first| first >= outcome.sent_us));
            assert!(outcome.due_us <= outcome.sent_us && outcome.sent_us <= outcome.end_us);
            let asks_an_adapter = outcome.model != "base";
            assert_eq!(outcome.adapter_wait_us.is_some(), asks_an_adapter, "{outcome:?}");
        }
        if vocabulary.is_some() {
            let mut got: Vec<u64> = outcomes.iter().map(|outcome| outcome.prompt_tokens).collect();
            let mut asked: Vec<u64> = trace.requests.iter().map(|request| u64::from(request.prompt_tokens)).collect();
            got.sort_unstable();
            asked.sort_unstable();
            assert_eq!(got, asked, "token ids make prompts of exactly the length that was drawn");
        }
        assert_eq!(outcomes.iter().filter(|outcome| outcome.first_use).count(), 3);
    }
    weft.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_for_an_adapter_is_cold_and_the_next_is_warm() {
    let (weft, keys, names, vocabulary) = mesh(&["one"], 2).await;
    let mut workload = Workload::of(vec![source("one", &names, Arrivals::Closed { concurrency: 1 })], 60.0);
    workload.requests_max = 6;
    let trace = Trace::generate(workload, 3).unwrap();
    let mut outcomes =
        dispatch::run(&trace, &target(&weft, Api::Completions, keys, Some(vocabulary)), Options::default()).await;
    outcomes.sort_by_key(|outcome| outcome.sent_us);
    assert_eq!(failures(&outcomes), Vec::<&End>::new());
    let cold: Vec<bool> = outcomes.iter().map(Outcome::cold).collect();
    assert_eq!(cold, [true, true, false, false, false, false]);
    let report = Report::of(&outcomes, Slo::default());
    assert_eq!((report.cold_requests, report.adapter_wait_ms.unwrap().count), (2, 2));
    weft.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_does_not_wait_and_drops_what_is_above_its_bound() {
    let (weft, keys, _, vocabulary) = mesh(&["one"], 0).await;
    let mut long = source("one", &[], Arrivals::Uniform { rate: 1000.0 });
    long.output_tokens = Lengths::fixed(200);
    let mut workload = Workload::of(vec![long], 30.0);
    workload.requests_max = 40;
    let trace = Trace::generate(workload, 3).unwrap();
    let target = target(&weft, Api::Completions, keys, Some(vocabulary));
    let outcomes = dispatch::run(&trace, &target, Options { in_flight_max: 2, salt: 1 }).await;
    let dropped = outcomes.iter().filter(|outcome| outcome.end == End::Dropped).count();
    assert_eq!(outcomes.len(), 40, "each request has an outcome");
    assert!(dropped > 0, "40 answers of 200 tokens do not end within 40 ms, two at a time");
    assert_eq!(failures(&outcomes).len(), dropped, "what was sent was answered");
    weft.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_dead_endpoints_are_failures_with_a_reason() {
    let (weft, mut keys, _, vocabulary) = mesh(&["one"], 0).await;
    keys.insert("stranger".to_owned(), "wrong".to_owned());
    let unknown = ["nobody-knows".to_owned()];
    let sources = vec![
        source("one", &unknown, Arrivals::Closed { concurrency: 1 }),
        source("stranger", &[], Arrivals::Closed { concurrency: 1 }),
    ];
    let mut workload = Workload::of(sources, 60.0);
    workload.requests_max = 1;
    let trace = Trace::generate(workload, 3).unwrap();
    let target = target(&weft, Api::Completions, keys, Some(vocabulary));
    let errors = |outcomes: &[Outcome]| Report::of(outcomes, Slo::default()).errors.into_keys().collect::<Vec<_>>();
    let refused = errors(&dispatch::run(&trace, &target, Options::default()).await);
    assert!(refused[0].starts_with("401: ") && refused[1].starts_with("404: "), "{refused:?}");
    weft.stop().await.unwrap();
    let dead = errors(&dispatch::run(&trace, &target, Options::default()).await);
    assert!(!dead.is_empty() && dead[0].contains("error sending request"), "{dead:?}");
}

fn check(findings: &Findings, verdicts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    findings.publish(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join(format!("scenario-{}.json", findings.name))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let named: Vec<&str> =
        json["verdicts"].as_array().unwrap().iter().map(|verdict| verdict["what"].as_str().unwrap()).collect();
    assert_eq!(named, verdicts);
    for verdict in &findings.verdicts {
        assert!(verdict.value.is_finite(), "{}: a figure is missing", verdict.what);
        if verdict.what == UNANSWERED {
            assert_eq!(verdict.value, 0.0, "{}", findings.table);
        }
    }
    assert!(!findings.table.contains("NaN"), "{}", findings.table);
    for (_, chart) in &findings.charts {
        assert!(chart.curves.iter().any(|(_, points)| points.len() > 1), "{}", chart.title);
    }
}

const UNANSWERED: &str = "requests without an answer";

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_of_many_adapters_runs() {
    let options = many::Options {
        few: 2,
        many: 30,
        rank: 2,
        popularity: Popularity::Power { alpha: 1.0 },
        cv: 1.0,
        prompt_tokens: Lengths::uniform(4, 20),
        output_tokens: Lengths::uniform(2, 8),
        // The driver keeps 2,048 in flight: a machine that is slower than it just was must not leave more behind.
        seconds: 0.2,
        overload: 1.2,
        rounds: 1,
    };
    let findings = many::run(&setup(), &options).await.unwrap();
    check(&findings, &["throughput with many ÷ with few adapters", "slot bytes ÷ their budget", UNANSWERED]);
    assert!(findings.figures["loads"].as_f64().unwrap() > 2.0, "more than the few were loaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_of_the_cliff_runs_and_evicts() {
    let options = cliff::Options {
        slots: 4,
        rank: 2,
        ratios: vec![0.5, 1.0, 4.0],
        rate: 40.0,
        seconds: 1.0,
        prompt_tokens: 8,
        output_tokens: 4,
    };
    let findings = cliff::run(&setup(), &options).await.unwrap();
    check(
        &findings,
        &[
            "median first token ÷ warm, up to 2 x the slots",
            "median first token ÷ warm, up to 16 x the slots",
            UNANSWERED,
        ],
    );
    let points = findings.figures["points"].as_array().unwrap();
    let cold = |index: usize| points[index]["report"]["cold_requests"].as_u64().unwrap();
    assert_eq!(cold(0), 0, "half as many adapters as slots stay resident");
    assert!(cold(2) > 0, "four times as many do not");
    assert!(findings.figures["evictions"].as_f64().unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_of_long_prompts_runs() {
    let options = long_prompt::Options {
        long_tokens: 200,
        every: 0.3,
        concurrency: 2,
        prompt_tokens: 8,
        output_tokens: 16,
        seconds: 1.0,
        rounds: 1,
    };
    let findings = long_prompt::run(&setup(), &options).await.unwrap();
    check(&findings, &["p99 gap with long prompts ÷ without", UNANSWERED]);
    assert_eq!(findings.figures["long"]["ttft_ms"]["count"], 3, "at 0.3, 0.6 and 0.9 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_of_the_greedy_tenant_runs() {
    let options = fairness::Options {
        others: 2,
        concurrency: 2,
        greedy_concurrency: 8,
        cold_adapters: 12,
        slot_bytes: 64 << 10,
        prompt_tokens: 8,
        output_tokens: 8,
        seconds: 0.8,
        rounds: 1,
    };
    let findings = fairness::run(&setup(), &options).await.unwrap();
    check(
        &findings,
        &["the others' share of the tokens ÷ a fair one", "the others' p99 first token ÷ the fair run's", UNANSWERED],
    );
    assert!(findings.figures["evictions"].as_f64().unwrap() > 0.0, "the cold adapters do not fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_of_the_start_runs() {
    let options = start::Options { rounds: 2, adapters: 2, kv_bytes: 1 << 20 };
    let findings = start::run(&setup(), &options).await.unwrap();
    check(&findings, &["seconds from process start to serving"]);
    assert_eq!(findings.figures["seconds"].as_array().unwrap().len(), 2);
    assert!(findings.figures["slot_bytes"].as_f64().unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_of_cold_adapters_runs_and_its_stages_add_up() {
    let options = cold::Options {
        megabytes: vec![0.01, 0.02],
        adapters: vec![3, 2],
        bytes_per_second: vec![0, 10_000_000],
        prompt_tokens: 8,
    };
    let findings = cold::run(&setup(), &options).await.unwrap();
    check(&findings, &[]);
    let rows = findings.figures["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let stages: Vec<_> = row["stages"].as_array().unwrap().iter().map(|stage| (&stage[0], &stage[1])).collect();
        let names: Vec<_> = stages.iter().map(|(name, _)| name.as_str().unwrap()).collect();
        assert_eq!(names, ["fetch", "lease", "pack", "step", "route", "whole"]);
        let mean = |at: usize| stages[at].1["mean"].as_f64().unwrap();
        assert!((0..5).map(mean).sum::<f64>() - mean(5) < 1e-6, "{row}");
        assert!(mean(0) > 0.0 && mean(2) > 0.0 && mean(3) > 0.0 && row["floor_ms"].as_f64().unwrap() > 0.0, "{row}");
    }
}

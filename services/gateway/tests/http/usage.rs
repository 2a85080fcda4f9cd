//! Answers are written down before their last piece goes out, each once, whatever becomes of it.

use crate::support::worker::{FakeWorker, Step, echoed, finished, hello, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh_with, settings};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use weft_fault::{Fault, Kind};
use weft_gateway::Settings;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_usage::{Outcome, Request};

fn accounting(dir: &std::path::Path) -> Settings {
    Settings { usage_dir: Some(dir.to_owned()), usage_ship_ms: 100, ..settings() }
}

async fn until_records(mesh: &Mesh, count: usize) -> Vec<Request> {
    mesh.until("shipped", async || mesh.registry.usage().len() >= count).await;
    let mut records = mesh.registry.usage();
    records.sort_by(|one, other| one.id.cmp(&other.id));
    records
}

#[tokio::test]
async fn every_answer_is_one_record_and_every_prompt_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh_with(accounting(dir.path()), vec![FakeWorker::new("worker-1")]).await;
    let mut body = chat_body("pirate");
    body["n"] = json!(3);
    let answer = mesh.post("/v1/chat/completions", &body).send().await.unwrap();
    let id = answer.headers()["x-weft-response-id"].to_str().unwrap().to_owned();
    let answer: serde_json::Value = answer.json().await.unwrap();
    let (status, base) = mesh.chat("base").await;
    assert_eq!(status, 200);
    let records = until_records(&mesh, 4).await;
    assert_eq!(records.len(), 4);
    let of: Vec<&Request> = records.iter().filter(|record| record.id.starts_with(&id)).collect();
    let ids: Vec<&str> = of.iter().map(|record| record.id.as_str()).collect();
    assert_eq!(ids, [id.clone(), format!("{id}.1"), format!("{id}.2")]);
    let sum = |count: &dyn Fn(&Request) -> u64| of.iter().map(|record| count(record)).sum::<u64>();
    let said = |name: &str| answer["usage"][name].as_u64().unwrap();
    assert_eq!(sum(&|record| record.prompt_tokens), said("prompt_tokens"));
    assert_eq!(sum(&|record| record.completion_tokens), said("completion_tokens"));
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(sum(&|record| record.cached_tokens), cached);
    assert!(of.iter().all(|record| record.outcome == Outcome::Complete && record.version == Some(2)));
    assert!(of.iter().all(|record| (record.tenant.as_str(), record.key_id.as_str()) == ("harbour", "k1")));
    let of_base = records.iter().find(|record| record.adapter.is_none()).unwrap();
    assert_eq!(base["id"], format!("chatcmpl-{}", of_base.id));
    // What was refused, or never began, used nothing.
    mesh.chat("nobody").await;
    mesh.workers[0].play(|_| vec![Step::Fail(tonic::Status::invalid_argument("no"))]);
    assert_eq!(mesh.chat("pirate").await.0, 400);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(mesh.registry.usage().len(), 4);
}

#[tokio::test]
async fn an_answer_that_its_client_left_and_one_that_broke_are_accounted_for_as_far_as_they_got() {
    let dir = tempfile::tempdir().unwrap();
    let hold = Arc::new(Notify::new());
    let waiting = Arc::clone(&hold);
    let worker = FakeWorker::playing("worker-1", move |request: &pb::GenerateRequest| {
        let digest = echoed(request);
        let end = if request.adapter.is_some() { Step::Wait(Arc::clone(&waiting)) } else { Step::Stop };
        vec![started(digest.clone()), tokens(digest, vec![token(1, "a"), token(2, "b")]), end]
    });
    let settings = Settings { retries_max: 0, continuations_max: 0, ..accounting(dir.path()) };
    let mesh = mesh_with(settings, vec![worker]).await;
    let mut body = chat_body("pirate");
    body["stream"] = json!(true);
    let mut left = mesh.post("/v1/chat/completions", &body).send().await.unwrap();
    left.chunk().await.unwrap().unwrap();
    drop(left);
    body["model"] = json!("base");
    let broken = mesh.post("/v1/chat/completions", &body).send().await.unwrap().text().await.unwrap();
    assert!(broken.contains("error"), "{broken}");
    let records = until_records(&mesh, 2).await;
    let outcome = |is_base: bool| records.iter().find(|record| record.adapter.is_none() == is_base).unwrap();
    assert_eq!((outcome(false).outcome, outcome(false).completion_tokens), (Outcome::Cancelled, 2));
    assert_eq!((outcome(true).outcome, outcome(true).completion_tokens), (Outcome::Failed, 2));
    assert!(records.iter().all(|record| record.prompt_tokens > 0));
}

#[tokio::test]
async fn what_was_written_down_ships_when_the_registry_is_back_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Settings { usage_ship_ms: 3_600_000, ..accounting(dir.path()) };
    let mesh = mesh_with(slow, vec![FakeWorker::new("worker-1")]).await;
    for _ in 0..3 {
        assert_eq!(mesh.chat("pirate").await.0, 200);
    }
    assert_eq!(mesh.registry.usage().len(), 0);
    // As a kill leaves it: nothing more is told.
    mesh.running.abort();
    drop(mesh);
    // Its tasks go a little later, and the log with them.
    while weft_usage::Log::open(dir.path(), weft_usage::LogSettings::default()).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = mesh_with(accounting(dir.path()), vec![FakeWorker::new("worker-1")]).await;
    assert_eq!(until_records(&again, 3).await.len(), 3);
}

/// Three answers to one prompt; which one a request of the worker is for is told by its seed.
fn three_answers() -> serde_json::Value {
    let mut body = chat_body("pirate");
    (body["n"], body["seed"]) = (json!(3), json!(100));
    body
}

fn answer_of(request: &pb::GenerateRequest) -> u64 {
    request.sampling.unwrap().seed.unwrap() - 100
}

/// Nobody else is asked.
fn alone(dir: &std::path::Path) -> Settings {
    Settings { retries_max: 0, continuations_max: 0, ..accounting(dir) }
}

#[tokio::test]
async fn answers_that_are_given_together_or_not_at_all_are_complete_together() {
    let dir = tempfile::tempdir().unwrap();
    let hold = Arc::new(Notify::new());
    let waiting = Arc::clone(&hold);
    // The first is whole when the second breaks.
    let worker = FakeWorker::playing("worker-1", move |request| match answer_of(request) {
        0 => hello(request),
        1 => vec![
            started(echoed(request)),
            tokens(echoed(request), vec![token(1, "a")]),
            Step::Wait(waiting.clone()),
            Step::Stop,
        ],
        _ => vec![started(echoed(request)), tokens(echoed(request), vec![token(1, "a")]), Step::Hang],
    });
    let mesh = mesh_with(alone(dir.path()), vec![worker]).await;
    let told = async {
        mesh.until("the first has ended", async || {
            mesh.workers[0].requests().len() == 3 && mesh.workers[0].running() == 2
        })
        .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        hold.notify_one();
    };
    let ((status, answer), ()) = tokio::join!(mesh.send("/v1/chat/completions", three_answers()), told);
    assert!(status >= 500, "{status} {answer}");
    let records = until_records(&mesh, 3).await;
    let outcomes: Vec<_> = records.iter().map(|record| (record.outcome, record.completion_tokens)).collect();
    assert_eq!(outcomes, [(Outcome::Failed, 3), (Outcome::Failed, 1), (Outcome::Failed, 1)]);
}

#[tokio::test]
async fn a_request_one_of_whose_answers_is_refused_used_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let hold = Arc::new(Notify::new());
    let waiting = Arc::clone(&hold);
    let worker = FakeWorker::playing("worker-1", move |request| match answer_of(request) {
        2 => vec![Step::Wait(waiting.clone()), Step::Fail(Fault::new(Kind::Overloaded, "the queue is full").into())],
        _ => vec![started(echoed(request)), tokens(echoed(request), vec![token(1, "a")]), Step::Hang],
    });
    let mesh = mesh_with(alone(dir.path()), vec![worker]).await;
    for stream in [false, true] {
        let mut body = three_answers();
        body["stream"] = json!(stream);
        let told = async {
            mesh.until("all are asked for", async || mesh.workers[0].running() == 3).await;
            // The others begin.
            tokio::time::sleep(Duration::from_millis(200)).await;
            hold.notify_one();
        };
        let ((status, answer), ()) = tokio::join!(mesh.send("/v1/chat/completions", body), told);
        assert_eq!(status, 429, "{answer}");
        mesh.until("all are given up", async || mesh.workers[0].running() == 0).await;
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let records = mesh.registry.usage();
    assert!(records.is_empty(), "{records:?}");
}

#[tokio::test]
async fn the_prompt_counts_as_the_answer_tells_it_whichever_of_its_answers_begins_first() {
    let dir = tempfile::tempdir().unwrap();
    let hold = Arc::new(Notify::new());
    let waiting = Arc::clone(&hold);
    let worker = FakeWorker::playing("worker-1", move |request| {
        let mut steps = hello(request);
        let Step::Say(Event::Started(started)) = &mut steps[0] else { unreachable!("it begins so") };
        // The first one begins last, and finds less in the cache.
        match answer_of(request) {
            0 => steps.insert(0, Step::Wait(waiting.clone())),
            _ => started.cached_tokens = 7,
        }
        steps
    });
    let mesh = mesh_with(accounting(dir.path()), vec![worker]).await;
    let told = async {
        mesh.until("all are asked for", async || mesh.workers[0].requests().len() == 3).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        hold.notify_one();
    };
    let ((status, answer), ()) = tokio::join!(mesh.send("/v1/chat/completions", three_answers()), told);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 3);
    let records = until_records(&mesh, 3).await;
    let prompts: Vec<_> = records.iter().map(|record| (record.prompt_tokens, record.cached_tokens)).collect();
    assert_eq!(prompts, [(7, 3), (0, 0), (0, 0)]);
}

#[tokio::test]
async fn an_echo_of_the_prompt_alone_is_charged_for_the_prompt_alone() {
    let dir = tempfile::tempdir().unwrap();
    let worker = FakeWorker::playing("worker-1", |request| {
        let digest = echoed(request);
        let one = tokens(digest.clone(), vec![token(1, "a")]);
        vec![started(digest.clone()), one, finished(digest, pb::FinishReason::Length, 1)]
    });
    let mesh = mesh_with(accounting(dir.path()), vec![worker]).await;
    let body = json!({"model": "pirate", "prompt": "Say hello", "echo": true, "max_tokens": 0});
    let (status, answer) = mesh.send("/v1/completions", body.clone()).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(0)));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    mesh.events("/v1/completions", streamed).await;
    let records = until_records(&mesh, 2).await;
    for record in records {
        assert_eq!((record.prompt_tokens, record.completion_tokens, record.outcome), (7, 0, Outcome::Complete));
    }
}

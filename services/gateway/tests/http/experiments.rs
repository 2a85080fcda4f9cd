//! Split aliases: who gets which arm, what is observed and told, feedback, shadows; and warm slots before an alias moves.

use crate::support::registry::digest_of;
use crate::support::worker::{FakeWorker, Step, echoed, finished, hello, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh_with, read, settings};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use weft_experiments::{Experiment, Statistics};
use weft_fault::Fault;
use weft_gateway::Settings;
use weft_proto::worker::v1 as pb;

fn split(weights: [u32; 2], more: Value) -> Value {
    let mut description = json!({
        "id": "pirates", "tenant": "harbour", "adapter": "pirate", "state": "running", "primary": "feedback",
        "arms": [
            {"name": "v2", "digest": digest_of("pirate 2").to_string(), "role": "control", "weight": weights[0]},
            {"name": "v1", "digest": digest_of("pirate 1").to_string(), "weight": weights[1]},
        ],
        "metrics": [
            {"name": "feedback", "kind": "binary", "better": "higher"},
            {"name": "error", "kind": "binary", "better": "lower"},
            {"name": "tokens", "kind": {"positive": {"max": 100}}, "better": "lower"},
            {"name": "ttft_ms", "kind": {"positive": {"max": 10000}}, "better": "lower"},
        ],
    });
    for (key, value) in more.as_object().unwrap() {
        description[key] = value.clone();
    }
    description
}

async fn mesh(description: &Value, workers: Vec<FakeWorker>) -> Mesh {
    let mesh = mesh_with(Settings { experiment_report_ms: 100, ..settings() }, workers).await;
    mesh.registry.split(description);
    // The directory is followed, not asked for.
    mesh.until("split", async || {
        let answer = mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap();
        answer.headers().contains_key("x-weft-experiment")
    })
    .await;
    mesh
}

/// The arm and the answer's id, for a user.
async fn ask(mesh: &Mesh, user: Option<&str>) -> (String, String) {
    let mut body = chat_body("pirate");
    if let Some(user) = user {
        body["user"] = json!(user);
    }
    let answer = mesh.post("/v1/chat/completions", &body).send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let (arm, adapter, id) = (header("x-weft-experiment"), header("x-weft-adapter"), header("x-weft-response-id"));
    let (status, body) = read(answer).await;
    assert_eq!(status, 200, "{body}");
    let arm = arm.strip_prefix("pirates/").unwrap().to_owned();
    assert_eq!(adapter, format!("harbour/pirate@{}", &arm[1..]), "what answers is what the arm serves");
    assert_eq!(body["id"], format!("chatcmpl-{id}"));
    (arm, id)
}

/// All that was told so far: the sums, and the lines of the log.
fn told(mesh: &Mesh) -> (Option<Statistics>, Vec<Value>) {
    let reports = mesh.registry.reports();
    let statistics = reports.last().map(|last| serde_json::from_slice(&last.statistics).unwrap());
    let lines = reports.iter().flat_map(|report| report.exposures.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
    let lines = lines.filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(&line).unwrap());
    (statistics, lines.collect())
}

async fn until_lines(mesh: &Mesh, count: usize) -> (Statistics, Vec<Value>) {
    mesh.until("told", async || told(mesh).1.len() >= count).await;
    let (statistics, lines) = told(mesh);
    (statistics.unwrap(), lines)
}

fn experiment(description: &Value) -> Experiment {
    Experiment::parse(&serde_json::to_vec(description).unwrap()).unwrap()
}

#[tokio::test]
async fn a_user_or_session_keeps_its_arm_and_others_are_split() {
    let description = split([1, 1], json!({}));
    let mesh = mesh(&description, vec![FakeWorker::new("worker-1")]).await;
    let mut arms = BTreeMap::new();
    for n in 0..40 {
        let user = format!("user-{n}");
        let (arm, _) = ask(&mesh, Some(&user)).await;
        for _ in 0..2 {
            assert_eq!(ask(&mesh, Some(&user)).await.0, arm, "{user}");
        }
        *arms.entry(arm).or_insert(0) += 1;
    }
    assert_eq!(arms.len(), 2, "{arms:?}");
    assert!(arms.values().all(|count| *count >= 8), "{arms:?}");
    // A session goes before the user, and is as sticky; LoRAX's dialect has sessions alone.
    let mut sessions = BTreeMap::new();
    for n in 0..20 {
        let arm = async |path: &str, mut body: Value, user: &str| {
            body["user"] = json!(user);
            let request = mesh.post(path, &body).header("x-weft-session", format!("session-{n}"));
            request.send().await.unwrap().headers()["x-weft-experiment"].to_str().unwrap().to_owned()
        };
        let chat = arm("/v1/chat/completions", chat_body("pirate"), "a").await;
        assert_eq!(arm("/v1/chat/completions", chat_body("pirate"), "b").await, chat);
        let lorax = json!({"inputs": "ahoy", "parameters": {"adapter_id": "pirate"}});
        let answer = mesh.post("/generate", &lorax).header("x-weft-session", format!("session-{n}"));
        assert_eq!(answer.send().await.unwrap().headers()["x-weft-experiment"].to_str().unwrap(), chat);
        sessions.insert(chat, n);
    }
    assert_eq!(sessions.len(), 2);
    // Whoever names a version gets it, and is in no experiment.
    let answer = mesh.post("/v1/chat/completions", &chat_body("pirate@2")).send().await.unwrap();
    assert!(!answer.headers().contains_key("x-weft-experiment"));
    assert_eq!(answer.headers()["x-weft-adapter"], "harbour/pirate@2");
}

#[tokio::test]
async fn what_is_observed_is_told_once_and_adds_up() {
    let description = split([1, 1], json!({}));
    let mesh = mesh(&description, vec![FakeWorker::new("worker-1")]).await;
    let before = until_lines(&mesh, 2).await.1.len();
    mesh.registry.refuse_reports(true);
    for user in ["a", "b", "a", "c"] {
        ask(&mesh, Some(user)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    mesh.registry.refuse_reports(false);
    let (statistics, lines) = until_lines(&mesh, before + 8).await;
    assert_eq!(lines.len(), before + 8, "an exposure and an outcome each, whatever was tried again");
    let sequences: Vec<u64> = mesh.registry.reports().iter().map(|report| report.sequence).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let experiment = experiment(&description);
    let sum = |of: &dyn Fn(usize) -> u64| (0..2).map(of).sum::<u64>();
    let requests = before as u64 / 2;
    assert_eq!(sum(&|arm| statistics.exposures(0, arm).0), requests + 4);
    assert_eq!(sum(&|arm| statistics.exposures(0, arm).1), requests + 3, "user a is one unit");
    for metric in ["error", "tokens", "ttft_ms"] {
        let metric = experiment.metric(metric).unwrap();
        let count = sum(&|arm| statistics.sample_of_all(arm, metric).count as u64);
        assert_eq!(count, requests + 3, "one observation for each unit");
    }
    let outcomes: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "outcome").collect();
    assert!(outcomes.iter().all(|line| line["end"] == "finished" && line["tokens"].as_u64() > Some(0)), "{outcomes:?}");
    let exposure = lines.iter().find(|line| line["kind"] == "exposure" && line["key"].is_string()).unwrap();
    assert!(exposure["request_id"].as_str().unwrap().starts_with("req_"), "{exposure}");
    assert!(!exposure.to_string().contains("\"a\""), "keys are hashed: {exposure}");
}

#[tokio::test]
async fn an_arm_that_fails_is_seen_to_fail() {
    let description = split([1, 1], json!({"unit": "request"}));
    let worker = FakeWorker::playing("worker-1", |request: &pb::GenerateRequest| {
        let asked = request.adapter.as_ref().map(|adapter| adapter.digest.clone()).unwrap_or_default();
        if asked == digest_of("pirate 1").to_vec() {
            return vec![started(echoed(request)), Step::Fail(Fault::internal("the worker has a bug").into())];
        }
        hello(request)
    });
    let mesh = mesh_with(
        Settings { experiment_report_ms: 100, retries_max: 0, continuations_max: 0, ..settings() },
        vec![worker],
    )
    .await;
    mesh.registry.split(&description);
    let mut failed = 0;
    let mut requests = 0;
    // Both arms: which one a request gets is drawn, and an arm without requests has no mean.
    while failed < 3 || requests == failed {
        let answer = mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap();
        if answer.headers().contains_key("x-weft-experiment") {
            requests += 1;
            failed += usize::from(answer.status() == 500);
        }
        assert!(requests < 200, "arm v1 never answered");
    }
    let (statistics, lines) = until_lines(&mesh, 2 * requests).await;
    assert_eq!(lines.len(), 2 * requests);
    let error = experiment(&description).metric("error").unwrap();
    let of = |arm: usize| statistics.sample_of_all(arm, error);
    assert_eq!((of(0).count + of(1).count) as usize, requests);
    assert_eq!((of(0).mean(), of(1).count as usize), (0.0, failed));
    assert!(of(1).mean() > 0.99);
}

async fn feedback(mesh: &Mesh, body: Value) -> (u16, Value) {
    mesh.send("/v1/feedback", body).await
}

#[tokio::test]
async fn feedback_counts_once_for_the_arm_that_answered_and_is_kept_when_it_is_answered() {
    let description = split([1, 1], json!({}));
    let mesh = mesh(&description, vec![FakeWorker::new("worker-1")]).await;
    let (arm, id) = ask(&mesh, Some("ada")).await;
    let (status, taken) = feedback(&mesh, json!({"id": format!("chatcmpl-{id}"), "score": 1})).await;
    assert_eq!((status, &taken["counted"], &taken["arm"]), (200, &json!(true), &json!(arm)), "{taken}");
    let (statistics, lines) = told(&mesh);
    let at = usize::from(arm == "v1");
    assert_eq!(statistics.unwrap().sample_of_all(at, 0).count, 1.0, "it is told when the client has its answer");
    let said: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "feedback").collect();
    assert_eq!((said.len(), &said[0]["value"]), (1, &json!(1.0)));
    assert!(id.starts_with(said[0]["response_id"].as_str().unwrap()));

    // The same again, with another value or not, counts no more.
    let (status, again) = feedback(&mesh, json!({"id": id, "label": "down"})).await;
    assert_eq!((status, &again["counted"]), (200, &json!(false)));
    // A later answer to the same user is no second observation.
    let (_, later) = ask(&mesh, Some("ada")).await;
    let (status, later) = feedback(&mesh, json!({"id": later, "label": "up"})).await;
    assert_eq!((status, &later["counted"]), (200, &json!(false)));
    assert!(later["reason"].as_str().unwrap().contains("same key"), "{later}");

    let (_, id) = ask(&mesh, Some("grace")).await;
    for (body, param) in [
        (json!({"id": id, "score": 0.5}), "score"),
        (json!({"id": id, "score": 1, "metric": "stars"}), "metric"),
        (json!({"id": id, "score": 1, "metric": "error"}), "measures itself"),
        (json!({"id": id}), "score"),
        (json!({"id": id, "score": 1, "extra": 1}), "extra"),
    ] {
        let (status, refused) = feedback(&mesh, body.clone()).await;
        assert_eq!(status, 400, "{body}: {refused}");
        assert!(refused["error"].to_string().contains(param), "{refused}");
    }
    let (status, taken) = feedback(&mesh, json!({"id": id, "score": 0})).await;
    assert_eq!((status, &taken["counted"]), (200, &json!(true)), "what was refused stands in nobody's way: {taken}");

    // Nobody else's answers, and none that never was.
    let foreign = mesh.client.post(format!("{}/v1/feedback", mesh.data)).bearer_auth("helpdesk-key");
    assert_eq!(foreign.json(&json!({"id": id, "score": 1})).send().await.unwrap().status(), 404);
    for made_up in ["x", "", "chatcmpl-00000000000000000000000000000000-AAAAAAAAAAAAAAAAAAAAAA"] {
        assert_eq!(feedback(&mesh, json!({"id": made_up, "score": 1})).await.0, 404, "{made_up}");
    }

    // An answer of no experiment, and of one that has ended.
    let answer = mesh.post("/v1/chat/completions", &chat_body("base")).send().await.unwrap();
    let plain = answer.headers()["x-weft-response-id"].to_str().unwrap().to_owned();
    let (status, taken) = feedback(&mesh, json!({"id": plain, "score": 1})).await;
    assert_eq!((status, &taken["counted"]), (200, &json!(false)));
    mesh.registry.split_nothing();
    mesh.until("ended", async || {
        feedback(&mesh, json!({"id": id, "score": 1})).await.1["reason"] == "the experiment has ended"
    })
    .await;
    let metrics = mesh.client.get(format!("{}/metrics", mesh.admin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("gateway_feedback_total{result=\"counted\"} 2"), "{metrics}");
    mesh.until("forgotten", async || {
        let metrics = mesh.client.get(format!("{}/metrics", mesh.admin)).send().await.unwrap().text().await.unwrap();
        !metrics.contains("gateway_experiment_exposures_total{")
    })
    .await;
}

#[tokio::test]
async fn feedback_waits_for_a_registry_that_is_away() {
    let mesh = mesh(&split([1, 1], json!({})), vec![FakeWorker::new("worker-1")]).await;
    let (_, id) = ask(&mesh, Some("ada")).await;
    mesh.registry.refuse_reports(true);
    let request = mesh.post("/v1/feedback", &json!({"id": id, "score": 1}));
    let waiting = tokio::spawn(request.send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "what is not kept is not acknowledged");
    mesh.registry.refuse_reports(false);
    let (status, taken) = read(waiting.await.unwrap().unwrap()).await;
    assert_eq!((status, &taken["counted"]), (200, &json!(true)));
}

#[tokio::test]
async fn a_shadow_answers_to_the_log_alone_and_costs_the_tenant_nothing() {
    let mut description = split([1, 0], json!({}));
    description["arms"][1]["role"] = json!("shadow");
    description["arms"][1]["weight"] = json!(10_000);
    let worker = FakeWorker::playing("worker-1", |request: &pb::GenerateRequest| {
        let is_shadow =
            request.adapter.as_ref().is_some_and(|adapter| adapter.digest == digest_of("pirate 1").to_vec());
        if !is_shadow {
            return hello(request);
        }
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest.clone(), vec![token(7, "shadow words")]),
            finished(digest, pb::FinishReason::Eos, 1),
        ]
    });
    let mesh = mesh(&description, vec![worker]).await;
    let before = until_lines(&mesh, 4).await.1.len();
    let (arm, _) = ask(&mesh, Some("ada")).await;
    assert_eq!(arm, "v2");
    let (statistics, lines) = until_lines(&mesh, before + 4).await;
    let answers: Vec<&Value> = lines.iter().filter(|line| line["answer"] == "shadow words").collect();
    assert!(!answers.is_empty() && answers.iter().all(|line| line["arm"] == "v1"), "{lines:?}");
    assert!(statistics.exposures(0, 1).0 >= 2);
    let shadow =
        mesh.workers[0].requests().into_iter().rfind(|request| request.request_id.ends_with(".shadow")).unwrap();
    assert_eq!((shadow.priority, shadow.tenant.as_str()), (1, "harbour"));
}

#[tokio::test]
async fn an_alias_moves_after_its_new_version_is_warm_where_the_old_one_is() {
    let (holds, cold) = (FakeWorker::new("worker-1"), FakeWorker::new("worker-2"));
    holds.holds(&[digest_of("pirate 2")]);
    let mesh = mesh_with(settings(), vec![holds, cold]).await;
    mesh.until("seen", async || mesh.workers[0].lists() > 0).await;
    let moved = mesh.operate("PUT", "/tenants/harbour/adapters/pirate/aliases/live").json(&json!({"version": 1}));
    mesh.until("both seen", async || mesh.workers.iter().all(|worker| worker.lists() > 0)).await;
    let (status, moved) = read(moved.send().await.unwrap()).await;
    assert_eq!((status, &moved["version"]), (200, &json!(1)), "{moved}");
    assert_eq!(mesh.workers[0].warmed(), [digest_of("pirate 1")]);
    assert_eq!(mesh.workers[0].pinned(), [], "it is let go again");
    assert_eq!(mesh.workers[1].warmed(), [], "a worker without the old version is left alone");
    // A worker that cannot stops nothing.
    mesh.workers[0].refuse_pins();
    let back = mesh.operate("PUT", "/tenants/harbour/adapters/pirate/aliases/live").json(&json!({"version": 2}));
    assert_eq!(back.send().await.unwrap().status(), 200);
}

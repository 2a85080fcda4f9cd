//! Probes, metrics, documents, draining.

use crate::support::worker::{FakeWorker, Step, echoed, finished, started, token, tokens};
use crate::support::{chat_body, mesh, mesh_with, read, settings};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use weft_proto::worker::v1::FinishReason;

#[tokio::test]
async fn metrics_count_what_was_answered() {
    let mesh = mesh().await;
    assert_eq!(mesh.chat("pirate").await.0, 200);
    assert_eq!(mesh.chat("nobody").await.0, 404);
    let get = async |name: &str| mesh.metric(name).await;
    assert_eq!(get("gateway_requests_total{route=\"/v1/chat/completions\",status=\"200\"}").await, 1.0);
    assert_eq!(get("gateway_requests_total{route=\"/v1/chat/completions\",status=\"404\"}").await, 1.0);
    assert_eq!(get("gateway_prompt_tokens_total").await, 7.0);
    assert_eq!(get("gateway_cached_tokens_total").await, 3.0);
    assert_eq!(get("gateway_completion_tokens_total").await, 3.0);
    assert_eq!(get("gateway_generations_total{end=\"finished\"}").await, 1.0);
    assert_eq!(get("gateway_first_token_seconds_count").await, 1.0);
    mesh.get("/v1/models/whatever/x").send().await.unwrap();
    mesh.get("/some/unknown/path").send().await.unwrap();
    let text = mesh.client.get(format!("{}/metrics", mesh.admin)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("route=\"/v1/models/{*id}\"") && text.contains("route=\"none\""));
    assert!(!text.contains("whatever") && !text.contains("unknown/path"), "labels must be bounded");
}

#[tokio::test]
async fn documents_are_served_without_other_servers() {
    let mesh = mesh().await;
    let (status, document) = read(mesh.client.get(format!("{}/openapi.json", mesh.data)).send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(document["paths"]["/v1/chat/completions"]["post"]["requestBody"].is_object());
    let page = mesh.client.get(format!("{}/docs", mesh.data)).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("/openapi.json") && !page.contains("https://") && !page.contains("//cdn"));
}

#[tokio::test]
async fn operators_see_workers_and_slots() {
    let worker = FakeWorker::new("w");
    let held = crate::support::registry::digest_of("pirate 2");
    worker.holds(&[held]);
    let mesh = mesh_with(settings(), vec![worker]).await;
    let (status, workers) = read(mesh.operate("GET", "/workers").send().await.unwrap()).await;
    assert_eq!(status, 200);
    let worker = &workers["workers"][0];
    assert_eq!(
        (&worker["up"], &worker["describes"]["served_name"], &worker["load"]["mixed_steps_total"]),
        (&json!(true), &json!("tiny-base"), &json!(11))
    );
    let (_, residency) = read(mesh.operate("GET", "/residency").send().await.unwrap()).await;
    assert_eq!(residency["workers"][0]["slots"]["adapters"][0]["digest"], held.to_string());
}

#[tokio::test]
async fn operators_pin_unpin_and_evict_what_a_name_means() {
    let workers = [FakeWorker::new("one"), FakeWorker::new("two")];
    let digest = crate::support::registry::digest_of("pirate 2");
    workers[0].holds(&[digest]);
    let mesh = mesh_with(settings(), workers.to_vec()).await;
    let call = async |method: &str, path: &str| {
        read(mesh.operate(method, &format!("/tenants/harbour/adapters/{path}")).send().await.unwrap()).await
    };
    let (status, pinned) = call("PUT", "pirate/pin").await;
    assert_eq!((status, &pinned["digest"]), (200, &json!(digest.to_string())), "{pinned}");
    assert_eq!(pinned["workers"].as_array().unwrap().len(), 2);
    assert_eq!(pinned["workers"][1]["bytes"], 77);
    assert!(workers.iter().all(|worker| worker.pinned() == [digest]));

    let (status, refused) = call("POST", "pirate/evict").await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("adapter_in_use")), "{refused}");
    let (_, unpinned) = call("DELETE", "pirate@2/pin").await;
    assert_eq!(unpinned["workers"][0]["was_pinned"], true);
    let (_, evicted) = call("POST", "pirate/evict").await;
    assert_eq!((&evicted["workers"][0]["bytes"], &evicted["workers"][1]["bytes"]), (&json!(77), &json!(0)));

    // One that cannot is named; if none can, that is the answer.
    workers[0].refuse_pins();
    let (status, partly) = call("PUT", "pirate/pin").await;
    assert_eq!((status, &partly["workers"][1]["problem"]), (200, &json!(null)));
    assert!(partly["workers"][0]["problem"].as_str().unwrap().contains("90 of the 100"), "{partly}");
    workers[1].refuse_pins();
    let (status, refused) = call("PUT", "pirate/pin").await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("pin_budget")), "{refused}");
    for name in ["nobody", "pirate@7", "base", "default"] {
        assert_eq!(call("PUT", &format!("{name}/pin")).await.0, 404, "{name}");
    }
}

#[tokio::test]
async fn a_drain_turns_readiness_and_lets_answers_finish() {
    let told = Arc::new(Notify::new());
    let waiting = told.clone();
    let worker = FakeWorker::playing("waits", move |request| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest.clone(), vec![token(1, "before")]),
            Step::Wait(waiting.clone()),
            tokens(digest.clone(), vec![token(2, "after")]),
            finished(digest, FinishReason::Eos, 2),
        ]
    });
    let settings = weft_gateway::Settings { drain_delay_ms: 60_000, ..settings() };
    let mesh = mesh_with(settings, vec![worker]).await;
    let mut body = chat_body("pirate");
    body["stream"] = json!(true);
    let mut running = mesh.post("/v1/chat/completions", &body).send().await.unwrap();
    running.chunk().await.unwrap();
    mesh.shutdown.trigger();
    mesh.until("not ready", async || mesh.get("/readyz").send().await.unwrap().status() == 503).await;
    let ready: Value = mesh.get("/readyz").send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["waiting_for"][0]["condition"], "running");
    let answer = mesh.get("/livez").send().await.unwrap();
    let close = answer.headers().get("connection").map(|value| value.to_str().unwrap().to_owned());
    assert_eq!((answer.status().as_u16(), close.as_deref()), (200, Some("close")), "the next request goes elsewhere");
    told.notify_one();
    let rest = running.text().await.unwrap();
    assert!(rest.contains("after") && rest.contains("[DONE]"), "{rest}");
}

/// A client may use its connection again at the very moment: that is not broken off.
#[tokio::test]
async fn an_open_connection_is_answered_a_moment_longer_than_new_ones() {
    let settings = weft_gateway::Settings { drain_delay_ms: 1_000, ..settings() };
    let mut mesh = mesh_with(settings, vec![FakeWorker::new("w")]).await;
    let at = mesh.data.strip_prefix("http://").unwrap().to_owned();
    let mut open = BufReader::new(TcpStream::connect(&at).await.unwrap());
    mesh.shutdown.trigger();
    mesh.until("closed to new ones", async || TcpStream::connect(&at).await.is_err()).await;
    open.get_mut().write_all(b"GET /livez HTTP/1.1\r\nhost: weft\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    open.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    (&mut mesh.running).await.unwrap();
}

#[tokio::test]
async fn after_the_signal_the_process_ends_when_its_answers_have() {
    let told = Arc::new(Notify::new());
    let waiting = told.clone();
    let worker = FakeWorker::playing("waits", move |request| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest.clone(), vec![token(1, "before")]),
            Step::Wait(waiting.clone()),
            finished(digest, FinishReason::Eos, 1),
        ]
    });
    let mut mesh = mesh_with(settings(), vec![worker]).await;
    let mut body = chat_body("pirate");
    body["stream"] = json!(true);
    let mut running = mesh.post("/v1/chat/completions", &body).send().await.unwrap();
    running.chunk().await.unwrap();
    mesh.shutdown.trigger();
    mesh.until("closed to new ones", async || mesh.get("/livez").send().await.is_err()).await;
    assert!(!mesh.running.is_finished());
    told.notify_one();
    assert!(running.text().await.unwrap().contains("[DONE]"));
    (&mut mesh.running).await.unwrap();
}

//! Invariant 1 at the edge: a worker that uses other bytes than were resolved delivers nothing of them.

use crate::support::worker::{FakeWorker, Step, echoed, finished, raw, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh_with, settings};
use bytes::Bytes;
use serde_json::{Value, json};
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

fn wrong() -> Bytes {
    raw(Digest::of(b"somebody else's adapter"))
}

async fn mesh_of(script: impl Fn(&pb::GenerateRequest) -> Vec<Step> + Send + Sync + 'static) -> Mesh {
    mesh_with(settings(), vec![FakeWorker::playing("liar", script)]).await
}

fn streaming(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": true})
}

#[tokio::test]
async fn a_wrong_digest_before_the_first_token_fails_with_a_status() {
    for model in ["pirate", "base"] {
        let mesh = mesh_of(|_| vec![started(wrong()), tokens(wrong(), vec![token(1, "SECRET")])]).await;
        for body in [chat_body(model), streaming(model)] {
            let (status, body) = mesh.send("/v1/chat/completions", body).await;
            assert_eq!((status, &body["error"]["code"]), (500, &json!("adapter_mismatch")));
            assert!(!body.to_string().contains("SECRET"));
        }
        assert_eq!(mesh.metric("gateway_digest_mismatches_total").await, 2.0);
    }
}

#[tokio::test]
async fn the_base_in_the_adapters_place_is_a_mismatch_too() {
    let mesh = mesh_of(|_| vec![started(Bytes::new()), tokens(Bytes::new(), vec![token(1, "SECRET")])]).await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("adapter_mismatch")));
}

#[tokio::test]
async fn a_wrong_digest_in_mid_stream_ends_it_before_that_token() {
    let script = |request: &pb::GenerateRequest| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest.clone(), vec![token(1, "good")]),
            tokens(wrong(), vec![token(2, "SECRET")]),
            tokens(digest.clone(), vec![token(3, "late")]),
            finished(digest, pb::FinishReason::Eos, 3),
        ]
    };
    let mesh = mesh_of(script).await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("adapter_mismatch")));
    assert!(!body.to_string().contains("SECRET") && !body.to_string().contains("good"));

    let events = mesh.events("/v1/chat/completions", streaming("pirate")).await;
    let text = events.join("\n");
    assert!(text.contains("good") && !text.contains("SECRET") && !text.contains("late"), "{text}");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "adapter_mismatch");

    let events = mesh.events("/generate_stream", json!({"inputs": "x", "parameters": {"adapter_id": "pirate"}})).await;
    let text = events.join("\n");
    assert!(text.contains("good") && !text.contains("SECRET") && !text.contains("generated_text\":\""), "{text}");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error_type"], "generation");
}

#[tokio::test]
async fn a_wrong_digest_at_the_end_fails_a_whole_answer() {
    let mesh = mesh_of(|request| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest, vec![token(1, "SECRET")]),
            finished(wrong(), pb::FinishReason::Eos, 1),
        ]
    })
    .await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("adapter_mismatch")));
    assert!(!body.to_string().contains("SECRET"));
}

#[tokio::test]
async fn one_wrong_answer_of_several_fails_them_all() {
    let mesh = mesh_of(|request| {
        let lies = request.sampling.unwrap().seed == Some(11);
        let digest = if lies { wrong() } else { echoed(request) };
        let text = if lies { "SECRET" } else { "good" };
        vec![
            started(echoed(request)),
            tokens(digest.clone(), vec![token(1, text)]),
            finished(digest, pb::FinishReason::Eos, 1),
        ]
    })
    .await;
    let body = json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "n": 3, "seed": 10});
    let (status, body) = mesh.send("/v1/chat/completions", body).await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("adapter_mismatch")));
}

#[tokio::test]
async fn another_base_than_at_admission_fails_the_request() {
    let mesh = mesh_of(|request| {
        let Step::Say(pb::generate_event::Event::Started(mut said)) = started(echoed(request)) else { unreachable!() };
        said.base_digest = wrong();
        vec![Step::Say(pb::generate_event::Event::Started(said)), tokens(echoed(request), vec![token(1, "SECRET")])]
    })
    .await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("base_mismatch")));
}

#[tokio::test]
async fn a_running_request_keeps_its_version_while_the_alias_moves() {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let waiting = told.clone();
    let mesh = mesh_of(move |request| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest.clone(), vec![token(1, "a")]),
            Step::Wait(waiting.clone()),
            tokens(digest.clone(), vec![token(2, "b")]),
            finished(digest, pb::FinishReason::Eos, 2),
        ]
    })
    .await;
    let mut running = mesh.post("/v1/chat/completions", &streaming("pirate")).send().await.unwrap();
    assert_eq!(running.headers()["x-weft-adapter"], "harbour/pirate@2");
    running.chunk().await.unwrap();
    let moved = mesh.operate("PUT", "/tenants/harbour/adapters/pirate/aliases/live").json(&json!({"version": 1}));
    assert_eq!(moved.send().await.unwrap().status(), 200);
    let second = mesh.post("/v1/chat/completions", &streaming("pirate")).send().await.unwrap();
    assert_eq!(second.headers()["x-weft-adapter"], "harbour/pirate@1");
    told.notify_waiters();
    assert!(running.text().await.unwrap().contains("[DONE]"));
}

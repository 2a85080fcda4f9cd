//! Every limit has an answer.

use crate::support::worker::{FakeWorker, Step, echoed, finished, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh, mesh_with, read, settings};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use weft_gateway::Settings;
use weft_proto::worker::v1::FinishReason;

/// A worker that answers only after it is told.
async fn waiting_mesh(settings: Settings) -> (Mesh, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    let waiting = told.clone();
    let worker = FakeWorker::playing("waits", move |request| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            Step::Wait(waiting.clone()),
            tokens(digest.clone(), vec![token(1, "x")]),
            finished(digest, FinishReason::Eos, 1),
        ]
    });
    (mesh_with(settings, vec![worker]).await, told)
}

async fn raw(mesh: &Mesh) -> TcpStream {
    TcpStream::connect(mesh.data.strip_prefix("http://").unwrap()).await.unwrap()
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is the client's to bear; what came before counts.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn more_generations_than_allowed_are_429_and_room_comes_back() {
    let (mesh, told) = waiting_mesh(Settings { max_concurrent_requests: 2, ..settings() }).await;
    let running: Vec<_> =
        (0..2).map(|_| tokio::spawn(mesh.post("/v1/chat/completions", &chat_body("base")).send())).collect();
    mesh.until("two running", async || mesh.workers[0].running() == 2).await;
    let response = mesh.post("/v1/chat/completions", &chat_body("base")).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after") && response.headers().contains_key("retry-after-ms"));
    let (status, body) = read(response).await;
    assert_eq!((status, &body["error"]["type"]), (429, &json!("rate_limit_error")));
    let (status, body) = mesh.send("/", json!({"inputs": "x"})).await;
    assert_eq!((status, &body["error_type"]), (429, &json!("overloaded")));
    told.notify_waiters();
    for answer in running {
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    // A stream holds its room until its end.
    let body = json!({"messages": [{"role": "user", "content": "x"}], "n": 2, "stream": true});
    let streaming = tokio::spawn(mesh.post("/v1/chat/completions", &body).send());
    mesh.until("two running", async || mesh.workers[0].running() == 2).await;
    assert_eq!(mesh.send("/v1/chat/completions", chat_body("base")).await.0, 429);
    told.notify_waiters();
    assert!(streaming.await.unwrap().unwrap().text().await.unwrap().contains("[DONE]"));
    let answer = tokio::spawn(mesh.post("/v1/chat/completions", &chat_body("base")).send());
    mesh.until("one running", async || mesh.workers[0].running() == 1).await;
    told.notify_waiters();
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn asking_for_more_answers_than_there_is_room_for_is_429() {
    let (mesh, _told) = waiting_mesh(Settings { max_concurrent_requests: 2, ..settings() }).await;
    let body = json!({"messages": [{"role": "user", "content": "x"}], "n": 3});
    assert_eq!(mesh.send("/v1/chat/completions", body).await.0, 429);
    assert!(mesh.workers[0].requests().is_empty());
}

#[tokio::test]
async fn more_connections_than_allowed_are_told_so() {
    let mesh = mesh_with(Settings { connections_max: 1, ..settings() }, vec![FakeWorker::new("w")]).await;
    mesh.until("idle", async || mesh.metric("gateway_connections{listener=\"data\"}").await == 0.0).await;
    let mut first = raw(&mesh).await;
    first.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0; 12];
    first.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"HTTP/1.1 200");
    let mut second = raw(&mesh).await;
    second.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = read_all(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after-ms"), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["error"]["code"], "too_many_connections");
}

#[tokio::test]
async fn headers_over_the_limit_are_431() {
    let mesh = mesh().await;
    let mut stream = raw(&mesh).await;
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "a".repeat(100 << 10));
    let _ = stream.write_all(head.as_bytes()).await;
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn headers_that_do_not_come_end_the_connection() {
    let mesh = mesh_with(Settings { header_timeout_s: 1, ..settings() }, vec![FakeWorker::new("w")]).await;
    let mut stream = raw(&mesh).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost").await.unwrap();
    // Ends by itself: the connection is closed, with or without a last word.
    let answer = read_all(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let mesh = mesh_with(Settings { body_timeout_s: 1, ..settings() }, vec![FakeWorker::new("w")]).await;
    for (path, key) in [("/v1/chat/completions", "code"), ("/generate", "error_type")] {
        let mut stream = raw(&mesh).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer harbour-key\r\ncontent-length: 50\r\nconnection: close\r\n\r\n{{\"mo"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains(key), "{answer}");
    }
}

#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let settings = Settings { body_bytes_in_flight_max: 8 << 10, ..settings() };
    let mesh = mesh_with(settings, vec![FakeWorker::new("w")]).await;
    let mut body = chat_body("base");
    body["messages"][0]["content"] = json!("x".repeat(40 << 10));
    let (status, answer) = mesh.send("/v1/chat/completions", body).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("overloaded")));
    assert_eq!(mesh.chat("base").await.0, 200);
}

#[tokio::test]
async fn browsers_may_call_from_the_origins_that_are_set() {
    let settings = Settings { cors_allow_origins: vec!["https://app.example".into()], ..settings() };
    let mesh = mesh_with(settings, vec![FakeWorker::new("w")]).await;
    let preflight = async |origin: &str| {
        let request = mesh.client.request(reqwest::Method::OPTIONS, format!("{}/v1/chat/completions", mesh.data));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,content-type").send().await.unwrap()
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://app.example");
    assert!(!preflight("https://evil.example").await.headers().contains_key("access-control-allow-origin"));
}

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
    assert!(
        answer.contains("\r\nx-request-id: req_") && answer.contains("\r\nx-weft-base-digest: sha256:"),
        "{answer}"
    );
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
async fn connections_that_do_not_say_which_http_they_speak_end_too() {
    let mesh = mesh_with(Settings { header_timeout_s: 1, ..settings() }, vec![FakeWorker::new("w")]).await;
    for begin in ["", "PRI", "PRI * HTTP/2.0\r\n\r\nSM"] {
        let mut stream = raw(&mesh).await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        assert_eq!(read_all(&mut stream).await, "", "{begin:?}");
    }
    // Whoever has said so has its own time: an idle connection of HTTP/1.1 is asked no preface.
    let mut stream = raw(&mesh).await;
    for _ in 0..2 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut byte = [0; 12];
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"HTTP/1.1 200");
        let mut rest = vec![0; 4096];
        let _ = stream.read(&mut rest).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_of_http2_that_opens_no_window_does_not_hold_its_answer() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let settings = Settings { write_stall_s: 1, ..settings() };
    let never = Arc::new(Notify::new());
    let endless = move |request: &weft_proto::worker::v1::GenerateRequest| {
        let digest = echoed(request);
        let mut steps = vec![started(digest.clone())];
        steps.extend((0..20).map(|_| tokens(digest.clone(), vec![token(1, "word ")])));
        steps.push(Step::Wait(never.clone()));
        steps
    };
    let mesh = mesh_with(settings, vec![FakeWorker::playing("w", endless)]).await;
    let stream = tokio::net::TcpStream::connect(mesh.data.trim_start_matches("http://")).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0);
    let (mut sender, connection) = builder.handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut body = chat_body("base");
    body["stream"] = json!(true);
    let request = http::Request::post(format!("{}/v1/chat/completions", mesh.data))
        .header("authorization", "Bearer harbour-key")
        .header("content-type", "application/json")
        .body(Full::new(body.to_string().into()))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    mesh.until("it is given up", async || {
        mesh.metric("gateway_generations_in_flight").await == 0.0 && mesh.workers[0].running() == 0
    })
    .await;
    assert_eq!(mesh.metric("gateway_generations_total{end=\"cancelled\"}").await, 1.0);
    assert!(!connection.is_finished(), "the connection itself is well");
    drop(answer.into_body().boxed());
}

#[tokio::test]
async fn a_body_that_comes_in_crumbs_takes_no_more_room_than_its_bytes() {
    let settings = Settings { body_bytes_in_flight_max: 64 << 10, ..settings() };
    let mesh = mesh_with(settings, vec![FakeWorker::new("w")]).await;
    let mut slow = raw(&mesh).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer harbour-key\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    let text = chat_body("base").to_string();
    for byte in text.bytes() {
        slow.write_all(format!("1\r\n{}\r\n", byte as char).as_bytes()).await.unwrap();
        slow.flush().await.unwrap();
    }
    // Others have room meanwhile.
    assert_eq!(mesh.chat("base").await.0, 200);
    slow.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = read_all(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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
        // What the OpenAI library for JavaScript sends.
        let headers = "authorization,content-type,x-stainless-arch,x-stainless-retry-count";
        request.header("access-control-request-headers", headers).send().await.unwrap()
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://app.example");
    let headers = allowed.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(headers.contains("x-stainless-retry-count"), "{headers}");
    assert!(allowed.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    let request = mesh.post("/v1/chat/completions", &chat_body("pirate")).header("origin", "https://app.example");
    let answer = request.send().await.unwrap();
    let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap();
    for name in ["x-request-id", "x-weft-adapter", "x-weft-adapter-digest", "x-weft-base-digest", "x-weft-worker"] {
        assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name} in {exposed}");
        assert!(answer.headers().contains_key(name), "{name}");
    }
    assert!(!preflight("https://evil.example").await.headers().contains_key("access-control-allow-origin"));
}

/// A body of about this many bytes that asks for so many answers, by dialect.
fn heavy(path: &str, bytes: usize, answers: usize) -> Value {
    let text = "x".repeat(bytes);
    match path {
        "/v1/chat/completions" => json!({"messages": [{"role": "user", "content": text}], "n": answers}),
        "/v1/completions" => json!({"prompt": text, "n": answers}),
        _ => json!({"inputs": text, "parameters": {"best_of": answers, "do_sample": true}, "stream": false}),
    }
}

#[tokio::test]
async fn a_prompt_counts_once_for_each_answer_until_they_have_ended() {
    let (begin, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, ends) = (begin.clone(), end.clone());
    let worker = FakeWorker::playing("waits", move |request| {
        let digest = echoed(request);
        vec![
            Step::Wait(begins.clone()),
            started(digest.clone()),
            tokens(digest.clone(), vec![token(1, "x")]),
            Step::Wait(ends.clone()),
            finished(digest, FinishReason::Eos, 1),
        ]
    });
    let settings = Settings { body_bytes_in_flight_max: 128 << 10, max_best_of: 8, ..settings() };
    let mesh = mesh_with(settings, vec![worker]).await;
    for (path, streaming, answers) in [
        ("/v1/chat/completions", "/v1/chat/completions", 2),
        ("/v1/completions", "/v1/completions", 2),
        ("/generate", "/generate_stream", 1),
    ] {
        assert_eq!(mesh.send(path, heavy(path, 16 << 10, 8)).await.0, 429, "8 answers of 16 KiB at {path}");
        let mut body = heavy(streaming, (64 << 10) / answers, answers);
        body["stream"] = json!(true);
        let running = tokio::spawn(mesh.post(streaming, &body).send());
        mesh.until("running", async || mesh.workers[0].running() == answers).await;
        // Nothing has begun: the bytes still count, although the body is long parsed.
        assert_eq!(mesh.send(path, heavy(path, 80 << 10, 1)).await.0, 429, "{path}");
        mesh.until("begun", async || {
            begin.notify_waiters();
            running.is_finished()
        })
        .await;
        let running = running.await.unwrap().unwrap();
        assert_eq!(running.status(), 200, "{path}");
        // Should its worker be lost, it has to be asked for again: until the answer has ended, its prompt counts, once.
        let left = (128 << 10) - (64 << 10) / answers;
        assert_eq!(mesh.send(path, heavy(path, left, 1)).await.0, 429, "{path}");
        drop(running);
        mesh.until("ended", async || {
            end.notify_waiters();
            mesh.workers[0].running() == 0 && mesh.metric("gateway_generations_in_flight").await == 0.0
        })
        .await;
        let next = tokio::spawn(mesh.post(path, &heavy(path, 80 << 10, 1)).send());
        mesh.until("the next came", async || mesh.workers[0].running() == 1).await;
        mesh.until("ended", async || {
            begin.notify_waiters();
            end.notify_waiters();
            mesh.workers[0].running() == 0
        })
        .await;
        assert_eq!(next.await.unwrap().unwrap().status(), 200, "{path}");
    }
}

/// Sends everything before it reads anything, as simple clients do, and gives the answer's first line.
async fn sends_all_first(url: &str, path: &str, key: &str, kind: &str, bytes: usize) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {kind}\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 << 10];
    for _ in 0..bytes / piece.len() {
        stream.write_all(&piece).await.expect("the connection is not reset while the client sends");
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the answer is read without a reset");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn who_sends_a_large_body_gets_to_read_an_early_answer() {
    let settings = Settings { max_concurrent_requests: 0, ..settings() };
    let full = mesh_with(settings, vec![FakeWorker::new("w")]).await;
    let mesh = mesh().await;
    let bytes = 24 << 20;
    for path in ["/v1/chat/completions", "/v1/completions", "/", "/generate", "/tokenize"] {
        let line = sends_all_first(&mesh.data, path, "wrong", "application/json", bytes).await;
        assert!(line.contains("401"), "{path}: {line}");
        let line = sends_all_first(&full.data, path, "harbour-key", "application/json", bytes).await;
        assert!(line.contains("429"), "{path}: {line}");
        let line = sends_all_first(&mesh.data, path, "harbour-key", "application/json", bytes).await;
        assert!(line.contains("413"), "{path}: {line}");
    }
    let upload = "/admin/v1/tenants/harbour/adapters/x/versions";
    let multipart = "multipart/form-data; boundary=b";
    for (path, key, kind, expected) in [
        (upload, "wrong", multipart, "401"),
        (upload, crate::support::ADMIN_KEY, "text/plain", "400"),
        ("/admin/v1/tenants/harbour/adapters/x/versions?alias=A", crate::support::ADMIN_KEY, multipart, "400"),
        ("/admin/v1/nothing", "wrong", multipart, "404"),
    ] {
        let line = sends_all_first(&mesh.admin, path, key, kind, bytes).await;
        assert!(line.contains(expected), "{path}: {line}");
    }
    assert_eq!(mesh.chat("pirate").await.0, 200);
}

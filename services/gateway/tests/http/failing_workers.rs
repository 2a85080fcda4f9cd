//! Workers that die, hang or are full.

use crate::support::worker::{FakeWorker, Step, echoed, hello, started, token, tokens};
use crate::support::{chat_body, mesh_with, settings};
use serde_json::{Value, json};
use tonic::Status;
use weft_fault::{Fault, Kind};
use weft_gateway::Settings;

fn streaming() -> Value {
    json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "stream": true})
}

/// Two workers; the one that is asked first fails with these steps, the other answers.
async fn one_fails(
    first: impl Fn(&weft_proto::worker::v1::GenerateRequest) -> Vec<Step> + Send + Sync + Clone + 'static,
) -> crate::support::Mesh {
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let workers = ["a", "b"].map(|name| {
        let (asked, first) = (asked.clone(), first.clone());
        FakeWorker::playing(name, move |request| {
            if asked.swap(true, std::sync::atomic::Ordering::SeqCst) { hello(request) } else { first(request) }
        })
    });
    let mesh = mesh_with(settings(), workers.into()).await;
    mesh.until("two workers ready", async || mesh.metric("gateway_workers_ready").await == 2.0).await;
    mesh
}

#[tokio::test]
async fn before_the_first_token_another_worker_is_tried() {
    let away = |_: &_| vec![Step::Fail(Status::unavailable("gone"))];
    let full = |_: &_| vec![Step::Fail(Fault::new(Kind::Overloaded, "queue is full").into())];
    let died = |request: &weft_proto::worker::v1::GenerateRequest| {
        vec![started(echoed(request)), Step::Fail(Status::unavailable("connection reset"))]
    };
    let silent = |request: &weft_proto::worker::v1::GenerateRequest| vec![started(echoed(request)), Step::Stop];
    for mesh in [one_fails(away).await, one_fails(full).await, one_fails(died).await, one_fails(silent).await] {
        let (status, body) = mesh.chat("pirate").await;
        assert_eq!((status, &body["choices"][0]["message"]["content"]), (200, &json!("Hello, wörld!")));
        assert_eq!(mesh.metric("gateway_retries_total").await, 1.0);
        let ids: Vec<_> =
            mesh.workers.iter().flat_map(FakeWorker::requests).map(|request| request.request_id).collect();
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1], "each attempt has its own id");
    }
}

#[tokio::test]
async fn what_the_tenant_asked_wrongly_is_not_tried_elsewhere() {
    let mesh = one_fails(|_| {
        let message = "prompt of 120 tokens exceeds the context of 100";
        vec![Step::Fail(Fault::invalid("prompt", message).with_code("context_length_exceeded").into())]
    })
    .await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(body["error"]["param"], "messages");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("120") && message.contains("100"));
    assert_eq!(mesh.metric("gateway_retries_total").await, 0.0);
}

#[tokio::test]
async fn after_the_first_token_the_stream_ends_with_an_error_and_no_done() {
    let mesh = one_fails(|request| {
        let digest = echoed(request);
        vec![started(digest.clone()), tokens(digest, vec![token(1, "one")]), Step::Fail(Status::unavailable("died"))]
    })
    .await;
    let events = mesh.events("/v1/chat/completions", streaming()).await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        (&last["error"]["type"], &last["error"]["message"]),
        (&json!("server_error"), &json!("the worker went away"))
    );
    assert!(events.iter().any(|event| event.contains("one")));
}

#[tokio::test]
async fn a_stream_that_ends_without_its_end_is_an_error() {
    let worker = FakeWorker::playing("cut", |request| {
        let digest = echoed(request);
        vec![started(digest.clone()), tokens(digest, vec![token(1, "one")]), Step::Stop]
    });
    let mesh = mesh_with(settings(), vec![worker]).await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("worker_lost")));
    let events = mesh.events("/v1/chat/completions", streaming()).await;
    assert!(events.last().unwrap().contains("worker_lost"));
}

#[tokio::test]
async fn a_full_mesh_is_429_with_a_hint() {
    let worker = FakeWorker::playing("full", |_| {
        vec![Step::Fail(Fault::new(Kind::Overloaded, "queue is full").with_retry_after_ms(1234).into())]
    });
    let mesh = mesh_with(settings(), vec![worker]).await;
    let response = mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap();
    assert_eq!(response.status(), 429);
    let hint = |name: &str| response.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
    assert!((1234..=1851).contains(&hint("retry-after-ms")), "{:?}", response.headers());
    assert_eq!(hint("retry-after"), 2);
    let (status, body) = mesh.send("/", json!({"inputs": "x"})).await;
    assert_eq!((status, body), (429, json!({"error": "Model is overloaded", "error_type": "overloaded"})));
}

#[tokio::test]
async fn a_worker_that_says_nothing_is_left_at_the_time_limit() {
    let worker = FakeWorker::playing("mute", |request| vec![started(echoed(request)), Step::Hang]);
    let mesh = mesh_with(Settings { request_timeout_s: 1, ..settings() }, vec![worker]).await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (504, &json!("timeout")));
    mesh.until("cancelled", async || mesh.workers[0].dropped() == 1 && mesh.workers[0].running() == 0).await;
}

#[tokio::test]
async fn an_adapter_that_cannot_be_loaded_does_not_make_its_worker_suspect() {
    let fault = || Fault::unavailable("the cache daemon is away").with_code("adapter_unavailable");
    let worker = FakeWorker::playing("w", move |_| vec![Step::Fail(fault().into())]);
    let mesh = mesh_with(Settings { worker_poll_ms: 3_600_000, ..settings() }, vec![worker]).await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("adapter_unavailable")));
    assert_eq!(mesh.get("/readyz").send().await.unwrap().status(), 200);
    mesh.workers[0].play(|_| vec![Step::Fail(Status::unavailable("connection refused"))]);
    assert_eq!(mesh.chat("pirate").await.1["error"]["code"], "worker_lost");
    assert_eq!(mesh.get("/readyz").send().await.unwrap().status(), 503);
    // Nobody else is there, so it is asked again all the same.
    mesh.workers[0].play(hello);
    assert_eq!(mesh.chat("pirate").await.0, 200);
}

#[tokio::test]
async fn what_broke_inside_a_worker_is_not_told_to_tenants() {
    let inside = "cannot map /secret/path from 10.0.0.7:9000";
    let mesh = mesh_with(settings(), vec![FakeWorker::new("w")]).await;
    for (kind, expected) in [
        (Kind::Unauthenticated, 500),
        (Kind::NotFound, 503),
        (Kind::Conflict, 500),
        (Kind::Refused, 422),
        (Kind::TooLarge, 503),
        (Kind::Overloaded, 429),
        (Kind::Unavailable, 503),
        (Kind::Timeout, 504),
        (Kind::Corrupt, 500),
        (Kind::Internal, 500),
    ] {
        mesh.workers[0].play(move |_| vec![Step::Fail(Fault::new(kind, inside).with_code("x").into())]);
        for (path, body) in [
            ("/v1/chat/completions", chat_body("pirate")),
            ("/", json!({"inputs": "x", "parameters": {"adapter_id": "pirate"}})),
        ] {
            let (status, body) = mesh.send(path, body).await;
            assert_eq!(status, expected, "{kind} {path}");
            let text = body.to_string();
            assert!(!text.contains("/secret") && !text.contains("10.0.0.7"), "{kind}: {text}");
        }
        // In the middle of a stream too.
        mesh.workers[0].play(move |request| {
            let digest = echoed(request);
            let fault = Fault::new(kind, inside).with_code("x");
            vec![started(digest.clone()), tokens(digest, vec![token(1, "one")]), Step::Fail(fault.into())]
        });
        let events = mesh.events("/v1/chat/completions", streaming()).await.join("\n");
        assert!(events.contains("error") && !events.contains("/secret"), "{kind}: {events}");
    }
}

#[tokio::test]
async fn an_adapter_that_fits_no_worker_is_503_and_tried_once_at_each() {
    for fault in [
        Fault::new(Kind::Refused, "adapter needs 9 bytes").with_code("adapter_too_large"),
        Fault::new(Kind::TooLarge, "blob has 9 bytes, more than the disk budget of 8"),
    ] {
        let workers = ["a", "b"].map(|name| {
            let fault = fault.clone();
            FakeWorker::playing(name, move |_| vec![Step::Fail(fault.clone().into())])
        });
        let mesh = mesh_with(settings(), workers.into()).await;
        mesh.until("two workers ready", async || mesh.metric("gateway_workers_ready").await == 2.0).await;
        let response = mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap();
        assert!(response.headers().contains_key("retry-after"));
        let (status, body) = crate::support::read(response).await;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("adapter_too_large")));
        let asked: Vec<_> = mesh.workers.iter().map(|worker| worker.requests().len()).collect();
        assert_eq!(asked, [1, 1]);
    }
}

#[tokio::test]
async fn where_workers_are_is_told_to_operators_only() {
    let dead = weft_gateway::WorkerEndpoint {
        address: "10.0.0.7:7003".into(),
        channel: weft_service_kit::transport::connect(&"127.0.0.1:1".parse().unwrap()),
    };
    let registry = crate::support::registry::FakeRegistry::with_tenants();
    let (listener, channel) = weft_service_kit::transport::Listener::memory();
    let servers = vec![registry.serve(listener)];
    let mesh = crate::support::start(settings(), channel, vec![dead], registry, vec![], servers).await;
    let ready = async |url: &str| mesh.client.get(format!("{url}/readyz")).send().await.unwrap().text().await.unwrap();
    mesh.until("known to be dead", async || ready(&mesh.admin).await.contains("10.0.0.7:7003: ")).await;
    let told = ready(&mesh.data).await;
    assert!(told.contains("no worker is ready") && !told.contains("10.0.0.7") && !told.contains("127.0.0.1"), "{told}");
}

#[tokio::test]
async fn bytes_that_are_missing_below_do_not_look_like_an_unknown_model() {
    let worker = FakeWorker::playing("lost", |_| vec![Step::Fail(Fault::not_found("blob is gone").into())]);
    let mesh = mesh_with(settings(), vec![worker]).await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("adapter_unavailable")));
}

#[tokio::test]
async fn a_worker_with_another_base_gets_no_requests() {
    let other = FakeWorker::new("other");
    other.describe_as(|description| {
        description.base_digest = crate::support::worker::raw(weft_types::Digest::of(b"another base"))
    });
    let mesh = mesh_with(settings(), vec![FakeWorker::new("first"), other]).await;
    mesh.until("both seen", async || {
        let text = mesh.operate("GET", "/workers").send().await.unwrap().text().await.unwrap();
        text.matches("\"up\":true").count() == 2
    })
    .await;
    for _ in 0..5 {
        assert_eq!(mesh.chat("pirate").await.0, 200);
    }
    let asked: Vec<_> = mesh.workers.iter().map(|worker| worker.requests().len()).collect();
    assert_eq!(asked, [5, 0]);
}

#[tokio::test]
async fn a_worker_that_holds_the_adapter_is_preferred() {
    // Two: an adapter's home and one more worker are compared.
    let workers = vec![FakeWorker::new("a"), FakeWorker::new("b")];
    workers[1].holds(&[crate::support::registry::digest_of("pirate 2")]);
    let mesh = mesh_with(settings(), workers).await;
    mesh.until("two workers ready", async || mesh.metric("gateway_workers_ready").await == 2.0).await;
    for _ in 0..4 {
        assert_eq!(mesh.chat("pirate").await.0, 200);
    }
    assert_eq!(mesh.workers[1].requests().len(), 4);
}

#[tokio::test]
async fn without_any_worker_requests_are_503_and_readiness_says_why() {
    let mesh =
        crate::support::unready(settings(), vec![], crate::support::registry::FakeRegistry::with_tenants()).await;
    mesh.until("authenticating", async || mesh.chat("base").await.1["error"]["code"] != json!("directory_unavailable"))
        .await;
    let response = mesh.post("/v1/chat/completions", &chat_body("base")).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let (status, ready) =
        crate::support::read(mesh.client.get(format!("{}/readyz", mesh.data)).send().await.unwrap()).await;
    assert_eq!((status, &ready["waiting_for"][0]["condition"]), (503, &json!("worker")));
    let (status, body) =
        crate::support::read(mesh.client.get(format!("{}/health", mesh.data)).send().await.unwrap()).await;
    assert_eq!((status, body), (503, json!({"error": "unhealthy", "error_type": "healthcheck"})));
}

#[tokio::test]
async fn a_worker_that_goes_on_using_other_bytes_is_left_alone() {
    let liar = |_: &_| vec![started(weft_types::Digest::of(b"other").to_vec().into())];
    let workers = vec![FakeWorker::playing("liar", liar), FakeWorker::new("honest")];
    let mesh = mesh_with(settings(), workers).await;
    mesh.until("two workers ready", async || mesh.metric("gateway_workers_ready").await == 2.0).await;
    let mut wrong = 0;
    for _ in 0..60 {
        let (status, body) = mesh.chat("pirate").await;
        match status {
            200 => {}
            500 => {
                assert_eq!(body["error"]["code"], "adapter_mismatch");
                wrong += 1;
            }
            _ => panic!("{status}: {body}"),
        }
    }
    // Five open the circuit; then it is tried once after about 1 s, 2 s, 4 s, ...
    assert!(wrong <= 10, "{wrong} of 60 were sent to a worker that lies");
    assert_eq!(mesh.metric("gateway_digest_mismatches_total").await, f64::from(wrong));
}

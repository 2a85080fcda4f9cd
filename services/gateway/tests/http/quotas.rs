//! What tenants and keys may use: counted the same on all routes, told in headers, settled however a request ends.

use crate::support::worker::{FakeWorker, Step, echoed, finished, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh, mesh_with, read, settings};
use reqwest::Response;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Notify;
use weft_fault::{Fault, Kind};
use weft_gateway::Settings;
use weft_proto::worker::v1::FinishReason;

async fn limit(mesh: &Mesh, path: &str, limits: Value) -> Value {
    let (status, answer) =
        read(mesh.operate("PATCH", path).json(&json!({ "limits": limits })).send().await.unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn number(response: &Response, name: &str) -> u64 {
    header(response, name).parse().unwrap_or_else(|_| panic!("{name} in {:?}", response.headers()))
}

/// A worker that says five tokens and waits before the last for a word; the fake says that prompts have 7.
fn held(told: &Arc<Notify>) -> FakeWorker {
    let told = told.clone();
    FakeWorker::playing("held", move |request| {
        let digest = echoed(request);
        let some = (1..5).map(|id| token(id, "x")).collect();
        vec![
            started(digest.clone()),
            tokens(digest.clone(), some),
            Step::Wait(told.clone()),
            tokens(digest.clone(), vec![token(5, "y")]),
            finished(digest, FinishReason::Eos, 5),
        ]
    })
}

#[tokio::test]
async fn requests_are_counted_on_all_routes_alike_and_headers_tell_what_is_left() {
    let mesh = mesh().await;
    let free = mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap();
    assert!(!free.headers().keys().any(|name| name.as_str().starts_with("x-ratelimit")), "no limit, no headers");
    let answer = limit(&mesh, "/tenants/harbour", json!({"requests_per_minute": 5})).await;
    let limits = json!({"requests_per_minute": 5, "tokens_per_minute": null, "tokens_per_day": null,
        "concurrent_requests": null, "queue_length": null});
    assert_eq!(answer["limits"], limits);
    for (left, path, body) in [
        (4, "/v1/chat/completions", chat_body("pirate")),
        (3, "/v1/completions", json!({"prompt": "x", "stream": true})),
        (2, "/", json!({"inputs": "x"})),
        (1, "/generate_stream", json!({"inputs": "x"})),
        (0, "/tokenize", json!({"inputs": "x"})),
    ] {
        let response = mesh.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(number(&response, "x-ratelimit-limit-requests"), 5, "{path}");
        assert_eq!(number(&response, "x-ratelimit-remaining-requests"), left, "{path}");
        assert!(header(&response, "x-ratelimit-reset-requests").ends_with('s'), "{path}");
        assert_eq!(header(&response, "x-ratelimit-limit-tokens"), "", "{path}");
        response.bytes().await.unwrap();
    }
    for (path, body) in [
        ("/v1/chat/completions", chat_body("pirate")),
        ("/v1/completions", json!({"prompt": "x"})),
        ("/generate", json!({"inputs": "x"})),
        ("/tokenize", json!({"inputs": "x"})),
    ] {
        let response = mesh.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), 429, "{path}");
        // One comes back every 12 s; jitter adds a quarter at most.
        let ms = number(&response, "retry-after-ms");
        assert!(ms > 0 && ms <= 15_000, "{ms}");
        assert_eq!(number(&response, "retry-after"), ms.div_ceil(1000));
        assert_eq!((header(&response, "x-should-retry"), number(&response, "x-ratelimit-remaining-requests")), ("", 0));
        assert!(header(&response, "x-request-id").starts_with("req_"));
        let (_, body) = read(response).await;
        let message = if path.starts_with("/v1") {
            assert_eq!(
                (&body["error"]["code"], &body["error"]["type"]),
                (&json!("rate_limit_exceeded"), &json!("rate_limit_error"))
            );
            body["error"]["message"].clone()
        } else {
            assert_eq!(body["error_type"], json!("overloaded"));
            body["error"].clone()
        };
        let message = message.as_str().unwrap().to_owned();
        for part in ["requests_per_minute", "harbour", "5"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert_eq!(mesh.metric("gateway_limits_refused_total{limit=\"requests_per_minute\",whose=\"tenant\"}").await, 4.0);
    let other = mesh.client.post(format!("{}/v1/completions", mesh.data)).bearer_auth("helpdesk-key");
    assert_eq!(
        other.json(&json!({"prompt": "x"})).send().await.unwrap().status(),
        200,
        "another tenant is not concerned"
    );
    limit(&mesh, "/tenants/harbour", json!({"requests_per_minute": null})).await;
    assert_eq!(mesh.chat("pirate").await.0, 200, "a limit that is gone is gone at once");
}

#[tokio::test]
async fn tokens_are_reserved_before_and_settled_after() {
    let told = Arc::new(Notify::new());
    let mesh = mesh_with(settings(), vec![held(&told)]).await;
    limit(&mesh, "/tenants/harbour", json!({"tokens_per_minute": 1000})).await;
    let ask = |max: u32, n: u32| json!({"prompt": "x".repeat(40), "max_tokens": max, "n": n, "stream": true});
    // 10 for the prompt, 90 for each answer: the prompt counts once. The base's context has 100 tokens at most.
    let mut running = mesh.post("/v1/completions", &ask(90, 3)).send().await.unwrap();
    assert_eq!(number(&running, "x-ratelimit-remaining-tokens"), 1000 - 280);
    running.chunk().await.unwrap().unwrap();
    let large = mesh.post("/v1/completions", &ask(90, 9)).send().await.unwrap();
    let (status, body) = read(large).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit_exceeded")), "what runs holds its estimate");
    mesh.until("ended", async || {
        told.notify_waiters();
        mesh.workers[0].running() == 0
    })
    .await;
    running.text().await.unwrap();
    // Settled: the usage that the answer itself tells. 7 tokens of the prompt, 5 of each answer.
    let next = mesh.post("/v1/completions", &ask(90, 1)).send().await.unwrap();
    let left = number(&next, "x-ratelimit-remaining-tokens");
    assert!((1000 - 22 - 100..=1000 - 100).contains(&left), "{left}");
    // A client that hangs up pays for what came: the same is left, but for that and for what drains meanwhile.
    drop(next);
    mesh.until("hung up", async || mesh.workers[0].running() == 0).await;
    let next = mesh.post("/v1/completions", &ask(90, 1)).send().await.unwrap();
    assert!(number(&next, "x-ratelimit-remaining-tokens") >= 1000 - 22 - 12 - 100);
    drop(next);
    mesh.until("hung up", async || mesh.workers[0].running() == 0).await;
    // A worker that fails before its first token costs none.
    mesh.workers[0].play(|_| vec![Step::Fail(Fault::new(Kind::Internal, "broken").into())]);
    for _ in 0..20 {
        let failed = mesh.post("/v1/completions", &ask(90, 1)).send().await.unwrap();
        assert_eq!(failed.status(), 500);
        assert!(number(&failed, "x-ratelimit-remaining-tokens") >= 1000 - 22 - 24 - 100);
    }
}

#[tokio::test]
async fn the_tokens_of_a_day_are_a_quota_and_what_never_fits_is_not_tried_again() {
    let mesh = mesh().await;
    limit(&mesh, "/tenants/harbour", json!({"tokens_per_day": 60})).await;
    let ask = json!({"prompt": "x", "max_tokens": 55});
    // The first is settled with less, so that the second fits; 7 and more of each stay used.
    let mut refused = None;
    for _ in 0..6 {
        let response = mesh.post("/v1/completions", &ask).send().await.unwrap();
        if response.status() != 200 {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("60 tokens do not last for six answers");
    assert_eq!((refused.status().as_u16(), header(&refused, "x-should-retry")), (429, "false"));
    assert!(number(&refused, "retry-after-ms") > 60_000, "a day has 60");
    assert_eq!(number(&refused, "x-ratelimit-limit-tokens"), 60);
    let (_, body) = read(refused).await;
    assert_eq!(body["error"]["code"], json!("insufficient_quota"));

    let large = mesh.post("/v1/completions", &json!({"prompt": "x", "max_tokens": 60})).send().await.unwrap();
    assert_eq!((large.status().as_u16(), header(&large, "x-should-retry")), (429, "false"));
    assert!(!large.headers().contains_key("retry-after") && !large.headers().contains_key("retry-after-ms"));
    let (_, body) = read(large).await;
    assert_eq!(body["error"]["code"], json!("request_exceeds_limit"));
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("61 of tokens_per_day") && message.contains("has 60"), "{message}");
}

#[tokio::test]
async fn answers_at_once_are_limited_by_key_and_by_tenant() {
    let told = Arc::new(Notify::new());
    let mesh = mesh_with(settings(), vec![held(&told)]).await;
    let made = mesh.operate("POST", "/tenants/harbour/keys").json(&json!({"limits": {"concurrent_requests": 1}}));
    let (status, key) = read(made.send().await.unwrap()).await;
    assert_eq!(status, 201);
    let (id, secret) = (key["id"].as_str().unwrap().to_owned(), key["secret"].as_str().unwrap().to_owned());
    let with_key =
        |body: Value| mesh.client.post(format!("{}/v1/completions", mesh.data)).bearer_auth(&secret).json(&body);
    let stream = json!({"prompt": "x", "stream": true});
    let mut running = with_key(stream.clone()).send().await.unwrap();
    running.chunk().await.unwrap().unwrap();
    let (status, body) = read(with_key(json!({"prompt": "x"})).send().await.unwrap()).await;
    let message = body["error"]["message"].as_str().unwrap();
    assert!(status == 429 && message.contains("concurrent_requests of this key"), "{message}");
    // Another key of the tenant is not concerned, until the tenant itself is.
    let other = mesh.post("/v1/completions", &stream).send().await.unwrap();
    assert_eq!(other.status(), 200);
    limit(&mesh, "/tenants/harbour", json!({"concurrent_requests": 2})).await;
    assert_eq!(mesh.post("/v1/completions", &stream).send().await.unwrap().status(), 200, "those before do not count");
    limit(&mesh, &format!("/tenants/harbour/keys/{id}"), json!({"concurrent_requests": null, "queue_length": 7})).await;
    let (_, keys) = read(mesh.operate("GET", "/tenants/harbour/keys").send().await.unwrap()).await;
    let listed = keys["keys"].as_array().unwrap().iter().find(|key| key["id"] == json!(id)).unwrap();
    assert_eq!(
        (&listed["limits"]["queue_length"], &listed["limits"]["concurrent_requests"]),
        (&json!(7), &Value::Null)
    );
    drop((running, other));
    mesh.until("hung up", async || {
        told.notify_waiters();
        mesh.workers[0].running() == 0
    })
    .await;
    let two = json!({"prompt": "x", "n": 2, "stream": true});
    let mut both = with_key(two.clone()).send().await.unwrap();
    assert_eq!(both.status(), 200, "slots came free");
    both.chunk().await.unwrap().unwrap();
    assert_eq!(with_key(stream).send().await.unwrap().status(), 429, "each answer takes one");
    let (status, body) = read(with_key(json!({"prompt": "x", "n": 3})).send().await.unwrap()).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("request_exceeds_limit")));
}

#[tokio::test]
async fn answers_that_wait_for_their_first_token_are_limited() {
    let (told, begin) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ends, begins) = (told.clone(), begin.clone());
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
    let mesh = mesh_with(Settings { default_queue_length: Some(1), ..settings() }, vec![worker]).await;
    let stream = json!({"prompt": "x", "stream": true});
    let first = tokio::spawn(mesh.post("/v1/completions", &stream).send());
    mesh.until("waiting", async || mesh.workers[0].running() == 1).await;
    let (status, body) = read(mesh.post("/v1/completions", &stream).send().await.unwrap()).await;
    assert!(status == 429 && body["error"]["message"].as_str().unwrap().contains("queue_length"), "{body}");
    mesh.until("begun", async || {
        begin.notify_waiters();
        first.is_finished()
    })
    .await;
    // It has begun, so another may wait, although nothing has ended.
    let second = tokio::spawn(mesh.post("/v1/completions", &stream).send());
    mesh.until("the second waits", async || mesh.workers[0].running() == 2).await;
    second.abort();
    mesh.until("hung up", async || mesh.workers[0].running() == 1).await;
    let third = tokio::spawn(mesh.post("/v1/completions", &stream).send());
    mesh.until("the third waits", async || mesh.workers[0].running() == 2).await;
    third.abort();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn wrong_limits_are_refused_by_name_and_unknown_keys_are_not_found() {
    let mesh = mesh().await;
    for (change, param) in [
        (json!({"limits": {"requests_per_minute": 0}}), "limits.requests_per_minute"),
        (json!({"limits": {"tokens_per_day": 1_000_000_000_001u64}}), "limits.tokens_per_day"),
        (json!({"limits": {"tokens_per_day": -1}}), "limits.tokens_per_day"),
        (json!({"limits": {"tokens_per_year": 1}}), "limits"),
        (json!({"limits": 5}), "limits"),
    ] {
        for path in ["/tenants/harbour", "/tenants/harbour/keys/k1"] {
            let (status, body) = read(mesh.operate("PATCH", path).json(&change).send().await.unwrap()).await;
            let told = body["error"]["param"].as_str().unwrap_or_default();
            assert!(status == 400 && told.starts_with(param), "{path} {change} {body}");
        }
    }
    let missing = mesh.operate("PATCH", "/tenants/harbour/keys/k9").json(&json!({})).send().await.unwrap();
    assert_eq!(missing.status(), 404);
}

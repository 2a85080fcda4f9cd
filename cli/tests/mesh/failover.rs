//! Real processes: workers that are killed, stopped and restarted while they answer. Clients see whole answers, equal to the
//! bit to those of a mesh in which nothing happened.

use crate::support::apart::{Apart, Part, Plan, flags};
use crate::support::process::send_signal;
use crate::support::{tiny_adapter, tiny_model};
use futures::future::join_all;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What can be asked for, on streaming and whole routes of both dialects. Each has one right answer.
fn requests() -> Vec<(&'static str, Value)> {
    let prompt: Vec<u32> = "Hello, loom!".bytes().map(u32::from).collect();
    let schema = json!({
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 99999},
            "title": {"type": "string", "minLength": 20, "maxLength": 60},
            "tags": {"type": "array", "items": {"enum": ["open", "closed"]}, "maxItems": 4}
        },
        "required": ["id", "title", "tags"],
        "additionalProperties": false
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "ticket", "strict": true, "schema": schema}});
    let completions = [
        json!({"temperature": 0}),
        json!({"temperature": 0, "model": "rank8"}),
        json!({"temperature": 1.3, "seed": 7, "top_p": 0.95, "model": "rank16"}),
        json!({"temperature": 1.1, "seed": 8, "frequency_penalty": 0.6, "presence_penalty": 0.3}),
        json!({"temperature": 0, "stop": ["_\u{1a}_X", "%~%"], "logprobs": 3, "model": "rank8"}),
        json!({"temperature": 1.2, "seed": 9, "response_format": format, "model": "rank16"}),
    ];
    let mut requests = Vec::new();
    for fields in completions {
        for stream in [true, false] {
            let mut body = json!({
                "model": "base", "prompt": prompt, "max_tokens": 220, "ignore_eos": true, "stream": stream,
            });
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            if stream {
                body["stream_options"] = json!({"include_usage": true});
            }
            requests.push(("/v1/completions", body));
        }
    }
    for fields in [
        json!({"adapter_id": "rank8"}),
        json!({"do_sample": true, "temperature": 1.4, "seed": 3, "repetition_penalty": 1.2, "top_k": 50}),
    ] {
        let mut parameters = json!({"max_new_tokens": 220, "details": true, "ignore_eos_token": true});
        parameters.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        for path in ["/generate", "/generate_stream"] {
            requests.push((path, json!({"inputs": "Hello, loom!", "parameters": parameters})));
        }
    }
    requests
}

/// What an answer says, however it was cut into pieces: its text, its log-probabilities, how it ended, what it cost.
fn content(text: &str) -> Value {
    let mut said = json!({"text": "", "logprobs": [], "tokens": [], "end": null, "usage": null, "details": null});
    let events = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let mut bodies: Vec<&str> = events.map(str::trim).collect();
    if bodies.is_empty() {
        bodies.push(text);
    } else if text.contains("chatcmpl") || text.contains("cmpl-") {
        assert_eq!(bodies.pop(), Some("[DONE]"), "{text}");
    }
    let add = |list: &mut Value, more: &Value| {
        list.as_array_mut().unwrap().extend(more.as_array().cloned().unwrap_or_default());
    };
    for body in bodies {
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert!(body.get("error").is_none(), "{body}");
        if let Some(choice) = body["choices"].get(0) {
            said["text"] = json!(said["text"].as_str().unwrap().to_owned() + choice["text"].as_str().unwrap());
            add(&mut said["logprobs"], &choice["logprobs"]["token_logprobs"]);
            add(&mut said["tokens"], &choice["logprobs"]["tokens"]);
            if !choice["finish_reason"].is_null() {
                said["end"] = choice["finish_reason"].clone();
            }
        }
        for (field, name) in [("usage", "usage"), ("details", "details"), ("generated_text", "text")] {
            if body.get(field).is_some_and(|value| !value.is_null()) {
                said[name] = body[field].clone();
            }
        }
        // LoRAX's stream: an end without a token of its own has an empty special one.
        if body["token"]["special"] == json!(false) {
            add(&mut said["tokens"], &json!([body["token"]]));
        }
    }
    // How much of the prompt a worker had seen before is the worker's matter.
    if let Some(usage) = said["usage"].as_object_mut() {
        usage.remove("prompt_tokens_details");
    }
    said
}

/// A tenant, its adapters, and the answers of an undisturbed mesh.
async fn prepared(apart: &Apart) -> (String, Vec<Value>) {
    let secret = apart.secret("harbour").await;
    for adapter in ["rank8", "rank16"] {
        apart.publish("harbour", adapter, &tiny_adapter(adapter)).await;
    }
    let mut expected = Vec::new();
    for (path, body) in requests() {
        let reply = apart.ask(&secret, path, &body).await;
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text);
        expected.push(content(&reply.text));
    }
    (secret, expected)
}

/// Asks for everything at once and compares.
async fn all_are_whole(apart: &Apart, secret: &str, expected: &[Value]) {
    let requests = requests();
    let replies = join_all(requests.iter().map(|(path, body)| apart.ask(secret, path, body))).await;
    for ((reply, expected), (path, body)) in replies.iter().zip(expected).zip(&requests) {
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text);
        assert_eq!(&content(&reply.text), expected, "{path} {body}");
    }
}

fn plan(grace_s: &str) -> Plan {
    Plan {
        workers: 2,
        worker_flags: [flags(&[("shutdown-grace-s", grace_s)]), vec!["--batch-invariant=true".to_owned()]].concat(),
        gateway_flags: flags(&[("worker-silence-ms", "500"), ("worker-poll-ms", "100")]),
        ..Plan::default()
    }
}

async fn continued(apart: &Apart) -> f64 {
    apart.metric("gateway_continuations_total{result=\"continued\"}").await
}

/// Waits a time that differs from round to round and is none of its multiples.
async fn wait(round: u64) {
    tokio::time::sleep(Duration::from_millis(3 + round * 37 % 150)).await;
}

/// Most rounds until enough answers were met in their middle.
const ROUNDS_MAX: u64 = 30;

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_killed_workers_go_on_to_the_bit() {
    let mut apart = Apart::start(&tiny_model(), plan("5")).await;
    let (secret, expected) = prepared(&apart).await;
    assert_eq!(continued(&apart).await, 0.0);
    let mut round = 0;
    while continued(&apart).await < 20.0 {
        assert!(round < ROUNDS_MAX, "only {} answers were met in their middle", continued(&apart).await);
        let victim = Part::Worker(round as usize % 2);
        let pid = apart.pid(victim);
        let killing = async {
            wait(round).await;
            send_signal(pid, "-KILL");
        };
        tokio::join!(all_are_whole(&apart, &secret, &expected), killing);
        apart.kill(victim);
        apart.launch(victim);
        apart.until_ready().await;
        round += 1;
    }
    assert_eq!(apart.metric("gateway_continuations_total{result=\"given_up\"}").await, 0.0);
    assert_eq!(apart.metric("gateway_digest_mismatches_total").await, 0.0);
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_frozen_worker_go_on_elsewhere_in_bounded_time() {
    let mut apart = Apart::start(&tiny_model(), plan("5")).await;
    let (secret, expected) = prepared(&apart).await;
    let mut round = 0;
    while continued(&apart).await < 6.0 {
        assert!(round < ROUNDS_MAX, "only {} answers were met in their middle", continued(&apart).await);
        let victim = Part::Worker(round as usize % 2);
        let pid = apart.pid(victim);
        let freezing = async {
            wait(round).await;
            send_signal(pid, "-STOP");
        };
        tokio::join!(all_are_whole(&apart, &secret, &expected), freezing);
        // Those who come later do not even notice.
        all_are_whole(&apart, &secret, &expected).await;
        // It wakes and is a worker like any other.
        send_signal(pid, "-CONT");
        apart.until_ready().await;
        round += 1;
    }
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_nothing() {
    // Without a grace period answers move; with one most of them finish.
    for (grace_s, moves) in [("0", true), ("20", false)] {
        let mut apart = Apart::start(&tiny_model(), plan(grace_s)).await;
        let (secret, expected) = prepared(&apart).await;
        let (over, expected) = (Arc::new(AtomicBool::new(false)), Arc::new(expected));
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let (over, expected) = (Arc::clone(&over), Arc::clone(&expected));
                let (url, secret) = (apart.data_url.clone(), secret.clone());
                tokio::spawn(async move {
                    let requests = requests();
                    let mut at = number * 3;
                    let mut answered = 0;
                    while !over.load(Ordering::SeqCst) {
                        at = (at + 1) % requests.len();
                        let (path, body) = &requests[at];
                        let reply = crate::support::post(&format!("{url}{path}"), &secret, body.clone()).await;
                        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text);
                        assert_eq!(content(&reply.text), expected[at], "{path} {body}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        for round in 0..3 {
            for number in [0, 1] {
                wait(round).await;
                let part = Part::Worker(number);
                apart.signal(part, "-TERM");
                assert!(apart.ended(part).await, "it ends with status 0: {}", apart.said(part));
                apart.launch(part);
                apart.until_ready().await;
            }
        }
        over.store(true, Ordering::SeqCst);
        let mut answered = 0;
        for client in clients {
            answered += client.await.expect("no answer was wrong");
        }
        assert!(answered > 20, "{answered} answers");
        if moves {
            assert!(continued(&apart).await > 0.0, "no answer moved");
        }
        assert_eq!(apart.metric("gateway_continuations_total{result=\"given_up\"}").await, 0.0);
        apart.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_asserted_again_at_a_cache_daemon_that_was_restarted() {
    let mut apart = Apart::start(&tiny_model(), Plan { workers: 1, ..plan("5") }).await;
    let (secret, expected) = prepared(&apart).await;
    for end in ["-TERM", "-KILL"] {
        apart.signal(Part::CacheDaemon, end);
        apart.ended(Part::CacheDaemon).await;
        // Resident adapters are served without it.
        all_are_whole(&apart, &secret, &expected).await;
        apart.launch(Part::CacheDaemon);
        apart.publish("harbour", &format!("after{}", end.to_lowercase()), &tiny_adapter("rank4")).await;
        // The worker is back at it as soon as it can lease something new.
        let body = json!({"model": format!("after{}", end.to_lowercase()), "prompt": [65], "max_tokens": 2});
        assert_eq!(apart.ask(&secret, "/v1/completions", &body).await.status, 200);
        all_are_whole(&apart, &secret, &expected).await;
    }
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_and_cache_daemon_serve_until_their_drain_delay_is_over() {
    let store_flags = flags(&[("drain-delay-ms", "3000")]);
    let mut apart = Apart::start(&tiny_model(), Plan { workers: 1, store_flags, ..plan("5") }).await;
    let secret = apart.secret("harbour").await;
    apart.publish("harbour", "before", &tiny_adapter("rank8")).await;
    let body = json!({"model": "before", "prompt": [65], "max_tokens": 2});
    apart.signal(Part::CacheDaemon, "-TERM");
    // It is not resident yet: this takes a lease.
    assert_eq!(apart.ask(&secret, "/v1/completions", &body).await.status, 200);
    assert!(apart.ended(Part::CacheDaemon).await);
    apart.launch(Part::CacheDaemon);
    apart.signal(Part::Registry, "-TERM");
    apart.publish("harbour", "after", &tiny_adapter("rank16")).await;
    assert!(apart.ended(Part::Registry).await);
    // What was acknowledged on the way out is there for the next one.
    apart.launch(Part::Registry);
    apart.until_ready().await;
    let body = json!({"model": "after", "prompt": [65], "max_tokens": 2});
    assert_eq!(apart.ask(&secret, "/v1/completions", &body).await.status, 200);
    apart.stop().await;
}

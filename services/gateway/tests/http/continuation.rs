//! Workers that are lost after the first token: another one goes on, and the client sees one answer.

use crate::support::worker::{FakeWorker, Step, began, echoed, finished, token, tokens};
use crate::support::{Mesh, mesh_with, settings};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::Status;
use weft_fault::{Fault, Kind};
use weft_gateway::Settings;
use weft_proto::worker::v1 as pb;

type Request = pb::GenerateRequest;

/// `Hello, wörld!` in three tokens; a request that goes on gets those it has not.
fn words(request: &Request) -> Vec<Step> {
    let whole = [token(10, "Hello, w"), token(11, ""), token(12, "örld!")];
    let behind = request.continuation.as_ref().map_or(0, |continuation| continuation.ids.len());
    let rest = whole[behind..].iter().map(|token| tokens(echoed(request), vec![token.clone()]));
    let mut steps = vec![began(request)];
    steps.extend(rest);
    steps.push(finished(echoed(request), pb::FinishReason::Eos, 3));
    steps
}

/// The same, but only its first steps, then this one.
fn broken(request: &Request, after: usize, end: Step) -> Vec<Step> {
    let mut steps = words(request);
    steps.truncate(after);
    steps.push(end);
    steps
}

/// Workers that all play this script; it is told how many requests came before.
async fn mesh_of(
    settings: Settings,
    workers: usize,
    script: impl Fn(usize, &Request) -> Vec<Step> + Send + Sync + 'static,
) -> Mesh {
    let (asked, script) = (Arc::new(AtomicUsize::new(0)), Arc::new(script));
    let workers = (0..workers).map(|number| {
        let (asked, script) = (asked.clone(), script.clone());
        FakeWorker::playing(&format!("w{number}"), move |request| script(asked.fetch_add(1, Ordering::SeqCst), request))
    });
    let workers: Vec<_> = workers.collect();
    let count = workers.len() as f64;
    let mesh = mesh_with(settings, workers).await;
    mesh.until("all ready", async || mesh.metric("gateway_workers_ready").await == count).await;
    mesh
}

/// All requests in the order in which they came.
fn asked(mesh: &Mesh) -> Vec<Request> {
    let mut requests: Vec<Request> = mesh.workers.iter().flat_map(FakeWorker::requests).collect();
    requests.sort_by_key(|request| request.request_id.clone());
    requests
}

/// Every route that generates, with what a client asks there.
fn routes() -> Vec<(&'static str, Value)> {
    let chat = json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "logprobs": true});
    let completion = json!({"model": "pirate", "prompt": "hi", "logprobs": 1});
    let lorax = json!({"inputs": "hi", "parameters": {"adapter_id": "pirate", "details": true, "do_sample": true}});
    let streamed = |body: &Value| {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        body
    };
    vec![
        ("/v1/chat/completions", streamed(&chat)),
        ("/v1/chat/completions", chat),
        ("/v1/completions", streamed(&completion)),
        ("/v1/completions", completion),
        ("/generate_stream", lorax.clone()),
        ("/generate", lorax),
    ]
}

/// The answer without what differs from one to the next: ids, times and who answered.
async fn answer(mesh: &Mesh, path: &str, body: &Value) -> (Vec<(String, String)>, String) {
    let response = mesh.post(path, body).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let changing = ["date", "x-request-id", "x-weft-response-id", "x-weft-worker", "content-length"];
    let changes = |name: &str| changing.contains(&name) || name.contains("time") || name.contains("queue");
    let headers = response.headers().iter().filter(|(name, _)| !changes(name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let text = response.text().await.unwrap();
    let mut kept = String::new();
    // Comments keep connections alive.
    for line in text.lines().filter(|line| !line.starts_with(':')) {
        let data = line.strip_prefix("data: ").unwrap_or(line);
        match serde_json::from_str::<Value>(data) {
            Ok(mut value) if value.is_object() => {
                for field in ["id", "created"] {
                    value.as_object_mut().unwrap().remove(field);
                }
                kept.push_str(&value.to_string());
            }
            _ => kept.push_str(line),
        }
        kept.push('\n');
    }
    (headers, kept)
}

#[tokio::test]
async fn on_every_route_a_broken_answer_is_told_like_one_that_was_not() {
    type End = fn() -> Step;
    let ends: [(&str, End); 5] = [
        ("died", || Step::Fail(Status::unavailable("connection reset"))),
        ("cut", || Step::Fail(Status::unknown("h2 protocol error: error reading a body from connection"))),
        ("silently closed", || Step::Stop),
        ("drains", || Step::Fail(Fault::unavailable("worker is shutting down").with_code("draining").into())),
        ("its loop ended", || Step::Fail(Fault::unavailable("the step loop has ended").into())),
    ];
    let undisturbed = mesh_of(settings(), 1, |_, request| words(request)).await;
    for (what, end) in ends {
        // Behind the first token, behind the second, behind the last: the end alone is missing then.
        for after in [2, 3, 4] {
            let mesh =
                mesh_of(
                    settings(),
                    2,
                    move |number, request| {
                        if number % 2 == 0 { broken(request, after, end()) } else { words(request) }
                    },
                )
                .await;
            for (number, (path, body)) in routes().into_iter().enumerate() {
                let expected = answer(&undisturbed, path, &body).await;
                // Whoever broke is back.
                mesh.until("all ready", async || mesh.metric("gateway_workers_ready").await == 2.0).await;
                let told = answer(&mesh, path, &body).await;
                if path == "/generate_stream" && after == 4 {
                    // The last token waits only so long for the end: the end may have an event of its own.
                    assert!(told.1.contains(r#""generated_text":"Hello, wörld!""#), "{what}: {}", told.1);
                } else {
                    assert_eq!(told, expected, "{what} after {after}: {path} {body}");
                }
                let continued = mesh.metric("gateway_continuations_total{result=\"continued\"}").await;
                assert_eq!(continued, number as f64 + 1.0, "{what} after {after}: {path}");
            }
            assert_eq!(mesh.metric("gateway_retries_total").await, 0.0);
            assert_eq!(mesh.metric("gateway_generations_total{end=\"finished\"}").await, routes().len() as f64);
            // Three tokens and seven of a prompt each, whoever computed them and how often.
            assert_eq!(mesh.metric("gateway_completion_tokens_total").await, 3.0 * routes().len() as f64);
            assert_eq!(mesh.metric("gateway_prompt_tokens_total").await, 7.0 * routes().len() as f64);
        }
    }
}

#[tokio::test]
async fn the_worker_that_goes_on_is_told_what_was_delivered_and_with_which_seed() {
    let mesh = mesh_of(
        settings(),
        2,
        |number, request| {
            if number == 0 { broken(request, 3, Step::Stop) } else { words(request) }
        },
    )
    .await;
    let body =
        json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "stop": ["x"], "max_tokens": 9});
    let (status, reply) = mesh.send("/v1/chat/completions", body).await;
    assert_eq!((status, &reply["choices"][0]["message"]["content"]), (200, &json!("Hello, wörld!")));
    let asked = asked(&mesh);
    let (first, second) = (&asked[0], &asked[1]);
    assert_eq!((first.sampling.unwrap().seed, &first.continuation), (None, &None));
    let continuation = second.continuation.as_ref().unwrap();
    assert_eq!((continuation.ids.as_slice(), second.sampling.unwrap().seed), (&[10, 11][..], Some(4711)));
    assert!(!continuation.prompt_digest.is_empty());
    assert_ne!(first.request_id, second.request_id);
    assert!(second.deadline_ms <= first.deadline_ms, "the time that is left");
    let mut same = second.clone();
    (same.continuation, same.request_id, same.deadline_ms) = (None, first.request_id.clone(), first.deadline_ms);
    same.sampling = first.sampling;
    assert_eq!(&same, first, "everything else is as it was");
}

#[tokio::test]
async fn an_answer_moves_as_often_as_its_worker_is_lost_up_to_a_limit() {
    // One token from each worker.
    let one_each = |_: usize, request: &Request| {
        let behind = request.continuation.as_ref().map_or(0, |continuation| continuation.ids.len());
        if behind == 2 { words(request) } else { broken(request, 2, Step::Stop) }
    };
    let body = json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    let mesh = mesh_of(settings(), 3, one_each).await;
    let events = mesh.events("/v1/chat/completions", body.clone()).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(mesh.metric("gateway_continuations_total{result=\"continued\"}").await, 2.0);

    let mesh = mesh_of(Settings { continuations_max: 1, ..settings() }, 3, one_each).await;
    let events = mesh.events("/v1/chat/completions", body).await;
    assert!(events.last().unwrap().contains("worker_lost"), "{events:?}");
    assert_eq!(asked(&mesh).len(), 2);
}

#[tokio::test]
async fn a_worker_that_comes_back_goes_on_with_its_own_answer() {
    let mesh = mesh_of(
        settings(),
        1,
        |number, request| {
            if number == 0 { broken(request, 2, Step::Stop) } else { words(request) }
        },
    )
    .await;
    let (status, reply) = mesh.chat("pirate").await;
    assert_eq!((status, &reply["choices"][0]["message"]["content"]), (200, &json!("Hello, wörld!")));
    assert_eq!(reply["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_frozen_worker_is_left_in_bounded_time_before_and_after_the_first_token() {
    for after in [0, 1, 2] {
        let settings = Settings { worker_silence_ms: 50, ..settings() };
        let mesh = mesh_of(settings, 2, |_, request| words(request)).await;
        for worker in &mesh.workers {
            let frozen = worker.clone();
            let first = Arc::new(AtomicUsize::new(0));
            worker.play(move |request| {
                if request.continuation.is_none()
                    && !request.request_id.contains('.')
                    && first.fetch_add(1, Ordering::SeqCst) == 0
                {
                    frozen.freeze();
                    return broken(request, after, Step::Hang);
                }
                words(request)
            });
        }
        let (status, reply) = mesh.chat("pirate").await;
        assert_eq!((status, &reply["choices"][0]["message"]["content"]), (200, &json!("Hello, wörld!")), "{after}");
    }
}

#[tokio::test]
async fn a_worker_that_is_silent_and_there_is_waited_for() {
    let told = Arc::new(tokio::sync::Notify::new());
    let heard = Arc::clone(&told);
    let settings = Settings { worker_silence_ms: 10, ..settings() };
    let mesh = mesh_of(settings, 2, move |_, request| {
        let mut steps = words(request);
        steps.insert(2, Step::Wait(Arc::clone(&heard)));
        steps
    })
    .await;
    let asking = tokio::spawn(mesh.post("/v1/chat/completions", &crate::support::chat_body("pirate")).send());
    mesh.until("running", async || mesh.workers.iter().any(|worker| worker.running() == 1)).await;
    // As long as many silences.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    told.notify_one();
    assert_eq!(asking.await.unwrap().unwrap().status(), 200);
    assert_eq!(asked(&mesh).len(), 1);
}

#[tokio::test]
async fn what_nobody_can_go_on_with_ends_with_the_first_reason() {
    let body = json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    let refused = || Step::Fail(Fault::invalid("continuation.ids", "ids of /secret/other").into());
    let old = |request: &Request| {
        // Knows no continuations and begins anew.
        words(&Request { continuation: None, ..request.clone() })
    };
    let wrong = |request: &Request| {
        let mut steps = words(request);
        if let Step::Say(pb::generate_event::Event::Started(started)) = &mut steps[0] {
            started.adapter_digest = crate::support::worker::raw(weft_types::Digest::of(b"other bytes"));
        }
        steps
    };
    let full = || Step::Fail(Fault::new(Kind::Overloaded, "queue is full").into());
    type Second = Box<dyn Fn(&Request) -> Vec<Step> + Send + Sync>;
    let seconds: [(&str, Second, &str); 4] = [
        ("refused", Box::new(move |_| vec![refused()]), "worker_lost"),
        ("an old worker", Box::new(old), "worker_lost"),
        ("other bytes", Box::new(wrong), "adapter_mismatch"),
        ("full", Box::new(move |_| vec![full()]), "worker_lost"),
    ];
    for (what, second, code) in seconds {
        let mesh = mesh_of(
            settings(),
            2,
            move |number, request| {
                if number == 0 { broken(request, 2, Step::Stop) } else { second(request) }
            },
        )
        .await;
        let events = mesh.events("/v1/chat/completions", body.clone()).await;
        let last = events.last().unwrap();
        assert!(last.contains(code) && !last.contains("/secret"), "{what}: {last}");
        assert_eq!(events.iter().filter(|event| event.contains("Hello")).count(), 1, "{what}: {events:?}");
        assert!(!events.concat().contains("rld"), "{what}: {events:?}");
    }
}

#[tokio::test]
async fn the_retry_budget_bounds_what_follows_losses_and_not_what_follows_drains() {
    let body = json!({"model": "pirate", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    for (code, free) in [("draining", true), ("gone", false)] {
        let settings = Settings { retry_share: 0.0, retries_saved_max: 1, ..settings() };
        let mesh = mesh_of(settings, 2, move |number, request| {
            let end = Step::Fail(Fault::unavailable("x").with_code(code).into());
            if number % 2 == 0 { broken(request, 2, end) } else { words(request) }
        })
        .await;
        let mut whole = Vec::new();
        for _ in 0..2 {
            mesh.until("all ready", async || mesh.metric("gateway_workers_ready").await == 2.0).await;
            let events = mesh.events("/v1/chat/completions", body.clone()).await;
            whole.push(events.last().unwrap() == "[DONE]");
        }
        assert_eq!(whole, [true, free], "{code}");
    }
}

//! Every answer says who it is and what is known of the bytes behind it, errors included, in both dialects.

use crate::support::registry::digest_of;
use crate::support::worker::{FakeWorker, Step, base, echoed, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh, mesh_with, settings};
use reqwest::Response;
use serde_json::{Value, json};
use tonic::Status;
use weft_fault::{Fault, Kind};
use weft_gateway::Settings;

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// How far a request came before it was answered.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Reached {
    Nothing,
    Adapter,
    Worker,
}

fn check(response: &Response, status: u16, reached: Reached) {
    let what = format!("{} {:?}", response.url(), response.headers());
    assert_eq!(response.status(), status, "{what}");
    assert!(header(response, "x-request-id").is_some_and(|id| !id.is_empty()), "{what}");
    assert_eq!(header(response, "x-weft-base-digest"), Some(base().to_string().as_str()), "{what}");
    let adapter = (reached >= Reached::Adapter).then_some("harbour/pirate@2");
    assert_eq!(header(response, "x-weft-adapter"), adapter, "{what}");
    let digest = adapter.map(|_| digest_of("pirate 2").to_string());
    assert_eq!(header(response, "x-weft-adapter-digest"), digest.as_deref(), "{what}");
    assert_eq!(header(response, "x-weft-worker").is_some(), reached >= Reached::Worker, "{what}");
}

/// The same request in every dialect, as a whole answer and as a stream.
fn requests(model: &str) -> Vec<(&'static str, Value)> {
    let lorax = json!({"inputs": "hi", "parameters": {"adapter_id": model}});
    let mut all = vec![("/", lorax.clone()), ("/generate", lorax.clone()), ("/generate_stream", lorax)];
    for stream in [false, true] {
        let mut chat = chat_body(model);
        chat["stream"] = json!(stream);
        all.push(("/v1/chat/completions", chat));
        all.push(("/v1/completions", json!({"model": model, "prompt": "hi", "stream": stream})));
    }
    all
}

async fn all_answer(mesh: &Mesh, status: impl Fn(&str) -> u16, reached: Reached) {
    for (path, body) in requests("pirate") {
        check(&mesh.post(path, &body).send().await.unwrap(), status(path), reached);
    }
}

#[tokio::test]
async fn answers_and_streams_carry_all_of_it() {
    all_answer(&mesh().await, |_| 200, Reached::Worker).await;
}

#[tokio::test]
async fn who_is_not_known_or_names_nothing_known_gets_the_base() {
    let mesh = mesh().await;
    for (path, body) in requests("pirate") {
        let url = format!("{}{path}", mesh.data);
        check(&mesh.client.post(url).bearer_auth("wrong").json(&body).send().await.unwrap(), 401, Reached::Nothing);
    }
    for (path, body) in requests("nobody") {
        check(&mesh.post(path, &body).send().await.unwrap(), 404, Reached::Nothing);
    }
    check(&mesh.get("/no/such/path").send().await.unwrap(), 404, Reached::Nothing);
    check(&mesh.get("/v1/chat/completions").send().await.unwrap(), 405, Reached::Nothing);
    check(&mesh.get("/v1/models").send().await.unwrap(), 200, Reached::Nothing);
    check(&mesh.get("/v1/models/pirate").send().await.unwrap(), 200, Reached::Adapter);
    let tokenized = mesh.post("/tokenize", &json!({"inputs": "a b"})).send().await.unwrap();
    assert_eq!(
        (header(&tokenized, "x-weft-adapter"), header(&tokenized, "x-weft-worker")),
        (Some("base"), Some("worker-1"))
    );
    check(&mesh.operate("GET", "/tenants").send().await.unwrap(), 200, Reached::Nothing);
}

#[tokio::test]
async fn refusals_and_failures_of_a_worker_carry_all_of_it() {
    let openai = |path: &str| path.starts_with("/v1");
    let fails = |fault: Fault| FakeWorker::playing("w", move |_| vec![Step::Fail(fault.clone().into())]);
    let long = Fault::invalid("prompt", "prompt of 120 tokens exceeds 100").with_code("context_length_exceeded");
    let mesh = mesh_with(settings(), vec![fails(long)]).await;
    all_answer(&mesh, |path| if openai(path) { 400 } else { 422 }, Reached::Worker).await;
    for (kind, status) in [
        (Kind::Overloaded, 429),
        (Kind::Unavailable, 503),
        (Kind::Timeout, 504),
        (Kind::Corrupt, 500),
        (Kind::Internal, 500),
    ] {
        let mesh = mesh_with(settings(), vec![fails(Fault::new(kind, "x").with_code("adapter_unavailable"))]).await;
        all_answer(&mesh, |_| status, Reached::Worker).await;
    }
    // A failure after the first token, in an answer that is not streamed.
    let dies = FakeWorker::playing("w", |request| {
        let digest = echoed(request);
        vec![started(digest.clone()), tokens(digest, vec![token(1, "one")]), Step::Fail(Status::unavailable("died"))]
    });
    let mesh = mesh_with(settings(), vec![dies]).await;
    check(&mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap(), 503, Reached::Worker);
}

#[tokio::test]
async fn no_room_for_the_answers_is_told_with_the_adapter() {
    let mesh = mesh_with(Settings { max_concurrent_requests: 2, ..settings() }, vec![FakeWorker::new("w")]).await;
    let mut body = chat_body("pirate");
    body["n"] = json!(3);
    check(&mesh.post("/v1/chat/completions", &body).send().await.unwrap(), 429, Reached::Adapter);
}

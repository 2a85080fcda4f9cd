//! `POST /v1/chat/completions`: shapes, streams, headers, and what reaches the worker.

use crate::support::{chat_body, mesh, mesh_with, settings};
use serde_json::{Value, json};
use weft_proto::worker::v1::generate_request::Prompt;
use weft_types::Digest;

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let mesh = mesh().await;
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!(status, 200);
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(body["object"], "chat.completion");
    assert!(body["created"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!(body["model"], "pirate");
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "Hello, wörld!", "refusal": null}, "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 3}})
    );
    assert!(body["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
}

#[tokio::test]
async fn headers_say_whose_bytes_answered_and_where() {
    let mesh = mesh().await;
    let answer = mesh.post("/v1/chat/completions", &chat_body("pirate@old")).send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-weft-adapter"), "harbour/pirate@1");
    assert_eq!(header("x-weft-adapter-digest"), crate::support::registry::digest_of("pirate 1").to_string());
    assert_eq!(header("x-weft-base-digest"), crate::support::worker::base().to_string());
    assert_eq!(header("x-weft-worker"), "fake");
    assert_eq!(header("x-weft-adapter-wait-us"), "1500");
    assert!(header("x-request-id").starts_with("req_"));
    assert!(!answer.headers().contains_key("x-weft-first-step"));

    let base = mesh
        .post("/v1/chat/completions", &chat_body("tiny-base"))
        .header("x-request-id", "mine-1")
        .send()
        .await
        .unwrap();
    assert_eq!(base.headers()["x-weft-adapter"], "base");
    assert!(!base.headers().contains_key("x-weft-adapter-digest"));
    assert!(!base.headers().contains_key("x-weft-adapter-wait-us"));
    assert_eq!(base.headers()["x-request-id"], "mine-1");
}

#[tokio::test]
async fn steps_are_told_where_an_operator_allows_it() {
    let settings = weft_gateway::Settings { step_headers: true, ..settings() };
    let mesh = mesh_with(settings, vec![crate::support::worker::FakeWorker::new("w")]).await;
    let answer = mesh.post("/v1/chat/completions", &chat_body("pirate")).send().await.unwrap();
    for (name, value) in [
        ("x-weft-first-step", "5"),
        ("x-weft-last-step", "9"),
        ("x-weft-adapters-in-step-max", "4"),
        ("x-weft-requests-in-step-max", "6"),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_done() {
    let mesh = mesh().await;
    let response =
        mesh.post("/v1/chat/completions", &with(chat_body("pirate"), json!({"stream": true}))).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-weft-adapter"], "harbour/pirate@2");
    let events = crate::support::data_lines(&response.text().await.unwrap());
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(
        deltas,
        [
            &json!({"role": "assistant", "content": ""}),
            &json!({"content": "Hello, w"}),
            &json!({"content": "örld!"}),
            &json!({}),
        ]
    );
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert!(chunks[..3].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn a_stream_tells_its_usage_in_a_last_chunk_when_asked() {
    let mesh = mesh().await;
    let body = with(chat_body("pirate"), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = mesh.events("/v1/chat/completions", body).await;
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 10);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.as_object().unwrap().contains_key("usage")));
}

#[tokio::test]
async fn n_answers_count_the_prompt_once() {
    let mesh = mesh().await;
    let (status, body) = mesh.send("/v1/chat/completions", with(chat_body("pirate"), json!({"n": 3, "seed": 5}))).await;
    assert_eq!(status, 200);
    let indexes: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["completion_tokens"]), (&json!(7), &json!(9)));
    let mut seeds: Vec<_> =
        mesh.workers[0].requests().iter().map(|request| request.sampling.unwrap().seed.unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [5, 6, 7]);

    let events = mesh.events("/v1/chat/completions", with(chat_body("pirate"), json!({"n": 2, "stream": true}))).await;
    let text = |index: u64| -> String {
        let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
        chunks
            .filter(|chunk| chunk["choices"][0]["index"] == index)
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(ToOwned::to_owned))
            .collect()
    };
    assert_eq!((text(0), text(1)), ("Hello, wörld!".to_owned(), "Hello, wörld!".to_owned()));
    assert_eq!(events.iter().filter(|event| *event == "[DONE]").count(), 1);
}

#[tokio::test]
async fn logprobs_come_with_their_alternatives() {
    let mesh = mesh().await;
    let body = with(chat_body("pirate"), json!({"logprobs": true, "top_logprobs": 2}));
    let (status, answer) = mesh.send("/v1/chat/completions", body.clone()).await;
    assert_eq!(status, 200);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    assert_eq!(content[2]["token"], "örld!");
    assert_eq!(content[2]["bytes"], json!("örld!".as_bytes()));
    assert_eq!(content[2]["logprob"], -0.25);
    assert_eq!(content[2]["top_logprobs"][1]["token"], "other");
    assert_eq!(mesh.workers[0].last().logprobs.unwrap().top, 2);

    let events = mesh.events("/v1/chat/completions", with(body, json!({"stream": true}))).await;
    let chunk: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(chunk["choices"][0]["logprobs"]["content"][0]["token"], "Hello, w");
    let (status, error) =
        mesh.send("/v1/chat/completions", with(chat_body("pirate"), json!({"top_logprobs": 2}))).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("top_logprobs")));
}

#[tokio::test]
async fn the_worker_gets_what_was_resolved_and_what_was_asked() {
    let mesh = mesh().await;
    let body = json!({
        "model": "org/tuned", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_completion_tokens": 9, "max_tokens": 99, "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "seed": 3,
        "frequency_penalty": 1, "presence_penalty": -1, "repetition_penalty": 1.5, "stop": ["x", "y"], "ignore_eos": true,
        "priority": -1,
    });
    assert_eq!(mesh.send("/v1/chat/completions", body).await.0, 200);
    let request = mesh.workers[0].last();
    assert_eq!(request.tenant, "harbour");
    assert_eq!(request.adapter.as_ref().unwrap().digest, crate::support::registry::digest_of("org/tuned 2").to_vec());
    assert_eq!(request.expected_base_digest, crate::support::worker::base().to_vec());
    assert_eq!((request.priority, request.tenant_weight), (-1, 1.0));
    assert_eq!(request.tenant_salt.len(), 32);
    assert_ne!(request.tenant_salt, vec!["harbour".len() as u8; 32], "the secret itself must not travel");
    assert!(request.deadline_ms > 0);
    let Some(Prompt::Chat(chat)) = &request.prompt else { panic!("{:?}", request.prompt) };
    let messages: Value = serde_json::from_str(&chat.messages_json).unwrap();
    assert_eq!(messages, json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]));
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 7, 0.1));
    assert_eq!((sampling.seed, sampling.frequency_penalty, sampling.presence_penalty), (Some(3), 1.0, -1.0));
    assert_eq!(sampling.repetition_penalty, 1.5);
    let stopping = request.stopping.unwrap();
    assert_eq!((stopping.max_tokens, stopping.ignore_eos, stopping.include_stop), (9, true, false));
    assert_eq!(stopping.stop, ["x", "y"]);
}

#[tokio::test]
async fn a_tenants_weight_reaches_the_worker_as_soon_as_the_change_is_answered() {
    let mesh = mesh().await;
    for weight in [3.5, 0.01, 100.0] {
        let change = mesh.operate("PATCH", "/tenants/harbour").json(&json!({"weight": weight}));
        let (status, tenant) = crate::support::read(change.send().await.unwrap()).await;
        assert_eq!((status, &tenant["name"], &tenant["weight"]), (200, &json!("harbour"), &json!(weight)));
        mesh.chat("base").await;
        assert_eq!((mesh.workers[0].last().tenant_weight, mesh.workers[0].last().priority), (weight, 0));
    }
    let made = mesh.operate("POST", "/tenants").json(&json!({"name": "analytics", "weight": 0.5}));
    let (status, tenant) = crate::support::read(made.send().await.unwrap()).await;
    assert_eq!((status, &tenant["weight"]), (201, &json!(0.5)));
}

#[tokio::test]
async fn tenants_have_different_salts() {
    let mesh = mesh().await;
    let harbour = {
        mesh.chat("base").await;
        mesh.workers[0].last().tenant_salt
    };
    let body = chat_body("base");
    mesh.post("/v1/chat/completions", &body).header("authorization", "Bearer helpdesk-key").send().await.unwrap();
    let answer = mesh.client.post(format!("{}/v1/chat/completions", mesh.data)).bearer_auth("helpdesk-key").json(&body);
    assert_eq!(answer.send().await.unwrap().status(), 200);
    assert_ne!(mesh.workers[0].last().tenant_salt, harbour);
}

#[tokio::test]
async fn the_model_is_echoed_as_it_was_asked() {
    let mesh = mesh().await;
    let digest: Digest = crate::support::registry::digest_of("pirate 1");
    for (asked, echoed) in [
        (json!("pirate@1"), "pirate@1".to_owned()),
        (json!(format!("pirate@{digest}")), format!("pirate@{digest}")),
        (json!("base"), "base".into()),
        (json!(""), "tiny-base".into()),
        (Value::Null, "tiny-base".into()),
    ] {
        let (status, body) = mesh.send("/v1/chat/completions", with(chat_body(""), json!({"model": asked}))).await;
        assert_eq!((status, &body["model"]), (200, &json!(echoed)));
    }
}

/// An emoji in two tokens, then the end: what each token is does not depend on what was delivered of it.
fn emoji(request: &weft_proto::worker::v1::GenerateRequest) -> Vec<crate::support::worker::Step> {
    use crate::support::worker::{echoed, finished, started, token, tokens};
    let digest = echoed(request);
    let bytes = "🦀".as_bytes();
    let (mut first, mut second, mut end) = (token(1, ""), token(2, "🦀"), token(3, ""));
    first.raw = bytes[..2].to_vec().into();
    first.top[0].raw = first.raw.clone();
    first.top[0].text = "\u{fffd}".into();
    second.raw = bytes[2..].to_vec().into();
    second.top.clear();
    (end.raw, end.special) = ("<|im_end|>".into(), true);
    end.top.clear();
    vec![
        started(digest.clone()),
        tokens(digest.clone(), vec![first, second]),
        tokens(digest.clone(), vec![end]),
        finished(digest, weft_proto::worker::v1::FinishReason::Eos, 3),
    ]
}

#[tokio::test]
async fn log_probabilities_name_the_tokens_and_not_what_was_delivered() {
    let mesh = mesh_with(settings(), vec![crate::support::worker::FakeWorker::playing("w", emoji)]).await;
    let asked = with(chat_body("base"), json!({"logprobs": true, "top_logprobs": 2}));
    let (status, body) = mesh.send("/v1/chat/completions", asked.clone()).await;
    assert_eq!((status, &body["choices"][0]["message"]["content"]), (200, &json!("🦀")));
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let of = |key: &str| content.iter().map(|token| token[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("token"), [json!("\\xf0\\x9f"), json!("\\xa6\\x80"), json!("<|im_end|>")]);
    assert_eq!(of("bytes"), [json!([0xf0, 0x9f]), json!([0xa6, 0x80]), json!(b"<|im_end|>")]);
    assert_eq!(content[0]["top_logprobs"][0]["bytes"], json!([0xf0, 0x9f]));
    let events = mesh.events("/v1/chat/completions", with(asked, json!({"stream": true}))).await.join("");
    assert!(events.contains("[166,128]"), "{events}");

    let (_, body) = mesh.send("/v1/completions", json!({"prompt": "x", "logprobs": 2})).await;
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["bytes:\\xf0\\x9f", "bytes:\\xa6\\x80", "<|im_end|>"]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1]));
    assert_eq!(logprobs["top_logprobs"][0], json!({"bytes:\\xf0\\x9f": -0.25, "other": -2.0}));
    assert!(!logprobs["top_logprobs"].to_string().contains("\"\":"), "{logprobs}");
}

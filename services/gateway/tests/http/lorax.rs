//! LoRAX's dialect, as `lorax-client` 0.6.3 reads it.

use crate::support::worker::{FakeWorker, echoed, finished, started, token, tokens};
use crate::support::{data_lines, mesh, mesh_with, read, settings};
use serde_json::{Value, json};
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_request::Prompt;

/// The body that the client sends: every key, nulls included.
fn client_body(parameters: Value, stream: bool) -> Value {
    let mut all = json!({
        "adapter_id": null, "adapter_source": null, "merged_adapters": null, "api_token": null, "do_sample": false,
        "max_new_tokens": null, "ignore_eos_token": false, "repetition_penalty": null, "return_full_text": false,
        "stop": [], "seed": null, "temperature": null, "top_k": null, "top_p": null, "truncate": null, "typical_p": null,
        "best_of": null, "watermark": false, "response_format": null, "decoder_input_details": false,
        "return_k_alternatives": null, "details": true,
    });
    all.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    json!({"inputs": "Ahoy", "parameters": all, "stream": stream})
}

#[tokio::test]
async fn the_root_answers_with_an_array_of_one() {
    let mesh = mesh().await;
    let body = client_body(json!({"adapter_id": "pirate", "adapter_source": "hub", "api_token": "hf_x"}), false);
    let (status, answer) = mesh.send("/", body).await;
    assert_eq!(status, 200);
    let token =
        |id: u32, text: &str| json!({"id": id, "text": text, "logprob": -0.25, "special": false, "skipped": false});
    let expected = json!([{
        "generated_text": "Hello, wörld!",
        "details": {
            "finish_reason": "eos_token", "prompt_tokens": 7, "generated_tokens": 3, "skipped_tokens": 0, "seed": null,
            "prefill": [], "tokens": [token(10, "Hello, w"), token(11, ""), token(12, "örld!")],
        },
    }]);
    assert_eq!(answer, expected);
    let request = mesh.workers[0].last();
    assert_eq!(request.adapter.unwrap().digest, crate::support::registry::digest_of("pirate 2").to_vec());
    let Some(Prompt::Text(prompt)) = request.prompt else { panic!() };
    assert_eq!((prompt.text.as_str(), prompt.add_special_tokens, prompt.parse_special), ("Ahoy", true, true));
    assert!(request.stopping.unwrap().include_stop);
}

#[tokio::test]
async fn generate_answers_with_an_object_and_details_only_when_asked() {
    let mesh = mesh().await;
    let (status, answer) = mesh.send("/generate", json!({"inputs": "x"})).await;
    assert_eq!((status, answer), (200, json!({"generated_text": "Hello, wörld!"})));
    let parameters = json!({"return_full_text": true, "decoder_input_details": true, "return_k_alternatives": 2, "temperature": 0.5});
    let (_, answer) = mesh.send("/generate", json!({"inputs": "Ahoy ", "parameters": parameters})).await;
    assert_eq!(answer["generated_text"], "Ahoy Hello, wörld!");
    let details = &answer["details"];
    assert_eq!(details["seed"], 42);
    assert_eq!(
        details["prefill"],
        json!([{"id": 1, "text": "Say", "logprob": null}, {"id": 2, "text": " hello", "logprob": -0.25}])
    );
    assert_eq!(details["tokens"][0]["alternative_tokens"][1], json!({"id": 1010, "text": "other", "logprob": -2.0}));
}

#[tokio::test]
async fn headers_count_and_time_honestly() {
    let mesh = mesh().await;
    let body = client_body(json!({"adapter_id": "pirate"}), false);
    let response = mesh.post("/", &body).send().await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    for (name, value) in [
        ("x-compute-type", "cpu+optimized"),
        ("x-compute-characters", "4"),
        ("x-prompt-tokens", "7"),
        ("x-generated-tokens", "3"),
        ("x-total-tokens", "10"),
        ("x-skipped-tokens", "0"),
        ("x-queue-time", "2"),
        ("x-model-id", "models/tiny.gguf"),
        ("x-adapter-id", "pirate"),
        ("x-weft-adapter", "harbour/pirate@2"),
    ] {
        assert_eq!(header(name), value, "{name}");
    }
    for name in [
        "x-compute-time",
        "x-total-time",
        "x-validation-time",
        "x-inference-time",
        "x-time-per-token",
        "x-time-to-first-token",
        "x-time-per-output-token",
    ] {
        assert!(header(name).parse::<u64>().is_ok(), "{name}");
    }
}

fn parse(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn the_last_event_of_a_stream_carries_the_text_and_the_details() {
    let mesh = mesh().await;
    for (path, stream) in [("/", true), ("/generate_stream", false), ("/invocations", true)] {
        let response = mesh.post(path, &client_body(json!({"adapter_id": "pirate"}), stream)).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let events = parse(&data_lines(&response.text().await.unwrap()));
        let texts: String = events.iter().map(|event| event["token"]["text"].as_str().unwrap()).collect();
        assert_eq!(texts, "Hello, wörld!");
        let (last, others) = events.split_last().unwrap();
        assert!(others.iter().all(|event| event["generated_text"].is_null() && event["details"].is_null()));
        assert!(events.iter().all(|event| event["token"]["logprob"].is_number() && event["token"]["skipped"] == false));
        assert_eq!(last["generated_text"], "Hello, wörld!");
        assert_eq!(
            last["details"],
            json!({"finish_reason": "eos_token", "prompt_tokens": 7, "generated_tokens": 3, "seed": null})
        );
    }
}

#[tokio::test]
async fn a_token_does_not_wait_for_the_end_that_may_follow_it() {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let waiting = told.clone();
    let worker = FakeWorker::playing("slow", move |request| {
        let digest = echoed(request);
        vec![
            started(digest.clone()),
            tokens(digest.clone(), vec![token(1, "one")]),
            crate::support::worker::Step::Wait(waiting.clone()),
            finished(digest, pb::FinishReason::Length, 1),
        ]
    });
    let mesh = mesh_with(settings(), vec![worker]).await;
    let mut response = mesh.post("/generate_stream", &client_body(json!({}), false)).send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    let first = parse(&data_lines(std::str::from_utf8(&first).unwrap()));
    assert_eq!((&first[0]["token"]["text"], &first[0]["generated_text"]), (&json!("one"), &Value::Null));
    told.notify_one();
    let rest = parse(&data_lines(&response.text().await.unwrap()));
    assert_eq!(rest.len(), 1);
    assert_eq!((&rest[0]["token"]["text"], &rest[0]["token"]["special"]), (&json!(""), &json!(true)));
    assert_eq!(rest[0]["generated_text"], "one");
}

#[tokio::test]
async fn the_likeliest_of_several_answers_wins() {
    let worker = FakeWorker::playing("two", |request| {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let digest = echoed(request);
        let mut word = token(number, if number == 0 { "worse" } else { "better" });
        word.logprob = if number == 0 { -3.0 } else { -1.0 };
        vec![started(digest.clone()), tokens(digest.clone(), vec![word]), finished(digest, pb::FinishReason::Stop, 1)]
    });
    let mesh = mesh_with(settings(), vec![worker]).await;
    let body = client_body(json!({"best_of": 2, "do_sample": true}), false);
    let (status, answer) = mesh.send("/", body).await;
    assert_eq!(status, 200);
    assert_eq!(answer[0]["generated_text"], "better");
    assert_eq!(answer[0]["details"]["finish_reason"], "stop_sequence");
    let losers = answer[0]["details"]["best_of_sequences"].as_array().unwrap();
    assert_eq!((losers.len(), &losers[0]["generated_text"]), (1, &json!("worse")));
}

#[tokio::test]
async fn errors_are_flat_and_typed() {
    let mesh = mesh().await;
    for (parameters, status, error_type, text) in [
        (
            json!({"adapter_id": "nobody/none"}),
            404,
            "adapter_not_found",
            "the model `nobody/none` does not exist or you do not have access to it",
        ),
        (
            json!({"adapter_id": "triage"}),
            404,
            "adapter_not_found",
            "the model `triage` does not exist or you do not have access to it",
        ),
        (json!({"top_k": 0}), 422, "validation", "Input validation error: `top_k` must be strictly positive"),
        (
            json!({"merged_adapters": {"ids": ["a"]}}),
            422,
            "validation",
            "Input validation error: number of adapter IDs must match number of adapter weights",
        ),
        (json!({"watermark": true}), 422, "validation", "Input validation error: `watermark` is not supported yet"),
    ] {
        for path in ["/", "/generate", "/generate_stream"] {
            let (got, body) = mesh.send(path, client_body(parameters.clone(), false)).await;
            assert_eq!((got, body), (status, json!({"error": text, "error_type": error_type})));
        }
    }
    let (status, body) = mesh.send("/", json!({"inputs": 3})).await;
    assert_eq!((status, &body["error_type"]), (422, &json!("validation")));
    assert!(body["error"].as_str().unwrap().contains("`inputs`"), "{body}");
    let response =
        mesh.client.post(format!("{}/", mesh.data)).bearer_auth("harbour-key").body("{").send().await.unwrap();
    let (status, body) = read(response).await;
    assert_eq!((status, &body["error_type"]), (400, &json!("validation")));
    assert!(body["error"].as_str().unwrap().contains("line 1 column"), "{body}");
}

#[tokio::test]
async fn ids_that_cannot_be_headers_or_names_are_just_unknown() {
    let mesh = mesh().await;
    for id in ["naïve/ädapter", "a\nb", "\u{0}", "https://example.org/x", "../../etc/passwd", "file:///x"] {
        for path in ["/", "/generate_stream"] {
            let (status, body) = mesh.send(path, client_body(json!({"adapter_id": id}), false)).await;
            assert_eq!((status, &body["error_type"]), (404, &json!("adapter_not_found")), "{id}");
        }
    }
    assert!(mesh.workers[0].requests().is_empty());
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_refused_in_loraxs_words() {
    let worker = FakeWorker::playing("strict", |_| {
        let fault = weft_fault::Fault::invalid("prompt", "too long").with_code("context_length_exceeded");
        vec![crate::support::worker::Step::Fail(fault.into())]
    });
    let mesh = mesh_with(settings(), vec![worker]).await;
    let inputs = "word ".repeat(80);
    let (status, body) = mesh.send("/", json!({"inputs": inputs, "parameters": {"max_new_tokens": 30}})).await;
    let text = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 100. Given: 80 `inputs` tokens and 30 `max_new_tokens`";
    assert_eq!((status, body), (422, json!({"error": text, "error_type": "validation"})));
    // What `truncate` cuts off is not counted.
    let parameters = json!({"max_new_tokens": 50, "truncate": 60});
    let (_, body) = mesh.send("/", json!({"inputs": inputs, "parameters": parameters})).await;
    let error = body["error"].as_str().unwrap();
    assert!(error.ends_with("Given: 60 `inputs` tokens and 50 `max_new_tokens`"), "{error}");
}

#[tokio::test]
async fn folders_of_the_workers_machine_are_not_told() {
    let worker = FakeWorker::new("w");
    worker.describe_as(|description| description.model_id = "/srv/models/tiny.gguf".into());
    let mesh = mesh_with(settings(), vec![worker]).await;
    let (_, info) = read(mesh.client.get(format!("{}/info", mesh.data)).send().await.unwrap()).await;
    assert_eq!(info["model_id"], "tiny.gguf");
    let answer = mesh.post("/", &client_body(json!({}), false)).send().await.unwrap();
    assert_eq!(answer.headers()["x-model-id"], "tiny.gguf");
}

#[tokio::test]
async fn the_server_describes_itself() {
    let mesh = mesh().await;
    let (status, info) = read(mesh.client.get(format!("{}/info", mesh.data)).send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&info["model_id"], &info["model_dtype"], &info["model_device_type"]),
        (&json!("models/tiny.gguf"), &json!("torch.float32"), &json!("cpu"))
    );
    assert_eq!((&info["max_input_length"], &info["max_total_tokens"]), (&json!(90), &json!(100)));
    for path in ["/", "/health", "/ping"] {
        let response = mesh.client.get(format!("{}{path}", mesh.data)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), "");
    }
    let (status, tokens) = mesh.send("/tokenize", json!({"inputs": "öne two"})).await;
    assert_eq!(status, 200);
    assert_eq!(
        tokens,
        json!([{"id": 0, "text": "öne ", "start": 0, "stop": 4}, {"id": 1, "text": "two", "start": 4, "stop": 7}])
    );
}

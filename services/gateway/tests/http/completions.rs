//! `POST /v1/completions`: prompts in all forms, echo, log-probabilities.

use crate::support::mesh;
use serde_json::{Value, json};
use weft_proto::worker::v1::generate_request::Prompt;

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let mesh = mesh().await;
    let (status, body) = mesh.send("/v1/completions", json!({"model": "pirate", "prompt": "Say hello"})).await;
    assert_eq!(status, 200);
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((&body["object"], &body["model"]), (&json!("text_completion"), &json!("pirate")));
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "text": "Hello, wörld!", "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(body["usage"]["total_tokens"], 10);
    let request = mesh.workers[0].last();
    let Some(Prompt::Text(prompt)) = request.prompt else { panic!() };
    assert!(prompt.add_special_tokens && prompt.parse_special && prompt.truncate == 0);
    assert_eq!(request.stopping.unwrap().max_tokens, 16);
}

#[tokio::test]
async fn several_prompts_have_several_answers_each() {
    let mesh = mesh().await;
    let (status, body) = mesh.send("/v1/completions", json!({"prompt": ["a", "b"], "n": 2, "echo": true})).await;
    assert_eq!(status, 200);
    let texts: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["aHello, wörld!", "aHello, wörld!", "bHello, wörld!", "bHello, wörld!"]);
    assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["completion_tokens"]), (&json!(14), &json!(12)));
}

#[tokio::test]
async fn token_ids_reach_the_worker_as_they_are() {
    let mesh = mesh().await;
    let (status, body) = mesh.send("/v1/completions", json!({"prompt": [5, 6, 7], "echo": true})).await;
    assert_eq!(status, 200);
    // The worker's words for the prompt.
    assert_eq!(body["choices"][0]["text"], "Say helloHello, wörld!");
    let Some(Prompt::Tokens(prompt)) = mesh.workers[0].last().prompt else { panic!() };
    assert_eq!(prompt.ids, [5, 6, 7]);
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_a_new_token() {
    let mesh = mesh().await;
    let body = json!({"prompt": "Say hello", "echo": true, "max_tokens": 0, "logprobs": 1});
    let (status, answer) = mesh.send("/v1/completions", body).await;
    assert_eq!(status, 200);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Say hello"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["Say", " hello"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.25]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 3]));
    assert_eq!(choice["logprobs"]["top_logprobs"], json!([null, {" hello": -0.25, "other": -2.0}]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(mesh.workers[0].last().stopping.unwrap().max_tokens, 1);
}

#[tokio::test]
async fn a_stream_has_the_same_shape_and_runs_on_offsets() {
    let mesh = mesh().await;
    let body = json!({"prompt": "p", "stream": true, "logprobs": 0, "stream_options": {"include_usage": true}});
    let events = mesh.events("/v1/completions", body).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "Hello, wörld!");
    assert_eq!(chunks[0]["choices"][0]["logprobs"]["text_offset"], json!([0]));
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["text_offset"], json!([8, 8]));
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[3]["usage"]["total_tokens"], 10);

    let echoed = mesh.events("/v1/completions", json!({"prompt": "p", "stream": true, "echo": true})).await;
    let first: Value = serde_json::from_str(&echoed[0]).unwrap();
    assert_eq!(first["choices"][0]["text"], "p");
    let (status, error) =
        mesh.send("/v1/completions", json!({"prompt": "p", "stream": true, "echo": true, "logprobs": 1})).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("echo")));
}

#[tokio::test]
async fn token_ids_that_the_worker_refuses_are_the_prompts_fault() {
    let mesh = mesh().await;
    mesh.workers[0].play(|_| {
        let fault = weft_fault::Fault::invalid("tokens.ids", "tokens.ids is 99, allowed is ids below 10");
        vec![crate::support::worker::Step::Fail(fault.into())]
    });
    let (status, body) = mesh.send("/v1/completions", json!({"prompt": [99]})).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("prompt")));
}

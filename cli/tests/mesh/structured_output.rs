//! Structured output over HTTP: two hundred schemas on the real model in batches mixed with free requests, every route,
//! and the refusals.

use crate::support::{Reply, Weft, demo_model, example_adapter, post, root, tiny_model};
use futures::StreamExt;
use serde_json::{Value, json};

/// Requests at once.
const CONCURRENCY: usize = 32;

/// Schemas after the shapes of public APIs, each with its name.
fn schemas() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(root().join("crates/grammar/tests/schemas.jsonl")).unwrap();
    let read = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        (line["name"].as_str().unwrap().to_owned(), line["schema"].take())
    };
    text.lines().map(read).collect()
}

/// By the judgement of another implementation.
fn problems(schema: &Value, text: &str) -> Vec<String> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return vec![error.to_string()],
    };
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    validator.iter_errors(&value).map(|error| error.to_string()).collect()
}

fn assert_valid(name: &str, schema: &Value, text: &str) {
    assert_eq!(problems(schema, text), [""; 0], "{name}: {text}");
}

async fn free(url: &str, secret: &str, model: &str) -> String {
    let body = json!({
        "model": model, "temperature": 0, "max_tokens": 16,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let reply = post(url, secret, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_schemas_on_base_and_adapters_among_free_requests_all_validate() {
    let up = Weft::up(&demo_model(), &[]);
    let secret = up.tenant("harbour").await;
    let models = ["base", "pirate", "support-triage", "sql-writer"];
    for adapter in &models[1..] {
        up.admin().publish("harbour", adapter, &example_adapter(adapter), Some("live")).await.unwrap();
    }
    let url = &format!("{}/v1/chat/completions", up.data_url);
    let secret = secret.as_str();
    let mut alone = Vec::new();
    for model in models {
        alone.push(free(url, secret, model).await);
    }
    let alone = &alone;
    let calls = schemas().into_iter().enumerate().map(|(n, (name, schema))| async move {
        let model = models[n % models.len()];
        if n % 10 == 0 {
            let at = n / 10 % models.len();
            assert_eq!(free(url, secret, models[at]).await, alone[at], "a free answer beside {name}");
        }
        let format = json!({"type": "json_schema", "json_schema": {"name": name, "strict": true, "schema": schema}});
        let body = |temperature: f64, seed: usize| {
            json!({
                "model": model, "temperature": temperature, "seed": seed, "max_tokens": 400,
                "messages": [{"role": "user", "content": format!("Give an example of {name} as JSON.")}],
                "response_format": format,
            })
        };
        let mut reply = post(url, secret, body(if n % 3 == 0 { 0.0 } else { 0.8 }, n)).await;
        // A small model repeats itself at times where a schema lets it go on for ever: it may throw the dice again.
        for again in 1..=3 {
            if reply.status == 200 && reply.json()["choices"][0]["finish_reason"] == "length" {
                reply = post(url, secret, body(0.8, 1000 * again + n)).await;
            }
        }
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        let reply = reply.json();
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let end = reply["choices"][0]["finish_reason"].as_str().unwrap();
        let problems = problems(&schema, &text);
        (end != "stop" || !problems.is_empty()).then(|| format!("{name} on {model}: {end}, {problems:?}: {text}"))
    });
    let answers: Vec<Option<String>> = futures::stream::iter(calls).buffer_unordered(CONCURRENCY).collect().await;
    assert_eq!(answers.len(), 200);
    let wrong: Vec<String> = answers.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// At most 151 bytes of JSON, white space included.
fn user() -> Value {
    json!({
        "type": "object",
        "properties": {"login": {"type": "string", "pattern": "^[a-z]{2,6}$"}},
        "required": ["login"],
        "additionalProperties": false
    })
}

#[tokio::test]
async fn every_route_and_dialect_takes_a_schema() {
    let up = Weft::up(&tiny_model(), &[]);
    let secret = up.tenant("harbour").await;
    let named = json!({"type": "json_schema", "json_schema": {"name": "user", "schema": user()}});
    let plain = json!({"type": "json_object", "schema": user()});
    let chat = json!([{"role": "user", "content": "a"}]);
    let long = 200;
    for (path, body, place) in [
        ("/v1/chat/completions", json!({"messages": chat, "response_format": named}), "/choices/0/message/content"),
        ("/v1/chat/completions", json!({"messages": chat, "response_format": plain}), "/choices/0/message/content"),
        ("/v1/completions", json!({"prompt": "a", "response_format": named}), "/choices/0/text"),
        ("/v1/completions", json!({"prompt": "a", "guided_json": user()}), "/choices/0/text"),
        ("/v1/completions", json!({"prompt": "a", "guided_json": user().to_string()}), "/choices/0/text"),
        ("/generate", json!({"inputs": "a", "parameters": {"response_format": plain}}), "/generated_text"),
        ("/", json!({"inputs": "a", "parameters": {"response_format": plain}}), "/0/generated_text"),
    ] {
        let mut body = body;
        match body.get_mut("parameters") {
            Some(parameters) => parameters["max_new_tokens"] = json!(long),
            None => body["max_tokens"] = json!(long),
        }
        let reply = post(&format!("{}{path}", up.data_url), &secret, body.clone()).await;
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text);
        let reply = reply.json();
        let text = reply.pointer(place).and_then(Value::as_str).unwrap_or_else(|| panic!("{path}: {reply}"));
        assert_valid(path, &user(), text);
    }
    let regex = json!({"prompt": "a", "max_tokens": 9, "guided_regex": "(ab|cd){2}"});
    let text =
        post(&format!("{}/v1/completions", up.data_url), &secret, regex).await.json()["choices"][0]["text"].take();
    assert!(["abab", "abcd", "cdab", "cdcd"].map(Value::from).contains(&text), "{text}");

    let body = json!({"inputs": "a", "parameters": {"response_format": plain, "max_new_tokens": long}});
    let reply = post(&format!("{}/generate_stream", up.data_url), &secret, body).await;
    let events = reply.text.lines().filter_map(|line| line.strip_prefix("data:"));
    let events: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
    let last = events.last().unwrap();
    assert_valid("stream", &user(), last["generated_text"].as_str().unwrap_or_else(|| panic!("{last}")));
}

#[tokio::test]
async fn impossible_and_over_large_schemas_are_refused_with_400_naming_the_field() {
    let up = Weft::up(&tiny_model(), &[]);
    let secret = up.tenant("harbour").await;
    let refused = |path: &'static str, body: Value| {
        let (url, secret) = (format!("{}{path}", up.data_url), secret.clone());
        async move { post(&url, &secret, body).await }
    };
    let large: Vec<String> = (0..20_000).map(|n| format!("value-{n}")).collect();
    for (schema, words) in [
        (json!({"enum": []}), "enum"),
        (json!({"type": "integer", "minimum": 2, "maximum": 1}), "minimum"),
        (json!({"type": "string", "pattern": "[^\\s\\S]"}), "json_schema"),
        (json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}), "finite"),
        (json!({"enum": large}), "65536"),
        (json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true}), "uniqueItems"),
        (json!(7), "object"),
    ] {
        let chat = json!({
            "messages": [{"role": "user", "content": "a"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        });
        let reply = refused("/v1/chat/completions", chat).await;
        assert_refused(&reply, words);
        assert_eq!(reply.json()["error"]["param"], "response_format", "{}", reply.text);
        let lorax = json!({
            "inputs": "a", "parameters": {"response_format": {"type": "json_object", "schema": schema}},
        });
        assert_refused(&refused("/generate", lorax).await, words);
    }
}

fn assert_refused(reply: &Reply, words: &str) {
    assert_eq!(reply.status, 400, "{}", reply.text.chars().take(400).collect::<String>());
    assert!(reply.text.contains(words), "{words} in {}", reply.text);
}

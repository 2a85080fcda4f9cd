//! Whatever bytes come, the answer is JSON or events, and the next request is served.

use crate::support::{Mesh, mesh, read};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const ROUTES: &[&str] = &["/v1/chat/completions", "/v1/completions", "/", "/generate", "/generate_stream", "/tokenize"];

/// Bodies near the real ones, so that more than the first byte is read.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("JSON has no infinities", |n| n.is_finite()).prop_map(|n| n.to_string()),
        ".{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    let value = scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::vec((key(), inner), 0..4).prop_map(|pairs| {
                let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
                format!("{{{}}}", pairs.join(","))
            }),
        ]
    });
    let object = proptest::collection::vec((key(), value), 0..6).prop_map(|pairs| {
        let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
        format!("{{{}}}", pairs.join(",")).into_bytes()
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), object]
}

fn key() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "prompt",
        "stop",
        "n",
        "stream",
        "temperature",
        "top_p",
        "seed",
        "max_tokens",
        "logprobs",
        "echo",
        "tools",
        "response_format",
        "inputs",
        "parameters",
        "adapter_id",
        "best_of",
        "details",
        "truncate",
        "merged_adapters",
        "return_k_alternatives",
        "add_special_tokens",
        "other",
    ])
}

async fn answers(mesh: &Mesh, path: &str, body: Vec<u8>) {
    let request = mesh.client.post(format!("{}{path}", mesh.data)).bearer_auth("harbour-key").body(body);
    let response = request.send().await.unwrap();
    assert!(response.headers().contains_key("x-request-id"));
    let streams = response.headers()["content-type"] == "text/event-stream";
    if streams {
        assert_eq!(response.status(), 200);
        assert!(!crate::support::data_lines(&response.text().await.unwrap()).is_empty());
        return;
    }
    let (status, answer) = read(response).await;
    assert!(status != 500, "{answer}");
    assert!(status == 200 || !answer["error"].is_null(), "{status} {answer}");
}

#[test]
fn random_bodies_get_an_answer_or_an_error_in_json() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mesh = runtime.block_on(mesh());
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let case = (proptest::sample::select(ROUTES), body());
    runner
        .run(&case, |(path, body)| {
            runtime.block_on(answers(&mesh, path, body));
            Ok(())
        })
        .unwrap();
    assert_eq!(runtime.block_on(mesh.chat("base")).0, 200);
    assert_eq!(runtime.block_on(mesh.metric("gateway_panics_total")), 0.0);
    drop(runtime.block_on(async { mesh }));
}

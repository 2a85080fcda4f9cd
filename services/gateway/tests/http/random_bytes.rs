//! Whatever bytes come, the answer is JSON or events, and the next request is served.

use crate::support::worker::FakeWorker;
use crate::support::{Mesh, mesh, mesh_with, read, settings};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use weft_gateway::Settings;

const ROUTES: &[&str] =
    &["/v1/chat/completions", "/v1/completions", "/", "/generate", "/generate_stream", "/invocations", "/tokenize"];

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
        "name",
        "label",
        "version",
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

/// A request that may be any, on either listener.
#[derive(Clone, Debug)]
struct Odd {
    admin: bool,
    method: &'static str,
    path: String,
    kind: &'static str,
    if_match: Vec<u8>,
    body: Vec<u8>,
}

/// A piece of a path or query: names that exist, names that could, any bytes. Percent-encoded, as a URL demands.
fn segment() -> impl Strategy<Value = String> {
    let known = proptest::sample::select(vec!["harbour", "pirate", "org%2Ftuned", "live", "old", "k9", "new", "base"]);
    let bytes = proptest::collection::vec(any::<u8>(), 0..12);
    prop_oneof![
        3 => known.prop_map(ToOwned::to_owned),
        1 => "[a-z@:0-9./-]{1,20}".prop_map(|text| percent_encoding::percent_encode(text.as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string()),
        1 => bytes.prop_map(|bytes| percent_encoding::percent_encode(&bytes, percent_encoding::NON_ALPHANUMERIC).to_string()),
    ]
}

fn path() -> impl Strategy<Value = (bool, String)> {
    let shape = proptest::sample::select(vec![
        (false, "/v1/models/{a}"),
        (false, "/v1/models/{a}/{b}?{c}"),
        (false, "/{a}?{b}={c}"),
        (true, "/admin/v1/tenants"),
        (true, "/admin/v1/tenants/{a}/keys"),
        (true, "/admin/v1/tenants/{a}/keys/{b}"),
        (true, "/admin/v1/tenants/{a}/adapters"),
        (true, "/admin/v1/tenants/{a}/adapters/{b}/versions"),
        (true, "/admin/v1/tenants/{a}/adapters/{b}/versions?alias={c}"),
        (true, "/admin/v1/tenants/{a}/adapters/{b}/versions?{c}={c}&alias"),
        (true, "/admin/v1/tenants/{a}/adapters/{b}/aliases"),
        (true, "/admin/v1/tenants/{a}/adapters/{b}/aliases/{c}"),
        (true, "/admin/v1/{a}/{b}"),
    ]);
    (shape, segment(), segment(), segment())
        .prop_map(|((admin, shape), a, b, c)| (admin, shape.replace("{a}", &a).replace("{b}", &b).replace("{c}", &c)))
}

/// Near a multipart body with the boundary `b`, cut anywhere.
fn upload() -> impl Strategy<Value = Vec<u8>> {
    let name = proptest::sample::select(vec!["config", "weights", "other", "", "we\u{ef}rd"]);
    let content = proptest::collection::vec(any::<u8>(), 0..60);
    let file =
        proptest::sample::select(vec!["", "; filename=\"a.safetensors\"", "; filename=\"a.bin\"", "; filename=\""]);
    let part = (name, file, content).prop_map(|(name, file, content)| {
        let head = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        [head.as_bytes(), &content, b"\r\n"].concat()
    });
    (proptest::collection::vec(part, 0..4), any::<bool>(), 0usize..400).prop_map(|(parts, ended, cut)| {
        let mut whole = parts.concat();
        if ended {
            whole.extend_from_slice(b"--b--\r\n");
        } else {
            whole.truncate(cut);
        }
        whole
    })
}

fn odd() -> impl Strategy<Value = Odd> {
    let method = proptest::sample::select(vec!["GET", "POST", "POST", "PUT", "PUT", "DELETE", "PATCH"]);
    let content = prop_oneof![
        (Just("application/json"), body()),
        (Just("multipart/form-data; boundary=b"), upload()),
        (Just("multipart/form-data"), upload()),
    ];
    // What a header can hold at all.
    let byte = (any::<u8>()).prop_filter("no control characters", |byte| *byte >= 32 && *byte != 127);
    (path(), method, content, proptest::collection::vec(byte, 0..20))
        .prop_map(|((admin, path), method, (kind, body), if_match)| Odd { admin, method, path, kind, if_match, body })
}

async fn answers_odd(mesh: &Mesh, odd: Odd) {
    let (url, key) = if odd.admin { (&mesh.admin, crate::support::ADMIN_KEY) } else { (&mesh.data, "harbour-key") };
    let request = mesh.client.request(odd.method.parse().unwrap(), format!("{url}{}", odd.path)).bearer_auth(key);
    let if_match = reqwest::header::HeaderValue::from_bytes(&odd.if_match).unwrap();
    let request = request.header("content-type", odd.kind).header("if-match", if_match);
    let response = request.body(odd.body.clone()).send().await.unwrap_or_else(|error| panic!("{error}: {odd:?}"));
    assert!(response.headers().contains_key("x-request-id"), "{odd:?}");
    let status = response.status().as_u16();
    assert!(status < 500, "{status} {odd:?}");
    let text = response.text().await.unwrap();
    if status >= 400 {
        let answer: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text} {odd:?}"));
        assert!(!answer["error"].is_null(), "{status} {answer} {odd:?}");
    }
}

#[test]
fn odd_paths_queries_uploads_and_preconditions_get_an_answer_too() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Nothing here becomes visible in a directory, so nothing waits for it.
    let mesh = runtime.block_on(mesh_with(Settings { admin_visible_ms: 10, ..settings() }, vec![FakeWorker::new("w")]));
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    runner
        .run(&odd(), |odd| {
            runtime.block_on(answers_odd(&mesh, odd));
            Ok(())
        })
        .unwrap();
    // With another tenant's key: whoever draws `k1` revokes the usual one, as it should.
    let models = mesh.client.get(format!("{}/v1/models", mesh.data)).bearer_auth("helpdesk-key");
    assert_eq!(runtime.block_on(async { models.send().await }).unwrap().status(), 200);
    assert_eq!(runtime.block_on(mesh.metric("gateway_panics_total")), 0.0);
    drop(runtime.block_on(async { mesh }));
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

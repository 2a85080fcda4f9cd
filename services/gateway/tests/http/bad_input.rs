//! Whatever is wrong with a request is said in JSON, with the field.

use crate::support::{chat_body, mesh, mesh_with, read, settings};
use serde_json::{Value, json};
use weft_gateway::Settings;

#[tokio::test]
async fn malformed_json_names_line_and_column() {
    let mesh = mesh().await;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for text in ["", "{", "not json", "{\"model\":\n \"x\",}", "{\"messages\":[]} {}", "\u{0}"] {
            let request = mesh.client.post(format!("{}{path}", mesh.data)).bearer_auth("harbour-key").body(text);
            let (status, body) = read(request.send().await.unwrap()).await;
            assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_json")), "{text:?}");
            let message = body["error"]["message"].as_str().unwrap();
            assert!(message.contains("line ") && message.contains("column "), "{message}");
            let keys: Vec<_> = body["error"].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["message", "type", "param", "code"]);
        }
    }
}

#[tokio::test]
async fn wrong_types_and_values_name_their_field() {
    let mesh = mesh().await;
    for (more, param) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "nobody", "content": "x"}]}), "messages[0].role"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"priority": 2}), "priority"),
        (json!({"priority": "high"}), "priority"),
        (json!({"n": 1000}), "n"),
        (json!({"stop": ["a", 1]}), "stop[1]"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"model": 7}), "model"),
        (json!({"top_logprobs": 21, "logprobs": true}), "top_logprobs"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}, "guided_regex": "a"}),
            "response_format",
        ),
        (json!({"guided_choice": ["a"]}), "guided_choice"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
    ] {
        let mut body = chat_body("base");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = mesh.send("/v1/chat/completions", body).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{more} {answer}");
        let root = param.split(['[', '.']).next().unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains(root), "{answer}");
    }
    let (status, answer) = mesh.send("/v1/chat/completions", json!([])).await;
    assert_eq!(status, 400);
    assert_eq!(answer["error"]["type"], "invalid_request_error");
    assert!(mesh.workers[0].requests().is_empty());
}

#[tokio::test]
async fn a_body_over_the_cap_is_413_whether_announced_or_not() {
    let mesh =
        mesh_with(Settings { body_bytes_max: 1000, ..settings() }, vec![crate::support::worker::FakeWorker::new("w")])
            .await;
    let body = |bytes: usize| -> Vec<u8> {
        let mut text = chat_body("base").to_string();
        text.push_str(&" ".repeat(bytes - text.len()));
        text.into_bytes()
    };
    for (path, kind) in [("/v1/chat/completions", "code"), ("/generate", "error_type")] {
        for bytes in [1001, 3_000_000] {
            let url = format!("{}{path}", mesh.data);
            let announced = mesh.client.post(&url).bearer_auth("harbour-key").body(body(bytes));
            let pieces: Vec<_> = body(bytes).chunks(700).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
            let chunked = mesh
                .client
                .post(&url)
                .bearer_auth("harbour-key")
                .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
            for request in [announced, chunked] {
                let (status, answer) = read(request.send().await.unwrap()).await;
                assert_eq!(status, 413);
                assert!(answer.to_string().contains("1000 bytes"), "{answer}");
                assert!(answer.to_string().contains(kind));
            }
        }
    }
    let exact =
        mesh.client.post(format!("{}/v1/chat/completions", mesh.data)).bearer_auth("harbour-key").body(body(1000));
    assert_eq!(exact.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_json() {
    let mesh = mesh().await;
    let (status, body) = read(mesh.get("/v1/nothing").send().await.unwrap()).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("unknown_url")));
    let (status, body) = read(mesh.get("/v1/chat/completions").send().await.unwrap()).await;
    assert_eq!((status, &body["error"]["code"]), (405, &json!("method_not_allowed")));
    let (status, body) = read(mesh.get("/generate").send().await.unwrap()).await;
    assert_eq!(status, 405);
    assert!(body["error"].is_string() && body["error_type"].is_string());
    let (status, body) = read(
        mesh.client
            .delete(format!("{}/admin/v1/tenants", mesh.admin))
            .bearer_auth(crate::support::ADMIN_KEY)
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((status, &body["error"]["code"]), (405, &json!("method_not_allowed")));
    for response in [mesh.get("/v1/nothing").send().await.unwrap(), mesh.get("/generate").send().await.unwrap()] {
        assert!(response.headers().contains_key("x-request-id"));
    }
}

#[tokio::test]
async fn wrong_admin_bodies_and_names_name_their_field() {
    let mesh = mesh().await;
    for (path, body, param) in [
        ("/tenants", json!({}), Value::Null),
        ("/tenants", json!({"name": "Upper"}), json!("name")),
        ("/tenants", json!({"name": 5}), json!("name")),
        ("/tenants", json!({"name": "a", "weight": 0}), json!("weight")),
        ("/tenants", json!({"name": "a", "weight": "1"}), json!("weight")),
        ("/tenants/Upper/keys", json!({}), json!("tenant")),
        ("/tenants/harbour/keys", json!({"label": 5}), json!("label")),
    ] {
        let (status, answer) = read(mesh.operate("POST", path).json(&body).send().await.unwrap()).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &param), "{path} {body} {answer}");
    }
    for (tenant, change, wanted) in [("harbour", json!({"weight": 101}), 400), ("nobody", json!({"weight": 1}), 404)] {
        let change = mesh.operate("PATCH", &format!("/tenants/{tenant}")).json(&change);
        assert_eq!(change.send().await.unwrap().status(), wanted, "{tenant}");
    }
    let (status, answer) =
        read(mesh.operate("POST", "/tenants").json(&json!({"name": "a", "naem": "b"})).send().await.unwrap()).await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("naem"));
    let (status, _) = read(mesh.operate("POST", "/tenants/nobody/keys").json(&json!({})).send().await.unwrap()).await;
    assert_eq!(status, 404);
}

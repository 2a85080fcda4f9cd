//! Who may ask for what.

use crate::support::{chat_body, mesh, read};
use serde_json::{Value, json};

#[tokio::test]
async fn no_key_or_a_wrong_one_is_401_in_the_routes_own_shape() {
    let mesh = mesh().await;
    for (path, body) in [
        ("/v1/chat/completions", chat_body("base")),
        ("/v1/completions", json!({"prompt": "x"})),
        ("/generate", json!({"inputs": "x"})),
        ("/generate_stream", json!({"inputs": "x"})),
        ("/", json!({"inputs": "x"})),
        ("/tokenize", json!({"inputs": "x"})),
    ] {
        let url = format!("{}{path}", mesh.data);
        for request in [
            mesh.client.post(&url),
            mesh.client.post(&url).bearer_auth("wrong"),
            mesh.client.post(&url).basic_auth("harbour-key", None::<&str>),
        ] {
            let (status, body) = read(request.json(&body).send().await.unwrap()).await;
            assert_eq!(status, 401, "{path}");
            if path.starts_with("/v1") {
                assert_eq!(body["error"]["code"], "invalid_api_key");
            } else {
                assert!(body["error"].is_string());
                assert_eq!(body["error_type"], "unauthenticated");
            }
        }
    }
    assert_eq!(mesh.client.get(format!("{}/v1/models", mesh.data)).send().await.unwrap().status(), 401);
    assert!(mesh.workers[0].requests().is_empty());
}

#[tokio::test]
async fn anothers_adapter_answers_exactly_like_an_unknown_one() {
    let mesh = mesh().await;
    let without_name = |body: Value, name: &str| body.to_string().replace(name, "NAME");
    let (status, theirs) = mesh.chat("triage").await;
    let (_, unknown) = mesh.chat("nobody").await;
    assert_eq!((status, &theirs["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(without_name(theirs, "triage"), without_name(unknown, "nobody"));
    let digest = crate::support::registry::digest_of("triage 1");
    assert_eq!(mesh.chat(&format!("pirate@{digest}")).await.0, 404);
    let ours = mesh
        .client
        .post(format!("{}/v1/chat/completions", mesh.data))
        .bearer_auth("helpdesk-key")
        .json(&chat_body("triage"));
    assert_eq!(ours.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_new_key_works_and_a_revoked_one_fails_as_soon_as_that_is_answered() {
    let mesh = mesh().await;
    let (status, created) =
        read(mesh.operate("POST", "/tenants").json(&json!({"name": "analytics"})).send().await.unwrap()).await;
    assert_eq!((status, &created["name"]), (201, &json!("analytics")));
    let again = mesh.operate("POST", "/tenants").json(&json!({"name": "analytics"})).send().await.unwrap();
    assert_eq!(again.status(), 200);
    for _ in 0..20 {
        let response = mesh.operate("POST", "/tenants/analytics/keys").json(&json!({})).send().await.unwrap();
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (status, key) = read(response).await;
        assert_eq!(status, 201);
        let chat = async || {
            let request = mesh.client.post(format!("{}/v1/chat/completions", mesh.data)).json(&chat_body("base"));
            request.bearer_auth(key["secret"].as_str().unwrap()).send().await.unwrap().status()
        };
        assert_eq!(chat().await, 200);
        let path = format!("/tenants/analytics/keys/{}", key["id"].as_str().unwrap());
        assert_eq!(mesh.operate("DELETE", &path).send().await.unwrap().status(), 204);
        assert_eq!(chat().await, 401);
    }
    let (_, keys) = read(mesh.operate("GET", "/tenants/analytics/keys").send().await.unwrap()).await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 20);
    assert!(keys["keys"].as_array().unwrap().iter().all(|key| key.get("secret").is_none() && key["revoked_ms"] == 1));
}

#[tokio::test]
async fn admin_calls_need_an_admin_key_and_the_admin_listener() {
    let mesh = mesh().await;
    for request in [
        mesh.client.get(format!("{}/admin/v1/tenants", mesh.admin)),
        mesh.client.get(format!("{}/admin/v1/tenants", mesh.admin)).bearer_auth("harbour-key"),
        mesh.client.post(format!("{}/admin/v1/tenants/harbour/adapters/x/versions", mesh.admin)).bearer_auth("wrong"),
    ] {
        let (status, body) = read(request.send().await.unwrap()).await;
        assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    }
    for path in ["/metrics", "/admin/v1/tenants", "/console"] {
        let response = mesh
            .client
            .get(format!("{}{path}", mesh.data))
            .bearer_auth(crate::support::ADMIN_KEY)
            .send()
            .await
            .unwrap();
        assert_eq!(read(response).await.0, 404, "{path}");
    }
    for path in ["/v1/chat/completions", "/generate", "/"] {
        let request =
            mesh.client.post(format!("{}{path}", mesh.admin)).bearer_auth("harbour-key").json(&chat_body("base"));
        assert_eq!(read(request.send().await.unwrap()).await.0, 404, "{path}");
    }
    assert_eq!(
        mesh.client.get(format!("{}/v1/models", mesh.admin)).bearer_auth("harbour-key").send().await.unwrap().status(),
        404
    );
}

//! `GET /v1/models` and `/v1/models/{id}`.

use crate::support::{mesh, read};
use serde_json::json;

#[tokio::test]
async fn a_tenant_sees_the_base_and_its_own_adapters() {
    let mesh = mesh().await;
    let (status, body) = read(mesh.get("/v1/models").send().await.unwrap()).await;
    assert_eq!((status, &body["object"]), (200, &json!("list")));
    let ids: Vec<_> = body["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny-base", "org/tuned", "pirate"]);
    let pirate = &body["data"][2];
    assert_eq!((&pirate["object"], &pirate["owned_by"]), (&json!("model"), &json!("harbour")));
    assert_eq!(
        (&pirate["parent"], &pirate["root"], &pirate["version"]),
        (&json!("tiny-base"), &json!("tiny-base"), &json!(2))
    );
    assert_eq!(pirate["created"], 1_700_000_000);
    assert!(body["data"][0]["parent"].is_null());
}

#[tokio::test]
async fn a_name_with_a_slash_may_come_plain_or_encoded() {
    let mesh = mesh().await;
    for path in ["/v1/models/org/tuned", "/v1/models/org%2Ftuned", "/v1/models/pirate@1", "/v1/models/base"] {
        let (status, body) = read(mesh.get(path).send().await.unwrap()).await;
        assert_eq!(status, 200, "{path} {body}");
    }
    for path in ["/v1/models/triage", "/v1/models/none", "/v1/models/pirate@9"] {
        let (status, body) = read(mesh.get(path).send().await.unwrap()).await;
        assert_eq!((status, &body["error"]["code"]), (404, &json!("model_not_found")), "{path}");
    }
    let (status, _) = read(mesh.get("/v1/models/%FF").send().await.unwrap()).await;
    assert_eq!(status, 400);
}

//! How much one address may send, whoever it says it is.

use crate::support::worker::FakeWorker;
use crate::support::{Mesh, chat_body, mesh_with, read, settings};
use reqwest::Response;
use serde_json::json;
use weft_gateway::Settings;

/// The burst is what is asked for; so little comes back that no test sees it.
async fn mesh_of(burst: u32, change: impl FnOnce(&mut Settings)) -> Mesh {
    let mut settings = settings();
    (settings.address_requests_per_second, settings.address_burst) = (1, burst);
    change(&mut settings);
    mesh_with(settings, vec![FakeWorker::new("w")]).await
}

async fn chat(mesh: &Mesh, key: &str, forwarded: &str) -> Response {
    let request = mesh.client.post(format!("{}/v1/chat/completions", mesh.data)).bearer_auth(key);
    request.header("x-forwarded-for", forwarded).json(&chat_body("base")).send().await.unwrap()
}

/// Answers until the first refusal, which is given too.
async fn until_refused(mesh: &Mesh, key: &str, forwarded: &str) -> (Vec<u16>, Response) {
    let mut answered = Vec::new();
    for _ in 0..100 {
        let response = chat(mesh, key, forwarded).await;
        if response.status() == 429 {
            return (answered, response);
        }
        answered.push(response.status().as_u16());
    }
    panic!("never refused");
}

#[tokio::test]
async fn an_address_that_is_too_fast_is_refused_before_anybody_is_authenticated() {
    let mesh = mesh_of(5, |_| {}).await;
    let (answered, refused) = until_refused(&mesh, "wrong", "198.51.100.7").await;
    assert!(answered.len() >= 5 && answered.iter().all(|status| *status == 401), "{answered:?}");
    for name in ["retry-after", "retry-after-ms", "x-request-id"] {
        assert!(refused.headers().contains_key(name), "{name}");
    }
    let (_, body) = read(refused).await;
    assert_eq!(body["error"]["code"], json!("rate_limit_exceeded"));
    // A right key does not help, nor does another claim; LoRAX's clients are told in their own shape.
    until_refused(&mesh, "harbour-key", "203.0.113.1").await;
    let mut refused = mesh.post("/generate", &json!({"inputs": "x"})).send().await.unwrap();
    for _ in 0..100 {
        if refused.status() == 429 {
            break;
        }
        refused = mesh.post("/generate", &json!({"inputs": "x"})).send().await.unwrap();
    }
    let (status, body) = read(refused).await;
    assert_eq!((status, &body["error_type"]), (429, &json!("overloaded")));
    for path in ["/livez", "/readyz"] {
        assert_eq!(mesh.client.get(format!("{}{path}", mesh.data)).send().await.unwrap().status(), 200, "{path}");
    }
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_counts_for_itself() {
    let mesh = mesh_of(5, |settings| settings.trusted_proxies = vec!["127.0.0.0/8".into()]).await;
    until_refused(&mesh, "harbour-key", "203.0.113.1").await;
    assert_eq!(chat(&mesh, "harbour-key", "203.0.113.2").await.status(), 200);
    until_refused(&mesh, "harbour-key", "9.9.9.9, 203.0.113.2").await;
    let (answered, _) = until_refused(&mesh, "harbour-key", "8.8.8.8, 203.0.113.2").await;
    assert!(answered.len() < 5, "what is left of the proxy's own entry changes nothing");
}

#[tokio::test]
async fn loopback_can_be_exempt() {
    let mesh = mesh_of(1, |settings| settings.address_limit_loopback = false).await;
    for _ in 0..20 {
        assert_eq!(chat(&mesh, "harbour-key", "203.0.113.1").await.status(), 200);
    }
    assert_eq!(mesh.metric("gateway_addresses_refused_total").await, 0.0);
}

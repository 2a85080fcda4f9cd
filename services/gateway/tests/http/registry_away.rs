//! The registry goes away and comes back: what is known is served meanwhile, and what changed is seen afterwards.

use crate::support::registry::FakeRegistry;
use crate::support::worker::FakeWorker;
use crate::support::{chat_body, read, settings};
use serde_json::json;
use tokio::runtime::Runtime;
use weft_gateway::{Settings, WorkerEndpoint};
use weft_service_kit::transport::{Address, Listener, connect};

/// The registry as a process that can be killed: in a runtime of its own, connections and all.
async fn run(registry: &FakeRegistry, address: &Address) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (registry, address) = (registry.clone(), address.clone());
    let bound = runtime.spawn(async move {
        let listener = Listener::bind(&address).await.unwrap();
        registry.serve(listener);
    });
    bound.await.unwrap();
    runtime
}

#[tokio::test]
async fn the_last_directory_serves_until_the_registry_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("registry.sock"));
    let registry = FakeRegistry::with_tenants();
    let process = run(&registry, &address).await;
    let worker = FakeWorker::new("w");
    let (listener, channel) = Listener::memory();
    let servers = vec![worker.serve(listener)];
    let endpoints = vec![WorkerEndpoint { address: "w".into(), channel }];
    let settings = Settings { admin_visible_ms: 50, ..settings() };
    let mesh =
        crate::support::start(settings, connect(&address), endpoints, registry.clone(), vec![worker], servers).await;
    mesh.ready().await;

    process.shutdown_background();
    mesh.until("refusing admin writes", async || mesh.operate("GET", "/tenants").send().await.unwrap().status() == 503)
        .await;
    assert_eq!(mesh.chat("pirate").await.0, 200);
    assert_eq!(mesh.get("/readyz").send().await.unwrap().status(), 200);
    let (status, body) =
        read(mesh.operate("POST", "/tenants").json(&json!({"name": "new"})).send().await.unwrap()).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("registry_unavailable")));

    let process = run(&registry, &address).await;
    mesh.until("taking admin writes", async || {
        let answer = mesh.operate("DELETE", "/tenants/harbour/keys/k1").send().await.unwrap();
        answer.status() == 204
    })
    .await;
    mesh.until("seeing the revocation", async || mesh.chat("pirate").await.0 == 401).await;
    process.shutdown_background();
}

#[tokio::test]
async fn before_the_first_directory_requests_are_503() {
    let worker = FakeWorker::new("w");
    let (listener, channel) = Listener::memory();
    let servers = vec![worker.serve(listener)];
    let endpoints = vec![WorkerEndpoint { address: "w".into(), channel }];
    let nobody: Address = "unix:/nonexistent/registry.sock".parse().unwrap();
    let registry = FakeRegistry::with_tenants();
    let mesh = crate::support::start(settings(), connect(&nobody), endpoints, registry, vec![worker], servers).await;
    let response = mesh.post("/v1/chat/completions", &chat_body("base")).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after-ms"));
    let (status, body) = read(response).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("directory_unavailable")));
    let (status, ready) = read(mesh.get("/readyz").send().await.unwrap()).await;
    assert_eq!((status, &ready["waiting_for"][0]["condition"]), (503, &json!("directory")));
    assert_eq!(mesh.get("/livez").send().await.unwrap().status(), 200);
}

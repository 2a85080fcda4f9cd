//! A gateway on real ports, in front of a small registry and workers that speak the real protocol in memory.
//!
//! The registry here keeps tenants, keys, versions and aliases as the real one promises to, so that admin calls can be
//! followed by what they allow. A worker plays a script: what it says, and when, is the test's choice; that is for
//! the answers that a sound worker never gives.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod heartbeats;
pub(crate) mod registry;
pub(crate) mod worker;

use registry::FakeRegistry;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use std::time::Duration;
use weft_gateway::{App, Components, Settings, WorkerEndpoint};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Address, Listener, connect};
use worker::FakeWorker;

pub(crate) const ADMIN_KEY: &str = "admin-secret";

/// A running gateway and what it talks to.
pub(crate) struct Mesh {
    pub(crate) client: Client,
    pub(crate) data: String,
    pub(crate) admin: String,
    pub(crate) registry: FakeRegistry,
    pub(crate) workers: Vec<FakeWorker>,
    pub(crate) shutdown: Shutdown,
    pub(crate) running: tokio::task::JoinHandle<()>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.running.abort();
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

pub(crate) fn settings() -> Settings {
    Settings { admin_key: Some(ADMIN_KEY.into()), worker_poll_ms: 20, continuation_wait_ms: 300, ..Settings::default() }
}

/// The usual mesh: one worker that answers `Hello, wörld!`, tenants `harbour` (adapters `pirate` with two versions and
/// `org/tuned`) and `helpdesk` (adapter `triage`), keys `harbour-key` and `helpdesk-key`.
pub(crate) async fn mesh() -> Mesh {
    mesh_with(settings(), vec![FakeWorker::new("worker-1")]).await
}

pub(crate) async fn mesh_with(settings: Settings, workers: Vec<FakeWorker>) -> Mesh {
    let mesh = unready(settings, workers, FakeRegistry::with_tenants()).await;
    mesh.ready().await;
    mesh
}

pub(crate) async fn unready(settings: Settings, workers: Vec<FakeWorker>, registry: FakeRegistry) -> Mesh {
    let (listener, channel) = Listener::memory();
    let mut servers = vec![registry.serve(listener)];
    let mut endpoints = Vec::new();
    for worker in &workers {
        let (listener, channel) = Listener::memory();
        servers.push(worker.serve(listener));
        endpoints.push(WorkerEndpoint { address: worker.name.clone(), channel });
    }
    start(settings, channel, endpoints, registry, workers, servers).await
}

pub(crate) async fn start(
    settings: Settings,
    registry_channel: tonic::transport::Channel,
    endpoints: Vec<WorkerEndpoint>,
    registry: FakeRegistry,
    workers: Vec<FakeWorker>,
    servers: Vec<tokio::task::JoinHandle<()>>,
) -> Mesh {
    let metrics = prometheus::Registry::new();
    let bus = weft_bus::connect(settings.nats("weft-gateway"), &metrics).unwrap();
    let components = Components { registry: registry_channel, workers: endpoints, metrics };
    let dial = |address: &str| Ok(connect(&address.parse::<Address>().map_err(|error| error.to_string())?));
    let app = App::build(settings, components).unwrap().open().unwrap().with_bus(bus, dial);
    let any = "127.0.0.1:0".parse().unwrap();
    let (data, admin) = (Listener::bind(&any).await.unwrap(), Listener::bind(&any).await.unwrap());
    let url = |listener: &Listener| format!("http://{}", listener.local_addr().unwrap());
    let (data_url, admin_url) = (url(&data), url(&admin));
    let shutdown = Shutdown::new();
    let running = tokio::spawn(app.run(data, admin, shutdown.clone()));
    // One connection a request: a test that ends a connection must not meet another test's.
    let client = Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(30)).build().unwrap();
    Mesh { client, data: data_url, admin: admin_url, registry, workers, shutdown, running, servers }
}

pub(crate) fn spawn_server<F>(serving: F) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
{
    tokio::spawn(async move {
        serving.await.unwrap();
    })
}

impl Mesh {
    pub(crate) async fn ready(&self) {
        self.until("ready", async || {
            let answer = self.client.get(format!("{}/readyz", self.data)).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Polls a condition that only other tasks can bring about; fails loudly instead of hanging.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        for _ in 0..2000 {
            if condition().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not {what} after 10 s");
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.data)).bearer_auth("harbour-key").json(body)
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.data)).bearer_auth("harbour-key")
    }

    pub(crate) async fn send(&self, path: &str, body: Value) -> (u16, Value) {
        read(self.post(path, &body).send().await.unwrap()).await
    }

    pub(crate) async fn chat(&self, model: &str) -> (u16, Value) {
        self.send("/v1/chat/completions", chat_body(model)).await
    }

    pub(crate) async fn events(&self, path: &str, body: Value) -> Vec<String> {
        let response = self.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        data_lines(&response.text().await.unwrap())
    }

    pub(crate) fn operate(&self, method: &str, path: &str) -> RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("{}/admin/v1{path}", self.admin)).bearer_auth(ADMIN_KEY)
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.client.get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }
}

pub(crate) fn chat_body(model: &str) -> Value {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": "hi"}]})
}

pub(crate) async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    assert_eq!(kind.as_deref(), Some("application/json"), "{status} {text}");
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// The payloads of `data:` lines; anything else but comments and blank lines is refused.
pub(crate) fn data_lines(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(':'));
    lines.map(|line| line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line:?}")).to_owned()).collect()
}

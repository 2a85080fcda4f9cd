//! A mesh of separate processes that find each other over NATS.

use super::process::{Started, until};
use super::{ADMIN_KEY, Reply, post, tiny_adapter, tiny_model};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_cli::client::Admin;
use weft_object_store::EmbeddedS3;

/// A store, a place for sockets, and the processes over them, by the names that the test gives them.
pub struct Mesh {
    s3: EmbeddedS3,
    dir: tempfile::TempDir,
    nats_url: String,
    pub processes: BTreeMap<String, Started>,
}

/// A gateway of the mesh as its users see it.
#[derive(Clone)]
pub struct Gateway {
    pub data: String,
    pub admin_url: String,
}

impl Gateway {
    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_url, ADMIN_KEY)
    }

    pub async fn ask(&self, secret: &str, model: &str) -> Reply {
        let body = json!({ "model": model, "prompt": [65, 66], "max_tokens": 4, "temperature": 0 });
        post(&format!("{}/v1/completions", self.data), secret, body).await
    }

    pub async fn until_asking_is(&self, secret: &str, model: &str, status: u16) -> Reply {
        until(&format!("{model} {status}"), async || {
            let reply = self.ask(secret, model).await;
            (reply.status == status).then_some(reply)
        })
        .await
    }

    pub async fn workers(&self) -> Vec<Value> {
        self.admin().get("workers").await.unwrap()["workers"].as_array().unwrap().clone()
    }

    pub async fn until_workers_up_are(&self, count: usize) {
        until(&format!("{count} workers up"), async || {
            (self.workers().await.iter().filter(|worker| worker["up"] == true).count() == count).then_some(())
        })
        .await;
    }
}

pub async fn readyz(url: &str) -> Option<Value> {
    reqwest::get(format!("{url}/readyz")).await.ok()?.json().await.ok()
}

impl Mesh {
    pub async fn new(nats_url: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(&dir.path().join("s3"), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Self { s3, dir, nats_url: nats_url.to_owned(), processes: BTreeMap::new() }
    }

    fn socket(&self, name: &str) -> String {
        format!("unix:{}", self.dir.path().join(name).display())
    }

    fn launch(&mut self, name: &str, program: &str, flags: &[(&str, &str)], lines: usize) {
        let log = self.dir.path().join(format!("{name}.log"));
        let flags = [&[("nats-url", self.nats_url.as_str())], flags].concat();
        self.processes.insert(name.to_owned(), Started::new(program, &flags, lines, &log));
    }

    fn s3_flags(&self) -> Vec<(&'static str, String)> {
        let store = self.s3.settings("weft");
        vec![
            ("s3-endpoint", store.endpoint.unwrap()),
            ("s3-bucket", store.bucket),
            ("s3-region", store.region),
            ("s3-access-key-id", store.access_key_id.unwrap()),
            ("s3-secret-access-key", store.secret_access_key.unwrap()),
            ("s3-path-style", "true".to_owned()),
        ]
    }

    pub fn registry(&mut self, name: &str, flags: &[(&str, &str)]) {
        let (socket, s3) = (self.socket(name), self.s3_flags());
        let mut all = vec![("listen", socket.as_str()), ("metrics-listen", "127.0.0.1:0")];
        all.extend(s3.iter().map(|(flag, value)| (*flag, value.as_str())));
        all.extend(flags);
        self.launch(name, "weft-adapter-registry", &all, 2);
    }

    pub fn daemon(&mut self) {
        let (socket, s3) = (self.socket("daemon"), self.s3_flags());
        let dir = self.dir.path().join("cache").display().to_string();
        let mut all = vec![("listen", socket.as_str()), ("metrics-listen", "127.0.0.1:0"), ("dir", dir.as_str())];
        all.extend(s3.iter().map(|(flag, value)| (*flag, value.as_str())));
        self.launch("daemon", "weft-cache-daemon", &all, 2);
    }

    pub fn worker(&mut self, name: &str, registry: &str) {
        let (model, daemon, registry) =
            (tiny_model().display().to_string(), self.socket("daemon"), self.socket(registry));
        let all = [
            ("listen", "127.0.0.1:0"),
            ("metrics-listen", "127.0.0.1:0"),
            ("name", name),
            ("model", model.as_str()),
            ("dtype", "f32"),
            ("threads", "1"),
            ("heartbeat-interval-ms", "200"),
            ("cache", daemon.as_str()),
            ("registry", registry.as_str()),
        ];
        self.launch(name, "weft-worker", &all, 2);
    }

    pub fn gateway(&mut self, name: &str, registry: &str) -> Gateway {
        let registry = self.socket(registry);
        let all = [
            ("listen", "127.0.0.1:0"),
            ("admin-listen", "127.0.0.1:0"),
            ("admin-key", ADMIN_KEY),
            ("registry", registry.as_str()),
            ("worker-poll-ms", "200"),
            // All clients here have one address, and the tiny model answers more than its rate.
            ("address-limit-loopback", "false"),
        ];
        self.launch(name, "weft-gateway", &all, 2);
        let says = &self.processes[name].says;
        Gateway {
            data: format!("http://{}", says["listening on"]),
            admin_url: format!("http://{}", says["admin listening on"]),
        }
    }

    pub fn kill(&mut self, name: &str) {
        drop(self.processes.remove(name).expect("it runs"));
    }

    pub async fn stop(self) {
        drop(self.processes);
        self.s3.stop().await;
    }
}

/// A tenant with a key, made at this gateway.
pub async fn tenant(gateway: &Gateway) -> String {
    gateway.admin().create_tenant("harbour").await.unwrap();
    gateway.admin().create_key("harbour", None).await.unwrap().secret
}

pub async fn publish(gateway: &Gateway, name: &str, folder: &str) -> String {
    let published = until("published", async || {
        gateway.admin().publish("harbour", name, &tiny_adapter(folder), Some("live")).await.ok()
    })
    .await;
    published.digest
}

//! The services as separate processes that find each other over a real NATS: nobody is told where the workers are.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use support::process::{Started, until};
use support::{ADMIN_KEY, Reply, post, tiny_adapter, tiny_model};
use weft_cli::client::Admin;
use weft_nats_testkit::NatsServer;
use weft_object_store::EmbeddedS3;

/// A store, a place for sockets, and the processes over them, by the names that the test gives them.
struct Mesh {
    s3: EmbeddedS3,
    dir: tempfile::TempDir,
    nats_url: String,
    processes: BTreeMap<String, Started>,
}

/// A gateway of the mesh as its users see it.
#[derive(Clone)]
struct Gateway {
    data: String,
    admin_url: String,
}

impl Gateway {
    fn admin(&self) -> Admin {
        Admin::new(&self.admin_url, ADMIN_KEY)
    }

    async fn ask(&self, secret: &str, model: &str) -> Reply {
        let body = json!({ "model": model, "prompt": [65, 66], "max_tokens": 4, "temperature": 0 });
        post(&format!("{}/v1/completions", self.data), secret, body).await
    }

    async fn until_asking_is(&self, secret: &str, model: &str, status: u16) -> Reply {
        until(&format!("{model} {status}"), async || {
            let reply = self.ask(secret, model).await;
            (reply.status == status).then_some(reply)
        })
        .await
    }

    async fn workers(&self) -> Vec<Value> {
        self.admin().get("workers").await.unwrap()["workers"].as_array().unwrap().clone()
    }

    async fn until_workers_up_are(&self, count: usize) {
        until(&format!("{count} workers up"), async || {
            (self.workers().await.iter().filter(|worker| worker["up"] == true).count() == count).then_some(())
        })
        .await;
    }
}

async fn readyz(url: &str) -> Option<Value> {
    reqwest::get(format!("{url}/readyz")).await.ok()?.json().await.ok()
}

impl Mesh {
    async fn new(nats_url: &str) -> Self {
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

    fn registry(&mut self, name: &str, flags: &[(&str, &str)]) {
        let (socket, s3) = (self.socket(name), self.s3_flags());
        let mut all = vec![("listen", socket.as_str()), ("metrics-listen", "127.0.0.1:0")];
        all.extend(s3.iter().map(|(flag, value)| (*flag, value.as_str())));
        all.extend(flags);
        self.launch(name, "weft-adapter-registry", &all, 2);
    }

    fn daemon(&mut self) {
        let (socket, s3) = (self.socket("daemon"), self.s3_flags());
        let dir = self.dir.path().join("cache").display().to_string();
        let mut all = vec![("listen", socket.as_str()), ("metrics-listen", "127.0.0.1:0"), ("dir", dir.as_str())];
        all.extend(s3.iter().map(|(flag, value)| (*flag, value.as_str())));
        self.launch("daemon", "weft-cache-daemon", &all, 2);
    }

    fn worker(&mut self, name: &str, registry: &str) {
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

    fn gateway(&mut self, name: &str, registry: &str) -> Gateway {
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

    fn kill(&mut self, name: &str) {
        drop(self.processes.remove(name).expect("it runs"));
    }

    async fn stop(self) {
        drop(self.processes);
        self.s3.stop().await;
    }
}

/// A tenant with a key, made at this gateway.
async fn tenant(gateway: &Gateway) -> String {
    gateway.admin().create_tenant("harbour").await.unwrap();
    gateway.admin().create_key("harbour", None).await.unwrap().secret
}

async fn publish(gateway: &Gateway, name: &str, folder: &str) -> String {
    let published = until("published", async || {
        gateway.admin().publish("harbour", name, &tiny_adapter(folder), Some("live")).await.ok()
    })
    .await;
    published.digest
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_write_at_one_gateway_is_seen_by_the_other_through_the_bus_alone() {
    let nats = NatsServer::start();
    let mut mesh = Mesh::new(&nats.url()).await;
    // The second registry lists at its start and then only when it hears of something.
    mesh.registry("first", &[]);
    mesh.registry("second", &[("directory-refresh-ms", "3600000")]);
    mesh.daemon();
    mesh.worker("worker", "first");
    let (here, there) = (mesh.gateway("here", "first"), mesh.gateway("there", "second"));
    here.until_workers_up_are(1).await;
    there.until_workers_up_are(1).await;

    let secret = tenant(&here).await;
    there.until_asking_is(&secret, "base", 200).await;
    let first = publish(&here, "pirate", "rank8").await;
    let reply = there.until_asking_is(&secret, "pirate", 200).await;
    assert_eq!(reply.header("x-weft-adapter-digest"), Some(first.as_str()));
    let second = publish(&here, "pirate", "rank16").await;
    let mut seen_after = Vec::new();
    for (version, digest) in [(1, &first), (2, &second), (1, &first), (2, &second)] {
        here.admin().set_alias("harbour", "pirate", "live", version, None).await.unwrap();
        let answered = Instant::now();
        until("moved", async || {
            let reply = there.ask(&secret, "pirate").await;
            (reply.header("x-weft-adapter-digest") == Some(digest.as_str())).then_some(())
        })
        .await;
        seen_after.push(answered.elapsed());
    }
    println!("an alias moved elsewhere was seen after {seen_after:?}; promised are 2 s");
    let keys = here.admin().get("tenants/harbour/keys").await.unwrap();
    let id = keys["keys"][0]["id"].as_str().expect("a key").to_owned();
    here.admin().revoke_key("harbour", &id).await.unwrap();
    there.until_asking_is(&secret, "base", 401).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_an_admin_write_is_seen_by_the_next_listing_and_everybody_says_what_is_away() {
    let port = NatsServer::free_port();
    let mut mesh = Mesh::new(&format!("nats://127.0.0.1:{port}")).await;
    mesh.registry("first", &[]);
    mesh.registry("second", &[]);
    mesh.daemon();
    mesh.worker("worker", "first");
    let (here, there) = (mesh.gateway("here", "first"), mesh.gateway("there", "second"));
    let urls = [
        mesh.processes["first"].metrics_url(),
        mesh.processes["daemon"].metrics_url(),
        mesh.processes["worker"].metrics_url(),
        here.admin_url.clone(),
    ];
    for url in &urls {
        until("told", async || {
            let body = readyz(url).await?;
            let degraded = body["degraded"].as_array()?.first()?.clone();
            let why = degraded["why"].as_str()?;
            (degraded["condition"] == "bus" && why.contains(&format!("127.0.0.1:{port}"))).then_some(())
        })
        .await;
    }
    // Ready nevertheless, but for the gateways, which know no worker.
    until("the worker is ready", async || (readyz(&urls[2]).await?["ready"] == true).then_some(())).await;
    let secret = tenant(&here).await;
    there.until_asking_is(&secret, "base", 503).await;

    // NATS comes last of all.
    let nats = NatsServer::start_at(port);
    here.until_workers_up_are(1).await;
    there.until_asking_is(&secret, "base", 200).await;
    for url in &urls {
        until("met", async || readyz(url).await?["degraded"].as_array()?.is_empty().then_some(())).await;
    }
    // And goes again: what was heard of is looked at instead, and writes are seen by listing.
    drop(nats);
    publish(&here, "pirate", "rank8").await;
    let answered = Instant::now();
    there.until_asking_is(&secret, "pirate", 200).await;
    println!("without NATS a publish elsewhere was seen after {:?}; promised are 15 s", answered.elapsed());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_drain_and_die_under_load_and_the_gateway_follows() {
    let nats = NatsServer::start();
    let mut mesh = Mesh::new(&nats.url()).await;
    mesh.registry("registry", &[]);
    mesh.daemon();
    mesh.worker("one", "registry");
    let gateway = mesh.gateway("gateway", "registry");
    gateway.until_workers_up_are(1).await;
    let secret = tenant(&gateway).await;
    gateway.until_asking_is(&secret, "base", 200).await;

    let running = Arc::new(AtomicBool::new(true));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, secret, running) = (gateway.clone(), secret.clone(), Arc::clone(&running));
            tokio::spawn(async move {
                let mut answers: BTreeMap<(u16, String), usize> = BTreeMap::new();
                while running.load(Ordering::SeqCst) {
                    let reply = gateway.ask(&secret, "base").await;
                    let worker = reply.header("x-weft-worker").unwrap_or_default().to_owned();
                    *answers.entry((reply.status, worker)).or_default() += 1;
                }
                answers
            })
        })
        .collect();
    let answered_by = async |worker: &str| {
        until(worker, async || {
            let reply = gateway.ask(&secret, "base").await;
            (reply.status == 200 && reply.header("x-weft-worker") == Some(worker)).then_some(())
        })
        .await;
    };
    mesh.worker("two", "registry");
    answered_by("two").await;
    mesh.worker("three", "registry");
    answered_by("three").await;
    // Asked to end: it drains, and nothing fails.
    mesh.processes["one"].signal("-TERM");
    gateway.until_workers_up_are(2).await;
    mesh.kill("one");
    running.store(false, Ordering::SeqCst);
    let mut all: BTreeMap<(u16, String), usize> = BTreeMap::new();
    for task in load {
        for (answer, count) in task.await.unwrap() {
            *all.entry(answer).or_default() += count;
        }
    }
    assert!(all.keys().all(|(status, _)| *status == 200), "{all:?}");
    assert!(["one", "two", "three"].iter().all(|name| all.contains_key(&(200, (*name).to_owned()))), "{all:?}");

    // Killed: others answer what met it before the first token, and nothing goes there once that is seen.
    mesh.kill("two");
    gateway.until_workers_up_are(1).await;
    for _ in 0..50 {
        let reply = gateway.ask(&secret, "base").await;
        assert_eq!((reply.status, reply.header("x-weft-worker")), (200, Some("three")), "{}", reply.text);
    }
    // Stopped: its heartbeats end, and so does its part.
    mesh.worker("four", "registry");
    answered_by("four").await;
    mesh.processes["three"].signal("-STOP");
    gateway.until_workers_up_are(1).await;
    for _ in 0..10 {
        let reply = gateway.ask(&secret, "base").await;
        assert_eq!((reply.status, reply.header("x-weft-worker")), (200, Some("four")), "{}", reply.text);
    }
    mesh.processes["three"].signal("-CONT");
    gateway.until_workers_up_are(2).await;
    mesh.stop().await;
}

//! Workers that are heard of over a real NATS, and what happens when it is away.

use crate::support::heartbeats::{Beating, bus};
use crate::support::registry::FakeRegistry;
use crate::support::worker::{FakeWorker, Step, base, echoed, raw, started};
use crate::support::{Mesh, chat_body, settings, unready};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use weft_bus::subjects;
use weft_gateway::Settings;
use weft_nats_testkit::NatsServer;
use weft_proto::mesh::v1 as mesh;
use weft_types::Digest;

fn over(url: &str) -> Settings {
    Settings { nats_url: url.to_owned(), workers: Vec::new(), worker_relist_ms: 3_600_000, ..settings() }
}

/// A gateway that knows these workers by a setting, and hears of others at this NATS.
async fn gateway(settings: Settings, workers: Vec<FakeWorker>) -> Mesh {
    unready(settings, workers, FakeRegistry::with_tenants()).await
}

impl Mesh {
    async fn workers(&self) -> Vec<Value> {
        let answer: Value = self.operate("GET", "/workers").send().await.unwrap().json().await.unwrap();
        answer["workers"].as_array().unwrap().clone()
    }

    async fn readyz(&self) -> (u16, Value) {
        crate::support::read(self.client.get(format!("{}/readyz", self.admin)).send().await.unwrap()).await
    }

    async fn until_ready_workers_are(&self, count: f64) {
        self.until(&format!("{count} workers ready"), async || self.metric("gateway_workers_ready").await == count)
            .await;
    }

    /// Answers of this adapter.
    async fn asks(&self, count: usize) {
        for _ in 0..count {
            let (status, body) = self.chat("pirate").await;
            assert_eq!(status, 200, "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_joins_under_load_gets_requests_and_one_that_dies_gets_none() {
    let nats = NatsServer::start();
    let mesh = Arc::new(gateway(over(&nats.url()), Vec::new()).await);
    let (status, body) = mesh.readyz().await;
    assert_eq!((status, &body["ready"]), (503, &json!(false)), "{body}");
    let first = Beating::start(FakeWorker::new("first"), &nats.url()).await;
    mesh.ready().await;

    // Load without a pause, of requests for the base: they go to the least loaded.
    let (running, failed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (mesh, running, failed) = (Arc::clone(&mesh), Arc::clone(&running), Arc::clone(&failed));
            tokio::spawn(async move {
                while running.load(Ordering::SeqCst) {
                    let answer = mesh.post("/v1/chat/completions", &chat_body("base")).send().await.unwrap();
                    failed.fetch_add(usize::from(answer.status() != 200), Ordering::SeqCst);
                    assert!([200, 503].contains(&answer.status().as_u16()), "{}", answer.status());
                }
            })
        })
        .collect();
    let second = Beating::start(FakeWorker::new("second"), &nats.url()).await;
    mesh.until("the second is asked", async || !second.worker.requests().is_empty()).await;
    assert!(!first.worker.requests().is_empty());

    first.stop();
    mesh.until_ready_workers_are(1.0).await;
    let (before, others) = (first.worker.requests().len(), second.worker.requests().len());
    mesh.until("the second goes on", async || second.worker.requests().len() > others + 20).await;
    assert_eq!(first.worker.requests().len(), before);
    running.store(false, Ordering::SeqCst);
    let load_tasks = load.len();
    for task in load {
        task.await.unwrap();
    }
    // Its port is closed: requests that met that were tried elsewhere. Only those that had their first token may have failed.
    let failed = failed.load(Ordering::SeqCst);
    assert!(failed <= load_tasks, "{failed} requests failed");
    assert_eq!(mesh.workers().await.len(), 2, "it is forgotten later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_word_is_forgotten_and_its_return_is_news() {
    let nats = NatsServer::start();
    let mesh = gateway(Settings { worker_forget_s: 1, ..over(&nats.url()) }, Vec::new()).await;
    let worker = Beating::start(FakeWorker::new("w"), &nats.url()).await;
    mesh.ready().await;
    assert_eq!(
        (mesh.metric("gateway_workers_known").await, mesh.workers().await[0]["view"]["id"].as_u64()),
        (1.0, Some(0))
    );
    worker.stop();
    mesh.until("forgotten", async || mesh.workers().await.is_empty()).await;
    assert_eq!(mesh.metric("gateway_workers_known").await, 0.0);
    let (status, body) = mesh.chat("pirate").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("no_worker")));
    let _back = Beating::start(FakeWorker::new("w"), &nats.url()).await;
    mesh.until("known", async || mesh.workers().await.iter().any(|worker| worker["view"]["id"] == 1)).await;
    mesh.until_ready_workers_are(1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_absent_at_start_is_told_and_does_without_until_it_is_there() {
    let port = NatsServer::free_port();
    let url = format!("nats://127.0.0.1:{port}");
    let mesh = gateway(over(&url), vec![FakeWorker::new("named")]).await;
    mesh.ready().await;
    mesh.asks(3).await;
    mesh.until("told", async || {
        let (status, body) = mesh.readyz().await;
        let why = body["degraded"][0]["why"].as_str().unwrap_or_default();
        status == 200 && body["degraded"][0]["condition"] == "bus" && why.contains(&format!("127.0.0.1:{port}: "))
    })
    .await;
    // Tenants may know that, but not where it is.
    let public: Value = mesh.client.get(format!("{}/readyz", mesh.data)).send().await.unwrap().json().await.unwrap();
    assert_eq!(public["degraded"], json!([{"condition": "bus", "why": "it is away"}]));
    assert_eq!(mesh.metric("bus_connected").await, 0.0);

    let heard = Beating::start(FakeWorker::new("heard"), &url).await;
    let _nats = NatsServer::start_at(port);
    mesh.until_ready_workers_are(2.0).await;
    // With one request at the named worker, the other is the less loaded.
    mesh.workers[0].play(|request| vec![started(echoed(request)), Step::Hang]);
    let hanging = loop {
        let asking = tokio::spawn(mesh.post("/v1/chat/completions", &chat_body("base")).send());
        mesh.until("somewhere", async || mesh.workers[0].running() == 1 || asking.is_finished()).await;
        if mesh.workers[0].running() == 1 {
            break asking;
        }
    };
    let before = heard.worker.requests().len();
    let (status, _) = mesh.chat("base").await;
    assert_eq!((status, heard.worker.requests().len()), (200, before + 1));
    hanging.abort();
    assert_eq!((mesh.readyz().await.1["degraded"].clone(), mesh.metric("bus_connected").await), (json!([]), 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_named_or_heard_of_the_answer_says_that_nats_is_away() {
    let mesh = gateway(over("nats://127.0.0.1:1"), Vec::new()).await;
    mesh.until("told", async || {
        let (status, body) = mesh.readyz().await;
        let waiting = body["waiting_for"].as_array().unwrap();
        let worker = waiting.iter().find(|waiting| waiting["condition"] == "worker");
        status == 503 && worker.is_some_and(|worker| worker["why"].as_str().unwrap().contains("NATS at 127.0.0.1:1: "))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_were_heard_of_serve_on_while_nats_is_killed_and_started_empty() {
    let nats = NatsServer::start();
    let (port, url) = (nats.port(), nats.url());
    let mesh = gateway(over(&url), Vec::new()).await;
    let worker = Beating::start(FakeWorker::new("w"), &url).await;
    mesh.ready().await;
    drop(nats);
    mesh.until("away", async || mesh.metric("bus_connected").await == 0.0).await;
    // Long after the heartbeats are missed, it is good by being looked at.
    mesh.until("old", async || {
        mesh.asks(1).await;
        let view = mesh.workers().await[0]["view"].clone();
        view["heartbeat_age_ms"].as_u64().is_some_and(|age| age > 1000) && view["age_ms"].as_u64() < Some(500)
    })
    .await;
    assert_eq!(mesh.metric("gateway_workers_ready").await, 1.0);
    // And one that dies meanwhile is seen to be dead.
    let _nats = NatsServer::start_at(port);
    let other = Beating::start(FakeWorker::new("other"), &url).await;
    mesh.until_ready_workers_are(2.0).await;
    mesh.until("heard again", async || {
        mesh.workers()
            .await
            .iter()
            .all(|worker| worker["view"]["heartbeat_age_ms"].as_u64().is_some_and(|age| age < 1000))
    })
    .await;
    assert_eq!(mesh.metric("bus_connections_total").await, 2.0);
    drop((worker, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_nats_holds_up_no_request_and_a_dead_worker_is_seen_without_it() {
    let nats = NatsServer::start();
    let mesh = gateway(over(&nats.url()), Vec::new()).await;
    let workers = [
        Beating::start(FakeWorker::new("a"), &nats.url()).await,
        Beating::start(FakeWorker::new("b"), &nats.url()).await,
    ];
    mesh.until_ready_workers_are(2.0).await;
    nats.freeze();
    mesh.asks(5).await;
    workers[0].stop();
    mesh.until_ready_workers_are(1.0).await;
    mesh.asks(5).await;
    mesh.until("noticed", async || mesh.metric("bus_connected").await == 0.0).await;
    mesh.asks(5).await;
    nats.thaw();
    mesh.until("back", async || mesh.metric("bus_connected").await == 1.0).await;
    mesh.asks(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_generation_is_listed_and_a_delta_is_not() {
    let nats = NatsServer::start();
    let mesh = gateway(over(&nats.url()), Vec::new()).await;
    // So rare that none is overdue here: whatever is looked at is so for another reason.
    let worker = Beating::start_every(Duration::from_secs(60), FakeWorker::new("w"), &nats.url()).await;
    worker.connected().await;
    mesh.until("heard", async || {
        worker.say(|_| {});
        mesh.metric("gateway_workers_ready").await == 1.0
    })
    .await;
    let slots = async || mesh.workers().await[0]["view"]["adapters_in_slot"].as_u64().unwrap();
    let change = |byte: u8| mesh::ResidencyChange { digest: raw(Digest::of(&[byte])), tier: mesh::Tier::Slot.into() };
    mesh.until("listed once", async || worker.worker.lists() >= 1).await;
    let lists = worker.worker.lists();
    worker.say(|beat| {
        beat.residency =
            Some(mesh::ResidencyDelta { since: 0, generation: 1, changes: vec![change(1)], ..Default::default() });
    });
    mesh.until("told", async || slots().await == 1).await;
    assert_eq!(worker.worker.lists(), lists, "what a heartbeat tells is not asked for");
    // Generation 2 is lost; 3 tells only what changed since 2.
    worker.worker.holds(&[Digest::of(&[1]), Digest::of(&[2]), Digest::of(&[3])]);
    worker.worker.set_generation(3);
    worker.say(|beat| {
        beat.residency =
            Some(mesh::ResidencyDelta { since: 2, generation: 3, changes: vec![change(3)], ..Default::default() });
    });
    mesh.until("listed", async || slots().await == 3).await;
    assert!(worker.worker.lists() > lists);
    assert_eq!(mesh.workers().await[0]["view"]["residency_generation"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_another_base_gets_no_requests() {
    let nats = NatsServer::start();
    let mesh = gateway(over(&nats.url()), vec![FakeWorker::new("named")]).await;
    mesh.ready().await;
    let other = FakeWorker::new("other");
    other.describe_as(|description| description.base_digest = raw(Digest::of(b"another base")));
    let other = Beating::start(other, &nats.url()).await;
    mesh.until("seen", async || mesh.workers().await.iter().filter(|worker| worker["up"] == true).count() == 2).await;
    assert_eq!(mesh.metric("gateway_workers_ready").await, 1.0);
    mesh.asks(10).await;
    assert_eq!((other.worker.requests().len(), mesh.workers[0].requests().len()), (0, 10));
    // It is restarted with ours.
    other.worker.describe_as(|description| {
        description.base_digest = raw(base());
        description.incarnation = "its next process".to_owned();
    });
    other.say(|beat| {
        beat.base_digest = raw(base());
        beat.incarnation = "its next process".to_owned();
    });
    mesh.until_ready_workers_are(2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_is_left_at_its_word() {
    let nats = NatsServer::start();
    let mesh = gateway(over(&nats.url()), Vec::new()).await;
    let leaving = Beating::start(FakeWorker::new("leaving"), &nats.url()).await;
    mesh.ready().await;
    let staying = Beating::start(FakeWorker::new("staying"), &nats.url()).await;
    mesh.until_ready_workers_are(2.0).await;
    leaving.say(|beat| beat.draining = true);
    let draining = |worker: &Value| worker["address"] == leaving.address && worker["view"]["draining"] == true;
    mesh.until("told", async || mesh.workers().await.iter().any(draining)).await;
    let before = leaving.worker.requests().len();
    mesh.asks(20).await;
    assert_eq!((leaving.worker.requests().len(), staying.worker.requests().len()), (before, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_a_setting_names_by_another_address_is_one() {
    let nats = NatsServer::start();
    let worker = FakeWorker::new("w");
    let mesh = gateway(over(&nats.url()), vec![worker.clone()]).await;
    mesh.ready().await;
    let beating = Beating::start(worker, &nats.url()).await;
    mesh.until("heard", async || {
        mesh.workers().await.iter().any(|worker| !worker["view"]["heartbeat_age_ms"].is_null())
    })
    .await;
    let workers = mesh.workers().await;
    assert_eq!(
        (workers.len(), &workers[0]["address"], &workers[0]["view"]["source"]),
        (1, &json!("w"), &json!("setting"))
    );
    drop(beating);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_say_is_bounded_and_counted() {
    let nats = NatsServer::start();
    let mesh = gateway(Settings { workers_max: 2, ..over(&nats.url()) }, Vec::new()).await;
    let worker = Beating::start(FakeWorker::new("w"), &nats.url()).await;
    mesh.ready().await;
    let stranger = bus(&nats.url()).await;
    let beat = |change: fn(&mut mesh::WorkerHeartbeat)| {
        let mut beat = mesh::WorkerHeartbeat {
            worker: "x".into(),
            address: "127.0.0.1:1".into(),
            incarnation: "x".into(),
            base_digest: raw(base()),
            ..Default::default()
        };
        change(&mut beat);
        prost::Message::encode_to_vec(&beat).into()
    };
    let wrong: [fn(&mut mesh::WorkerHeartbeat); 6] = [
        |beat| beat.address = "no address".into(),
        |beat| beat.address = "http://u:p@[::1]/path:1".into(),
        |beat| beat.worker = "w".repeat(300),
        |beat| beat.worker = String::new(),
        |beat| beat.incarnation = "i".repeat(257),
        |beat| beat.base_digest = vec![1].into(),
    ];
    for change in wrong {
        stranger.publish(subjects::WORKER_HEARTBEAT, beat(change)).unwrap();
    }
    stranger.publish(subjects::WORKER_HEARTBEAT, bytes::Bytes::from_static(b"\xff\xff\xff")).unwrap();
    stranger.publish(subjects::WORKER_RESIDENCY, bytes::Bytes::from_static(b"\xff\xff\xff")).unwrap();
    mesh.until("counted", async || mesh.metric("gateway_heartbeats_refused_total").await == 8.0).await;
    assert_eq!(mesh.workers().await.len(), 1);
    stranger.publish(subjects::WORKER_HEARTBEAT, beat(|_| {})).unwrap();
    stranger
        .publish(
            subjects::WORKER_HEARTBEAT,
            beat(|beat| (beat.address, beat.incarnation) = ("127.0.0.1:2".into(), "y".into())),
        )
        .unwrap();
    mesh.until("the third is refused", async || mesh.metric("gateway_heartbeats_refused_total").await == 9.0).await;
    assert_eq!(mesh.workers().await.len(), 2);
    mesh.asks(3).await;
    assert_eq!(worker.worker.requests().len(), 3);
}

//! Requests go where the last placement says, and demand is told.

use crate::support::heartbeats::bus;
use crate::support::registry::{FakeRegistry, digest_of};
use crate::support::worker::{FakeWorker, Step, hello};
use crate::support::{Mesh, mesh_with, settings, unready};
use prost::Message;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use weft_bus::{Heard, subjects};
use weft_gateway::Settings;
use weft_nats_testkit::NatsServer;
use weft_placement::{Document, Epoch, Host, Placed};
use weft_proto::mesh::v1 as mesh;
use weft_proto::worker::v1::generate_event::Event;

const WORKERS: [&str; 3] = ["worker-1", "worker-2", "worker-3"];

fn epoch(term: u64, serial: usize) -> Epoch {
    (0..serial).fold(Epoch::first_of(term).unwrap(), |epoch, _| epoch.next().unwrap())
}

/// `pirate`, as it is live, on one worker.
fn document(epoch: Epoch, worker: &str) -> Document {
    let workers: Vec<Host> = ["a-gone", worker].map(|name| Host(name.to_owned(), 100)).to_vec();
    let adapters = vec![Placed(digest_of("pirate 2"), vec![1])];
    Document { epoch, holder: "registry".to_owned(), workers, adapters }
}

impl Mesh {
    async fn place(&self, document: &Document) {
        let epoch = document.epoch.number();
        self.registry.place(epoch, document.encode().unwrap());
        self.until("the placement is taken", async || self.metric("gateway_placement_epoch").await == epoch as f64)
            .await;
    }

    async fn placement(&self) -> Value {
        self.operate("GET", "/placement").send().await.unwrap().json().await.unwrap()
    }

    /// Who got a request since the last call.
    async fn asked_by(&self, requests: usize) -> Vec<&str> {
        let before: Vec<usize> = self.workers.iter().map(|worker| worker.requests().len()).collect();
        for _ in 0..requests {
            let (status, body) = self.chat("pirate").await;
            assert_eq!(status, 200, "{body}");
        }
        let grew = |(worker, before): (&FakeWorker, usize)| (worker.requests().len() > before).then_some(());
        WORKERS
            .into_iter()
            .zip(self.workers.iter().zip(before))
            .filter_map(|(name, one)| grew(one).map(|()| name))
            .collect()
    }
}

async fn three() -> Mesh {
    mesh_with(settings(), WORKERS.map(FakeWorker::new).to_vec()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_where_the_placement_says_and_elsewhere_once_that_worker_is_gone() {
    let mesh = three().await;
    assert_eq!(mesh.placement().await["epoch"], 0);
    for (serial, worker) in WORKERS.into_iter().enumerate() {
        mesh.place(&document(epoch(3, serial), worker)).await;
        assert_eq!(mesh.asked_by(8).await, [worker], "and nobody else");
    }
    let shown = mesh.placement().await;
    assert_eq!((&shown["epoch"], &shown["term"], &shown["holder"]), (&json!(3_000_002), &json!(3), &json!("registry")));
    let row =
        json!({"digest": digest_of("pirate 2").to_string(), "adapter": "harbour/pirate@2", "workers": ["worker-3"]});
    assert_eq!(shown["adapters"], json!([row]));
    let workers = json!([
        {"address": "a-gone", "up": false, "copies": 0}, {"address": "worker-3", "up": true, "copies": 1},
    ]);
    assert_eq!(shown["workers"], workers);
    // On one that nobody knows: as without a placement.
    mesh.place(&document(epoch(3, 3), "elsewhere")).await;
    assert!(!mesh.asked_by(8).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_placement_and_one_that_cannot_be_read_change_nothing() {
    let mesh = three().await;
    mesh.place(&document(epoch(5, 1), "worker-2")).await;
    let older = document(epoch(4, 7), "worker-1");
    mesh.registry.place(older.epoch.number(), older.encode().unwrap());
    let mut damaged = document(epoch(6, 0), "worker-1").encode().unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    // After the older one in the same stream, unless the two became one.
    mesh.registry.place(epoch(6, 0).number(), damaged);
    mesh.until("refused", async || mesh.metric("gateway_placements_refused_total").await >= 1.0).await;
    assert_eq!(mesh.metric("gateway_placement_epoch").await, 5_000_001.0);
    assert_eq!(mesh.asked_by(8).await, ["worker-2"]);
    mesh.registry.place(older.epoch.number(), older.encode().unwrap());
    mesh.place(&document(epoch(5, 2), "worker-3")).await;
    assert_eq!(mesh.asked_by(8).await, ["worker-3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_told_over_the_bus() {
    let nats = NatsServer::start();
    let settings = Settings { nats_url: nats.url(), ..settings() };
    let mesh = unready(settings, vec![FakeWorker::new("worker-1")], FakeRegistry::with_tenants()).await;
    mesh.ready().await;
    let bus = bus(&nats.url()).await;
    let mut heard = bus.subscribe(subjects::GATEWAY_DEMAND, 64);
    assert_eq!(heard.next().await, Heard::Missed { dropped: 0 });
    // Heard of from now on: the gateway is connected once its own message comes.
    let (mut requests, mut prompts, mut outputs, mut sequence) = (0, 0, 0, 0);
    let mut asked = 0;
    while requests == 0 {
        let (status, _) = mesh.chat("pirate").await;
        assert_eq!(status, 200);
        let (base, _) = mesh.chat("base").await;
        assert_eq!(base, 200);
        asked += 1;
        let Ok(Heard::Message(message)) = tokio::time::timeout(std::time::Duration::from_secs(3), heard.next()).await
        else {
            continue;
        };
        let told = mesh::GatewayDemand::decode(message).unwrap();
        assert!(told.sequence > sequence);
        sequence = told.sequence;
        assert_eq!(told.adapters.len(), 1, "the base has no places");
        assert_eq!(told.adapters[0].digest, digest_of("pirate 2").to_vec());
        requests += told.adapters[0].requests;
        prompts += told.adapters[0].prompt_tokens;
        outputs += told.adapters[0].output_tokens;
        assert!(asked < 30, "nothing was told");
    }
    assert!(requests <= asked, "{requests} of {asked}");
    // 7 tokens, 3 of them cached, and three of the answer.
    assert_eq!((prompts, outputs), (4 * requests, 3 * requests));
}

/// Says that it had most of a long prompt, and hangs while it is told to.
fn remembering(name: &str, hangs: &Arc<AtomicBool>) -> FakeWorker {
    let hangs = Arc::clone(hangs);
    FakeWorker::playing(name, move |request| {
        let mut script = hello(request);
        if let Step::Say(Event::Started(started)) = &mut script[0] {
            (started.prompt_tokens, started.cached_tokens) = (2000, 1900);
        }
        if hangs.load(Ordering::SeqCst) {
            script.truncate(2);
            script.push(Step::Hang);
        }
        script
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_goes_on_where_its_beginning_was_until_that_worker_is_busy() {
    let hangs = Arc::new(AtomicBool::new(false));
    let mesh = mesh_with(settings(), vec![remembering("worker-1", &hangs), remembering("worker-2", &hangs)]).await;
    let body =
        |tail: &str| json!({"model": "base", "prompt": format!("{}{tail}", "word ".repeat(1600)), "stream": true});
    let ask = async |tail: String| {
        let before: Vec<usize> = mesh.workers.iter().map(|worker| worker.requests().len()).collect();
        let answer = mesh.post("/v1/completions", &body(&tail)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let asked = mesh.workers.iter().zip(before).position(|(worker, before)| worker.requests().len() > before);
        (asked.expect("somebody was asked"), answer)
    };
    let (first, answer) = ask("once".to_owned()).await;
    drop(answer.bytes().await);
    for turn in 0..20 {
        let idle = async || mesh.workers.iter().all(|worker| worker.running() == 0);
        mesh.until("idle", idle).await;
        let (asked, answer) = ask(format!("turn {turn}")).await;
        drop(answer.bytes().await);
        assert_eq!(asked, first, "turn {turn}: both are idle, and the beginning is there");
    }
    // While an answer runs there, computing all of it elsewhere is sooner.
    hangs.store(true, Ordering::SeqCst);
    let (busy, running) = ask("long".to_owned()).await;
    assert_eq!(busy, first);
    let (other, _running_too) = ask("meanwhile".to_owned()).await;
    assert_ne!(other, first);
    drop(running);
}

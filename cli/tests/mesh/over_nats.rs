//! The services as separate processes that find each other over a real NATS: nobody is told where the workers are.

use crate::support::over_nats::{Mesh, publish, readyz, tenant};
use crate::support::process::until;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use weft_nats_testkit::NatsServer;

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

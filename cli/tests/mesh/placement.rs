//! The authority for placement among real processes: killed, paused, away; and what workers do about placements.

use crate::support::ADMIN_KEY;
use crate::support::over_nats::{Gateway, Mesh, publish, tenant};
use crate::support::process::until;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use weft_nats_testkit::NatsServer;

const FAST: [(&str, &str); 2] = [("placement-epoch-ms", "200"), ("placement-silence-ms", "1500")];

async fn placement(gateway: &Gateway) -> Value {
    gateway.admin().get("placement").await.unwrap()
}

fn epoch(placement: &Value) -> u64 {
    placement["epoch"].as_u64().unwrap()
}

fn term(placement: &Value) -> u64 {
    placement["term"].as_u64().unwrap()
}

/// Workers that should hold this adapter.
fn copies(placement: &Value, digest: &str) -> Vec<String> {
    let adapters = placement["adapters"].as_array().unwrap();
    let found = adapters.iter().find(|adapter| adapter["digest"] == digest);
    let workers = found.map_or(Vec::new(), |adapter| adapter["workers"].as_array().unwrap().clone());
    workers.iter().map(|worker| worker.as_str().unwrap().to_owned()).collect()
}

/// A metric of one of the processes.
async fn metric(mesh: &Mesh, process: &str, name: &str) -> f64 {
    let Ok(answer) = reqwest::get(format!("{}/metrics", mesh.processes[process].metrics_url())).await else {
        return f64::NAN;
    };
    let text = answer.text().await.unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(f64::NAN)
}

async fn authority_of(mesh: &Mesh, registries: &[&'static str]) -> &'static str {
    until("an authority", async || {
        for name in registries {
            if metric(mesh, name, "registry_placement_is_authority").await == 1.0 {
                return Some(*name);
            }
        }
        None
    })
    .await
}

/// Requests without a pause at these gateways, and a look at each one's epoch beside them, until stopped.
struct Load {
    running: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<usize>>,
}

impl Load {
    fn start(gateways: &[&Gateway], secret: &str) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let mut tasks = Vec::new();
        for gateway in gateways {
            let (gateway, secret, goes_on) = ((*gateway).clone(), secret.to_owned(), Arc::clone(&running));
            tasks.push(tokio::spawn(async move {
                let mut answers = 0;
                let mut last = 0;
                while goes_on.load(Ordering::SeqCst) {
                    let reply = gateway.ask(&secret, "pirate").await;
                    assert_eq!(reply.status, 200, "{}", reply.text);
                    answers += 1;
                    let now = epoch(&placement(&gateway).await);
                    assert!(now >= last, "epoch {now} after {last}");
                    last = now;
                }
                answers
            }));
        }
        Self { running, tasks }
    }

    /// Every request was answered, and no epoch went back.
    async fn stop(self) {
        self.running.store(false, Ordering::SeqCst);
        for task in self.tasks {
            assert!(task.await.unwrap() > 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_killed_is_followed_by_another_and_nobody_notices() {
    let nats = NatsServer::start();
    let mut mesh = Mesh::new(&nats.url()).await;
    mesh.registry("first", &FAST);
    mesh.registry("second", &FAST);
    // This one only reads.
    mesh.registry("third", &[("placement", "false")]);
    mesh.daemon();
    mesh.worker("one", "third");
    mesh.worker("two", "third");
    let gateways = [mesh.gateway("here", "first"), mesh.gateway("there", "second")];
    let [here, there] = &gateways;
    for gateway in &gateways {
        gateway.until_workers_up_are(2).await;
    }
    let secret = tenant(here).await;
    let digest = publish(here, "pirate", "rank8").await;
    for gateway in &gateways {
        gateway.until_asking_is(&secret, "pirate", 200).await;
    }
    let load = Load::start(&[here, there], &secret);
    for gateway in &gateways {
        until("all of the load on both", async || {
            (copies(&placement(gateway).await, &digest).len() == 2).then_some(())
        })
        .await;
    }
    let killed = authority_of(&mesh, &["first", "second"]).await;
    let before = placement(here).await;
    mesh.kill(killed);
    let (left, gateway) = if killed == "first" { ("second", there) } else { ("first", here) };
    authority_of(&mesh, &[left]).await;
    let after = until("a later term", async || {
        let now = placement(gateway).await;
        (term(&now) > term(&before)).then_some(now)
    })
    .await;
    assert_ne!(after["holder"], before["holder"]);
    assert_eq!(copies(&after, &digest), copies(&before, &digest));
    // Started again, it is no authority, and its gateway follows the other one's epochs.
    mesh.registry(killed, &FAST);
    let gateway = if killed == "first" { here } else { there };
    until("the other's epochs", async || (term(&placement(gateway).await) >= term(&after)).then_some(())).await;
    load.stop().await;

    // Nobody is left who could be the authority: a gateway that starts now has the last epoch all the same.
    mesh.kill(left);
    mesh.kill(killed);
    let late = mesh.gateway("late", "third");
    let last = until("the last epoch", async || {
        let now = placement(&late).await;
        (epoch(&now) >= epoch(&after)).then_some(now)
    })
    .await;
    assert_eq!(copies(&last, &digest).len(), 2);
    late.until_asking_is(&secret, "pirate", 200).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_was_paused_cannot_publish_over_the_next_one() {
    let nats = NatsServer::start();
    let mut mesh = Mesh::new(&nats.url()).await;
    mesh.registry("first", &FAST);
    mesh.registry("second", &FAST);
    mesh.daemon();
    mesh.worker("one", "first");
    let gateways = [mesh.gateway("here", "first"), mesh.gateway("there", "second")];
    let [here, there] = &gateways;
    for gateway in &gateways {
        gateway.until_workers_up_are(1).await;
    }
    let secret = tenant(here).await;
    publish(here, "pirate", "rank8").await;
    for gateway in &gateways {
        gateway.until_asking_is(&secret, "pirate", 200).await;
    }
    let load = Load::start(&[here, there], &secret);
    until("a placement", async || (epoch(&placement(here).await) > 0).then_some(())).await;
    let paused = authority_of(&mesh, &["first", "second"]).await;
    let left = if paused == "first" { "second" } else { "first" };
    mesh.processes[paused].signal("-STOP");
    authority_of(&mesh, &[left]).await;
    mesh.processes[paused].signal("-CONT");
    until("deposed", async || (metric(&mesh, paused, "registry_placement_is_authority").await == 0.0).then_some(()))
        .await;
    assert_eq!(metric(&mesh, left, "registry_placement_is_authority").await, 1.0);
    // Both gateways, each at its own registry, have the epochs of the one that is left.
    let shown = until("one holder", async || {
        let (one, other) = (placement(here).await, placement(there).await);
        (one["holder"] == other["holder"] && term(&one) >= 2).then_some(one)
    })
    .await;
    assert!(term(&shown) >= 2);
    load.stop().await;
    mesh.stop().await;
}

/// Whether the worker of this name holds the adapter, and has it pinned.
async fn holds(gateway: &Gateway, name: &str, digest: &str) -> Option<bool> {
    let workers = gateway.workers().await;
    let worker = workers.iter().find(|worker| worker["describes"]["worker"] == name)?;
    let residency = gateway.admin().get("residency").await.unwrap();
    let of = residency["workers"].as_array()?.iter().find(|of| of["address"] == worker["address"])?.clone();
    let rows = |tier: &str| of["slots"][tier].as_array().cloned().unwrap_or_default();
    let row = rows("adapters").into_iter().chain(rows("prepared")).find(|row| row["digest"] == digest)?;
    Some(row["pinned"] == true)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_bring_further_copies_ahead_and_pin_again_what_their_forerunners_had_pinned() {
    let nats = NatsServer::start();
    let mut mesh = Mesh::new(&nats.url()).await;
    mesh.registry("registry", &FAST);
    mesh.daemon();
    mesh.worker("one", "registry");
    let gateway = mesh.gateway("gateway", "registry");
    gateway.until_workers_up_are(1).await;
    let secret = tenant(&gateway).await;
    let asked_for = publish(&gateway, "pirate", "rank8").await;
    let pinned = publish(&gateway, "pinned", "rank16").await;
    gateway.until_asking_is(&secret, "pirate", 200).await;
    until("placed", async || (copies(&placement(&gateway).await, &asked_for).len() == 1).then_some(())).await;
    gateway.admin().pin("harbour", "pinned").await.unwrap();
    assert_eq!(holds(&gateway, "one", &pinned).await, Some(true));

    // From here on nobody asks for anything: what the next worker holds, a placement has brought there.
    mesh.worker("two", "registry");
    until("a copy brought ahead", async || holds(&gateway, "two", &asked_for).await).await;
    until("pinned there too", async || holds(&gateway, "two", &pinned).await.filter(|pinned| *pinned)).await;
    assert!(metric(&mesh, "two", "worker_adapters_ahead_total").await >= 1.0);
    mesh.kill("one");
    mesh.worker("three", "registry");
    until("pinned by its successor", async || holds(&gateway, "three", &pinned).await.filter(|pinned| *pinned)).await;

    gateway.admin().unpin("harbour", "pinned").await.unwrap();
    for name in ["two", "three"] {
        until("unpinned", async || (holds(&gateway, name, &pinned).await != Some(true)).then_some(())).await;
    }
    mesh.stop().await;
}

/// `PATCH /admin/v1/tenants/{tenant}`: status and answer.
async fn change_tenant(gateway: &Gateway, tenant: &str, change: &Value) -> (u16, Value) {
    let url = format!("{}/admin/v1/tenants/{tenant}", gateway.admin_url);
    let answer = reqwest::Client::new().patch(url).bearer_auth(ADMIN_KEY).json(change).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The places of the tenant, as the list of tenants shows them.
async fn places(gateway: &Gateway) -> Value {
    let listed = gateway.admin().get("tenants").await.unwrap();
    listed["tenants"].as_array().unwrap().iter().find(|tenant| tenant["name"] == "harbour").unwrap()["places"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_set_the_places_of_a_tenant_over_http_and_wrong_ones_change_nothing() {
    let nats = NatsServer::start();
    let mut mesh = Mesh::new(&nats.url()).await;
    mesh.registry("registry", &FAST);
    mesh.daemon();
    mesh.worker("one", "registry");
    mesh.worker("two", "registry");
    let gateway = mesh.gateway("gateway", "registry");
    gateway.until_workers_up_are(2).await;
    let secret = tenant(&gateway).await;
    let digest = publish(&gateway, "pirate", "rank8").await;
    gateway.until_asking_is(&secret, "pirate", 200).await;
    for (change, expected) in [
        (json!({}), json!({"floor": 0, "ceiling": null, "pins": []})),
        (json!({"floor": 100_000, "ceiling": 100_000}), json!({"floor": 100_000, "ceiling": 100_000, "pins": []})),
        (json!({"floor": 0, "ceiling": null}), json!({"floor": 0, "ceiling": null, "pins": []})),
        (json!({"ceiling": 1}), json!({"floor": 0, "ceiling": 1, "pins": []})),
        // What is absent stays.
        (json!({"floor": 1}), json!({"floor": 1, "ceiling": 1, "pins": []})),
    ] {
        let (status, tenant) = change_tenant(&gateway, "harbour", &json!({"places": change})).await;
        assert_eq!((status, &tenant["places"]), (200, &expected), "{change}: {tenant}");
        assert_eq!(places(&gateway).await, expected);
    }
    let set = json!({"floor": 1, "ceiling": 1, "pins": []});
    for (wrong, named) in [
        (json!({"floor": 100_001}), "100001 is not from 0 to 100000"),
        (json!({"ceiling": 100_001}), "100001 is not from 1 to 100000"),
        // No copy at all would be a tenant that is not served: that is not said by a ceiling.
        (json!({"ceiling": 0}), "0 is not from 1 to 100000"),
        (json!({"floor": 7, "ceiling": 0}), "0 is not from 1 to 100000"),
        (json!({"floor": -1}), "-1"),
        (json!({"floor": 4_294_967_296_u64}), "4294967296"),
        (json!({"floor": 1.5}), "1.5"),
        (json!({"ceiling": "2"}), "\"2\""),
        (json!({"flor": 1}), "flor"),
        (json!({"pins": []}), "pins"),
    ] {
        let (status, said) = change_tenant(&gateway, "harbour", &json!({"places": wrong})).await;
        let message = said["error"]["message"].as_str().unwrap_or_else(|| panic!("{wrong}: {status} {said}"));
        assert!(status == 400 && message.contains(named), "{wrong}: {status} {said}");
    }
    assert_eq!(places(&gateway).await, set);
    let (status, said) = change_tenant(&gateway, "nobody", &json!({"places": {"floor": 1}})).await;
    assert_eq!(status, 404, "{said}");

    // The ceiling holds however much is asked, until it is taken away.
    let load = Load::start(&[&gateway], &secret);
    let copies_are = async |count: usize| {
        until("so many copies", async || {
            let placement = placement(&gateway).await;
            (copies(&placement, &digest).len() == count).then_some(epoch(&placement))
        })
        .await
    };
    copies_are(1).await;
    assert_eq!(change_tenant(&gateway, "harbour", &json!({"places": {"ceiling": null}})).await.0, 200);
    copies_are(2).await;
    load.stop().await;

    // Pins are set elsewhere and shown here.
    gateway.admin().pin("harbour", "pirate").await.unwrap();
    let pins = json!([{"digest": digest, "copies": null}]);
    assert_eq!(places(&gateway).await, json!({"floor": 1, "ceiling": null, "pins": pins}));
    let (status, tenant) = change_tenant(&gateway, "harbour", &json!({"places": {"floor": 2}})).await;
    assert_eq!((status, &tenant["places"]["pins"]), (200, &pins), "a change of floors leaves pins alone");
    gateway.admin().unpin("harbour", "pirate").await.unwrap();
    assert_eq!(places(&gateway).await, json!({"floor": 2, "ceiling": null, "pins": []}));
    mesh.stop().await;
}

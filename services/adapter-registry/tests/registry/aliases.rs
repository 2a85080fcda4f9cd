//! Aliases move by compare-and-swap and remember who moved them.

use crate::support::{Package, Running, TENANT, World};
use prost::Message;
use weft_adapter_registry::Settings;
use weft_bus::{Heard, subjects};
use weft_fault::{Fault, Kind};
use weft_object_store::ObjectStore;
use weft_proto::mesh::v1 as mesh;
use weft_proto::registry::v1 as pb;

async fn set(registry: &Running, alias: &str, version: u64, expected: &str) -> Result<pb::Alias, Fault> {
    let request = pb::SetAliasRequest {
        tenant: TENANT.to_owned(),
        adapter: "pirate".to_owned(),
        alias: alias.to_owned(),
        version,
        expected_etag: expected.to_owned(),
        actor: "grace".to_owned(),
    };
    let answer = registry.client.clone().set_alias(request).await;
    answer.map(|answer| answer.into_inner().alias.unwrap()).map_err(Fault::from)
}

async fn with_versions(count: u64) -> (World, Running) {
    let (world, registry) = World::ready().await;
    for seed in 1..=count {
        registry.publish("pirate", &Package::tiny(seed)).await;
    }
    (world, registry)
}

#[tokio::test]
async fn expectations_decide_whether_an_alias_moves() {
    let (_world, registry) = with_versions(3).await;
    assert_eq!(set(&registry, "canary", 1, "*").await.unwrap_err().kind, Kind::Conflict);
    let first = set(&registry, "canary", 1, "none").await.unwrap();
    assert_eq!((first.version, first.actor.as_str()), (1, "grace"));
    assert_eq!(set(&registry, "canary", 2, "none").await.unwrap_err().kind, Kind::Conflict);
    let second = set(&registry, "canary", 2, &first.etag).await.unwrap();
    assert_ne!(first.etag, second.etag);
    let late = set(&registry, "canary", 3, &first.etag).await.unwrap_err();
    assert_eq!(late.kind, Kind::Conflict);
    assert!(late.message.contains("version 2"), "{}", late.message);
    assert_eq!(set(&registry, "canary", 3, "*").await.unwrap().version, 3);
    // Backwards on purpose is allowed: that is how a rollback is done.
    assert_eq!(set(&registry, "canary", 1, "").await.unwrap().version, 1);
    assert_eq!(registry.resolve("pirate", "canary").await.unwrap().number, 1);
    // To where it is: nothing moves, and the state stays valid.
    let same = set(&registry, "canary", 1, "").await.unwrap();
    assert_eq!(set(&registry, "canary", 2, &same.etag).await.unwrap().version, 2);
}

#[tokio::test]
async fn cache_daemons_are_told_what_an_alias_meant_and_means() {
    let world = World::new().await;
    let bus = weft_bus::connect(weft_bus::NatsSettings::default(), &prometheus::Registry::new()).unwrap();
    let mut registry = world.start_over(Settings::default(), Some(bus.clone())).await;
    registry.prepare().await;
    let mut moves = bus.subscribe(subjects::ALIAS_MOVED, 16);
    let mut digests = Vec::new();
    for seed in 1..=2 {
        digests.push(registry.publish("pirate", &Package::tiny(seed)).await.digest);
    }
    // To where it is, and a new one: nothing that anybody had means something else now. Then back.
    set(&registry, "live", 2, "").await.unwrap();
    set(&registry, "canary", 1, "none").await.unwrap();
    set(&registry, "live", 1, "").await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        if let Heard::Message(message) = moves.next().await {
            let moved = mesh::AliasMoved::decode(message).unwrap();
            heard.push((moved.from, moved.to));
        }
    }
    let (first, second) = (digests[0].clone(), digests[1].clone());
    assert_eq!(heard, [(first.clone(), second.clone()), (second, first)]);
}

#[tokio::test]
async fn only_versions_that_exist_get_an_alias() {
    let (world, registry) = with_versions(1).await;
    let before = world.objects().await;
    assert_eq!(set(&registry, "canary", 2, "").await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(set(&registry, "canary", 0, "").await.unwrap_err().kind, Kind::NotFound);
    for alias in ["", "3", "Live", "a@b"] {
        assert_eq!(set(&registry, alias, 1, "").await.unwrap_err().param.as_deref(), Some("alias"));
    }
    assert_eq!(world.objects().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_racing_swaps_of_one_state_one_wins() {
    let (world, registry) = with_versions(8).await;
    let other = world.start().await;
    let state = set(&registry, "canary", 1, "none").await.unwrap().etag;
    let swaps = (2..=8).map(|version| {
        let registry = if version % 2 == 0 { &registry } else { &other };
        set(registry, "canary", version, &state)
    });
    let outcomes = futures::future::join_all(swaps).await;
    let winners: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    let [winner] = winners[..] else { panic!("{outcomes:?}") };
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().err().is_none_or(|fault| fault.kind == Kind::Conflict)));
    let request = pb::ListAdaptersRequest { tenant: TENANT.to_owned() };
    let adapters = other.client.clone().list_adapters(request).await.unwrap().into_inner().adapters;
    assert_eq!(adapters[0].aliases.iter().find(|alias| alias.name == "canary"), Some(winner));
}

#[tokio::test]
async fn the_record_says_who_moved_the_alias_and_from_where() {
    let (world, registry) = with_versions(2).await;
    set(&registry, "live", 1, "").await.unwrap();
    let key = format!("registry/tenants/{TENANT}/adapters/pirate/aliases/live.json");
    let object = world.store.get(&key).await.unwrap().unwrap();
    let record: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
    assert_eq!((record["version"].as_u64(), record["actor"].as_str()), (Some(1), Some("grace")));
    let history: Vec<_> =
        record["history"].as_array().unwrap().iter().map(|earlier| earlier["version"].as_u64().unwrap()).collect();
    assert_eq!(history, [2, 1]);
    assert_eq!(record["history"][0]["actor"], "ada");
}

//! Clean-up: what is held stays, what is not goes in two phases, and neither kills nor races lose bytes that somebody needs.

use crate::support::{Package, Running, TENANT, World, publish};
use bytes::Bytes;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use weft_adapter_registry::Settings;
use weft_fault::{Fault, Kind};
use weft_object_store::{ObjectStore, keys};
use weft_proto::registry::v1 as pb;
use weft_types::Digest;

fn settings(grace_s: u64) -> Settings {
    Settings { gc_grace_s: grace_s, gc_keep_versions: 0, gc_age_min_s: 0, gc_rollback_s: 0, ..Settings::default() }
}

async fn ready(settings: Settings) -> (World, Running) {
    let world = World::new().await;
    let mut registry = world.start_with(settings).await;
    registry.prepare().await;
    (world, registry)
}

async fn gc(registry: &Running, dry_run: bool) -> Vec<(String, u64, String)> {
    let request = pb::CollectGarbageRequest { dry_run, actor: "grace".to_owned(), ..Default::default() };
    let done = registry.client.clone().collect_garbage(request).await.unwrap().into_inner();
    let mut done: Vec<_> =
        done.garbage.into_iter().map(|garbage| (garbage.adapter, garbage.version, garbage.stage)).collect();
    done.sort();
    done
}

fn all(adapter: &str, versions: &[u64], stage: &str) -> Vec<(String, u64, String)> {
    versions.iter().map(|version| (adapter.to_owned(), *version, stage.to_owned())).collect()
}

async fn set_alias(registry: &Running, adapter: &str, alias: &str, version: u64) -> Result<u64, Fault> {
    let request = pb::SetAliasRequest {
        tenant: TENANT.to_owned(),
        adapter: adapter.to_owned(),
        alias: alias.to_owned(),
        version,
        actor: "grace".to_owned(),
        ..Default::default()
    };
    let moved = registry.client.clone().set_alias(request).await.map_err(Fault::from)?;
    Ok(moved.into_inner().alias.unwrap().version)
}

async fn delete(registry: &Running, version: u64) -> Result<(), Fault> {
    let request = pb::DeleteVersionRequest {
        tenant: TENANT.to_owned(),
        adapter: "pirate".to_owned(),
        version,
        actor: "grace".to_owned(),
    };
    registry.client.clone().delete_version(request).await.map(drop).map_err(Fault::from)
}

async fn blobs(world: &World) -> BTreeSet<String> {
    world.keys().await.into_iter().filter(|key| key.starts_with(keys::BLOB_PREFIX)).collect()
}

fn blob_of(published: &pb::Published) -> String {
    keys::blob(&Digest::try_from(published.digest.as_ref()).unwrap())
}

async fn numbers(registry: &Running) -> Vec<u64> {
    registry.versions("pirate").await.iter().map(|version| version.number).collect()
}

#[tokio::test]
async fn what_nothing_holds_goes_in_two_phases_and_its_number_is_never_given_again() {
    let (world, registry) = ready(settings(0)).await;
    let mut published = Vec::new();
    for seed in 1..=5 {
        published.push(registry.publish("pirate", &Package::tiny(seed)).await);
    }
    // Version 5 is live. Version 3 is canary, version 2 is pinned, version 1 has its bytes in another adapter too.
    set_alias(&registry, "pirate", "canary", 3).await.unwrap();
    let pin = pb::Pin { digest: published[1].digest.clone(), copies: 1 };
    let places = Some(pb::PlacesChange { pin: vec![pin], ..Default::default() });
    let request = pb::UpdateTenantRequest { name: TENANT.to_owned(), places, ..Default::default() };
    registry.client.clone().update_tenant(request).await.unwrap();
    let shared = registry.publish("parrot", &Package::tiny(1)).await;
    assert_eq!(shared.digest, published[0].digest);

    assert_eq!(gc(&registry, true).await, all("pirate", &[1, 4], "condemned"));
    assert_eq!(numbers(&registry).await, [1, 2, 3, 4, 5], "a dry run changes nothing");
    assert_eq!(gc(&registry, false).await, all("pirate", &[1, 4], "condemned"));
    assert_eq!(numbers(&registry).await, [2, 3, 5]);
    assert_eq!(registry.resolve("pirate", "4").await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(blobs(&world).await.len(), 5, "their bytes are there");
    let before = world.keys().await;
    assert_eq!(gc(&registry, true).await, all("pirate", &[1, 4], "collected"));
    assert_eq!(world.keys().await, before);
    assert_eq!(gc(&registry, false).await, all("pirate", &[1, 4], "collected"));
    let left = blobs(&world).await;
    assert!(!left.contains(&blob_of(&published[3])), "nobody has version 4's bytes any more");
    assert!(left.contains(&blob_of(&published[0])), "another adapter has version 1's bytes");
    assert_eq!(gc(&registry, false).await, []);
    assert_eq!(registry.failures("registry_garbage_versions_total"), 4.0);

    // The same bytes again are a new version, and are there.
    let again = registry.publish("pirate", &Package::tiny(4)).await;
    assert_eq!((again.version, again.created, &again.digest), (6, true, &published[3].digest));
    assert!(blobs(&world).await.contains(&blob_of(&again)));
    // A registry that starts now sees the same.
    let second = world.start_with(settings(0)).await;
    assert_eq!(numbers(&second).await, [2, 3, 5, 6]);
    assert_eq!(second.resolve("parrot", "live").await.unwrap().number, 1);
}

#[tokio::test]
async fn rules_of_retention_and_the_grace_keep_what_they_say() {
    let (world, registry) = ready(Settings { gc_keep_versions: 2, gc_rollback_s: 3_600, ..settings(3_600) }).await;
    for seed in 1..=6 {
        let alias = if seed == 2 { "live" } else { "" };
        publish(&registry.client, TENANT, "pirate", alias, &Package::tiny(seed)).await.unwrap();
    }
    set_alias(&registry, "pirate", "live", 3).await.unwrap();
    // 5 and 6 are the newest, 3 is live, 2 was live.
    assert_eq!(gc(&registry, false).await, all("pirate", &[1, 4], "condemned"));
    assert_eq!(gc(&registry, false).await, all("pirate", &[1, 4], "waiting"));
    assert_eq!(blobs(&world).await.len(), 6);
    let request =
        pb::CollectGarbageRequest { rollback_s: Some(0), keep_versions: Some(1), dry_run: true, ..Default::default() };
    let asked = registry.client.clone().collect_garbage(request).await.unwrap().into_inner();
    let found: BTreeSet<u64> = asked.garbage.iter().map(|garbage| garbage.version).collect();
    assert_eq!(found, BTreeSet::from([1, 2, 4, 5]));
}

#[tokio::test]
async fn a_version_is_deleted_unless_something_names_it() {
    let (_world, registry) = ready(settings(3_600)).await;
    for seed in 1..=3 {
        registry.publish("pirate", &Package::tiny(seed)).await;
    }
    let held = delete(&registry, 3).await.unwrap_err();
    assert_eq!(held.kind, Kind::Conflict);
    assert!(held.message.contains("alias live means it"), "{}", held.message);
    let description = json!({
        "id": "split", "adapter": "pirate", "primary": "error",
        "arms": [{"name": "a", "version": 3, "role": "control", "weight": 1}, {"name": "b", "version": 2, "weight": 1}],
        "metrics": [{"name": "error", "kind": "binary", "better": "lower"}],
    });
    let request = pb::CreateExperimentRequest {
        tenant: TENANT.to_owned(),
        description: serde_json::to_vec(&description).unwrap().into(),
        start: false,
        actor: "ada".to_owned(),
    };
    registry.client.clone().create_experiment(request).await.unwrap();
    let held = delete(&registry, 2).await.unwrap_err();
    assert!(held.message.contains("experiment split has it"), "{}", held.message);
    delete(&registry, 1).await.unwrap();
    assert_eq!(delete(&registry, 1).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(numbers(&registry).await, [2, 3]);
    assert_eq!(set_alias(&registry, "pirate", "old", 1).await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test]
async fn a_collector_that_died_is_followed_and_blobs_of_broken_publishes_go() {
    let (world, registry) = ready(settings(0)).await;
    registry.publish("pirate", &Package::tiny(1)).await;
    let (orphan, stale) = (Digest::of(b"orphan"), Digest::of(b"stale"));
    for digest in [orphan, stale] {
        world.store.put(&keys::blob(&digest), Bytes::from_static(b"bytes")).await.unwrap();
    }
    let marker = format!("gc/{}.json", stale.hex());
    world.store.put(&marker, Bytes::from_static(b"{\"registry\":\"dead\",\"at_ms\":1}")).await.unwrap();
    let untouched = world.keys().await;
    assert_eq!(gc(&registry, true).await, []);
    assert_eq!(world.keys().await, untouched);
    gc(&registry, false).await;
    assert_eq!(blobs(&world).await.len(), 1, "version 1's");
    assert!(!world.keys().await.contains(&marker));
}

#[tokio::test]
async fn a_publish_waits_for_a_collector_and_brings_its_bytes_again() {
    let (world, registry) = ready(settings(0)).await;
    let first = registry.publish("parrot", &Package::tiny(7)).await;
    let digest = Digest::try_from(first.digest.as_ref()).unwrap();
    let marker = format!("gc/{}.json", digest.hex());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let text = format!("{{\"registry\":\"other\",\"at_ms\":{now}}}");
    world.store.put(&marker, text.into()).await.unwrap();
    // A collector that listed before this publish wrote its version.
    let client = registry.client.clone();
    let publishing = tokio::spawn(async move { publish(&client, TENANT, "pirate", "live", &Package::tiny(7)).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!publishing.is_finished(), "it waits for the marker");
    world.store.delete(&keys::blob(&digest)).await.unwrap();
    world.store.delete(&marker).await.unwrap();
    let published = publishing.await.unwrap().unwrap();
    assert_eq!(published.digest, first.digest);
    assert!(blobs(&world).await.contains(&blob_of(&published)));
}

#[tokio::test]
async fn aliases_that_move_while_versions_are_condemned_never_lose_what_they_mean() {
    let (world, registry) = ready(settings(60)).await;
    for seed in 1..=4 {
        registry.publish("pirate", &Package::tiny(seed)).await;
    }
    let sweeper = world.start_with(settings(60)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sweeping = {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                gc(&sweeper, false).await;
            }
            sweeper
        })
    };
    let mut moves = 0;
    for round in 0..150u64 {
        publish(&registry.client, TENANT, "pirate", "", &Package::tiny(1000 + round)).await.unwrap();
        let versions = numbers(&registry).await;
        let version = versions[round as usize % versions.len()];
        // Condemned a moment before: then the move is refused, and nothing moved.
        if set_alias(&registry, "pirate", "live", version).await.is_ok() {
            moves += 1;
        }
        let live = registry.resolve("pirate", "live").await.unwrap();
        let digest = Digest::try_from(live.digest.as_ref()).unwrap();
        assert!(world.store.head(&keys::blob(&digest)).await.unwrap().is_some(), "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    let sweeper = sweeping.await.unwrap();
    assert!(moves > 20, "{moves}");
    for registry in [&registry, &sweeper] {
        assert!(registry.resolve("pirate", "live").await.is_ok());
    }
}

#[tokio::test]
async fn a_publish_of_what_is_known_brings_back_bytes_that_are_gone() {
    let (world, registry) = ready(settings(0)).await;
    let first = registry.publish("pirate", &Package::tiny(1)).await;
    // As a publisher leaves it that did not outlive a collector: the version is there and its blob is not.
    world.store.delete(&blob_of(&first)).await.unwrap();
    let again = registry.publish("pirate", &Package::tiny(1)).await;
    assert_eq!((again.version, again.created), (1, false));
    assert!(blobs(&world).await.contains(&blob_of(&first)));
}

/// As if the version had been condemned long ago.
async fn age(world: &World, adapter: &str) {
    let key = format!("registry/tenants/{TENANT}/adapters/{adapter}/versions/000000000001.json");
    let object = world.store.get(&key).await.unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
    record["condemned"]["at_ms"] = json!(1);
    record["revision"] = json!(record["revision"].as_u64().unwrap() + 1);
    world.store.put(&key, serde_json::to_vec(&record).unwrap().into()).await.unwrap();
}

#[tokio::test]
async fn bytes_stay_as_long_as_the_grace_of_any_of_their_versions() {
    let (world, registry) = ready(settings(3_600)).await;
    for adapter in ["pirate", "parrot"] {
        publish(&registry.client, TENANT, adapter, "", &Package::tiny(1)).await.unwrap();
    }
    let blob = blobs(&world).await.pop_first().unwrap();
    assert_eq!(gc(&registry, false).await.len(), 2);
    age(&world, "pirate").await;
    assert_eq!(gc(&registry, false).await, [all("parrot", &[1], "waiting"), all("pirate", &[1], "collected")].concat());
    assert!(blobs(&world).await.contains(&blob), "parrot's grace is not over");
    age(&world, "parrot").await;
    assert_eq!(gc(&registry, false).await, all("parrot", &[1], "collected"));
    assert!(!blobs(&world).await.contains(&blob));
}

#[tokio::test]
async fn a_version_that_is_held_after_all_is_revived_by_the_next_turn() {
    let (world, registry) = ready(settings(3_600)).await;
    for seed in 1..=2 {
        registry.publish("pirate", &Package::tiny(seed)).await;
    }
    delete(&registry, 1).await.unwrap();
    assert_eq!(numbers(&registry).await, [2]);
    // An alias that was written before the mark, by a registry that read the version before it: nobody came to look again.
    let live = world.store.get(&format!("registry/tenants/{TENANT}/adapters/pirate/aliases/live.json")).await.unwrap();
    let mut alias: serde_json::Value = serde_json::from_slice(&live.unwrap().bytes).unwrap();
    alias["version"] = json!(1);
    let key = format!("registry/tenants/{TENANT}/adapters/pirate/aliases/old.json");
    world.store.put(&key, serde_json::to_vec(&alias).unwrap().into()).await.unwrap();
    assert_eq!(gc(&registry, false).await, []);
    assert_eq!(numbers(&registry).await, [1, 2]);
    // Not condemned any more: the alias may go elsewhere, and its grace begins anew.
    set_alias(&registry, "pirate", "old", 2).await.unwrap();
    assert_eq!(gc(&registry, false).await, all("pirate", &[1], "condemned"));
}

#[tokio::test]
async fn nothing_is_cleaned_up_while_a_record_is_damaged() {
    let (world, registry) = ready(settings(0)).await;
    for seed in 1..=2 {
        registry.publish("pirate", &Package::tiny(seed)).await;
    }
    let key = format!("registry/tenants/{TENANT}/adapters/pirate/aliases/other.json");
    world.store.put(&key, Bytes::from_static(b"{")).await.unwrap();
    let request = pb::CollectGarbageRequest::default();
    let fault = Fault::from(registry.client.clone().collect_garbage(request).await.unwrap_err());
    assert_eq!(fault.kind, Kind::Corrupt);
    assert!(fault.message.contains(&key), "{}", fault.message);
    world.store.delete(&key).await.unwrap();
    assert_eq!(gc(&registry, false).await, all("pirate", &[1], "condemned"));
}

#[tokio::test]
async fn what_is_pinned_is_revived() {
    let (_world, registry) = ready(settings(3_600)).await;
    let mut digests = Vec::new();
    for seed in 1..=2 {
        digests.push(registry.publish("pirate", &Package::tiny(seed)).await.digest);
    }
    let pin = async |digest: &Bytes| {
        let pin = vec![pb::Pin { digest: digest.clone(), copies: 1 }];
        let places = Some(pb::PlacesChange { pin, ..Default::default() });
        let request = pb::UpdateTenantRequest { name: TENANT.to_owned(), places, ..Default::default() };
        registry.client.clone().update_tenant(request).await.map(drop).map_err(Fault::from)
    };
    delete(&registry, 1).await.unwrap();
    assert_eq!(pin(&digests[0]).await.unwrap_err().kind, Kind::NotFound, "it cannot be asked for any more");
    pin(&digests[1]).await.unwrap();
}

//! Tenants keep their salt; keys are stored as hashes, shown once and revocable.

use crate::support::{TENANT, World};
use futures::{StreamExt, TryStreamExt};
use weft_fault::{Fault, Kind};
use weft_object_store::ObjectStore;
use weft_proto::registry::v1 as pb;
use weft_types::Digest;

fn create_key(label: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { tenant: TENANT.to_owned(), label: label.to_owned(), actor: "ada".to_owned(), limits: None }
}

#[tokio::test]
async fn a_tenant_is_made_once_and_keeps_its_salt() {
    let (world, mut registry) = World::ready().await;
    let first = registry.directory().await.tenants[0].clone();
    assert_eq!((first.name.as_str(), first.salt.len()), (TENANT, 32));
    assert_ne!(first.salt, vec![0; 32]);
    let again = registry.create_tenant(TENANT).await;
    assert!(!again.created);
    assert!(registry.create_tenant("helpdesk").await.created);
    let tenants = registry.client.list_tenants(pb::ListTenantsRequest {}).await.unwrap().into_inner().tenants;
    assert_eq!(tenants.iter().map(|tenant| tenant.name.as_str()).collect::<Vec<_>>(), [TENANT, "helpdesk"]);
    registry.stop().await;
    let directory = world.start().await.directory().await;
    assert_eq!(directory.tenants[0].salt, first.salt);
    assert_ne!(directory.tenants[1].salt, first.salt);
}

#[tokio::test]
async fn a_tenant_has_a_weight_that_can_be_changed_and_outlives_the_process() {
    let (world, mut registry) = World::ready().await;
    let create = |name: &str, weight| pb::CreateTenantRequest { name: name.into(), weight, ..Default::default() };
    let update = |name: &str, weight| pb::UpdateTenantRequest { name: name.into(), weight, ..Default::default() };
    let made = registry.client.create_tenant(create("heavy", 2.5)).await.unwrap().into_inner().tenant.unwrap();
    assert_eq!(made.weight, 2.5);
    let again = registry.client.create_tenant(create("heavy", 7.0)).await.unwrap().into_inner();
    assert_eq!((again.created, again.tenant.unwrap().weight), (false, 2.5), "who exists keeps its own");
    for (asked, weight) in [(Some(0.01), 0.01), (None, 0.01), (Some(100.0), 100.0)] {
        let tenant = registry.client.update_tenant(update(TENANT, asked)).await.unwrap().into_inner().tenant.unwrap();
        assert_eq!((tenant.name.as_str(), tenant.weight), (TENANT, weight));
    }
    for wrong in [0.0, 0.009, 100.1, -1.0, f64::NAN] {
        let fault = Fault::from(registry.client.update_tenant(update(TENANT, Some(wrong))).await.unwrap_err());
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("weight")), "{wrong}");
    }
    let fault = Fault::from(registry.client.create_tenant(create("other", 101.0)).await.unwrap_err());
    assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("weight")));
    let fault = Fault::from(registry.client.update_tenant(update("nobody", Some(1.0))).await.unwrap_err());
    assert_eq!(fault.kind, Kind::NotFound);
    registry.stop().await;
    let directory = world.start().await.directory().await;
    let weights: Vec<(&str, f64)> =
        directory.tenants.iter().map(|tenant| (tenant.name.as_str(), tenant.weight)).collect();
    assert_eq!(weights, [(TENANT, 100.0), ("heavy", 2.5)]);
}

#[tokio::test]
async fn limits_of_tenants_and_keys_are_changed_one_by_one_and_outlive_the_process() {
    let (world, mut registry) = World::ready().await;
    let first = pb::Limits { requests_per_minute: 60, tokens_per_day: 1_000, ..Default::default() };
    let create = pb::CreateTenantRequest { name: "heavy".into(), limits: Some(first), ..Default::default() };
    let made = registry.client.create_tenant(create).await.unwrap().into_inner().tenant.unwrap();
    assert_eq!(made.limits, Some(first));
    let change = pb::LimitsChange { requests_per_minute: Some(0), queue_length: Some(7), ..Default::default() };
    let update = |name: &str, limits| pb::UpdateTenantRequest { name: name.into(), limits, ..Default::default() };
    let answer = registry.client.update_tenant(update("heavy", Some(change))).await.unwrap().into_inner();
    let now = Some(pb::Limits { tokens_per_day: 1_000, queue_length: 7, ..Default::default() });
    assert_eq!((answer.tenant.as_ref().unwrap().limits, answer.tenant.unwrap().weight), (now, 1.0));
    let answer = registry.client.update_tenant(update("heavy", None)).await.unwrap().into_inner();
    assert_eq!(answer.tenant.unwrap().limits, now, "what is absent stays");

    let limited = pb::CreateKeyRequest { limits: Some(first), ..create_key("ci") };
    let key = registry.client.create_key(limited).await.unwrap().into_inner();
    let update_key = |id: &str, limits| pb::UpdateKeyRequest {
        tenant: TENANT.into(),
        id: id.into(),
        limits: Some(limits),
        actor: "ada".into(),
    };
    let changed = registry.client.update_key(update_key(&key.id, change)).await.unwrap().into_inner().key.unwrap();
    assert_eq!((changed.id.as_str(), changed.label.as_str(), changed.limits), (key.id.as_str(), "ci", now));

    let wrong = pb::LimitsChange { tokens_per_minute: Some(1_000_000_000_001), ..Default::default() };
    let tenant = registry.client.update_tenant(update("heavy", Some(wrong))).await.unwrap_err();
    let of_key = registry.client.update_key(update_key(&key.id, wrong)).await.unwrap_err();
    for fault in [tenant, of_key].map(Fault::from) {
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("tokens_per_minute")));
        assert!(fault.message.contains("1000000000001") && fault.message.contains("1000000000000"), "{fault}");
    }
    for unknown in ["0000000000000000", "../tenant", ""] {
        let fault = Fault::from(registry.client.update_key(update_key(unknown, change)).await.unwrap_err());
        assert_eq!(fault.kind, Kind::NotFound, "{unknown}");
    }
    registry.stop().await;
    let mut registry = world.start().await;
    let directory = registry.directory().await;
    let tenant = |name: &str| directory.tenants.iter().find(|tenant| tenant.name == name).unwrap();
    assert_eq!((tenant("heavy").limits, tenant(TENANT).keys[0].limits), (now, now));
    registry.client.revoke_key(revoke(&key.id)).await.unwrap();
    let fault = Fault::from(registry.client.update_key(update_key(&key.id, change)).await.unwrap_err());
    assert_eq!(fault.kind, Kind::NotFound, "a revoked key is as good as none");
}

#[tokio::test]
async fn racing_creations_make_one_tenant() {
    let world = World::new().await;
    let (one, two) = (world.start().await, world.start().await);
    let creations = (0..16).map(|i| {
        let mut client = if i % 2 == 0 { one.client.clone() } else { two.client.clone() };
        async move {
            let request =
                pb::CreateTenantRequest { name: TENANT.to_owned(), actor: String::new(), ..Default::default() };
            client.create_tenant(request).await.unwrap().into_inner().created
        }
    });
    let created = futures::future::join_all(creations).await.into_iter().filter(|created| *created).count();
    assert_eq!(created, 1);
    assert_eq!(one.directory().await.tenants[0].salt, two.directory().await.tenants[0].salt);
}

#[tokio::test]
async fn names_that_break_the_rule_are_refused() {
    let (world, mut registry) = World::ready().await;
    let before = world.objects().await;
    for name in ["", "A", "-a", "a_b", "a/b", "..", &"a".repeat(64)] {
        let request = pb::CreateTenantRequest { name: name.to_owned(), actor: String::new(), ..Default::default() };
        let fault = Fault::from(registry.client.create_tenant(request).await.unwrap_err());
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("name")), "{name}");
    }
    for (label, actor, param) in [("x".repeat(129), String::new(), "label"), (String::new(), "a\n".to_owned(), "actor")]
    {
        let request = pb::CreateKeyRequest { tenant: TENANT.to_owned(), label, actor, limits: None };
        let fault = Fault::from(registry.client.create_key(request).await.unwrap_err());
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some(param)));
    }
    let unknown = pb::CreateKeyRequest { tenant: "nobody".to_owned(), ..create_key("") };
    assert_eq!(Fault::from(registry.client.create_key(unknown).await.unwrap_err()).kind, Kind::NotFound);
    assert_eq!(world.objects().await, before);
}

#[tokio::test]
async fn a_secret_is_shown_once_and_only_its_hash_is_kept() {
    let (world, mut registry) = World::ready().await;
    let key = registry.client.create_key(create_key("laptop")).await.unwrap().into_inner();
    let parts: Vec<&str> = key.secret.splitn(3, '_').collect();
    assert_eq!((parts[0], parts[1], parts[2].len()), ("weft", key.id.as_str(), 43));
    let other = registry.client.create_key(create_key("")).await.unwrap().into_inner();
    assert_ne!((&key.id, &key.secret), (&other.id, &other.secret));

    let tenant = registry.directory().await.tenants[0].clone();
    let listed = tenant.keys.iter().find(|listed| listed.id == key.id).unwrap();
    assert_eq!(listed.secret_sha256, Digest::of(key.secret.as_bytes()).to_vec());

    let random_part = parts[2].as_bytes();
    for object in world.objects().await {
        let bytes = world.store.get(&object.key).await.unwrap().unwrap().bytes;
        let is_in = bytes.windows(random_part.len()).any(|window| window == random_part);
        assert!(!is_in, "{} holds the secret", object.key);
    }
    let request = pb::ListKeysRequest { tenant: TENANT.to_owned() };
    let keys = registry.client.list_keys(request).await.unwrap().into_inner().keys;
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().any(|listed| listed.id == key.id && listed.label == "laptop" && listed.revoked_ms == 0));
}

#[tokio::test]
async fn a_revoked_key_is_gone_before_the_answer_and_stays_revoked() {
    let (world, mut registry) = World::ready().await;
    let key = registry.client.create_key(create_key("")).await.unwrap().into_inner();
    let kept = registry.client.create_key(create_key("")).await.unwrap().into_inner();
    let revoke =
        |id: &str| pb::RevokeKeyRequest { tenant: TENANT.to_owned(), id: id.to_owned(), actor: "ada".to_owned() };
    registry.client.revoke_key(revoke(&key.id)).await.unwrap();
    let ids = |directory: pb::Directory| directory.tenants[0].keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(registry.directory().await), [kept.id.as_str()]);
    let objects = world.objects().await;
    registry.client.revoke_key(revoke(&key.id)).await.unwrap();
    assert_eq!(world.objects().await, objects, "revoking again wrote something");
    for unknown in ["0000000000000000", "../tenant", "", &key.secret] {
        let fault = Fault::from(registry.client.revoke_key(revoke(unknown)).await.unwrap_err());
        assert_eq!(fault.kind, Kind::NotFound, "{unknown}");
        assert!(!fault.message.contains("weft_"), "a secret in a message");
    }
    registry.stop().await;
    let mut registry = world.start().await;
    assert_eq!(ids(registry.directory().await), [kept.id.as_str()]);
    let request = pb::ListKeysRequest { tenant: TENANT.to_owned() };
    let keys = registry.client.list_keys(request).await.unwrap().into_inner().keys;
    assert!(keys.iter().all(|listed| (listed.revoked_ms > 0) == (listed.id == key.id)));
}

/// Puts copies of the key's record into the store: as many as it says, under ids of their own.
async fn put_copies(world: &World, of: &str, count: u64, change: impl Fn(u64, &mut serde_json::Value)) {
    let key = |id: &str| format!("registry/tenants/{TENANT}/keys/{id}.json");
    let record = world.store.get(&key(of)).await.unwrap().unwrap().bytes;
    let puts = (1..=count).map(|n| {
        let (id, mut record): (_, serde_json::Value) = (format!("{n:016x}"), serde_json::from_slice(&record).unwrap());
        record["id"] = id.clone().into();
        change(n, &mut record);
        async move { world.store.put(&key(&id), record.to_string().into()).await.map(drop) }
    });
    futures::stream::iter(puts).buffer_unordered(16).try_collect::<()>().await.unwrap();
}

async fn listed(client: &mut crate::support::Client) -> Vec<pb::Key> {
    let request = pb::ListKeysRequest { tenant: TENANT.to_owned() };
    client.list_keys(request).await.unwrap().into_inner().keys
}

fn revoke(id: &str) -> pb::RevokeKeyRequest {
    pb::RevokeKeyRequest { tenant: TENANT.to_owned(), id: id.to_owned(), actor: "ada".to_owned() }
}

#[tokio::test]
async fn revoked_keys_take_no_place_and_the_oldest_records_of_them_go() {
    let (world, mut registry) = World::ready().await;
    let live = registry.client.create_key(create_key("kept")).await.unwrap().into_inner();
    // As many renewals as a tenant may have keys, and some; the lowest id was revoked first.
    put_copies(&world, &live.id, 1_010, |n, record| {
        record["revision"] = 2.into();
        record["revoked"] = serde_json::json!({"at_ms": n, "actor": "ada"});
    })
    .await;
    let mut other = world.start().await;
    for client in [&mut registry.client, &mut other.client] {
        assert_eq!(listed(client).await.len(), 1_011);
    }
    let renewed = registry.client.create_key(create_key("")).await.unwrap().into_inner();
    registry.client.revoke_key(revoke(&renewed.id)).await.unwrap();

    // The one just revoked and the 999 before it. A registry that knew the others forgets them by listing.
    for client in [&mut registry.client, &mut other.client] {
        let keys = listed(client).await;
        let revoked: Vec<_> = keys.iter().filter(|key| key.revoked_ms > 0).collect();
        assert_eq!((keys.len(), revoked.len()), (1_001, 1_000));
        assert!(revoked.iter().any(|key| key.id == renewed.id));
        assert!(revoked.iter().all(|key| key.revoked_ms > 11), "an older one stayed");
    }
    assert_eq!(world.keys().await.iter().filter(|key| key.contains("/keys/")).count(), 1_001);
    let ids: Vec<_> = other.directory().await.tenants[0].keys.iter().map(|key| key.id.clone()).collect();
    assert_eq!(ids, [live.id]);
}

#[tokio::test]
async fn one_key_more_than_a_tenant_may_have_is_refused_until_one_is_revoked() {
    let (world, mut registry) = World::ready().await;
    let first = registry.client.create_key(create_key("")).await.unwrap().into_inner();
    put_copies(&world, &first.id, 999, |_, _| {}).await;
    assert_eq!(listed(&mut registry.client).await.len(), 1_000);
    let fault = Fault::from(registry.client.create_key(create_key("")).await.unwrap_err());
    assert!(fault.message.contains("1000") && fault.message.contains("keys of tenant"), "{fault}");
    registry.client.revoke_key(revoke(&first.id)).await.unwrap();
    registry.client.create_key(create_key("")).await.unwrap();
}

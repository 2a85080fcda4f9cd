//! The directory: whole at once, again after every change, and rebuilt from the store alone.

use crate::support::{Package, Running, TENANT, World};
use bytes::Bytes;
use weft_adapter_registry::{DIRECTORY_GENERATION_HEADER, DIRECTORY_INCARNATION_HEADER, Settings};
use weft_fault::{Fault, Kind};
use weft_object_store::ObjectStore;
use weft_proto::registry::v1 as pb;

async fn watch(registry: &Running) -> tonic::Streaming<pb::Directory> {
    registry.client.clone().watch_directory(pb::WatchDirectoryRequest {}).await.unwrap().into_inner()
}

async fn until(
    stream: &mut tonic::Streaming<pb::Directory>,
    is_seen: impl Fn(&pb::Directory) -> bool,
) -> pb::Directory {
    loop {
        let directory = stream.message().await.unwrap().expect("the stream goes on");
        if is_seen(&directory) {
            return directory;
        }
    }
}

fn versions(directory: &pb::Directory) -> usize {
    directory.tenants.iter().flat_map(|tenant| &tenant.adapters).map(|adapter| adapter.versions.len()).sum()
}

#[tokio::test]
async fn every_change_is_sent_and_generations_grow() {
    let (_world, mut registry) = World::ready().await;
    let mut stream = watch(&registry).await;
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.tenants.len(), 1);
    registry.publish("pirate", &Package::tiny(1)).await;
    let second = until(&mut stream, |directory| versions(directory) == 1).await;
    registry.create_tenant("helpdesk").await;
    let third = until(&mut stream, |directory| directory.tenants.len() == 2).await;
    assert!(first.generation < second.generation && second.generation < third.generation);
    assert!(first.incarnation == third.incarnation && !first.incarnation.is_empty());
    let adapter = &third.tenants[0].adapters[0];
    assert_eq!((adapter.name.as_str(), adapter.versions[0].number, adapter.aliases[0].version), ("pirate", 1, 1));
}

#[tokio::test]
async fn an_admin_write_is_visible_before_its_answer() {
    let (_world, mut registry) = World::ready().await;
    for i in 0..20 {
        let name = format!("tenant-{i}");
        let request = pb::CreateTenantRequest { name: name.clone(), actor: String::new(), ..Default::default() };
        let answer = registry.client.create_tenant(request).await.unwrap();
        let header = |name| answer.metadata().get(name).unwrap().to_str().unwrap().to_owned();
        let directory = registry.directory().await;
        assert!(directory.tenants.iter().any(|tenant| tenant.name == name), "{name} is missing");
        assert_eq!(header(DIRECTORY_INCARNATION_HEADER), directory.incarnation);
        assert_eq!(header(DIRECTORY_GENERATION_HEADER), directory.generation.to_string());
    }
}

#[tokio::test]
async fn another_registrys_writes_arrive_by_listing() {
    let world = World::new().await;
    let fast = Settings { directory_refresh_ms: 20, ..Settings::default() };
    let (mut writer, reader) = (world.start().await, world.start_with(fast).await);
    let mut stream = watch(&reader).await;
    writer.prepare().await;
    writer.publish("pirate", &Package::tiny(1)).await;
    writer.publish("pirate", &Package::tiny(2)).await;
    let both = |directory: &pb::Directory| {
        versions(directory) == 2 && directory.tenants[0].adapters[0].aliases.iter().any(|alias| alias.version == 2)
    };
    let seen = until(&mut stream, both).await;
    let own = writer.directory().await;
    assert_eq!(seen.tenants, own.tenants);
    assert_ne!(seen.incarnation, own.incarnation);
}

#[tokio::test]
async fn a_registry_says_for_how_long_it_could_not_list() {
    let world = World::new().await;
    let fast = Settings { directory_refresh_ms: 20, ..Settings::default() };
    let mut registry = world.start_with(fast).await;
    registry.prepare().await;
    let mut stream = watch(&registry).await;
    world.store.set_away(true);
    let behind = until(&mut stream, |directory| directory.age_ms >= 500).await;
    world.store.set_away(false);
    let again = until(&mut stream, |directory| directory.age_ms < 500).await;
    assert_eq!((behind.generation, behind.tenants), (again.generation, again.tenants), "nothing was written");
}

#[tokio::test]
async fn a_registry_answers_for_what_another_wrote_a_moment_ago() {
    let world = World::new().await;
    let slow = Settings { directory_refresh_ms: 3_600_000, ..Settings::default() };
    let (mut writer, reader) = (world.start().await, world.start_with(slow).await);
    writer.prepare().await;
    let published = writer.publish("pirate", &Package::tiny(1)).await;
    assert_eq!(reader.resolve("pirate", "").await.unwrap().digest, published.digest);
    writer.publish("pirate", &Package::tiny(2)).await;
    assert_eq!(reader.versions("pirate").await.len(), 2);
    assert_eq!(reader.publish("pirate", &Package::tiny(3)).await.version, 3);
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let (world, mut registry) = World::ready().await;
    for seed in 1..=3 {
        registry.publish("org/pirate", &Package::tiny(seed)).await;
    }
    let key =
        pb::CreateKeyRequest { tenant: TENANT.to_owned(), label: String::new(), actor: String::new(), limits: None };
    registry.client.create_key(key).await.unwrap();
    let before = registry.directory().await;
    let versions = registry.versions("org/pirate").await;
    registry.stop().await;
    let registry = world.start().await;
    let after = registry.directory().await;
    assert_eq!(before.tenants, after.tenants);
    assert_ne!(before.incarnation, after.incarnation);
    assert_eq!(registry.versions("org/pirate").await, versions);
}

#[tokio::test]
async fn a_damaged_object_hides_nothing_else() {
    let (world, registry) = World::ready().await;
    registry.publish("pirate", &Package::tiny(1)).await;
    registry.stop().await;
    for key in ["registry/tenants/harbour/keys/00.json", "registry/tenants/other/tenant.json", "registry/nonsense"] {
        world.store.put(key, Bytes::from_static(b"{")).await.unwrap();
    }
    let registry = world.start().await;
    let directory = registry.directory().await;
    assert_eq!((directory.tenants.len(), versions(&directory)), (1, 1));
    registry.publish("pirate", &Package::tiny(2)).await;
}

#[tokio::test]
async fn an_object_that_is_mended_or_gone_is_no_longer_counted_as_damaged() {
    let (world, registry) = World::ready().await;
    registry.publish("pirate", &Package::tiny(1)).await;
    let (tenant, nonsense) = ("registry/tenants/harbour/tenant.json", "registry/nonsense");
    let whole = world.store.get(tenant).await.unwrap().unwrap().bytes;
    registry.stop().await;
    for key in [tenant, nonsense] {
        world.store.put(key, Bytes::from_static(b"{")).await.unwrap();
    }
    let registry = world.start_with(Settings { directory_refresh_ms: 50, ..Settings::default() }).await;
    assert_eq!(registry.metric("registry_damaged_objects"), 2.0);
    world.store.put(tenant, whole).await.unwrap();
    registry.until_metric("registry_damaged_objects", 1.0).await;
    assert_eq!(registry.directory().await.tenants.len(), 1);
    world.store.delete(nonsense).await.unwrap();
    registry.until_metric("registry_damaged_objects", 0.0).await;
}

#[tokio::test]
async fn a_foreign_object_where_the_next_version_belongs_is_named() {
    let (world, registry) = World::ready().await;
    registry.publish("pirate", &Package::tiny(1)).await;
    let key = "registry/tenants/harbour/adapters/pirate/versions/000000000002.json";
    world.store.put(key, Bytes::from_static(b"{")).await.unwrap();
    let fault =
        crate::support::publish(&registry.client, TENANT, "pirate", "live", &Package::tiny(2)).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Corrupt);
    assert!(fault.message.contains(key), "{}", fault.message);
}

#[tokio::test]
async fn while_the_store_is_away_the_directory_stays_and_writes_are_refused() {
    let (world, mut registry) = World::ready().await;
    registry.publish("pirate", &Package::tiny(1)).await;
    world.store.set_away(true);
    assert_eq!(versions(&registry.directory().await), 1);
    assert_eq!(registry.resolve("pirate", "live").await.unwrap().number, 1);
    assert_eq!(registry.versions("pirate").await.len(), 1);
    let unknown = pb::ListVersionsRequest { tenant: TENANT.to_owned(), adapter: "parrot".to_owned() };
    let fault = Fault::from(registry.client.list_versions(unknown.clone()).await.unwrap_err());
    assert_eq!(fault.kind, Kind::Unavailable, "another registry may have written it");
    let request = pb::CreateTenantRequest { name: "helpdesk".to_owned(), actor: String::new(), ..Default::default() };
    assert_eq!(Fault::from(registry.client.create_tenant(request).await.unwrap_err()).kind, Kind::Unavailable);
    let refused = crate::support::publish(&registry.client, TENANT, "pirate", "live", &Package::tiny(2)).await;
    assert_eq!(refused.unwrap_err().kind, Kind::Unavailable);
    world.store.set_away(false);
    assert_eq!(Fault::from(registry.client.list_versions(unknown).await.unwrap_err()).kind, Kind::NotFound);
    assert_eq!(registry.publish("pirate", &Package::tiny(2)).await.version, 2);
}

#[tokio::test]
async fn one_watcher_more_than_allowed_is_told_to_come_back() {
    let world = World::new().await;
    let registry = world.start_with(Settings { watchers_max: 1, ..Settings::default() }).await;
    let mut first = watch(&registry).await;
    first.message().await.unwrap().unwrap();
    let status = registry.client.clone().watch_directory(pb::WatchDirectoryRequest {}).await.unwrap_err();
    assert_eq!(Fault::from(status).kind, Kind::Overloaded);
}

#[tokio::test]
async fn a_shutdown_ends_the_streams() {
    let (_world, registry) = World::ready().await;
    let mut stream = watch(&registry).await;
    stream.message().await.unwrap().unwrap();
    registry.stop().await;
    while let Ok(Some(_)) = stream.message().await {}
}

#[tokio::test]
async fn a_store_that_stays_away_fails_the_start() {
    let world = World::new().await;
    world.store.set_away(true);
    let settings = Settings { store_wait_ms: 100, ..Settings::default() };
    let metrics = prometheus::Registry::new();
    let built = weft_adapter_registry::App::build(settings, world.store.clone(), &metrics).await;
    let Err(error) = built else { panic!("started without a store") };
    assert_eq!(Fault::from(error).kind, Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_registry_writes_is_seen_by_its_word_alone() {
    let world = World::new().await;
    let bus = weft_bus::connect(weft_bus::NatsSettings::default(), &prometheus::Registry::new()).unwrap();
    // Neither lists again by itself.
    let rarely = || Settings { directory_refresh_ms: 3_600_000, ..Settings::default() };
    let mut writer = world.start_over(rarely(), Some(bus.clone())).await;
    let reader = world.start_over(rarely(), Some(bus)).await;
    let mut stream = watch(&reader).await;
    writer.prepare().await;
    until(&mut stream, |directory| directory.tenants.len() == 1).await;
    writer.publish("pirate", &Package::tiny(1)).await;
    let seen =
        |directory: &pb::Directory| versions(directory) == 1 && !directory.tenants[0].adapters[0].aliases.is_empty();
    until(&mut stream, seen).await;
    let request = pb::CreateKeyRequest { tenant: TENANT.to_owned(), ..Default::default() };
    let key = writer.client.create_key(request).await.unwrap().into_inner();
    let keys = |directory: &pb::Directory| directory.tenants[0].keys.len();
    until(&mut stream, |directory| keys(directory) == 1).await;
    let id = key.id;
    let request = pb::RevokeKeyRequest { tenant: TENANT.to_owned(), id, ..Default::default() };
    writer.client.revoke_key(request).await.unwrap();
    until(&mut stream, |directory| keys(directory) == 0).await;
    // Many tenants at once, more than are listed one by one.
    for number in 0..20 {
        writer.create_tenant(&format!("tenant-{number}")).await;
    }
    until(&mut stream, |directory| directory.tenants.len() == 21).await;
}

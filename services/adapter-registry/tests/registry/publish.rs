//! What is published can be listed, resolved and read; the same bytes are one version.

use crate::support::{Package, TENANT, World, base_digest, parts, publish, send};
use weft_adapter_registry::Settings;
use weft_fault::Kind;
use weft_object_store::{ObjectStore, keys};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_response::Result as Answer;
use weft_types::Digest;

#[tokio::test]
async fn a_package_becomes_a_version_that_live_names() {
    let (world, mut registry) = World::ready().await;
    let package = Package::tiny(1);
    let published = registry.publish("org/pirate", &package).await;
    assert_eq!((published.adapter.as_str(), published.version, published.created), ("org/pirate", 1, true));

    let version = registry.resolve("org/pirate", "").await.unwrap();
    assert_eq!(version.digest, published.digest);
    assert_eq!((version.number, version.rank_max, version.actor.as_str()), (1, 1, "ada"));
    assert_eq!(version.target_modules, ["q_proj"]);
    assert_eq!(version.config_sha256, Digest::of(&package.config).to_vec());
    assert_eq!(version.weights_sha256, Digest::of(&package.weights).to_vec());
    assert_eq!(version.base_digest, base_digest().to_vec());
    for selector in ["live", "1", &Digest::try_from(&published.digest[..]).unwrap().to_string()] {
        assert_eq!(registry.resolve("org/pirate", selector).await.unwrap(), version);
    }

    // The digest is that of the bytes in the store.
    let digest = Digest::try_from(&published.digest[..]).unwrap();
    let blob = world.store.get(&keys::blob(&digest)).await.unwrap().unwrap().bytes;
    assert_eq!((Digest::of(&blob), blob.len() as u64), (digest, version.bytes));

    let second = registry.publish("org/pirate", &Package::tiny(2)).await;
    assert_eq!((second.version, second.created), (2, true));
    assert_eq!(registry.resolve("org/pirate", "").await.unwrap().number, 2);
    assert_eq!(registry.versions("org/pirate").await.iter().map(|version| version.number).collect::<Vec<_>>(), [1, 2]);
    let request = pb::ListAdaptersRequest { tenant: TENANT.to_owned() };
    let adapters = registry.client.list_adapters(request).await.unwrap().into_inner().adapters;
    let [adapter] = &adapters[..] else { panic!("{adapters:?}") };
    assert_eq!((adapter.latest_version, adapter.aliases[0].version, adapter.aliases[0].name.as_str()), (2, 2, "live"));
}

#[tokio::test]
async fn unknown_names_and_foreign_digests_are_not_found() {
    let (_world, registry) = World::ready().await;
    let one = registry.publish("one", &Package::tiny(1)).await;
    registry.publish("two", &Package::tiny(2)).await;
    let digest = Digest::try_from(&one.digest[..]).unwrap().to_string();
    assert!(registry.resolve("one", &digest).await.is_ok());
    for (adapter, selector) in
        [("two", digest.as_str()), ("three", ""), ("one", "canary"), ("one", "2"), ("one", "@@"), ("../one", "")]
    {
        assert_eq!(registry.resolve(adapter, selector).await.unwrap_err().kind, Kind::NotFound, "{adapter} {selector}");
    }
    let request = pb::ResolveRequest { tenant: "other".into(), adapter: "one".into(), selector: String::new() };
    let status = registry.client.clone().resolve(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn the_same_package_again_is_the_same_version() {
    let (world, registry) = World::ready().await;
    let first = registry.publish("pirate", &Package::tiny(1)).await;
    let objects = world.objects().await;
    let again = registry.publish("pirate", &Package::tiny(1)).await;
    assert_eq!((again.version, again.digest, again.created), (1, first.digest.clone(), false));
    assert_eq!(world.objects().await, objects, "publishing again wrote something");

    // Other files with the same meaning have the same canonical blob: still the same version.
    let mut spaced = Package::tiny(1);
    spaced.config.extend_from_slice(b"\n\n");
    let spaced = registry.publish("pirate", &spaced).await;
    assert_eq!((spaced.version, spaced.digest, spaced.created), (1, first.digest.clone(), false));

    // The same bytes under another name are that name's own version, over one blob.
    let other = registry.publish("other", &Package::tiny(1)).await;
    assert_eq!((other.version, other.digest, other.created), (1, first.digest, true));
    let blobs = world.keys().await.into_iter().filter(|key| key.starts_with(keys::BLOB_PREFIX)).count();
    assert_eq!(blobs, 1);
}

#[tokio::test]
async fn an_old_package_again_does_not_take_live_back() {
    let (_world, registry) = World::ready().await;
    registry.publish("pirate", &Package::tiny(1)).await;
    registry.publish("pirate", &Package::tiny(2)).await;
    let late = registry.publish("pirate", &Package::tiny(1)).await;
    assert_eq!((late.version, late.created), (1, false));
    assert_eq!(registry.resolve("pirate", "live").await.unwrap().number, 2);
}

#[tokio::test]
async fn without_an_alias_nothing_moves() {
    let (_world, registry) = World::ready().await;
    publish(&registry.client, TENANT, "pirate", "", &Package::tiny(1)).await.unwrap();
    assert_eq!(registry.resolve("pirate", "live").await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(registry.resolve("pirate", "1").await.unwrap().number, 1);
    publish(&registry.client, TENANT, "pirate", "canary", &Package::tiny(2)).await.unwrap();
    assert_eq!(registry.resolve("pirate", "canary").await.unwrap().number, 2);
    assert_eq!(registry.resolve("pirate", "live").await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test]
async fn a_package_larger_than_a_message_comes_in_chunks() {
    let (world, registry) = World::ready().await;
    let package = Package::large(1);
    assert!(package.weights.len() > 8 << 20);
    let mut digests = Vec::new();
    for (name, chunk_bytes) in [("whole", 1 << 20), ("odd", 300_007)] {
        let answer = send(&registry.client, parts(TENANT, name, "live", &package, chunk_bytes)).await.unwrap();
        let Some(Answer::Published(published)) = answer.result else { panic!("{answer:?}") };
        digests.push(published.digest);
    }
    assert_eq!(digests[0], digests[1]);
    let digest = Digest::try_from(&digests[0][..]).unwrap();
    let blob = world.store.get(&keys::blob(&digest)).await.unwrap().unwrap().bytes;
    assert_eq!(Digest::of(&blob), digest);
}

#[tokio::test]
async fn a_package_is_the_same_version_whether_it_came_through_memory_or_a_file() {
    let world = World::new().await;
    let spool = tempfile::tempdir().unwrap();
    let mut published = Vec::new();
    // The last has room for the first of two uploads.
    for upload_memory_bytes_max in [0, 256 << 20, 16 << 20] {
        let spool_dir = Some(spool.path().to_owned());
        let mut registry =
            world.start_with(Settings { upload_memory_bytes_max, spool_dir, ..Settings::default() }).await;
        if published.is_empty() {
            registry.prepare().await;
        }
        let (one, two) = (format!("one-{upload_memory_bytes_max}"), format!("two-{upload_memory_bytes_max}"));
        let (first, second) = (Package::large(1), Package::large(2));
        let (one, two) = tokio::join!(registry.publish(&one, &first), registry.publish(&two, &second));
        published.push((one.digest, two.digest));
        registry.stop().await;
    }
    assert!(published.iter().all(|digests| *digests == published[0]));
    for digest in [&published[0].0, &published[0].1] {
        let digest = Digest::try_from(&digest[..]).unwrap();
        let blob = world.store.get(&keys::blob(&digest)).await.unwrap().unwrap().bytes;
        assert_eq!(Digest::of(&blob), digest);
    }
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn who_stores_keeps_nobody_from_being_checked() {
    let world = World::new().await;
    let mut registry = world.start_with(Settings { checks_max: 1, ..Settings::default() }).await;
    registry.prepare().await;
    // The blob of this one does not get into the store.
    let stored = registry.publish("first", &Package::tiny(1)).await;
    let digest = Digest::try_from(&stored.digest[..]).unwrap();
    world.store.hold_put_of(Some(&digest.hex()));
    let client = registry.client.clone();
    let waiting = tokio::spawn(async move { publish(&client, TENANT, "second", "live", &Package::tiny(1)).await });
    while world.store.puts_held() == 0 {
        tokio::task::yield_now().await;
    }
    for seed in 2..5 {
        registry.publish("third", &Package::tiny(seed)).await;
    }
    assert!(!waiting.is_finished());
    world.store.hold_put_of(None);
    assert_eq!(waiting.await.unwrap().unwrap().digest, stored.digest);
}

#[tokio::test]
async fn the_example_adapters_fit_the_demo_base() {
    let (_world, registry) = World::ready().await;
    for name in ["pirate", "support-triage", "sql-writer"] {
        let published = registry.publish(name, &Package::example(name)).await;
        assert_eq!((published.version, published.created), (1, true), "{name}");
    }
}

#[tokio::test]
async fn another_base_name_is_only_a_warning_and_is_kept() {
    let (_world, registry) = World::ready().await;
    let mut package = Package::tiny(1);
    let config = String::from_utf8(package.config).unwrap().replace("SmolLM2-135M-Instruct", "another/model");
    package.config = config.into_bytes();
    let published = registry.publish("pirate", &package).await;
    let [warning] = &published.warnings[..] else { panic!("{:?}", published.warnings) };
    assert!(warning.contains("another/model"), "{warning}");
    assert_eq!(registry.versions("pirate").await[0].warnings, published.warnings);
}

#[tokio::test]
async fn a_publish_whose_reply_was_lost_goes_on_where_it_was() {
    let (world, registry) = World::ready().await;
    for (number, lost) in [(1, "blobs/"), (2, "/versions/"), (3, "/aliases/")] {
        let package = Package::tiny(number);
        world.store.lose_reply_of(lost);
        let fault = publish(&registry.client, TENANT, "pirate", "live", &package).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Unavailable, "{lost}");
        let again = registry.publish("pirate", &package).await;
        assert_eq!(again.version, number, "{lost}");
        assert_eq!(registry.resolve("pirate", "live").await.unwrap().number, number, "{lost}");
        assert_eq!(registry.versions("pirate").await.len() as u64, number, "{lost}");
    }
}

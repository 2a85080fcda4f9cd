//! Racing publishers, in one registry and in two over one store.

use crate::support::{Package, TENANT, World, publish};
use futures::future::join_all;

const PUBLISHERS: usize = 16;

fn settings() -> weft_adapter_registry::Settings {
    weft_adapter_registry::Settings { publishes_max: PUBLISHERS, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_publishers_of_one_package_make_one_version() {
    let world = World::new().await;
    let (mut one, two) = (world.start_with(settings()).await, world.start_with(settings()).await);
    one.prepare().await;
    let package = Package::tiny(1);
    let publishes = (0..PUBLISHERS).map(|i| {
        let client = if i % 2 == 0 { &one.client } else { &two.client };
        publish(client, TENANT, "pirate", "live", &package)
    });
    let published: Vec<_> = join_all(publishes).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(published.iter().filter(|published| published.created).count(), 1);
    let digest = &published[0].digest;
    assert!(published.iter().all(|one| one.version == 1 && one.digest == *digest));
    for registry in [&one, &two] {
        assert_eq!(registry.versions("pirate").await.len(), 1);
        assert_eq!(registry.resolve("pirate", "live").await.unwrap().number, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_publishers_of_different_packages_get_a_number_each() {
    let world = World::new().await;
    let (mut one, two) = (world.start_with(settings()).await, world.start_with(settings()).await);
    one.prepare().await;
    let packages: Vec<_> = (0..PUBLISHERS as u64).map(Package::tiny).collect();
    let publishes = packages.iter().enumerate().map(|(i, package)| {
        let client = if i % 2 == 0 { &one.client } else { &two.client };
        publish(client, TENANT, "pirate", "live", package)
    });
    let published: Vec<_> = join_all(publishes).await.into_iter().map(Result::unwrap).collect();
    let mut numbers: Vec<u64> = published.iter().map(|published| published.version).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=PUBLISHERS as u64).collect::<Vec<_>>());
    // Every answer was true, everywhere, and live ended on the newest.
    for registry in [&one, &two] {
        let versions = registry.versions("pirate").await;
        for published in &published {
            assert_eq!(versions[published.version as usize - 1].digest, published.digest);
        }
        assert_eq!(versions.len(), PUBLISHERS);
    }
    let request = weft_proto::registry::v1::ListAdaptersRequest { tenant: TENANT.to_owned() };
    let adapters = two.client.clone().list_adapters(request).await.unwrap().into_inner().adapters;
    assert_eq!(adapters[0].aliases[0].version, PUBLISHERS as u64);
}

//! The snapshot of all records: what a start reads in place of each, and never instead of the truth.

use crate::support::World;
use std::time::Duration;
use weft_adapter_registry::Settings;
use weft_object_store::ObjectStore;
use weft_proto::registry::v1 as pb;

const SNAPSHOT: &str = "snapshot/records.jsonl.gz";
/// More than the news that are not worth a snapshot.
const TENANTS: usize = 1_020;

async fn weigh(registry: &mut crate::support::Running, name: &str, weight: f64) {
    let request = pb::UpdateTenantRequest { name: name.to_owned(), weight: Some(weight), ..Default::default() };
    registry.client.update_tenant(request).await.unwrap();
}

#[tokio::test]
async fn a_start_reads_the_snapshot_and_what_changed_since() {
    let world = World::new().await;
    let mut registry = world.start_with(Settings { directory_refresh_ms: 100, ..Settings::default() }).await;
    registry.prepare().await;
    for n in 0..TENANTS {
        registry.create_tenant(&format!("tenant-{n}")).await;
    }
    let written = async {
        while world.store.head(SNAPSHOT).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("a snapshot is written");
    registry.stop().await;

    // One that writes no snapshot: its news stay news.
    let slow = || Settings { directory_refresh_ms: 600_000, ..Settings::default() };
    world.store.take_reads();
    let mut registry = world.start_with(slow()).await;
    let reads = world.store.take_reads();
    assert!(reads < TENANTS as u64 / 10, "{reads} objects were read");
    assert_eq!(registry.directory().await.tenants.len(), TENANTS + 1);
    weigh(&mut registry, "tenant-7", 4.0).await;
    registry.stop().await;

    // What is newer than the snapshot is read, what is gone is not shown, and a snapshot that is damaged costs time alone.
    world.store.delete("registry/tenants/tenant-9/tenant.json").await.unwrap();
    for is_damaged in [false, true] {
        if is_damaged {
            world.store.put(SNAPSHOT, "no gzip".into()).await.unwrap();
        }
        world.store.take_reads();
        let registry = world.start_with(slow()).await;
        let reads = world.store.take_reads();
        assert_eq!(reads > TENANTS as u64, is_damaged, "{reads} objects were read");
        let directory = registry.directory().await;
        assert_eq!(directory.tenants.len(), TENANTS);
        let weight =
            |name: &str| directory.tenants.iter().find(|tenant| tenant.name == name).map(|tenant| tenant.weight);
        assert_eq!((weight("tenant-7"), weight("tenant-8"), weight("tenant-9")), (Some(4.0), Some(1.0), None));
        registry.stop().await;
    }
}

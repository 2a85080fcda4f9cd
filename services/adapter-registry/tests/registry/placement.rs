//! The authority within the registry: from what is heard on the bus to epochs, and to what workers are told.

use crate::support::{Package, Running, TENANT, World};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::Streaming;
use weft_adapter_registry::Settings;
use weft_bus::{Bus, subjects};
use weft_placement::Document;
use weft_proto::mesh::v1 as mesh;
use weft_proto::registry::v1 as pb;
use weft_types::Digest;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings() -> Settings {
    Settings { placement_epoch_ms: 100, placement_silence_ms: 1_000, ..Settings::default() }
}

/// Of all voices together, so that who speaks again goes on.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Workers and a gateway that say the same again and again, until dropped.
struct Voices(tokio::task::JoinHandle<()>);

impl Drop for Voices {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn beat(address: &str, sequence: u64) -> Bytes {
    beat_of(address, sequence, crate::support::base_digest())
}

fn beat_of(address: &str, sequence: u64, base: Digest) -> Bytes {
    let beat = mesh::WorkerHeartbeat {
        worker: address.to_owned(),
        address: address.to_owned(),
        incarnation: format!("of {address}"),
        sequence,
        interval_ms: 50,
        base_digest: base.to_vec().into(),
        slot_bytes_max: 1 << 30,
        prepared_bytes_max: 1 << 30,
        step_us: 20_000,
        ..Default::default()
    };
    beat.encode_to_vec().into()
}

fn speak(bus: &Arc<dyn Bus>, workers: &'static [&'static str], asked: Vec<(Digest, u64)>) -> Voices {
    let bus = Arc::clone(bus);
    Voices(tokio::spawn(async move {
        loop {
            let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed) + 1;
            for worker in workers {
                bus.publish(subjects::WORKER_HEARTBEAT, beat(worker, sequence)).unwrap();
            }
            let row = |(digest, requests): &(Digest, u64)| mesh::AdapterDemand {
                digest: digest.to_vec().into(),
                requests: *requests,
                output_tokens: requests * 10,
                ..Default::default()
            };
            let demand = mesh::GatewayDemand {
                incarnation: "gateway".to_owned(),
                sequence,
                adapters: asked.iter().map(row).collect(),
            };
            bus.publish(subjects::GATEWAY_DEMAND, demand.encode_to_vec().into()).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }))
}

fn memory_bus() -> Arc<dyn Bus> {
    weft_bus::connect(weft_bus::NatsSettings::default(), &prometheus::Registry::new()).unwrap()
}

async fn placements(registry: &Running) -> Streaming<pb::Placement> {
    registry.client.clone().watch_placement(pb::WatchPlacementRequest {}).await.unwrap().into_inner()
}

/// The first placement of this stream that is as wanted.
async fn until(stream: &mut Streaming<pb::Placement>, wanted: impl Fn(&Document) -> bool) -> Document {
    let found = async {
        loop {
            let placement = stream.message().await.unwrap().expect("the stream goes on");
            if placement.document.is_empty() {
                continue;
            }
            let document = Document::decode(&placement.document).unwrap();
            assert_eq!(document.epoch.number(), placement.epoch);
            if wanted(&document) {
                return document;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("a placement as wanted")
}

fn copies(document: &Document, adapter: Digest) -> Vec<&str> {
    let placed = document.adapters.iter().find(|placed| placed.0 == adapter);
    placed.map_or(Vec::new(), |placed| placed.1.iter().map(|at| &*document.workers[usize::from(*at)].0).collect())
}

fn digest_of(published: &pb::Published) -> Digest {
    Digest::try_from(published.digest.as_ref()).unwrap()
}

async fn change_places(registry: &Running, places: pb::PlacesChange) -> Result<pb::Tenant, tonic::Status> {
    let request = pb::UpdateTenantRequest { name: TENANT.to_owned(), places: Some(places), ..Default::default() };
    let answer = registry.client.clone().update_tenant(request).await?;
    Ok(answer.into_inner().tenant.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gateways_are_asked_for_gets_places_on_the_workers_that_are_there() {
    let (world, bus) = (World::new().await, memory_bus());
    let mut registry = world.start_over(settings(), Some(Arc::clone(&bus))).await;
    registry.prepare().await;
    let hot = digest_of(&registry.publish("hot", &Package::tiny(1)).await);
    let idle = digest_of(&registry.publish("idle", &Package::tiny(2)).await);
    let mut stream = placements(&registry).await;
    let _voices = speak(&bus, &["w-1:1", "w-2:1", "w-3:1"], vec![(hot, 50)]);
    // All of the load is one adapter's: no worker may have it alone.
    let document = until(&mut stream, |document| copies(document, hot).len() == 3).await;
    assert_eq!(document.workers.len(), 3);
    assert!(copies(&document, idle).is_empty(), "nobody asks for it");

    // A pin on one that nobody asks for: as many copies as it says, and the workers are told.
    let pin = pb::Pin { digest: idle.to_vec().into(), copies: 2 };
    change_places(&registry, pb::PlacesChange { pin: vec![pin], ..Default::default() }).await.unwrap();
    let document = until(&mut stream, |document| copies(document, idle).len() == 2).await;
    let pinned_on = copies(&document, idle)[0].to_owned();
    let request = pb::WatchDesiredRequest { worker: format!("http://{pinned_on}/") };
    let mut desired = registry.client.clone().watch_desired(request).await.unwrap().into_inner();
    let first = desired.message().await.unwrap().unwrap();
    assert!(first.is_list && first.epoch >= document.epoch.number());
    let row = |digest: Digest, pinned| pb::DesiredAdapter { digest: digest.to_vec().into(), ahead: true, pinned };
    let mut wanted = vec![row(hot, false), row(idle, true)];
    wanted.sort_by(|a, b| a.digest.cmp(&b.digest));
    assert_eq!(first.adapters, wanted);

    // One that no placement names has an empty list.
    let request = pb::WatchDesiredRequest { worker: "nobody:1".to_owned() };
    let mut nobody = registry.client.clone().watch_desired(request).await.unwrap().into_inner();
    let told = nobody.message().await.unwrap().unwrap();
    assert!(told.is_list && told.adapters.is_empty() && told.epoch > 0, "{told:?}");

    // And unpinned: told too.
    let unpin = vec![idle.to_vec().into()];
    change_places(&registry, pb::PlacesChange { unpin, ..Default::default() }).await.unwrap();
    let told = async {
        loop {
            let next = desired.message().await.unwrap().unwrap();
            if next.is_list && !next.adapters.iter().any(|row| row.pinned) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the worker is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_placement_gateways_and_workers_are_told_that_there_is_none() {
    let (_world, registry) = World::ready().await;
    let request = pb::WatchDesiredRequest { worker: "nobody:1".to_owned() };
    let mut desired = registry.client.clone().watch_desired(request).await.unwrap().into_inner();
    assert_eq!(desired.message().await.unwrap().unwrap(), pb::Desired::default(), "there is no placement yet");
    let mut stream = placements(&registry).await;
    assert_eq!(stream.message().await.unwrap().unwrap(), pb::Placement::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_hears_that_its_registry_is_there_however_often_records_change() {
    let (world, bus) = (World::new().await, memory_bus());
    let settings = Settings { directory_refresh_ms: 300, ..settings() };
    let mut registry = world.start_over(settings, Some(bus)).await;
    registry.prepare().await;
    let request = pb::WatchDesiredRequest { worker: "w-1:1".to_owned() };
    let mut desired = registry.client.clone().watch_desired(request).await.unwrap().into_inner();
    let mut writer = registry.client.clone();
    let writing = tokio::spawn(async move {
        for number in 0_u64.. {
            let request = pb::CreateTenantRequest { name: format!("t{number}"), ..Default::default() };
            writer.create_tenant(request).await.unwrap();
        }
    });
    for _ in 0..4 {
        let message = tokio::time::timeout(PATIENCE, desired.message()).await.expect("a word");
        message.unwrap().expect("the stream goes on");
    }
    assert!(!writing.is_finished());
    writing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_that_of_most_workers_that_are_up() {
    let (world, bus) = (World::new().await, memory_bus());
    let mut registry = world.start_over(settings(), Some(Arc::clone(&bus))).await;
    registry.prepare().await;
    let mut other = crate::support::smollm2();
    other.base_digest = Digest::of(b"another base").to_vec().into();
    other.linears[0].out_features = 640;
    let ours = crate::support::base_digest();
    let hear = async |workers: &[(&str, Digest)]| {
        for (address, base) in workers {
            let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed) + 1;
            bus.publish(subjects::WORKER_HEARTBEAT, beat_of(address, sequence, *base)).unwrap();
        }
        // Placement sees those that serve the base; what is on the bus has been heard by then.
        let serving = workers.iter().filter(|(_, base)| *base == ours).count();
        registry.until_metric("registry_placement_workers", serving as f64).await;
    };
    let theirs = Digest::of(b"another base");
    hear(&[("w-1:1", ours), ("w-2:1", ours), ("w-3:1", theirs)]).await;
    // One of three, again and again, as workers do.
    for _ in 0..3 {
        registry.client.clone().announce_base(other.clone()).await.unwrap();
    }
    registry.publish("pirate", &Package::tiny(1)).await;
    // One is started anew with the other base: now it has the most.
    let beat = mesh::WorkerHeartbeat::decode(beat_of("w-2:1", 1, theirs)).unwrap();
    let anew = mesh::WorkerHeartbeat { incarnation: "second life".to_owned(), ..beat };
    bus.publish(subjects::WORKER_HEARTBEAT, anew.encode_to_vec().into()).unwrap();
    registry.until_metric("registry_placement_workers", 1.0).await;
    registry.client.clone().announce_base(other.clone()).await.unwrap();
    let refused = crate::support::try_publish(&registry.client, TENANT, "pirate", "live", &Package::tiny(2)).await;
    let reasons = refused.unwrap().unwrap_err();
    assert!(reasons.iter().any(|reason| reason.contains("q_proj") && reason.contains("640")), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_goes_on_from_the_last_placement_with_larger_epochs_only() {
    let (world, bus) = (World::new().await, memory_bus());
    let mut first = world.start_over(settings(), Some(Arc::clone(&bus))).await;
    first.prepare().await;
    let hot = digest_of(&first.publish("hot", &Package::tiny(1)).await);
    let voices = speak(&bus, &["w-1:1", "w-2:1"], vec![(hot, 50)]);
    let mut stream = placements(&first).await;
    let before = until(&mut stream, |document| copies(document, hot).len() == 2).await;
    // Nobody asks for anything any more when the other one begins to listen.
    drop(voices);
    let second = world.start_over(settings(), Some(Arc::clone(&bus))).await;
    let mut there = placements(&second).await;
    let seen = until(&mut there, |document| document.epoch >= before.epoch).await;
    assert_eq!(copies(&seen, hot).len(), 2, "a registry that is not the authority has it from the store");
    let _voices = speak(&bus, &["w-1:1", "w-2:1"], Vec::new());
    first.stop().await;
    let after = until(&mut there, |document| document.epoch.term() > before.epoch.term()).await;
    assert_ne!(after.holder, before.holder);
    // It has planned, and takes nothing away that it has not listened for long enough to judge.
    let planned = async {
        while second.metric("registry_placement_copies") != 2.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, planned).await.expect("a plan with both copies");
    assert_eq!(second.metric("registry_placement_workers"), 2.0);
    assert_eq!(copies(&after, hot), copies(&before, hot));
    // The third begins when nobody speaks: it has the last one all the same, and keeps it.
    second.stop().await;
    let third = world.start_over(settings(), Some(memory_bus())).await;
    let mut there = placements(&third).await;
    let last = until(&mut there, |document| document.epoch > after.epoch).await;
    assert_eq!((last.adapters, last.workers), (after.adapters, after.workers), "who hears nobody changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_the_last_placement_stays_and_epochs_go_on_after() {
    let (world, bus) = (World::new().await, memory_bus());
    let mut registry = world.start_over(settings(), Some(Arc::clone(&bus))).await;
    registry.prepare().await;
    let hot = digest_of(&registry.publish("hot", &Package::tiny(1)).await);
    let voices = speak(&bus, &["w-1:1", "w-2:1"], vec![(hot, 50)]);
    let before = until(&mut placements(&registry).await, |document| copies(document, hot).len() == 2).await;
    world.store.set_away(true);
    // A third worker calls for another plan, which cannot be written.
    drop(voices);
    let _voices = speak(&bus, &["w-1:1", "w-2:1", "w-3:1"], vec![(hot, 50)]);
    let failed = async {
        while registry.failures("registry_placement_failures_total") < 2.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.expect("failures are counted");
    let still = until(&mut placements(&registry).await, |_| true).await;
    assert_eq!(still.epoch, before.epoch, "a gateway that asks now gets the last one");
    world.store.set_away(false);
    let after = until(&mut placements(&registry).await, |document| copies(document, hot).len() == 3).await;
    assert!(after.epoch > before.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_places_are_named() {
    let (_world, registry) = World::ready().await;
    let stranger = pb::Pin { digest: Digest::of(b"stranger").to_vec().into(), copies: 1 };
    for (change, code, named) in [
        (pb::PlacesChange { floor: Some(100_001), ..Default::default() }, tonic::Code::InvalidArgument, "floor"),
        (pb::PlacesChange { ceiling: Some(100_001), ..Default::default() }, tonic::Code::InvalidArgument, "ceiling"),
        (pb::PlacesChange { pin: vec![stranger], ..Default::default() }, tonic::Code::NotFound, "no version"),
        (
            pb::PlacesChange { unpin: vec![Bytes::from_static(b"short")], ..Default::default() },
            tonic::Code::InvalidArgument,
            "unpin",
        ),
    ] {
        let status = change_places(&registry, change).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(named), "{status}");
    }
    let tenant =
        change_places(&registry, pb::PlacesChange { floor: Some(3), ceiling: Some(7), ..Default::default() }).await;
    let places = tenant.unwrap().places.unwrap();
    assert_eq!((places.floor, places.ceiling), (3, Some(7)));
    let tenant = change_places(&registry, pb::PlacesChange { ceiling: Some(0), ..Default::default() }).await;
    let places = tenant.unwrap().places.unwrap();
    assert_eq!((places.floor, places.ceiling), (3, None));
}

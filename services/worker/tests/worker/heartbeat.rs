//! What a worker tells the mesh: that it is there, what it holds, and at once that it drains.

use std::sync::Arc;

use crate::support::shelf::Shelf;
use crate::support::{HELLO, blob, request, settings};
use prost::Message;
use weft_bus::residency::{Follower, Heard as Followed};
use weft_bus::{Bus, Heard, NatsSettings, Subscription, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_proto::mesh::v1::Tier;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;
use weft_worker::{App, Components, Settings};

async fn beat(beats: &mut Subscription) -> mesh::WorkerHeartbeat {
    loop {
        if let Heard::Message(message) = beats.next().await {
            return mesh::WorkerHeartbeat::decode(message).unwrap();
        }
    }
}

/// Reads on until one is as wanted.
async fn beat_when(
    beats: &mut Subscription,
    mut wanted: impl FnMut(&mesh::WorkerHeartbeat) -> bool,
) -> mesh::WorkerHeartbeat {
    loop {
        let beat = beat(beats).await;
        if wanted(&beat) {
            return beat;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_tell_where_it_is_what_it_holds_and_at_once_that_it_drains() {
    let bus: Arc<dyn Bus> = weft_bus::connect(NatsSettings::default(), &prometheus::Registry::new()).unwrap();
    let mut beats = bus.subscribe(subjects::WORKER_HEARTBEAT, 1024);
    let shelf = Shelf::new().await;
    let digest = shelf.put(&blob("rank8"));
    let components = Components { cache_daemon: shelf.channel(), registry: None };
    let settings = Settings { heartbeat_interval_ms: 20, advertise: "worker.example:7003".into(), ..settings() };
    let app = App::build(settings, components, &prometheus::Registry::new()).await.unwrap().with_bus(bus);
    let (listener, channel) = Listener::memory();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(app.run(listener, shutdown.clone()));

    let first = beat(&mut beats).await;
    assert_eq!((first.sequence, first.worker.as_str(), first.address.as_str()), (1, "worker-t", "worker.example:7003"));
    assert_eq!((first.interval_ms, first.draining), (20, false));
    let mut client = WorkerClient::new(channel);
    let described = client.describe(pb::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((&described.incarnation, &described.base_digest), (&first.incarnation, &first.base_digest));
    assert!(!first.incarnation.is_empty());

    // A follower of the beats alone has what a list says.
    let mut follower = Follower::default();
    let mut follow = |beat: &mesh::WorkerHeartbeat| {
        let delta = beat.residency.as_ref().expect("each tells its residency");
        assert_eq!(follower.hear(&beat.incarnation, delta), Followed::Current);
        follower.clone()
    };
    follow(&first);
    let mut stream = client.generate(request(Some(digest), HELLO, 240)).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("it began");
    beat_when(&mut beats, |beat| follow(beat).tier(&digest) == Some(Tier::Slot)).await;
    while stream.message().await.unwrap().is_some() {}
    let busy = beat_when(&mut beats, |beat| {
        follow(beat);
        beat.prefill_tokens_per_s > 0.0 || beat.running_requests == 0
    })
    .await;
    assert!(busy.kv_blocks_max > 0 && busy.step_us > 0);
    let listed = client.list_residency(pb::ListResidencyRequest {}).await.unwrap().into_inner();
    assert_eq!((&listed.incarnation, listed.adapters.len()), (&first.incarnation, 1));
    let evicted = client.evict(pb::EvictRequest { digest: digest.to_vec().into() }).await.unwrap().into_inner();
    assert!(evicted.bytes_freed > 0);
    beat_when(&mut beats, |beat| follow(beat).tier(&digest).is_none()).await;
    shutdown.trigger();
    beat_when(&mut beats, |beat| beat.draining).await;
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_told_without_waiting_for_the_next_beat() {
    let bus: Arc<dyn Bus> = weft_bus::connect(NatsSettings::default(), &prometheus::Registry::new()).unwrap();
    let mut beats = bus.subscribe(subjects::WORKER_HEARTBEAT, 1024);
    let shelf = Shelf::new().await;
    let components = Components { cache_daemon: shelf.channel(), registry: None };
    let settings = Settings { heartbeat_interval_ms: 60_000, ..settings() };
    let app = App::build(settings, components, &prometheus::Registry::new()).await.unwrap().with_bus(bus);
    let (listener, channel) = Listener::memory();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(app.run(listener, shutdown.clone()));
    let first = beat(&mut beats).await;
    assert_eq!((first.sequence, first.draining, first.address.as_str()), (1, false, "memory"));
    // A stream keeps it in its drain.
    let mut client = WorkerClient::new(channel);
    let mut stream = client.generate(request(None, HELLO, 240)).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("it began");
    shutdown.trigger();
    let last = beat(&mut beats).await;
    assert_eq!((last.sequence, last.draining), (2, true));
    while stream.message().await.unwrap().is_some() {}
    running.await.unwrap().unwrap();
}

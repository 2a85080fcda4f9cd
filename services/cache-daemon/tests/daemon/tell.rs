//! What a daemon tells the mesh of its tiers.

use crate::support::{Remote, blob, settings};
use prost::Message;
use std::sync::Arc;
use weft_bus::residency::{Follower, Heard as Followed};
use weft_bus::{Bus, Heard, NatsSettings, Subscription, subjects};
use weft_cache_daemon::{App, Settings};
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::{ListResidencyRequest, PrefetchRequest};
use weft_proto::mesh::v1 as mesh;
use weft_proto::mesh::v1::Tier;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;

async fn told(messages: &mut Subscription) -> mesh::CacheResidency {
    loop {
        if let Heard::Message(message) = messages.next().await {
            return mesh::CacheResidency::decode(message).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_tells_what_it_holds_and_its_list_goes_on_from_there() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let bus: Arc<dyn Bus> = weft_bus::connect(NatsSettings::default(), &prometheus::Registry::new()).unwrap();
    let mut messages = bus.subscribe(subjects::CACHE_RESIDENCY, 64);
    let often = Settings {
        residency_interval_ms: 20,
        name: "node-7".into(),
        advertise: "node-7:7002".into(),
        ..settings(dir.path(), 1 << 20)
    };
    let app = App::build(often, remote.store.clone(), &prometheus::Registry::new()).unwrap().with_bus(bus);
    let (listener, channel) = Listener::memory();
    let shutdown = Shutdown::new();
    let task = tokio::spawn(app.run(listener, shutdown.clone()));
    let mut client = CacheDaemonClient::new(channel);

    let first = told(&mut messages).await;
    assert_eq!((first.daemon.as_str(), first.address.as_str(), first.sequence), ("node-7", "node-7:7002", 1));
    assert_eq!((first.disk_bytes_used, first.disk_bytes_max), (0, 1 << 20));
    client.prefetch(PrefetchRequest { digests: vec![digest.to_vec().into()] }).await.unwrap();
    let mut follower = Follower::default();
    let mut last = first;
    while follower.tier(&digest) != Some(Tier::Disk) {
        let delta = last.residency.as_ref().expect("each tells its residency");
        assert_eq!(follower.hear(&last.incarnation, delta), Followed::Current);
        last = told(&mut messages).await;
    }
    assert_eq!(last.disk_bytes_used, 1000);
    let listed = client.list_residency(ListResidencyRequest {}).await.unwrap().into_inner();
    assert_eq!((&listed.incarnation, listed.generation), (&last.incarnation, follower.generation()));

    shutdown.trigger();
    drop(client);
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_tells_where_neighbours_are_served_and_never_a_socket_of_its_own_accord() {
    let remote = Remote::start().await;
    for (listens, has_port, advertise) in [
        ("unix:", false, ""),
        ("unix:", false, "unix:/run/weft/shared.sock"),
        ("unix:", true, ""),
        ("unix:", true, "node-7:7002"),
        ("127.0.0.1:0", false, ""),
        ("127.0.0.1:0", true, ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let listens =
            if listens == "unix:" { format!("unix:{}", dir.path().join("s").display()) } else { listens.into() };
        let listener = Listener::bind(&listens.parse().unwrap()).await.unwrap();
        let port = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address_of = |listener: &Listener| listener.local_addr().map_or(String::new(), |at| at.to_string());
        let expected = match advertise {
            "" if has_port => address_of(&port),
            "" => address_of(&listener),
            advertised => advertised.to_owned(),
        };
        let bus: Arc<dyn Bus> = weft_bus::connect(NatsSettings::default(), &prometheus::Registry::new()).unwrap();
        let mut messages = bus.subscribe(subjects::CACHE_RESIDENCY, 64);
        let settings = Settings { advertise: advertise.to_owned(), ..settings(&dir.path().join("cache"), 1 << 20) };
        let mut app = App::build(settings, remote.store.clone(), &prometheus::Registry::new()).unwrap().with_bus(bus);
        if has_port {
            app = app.with_neighbours_listener(port);
        }
        let shutdown = Shutdown::new();
        let task = tokio::spawn(app.run(listener, shutdown.clone()));
        assert_eq!(told(&mut messages).await.address, expected, "{listens} {has_port} {advertise:?}");
        shutdown.trigger();
        task.await.unwrap().unwrap();
    }
}

//! Blobs from other daemons of the mesh: real daemons on one bus, and neighbours that misbehave.

use crate::support::{Daemon, Remote, blob, memory_bus, settings};
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_bus::residency::{Held, Teller};
use weft_bus::{Bus, subjects};
use weft_cache_daemon::Settings;
use weft_proto::cache::v1 as pb;
use weft_proto::cache::v1::Tier;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::cache_daemon_server::{CacheDaemon, CacheDaemonServer};
use weft_proto::mesh::v1 as mesh;
use weft_service_kit::transport::{self, Listener};
use weft_types::Digest;

type Out<T> = Result<Response<T>, Status>;

/// What a neighbour does when it is asked for a blob.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Sends it.
    Good,
    /// Sends it with one bit changed.
    Lies,
    /// Sends half of it and ends, as a daemon that stops.
    Half,
    /// Sends half of it with one bit changed, and ends.
    LyingHalf,
    /// Sends half of it and falls silent.
    SilentHalf,
    /// Never answers.
    Silent,
    Busy,
    Missing,
    /// Says that it is larger than it is.
    SaysLonger,
    /// Says that it has so many bytes.
    Says(u64),
    /// Sends more than it said.
    SendsMore,
}

struct Neighbour {
    address: String,
    bytes: Vec<u8>,
    manner: Manner,
    asked: AtomicUsize,
}

/// A neighbour on a port of its own.
async fn neighbour(bytes: &[u8], manner: Manner) -> Arc<Neighbour> {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address().to_owned();
    let asked = AtomicUsize::new(0);
    let neighbour = Arc::new(Neighbour { address: address.clone(), bytes: bytes.to_vec(), manner, asked });
    let service = CacheDaemonServer::new(Served(neighbour.clone()));
    tokio::spawn(transport::server().add_service(service).serve_with_incoming(listener.incoming()));
    neighbour
}

/// Says on the bus what a neighbour holds until the daemon, which may not listen yet, knows of so many blobs.
async fn until_known(
    daemon: &Daemon,
    bus: &Arc<dyn Bus>,
    address: &str,
    deltas: &[mesh::ResidencyDelta],
    blobs: usize,
) {
    let known = |_: &pb::ListResidencyResponse| {
        says(bus, address, deltas);
        daemon.neighbour_blobs() == blobs
    };
    daemon.until("what neighbours hold is known", known).await;
}

fn says(bus: &Arc<dyn Bus>, address: &str, deltas: &[mesh::ResidencyDelta]) {
    for delta in deltas {
        let message = mesh::CacheResidency {
            address: address.to_owned(),
            incarnation: address.to_owned(),
            interval_ms: 60_000,
            residency: Some(delta.clone()),
            ..mesh::CacheResidency::default()
        };
        bus.publish(subjects::CACHE_RESIDENCY, message.encode_to_vec().into()).unwrap();
    }
}

struct Served(Arc<Neighbour>);

#[tonic::async_trait]
impl CacheDaemon for Served {
    type LeaseStream = ReceiverStream<Result<pb::LeaseResponse, Status>>;
    type ReadBlobStream = ReceiverStream<Result<pb::BlobPiece, Status>>;

    async fn lease(&self, _: Request<Streaming<pb::LeaseRequest>>) -> Out<Self::LeaseStream> {
        Err(Status::unimplemented("a neighbour"))
    }
    async fn prefetch(&self, _: Request<pb::PrefetchRequest>) -> Out<pb::PrefetchResponse> {
        Err(Status::unimplemented("a neighbour"))
    }
    async fn list_residency(&self, _: Request<pb::ListResidencyRequest>) -> Out<pb::ListResidencyResponse> {
        Err(Status::unimplemented("a neighbour"))
    }

    async fn read_blob(&self, request: Request<pb::ReadBlobRequest>) -> Out<Self::ReadBlobStream> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let from = request.into_inner().offset as usize;
        let mut bytes = self.0.bytes.clone();
        let (half, whole) = (bytes.len() / 2, bytes.len() as u64);
        let mut blob_bytes = whole;
        let mut then_silence = false;
        match self.0.manner {
            Manner::Good => {}
            Manner::Lies => bytes[half] ^= 1,
            Manner::Half => bytes.truncate(half),
            Manner::LyingHalf => {
                bytes[7] ^= 1;
                bytes.truncate(half);
            }
            Manner::SilentHalf => {
                bytes.truncate(half);
                then_silence = true;
            }
            Manner::Silent => std::future::pending().await,
            Manner::Busy => return Err(Status::resource_exhausted("busy")),
            Manner::Missing => return Err(Status::not_found("gone")),
            Manner::SaysLonger => blob_bytes += 1,
            Manner::Says(bytes) => blob_bytes = bytes,
            Manner::SendsMore => bytes.push(0),
        }
        let (pieces, outbound) = mpsc::channel(1024);
        pieces.send(Ok(pb::BlobPiece { blob_bytes, data: bytes::Bytes::new() })).await.unwrap();
        for data in bytes[from.min(bytes.len())..].chunks(64 << 10) {
            let data = bytes::Bytes::copy_from_slice(data);
            pieces.send(Ok(pb::BlobPiece { blob_bytes: 0, data })).await.unwrap();
        }
        if then_silence {
            tokio::spawn(async move { pieces.closed().await });
        }
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

/// Patient enough for a slow machine; silent neighbours are told apart by tests that set these.
fn patient(dir: &Path) -> Settings {
    Settings { neighbour_first_byte_timeout_ms: 60_000, neighbour_stall_timeout_ms: 60_000, ..settings(dir, 1 << 30) }
}

/// A daemon on a bus with one neighbour that has a blob of its own way.
struct Scene {
    remote: Remote,
    daemon: Daemon,
    neighbour: Arc<Neighbour>,
    bytes: Vec<u8>,
    digest: Digest,
    bus: Arc<dyn Bus>,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new(manner: Manner, change: impl FnOnce(Settings) -> Settings) -> Self {
        let remote = Remote::start().await;
        let dir = tempfile::tempdir().unwrap();
        let bus = memory_bus();
        let bytes = blob(1, 300_000);
        let digest = remote.put(&bytes).await;
        let daemon = Daemon::start_on_bus(change(patient(dir.path())), &remote, bus.clone()).await;
        let neighbour = neighbour(&bytes, manner).await;
        let held = Held::from([(digest, mesh::Tier::Memory)]);
        until_known(&daemon, &bus, &neighbour.address, &Teller::default().tell_next(held), 1).await;
        Self { remote, daemon, neighbour, bytes, digest, bus, _dir: dir }
    }

    /// Leases the blob, which must be right, and tells where it came from.
    async fn lease(&self) -> Tier {
        let granted = self.daemon.holder("worker").await.lease(&self.digest).await;
        assert!(std::fs::read(&granted.path).unwrap() == self.bytes);
        granted.tier()
    }

    /// The neighbour says that it has a second blob.
    async fn says_it_also_holds(&self, other: &Digest) {
        let mut teller = Teller::default();
        let mut held = Held::from([(self.digest, mesh::Tier::Memory)]);
        teller.tell_next(held.clone());
        held.insert(*other, mesh::Tier::Memory);
        until_known(&self.daemon, &self.bus, &self.neighbour.address, &teller.tell_next(held), 2).await;
    }

    fn asked(&self) -> (usize, usize) {
        (self.neighbour.asked.load(Ordering::SeqCst), self.remote.store.gets(&self.digest))
    }

    fn failures(&self, reason: &str) -> f64 {
        self.daemon.count("cache_daemon_fetch_failures_total", &["neighbour", reason])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_fetches_from_another_that_has_it_and_the_object_store_is_not_asked() {
    let remote = Remote::start().await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bus = memory_bus();
    let bytes = blob(1, 3_000_000);
    let digest = remote.put(&bytes).await;
    let there = Daemon::start_on_bus(patient(there.path()), &remote, bus.clone()).await;
    there.holder("worker").await.use_once(&digest).await;
    let here = Daemon::start_on_bus(patient(here.path()), &remote, bus).await;
    here.until("the neighbour is known", |_| here.neighbour_blobs() == 1).await;
    assert_eq!(here.holder("worker").await.use_once(&digest).await.tier(), Tier::Neighbour);
    assert_eq!(remote.store.gets(&digest), 1, "that of the other");
    assert_eq!(here.count("cache_daemon_fetches_total", &["neighbour", "done"]), 1.0);
    assert_eq!(here.count("cache_daemon_fetched_bytes_total", &["neighbour"]), 3_000_000.0);
    assert_eq!(here.count("cache_daemon_leases_total", &["neighbour"]), 1.0);
    there.until("it was counted", |_| there.count("cache_daemon_served_total", &["done"]) == 1.0).await;
    assert_eq!(there.count("cache_daemon_served_bytes_total", &[]), 3_000_000.0);
    here.stop().await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_neighbour_is_asked_again_and_again() {
    let scene = Scene::new(Manner::Good, |settings| settings).await;
    assert_eq!(scene.lease().await, Tier::Neighbour);
    assert_eq!(scene.asked(), (1, 0));
    let other = Digest::of(b"other");
    let held = Teller::default().tell_next(Held::from([(other, mesh::Tier::Disk)]));
    until_known(&scene.daemon, &scene.bus, "127.0.0.1:1", &held, 2).await;
    // Nobody listens there, and the object store does not have it.
    let refused = scene.daemon.holder("worker").await.refusal(&other).await;
    assert_eq!((refused.kind.as_str(), scene.remote.store.gets(&other)), ("not_found", 1));
    assert_eq!(scene.failures("unavailable"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_not_kept_and_their_sender_is_left_alone() {
    for manner in [Manner::Lies, Manner::SendsMore] {
        let scene = Scene::new(manner, |settings| settings).await;
        assert_eq!(scene.lease().await, Tier::Remote);
        assert_eq!((scene.asked(), scene.failures("corrupt")), ((1, 1), 1.0), "{manner:?}");
        assert_eq!(scene.daemon.metric("cache_daemon_corrupt_total", "neighbour"), 1.0);
        assert_eq!(scene.daemon.metric("cache_daemon_corrupt_total", "remote"), 0.0);
        // It says that it has another one, too.
        let other = scene.remote.put(&blob(2, 1000)).await;
        scene.says_it_also_holds(&other).await;
        let granted = scene.daemon.holder("worker").await.lease(&other).await;
        assert_eq!((granted.tier(), scene.asked().0), (Tier::Remote, 1), "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_neighbour_did_not_send_comes_from_the_object_store() {
    for manner in [Manner::Half, Manner::SaysLonger] {
        let scene = Scene::new(manner, |settings| settings).await;
        assert_eq!(scene.lease().await, Tier::Remote);
        let remote_bytes = scene.daemon.count("cache_daemon_fetched_bytes_total", &["remote"]);
        // One that said another length is not believed at all.
        let expected = if matches!(manner, Manner::Half) { 150_000.0 } else { 300_000.0 };
        assert_eq!((remote_bytes, scene.asked().0), (expected, 1), "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_with_wrong_bytes_shows_at_the_end_and_all_is_fetched_anew() {
    let scene = Scene::new(Manner::LyingHalf, |settings| settings).await;
    assert_eq!(scene.lease().await, Tier::Remote);
    assert_eq!(scene.daemon.count("cache_daemon_fetched_bytes_total", &["remote"]), 150_000.0 + 300_000.0);
    assert_eq!((scene.failures("corrupt"), scene.failures("unavailable")), (1.0, 1.0));
    assert_eq!(scene.daemon.metric("cache_daemon_corrupt_total", "remote"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_neighbour_costs_its_time_limit_and_no_more() {
    let first = |settings| Settings { neighbour_first_byte_timeout_ms: 50, ..settings };
    let scene = Scene::new(Manner::Silent, first).await;
    assert_eq!((scene.lease().await, scene.asked()), (Tier::Remote, (1, 1)));
    let stall = |settings| Settings { neighbour_stall_timeout_ms: 1_000, ..settings };
    let scene = Scene::new(Manner::SilentHalf, stall).await;
    assert_eq!((scene.lease().await, scene.asked()), (Tier::Remote, (1, 1)));
    // The half that came was kept; on a slow machine it may be less.
    let remote_bytes = scene.daemon.count("cache_daemon_fetched_bytes_total", &["remote"]);
    assert!((150_000.0..300_000.0).contains(&remote_bytes), "{remote_bytes}");
    assert_eq!(scene.failures("unavailable"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_is_busy_lacks_it_or_talks_nonsense_is_passed_over() {
    for (manner, reason) in
        [(Manner::Busy, "busy"), (Manner::Missing, "not_found"), (Manner::Says(u64::MAX), "unavailable")]
    {
        let scene = Scene::new(manner, |settings| settings).await;
        assert_eq!((scene.lease().await, scene.asked()), (Tier::Remote, (1, 1)), "{manner:?}");
        assert_eq!(scene.failures(reason), 1.0, "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_neighbour_says_of_a_length_takes_nothing_from_others() {
    // As large as the disk, beside a lease: there would be no room until that ends.
    let small = |settings| Settings { disk_bytes_max: 1 << 20, ..settings };
    let scene = Scene::new(Manner::Says(1 << 20), small).await;
    let other = scene.remote.put(&blob(2, 200_000)).await;
    let mut holder = scene.daemon.holder("other").await;
    holder.lease(&other).await;
    assert_eq!((scene.lease().await, scene.asked()), (Tier::Remote, (1, 1)));
    assert_eq!(scene.failures("unavailable"), 1.0);

    // Larger than any package, beside an idle file: that would have to go.
    let large = |settings| Settings { disk_bytes_max: 4 << 30, ..settings };
    let scene = Scene::new(Manner::Says(4 << 30), large).await;
    let other = scene.remote.put(&blob(2, 200_000)).await;
    scene.daemon.holder("other").await.use_once(&other).await;
    assert_eq!((scene.lease().await, scene.asked()), (Tier::Remote, (1, 1)));
    scene.daemon.holder("other").await.use_once(&other).await;
    assert_eq!(scene.remote.store.gets(&other), 1, "it stayed");
}

/// Reads a blob as a neighbour does.
async fn read(daemon: &Daemon, digest: &Digest, offset: u64) -> Result<Vec<u8>, Status> {
    let mut client: CacheDaemonClient<_> = daemon.client();
    let request = pb::ReadBlobRequest { digest: digest.to_vec().into(), offset };
    let mut pieces = client.read_blob(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_sends_what_it_has_from_any_offset_and_refuses_the_rest() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = blob(1, 1_000_000);
    let digest = remote.put(&bytes).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 30), &remote).await;
    assert_eq!(read(&daemon, &digest, 0).await.unwrap_err().code(), tonic::Code::NotFound);
    daemon.holder("worker").await.use_once(&digest).await;
    for offset in [0, 1, 999_999, 1_000_000] {
        assert!(read(&daemon, &digest, offset).await.unwrap() == bytes[offset as usize..], "from {offset}");
    }
    let behind = read(&daemon, &digest, 1_000_001).await.unwrap_err();
    assert_eq!(behind.code(), tonic::Code::InvalidArgument);
    assert!(behind.message().contains("1000001") && behind.message().contains("1000000"), "{}", behind.message());
    let mut client = daemon.client();
    let nonsense = pb::ReadBlobRequest { digest: bytes::Bytes::from_static(b"x"), offset: 0 };
    assert_eq!(client.read_blob(nonsense).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    daemon.stop().await;

    // What an earlier process left is sent once it was hashed here.
    let daemon = Daemon::start(settings(dir.path(), 1 << 30), &remote).await;
    let unverified = read(&daemon, &digest, 0).await.unwrap_err();
    assert_eq!(unverified.code(), tonic::Code::NotFound);
    assert!(unverified.message().contains("not verified"), "{}", unverified.message());
    let verified = async {
        while read(&daemon, &digest, 0).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), verified).await.unwrap();
    assert_eq!(remote.store.gets(&digest), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_readers_are_refused_and_a_reader_that_leaves_makes_room() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    // More than the windows and queues on the way hold.
    let digest = remote.put(&blob(1, 24 << 20)).await;
    let daemon = Daemon::start(Settings { serves_max: 1, ..settings(dir.path(), 1 << 30) }, &remote).await;
    let mut holder = daemon.holder("worker").await;
    let lease = holder.lease(&digest).await;
    holder.release(lease.lease_id).await;
    let request = pb::ReadBlobRequest { digest: digest.to_vec().into(), offset: 0 };
    let mut pieces = daemon.client().read_blob(request).await.unwrap().into_inner();
    pieces.message().await.unwrap().unwrap();
    let refused = read(&daemon, &digest, 0).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(refused.message().contains("serves_max"), "{}", refused.message());
    assert_eq!(daemon.list().await.adapters[0].leases, 1, "what is read is not evicted");
    drop(pieces);
    daemon.until("the reader left", |listing| listing.adapters[0].leases == 0).await;
    assert!(read(&daemon, &digest, 24 << 20).await.unwrap().is_empty());
    assert_eq!(daemon.count("cache_daemon_served_total", &["overloaded"]), 1.0);
    assert_eq!(daemon.count("cache_daemon_served_total", &["gone"]), 1.0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_alias_moved_from_is_here_what_it_moved_to_is_fetched() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bus = memory_bus();
    let daemon = Daemon::start_on_bus(settings(dir.path(), 1 << 30), &remote, bus.clone()).await;
    let old = remote.put(&blob(1, 1000)).await;
    let new = remote.put(&blob(2, 1000)).await;
    let foreign = remote.put(&blob(3, 1000)).await;
    daemon.holder("worker").await.use_once(&old).await;
    let moved = |from: &[u8], to: &[u8]| {
        let moved = mesh::AliasMoved { from: from.to_vec().into(), to: to.to_vec().into() };
        bus.publish(subjects::ALIAS_MOVED, moved.encode_to_vec().into()).unwrap();
    };
    moved(b"nonsense", foreign.as_bytes());
    bus.publish(subjects::ALIAS_MOVED, bytes::Bytes::from_static(b"\xff\xff")).unwrap();
    let moves = |listing: &pb::ListResidencyResponse| {
        // Until it is heard: the daemon may not listen yet.
        moved(Digest::of(b"elsewhere").as_bytes(), foreign.as_bytes());
        moved(old.as_bytes(), new.as_bytes());
        listing.adapters.len() == 2
    };
    daemon.until("the new bytes are here", moves).await;
    assert_eq!((remote.store.gets(&new), remote.store.gets(&foreign)), (1, 0));
    daemon.stop().await;
}

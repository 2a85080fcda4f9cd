//! A daemon in process behind its gRPC face, over a real embedded S3 server.

use crate::s3_proxy::Proxy;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use weft_bus::{Bus, NatsSettings};
use weft_cache_daemon::{App, Error, Settings};
use weft_fault::Fault;
use weft_object_store::{
    ETag, EmbeddedS3, Error as StoreError, Object, ObjectMeta, ObjectPart, ObjectStore, ObjectStream, PutOutcome,
    S3Settings, S3Store, keys,
};
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::lease_request::Request as Asks;
use weft_proto::cache::v1::lease_response::Response as Answer;
use weft_proto::cache::v1::{
    Acquire, Granted, Hello, LeaseRequest, LeaseResponse, ListResidencyRequest, ListResidencyResponse, PrefetchRequest,
    PrefetchResponse, Refused, Release,
};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Listener, Peers, Service, TlsSettings};
use weft_types::Digest;

/// Longer than anything here takes; a wait this long is a failure, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// An S3 server over a folder, and a store that counts what is asked of it.
pub(crate) struct Remote {
    pub(crate) store: Arc<Watched>,
    server: EmbeddedS3,
    /// Where daemons read, if not at the server.
    endpoint: Option<String>,
    _dir: TempDir,
}

impl Remote {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = EmbeddedS3::start(dir.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let s3 = S3Store::connect(&server.settings("weft")).await.unwrap();
        s3.ensure_bucket().await.unwrap();
        let store = Arc::new(Watched::over(s3));
        Self { store, server, endpoint: None, _dir: dir }
    }

    /// The same, read through a proxy that makes trouble.
    pub(crate) async fn behind_proxy() -> (Self, Proxy) {
        let mut remote = Self::start().await;
        let proxy = Proxy::start(remote.server.address()).await;
        remote.endpoint = Some(format!("http://{}", proxy.address));
        let through = S3Store::connect(&remote.settings()).await.unwrap();
        let writes = remote.store.inner.clone();
        remote.store = Arc::new(Watched { writes, ..Watched::over(through) });
        (remote, proxy)
    }

    fn settings(&self) -> S3Settings {
        let settings = self.server.settings("weft");
        S3Settings { endpoint: self.endpoint.clone().or(settings.endpoint.clone()), ..settings }
    }

    /// Stores bytes under their digest.
    pub(crate) async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.put_as(&digest, bytes).await;
        digest
    }

    /// Stores bytes under any digest.
    pub(crate) async fn put_as(&self, digest: &Digest, bytes: &[u8]) {
        self.store.writes.put(&keys::blob(digest), Bytes::copy_from_slice(bytes)).await.unwrap();
    }

    /// Flags of a daemon process that uses this server.
    pub(crate) fn flags(&self) -> Vec<String> {
        let s3 = self.settings();
        [
            ("--s3-endpoint", s3.endpoint.unwrap()),
            ("--s3-bucket", s3.bucket),
            ("--s3-access-key-id", s3.access_key_id.unwrap()),
            ("--s3-secret-access-key", s3.secret_access_key.unwrap()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }
}

/// Bytes that differ from those of any other seed.
pub(crate) fn blob(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// The real store with a counter, a gate and failures in front of reads.
pub(crate) struct Watched {
    inner: S3Store,
    /// What tests write with.
    writes: S3Store,
    gets: Mutex<HashMap<String, usize>>,
    /// So many next reads fail, as if the endpoint were away.
    pub(crate) failures: AtomicUsize,
    /// Reads pass while it has permits.
    pub(crate) gate: Semaphore,
}

impl Watched {
    fn over(inner: S3Store) -> Self {
        let writes = inner.clone();
        let (gets, failures, gate) = (Mutex::default(), AtomicUsize::new(0), Semaphore::new(1 << 20));
        Self { inner, writes, gets, failures, gate }
    }

    /// How often the blob of this digest was asked for.
    pub(crate) fn gets(&self, digest: &Digest) -> usize {
        self.gets.lock().unwrap().get(&keys::blob(digest)).copied().unwrap_or(0)
    }

    /// From now on reads wait until [`Watched::open`].
    pub(crate) fn close(&self) {
        let all = self.gate.available_permits();
        self.gate.forget_permits(all);
    }

    pub(crate) fn open(&self) {
        self.gate.add_permits(1 << 20);
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn get(&self, key: &str) -> Result<Option<Object>, StoreError> {
        self.inner.get(key).await
    }
    async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, StoreError> {
        self.inner.get_stream(key).await
    }
    async fn get_part(
        &self,
        key: &str,
        range: Range<u64>,
        etag: Option<&ETag>,
    ) -> Result<Option<ObjectPart>, StoreError> {
        *self.gets.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        self.gate.acquire().await.unwrap().forget();
        let failing = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if failing.is_ok() {
            return Err(StoreError::Unavailable {
                operation: "get",
                key: key.to_owned(),
                message: "away".to_owned(),
                source: "no route".into(),
            });
        }
        self.inner.get_part(key, range, etag).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, StoreError> {
        self.inner.head(key).await
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<ETag, StoreError> {
        self.inner.put(key, bytes).await
    }
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        self.inner.put_if_absent(key, bytes).await
    }
    async fn put_if_match(&self, key: &str, bytes: Bytes, etag: &ETag) -> Result<PutOutcome, StoreError> {
        self.inner.put_if_match(key, bytes, etag).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.inner.list(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
}

/// A bus of one process, which several daemons in it may share.
pub(crate) fn memory_bus() -> Arc<dyn Bus> {
    weft_bus::connect(NatsSettings::default(), &prometheus::Registry::new()).unwrap()
}

/// Settings for tests: no grace, no patience, small budgets given by the test.
pub(crate) fn settings(dir: &Path, disk_bytes_max: u64) -> Settings {
    Settings { dir: dir.to_owned(), disk_bytes_max, grace_after_restart_ms: 0, room_wait_ms: 0, ..Settings::default() }
}

/// A running daemon.
pub(crate) struct Daemon {
    channel: Channel,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
    pub(crate) metrics: prometheus::Registry,
}

impl Daemon {
    pub(crate) async fn start(settings: Settings, remote: &Remote) -> Self {
        let (listener, channel) = Listener::memory();
        Self::start_on(listener, channel, settings, remote)
    }

    /// On a port of its own, where others find it over the bus.
    pub(crate) async fn start_on_bus(settings: Settings, remote: &Remote, bus: Arc<dyn Bus>) -> Self {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let channel = weft_service_kit::transport::connect(&listener.address().parse().unwrap());
        Self::launch(listener, channel, settings, remote, Some(bus))
    }

    pub(crate) fn start_on(listener: Listener, channel: Channel, settings: Settings, remote: &Remote) -> Self {
        Self::launch(listener, channel, settings, remote, None)
    }

    fn launch(
        listener: Listener,
        channel: Channel,
        settings: Settings,
        remote: &Remote,
        bus: Option<Arc<dyn Bus>>,
    ) -> Self {
        let metrics = prometheus::Registry::new();
        let mut app = App::build(settings, remote.store.clone(), &metrics).unwrap();
        assert!(app.readiness().is_ready());
        if let Some(bus) = bus {
            let peers = Peers::new(Service::CacheDaemon, TlsSettings::default(), &prometheus::Registry::new()).unwrap();
            app = app.with_bus(bus).with_neighbours(peers);
        }
        let shutdown = Shutdown::new();
        let task = tokio::spawn(app.run(listener, shutdown.clone()));
        Self { channel, shutdown, task, metrics }
    }

    /// Ends the daemon as SIGTERM does, and waits until it has given its folders back.
    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        drop(self.channel);
        self.task.await.unwrap().unwrap();
    }

    pub(crate) fn client(&self) -> CacheDaemonClient<Channel> {
        CacheDaemonClient::new(self.channel.clone())
    }

    /// A connected holder.
    pub(crate) async fn holder(&self, name: &str) -> Holder {
        Holder::connect(self.client(), name).await
    }

    pub(crate) async fn list(&self) -> ListResidencyResponse {
        self.client().list_residency(ListResidencyRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn prefetch(&self, digests: &[Digest]) -> PrefetchResponse {
        let digests = digests.iter().map(|digest| digest.to_vec().into()).collect();
        self.client().prefetch(PrefetchRequest { digests }).await.unwrap().into_inner()
    }

    /// Waits until the listing is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&ListResidencyResponse) -> bool) {
        let seen = async {
            while !wanted(&self.list().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, seen).await.is_ok(), "never: {what}");
    }

    /// How many blobs neighbours are known to hold together.
    pub(crate) fn neighbour_blobs(&self) -> usize {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == "cache_daemon_neighbour_blobs");
        family.map_or(0, |family| family.get_metric()[0].get_gauge().get_value() as usize)
    }

    /// The value of a counter with exactly these label values, 0 if it was never counted.
    pub(crate) fn count(&self, name: &str, labels: &[&str]) -> f64 {
        let families = self.metrics.gather();
        let Some(family) = families.iter().find(|family| family.name() == name) else { return 0.0 };
        let labelled = |metric: &&prometheus::proto::Metric| {
            let values: Vec<_> = metric.get_label().iter().map(|label| label.value()).collect();
            values.len() == labels.len() && labels.iter().all(|label| values.contains(label))
        };
        family.get_metric().iter().find(labelled).map_or(0.0, |metric| metric.get_counter().get_value())
    }

    /// The value of a counter or gauge with this label, 0 if it was never set.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.metrics.gather();
        let Some(family) = families.iter().find(|family| family.name() == name) else { return 0.0 };
        let labelled = family.get_metric().iter().find(|m| m.get_label().iter().any(|l| l.value() == label));
        labelled.map_or(0.0, |metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
    }
}

/// Leases of all files together.
pub(crate) fn leases(listing: &ListResidencyResponse) -> u32 {
    listing.adapters.iter().map(|row| row.leases).sum()
}

/// One lease stream.
pub(crate) struct Holder {
    asks: mpsc::Sender<LeaseRequest>,
    answers: Streaming<LeaseResponse>,
    next_id: u64,
}

impl Holder {
    /// A stream without its hello.
    pub(crate) async fn open(mut client: CacheDaemonClient<Channel>) -> Result<Self, Status> {
        let (asks, outbound) = mpsc::channel(8192);
        let answers = client.lease(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Self { asks, answers, next_id: 1 })
    }

    pub(crate) async fn connect(client: CacheDaemonClient<Channel>, name: &str) -> Self {
        let holder = Self::open(client).await.unwrap();
        holder.ask(Asks::Hello(Hello { holder: name.to_owned() })).await;
        holder
    }

    pub(crate) async fn ask(&self, request: Asks) {
        self.asks.send(LeaseRequest { request: Some(request) }).await.unwrap();
    }

    pub(crate) async fn acquire(&mut self, digest: &Digest) -> u64 {
        self.acquire_as(digest, false).await
    }

    pub(crate) async fn acquire_as(&mut self, digest: &Digest, reassert: bool) -> u64 {
        let lease_id = self.next_id;
        self.next_id += 1;
        self.ask(Asks::Acquire(Acquire { lease_id, digest: digest.to_vec().into(), reassert })).await;
        lease_id
    }

    pub(crate) async fn release(&self, lease_id: u64) {
        self.ask(Asks::Release(Release { lease_id })).await;
    }

    /// The next answer, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Answer>, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time")?;
        Ok(answer.map(|answer| answer.response.expect("an answer says something")))
    }

    pub(crate) async fn granted(&mut self) -> Granted {
        match self.next().await {
            Ok(Some(Answer::Granted(granted))) => granted,
            other => panic!("not granted: {other:?}"),
        }
    }

    pub(crate) async fn refused(&mut self) -> Refused {
        match self.next().await {
            Ok(Some(Answer::Refused(refused))) => refused,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Acquires and waits for the grant.
    pub(crate) async fn lease(&mut self, digest: &Digest) -> Granted {
        let id = self.acquire(digest).await;
        let granted = self.granted().await;
        assert_eq!((granted.lease_id, &granted.digest[..]), (id, &digest.as_bytes()[..]));
        granted
    }

    /// Acquires and waits for the refusal.
    pub(crate) async fn refusal(&mut self, digest: &Digest) -> Refused {
        let id = self.acquire(digest).await;
        let refused = self.refused().await;
        assert_eq!((refused.lease_id, &refused.digest[..]), (id, &digest.as_bytes()[..]));
        refused
    }

    /// Acquires, checks the bytes and releases.
    pub(crate) async fn use_once(&mut self, digest: &Digest) -> Granted {
        let granted = self.lease(digest).await;
        assert_eq!(Digest::of(&std::fs::read(&granted.path).unwrap()), *digest);
        self.release(granted.lease_id).await;
        granted
    }

    /// Ends the stream from this side, after all that was sent, and waits for the other side's end.
    pub(crate) async fn close(mut self) {
        drop(self.asks);
        while let Ok(Some(_)) = self.answers.message().await {}
    }
}

/// How the stream ended, as a fault.
pub(crate) fn fault(status: Status) -> Fault {
    Fault::from(status)
}

/// Every file under a folder.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Where the daemon keeps this digest.
pub(crate) fn path_in(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

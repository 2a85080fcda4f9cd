//! A cache daemon over a temporary folder: the real protocol, and a test's hand on what it grants and when.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::cache::v1 as pb;
use weft_proto::cache::v1::cache_daemon_server::{CacheDaemon, CacheDaemonServer};
use weft_service_kit::transport::{Listener, server};
use weft_types::Digest;

/// Cheap to clone; all clones are one shelf.
#[derive(Clone)]
pub(crate) struct Shelf {
    inner: Arc<Inner>,
    channel: Channel,
}

struct Inner {
    folder: tempfile::TempDir,
    state: Mutex<State>,
    /// False: grants wait.
    open: watch::Sender<bool>,
    /// Grows when all lease streams are to be cut.
    cut: watch::Sender<u64>,
    leases: watch::Sender<usize>,
    /// Digests that prefetches named.
    hints: watch::Sender<HashSet<Digest>>,
}

#[derive(Default)]
struct State {
    files: HashMap<Digest, PathBuf>,
    asked: HashMap<Digest, usize>,
    written: usize,
    hellos: Vec<String>,
    /// Their grants wait.
    held_back: HashSet<Digest>,
}

impl Shelf {
    pub(crate) async fn new() -> Self {
        let inner = Arc::new(Inner {
            folder: tempfile::tempdir().unwrap(),
            state: Mutex::default(),
            open: watch::Sender::new(true),
            cut: watch::Sender::new(0),
            leases: watch::Sender::new(0),
            hints: watch::Sender::default(),
        });
        let (listener, channel) = Listener::memory();
        let service = CacheDaemonServer::from_arc(Arc::new(Daemon(inner.clone())));
        tokio::spawn(server().add_service(service).serve_with_incoming(listener.incoming()));
        Self { inner, channel }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Puts a blob on the shelf, under its own digest.
    pub(crate) fn put(&self, blob: &[u8]) -> Digest {
        let digest = Digest::of(blob);
        self.put_as(digest, blob);
        digest
    }

    /// Puts bytes behind a name, right or wrong.
    pub(crate) fn put_as(&self, digest: Digest, bytes: &[u8]) {
        let mut state = self.inner.state.lock().unwrap();
        state.written += 1;
        let path = self.inner.folder.path().join(format!("{}-{}", state.written, digest.hex()));
        std::fs::write(&path, bytes).unwrap();
        state.files.insert(digest, path);
    }

    /// Forgets the digest; the file stays for those who map it.
    pub(crate) fn take_away(&self, digest: &Digest) {
        self.inner.state.lock().unwrap().files.remove(digest);
    }

    /// Grants wait from now on.
    pub(crate) fn hold(&self) {
        self.inner.open.send_replace(false);
    }

    /// Grants of this one wait from now on.
    pub(crate) fn hold_back(&self, digest: Digest) {
        self.inner.state.lock().unwrap().held_back.insert(digest);
    }

    pub(crate) fn let_go(&self) {
        self.inner.state.lock().unwrap().held_back.clear();
        self.inner.open.send_replace(true);
    }

    /// Ends all lease streams.
    pub(crate) fn cut(&self) {
        self.inner.cut.send_modify(|count| *count += 1);
    }

    /// How often the digest was asked for.
    pub(crate) fn asked(&self, digest: &Digest) -> usize {
        self.inner.state.lock().unwrap().asked.get(digest).copied().unwrap_or(0)
    }

    /// Waits until a prefetch has named all of these, and says what else was named.
    pub(crate) async fn hinted(&self, digests: &[Digest]) -> HashSet<Digest> {
        let mut hints = self.inner.hints.subscribe();
        hints.wait_for(|hints| digests.iter().all(|digest| hints.contains(digest))).await.unwrap().clone()
    }

    pub(crate) fn hellos(&self) -> Vec<String> {
        self.inner.state.lock().unwrap().hellos.clone()
    }

    /// Waits until so many leases are held.
    pub(crate) async fn held(&self, count: usize) {
        self.inner.leases.subscribe().wait_for(|held| *held == count).await.unwrap();
    }
}

struct Daemon(Arc<Inner>);

#[tonic::async_trait]
impl CacheDaemon for Daemon {
    type LeaseStream = ReceiverStream<Result<pb::LeaseResponse, Status>>;

    async fn lease(
        &self,
        request: Request<Streaming<pb::LeaseRequest>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        let (answers, outbox) = mpsc::channel(64);
        let (inner, mut requests) = (self.0.clone(), request.into_inner());
        let mut cut = inner.cut.subscribe();
        cut.mark_unchanged();
        tokio::spawn(async move {
            let mut held = 0;
            loop {
                let message = tokio::select! {
                    message = requests.message() => message,
                    _ = cut.changed() => {
                        let _ = answers.send(Err(Status::unavailable("cut"))).await;
                        break;
                    }
                };
                let Ok(Some(pb::LeaseRequest { request: Some(request) })) = message else { break };
                match request {
                    pb::lease_request::Request::Hello(hello) => inner.state.lock().unwrap().hellos.push(hello.holder),
                    pb::lease_request::Request::Acquire(acquire) => {
                        held += 1;
                        inner.leases.send_modify(|leases| *leases += 1);
                        tokio::spawn(grant(inner.clone(), acquire, answers.clone()));
                    }
                    pb::lease_request::Request::Release(_) => {
                        held -= 1;
                        inner.leases.send_modify(|leases| *leases -= 1);
                    }
                }
            }
            inner.leases.send_modify(|leases| *leases -= held);
        });
        Ok(Response::new(ReceiverStream::new(outbox)))
    }

    async fn prefetch(&self, request: Request<pb::PrefetchRequest>) -> Result<Response<pb::PrefetchResponse>, Status> {
        let digests = request.into_inner().digests;
        let digests = digests.iter().map(|raw| Digest::try_from(&raw[..]).unwrap());
        self.0.hints.send_modify(|hints| hints.extend(digests));
        Ok(Response::new(pb::PrefetchResponse::default()))
    }

    type ReadBlobStream = ReceiverStream<Result<pb::BlobPiece, Status>>;

    async fn read_blob(&self, _: Request<pb::ReadBlobRequest>) -> Result<Response<Self::ReadBlobStream>, Status> {
        Err(Status::not_found("a worker never asks for this"))
    }

    async fn list_residency(
        &self,
        _: Request<pb::ListResidencyRequest>,
    ) -> Result<Response<pb::ListResidencyResponse>, Status> {
        Ok(Response::new(pb::ListResidencyResponse::default()))
    }
}

async fn grant(inner: Arc<Inner>, acquire: pb::Acquire, answers: mpsc::Sender<Result<pb::LeaseResponse, Status>>) {
    let digest = Digest::try_from(&acquire.digest[..]).unwrap();
    *inner.state.lock().unwrap().asked.entry(digest).or_default() += 1;
    let held_back = || inner.state.lock().unwrap().held_back.contains(&digest);
    inner.open.subscribe().wait_for(|open| *open && !held_back()).await.unwrap();
    let path = inner.state.lock().unwrap().files.get(&digest).cloned();
    let response = match path {
        Some(path) => pb::lease_response::Response::Granted(pb::Granted {
            lease_id: acquire.lease_id,
            digest: acquire.digest,
            bytes: std::fs::metadata(&path).unwrap().len(),
            path: path.to_str().unwrap().into(),
            tier: pb::Tier::Disk as i32,
            wait_us: 0,
        }),
        None => {
            // A refusal is no lease.
            inner.leases.send_modify(|leases| *leases -= 1);
            pb::lease_response::Response::Refused(pb::Refused {
                lease_id: acquire.lease_id,
                digest: acquire.digest,
                kind: "not_found".into(),
                message: "no such blob".into(),
            })
        }
    };
    let _ = answers.send(Ok(pb::LeaseResponse { response: Some(response) })).await;
}

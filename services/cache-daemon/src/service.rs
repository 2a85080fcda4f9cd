//! The gRPC face: the stream of a holder, prefetch and the listing.

use crate::books::Row;
use crate::cache::{Cache, Lease, Origin};
use crate::prefetch::{Asked, Queue};
use crate::serve::{Pieces, Serving};
use crate::tell::Told;
use crate::{Error, TierKind};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use weft_fault::{Fault, Kind};
use weft_proto::cache::v1 as proto;
use weft_proto::cache::v1::cache_daemon_server::CacheDaemon;
use weft_proto::cache::v1::lease_request::Request as Asks;
use weft_proto::cache::v1::lease_response::Response as Answer;
use weft_service_kit::shutdown::Shutdown;
use weft_types::Digest;

/// Answers on their way to one holder; a holder that does not read them is not listened to either.
const ANSWERS_MAX: usize = 64;
/// Digests in one prefetch call.
const PREFETCH_DIGESTS_MAX: usize = 1024;
/// A stream that does not say who it is for so long is ended.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a holder's name.
const HOLDER_BYTES_MAX: usize = 256;
/// A hint for refusals at a limit.
const RETRY_AFTER_MS: u64 = 500;

/// The daemon behind `weft.cache.v1`.
#[derive(Clone)]
pub struct CacheService {
    cache: Cache,
    prefetches: Queue,
    streams: Arc<Semaphore>,
    /// Streams that run; waited for at shutdown.
    running: TaskTracker,
    stopping: Shutdown,
    told: Told,
    serving: Serving,
}

impl CacheService {
    pub(crate) fn new(cache: Cache, prefetches: Queue, running: TaskTracker, stopping: Shutdown, told: Told) -> Self {
        let streams = Arc::new(Semaphore::new(cache.0.settings.streams_max));
        let serving = Serving::new(cache.clone(), running.clone(), stopping.clone());
        Self { cache, prefetches, streams, running, stopping, told, serving }
    }
}

#[tonic::async_trait]
impl CacheDaemon for CacheService {
    type LeaseStream = ReceiverStream<Result<proto::LeaseResponse, Status>>;

    async fn lease(
        &self,
        request: Request<Streaming<proto::LeaseRequest>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            let limit = self.cache.0.settings.streams_max;
            return Err(overloaded(format!("{limit} holders are connected (setting streams_max)")).into());
        };
        let (answers, outbound) = mpsc::channel(ANSWERS_MAX);
        let stream = HolderStream {
            cache: self.cache.clone(),
            stopping: self.stopping.clone(),
            answers,
            leases: HashMap::new(),
            pending: HashMap::new(),
            work: JoinSet::new(),
            lease_of_task: HashMap::new(),
        };
        let streams = self.cache.0.metrics.streams.clone();
        self.running.spawn(async move {
            streams.inc();
            stream.run(request.into_inner()).await;
            streams.dec();
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn prefetch(
        &self,
        request: Request<proto::PrefetchRequest>,
    ) -> Result<Response<proto::PrefetchResponse>, Status> {
        let asked = request.into_inner().digests;
        if asked.len() > PREFETCH_DIGESTS_MAX {
            let message = format!("digests has {} entries, at most {PREFETCH_DIGESTS_MAX} are allowed", asked.len());
            return Err(Fault::invalid("digests", message).into());
        }
        let digests: Result<Vec<Digest>, _> = asked.iter().map(|raw| Digest::try_from(&raw[..])).collect();
        let digests = digests.map_err(|error| Fault::invalid("digests", error.to_string()))?;
        let mut answer = proto::PrefetchResponse::default();
        for digest in digests {
            match self.prefetches.ask(digest) {
                Asked::Started => answer.started += 1,
                Asked::Present => answer.present += 1,
                Asked::Refused => {}
            }
        }
        Ok(Response::new(answer))
    }

    type ReadBlobStream = Pieces;

    async fn read_blob(&self, request: Request<proto::ReadBlobRequest>) -> Result<Response<Pieces>, Status> {
        let proto::ReadBlobRequest { digest, offset } = request.into_inner();
        let digest = Digest::try_from(&digest[..]).map_err(|error| Fault::invalid("digest", error.to_string()))?;
        Ok(Response::new(self.serving.read(digest, offset)?))
    }

    async fn list_residency(
        &self,
        _: Request<proto::ListResidencyRequest>,
    ) -> Result<Response<proto::ListResidencyResponse>, Status> {
        // Before the rows, which are at least as new then.
        let generation = self.told.generation();
        let adapters = self.cache.rows().into_iter().map(|row| listed(&row)).collect();
        let (disk_bytes_used, disk_bytes_max) = self.cache.usage(TierKind::Disk);
        let (memory_bytes_used, memory_bytes_max) = self.cache.usage(TierKind::Memory);
        let listing = proto::ListResidencyResponse {
            adapters,
            disk_bytes_used,
            disk_bytes_max,
            memory_bytes_used,
            memory_bytes_max,
            generation,
            incarnation: self.told.incarnation.to_string(),
        };
        Ok(Response::new(listing))
    }
}

fn listed(row: &Row) -> proto::CachedAdapter {
    proto::CachedAdapter {
        digest: row.digest.to_vec().into(),
        bytes: row.bytes,
        tier: wire_tier(row.tier.into()).into(),
        leases: row.leases,
        pinned: row.pinned,
    }
}

fn wire_tier(origin: Origin) -> proto::Tier {
    match origin {
        Origin::Memory => proto::Tier::Memory,
        Origin::Disk => proto::Tier::Disk,
        Origin::Neighbour => proto::Tier::Neighbour,
        Origin::Remote => proto::Tier::Remote,
    }
}

fn overloaded(message: String) -> Fault {
    Fault::new(Kind::Overloaded, message).with_retry_after_ms(RETRY_AFTER_MS)
}

/// The other side is gone, or we are: the stream ends, and its leases with it.
struct Gone;

/// An acquire that is not answered yet.
struct Pending {
    abort: AbortHandle,
    began: Instant,
    digest: Digest,
    reassert: bool,
}

/// One holder, from hello to the end of its stream. Dropping it ends its leases and gives up its acquires.
struct HolderStream {
    cache: Cache,
    stopping: Shutdown,
    answers: mpsc::Sender<Result<proto::LeaseResponse, Status>>,
    leases: HashMap<u64, Lease>,
    pending: HashMap<u64, Pending>,
    work: JoinSet<Result<Lease, Arc<Error>>>,
    /// Which acquire a task of `work` is for. A task that is not here was released before its answer.
    lease_of_task: HashMap<tokio::task::Id, u64>,
}

impl HolderStream {
    async fn run(mut self, mut asks: Streaming<proto::LeaseRequest>) {
        let Ok(holder) = self.hello(&mut asks).await else { return };
        tracing::info!(holder, "a holder connected");
        let _ = self.serve(&mut asks).await;
        tracing::info!(holder, leases = self.leases.len(), pending = self.pending.len(), "a holder left");
    }

    async fn hello(&self, asks: &mut Streaming<proto::LeaseRequest>) -> Result<String, Gone> {
        let answers = self.answers.clone();
        let first = tokio::select! {
            () = answers.closed() => return Err(Gone),
            () = self.stopping.wait() => return Err(self.end(stopping()).await),
            first = tokio::time::timeout(HELLO_TIMEOUT, asks.message()) => first,
        };
        let message = match first {
            Ok(Ok(Some(proto::LeaseRequest { request: Some(Asks::Hello(hello)) }))) => {
                if hello.holder.len() <= HOLDER_BYTES_MAX {
                    return Ok(hello.holder);
                }
                format!("holder has {} bytes, at most {HOLDER_BYTES_MAX} are allowed", hello.holder.len())
            }
            Ok(Ok(Some(_))) => "the first message must be hello".to_owned(),
            Ok(Ok(None) | Err(_)) => return Err(Gone),
            Err(_) => format!("no hello came within {} s", HELLO_TIMEOUT.as_secs()),
        };
        Err(self.end(Fault::invalid("hello", message)).await)
    }

    async fn serve(&mut self, asks: &mut Streaming<proto::LeaseRequest>) -> Result<(), Gone> {
        let answers = self.answers.clone();
        let stopped = self.stopping.clone();
        loop {
            tokio::select! {
                () = answers.closed() => return Err(Gone),
                () = stopped.wait() => return Err(self.end(stopping()).await),
                asked = asks.message() => match asked {
                    Ok(Some(proto::LeaseRequest { request: Some(Asks::Acquire(acquire)) })) => {
                        self.acquire(acquire).await?;
                    }
                    Ok(Some(proto::LeaseRequest { request: Some(Asks::Release(release)) })) => {
                        self.release(release.lease_id);
                    }
                    Ok(Some(proto::LeaseRequest { request: Some(Asks::Hello(_)) })) => {
                        return Err(self.end(Fault::invalid("hello", "hello may only come first")).await);
                    }
                    Ok(Some(proto::LeaseRequest { request: None })) => {
                        return Err(self.end(Fault::invalid("request", "the request is empty or of a later version")).await);
                    }
                    Ok(None) | Err(_) => return Err(Gone),
                },
                Some(done) = self.work.join_next_with_id() => self.answer(done).await?,
            }
        }
    }

    async fn acquire(&mut self, asked: proto::Acquire) -> Result<(), Gone> {
        let id = asked.lease_id;
        let digest = match self.admit(&asked) {
            Ok(digest) => digest,
            Err(fault) => return self.refuse(id, asked.digest, &fault).await,
        };
        let cache = self.cache.clone();
        let abort = self.work.spawn(async move { cache.acquire(digest).await });
        self.lease_of_task.insert(abort.id(), id);
        let pending = Pending { abort, began: Instant::now(), digest, reassert: asked.reassert };
        self.pending.insert(id, pending);
        Ok(())
    }

    fn admit(&self, asked: &proto::Acquire) -> Result<Digest, Fault> {
        let settings = &self.cache.0.settings;
        let digest =
            Digest::try_from(&asked.digest[..]).map_err(|error| Fault::invalid("digest", error.to_string()))?;
        let id = asked.lease_id;
        if self.leases.contains_key(&id) || self.pending.contains_key(&id) {
            return Err(Fault::invalid("lease_id", format!("lease_id {id} is in use on this stream")));
        }
        let leases_max = settings.leases_per_stream_max;
        if self.leases.len() + self.pending.len() >= leases_max {
            let message = format!("this stream has {leases_max} leases (setting leases_per_stream_max)");
            return Err(overloaded(message));
        }
        let acquires_max = settings.acquires_per_stream_max;
        let acquires = self.pending.values().filter(|pending| !pending.reassert).count();
        if !asked.reassert && acquires >= acquires_max {
            let message = format!("{acquires_max} acquires are not answered yet (setting acquires_per_stream_max)");
            return Err(overloaded(message));
        }
        Ok(digest)
    }

    fn release(&mut self, id: u64) {
        if let Some(pending) = self.pending.remove(&id) {
            self.lease_of_task.remove(&pending.abort.id());
            pending.abort.abort();
        } else if self.leases.remove(&id).is_none() {
            tracing::debug!(lease_id = id, "released an unknown lease");
        }
    }

    async fn answer(
        &mut self,
        done: Result<(tokio::task::Id, Result<Lease, Arc<Error>>), tokio::task::JoinError>,
    ) -> Result<(), Gone> {
        let task = done.as_ref().map_or_else(tokio::task::JoinError::id, |(task, _)| *task);
        let Some(id) = self.lease_of_task.remove(&task) else { return Ok(()) };
        let Some(Pending { began, digest, reassert, .. }) = self.pending.remove(&id) else { return Ok(()) };
        let raw = bytes::Bytes::from(digest.to_vec());
        let lease = match done {
            Ok((_, Ok(lease))) => lease,
            Ok((_, Err(error))) => return self.refuse(id, raw, &Fault::from(&*error)).await,
            Err(panicked) => {
                tracing::error!(%digest, error = %panicked, "an acquire failed");
                return self.refuse(id, raw, &Fault::internal("the acquire failed")).await;
            }
        };
        let Some(path) = lease.path().to_str().map(str::to_owned) else {
            let message = format!("the path {} is not UTF-8", lease.path().display());
            return self.refuse(id, raw, &Fault::internal(message)).await;
        };
        let wait = began.elapsed();
        self.cache.0.metrics.granted(lease.origin.as_str(), lease.bytes(), wait);
        tracing::debug!(%digest, lease_id = id, reassert, origin = lease.origin.as_str(), "granted");
        let granted = proto::Granted {
            lease_id: id,
            digest: raw,
            path,
            bytes: lease.bytes(),
            tier: wire_tier(lease.origin).into(),
            wait_us: u64::try_from(wait.as_micros()).unwrap_or(u64::MAX),
        };
        self.leases.insert(id, lease);
        self.send(Ok(proto::LeaseResponse { response: Some(Answer::Granted(granted)) })).await
    }

    async fn refuse(&self, lease_id: u64, digest: bytes::Bytes, fault: &Fault) -> Result<(), Gone> {
        self.cache.0.metrics.refused(fault.kind);
        tracing::info!(lease_id, kind = %fault.kind, reason = %fault.message, "refused");
        let kind = fault.kind.as_str().to_owned();
        let refused = proto::Refused { lease_id, digest, kind, message: fault.message.clone() };
        self.send(Ok(proto::LeaseResponse { response: Some(Answer::Refused(refused)) })).await
    }

    /// Ends the stream with a reason, if the holder still listens.
    async fn end(&self, fault: Fault) -> Gone {
        // Not `send`: that gives up when we are stopping, which is when this is needed. A full queue means that nobody
        // listens.
        let _ = self.answers.try_send(Err(fault.into()));
        Gone
    }

    async fn send(&self, answer: Result<proto::LeaseResponse, Status>) -> Result<(), Gone> {
        tokio::select! {
            sent = self.answers.send(answer) => sent.map_err(|_| Gone),
            () = self.stopping.wait() => Err(self.end(stopping()).await),
        }
    }
}

fn stopping() -> Fault {
    Fault::unavailable("the cache daemon is stopping").with_retry_after_ms(RETRY_AFTER_MS)
}

//! Leases from the cache daemon, over one stream for the whole worker.
//!
//! When the stream breaks, the worker connects again, says which leases it still holds and repeats what it still waits
//! for; callers notice only the delay.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use weft_fault::Kind;
use weft_proto::cache::v1 as pb;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::transport::Backoff;
use weft_types::Digest;

use crate::Error;

/// Name of the readiness condition.
pub(crate) const CONDITION: &str = "cache-daemon";

/// A daemon takes a stream at once, whatever it has to do for it. This is no deadline of the call (`grpc-timeout`), because that would be one of
/// the whole stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for leases. Cheap to clone; when all clones and leases are gone, the stream is closed.
#[derive(Clone)]
pub(crate) struct Leases(mpsc::UnboundedSender<Ask>);

/// A right to a file, until it is dropped.
pub(crate) struct Lease {
    id: u64,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Where the bytes were when they were asked for.
    pub(crate) tier: pb::Tier,
    asks: mpsc::UnboundedSender<Ask>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // An error means that the worker stops: then the stream's end releases everything.
        let _ = self.asks.send(Ask::Release(self.id));
    }
}

/// Bounded by `adapter_leases_max`: each load has one lease.
enum Ask {
    Acquire { digest: Digest, reply: oneshot::Sender<Result<Lease, Error>> },
    Release(u64),
}

impl Leases {
    /// Starts the task that keeps the stream to the daemon behind `channel`.
    pub(crate) fn connect(channel: Channel, holder: String, readiness: Readiness) -> Self {
        readiness.wait_for(CONDITION, "connecting");
        let (asks, inbox) = mpsc::unbounded_channel();
        let keeper = Keeper {
            client: CacheDaemonClient::new(channel),
            holder,
            inbox,
            asks: asks.downgrade(),
            waiting: HashMap::new(),
            held: HashMap::new(),
            next_id: 1,
            readiness,
        };
        tokio::spawn(keeper.run());
        Self(asks)
    }

    /// Waits until the daemon has the bytes. There is no time limit here.
    ///
    /// # Errors
    /// [`Error::Lease`] if the daemon refuses. # Cancel safety: a lease granted too late is given back.
    pub(crate) async fn acquire(&self, digest: Digest) -> Result<Lease, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Lease { digest, kind: Kind::Unavailable, message: "worker is shutting down".to_owned() };
        self.0.send(Ask::Acquire { digest, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Waiting {
    digest: Digest,
    reply: oneshot::Sender<Result<Lease, Error>>,
}

struct Keeper {
    client: CacheDaemonClient<Channel>,
    holder: String,
    inbox: mpsc::UnboundedReceiver<Ask>,
    /// For the leases it hands out; weak, so that the keeper does not keep itself alive.
    asks: mpsc::WeakUnboundedSender<Ask>,
    waiting: HashMap<u64, Waiting>,
    held: HashMap<u64, Digest>,
    next_id: u64,
    readiness: Readiness,
}

/// Why a session ended.
enum End {
    /// Nobody asks any more.
    Closed,
    Broken(String),
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.session(&mut backoff).await {
                End::Closed => return,
                End::Broken(reason) => {
                    tracing::warn!(reason, "lost the cache daemon");
                    self.readiness.wait_for(CONDITION, reason);
                    backoff.wait().await;
                    // Callers that gave up meanwhile are not asked for again.
                    self.waiting.retain(|_, waiting| !waiting.reply.is_closed());
                }
            }
        }
    }

    async fn session(&mut self, backoff: &mut Backoff) -> End {
        let (outbox, requests) = mpsc::unbounded_channel();
        let hello = pb::lease_request::Request::Hello(pb::Hello { holder: self.holder.clone() });
        send(&outbox, hello);
        for (id, digest) in &self.held {
            send(&outbox, acquire(*id, *digest, true));
        }
        for (id, waiting) in &self.waiting {
            send(&outbox, acquire(*id, waiting.digest, false));
        }
        let opening = self.client.lease(UnboundedReceiverStream::new(requests));
        let mut responses = match timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok(responses)) => responses.into_inner(),
            Ok(Err(status)) => return End::Broken(status.message().to_owned()),
            Err(_) => {
                let seconds = OPEN_TIMEOUT.as_secs();
                return End::Broken(format!("the cache daemon did not take the lease stream within {seconds} s"));
            }
        };
        self.readiness.met(CONDITION);
        loop {
            tokio::select! {
                ask = self.inbox.recv() => match ask {
                    None => return End::Closed,
                    Some(ask) => self.ask(ask, &outbox),
                },
                response = responses.message() => match response {
                    Ok(Some(pb::LeaseResponse { response: Some(response) })) => {
                        backoff.reset();
                        self.answer(response, &outbox);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return End::Broken("the cache daemon closed the lease stream".to_owned()),
                    Err(status) => return End::Broken(status.message().to_owned()),
                },
            }
        }
    }

    fn ask(&mut self, ask: Ask, outbox: &Outbox) {
        match ask {
            Ask::Acquire { digest, reply } => {
                let id = self.next_id;
                self.next_id += 1;
                self.waiting.insert(id, Waiting { digest, reply });
                send(outbox, acquire(id, digest, false));
            }
            Ask::Release(id) => {
                self.held.remove(&id);
                send(outbox, pb::lease_request::Request::Release(pb::Release { lease_id: id }));
            }
        }
    }

    fn answer(&mut self, response: pb::lease_response::Response, outbox: &Outbox) {
        match response {
            pb::lease_response::Response::Granted(granted) => self.granted(granted, outbox),
            pb::lease_response::Response::Refused(refused) => {
                if self.held.contains_key(&refused.lease_id) {
                    // The mapped bytes stay readable, and their hash decides whether they are used.
                    tracing::warn!(lease_id = refused.lease_id, message = refused.message, "lease was not renewed");
                }
                if let Some(waiting) = self.waiting.remove(&refused.lease_id) {
                    let kind = Kind::from_word(&refused.kind).unwrap_or(Kind::Internal);
                    let error = Error::Lease { digest: waiting.digest, kind, message: refused.message };
                    // Nobody waits for it any more: then there is nothing to do.
                    let _ = waiting.reply.send(Err(error));
                }
            }
        }
    }

    fn granted(&mut self, granted: pb::Granted, outbox: &Outbox) {
        let id = granted.lease_id;
        let Some(waiting) = self.waiting.remove(&id) else {
            if !self.held.contains_key(&id) {
                send(outbox, pb::lease_request::Request::Release(pb::Release { lease_id: id }));
            }
            return;
        };
        let Some(asks) = self.asks.upgrade() else { return };
        self.held.insert(id, waiting.digest);
        let tier = granted.tier();
        let lease = Lease { id, path: granted.path.into(), bytes: granted.bytes, tier, asks };
        // If nobody waits any more, the lease comes back in the error and its drop releases it.
        let _ = waiting.reply.send(Ok(lease));
    }
}

type Outbox = mpsc::UnboundedSender<pb::LeaseRequest>;

fn send(outbox: &Outbox, request: pb::lease_request::Request) {
    // An error means that the stream broke: the next session repeats what still counts.
    let _ = outbox.send(pb::LeaseRequest { request: Some(request) });
}

fn acquire(lease_id: u64, digest: Digest, reassert: bool) -> pb::lease_request::Request {
    pb::lease_request::Request::Acquire(pb::Acquire { lease_id, digest: digest.to_vec().into(), reassert })
}

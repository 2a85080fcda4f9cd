//! One worker: how it is reached, how many of our requests it has, and what is known of it.

use crate::workers::view::View;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Channel;
use weft_placement::{Breaker, BreakerSettings, Permit};
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::transport::MESSAGE_BYTES_MAX;
use weft_types::Digest;

/// What all workers of this mesh serve, as far as a request needs it.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) digest: Digest,
    pub(crate) description: Arc<pb::DescribeResponse>,
}

impl Base {
    pub(crate) fn served_name(&self) -> &str {
        &self.description.served_name
    }

    /// Short form for `system_fingerprint`.
    pub(crate) fn fingerprint(&self) -> String {
        format!("fp_{}", &self.digest.hex()[..12])
    }
}

/// Names a worker for as long as it is known; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WorkerId(pub(crate) u64);

/// One worker and what was last heard and seen of it.
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) address: String,
    /// Named by a setting: it stays known whatever happens.
    pub(crate) is_static: bool,
    /// The address in its heartbeats, if that is another one: placements name it by that.
    heard_at: Mutex<Option<String>>,
    client: WorkerClient<Channel>,
    in_flight: AtomicUsize,
    view: RwLock<View>,
    /// Left alone after failures.
    circuit: Mutex<Breaker>,
    since: Instant,
    /// Something happened that its watcher should know.
    pub(super) wake: Notify,
    gone: AtomicBool,
}

impl Worker {
    pub(super) fn new(id: WorkerId, address: String, channel: Channel, is_static: bool) -> Self {
        let client = WorkerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self {
            id,
            address,
            is_static,
            heard_at: Mutex::default(),
            client,
            in_flight: AtomicUsize::new(0),
            view: RwLock::default(),
            circuit: Mutex::default(),
            since: Instant::now(),
            wake: Notify::new(),
            gone: AtomicBool::new(false),
        }
    }

    /// What placements call it: the address in its heartbeats, before the first one that by which it is known here.
    pub(crate) fn placed_as(&self) -> String {
        let heard_at = self.heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        heard_at.clone().unwrap_or_else(|| self.address.clone())
    }

    /// Its heartbeats say this address. True if that changes what placements call it.
    pub(super) fn is_heard_at(&self, address: &str) -> bool {
        let mut heard_at = self.heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = heard_at.as_deref().unwrap_or(&self.address) != address;
        if is_news {
            *heard_at = Some(address.to_owned());
        }
        is_news
    }

    pub(crate) fn client(&self) -> WorkerClient<Channel> {
        self.client.clone()
    }

    /// As it calls itself, once it has said so.
    pub(crate) fn name(&self) -> Option<String> {
        self.read(|view| view.base.as_ref().map(|base| base.description.worker.clone()))
    }

    /// Requests of this gateway that it has now.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn write<T>(&self, write: impl FnOnce(&mut View) -> T) -> T {
        write(&mut self.view.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// It failed a request: nobody's first choice until a look at it succeeds, which is tried at once. True if nothing had failed since
    /// the last look.
    pub(crate) fn suspect(&self, problem: &str) -> bool {
        let is_news = self.write(|view| view.suspect(problem));
        self.wake.notify_one();
        is_news
    }

    /// It has begun to answer a request as it should.
    fn succeeded(&self, now: Instant) {
        self.circuit(now, |circuit, ms, settings| circuit.succeeded(ms, settings));
    }

    /// A request was lost at it.
    pub(crate) fn failed(&self, now: Instant) {
        self.circuit(now, |circuit, ms, settings| circuit.failed(ms, rand::random(), settings));
    }

    /// Whether it is left alone now.
    pub(crate) fn circuit_is_open(&self, now: Instant) -> bool {
        self.circuit(now, |circuit, ms, settings| circuit.is_open(ms, settings))
    }

    /// Takes the right to send one request: after failures one at a time.
    fn ask(&self, now: Instant) -> Permit {
        self.circuit(now, |circuit, ms, settings| circuit.ask(ms, settings))
    }

    fn circuit<T>(&self, now: Instant, with: impl FnOnce(&mut Breaker, u64, &BreakerSettings) -> T) -> T {
        let ms = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        with(&mut self.circuit.lock().unwrap_or_else(PoisonError::into_inner), ms, &BreakerSettings::default())
    }

    /// It is no longer of the pool; its watcher ends.
    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// One request at a worker, counted there while it lives. Who has it tells how it went.
pub(crate) struct InFlight {
    worker: Arc<Worker>,
    /// Its circuit waits to hear how this one goes.
    is_trial: bool,
}

impl InFlight {
    /// `None`: the worker is left alone now.
    pub(super) fn permitted(worker: &Arc<Worker>, now: Instant) -> Option<Self> {
        match worker.ask(now) {
            Permit::Yes => Some(Self::new(worker, false)),
            Permit::Trial => Some(Self::new(worker, true)),
            Permit::No { .. } => None,
        }
    }

    /// Although it may be left alone: there is nobody else.
    pub(super) fn unasked(worker: &Arc<Worker>) -> Self {
        Self::new(worker, false)
    }

    fn new(worker: &Arc<Worker>, is_trial: bool) -> Self {
        worker.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { worker: Arc::clone(worker), is_trial }
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// The worker answers.
    pub(crate) fn succeeded(&mut self) {
        self.is_trial = false;
        self.worker.succeeded(Instant::now());
    }

    /// The request was lost there.
    pub(crate) fn failed(&mut self) {
        self.is_trial = false;
        self.worker.failed(Instant::now());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.worker.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_trial {
            // A refusal, a client that hung up: it says nothing about the worker, and the next request may try.
            self.worker.circuit(Instant::now(), |circuit, _, _| circuit.forgo());
        }
    }
}

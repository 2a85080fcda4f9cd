//! Workers on ports that are heard of over a real NATS.

use super::worker::FakeWorker;
use prost::Message;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use weft_bus::{Bus, NatsSettings, State, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_service_kit::transport::Listener;

const INTERVAL: Duration = Duration::from_millis(100);

pub(crate) fn nats(url: &str) -> NatsSettings {
    NatsSettings { url: url.to_owned(), subject_prefix: "weft".to_owned(), ..Default::default() }
}

/// A connection of the test's own.
pub(crate) async fn bus(url: &str) -> Arc<dyn Bus> {
    let bus = weft_bus::connect(nats(url), &prometheus::Registry::new()).unwrap();
    bus.state().wait_for(|state| *state == State::Connected).await.unwrap();
    bus
}

/// A worker on a port, and its heartbeats.
pub(crate) struct Beating {
    pub(crate) worker: FakeWorker,
    pub(crate) address: String,
    bus: Arc<dyn Bus>,
    sequence: Arc<AtomicU64>,
    next: Arc<Mutex<mesh::WorkerHeartbeat>>,
    beats: tokio::task::JoinHandle<()>,
    /// Of its own, so that all its connections end with it.
    server: Mutex<Option<Runtime>>,
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Beating {
    pub(crate) async fn start(worker: FakeWorker, url: &str) -> Self {
        Self::start_every(INTERVAL, worker, url).await
    }

    pub(crate) async fn start_every(interval: Duration, worker: FakeWorker, url: &str) -> Self {
        let bus = weft_bus::connect(nats(url), &prometheus::Registry::new()).unwrap();
        let server = Runtime::new().unwrap();
        let bound = server.spawn(async { Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap() });
        let listener = bound.await.unwrap();
        let address = listener.address().to_owned();
        {
            let _within = server.enter();
            worker.serve(listener);
        }
        let description = worker.description();
        let next = Arc::new(Mutex::new(mesh::WorkerHeartbeat {
            worker: description.worker,
            address: address.clone(),
            incarnation: description.incarnation,
            interval_ms: interval.as_millis() as u32,
            base_digest: description.base_digest,
            residency: Some(mesh::ResidencyDelta::default()),
            ..Default::default()
        }));
        let sequence = Arc::new(AtomicU64::new(0));
        let beats = tokio::spawn({
            let (bus, next, sequence) = (Arc::clone(&bus), Arc::clone(&next), Arc::clone(&sequence));
            async move {
                loop {
                    beat(&*bus, &next, &sequence);
                    tokio::time::sleep(interval).await;
                }
            }
        });
        Self { worker, address, bus, sequence, next, beats, server: Mutex::new(Some(server)) }
    }

    /// Waits until what it says is heard.
    pub(crate) async fn connected(&self) {
        self.bus.state().wait_for(|state| *state == State::Connected).await.unwrap();
    }

    /// Changes what the next heartbeats say, and sends one at once.
    pub(crate) fn say(&self, change: impl FnOnce(&mut mesh::WorkerHeartbeat)) {
        change(&mut self.next.lock().unwrap());
        beat(&*self.bus, &self.next, &self.sequence);
    }

    /// Dies.
    pub(crate) fn stop(&self) {
        self.beats.abort();
        if let Some(server) = self.server.lock().unwrap().take() {
            server.shutdown_background();
        }
    }
}

fn beat(bus: &dyn Bus, next: &Mutex<mesh::WorkerHeartbeat>, sequence: &AtomicU64) {
    let mut message = next.lock().unwrap().clone();
    message.sequence = sequence.fetch_add(1, Ordering::SeqCst) + 1;
    // An error means that NATS is away, which some tests want.
    let _ = bus.publish(subjects::WORKER_HEARTBEAT, message.encode_to_vec().into());
}

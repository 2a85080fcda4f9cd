//! Hears workers on the bus: adds who is new, keeps the views, forgets who is gone.

use crate::metrics::Metrics;
use crate::workers::{Pool, Worker, canonical};
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use weft_bus::{Bus, Heard, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_types::Digest;

/// Opens a channel to an address that was heard of, connecting when first used; or says why not.
pub(crate) type Dial = Arc<dyn Fn(&str) -> Result<Channel, String> + Send + Sync>;

/// Heartbeats that wait to be read; with more, the oldest go, and the next ones bring it all again.
const QUEUE_MESSAGES_MAX: usize = 4096;
/// Names, addresses and incarnations have at most so many bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Addresses that are warned of; what comes beyond is only counted.
const WARNINGS_MAX: usize = 64;
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the bus for ever. Cancel safe.
///
/// What was missed needs no care of its own: a heartbeat says whether its residency follows what is known, and if not, its worker is
/// looked at.
pub(crate) async fn discover(pool: Arc<Pool>, bus: Arc<dyn Bus>, dial: Dial, workers_max: usize, metrics: Metrics) {
    let mut beats = bus.subscribe(subjects::WORKER_HEARTBEAT, QUEUE_MESSAGES_MAX);
    let mut pieces = bus.subscribe(subjects::WORKER_RESIDENCY, QUEUE_MESSAGES_MAX);
    let mut warnings = Warnings::default();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let refused = tokio::select! {
            heard = beats.next() => match heard {
                Heard::Message(message) => hear(&pool, &message, &dial, workers_max, &mut warnings).err(),
                Heard::Missed { .. } => None,
            },
            heard = pieces.next() => match heard {
                Heard::Message(message) => hear_residency(&pool, &message).err(),
                Heard::Missed { .. } => None,
            },
            _ = sweep.tick() => {
                forget(&pool, &metrics);
                None
            }
        };
        if let Some(problem) = refused {
            metrics.heartbeats_refused.inc();
            tracing::debug!(problem, "a heartbeat is left out");
        }
    }
}

/// Says once what is wrong with an address: heartbeats come every second.
#[derive(Default)]
struct Warnings(HashSet<String>);

impl Warnings {
    fn of(&mut self, worker: &str, problem: &str) {
        if self.0.len() < WARNINGS_MAX && self.0.insert(problem.to_owned()) {
            tracing::warn!(worker, problem, "a worker that was heard of is not called");
        }
    }
}

fn hear(pool: &Pool, message: &Bytes, dial: &Dial, workers_max: usize, warnings: &mut Warnings) -> Result<(), String> {
    let beat = mesh::WorkerHeartbeat::decode(message.clone()).map_err(|error| error.to_string())?;
    let base = Digest::try_from(beat.base_digest.as_ref()).map_err(|error| format!("base_digest: {error}"))?;
    for (field, text) in [("worker", &beat.worker), ("address", &beat.address), ("incarnation", &beat.incarnation)] {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(format!("{field} has {} bytes, allowed are 1 to {TEXT_BYTES_MAX}", text.len()));
        }
    }
    let worker = match find(pool, &beat.address, &beat.incarnation) {
        Some(worker) => worker,
        None if pool.workers().len() >= workers_max => {
            return Err(format!("workers_max = {workers_max} are known"));
        }
        None => {
            let channel = dial(&beat.address).inspect_err(|problem| warnings.of(&beat.worker, problem))?;
            tracing::info!(worker = beat.worker, address = beat.address, "heard of a worker");
            pool.add(&beat.address, channel, false)
        }
    };
    if worker.is_heard_at(&canonical(&beat.address)) {
        pool.renew();
    }
    pool.prefill.hear(beat.prefill_tokens_per_s);
    if worker.write(|view| view.hear(&beat, base, Instant::now())) {
        worker.wake.notify_one();
    }
    Ok(())
}

fn hear_residency(pool: &Pool, message: &Bytes) -> Result<(), String> {
    let piece = mesh::WorkerResidency::decode(message.clone()).map_err(|error| error.to_string())?;
    // Of one that was not heard of yet: its heartbeat will show the gap.
    let Some(worker) = find(pool, &piece.address, &piece.incarnation) else { return Ok(()) };
    let Some(delta) = &piece.residency else { return Ok(()) };
    if worker.write(|view| view.hear_residency(&piece.incarnation, delta)) {
        worker.wake.notify_one();
    }
    Ok(())
}

/// By its address, or, when a setting names it by another one, by its process.
fn find(pool: &Pool, address: &str, incarnation: &str) -> Option<Arc<Worker>> {
    let address = canonical(address);
    let workers = pool.workers();
    let found = workers.iter().find(|worker| worker.read(|view| view.incarnation == incarnation));
    found.or_else(|| workers.iter().find(|worker| worker.address == address)).cloned()
}

fn forget(pool: &Pool, metrics: &Metrics) {
    let now = Instant::now();
    let is_gone = |worker: &Worker| !worker.is_static && worker.read(|view| view.is_forgotten(now, &pool.pace));
    for worker in pool.workers().iter().filter(|worker| is_gone(worker)) {
        tracing::info!(worker = %worker.address, "a worker is gone");
    }
    pool.remove(is_gone);
    metrics.workers_ready.set(pool.ready() as i64);
}

//! Looks at workers over gRPC: one task each, as often as its view asks for.

use crate::metrics::Metrics;
use crate::workers::view::{LOOK_TIMEOUT, Look};
use crate::workers::{Base, Pool, Worker};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_proto::worker::v1 as pb;
use weft_service_kit::transport::{Backoff, within};
use weft_types::Digest;

/// Between two looks at one worker, whatever asks for them.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Watches every worker of the pool, also those that come later, for ever. Cancel safe: the watchers end with it.
pub(crate) async fn watch_all(pool: Arc<Pool>, metrics: Metrics) {
    let mut watched = HashSet::new();
    let mut watchers = JoinSet::new();
    loop {
        for worker in pool.workers().iter().filter(|worker| watched.insert(worker.id)) {
            let (pool, worker, metrics) = (Arc::clone(&pool), Arc::clone(worker), metrics.clone());
            watchers.spawn(async move {
                watch(&pool, &worker, &metrics).await;
                worker.id
            });
        }
        tokio::select! {
            () = pool.added.notified() => {}
            Some(ended) = watchers.join_next() => drop(ended.map(|id| watched.remove(&id))),
        }
    }
}

/// Looks at one worker until it is gone.
async fn watch(pool: &Pool, worker: &Worker, metrics: &Metrics) {
    let mut backoff = Backoff::default();
    let jittered = || pool.pace.relist.mul_f64(rand::random_range(0.75..1.25));
    let mut relist = jittered();
    while !worker.is_gone() {
        let now = Instant::now();
        let due = worker.read(|view| view.next_look(now, &pool.pace, relist));
        if due > now {
            // Whatever happens meanwhile, the view has it: a heartbeat puts the look off.
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = worker.wake.notified() => {}
            }
            continue;
        }
        relist = jittered();
        let pause = match look_in_time(worker).await {
            Ok(look) => {
                backoff.reset();
                take_in(pool, worker, look);
                PAUSE_MIN
            }
            Err(problem) => {
                if worker.read(|view| view.problem.as_deref() != Some(&problem)) {
                    tracing::warn!(worker = %worker.address, %problem, "worker does not answer");
                }
                worker.write(|view| view.suspect(&problem));
                backoff.next_delay()
            }
        };
        metrics.worker_looks.inc();
        metrics.workers_ready.set(pool.ready() as i64);
        pool.changed.notify_waiters();
        tokio::time::sleep(pause).await;
    }
}

fn take_in(pool: &Pool, worker: &Worker, look: Look) {
    if let Some(base) = &look.base {
        tracing::info!(worker = %worker.address, base = %base.digest, served_name = base.served_name(), "worker answers");
        // A process that has two addresses is one worker: the one that settings name, or that was known first.
        let incarnation = &base.description.incarnation;
        let is_same = |other: &Worker| !incarnation.is_empty() && other.read(|view| view.incarnation == *incarnation);
        let twins: Vec<_> =
            pool.workers().iter().filter(|other| is_same(other)).map(|other| (!other.is_static, other.id)).collect();
        let kept = twins.iter().copied().chain([(!worker.is_static, worker.id)]).min().map(|(_, id)| id);
        pool.remove(|other| {
            let is_twin = other.id == worker.id || is_same(other);
            is_twin && !other.is_static && Some(other.id) != kept
        });
    }
    pool.prefill.hear(look.load.prefill_tokens_per_s);
    worker.write(|view| view.see(look, Instant::now()));
}

async fn look_in_time(worker: &Worker) -> Result<Look, String> {
    match tokio::time::timeout(LOOK_TIMEOUT, look(worker)).await {
        Ok(look) => look,
        Err(_) => Err(format!("no answer for {} s", LOOK_TIMEOUT.as_secs())),
    }
}

async fn look(worker: &Worker) -> Result<Look, String> {
    let mut client = worker.client();
    let text = |status: tonic::Status| status.message().to_owned();
    let base = if worker.read(|view| view.is_described()) {
        None
    } else {
        let description =
            client.describe(within(LOOK_TIMEOUT, pb::DescribeRequest {})).await.map_err(text)?.into_inner();
        let digest = Digest::try_from(description.base_digest.as_ref()).map_err(|error| error.to_string())?;
        Some(Base { digest, description: Arc::new(description) })
    };
    let load = client.get_load(within(LOOK_TIMEOUT, pb::GetLoadRequest {})).await.map_err(text)?.into_inner();
    let residency =
        client.list_residency(within(LOOK_TIMEOUT, pb::ListResidencyRequest {})).await.map_err(text)?.into_inner();
    Ok(Look { base, load, residency })
}

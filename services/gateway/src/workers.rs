//! The workers this gateway knows: one task each looks at what it serves, how busy it is and what it holds.

use crate::error::Error;
use crate::metrics::Metrics;
use crate::place::{Candidate, place};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::transport::Channel;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::transport::{Backoff, MESSAGE_BYTES_MAX};
use weft_types::Digest;

/// A look that takes longer than this counts as no answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

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

/// One worker and what was last seen of it.
pub(crate) struct Worker {
    pub(crate) address: String,
    client: WorkerClient<Channel>,
    in_flight: AtomicUsize,
    seen: RwLock<Seen>,
}

/// The last look.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) base: Option<Base>,
    pub(crate) load: Option<pb::GetLoadResponse>,
    pub(crate) resident: HashSet<Digest>,
    pub(crate) up: bool,
    pub(crate) problem: Option<String>,
}

impl Worker {
    pub(crate) fn client(&self) -> WorkerClient<Channel> {
        self.client.clone()
    }

    /// As it calls itself, once it has said so.
    pub(crate) fn name(&self) -> Option<String> {
        self.read(|seen| seen.base.as_ref().map(|base| base.description.worker.clone()))
    }

    pub(crate) fn seen(&self) -> Seen {
        self.read(Clone::clone)
    }

    fn read<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut Seen)) {
        write(&mut self.seen.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// It failed a request: nobody's first choice until the next look.
    pub(crate) fn suspect(&self, problem: &str) {
        self.write(|seen| {
            seen.up = false;
            seen.problem = Some(problem.to_owned());
        });
    }
}

/// Counts a request at a worker while it lives.
pub(crate) struct InFlight(Arc<Worker>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All of them.
pub(crate) struct Pool {
    workers: Vec<Arc<Worker>>,
    changed: Notify,
}

impl Pool {
    pub(crate) fn new(endpoints: impl IntoIterator<Item = (String, Channel)>) -> Self {
        let workers = endpoints.into_iter().map(|(address, channel)| {
            let client = WorkerClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Arc::new(Worker { address, client, in_flight: AtomicUsize::new(0), seen: RwLock::default() })
        });
        Self { workers: workers.collect(), changed: Notify::new() }
    }

    pub(crate) fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// The base of the mesh: that of the first worker that is up, else of the first ever seen. Workers with another
    /// base get no requests.
    pub(crate) fn base(&self) -> Result<Base, Error> {
        let bases = || {
            self.workers.iter().filter_map(|worker| worker.read(|seen| seen.base.clone().map(|base| (base, seen.up))))
        };
        bases().find(|(_, up)| *up).or_else(|| bases().next()).map(|(base, _)| base).ok_or(Error::NoWorker)
    }

    /// Chooses a worker with this base and counts the request there. `tried` are positions that failed already.
    pub(crate) fn choose(
        &self,
        base: &Digest,
        adapter: Option<&Digest>,
        tried: &[usize],
    ) -> Option<(usize, Arc<Worker>, InFlight)> {
        let candidates: Vec<Candidate> = self
            .workers
            .iter()
            .enumerate()
            .filter(|(index, _)| !tried.contains(index))
            .filter_map(|(index, worker)| {
                worker.read(|seen| {
                    let draining = seen.load.as_ref().is_some_and(|load| load.draining);
                    (seen.base.as_ref()?.digest == *base).then(|| Candidate {
                        index,
                        load: load(seen).max(worker.in_flight.load(Ordering::Relaxed)),
                        resident: adapter.is_some_and(|adapter| seen.resident.contains(adapter)),
                        up: seen.up && !draining,
                    })
                })
            })
            .collect();
        let index = place(&candidates, adapter)?;
        let worker = Arc::clone(&self.workers[index]);
        worker.in_flight.fetch_add(1, Ordering::Relaxed);
        Some((index, Arc::clone(&worker), InFlight(worker)))
    }

    /// Looks at worker `index` for ever. Cancel safe.
    pub(crate) async fn watch(&self, index: usize, every: Duration, metrics: Metrics) {
        let worker = &self.workers[index];
        let mut backoff = Backoff::default();
        loop {
            let described = worker.read(|seen| seen.base.is_some() && seen.up);
            let look = tokio::time::timeout(LOOK_TIMEOUT, look(worker, described)).await;
            let problem = match look {
                Ok(Ok(())) => None,
                Ok(Err(problem)) => Some(problem),
                Err(_) => Some(format!("no answer for {} s", LOOK_TIMEOUT.as_secs())),
            };
            let failed = problem.is_some();
            if let Some(problem) = problem {
                if worker.read(|seen| seen.problem.as_deref() != Some(&problem)) {
                    tracing::warn!(worker = %worker.address, %problem, "worker does not answer");
                }
                worker.suspect(&problem);
            }
            metrics.workers_ready.set(self.ready() as i64);
            self.changed.notify_waiters();
            if failed {
                backoff.wait().await;
            } else {
                backoff.reset();
                tokio::time::sleep(every).await;
            }
        }
    }

    /// Workers that answered the last look and serve the mesh's base.
    pub(crate) fn ready(&self) -> usize {
        let Ok(base) = self.base() else { return 0 };
        let serves = |seen: &Seen| seen.up && seen.base.as_ref().is_some_and(|other| other.digest == base.digest);
        self.workers.iter().filter(|worker| worker.read(serves)).count()
    }

    /// Waits for the next look at any worker. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn load(seen: &Seen) -> usize {
    seen.load.as_ref().map_or(0, |load| (load.running_requests + load.queued_requests + load.loading_requests) as usize)
}

async fn look(worker: &Worker, described: bool) -> Result<(), String> {
    let mut client = worker.client();
    let text = |status: tonic::Status| status.message().to_owned();
    let base = if described {
        None
    } else {
        let description = client.describe(pb::DescribeRequest {}).await.map_err(text)?.into_inner();
        let digest = Digest::try_from(description.base_digest.as_ref()).map_err(|error| error.to_string())?;
        Some(Base { digest, description: Arc::new(description) })
    };
    let load = client.get_load(pb::GetLoadRequest {}).await.map_err(text)?.into_inner();
    let residency = client.list_residency(pb::ListResidencyRequest {}).await.map_err(text)?.into_inner();
    let resident =
        residency.adapters.iter().filter_map(|adapter| Digest::try_from(adapter.digest.as_ref()).ok()).collect();
    worker.write(|seen| {
        if let Some(base) = base {
            tracing::info!(worker = %worker.address, base = %base.digest, served_name = base.served_name(), "worker answers");
            seen.base = Some(base);
        }
        seen.load = Some(load);
        seen.resident = resident;
        seen.up = true;
        seen.problem = None;
    });
    Ok(())
}

//! The workers this gateway knows: those that settings name and those that were heard of on the bus.
//!
//! - `worker.rs`: one of them; `view.rs`: what is known of it and what follows, without IO or clocks.
//! - `watch.rs`: looks at one of them over gRPC, as often as its view asks for.
//! - `route.rs`: which of them a request goes to; `prefixes.rs`: who likely has the beginning of a prompt.
//! - `discover.rs`: hears heartbeats, adds who is new, forgets who is gone.

mod discover;
mod prefixes;
mod route;
mod view;
mod watch;
mod worker;

pub(crate) use discover::{Dial, discover};
pub(crate) use prefixes::{Chain, Hit, Prefixes};
pub(crate) use route::Asked;
pub(crate) use view::{Load, LoadRates, Pace, View};
pub(crate) use watch::watch_all;
pub(crate) use worker::{Base, InFlight, Worker, WorkerId};

use crate::error::Error;
use route::{Now, Places, Workers};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Channel;
use weft_placement::Document;
use weft_service_kit::transport::Address;

/// The owner of the view.
pub(crate) struct Pool {
    /// Replaced whole; readers keep what they have read.
    places: RwLock<Arc<Places>>,
    /// Held over a change of `places`.
    changing: Mutex<()>,
    next_id: AtomicU64,
    pub(crate) pace: Pace,
    /// What workers say of how fast prompts are computed.
    prefill: Typical,
    /// Something about some worker changed.
    changed: Notify,
    /// A worker was added.
    added: Notify,
}

/// The mean of what many workers say about themselves, the last ones counting more. Taken for those who have not said.
#[derive(Default)]
struct Typical(Mutex<Option<f64>>);

impl Typical {
    /// How much one word moves it.
    const WEIGHT: f64 = 1.0 / 16.0;

    /// Somebody says so; what is not positive and finite says nothing.
    fn hear(&self, said: f64) {
        if said.is_finite() && said > 0.0 {
            let mut mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *mean = Some(mean.map_or(said, |mean| mean + (said - mean) * Self::WEIGHT));
        }
    }

    /// None: nobody has said anything.
    fn value(&self) -> Option<f64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One spelling for one address, so that a setting and a heartbeat mean the same worker.
fn canonical(address: &str) -> String {
    match address.parse() {
        Ok(Address::Tcp(host_port)) => host_port,
        Ok(unix @ Address::Unix(_)) => unix.to_string(),
        Err(_) => address.to_owned(),
    }
}

impl Pool {
    /// The workers that settings name: address and channel.
    pub(crate) fn new(endpoints: impl IntoIterator<Item = (String, Channel)>, pace: Pace) -> Self {
        let pool = Self {
            places: RwLock::new(Arc::new(Places::new(Vec::new(), None))),
            changing: Mutex::default(),
            next_id: AtomicU64::new(0),
            pace,
            prefill: Typical::default(),
            changed: Notify::new(),
            added: Notify::new(),
        };
        for (address, channel) in endpoints {
            pool.add(&address, channel, true);
        }
        pool
    }

    /// Those that are known now, in the order in which they became known.
    pub(crate) fn workers(&self) -> Workers {
        Arc::clone(&self.places().known)
    }

    fn places(&self) -> Arc<Places> {
        Arc::clone(&self.places.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Worker>>) -> T) -> T {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.places();
        let mut workers = before.known.to_vec();
        let result = change(&mut workers);
        self.set_places(Places::new(workers, before.placement.clone()));
        result
    }

    fn set_places(&self, places: Places) {
        *self.places.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(places);
        self.changed.notify_waiters();
    }

    /// A worker has another name now.
    fn renew(&self) {
        self.change(|_| ());
    }

    /// Routes by this placement from now on, if it is newer than the one that is known. True if it is. Cost: linear in copies.
    pub(crate) fn offer(&self, document: Document) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.places();
        let is_newer = before.placement.as_ref().map(|known| known.epoch) < Some(document.epoch);
        if is_newer {
            self.set_places(Places::new(before.known.to_vec(), Some(Arc::new(document))));
        }
        is_newer
    }

    /// The placement that requests are routed by.
    pub(crate) fn placement(&self) -> Option<Arc<Document>> {
        self.places().placement.clone()
    }

    /// Its number; 0 without one.
    pub(crate) fn epoch(&self) -> u64 {
        self.places().placement.as_ref().map_or(0, |placement| placement.epoch.number())
    }

    fn add(&self, address: &str, channel: Channel, is_static: bool) -> Arc<Worker> {
        let id = WorkerId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let worker = Arc::new(Worker::new(id, canonical(address), channel, is_static));
        self.change(|workers| workers.push(Arc::clone(&worker)));
        self.added.notify_one();
        worker
    }

    /// Takes out those for whom `is_gone` says so.
    fn remove(&self, is_gone: impl Fn(&Worker) -> bool) {
        if !self.workers().iter().any(|worker| is_gone(worker)) {
            return;
        }
        self.change(|workers| {
            workers.retain(|worker| {
                let goes = is_gone(worker);
                if goes {
                    worker.leave();
                }
                !goes
            });
        });
    }

    /// The base of the mesh: that of most workers that are up, else of most that were ever seen; of equals, of who was known first.
    /// Workers with another base get no requests.
    pub(crate) fn base(&self) -> Result<Base, Error> {
        let now = Instant::now();
        let workers = self.workers();
        let bases: Vec<(Base, bool)> = workers
            .iter()
            .filter_map(|worker| worker.read(|view| Some((view.base.clone()?, view.is_up(now, &self.pace)))))
            .collect();
        let any_up = bases.iter().any(|(_, up)| *up);
        let mut counts: Vec<(&Base, usize)> = Vec::new();
        for (base, _) in bases.iter().filter(|(_, up)| *up || !any_up) {
            match counts.iter_mut().find(|(counted, _)| counted.digest == base.digest) {
                Some((_, count)) => *count += 1,
                None => counts.push((base, 1)),
            }
        }
        // The last of equal maxima is taken, so the first known goes last.
        let most = counts.iter().rev().max_by_key(|(_, count)| *count);
        most.map(|(base, _)| (*base).clone()).ok_or(Error::NoWorker)
    }

    /// Chooses a worker and counts the request there: by predicted time to first token among those that may get requests, else
    /// anybody with this base.
    pub(crate) fn choose(&self, asked: &Asked<'_>) -> Option<InFlight> {
        let places = self.places();
        let prefill_tokens_per_s = self.prefill.value();
        let now = Now { at: Instant::now(), pace: &self.pace, prefill_tokens_per_s };
        let routed = places.route(asked, now, rand::random());
        let permitted = routed.and_then(|worker| InFlight::permitted(worker, now.at));
        permitted.or_else(|| places.last_resort(asked).map(InFlight::unasked))
    }

    /// Whether it is up and does not drain, as far as is known.
    pub(crate) fn takes_requests(&self, worker: &Worker) -> bool {
        worker.read(|view| view.is_up(Instant::now(), &self.pace) && !view.load.draining)
    }

    /// Workers that are up, do not drain and serve the mesh's base.
    pub(crate) fn ready(&self) -> usize {
        let Ok(base) = self.base() else { return 0 };
        let now = Instant::now();
        let serves = |worker: &&Arc<Worker>| {
            worker.read(|view| {
                view.is_up(now, &self.pace)
                    && !view.load.draining
                    && view.base.as_ref().is_some_and(|other| other.digest == base.digest)
            })
        };
        self.workers().iter().filter(serves).count()
    }

    /// Waits for the next change at any worker. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;

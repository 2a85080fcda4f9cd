//! Placement: the registry hears what workers hold and what gateways are asked for, stands for the office of the authority, and tells
//! gateways and workers what the last placement is.
//!
//! Decisions are `weft_placement`'s, the election is `weft_authority`'s. All registries listen all the time, so that whoever is elected
//! knows what the last one knew.
//!
//! 1. [`observer`]: what was heard, without IO or clocks.
//! 2. [`hear`]: the bus, into the observer.
//! 3. [`records`]: what the catalog says of adapters, pins and tenants.
//! 4. [`stand`]: the authority.
//! 5. [`epochs`]: the last placement, from here or from the store, and the streams of it.

mod epochs;
mod hear;
mod observer;
mod records;
mod stand;
mod watchers;

pub(crate) use epochs::follow;
pub(crate) use hear::hear;
pub(crate) use stand::stand;
pub(crate) use watchers::{DesiredWatcher, PlacementWatcher};

use crate::metrics::PlacementMetrics;
use epochs::Published;
use observer::Observer;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;
use weft_placement::Document;
use weft_types::Digest;

/// What the parts share.
pub(crate) struct Placing {
    observer: Mutex<Observer>,
    published: watch::Sender<Option<Arc<Published>>>,
    metrics: PlacementMetrics,
    since: Instant,
}

impl Placing {
    pub(crate) fn new(metrics: PlacementMetrics) -> Self {
        let published = watch::Sender::new(None);
        Self { observer: Mutex::new(Observer::new(0)), published, metrics, since: Instant::now() }
    }

    /// Milliseconds of this process' own clock.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Workers with this base that are heard of and do not drain.
    pub(crate) fn workers_with(&self, base: &Digest) -> usize {
        self.observer().workers_with(base, self.now_ms())
    }

    /// Whether it has listened for long enough to know what is asked for.
    pub(crate) fn is_warm(&self) -> bool {
        self.observer().is_warm(self.now_ms())
    }

    /// Adapters that were asked for lately, as far as gateways were heard.
    pub(crate) fn asked_lately(&self) -> HashSet<Digest> {
        self.observer().asked(self.now_ms())
    }

    fn observer(&self) -> MutexGuard<'_, Observer> {
        // Every message leaves it whole, so that a poisoned lock carries no torn state.
        self.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last placement, and every later one.
    fn watch(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.subscribe()
    }

    /// Takes a placement, if it is newer than what is known. Cost: linear in copies.
    fn offer(&self, document: Document) {
        let known = |current: &Option<Arc<Published>>| current.as_ref().map(|published| published.document.epoch);
        if known(&self.published.borrow()) >= Some(document.epoch) {
            return;
        }
        let epoch = document.epoch;
        let Some(published) = Published::new(document) else { return };
        let is_newer = self.published.send_if_modified(|current| {
            let is_newer = known(current) < Some(epoch);
            if is_newer {
                *current = Some(Arc::new(published));
            }
            is_newer
        });
        if is_newer {
            self.metrics.epoch.set(epoch.number() as i64);
        }
    }
}

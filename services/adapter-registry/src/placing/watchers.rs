//! The streams over which gateways and workers learn of placements.

use super::observer::canonical;
use super::records::Known;
use super::{Placing, epochs::Published};
use crate::core::Core;
use crate::metrics::Running;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tonic::Status;
use weft_placement::Desired;
use weft_proto::registry::v1 as pb;
use weft_service_kit::shutdown::Shutdown;

/// What every stream has.
struct Stream {
    published: watch::Receiver<Option<Arc<Published>>>,
    /// A watcher that hears nothing for longer knows that the registry is away.
    repeat: Duration,
    stopping: Shutdown,
    _permit: OwnedSemaphorePermit,
    _running: Running,
}

impl Stream {
    fn new(core: &Core, placing: &Placing, stopping: Shutdown, permit: OwnedSemaphorePermit) -> Self {
        Self {
            published: placing.watch(),
            repeat: Duration::from_millis(core.settings.directory_refresh_ms),
            stopping,
            _permit: permit,
            _running: Running::new(&placing.metrics.watchers),
        }
    }
}

/// A gateway's stream.
pub(crate) struct PlacementWatcher {
    stream: Stream,
    /// The epoch whose document was sent.
    sent: u64,
    is_first: bool,
}

impl PlacementWatcher {
    pub(crate) fn new(core: &Core, placing: &Placing, stopping: Shutdown, permit: OwnedSemaphorePermit) -> Self {
        Self { stream: Stream::new(core, placing, stopping, permit), sent: 0, is_first: true }
    }

    pub(crate) async fn next(mut self) -> Option<(Result<pb::Placement, Status>, Self)> {
        // The first one goes out at once, also when there is no placement yet.
        if !std::mem::take(&mut self.is_first) {
            tokio::select! {
                changed = self.stream.published.changed() => changed.ok()?,
                () = tokio::time::sleep(self.stream.repeat) => {}
                () = self.stream.stopping.wait() => return None,
            }
        }
        let placement =
            self.stream.published.borrow_and_update().as_ref().map_or_else(pb::Placement::default, |last| {
                let epoch = last.document.epoch.number();
                let is_news = std::mem::replace(&mut self.sent, epoch) != epoch;
                pb::Placement { epoch, document: if is_news { last.bytes.clone() } else { bytes::Bytes::new() } }
            });
        Some((Ok(placement), self))
    }
}

/// A worker's stream.
pub(crate) struct DesiredWatcher {
    stream: Stream,
    core: Arc<Core>,
    records: watch::Receiver<u64>,
    worker: String,
    /// When something goes out, whether there is news or not.
    due: Instant,
    /// None: no list was sent yet.
    sent: Option<Vec<pb::DesiredAdapter>>,
}

impl DesiredWatcher {
    pub(crate) fn new(
        core: &Arc<Core>,
        placing: &Placing,
        worker: &str,
        stopping: Shutdown,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let stream = Stream::new(core, placing, stopping, permit);
        let (core, records) = (Arc::clone(core), core.watch());
        Self { stream, core, records, worker: canonical(worker), due: Instant::now(), sent: None }
    }

    pub(crate) async fn next(mut self) -> Option<(Result<pb::Desired, Status>, Self)> {
        loop {
            // The first one goes out at once, also when there is no placement yet. Changes that are none of this worker's do not put off
            // the next one.
            let is_due = Instant::now() >= self.due;
            if !is_due {
                tokio::select! {
                    changed = self.stream.published.changed() => changed.ok()?,
                    // Pins are records.
                    changed = self.records.changed() => changed.ok()?,
                    () = tokio::time::sleep_until(self.due) => continue,
                    () = self.stream.stopping.wait() => return None,
                }
            }
            self.records.mark_unchanged();
            let last = self.stream.published.borrow_and_update().clone();
            let (epoch, news) = match last {
                Some(last) => (last.document.epoch.number(), self.news(last.of_worker(&self.worker))),
                None => (0, None),
            };
            if is_due || news.is_some() {
                self.due = Instant::now() + self.stream.repeat;
                let is_list = news.is_some();
                return Some((Ok(pb::Desired { epoch, is_list, adapters: news.unwrap_or_default() }), self));
            }
        }
    }

    /// The list, if it is another one than was sent.
    fn news(&mut self, desired: &[Desired]) -> Option<Vec<pb::DesiredAdapter>> {
        let rows = self.rows(desired);
        if self.sent.as_ref() == Some(&rows) {
            return None;
        }
        self.sent = Some(rows.clone());
        Some(rows)
    }

    fn rows(&self, desired: &[Desired]) -> Vec<pb::DesiredAdapter> {
        let pins = Known::pins_of(&self.core.catalog());
        let row = |desired: &Desired| {
            let pinned = pins.contains(&desired.adapter);
            let ahead = desired.is_one_of_many || pinned;
            pb::DesiredAdapter { digest: desired.adapter.to_vec().into(), ahead, pinned }
        };
        desired.iter().map(row).collect()
    }
}

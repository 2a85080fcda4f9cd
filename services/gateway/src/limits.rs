//! How much at once: generations, body bytes, uploads, and how often a failure may be tried again elsewhere.

use crate::error::Error;
use crate::settings::Settings;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Body bytes are counted in units of this size.
const BODY_UNIT_BYTES: usize = 4 << 10;

/// The gateway's own limits. Each is asked without waiting: at the limit the answer is 429.
pub(crate) struct Limits {
    generations: Arc<Semaphore>,
    generations_max: usize,
    body_units: Arc<Semaphore>,
    body_bytes_max: usize,
    uploads: Arc<Semaphore>,
    uploads_max: usize,
    pub(crate) retries: RetryBudget,
}

impl Limits {
    pub(crate) fn new(settings: &Settings) -> Self {
        let units = (settings.body_bytes_in_flight_max / BODY_UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            generations: Arc::new(Semaphore::new(settings.max_concurrent_requests.min(Semaphore::MAX_PERMITS))),
            generations_max: settings.max_concurrent_requests,
            body_units: Arc::new(Semaphore::new(units)),
            body_bytes_max: settings.body_bytes_in_flight_max,
            uploads: Arc::new(Semaphore::new(settings.uploads_max)),
            uploads_max: settings.uploads_max,
            retries: RetryBudget::new(settings.retry_share, settings.retries_saved_max),
        }
    }

    /// Room for so many more generations, given back when dropped.
    pub(crate) fn generations(&self, count: usize) -> Result<OwnedSemaphorePermit, Error> {
        let wanted = u32::try_from(count).unwrap_or(u32::MAX);
        Arc::clone(&self.generations).try_acquire_many_owned(wanted).map_err(|_| Error::Overloaded {
            running: self.generations_max.saturating_sub(self.generations.available_permits()),
            max: self.generations_max,
        })
    }

    /// Room for so many more bytes of request bodies, given back when dropped.
    pub(crate) fn body_bytes(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        self.more_body_bytes(0, bytes)
    }

    /// The same for a body of which there is room for `before` bytes already: the pieces in which it comes are not rounded up one by one.
    pub(crate) fn more_body_bytes(&self, before: usize, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let units = Self::body_units_of(before.saturating_add(bytes)) - Self::body_units_of(before);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.body_units)
            .try_acquire_many_owned(units)
            .map_err(|_| Error::Full { what: "bytes of request bodies", max: self.body_bytes_max })
    }

    /// Permits for so many bytes.
    pub(crate) fn body_units_of(bytes: usize) -> usize {
        bytes.div_ceil(BODY_UNIT_BYTES)
    }

    /// Room for one more upload, given back when dropped.
    pub(crate) fn upload(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.uploads)
            .try_acquire_owned()
            .map_err(|_| Error::Full { what: "uploads", max: self.uploads_max })
    }
}

/// Lets retries be a share of the requests, so that a failing mesh is not hit harder because it fails: each request
/// puts in a part of a retry, each retry takes out a whole one; some may be saved up.
pub(crate) struct RetryBudget {
    saved: AtomicI64,
    share: i64,
    saved_max: i64,
}

/// A retry, in the units that are counted.
const RETRY_COST: i64 = 1000;

impl RetryBudget {
    /// Full. `share`: retries for a request, 0 to 1.
    fn new(share: f64, saved_max: u32) -> Self {
        let saved_max = i64::from(saved_max) * RETRY_COST;
        let share = (share.clamp(0.0, 1.0) * RETRY_COST as f64) as i64;
        Self { saved: AtomicI64::new(saved_max), share, saved_max }
    }

    /// A request came.
    pub(crate) fn deposit(&self) {
        let more = |saved: i64| Some((saved + self.share).min(self.saved_max));
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Whether one retry is affordable; takes it if so.
    pub(crate) fn withdraw(&self) -> bool {
        let less = |saved: i64| (saved >= RETRY_COST).then_some(saved - RETRY_COST);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_once_the_savings_are_spent() {
        let budget = RetryBudget::new(0.2, 10);
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
        let mut retried = 0;
        for _ in 0..100 {
            budget.deposit();
            retried += usize::from(budget.withdraw());
        }
        assert_eq!(retried, 20);
    }

    #[test]
    fn room_comes_back_when_a_permit_is_dropped() {
        let limits = Limits::new(&Settings { max_concurrent_requests: 3, ..Settings::default() });
        let two = limits.generations(2).unwrap();
        assert!(matches!(limits.generations(2), Err(Error::Overloaded { running: 2, max: 3 })));
        drop(two);
        assert!(limits.generations(3).is_ok());
    }
}

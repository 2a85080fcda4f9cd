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
            retries: RetryBudget::new(),
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
        let units = u32::try_from(bytes.div_ceil(BODY_UNIT_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.body_units)
            .try_acquire_many_owned(units)
            .map_err(|_| Error::Full { what: "bytes of request bodies", max: self.body_bytes_max })
    }

    /// Room for one more upload, given back when dropped.
    pub(crate) fn upload(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.uploads)
            .try_acquire_owned()
            .map_err(|_| Error::Full { what: "uploads", max: self.uploads_max })
    }
}

/// Lets retries be a share of the requests, so that a failing mesh is not hit harder because it fails: each request
/// puts in a fifth of a retry, each retry takes out a whole one; ten may be saved up.
pub(crate) struct RetryBudget(AtomicI64);

const RETRY_COST: i64 = 1000;
const REQUEST_SHARE: i64 = 200;
const SAVED_MAX: i64 = 10 * RETRY_COST;

impl RetryBudget {
    fn new() -> Self {
        Self(AtomicI64::new(SAVED_MAX))
    }

    /// A request came.
    pub(crate) fn deposit(&self) {
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| Some((saved + REQUEST_SHARE).min(SAVED_MAX)));
    }

    /// Whether one retry is affordable; takes it if so.
    pub(crate) fn withdraw(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
                (saved >= RETRY_COST).then_some(saved - RETRY_COST)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_once_the_savings_are_spent() {
        let budget = RetryBudget::new();
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

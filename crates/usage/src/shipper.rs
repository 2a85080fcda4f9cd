//! Carries the log's closed segments into the ledger, for ever.

use crate::{Error, Ledger, Log, Segment, Shipped};
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Between two passes of which the first failed, the first time; doubled each time after.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How shipping goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShipperState {
    /// Segments that were shipped and forgotten.
    pub shipped_segments: u64,
    /// Tries that failed.
    pub failures: u64,
    /// Segments whose key holds other bytes: they were set aside (see [`Log::set_aside`]), and a human must look.
    pub refused: u64,
    /// Why the last pass failed; none: it did not.
    pub last_failure: Option<String>,
    /// Bytes of the log that were not shipped.
    pub unshipped_bytes: u64,
    /// How old the oldest record is that was not shipped, in milliseconds by this machine's clock; 0 if there is none.
    pub oldest_unshipped_age_ms: u64,
}

/// Where closed segments go: the ledger itself, or whoever keeps it for others.
pub trait Destination: Send + Sync + 'static {
    /// Keeps the records of a closed segment, as [`crate::Log::read`] gave them. Success means that they are durable; the same segment again
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Ledger::ship`]; [`Error::Away`] for one that cannot be reached.
    fn ship<'a>(&'a self, segment: &'a Segment, records: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Shipped, Error>>;
}

impl Destination for Ledger {
    fn ship<'a>(&'a self, segment: &'a Segment, records: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Shipped, Error>> {
        Box::pin(Self::ship(self, segment, records))
    }
}

/// Ships one log to one destination.
pub struct Shipper {
    log: Arc<Log>,
    destination: Arc<dyn Destination>,
    every: Duration,
    shipped_segments: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
    last_failure: Mutex<Option<String>>,
    /// So that a log that fills up is told once, not with every pass.
    is_told: AtomicBool,
}

impl std::fmt::Debug for Shipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipper").field("log", &self.log).field("every", &self.every).finish_non_exhaustive()
    }
}

impl Shipper {
    /// A shipper that makes a pass every `every_ms`, from 100 to 3,600,000. [`Shipper::ship_forever`] runs it.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn new(log: Arc<Log>, destination: impl Destination, every_ms: u64) -> Result<Self, Error> {
        if !(100..=3_600_000).contains(&every_ms) {
            return Err(Error::Setting { field: "every_ms", value: every_ms, limit: "100 to 3600000" });
        }
        Ok(Self {
            log,
            destination: Arc::new(destination),
            every: Duration::from_millis(every_ms),
            shipped_segments: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_failure: Mutex::default(),
            is_told: AtomicBool::new(false),
        })
    }

    /// Ships until it is told to end, then once more. Failures are tried again with back-off, 0.2 s to 30 s, and never lose anything:
    /// what was not shipped is in the log, for the next pass or the next process.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing: a segment that was written and not forgotten is shipped again, which changes nothing.
    pub async fn ship_forever(&self, shutdown: CancellationToken) {
        let mut pause = self.every;
        let mut retry = RETRY_FIRST;
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            match self.ship_once().await {
                Err(Error::Store(_) | Error::Away { .. }) => {
                    // A quarter less or more, so that gateways do not come together.
                    pause = retry.mul_f64(0.75 + 0.5 * fraction());
                    retry = (retry * 2).min(RETRY_MAX);
                }
                // The failure of one segment, or of the disk, is no reason to wait.
                Ok(()) | Err(_) => (pause, retry) = (self.every, RETRY_FIRST),
            }
            self.tell_if_full();
        }
        // Told by the pass itself; what is left is in the log.
        let _ = self.ship_once().await;
    }

    /// One pass: ships and forgets every closed segment, then closes the open one and ships it too. While the store fails the open
    /// segment is left to grow, so that a long outage does not leave thousands of small files.
    ///
    /// # Errors
    /// The first failure; segments behind it were tried as well, unless the store is away.
    pub async fn ship_once(&self) -> Result<(), Error> {
        let result = self.pass().await;
        let mut last_failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        *last_failure = result.as_ref().err().map(describe);
        result
    }

    /// How it goes. Cost: short locks.
    #[must_use]
    pub fn state(&self) -> ShipperState {
        let log = self.log.state();
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        ShipperState {
            shipped_segments: self.shipped_segments.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            last_failure: self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            unshipped_bytes: log.unshipped_bytes,
            oldest_unshipped_age_ms: log.oldest_unshipped_ms.map_or(0, |oldest| now_ms.saturating_sub(oldest)),
        }
    }

    async fn pass(&self) -> Result<(), Error> {
        let closed: BTreeSet<Segment> = self.log.unshipped().into_iter().collect();
        let first = self.ship_all(closed.iter()).await?;
        self.log.close_segment().await?;
        let newer = self.log.unshipped();
        let second = self.ship_all(newer.iter().filter(|segment| !closed.contains(segment))).await?;
        first.or(second).map_or(Ok(()), Err)
    }

    /// Ships these. An error means that the store is away, and that the rest was not tried; else the first failure of one segment is
    /// returned, if there was one.
    async fn ship_all(&self, segments: impl Iterator<Item = &Segment>) -> Result<Option<Error>, Error> {
        let mut first = None;
        for segment in segments {
            let Err(error) = self.ship(segment).await else { continue };
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(segment = segment.name(), error = describe(&error), "cannot ship usage");
            match error {
                Error::Store(_) | Error::Away { .. } => return Err(error),
                Error::OtherBytes { .. } => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    self.blocking(segment, Log::set_aside).await?;
                    first.get_or_insert(error);
                }
                error => {
                    first.get_or_insert(error);
                }
            }
        }
        Ok(first)
    }

    async fn ship(&self, segment: &Segment) -> Result<(), Error> {
        let records = self.blocking(segment, Log::read).await?;
        if self.destination.ship(segment, &records).await? == Shipped::Nothing {
            tracing::error!(segment = segment.name(), "a segment of the usage log has no readable record");
        }
        self.blocking(segment, Log::forget).await?;
        self.shipped_segments.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads and removes files off the runtime's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        segment: &Segment,
        work: impl FnOnce(&Log, &Segment) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (log, segment) = (Arc::clone(&self.log), segment.clone());
        let done = tokio::task::spawn_blocking(move || work(&log, &segment)).await;
        done.unwrap_or_else(|error| Err(Error::io("work on", self.log.dir(), std::io::Error::other(error))))
    }

    fn tell_if_full(&self) {
        let state = self.log.state();
        let was_told = self.is_told.swap(state.is_nearly_full, Ordering::Relaxed);
        if state.is_nearly_full && !was_told {
            tracing::error!(bytes = state.bytes, "the usage log is nearly full: appends are going to be refused");
        }
    }
}

fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// 0 to 1, from bits that differ between processes.
fn fraction() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

//! How many bytes a second may pass: a token bucket that fetches share.
//!
//! Bytes are paid for after they came, so that the bucket may be in debt by one piece; until it has paid, nobody reads on, and
//! the network's own flow control slows the sender. Whom somebody waits for comes first, among equals who had the least
//! so far. What nobody waits for takes only from the upper half of the bucket: somebody who comes then finds the lower half.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The bucket holds what passes in this time...
const BURST: Duration = Duration::from_millis(100);
/// ...and at least so many bytes.
const BURST_BYTES_MIN: f64 = (64 << 10) as f64;
/// Between two looks of somebody who waits.
const LOOK: std::ops::RangeInclusive<f64> = 0.001..=0.05;

/// One reader of the bandwidth: a fetch, however many connections it has.
#[derive(Debug)]
pub(crate) struct Share {
    /// Somebody waits for its bytes now.
    wanted: Arc<AtomicBool>,
    /// Bytes it had, on a scale on which newcomers begin with what the others have.
    served: AtomicU64,
}

/// As the decision sees somebody who waits.
#[derive(Clone, Copy, Debug)]
struct Ask {
    wanted: bool,
    served: u64,
    serial: u64,
}

/// Who is next to take bytes from a bucket with so many in it. None: nobody yet.
fn next(asks: impl Iterator<Item = Ask>, level: f64, burst: f64) -> Option<u64> {
    let first = asks.min_by_key(|ask| (!ask.wanted, ask.served, ask.serial))?;
    (level > floor(first.wanted, burst)).then_some(first.serial)
}

/// What must be in the bucket before somebody may take.
fn floor(wanted: bool, burst: f64) -> f64 {
    if wanted { 0.0 } else { burst / 2.0 }
}

struct Waiter {
    serial: u64,
    share: Arc<Share>,
    bytes: u64,
    grant: oneshot::Sender<()>,
}

impl Waiter {
    fn ask(&self) -> Ask {
        let wanted = self.share.wanted.load(Ordering::Relaxed);
        Ask { wanted, served: self.share.served.load(Ordering::Relaxed), serial: self.serial }
    }
}

struct Bucket {
    bytes_per_second: f64,
    burst: f64,
    level: f64,
    filled: Duration,
    waiters: Vec<Waiter>,
    next_serial: u64,
    /// What those who are served now have had: where a newcomer begins.
    served: u64,
}

impl Bucket {
    fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = bytes_per_second as f64;
        let burst = (bytes_per_second * BURST.as_secs_f64()).max(BURST_BYTES_MIN);
        let (filled, waiters) = (Duration::ZERO, Vec::new());
        Self { bytes_per_second, burst, level: burst, filled, waiters, next_serial: 0, served: 0 }
    }

    fn wait(&mut self, share: Arc<Share>, bytes: u64) -> oneshot::Receiver<()> {
        let (grant, granted) = oneshot::channel();
        self.next_serial += 1;
        share.served.fetch_max(self.served, Ordering::Relaxed);
        self.waiters.push(Waiter { serial: self.next_serial, share, bytes, grant });
        granted
    }

    /// Lets pass who may pass at this time; how long it will be until more may.
    fn pass(&mut self, now: Duration) -> Duration {
        let gone = now.saturating_sub(self.filled);
        self.filled = self.filled.max(now);
        self.level = (self.level + gone.as_secs_f64() * self.bytes_per_second).min(self.burst);
        self.waiters.retain(|waiter| !waiter.grant.is_closed());
        while let Some(serial) = next(self.waiters.iter().map(Waiter::ask), self.level, self.burst) {
            let at = self.waiters.iter().position(|waiter| waiter.serial == serial).expect("chosen among them");
            let Waiter { share, bytes, grant, .. } = self.waiters.swap_remove(at);
            if grant.send(()).is_ok() {
                self.level -= bytes as f64;
                self.served = self.served.max(share.served.fetch_add(bytes, Ordering::Relaxed));
            }
        }
        let wanted = self.waiters.iter().any(|waiter| waiter.ask().wanted);
        let seconds = (floor(wanted, self.burst) - self.level) / self.bytes_per_second;
        Duration::from_secs_f64(seconds.clamp(*LOOK.start(), *LOOK.end()))
    }
}

/// Bytes a second for all that read through it.
pub(crate) struct Bandwidth {
    bucket: Option<Mutex<Bucket>>,
    started: Instant,
}

impl Bandwidth {
    /// Zero: without a limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let bucket = (bytes_per_second > 0).then(|| Mutex::new(Bucket::new(bytes_per_second)));
        Self { bucket, started: Instant::now() }
    }

    /// A new reader, who comes first while `wanted`.
    pub(crate) fn share(wanted: Arc<AtomicBool>) -> Arc<Share> {
        Arc::new(Share { wanted, served: AtomicU64::new(0) })
    }

    /// Pays for bytes that came; returns when more may be read. Dropping the future takes nothing.
    pub(crate) async fn pay(&self, share: &Arc<Share>, bytes: u64) {
        let Some(bucket) = &self.bucket else { return };
        let lock = || bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut granted = lock().wait(Arc::clone(share), bytes);
        loop {
            let pause = lock().pass(self.started.elapsed());
            tokio::select! {
                biased;
                _ = &mut granted => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "bandwidth_tests.rs"]
mod tests;

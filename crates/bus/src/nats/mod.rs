//! The bus over core NATS.
//!
//! One connection at a time, each a [`session`]: connect, subscribe to all that is wanted, carry messages, and when anything
//! breaks, start over with jittered back-off. The client's own reconnecting is not used: it keeps messages of before the break, which
//! would arrive as if they were news; it says nothing of why it fails; and it gives up for good on a refused login, which a server
//! that has not read its accounts yet may cause.

mod session;
mod settings;

pub use settings::NatsSettings;

use crate::memory::check;
use crate::port::{Bus, FLUSH_TIMEOUT, State, Subject, Subscription};
use crate::queue::Queue;
use crate::{Error, Metrics};
use bytes::Bytes;
use futures::future::BoxFuture;
use session::Ended;
use settings::Checked;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Messages that wait to be sent: a few seconds of a busy service.
const OUTBOX_MESSAGES_MAX: usize = 256;
/// Pauses between tries double from the first to the last, each with jitter of a half.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(5);

/// What waits for the session.
enum Outgoing {
    Message(Subject, Bytes),
    /// Answered once everything before it has been written; forgotten when the connection breaks.
    Flush(oneshot::Sender<()>),
}

/// Over NATS 2.9 or newer.
pub struct NatsBus {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Outgoing>,
    /// Ends with the bus.
    running: JoinHandle<()>,
}

/// What the bus and its background task share.
struct Shared {
    wanted: Mutex<Vec<Wanted>>,
    /// Something was added to `wanted`.
    more_wanted: Notify,
    state: watch::Sender<State>,
    metrics: Metrics,
}

/// One subscription.
#[derive(Clone)]
struct Wanted {
    subject: Subject,
    queue: Weak<Queue>,
}

impl NatsBus {
    /// Starts to connect, for as long as the bus lives. Must run within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn start(settings: NatsSettings, metrics: Metrics) -> Result<Self, Error> {
        let checked = settings.check()?;
        metrics.connected.set(0);
        let away = State::Away { why: format!("not yet connected to NATS at {}", checked.shown()) };
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            more_wanted: Notify::new(),
            state: watch::Sender::new(away),
            metrics,
        });
        let (outbox, outgoing) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        let running = tokio::spawn(run(Arc::clone(&shared), checked, outgoing));
        Ok(Self { shared, outbox, running })
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Bus for NatsBus {
    fn publish(&self, subject: Subject, message: Bytes) -> Result<(), Error> {
        let metrics = &self.shared.metrics;
        check(subject, &message, metrics)?;
        let dropped = |why: &str| metrics.dropped.with_label_values(&[subject.as_str(), why]).inc();
        if let State::Away { why } = &*self.shared.state.borrow() {
            dropped("away");
            return Err(Error::Away(why.clone()));
        }
        if self.outbox.try_send(Outgoing::Message(subject, message)).is_err() {
            dropped("full");
            return Err(Error::Full { max: OUTBOX_MESSAGES_MAX });
        }
        metrics.published.with_label_values(&[subject.as_str()]).inc();
        Ok(())
    }

    fn flush(&self) -> BoxFuture<'static, ()> {
        if *self.shared.state.borrow() != State::Connected {
            return Box::pin(std::future::ready(()));
        }
        let outbox = self.outbox.clone();
        let flushed = async move {
            let (done, flushed) = oneshot::channel();
            // An error means that the bus is gone, and everything with it.
            if outbox.send(Outgoing::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        Box::pin(async move {
            // Last words are only tried.
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, flushed).await;
        })
    }

    fn subscribe(&self, subject: Subject, capacity: usize) -> Subscription {
        let queue = Arc::new(Queue::new(capacity));
        self.shared.wanted().push(Wanted { subject, queue: Arc::downgrade(&queue) });
        self.shared.more_wanted.notify_one();
        Subscription(queue)
    }

    fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Vec<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is wanted now; what nobody holds any more is forgotten.
    fn all_wanted(&self) -> Vec<Wanted> {
        let mut wanted = self.wanted();
        wanted.retain(|one| one.queue.strong_count() > 0);
        wanted.clone()
    }

    fn miss_all(&self) {
        for queue in self.all_wanted().iter().filter_map(|one| one.queue.upgrade()) {
            queue.miss();
        }
    }

    fn connected(&self) {
        self.metrics.connections.inc();
        self.metrics.connected.set(1);
        self.state.send_replace(State::Connected);
    }

    fn away(&self, why: String) {
        self.metrics.connected.set(0);
        self.state.send_if_modified(|state| {
            let changed = !matches!(state, State::Away { why: before } if *before == why);
            if changed {
                tracing::warn!(why, "the bus is away; what is published is dropped");
                *state = State::Away { why };
            }
            changed
        });
    }
}

/// One session after the other, server after server, for ever.
async fn run(shared: Arc<Shared>, settings: Checked, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut failures = 0;
    for server in settings.servers.iter().cycle() {
        let ended = session::run(&shared, &settings, server, &mut outgoing).await;
        let (why, had_worked) = match ended {
            Ended::NotConnected(why) => (why, false),
            Ended::Broken(why) => (why, true),
        };
        shared.away(format!("NATS at {}: {why}", settings::shown(server)));
        // What waited for this connection is old when the next one is there.
        while outgoing.try_recv().is_ok() {}
        failures = if had_worked { 0 } else { failures + 1 };
        tokio::time::sleep(pause(failures, rand::random_range(0.5..1.0))).await;
    }
}

/// How long to wait after so many failures in a row; `jitter` from 0.5 to 1.
fn pause(failures: u32, jitter: f64) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << failures.min(10)).min(PAUSE_LAST).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let pauses: Vec<_> = (0..40).map(|failures| pause(failures, 1.0)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[39]), (PAUSE_FIRST, PAUSE_FIRST * 2, PAUSE_LAST));
        assert!(pauses.is_sorted());
        assert_eq!(pause(39, 0.5), PAUSE_LAST / 2);
    }
}

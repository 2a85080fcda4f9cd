//! A bus within one process: for `weft up`, and for a service that has no NATS and hears only itself.

use crate::port::{Bus, MESSAGE_BYTES_MAX, State, Subject, Subscription};
use crate::queue::Queue;
use crate::{Error, Metrics};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;

/// Delivers within the call to [`Bus::publish`].
pub struct MemoryBus {
    listeners: Mutex<HashMap<Subject, Vec<Weak<Queue>>>>,
    state: watch::Sender<State>,
    metrics: Metrics,
}

impl MemoryBus {
    /// A bus that nobody listens to yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        metrics.connected.set(1);
        Self { listeners: Mutex::default(), state: watch::Sender::new(State::Connected), metrics }
    }
}

/// Refuses what no implementation carries.
pub(crate) fn check(subject: Subject, message: &Bytes, metrics: &Metrics) -> Result<(), Error> {
    if message.len() < MESSAGE_BYTES_MAX {
        return Ok(());
    }
    metrics.dropped.with_label_values(&[subject.as_str(), "too_large"]).inc();
    Err(Error::TooLarge { subject: subject.as_str(), bytes: message.len(), max: MESSAGE_BYTES_MAX })
}

/// Gives a message to one subscriber.
pub(crate) fn deliver(queue: &Queue, subject: Subject, message: Bytes, metrics: &Metrics) {
    metrics.received.with_label_values(&[subject.as_str()]).inc();
    if queue.push(message) {
        metrics.missed.with_label_values(&[subject.as_str()]).inc();
    }
}

impl Bus for MemoryBus {
    fn publish(&self, subject: Subject, message: Bytes) -> Result<(), Error> {
        check(subject, &message, &self.metrics)?;
        self.metrics.published.with_label_values(&[subject.as_str()]).inc();
        // Held over the deliveries, so that all subscribers see one order. A delivery is a push.
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queues) = listeners.get_mut(&subject) else { return Ok(()) };
        queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            deliver(&queue, subject, message.clone(), &self.metrics);
            true
        });
        Ok(())
    }

    fn flush(&self) -> BoxFuture<'static, ()> {
        // Delivered within the call.
        Box::pin(std::future::ready(()))
    }

    fn subscribe(&self, subject: Subject, capacity: usize) -> Subscription {
        let queue = Arc::new(Queue::new(capacity));
        queue.miss();
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.entry(subject).or_default().push(Arc::downgrade(&queue));
        Subscription(queue)
    }

    fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

//! The port: publish and subscribe by subject, at most once, never waiting.

use crate::Error;
use crate::queue::Queue;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_service_kit::readiness::Readiness;

/// A message is smaller than this many bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Longest that [`Bus::flush`] waits.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What messages are about: words of `a-z0-9_` joined by dots, without wildcards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject(&'static str);

impl Subject {
    /// A subject. Checked when compiled, if used in a constant.
    ///
    /// # Panics
    /// The text is no subject.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        let bytes = text.as_bytes();
        let mut at = 0;
        let mut after_dot = true;
        while at < bytes.len() {
            let is_dot = bytes[at] == b'.';
            assert!(
                is_dot || matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'_'),
                "a subject has only a-z0-9_ and dots"
            );
            assert!(!(is_dot && after_dot), "a subject has no empty word");
            after_dot = is_dot;
            at += 1;
        }
        assert!(!after_dot, "a subject ends with a word");
        Self(text)
    }

    /// The text.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What comes out of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message, whole.
    Message(Bytes),
    /// Messages may have been lost before the next one: list again. Always the first thing heard, because nothing from before a
    /// subscription is heard; later after each reconnect and after messages were dropped because this subscriber was slow.
    Missed {
        /// Messages known to be dropped here; 0 when nobody can know.
        dropped: u64,
    },
}

/// Whether messages get through now, as far as this side knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Yes.
    Connected,
    /// No: what is published is dropped, nothing is heard.
    Away {
        /// Who is away and what happened, without credentials.
        why: String,
    },
}

/// Publish and subscribe. What it promises:
///
/// - A message arrives at each subscription that is in force at most once and whole, in the order of one publisher's calls.
/// - It may be lost at any place without the publisher's knowledge.
/// - A subscription is told when it may have missed something ([`Heard::Missed`]).
/// - Nobody waits for a slow subscriber: its oldest messages are dropped.
pub trait Bus: Send + Sync {
    /// Sends to whoever listens. Never waits.
    ///
    /// # Errors
    /// [`Error::TooLarge`] from [`MESSAGE_BYTES_MAX`] on: a bug of the sender. [`Error::Away`] and [`Error::Full`]: the message is
    /// dropped, as it may be anywhere.
    fn publish(&self, subject: Subject, message: Bytes) -> Result<(), Error>;

    /// Waits until what was published before has left this process, at most [`FLUSH_TIMEOUT`]; a bus that is away has nothing to wait
    /// for. For last words.
    fn flush(&self) -> BoxFuture<'static, ()>;

    /// Listens, with room for `capacity` messages (at least 1) that wait to be read.
    fn subscribe(&self, subject: Subject, capacity: usize) -> Subscription;

    /// Whether messages get through, now and later.
    fn state(&self) -> watch::Receiver<State>;
}

/// One subscription; dropping it ends it.
pub struct Subscription(pub(crate) Arc<Queue>);

impl Subscription {
    /// Waits for what is next. Cancel safe.
    pub async fn next(&mut self) -> Heard {
        self.0.next().await
    }
}

/// The condition that [`report`] keeps.
const CONDITION: &str = "bus";

/// Tells in a service's readiness whether the bus is there: without it a service is degraded, not unready. Ends with the bus.
pub async fn report(bus: Arc<dyn Bus>, readiness: Readiness) {
    let mut state = bus.state();
    drop(bus);
    loop {
        match &*state.borrow_and_update() {
            State::Connected => readiness.met(CONDITION),
            State::Away { why } => readiness.degraded(CONDITION, why.clone()),
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_plain_words() {
        assert_eq!(Subject::new("worker.heartbeat").as_str(), "worker.heartbeat");
        for wrong in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "A"] {
            assert!(std::panic::catch_unwind(|| Subject::new(wrong)).is_err(), "{wrong:?}");
        }
    }
}

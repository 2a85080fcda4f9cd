//! What a service still waits for, in words an operator can act on.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Named conditions.
type Conditions = BTreeMap<String, Condition>;

/// How it stands with one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Met,
    /// Not met, and why; the service can do without.
    Degraded(String),
    /// Not met, and why.
    Waiting(String),
}

/// Named conditions, each met or not. Cheap to clone; all clones see the same conditions.
///
/// A service registers its conditions when it is built, so that it is not ready before they are met once.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Conditions>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Conditions::new())))
    }
}

impl Readiness {
    /// No conditions: ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `condition` is not met, and why.
    pub fn wait_for(&self, condition: &str, why: impl Into<String>) {
        self.0.send_modify(|conditions| {
            conditions.insert(condition.to_owned(), Condition::Waiting(why.into()));
        });
    }

    /// Says that `condition` is not met, and why, but that the service is ready nevertheless.
    pub fn degraded(&self, condition: &str, why: impl Into<String>) {
        self.0.send_modify(|conditions| {
            conditions.insert(condition.to_owned(), Condition::Degraded(why.into()));
        });
    }

    /// Says that `condition` is met.
    pub fn met(&self, condition: &str) {
        self.0.send_modify(|conditions| {
            conditions.insert(condition.to_owned(), Condition::Met);
        });
    }

    /// The conditions that are not met, with the reason. Empty: ready.
    #[must_use]
    pub fn waiting(&self) -> Vec<(String, String)> {
        self.reasons(|condition| match condition {
            Condition::Waiting(why) => Some(why),
            Condition::Met | Condition::Degraded(_) => None,
        })
    }

    /// The conditions that are not met and that the service does without, with the reason.
    #[must_use]
    pub fn degradations(&self) -> Vec<(String, String)> {
        self.reasons(|condition| match condition {
            Condition::Degraded(why) => Some(why),
            Condition::Met | Condition::Waiting(_) => None,
        })
    }

    fn reasons(&self, reason: impl Fn(&Condition) -> Option<&String>) -> Vec<(String, String)> {
        let conditions = self.0.borrow();
        conditions.iter().filter_map(|(name, condition)| Some((name.clone(), reason(condition)?.clone()))).collect()
    }

    /// Whether every condition is met or done without.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        are_met(&self.0.borrow())
    }

    /// Wakes whoever waits for a change of any condition, from this moment on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes { receiver: self.0.subscribe(), _sender: Arc::clone(&self.0) }
    }

    /// Waits until every condition is met. Cancel safe.
    pub async fn ready(&self) {
        let mut changes = self.0.subscribe();
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = changes.wait_for(are_met).await;
    }
}

fn are_met(conditions: &Conditions) -> bool {
    !conditions.values().any(|condition| matches!(condition, Condition::Waiting(_)))
}

/// Changes of the conditions, each call the next one since the last; several may count as one.
#[derive(Debug)]
pub struct Changes {
    receiver: watch::Receiver<Conditions>,
    /// So that the channel outlives everybody else's handle.
    _sender: Arc<watch::Sender<Conditions>>,
}

impl Changes {
    /// Waits for the next change. Cancel safe.
    pub async fn next(&mut self) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = self.receiver.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_ready_once_every_condition_is_met() {
        let readiness = Readiness::new();
        readiness.wait_for("base", "reading the model");
        readiness.wait_for("cache", "connecting");
        readiness.met("cache");
        assert_eq!(readiness.waiting(), [("base".to_owned(), "reading the model".to_owned())]);
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        readiness.clone().met("base");
        waiter.await.unwrap();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_service_that_does_without_something_is_ready_and_says_so() {
        let readiness = Readiness::new();
        readiness.degraded("bus", "away");
        assert_eq!((readiness.is_ready(), readiness.waiting()), (true, Vec::new()));
        assert_eq!(readiness.degradations(), [("bus".to_owned(), "away".to_owned())]);
        readiness.met("bus");
        assert_eq!(readiness.degradations(), Vec::new());
    }
}

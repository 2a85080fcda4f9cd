//! What a service still waits for, in words an operator can act on.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Named conditions, each met (`None`) or waited for with a reason.
type Conditions = BTreeMap<String, Option<String>>;

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
            conditions.insert(condition.to_owned(), Some(why.into()));
        });
    }

    /// Says that `condition` is met.
    pub fn met(&self, condition: &str) {
        self.0.send_modify(|conditions| {
            conditions.insert(condition.to_owned(), None);
        });
    }

    /// The conditions that are not met, with the reason. Empty: ready.
    #[must_use]
    pub fn waiting(&self) -> Vec<(String, String)> {
        self.0
            .borrow()
            .iter()
            .filter_map(|(condition, why)| why.as_ref().map(|why| (condition.clone(), why.clone())))
            .collect()
    }

    /// Whether every condition is met.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().values().all(Option::is_none)
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
        let _ = changes.wait_for(|conditions| conditions.values().all(Option::is_none)).await;
    }
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
}

//! What a service still waits for, in words an operator can act on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Named conditions, each met or not. Cheap to clone; all clones see the same conditions.
///
/// A service registers its conditions when it is built, so that it is not ready before they are met once.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Option<String>>>>);

impl Readiness {
    /// No conditions: ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `condition` is not met, and why.
    pub fn wait_for(&self, condition: &str, why: impl Into<String>) {
        self.lock().insert(condition.to_owned(), Some(why.into()));
    }

    /// Says that `condition` is met.
    pub fn met(&self, condition: &str) {
        self.lock().insert(condition.to_owned(), None);
    }

    /// The conditions that are not met, with the reason. Empty: ready.
    #[must_use]
    pub fn waiting(&self) -> Vec<(String, String)> {
        self.lock()
            .iter()
            .filter_map(|(condition, why)| why.as_ref().map(|why| (condition.clone(), why.clone())))
            .collect()
    }

    /// Whether every condition is met.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        // The map is whole after every statement, so a poisoned lock carries no torn state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_once_every_condition_is_met() {
        let readiness = Readiness::new();
        readiness.wait_for("base", "reading the model");
        readiness.wait_for("cache", "connecting");
        readiness.met("cache");
        assert_eq!(readiness.waiting(), [("base".to_owned(), "reading the model".to_owned())]);
        readiness.clone().met("base");
        assert!(readiness.is_ready());
    }
}

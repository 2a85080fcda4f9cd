//! What happened: events with their times, counts, and what broke a rule.

use crate::checks::Rule;
use crate::machine;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Events that are kept for whoever asks what led to something; all of them are in the hash.
const EVENTS_KEPT_MAX: usize = 20_000;

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What was seen and what was expected.
    pub seen: String,
    /// When, since the simulation began.
    pub at: Duration,
}

/// Events, counts and violations of one simulation.
#[derive(Default)]
pub struct Record(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    events: Vec<String>,
    events_total: u64,
    hash: Sha256,
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<Violation>,
}

impl Record {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened at `who`.
    pub fn event(&self, who: &str, what: impl AsRef<str>) {
        let at = machine::elapsed();
        let line = format!("{:9.3} s  {who:<11} {}", at.as_secs_f64(), what.as_ref());
        let mut inner = self.inner();
        inner.hash.update(line.as_bytes());
        inner.hash.update(b"\n");
        inner.events_total += 1;
        if inner.events.len() < EVENTS_KEPT_MAX {
            inner.events.push(line);
        }
    }

    /// One more of these.
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    /// So many more of these.
    pub fn add(&self, what: &'static str, many: u64) {
        *self.inner().counts.entry(what).or_default() += many;
    }

    /// A rule did not hold.
    pub fn violated(&self, rule: Rule, seen: impl Into<String>) {
        let violation = Violation { rule, seen: seen.into(), at: machine::elapsed() };
        self.event("RULE", format!("{rule:?} broken: {}", violation.seen));
        self.inner().violations.push(violation);
    }

    /// The rules that did not hold, in order.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.inner().violations.clone()
    }

    /// Whether one did not hold.
    #[must_use]
    pub fn is_violated(&self) -> bool {
        !self.inner().violations.is_empty()
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inner().counts.clone()
    }

    /// The events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        self.inner().events.clone()
    }

    /// SHA-256 of all events, in hex: two runs with one hash took the same course.
    #[must_use]
    pub fn hash(&self) -> String {
        let inner = self.inner();
        let hash = inner.hash.clone().chain_update(inner.events_total.to_le_bytes()).finalize();
        hash.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

//! Many seeds, each in a process of its own, and whether enough happened in them to say something.

use crate::Kind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events that are shown before a broken rule.
const EVENTS_SHOWN: usize = 60;

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Sum {
    /// How many ran.
    pub seeds: u64,
    /// How often what happened, all seeds together.
    pub counts: BTreeMap<String, u64>,
    /// Of each seed that broke a rule, or did not come to an end: what there is to say.
    pub failures: BTreeMap<u64, String>,
}

/// The outcome of one seed as a line of JSON, for [`run`].
#[must_use]
pub fn line(outcome: &crate::Outcome) -> String {
    let violations = outcome.violations.iter().map(|broken| format!("{:?}: {}", broken.rule, broken.seen));
    let shown = outcome.events.len().saturating_sub(EVENTS_SHOWN);
    json!({
        "seed": outcome.seed,
        "hash": outcome.hash,
        "lasted_ms": outcome.lasted.as_millis() as u64,
        "counts": outcome.counts,
        "violations": violations.collect::<Vec<_>>(),
        "events": if outcome.violations.is_empty() { &[][..] } else { &outcome.events[shown..] },
    })
    .to_string()
}

/// Runs one seed by `program` (`weft-simulation`), in a process of its own: its line.
///
/// # Errors
/// It did not come to an end; what it said.
pub fn one(program: &Path, seed: u64) -> Result<Value, String> {
    let run = Command::new(program).args(["line", &seed.to_string()]).output();
    let run = run.map_err(|error| format!("{}: {error}", program.display()))?;
    serde_json::from_slice(&run.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        format!("ended with {} and no outcome; it said:\n{said}", run.status)
    })
}

/// Runs so many seeds from `first` on, `jobs` at a time. `failed` is told of each one that broke a rule as soon as it did.
#[must_use]
pub fn run(program: &Path, first: u64, seeds: u64, jobs: usize, failed: impl Fn(u64, &str) + Sync) -> Sum {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= seeds {
                        return;
                    }
                    let seed = first + nth;
                    let outcome = one(program, seed);
                    let mut sum = sum.lock().expect("no holder panics");
                    sum.take_in(seed, outcome);
                    if let Some(problem) = sum.failures.get(&seed) {
                        failed(seed, problem);
                    }
                }
            });
        }
    });
    sum.into_inner().expect("no holder panics")
}

impl Sum {
    fn take_in(&mut self, seed: u64, outcome: Result<Value, String>) {
        self.seeds += 1;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(problem) => {
                self.failures.insert(seed, problem);
                return;
            }
        };
        for (what, many) in outcome["counts"].as_object().into_iter().flatten() {
            *self.counts.entry(what.clone()).or_default() += many.as_u64().unwrap_or_default();
        }
        let lines = |name: &str| {
            let lines = outcome[name].as_array().into_iter().flatten().filter_map(Value::as_str);
            lines.map(|line| format!("  {line}\n")).collect::<String>()
        };
        if outcome["violations"].as_array().is_none_or(|broken| !broken.is_empty()) {
            self.failures.insert(seed, format!("broken:\n{}before that:\n{}", lines("violations"), lines("events")));
        }
    }

    /// What did not happen often enough for a hundred seeds without a broken rule to mean anything; empty if all of it did.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let faults = Kind::ALL.iter().map(|kind| (kind.name(), self.seeds / 5));
        let deeds = [
            ("answers", 30),
            ("tokens", 400),
            ("versions published", 6),
            ("aliases moved", 6),
            ("keys made", 4),
            ("keys revoked", 2),
            ("keys seen", 3),
            ("revocations seen", 3),
            ("lists of versions", 4),
            ("tries again", 2),
            ("retries at gateways", 1),
            ("answers that went on elsewhere", 1),
        ];
        let deeds = deeds.into_iter().map(|(what, of_each)| (what, of_each * self.seeds));
        let at_all = ["wrong bytes noticed", "s3 answer lost", "s3 request refused", "s3 request never answered"];
        let least = faults.chain(deeds).chain(at_all.into_iter().map(|what| (what, self.seeds / 5)));
        let counted = |what: &str| self.counts.get(what).copied().unwrap_or_default();
        let missing = least.filter(|(what, least)| counted(what) < *least);
        missing.map(|(what, least)| format!("{what}: {} instead of {least} or more", counted(what))).collect()
    }
}

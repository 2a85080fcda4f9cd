//! What becomes of one request of an experiment: noted on the way, counted once, when the last part of its answer goes.

use super::record::{Outcome, Recorder};
use super::{Assigned, locked};
use crate::metrics::Metrics;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// One request with one arm, however many answers it has.
pub(crate) struct Trial {
    recorder: Arc<Mutex<Recorder>>,
    phase: usize,
    arm: usize,
    counts: bool,
    response_id: String,
    metrics: Metrics,
    began: Instant,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    first_token: Option<Duration>,
    finished: bool,
    failed: bool,
    tokens: u64,
    is_cut: bool,
    answer: Option<String>,
}

impl Trial {
    pub(super) fn new(
        recorder: Arc<Mutex<Recorder>>,
        assigned: &Assigned,
        arm: usize,
        counts: bool,
        response_id: String,
        metrics: Metrics,
    ) -> Self {
        let (phase, began) = (assigned.assignment.phase, Instant::now());
        Self { recorder, phase, arm, counts, response_id, metrics, began, noted: Mutex::default() }
    }

    fn note(&self, note: impl FnOnce(&mut Noted)) {
        // Plain assignments: a poisoned lock carries no torn state.
        note(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The first token of one of its answers is there.
    pub(crate) fn first_token(&self, after: Duration) {
        self.note(|noted| noted.first_token = Some(noted.first_token.map_or(after, |first| first.min(after))));
    }

    /// One of its answers is complete.
    pub(crate) fn finished(&self, finished: &pb::Finished) {
        self.note(|noted| {
            noted.finished = true;
            noted.tokens += u64::from(finished.completion_tokens);
            noted.is_cut |= finished.reason() == pb::FinishReason::Length;
        });
    }

    /// One of its answers failed. What the client did wrong is no failure of the arm.
    pub(crate) fn failed(&self, fault: &Fault) {
        if fault.kind.http_status().is_server_error() {
            self.note(|noted| noted.failed = true);
        }
    }

    /// A shadow's answer, for the log.
    pub(crate) fn answered(&self, text: String) {
        self.note(|noted| noted.answer = Some(text));
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let noted = std::mem::take(self.noted.get_mut().unwrap_or_else(PoisonError::into_inner));
        let end = match (noted.failed, noted.finished) {
            (true, _) => "failed",
            (false, true) => "finished",
            (false, false) => "cancelled",
        };
        let mut outcome = Outcome {
            end,
            ttft_ms: noted.first_token.map(|after| after.as_secs_f64() * 1e3),
            duration_ms: self.began.elapsed().as_secs_f64() * 1e3,
            tokens: noted.tokens,
            is_cut: noted.is_cut,
            counts: self.counts,
            answer: noted.answer,
        };
        let is_lost = locked(&self.recorder).outcome(self.phase, self.arm, &self.response_id, &mut outcome);
        self.metrics.experiment_log_dropped.inc_by(u64::from(is_lost));
    }
}

//! One experiment at this gateway: sums, which keys were seen, and the lines of its exposure log that are not told yet.

use super::{Assigned, Origin, ResponseId};
use crate::clock::unix_ms;
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::watch;
use weft_experiments::{Experiment, RecentKeys, Statistics};
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;

/// Keys that are remembered, and answers whose feedback is: about 32 bytes each.
const REMEMBERED_MAX: usize = 1 << 17;
/// Log that waits to be told; more is dropped and counted. A registry takes 1 MiB in one report.
const LOG_BYTES_MAX: usize = 1 << 20;
/// Of a shadow's answer so much is kept.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Metrics that the gateway measures: nobody else has a word in them.
const OURS: [&str; 5] = ["error", "ttft_ms", "duration_ms", "tokens", "cut"];

/// This gateway does not know enough yet.
pub(crate) fn not_yet() -> Fault {
    Fault::unavailable("this gateway does not know the experiment yet: send the feedback again")
        .with_code("experiment_unknown")
        .with_retry_after_ms(2_000)
}

/// A client's word about an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Feedback {
    /// The metric that it is a value of.
    pub(crate) metric: String,
    pub(crate) value: f64,
    /// For the log.
    pub(crate) label: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// Whether it counts; else why not.
    pub(crate) counted: Result<(), &'static str>,
    pub(crate) arm: String,
    /// The report that carries it.
    pub(super) report: u64,
}

/// One line of the log.
#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    kind: &'static str,
    phase: usize,
    arm: &'a str,
    response_id: &'a str,
    #[serde(flatten)]
    more: More<'a>,
}

/// What a line says besides.
#[derive(Serialize)]
#[serde(untagged)]
enum More<'a> {
    Exposure { request_id: &'a str, key: Option<String>, is_unit: bool },
    Outcome(&'a Outcome),
    Feedback { metric: &'a str, value: f64, label: Option<&'a str> },
}

/// What became of a request. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Outcome {
    /// "finished", "failed" or "cancelled".
    pub(super) end: &'static str,
    pub(super) ttft_ms: Option<f64>,
    pub(super) duration_ms: f64,
    pub(super) tokens: u64,
    /// Ended because no more tokens were allowed.
    pub(super) is_cut: bool,
    pub(super) counts: bool,
    /// A shadow's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<String>,
}

/// How far reports got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) kept: u64,
    pub(super) refused: u64,
}

pub(super) struct Recorder {
    /// What the registry knows this recorder by: one life of it, for its sums start anew with each.
    reporter: String,
    /// The newest description that was seen.
    pub(super) experiment: Arc<Experiment>,
    statistics: Statistics,
    keys: RecentKeys,
    answers: RecentKeys,
    log: Vec<u8>,
    is_dirty: bool,
    /// Reports that were made.
    sequence: u64,
    /// Made and not answered: it is sent again as it is, so that it counts once.
    pub(super) pending: Option<pb::ReportObservationsRequest>,
    /// The last report that the registry has, and the last that it refused for good.
    pub(super) told: watch::Sender<Told>,
}

impl Recorder {
    pub(super) fn new(experiment: &Arc<Experiment>) -> Self {
        Self {
            reporter: uuid::Uuid::new_v4().to_string(),
            experiment: Arc::clone(experiment),
            statistics: Statistics::new(experiment),
            keys: RecentKeys::new(REMEMBERED_MAX),
            answers: RecentKeys::new(REMEMBERED_MAX),
            log: Vec::new(),
            is_dirty: false,
            sequence: 0,
            pending: None,
            told: watch::Sender::new(Told::default()),
        }
    }

    pub(super) fn is_new_key(&mut self, key: Option<u64>) -> bool {
        self.keys.is_new(key)
    }

    fn sees(&mut self, experiment: &Arc<Experiment>) {
        if experiment.revision > self.experiment.revision {
            self.experiment = Arc::clone(experiment);
        }
    }

    /// Counts a request of an arm. Returns whether its line had no room in the log.
    pub(super) fn expose(
        &mut self,
        assigned: &Assigned,
        arm: usize,
        is_unit: bool,
        response: &ResponseId,
        request_id: &str,
    ) -> bool {
        self.sees(&assigned.experiment);
        let phase = assigned.assignment.phase;
        if let Err(error) = self.statistics.expose(&self.experiment, phase, arm, is_unit) {
            tracing::warn!(experiment = self.experiment.id, %error, "an exposure is not counted");
        }
        let key = assigned.assignment.key.map(|key| format!("{key:016x}"));
        self.note("exposure", phase, arm, &response.plain(), More::Exposure { request_id, key, is_unit })
    }

    /// Counts what became of a request. Metrics of these names are the gateway's own.
    pub(super) fn outcome(&mut self, phase: usize, arm: usize, response_id: &str, outcome: &mut Outcome) -> bool {
        if let Some(answer) = &mut outcome.answer {
            answer.truncate(answer.floor_char_boundary(ANSWER_BYTES_MAX));
        }
        let has_failed = outcome.end == "failed";
        let is_whole = outcome.end == "finished";
        let measured = [
            ("error", Some(f64::from(u8::from(has_failed)))),
            ("ttft_ms", outcome.ttft_ms),
            ("duration_ms", is_whole.then_some(outcome.duration_ms)),
            ("tokens", is_whole.then_some(outcome.tokens as f64)),
            ("cut", is_whole.then_some(f64::from(u8::from(outcome.is_cut)))),
        ];
        for (name, value) in measured {
            if let (true, Some(value), Some(metric)) = (outcome.counts, value, self.experiment.metric(name)) {
                // A description that gives our metrics another kind is its author's to mend; the log has the value.
                let _ = self.statistics.record(&self.experiment, phase, arm, metric, value);
            }
        }
        self.note("outcome", phase, arm, response_id, More::Outcome(outcome))
    }

    /// Counts a client's word: once for each answer and metric.
    ///
    /// # Errors
    /// The metric is none of the experiment's, or the value none of the metric's.
    pub(super) fn feedback(
        &mut self,
        experiment: &Arc<Experiment>,
        origin: &Origin,
        answer: &str,
        feedback: &Feedback,
    ) -> Result<Recorded, Fault> {
        self.sees(experiment);
        let (phase, arm) = (usize::from(origin.phase), usize::from(origin.arm));
        let Some(described) = self.experiment.arms.get(arm) else {
            return Err(Fault::not_found("there is no such answer of yours"));
        };
        let name = described.name.clone();
        if OURS.contains(&feedback.metric.as_str()) {
            let message = format!("`metric` is {:?}, which the gateway measures itself", feedback.metric);
            return Err(Fault::invalid("metric", message));
        }
        if phase > self.experiment.phase() {
            // Another gateway has seen a change that this one has not.
            return Err(not_yet());
        }
        let Some(metric) = self.experiment.metric(&feedback.metric) else {
            let known: Vec<&str> = self.experiment.metrics.iter().map(|metric| metric.name.as_str()).collect();
            let message = format!("`metric` is {:?}, the experiment has {}", feedback.metric, known.join(", "));
            return Err(Fault::invalid("metric", message));
        };
        let said = weft_types::Digest::of(format!("{answer} {metric}").as_bytes());
        let said = u64::from_le_bytes(said.as_bytes()[..8].try_into().expect("a digest has 32 bytes"));
        if !origin.counts {
            return Ok(Recorded { counted: Err("an earlier answer to the same key counts"), arm: name, report: 0 });
        }
        if self.answers.contains(said) {
            // Said again, perhaps because the first answer was lost: it is told with the next report at the latest.
            return Ok(Recorded { counted: Err("it was counted before"), arm: name, report: self.due() });
        }
        self.statistics
            .record(&self.experiment, phase, arm, metric, feedback.value)
            .map_err(|error| Fault::invalid("score", error.to_string()))?;
        self.answers.is_new(Some(said));
        let label = feedback.label.as_deref();
        let more = More::Feedback { metric: &feedback.metric, value: feedback.value, label };
        self.note("feedback", phase, arm, answer, more);
        Ok(Recorded { counted: Ok(()), arm: name, report: self.due() })
    }

    /// The report with everything that was counted so far.
    fn due(&self) -> u64 {
        if self.is_dirty { self.sequence + 1 } else { self.sequence }
    }

    fn note(&mut self, kind: &'static str, phase: usize, arm: usize, response_id: &str, more: More<'_>) -> bool {
        self.is_dirty = true;
        let arm = self.experiment.arms.get(arm).map_or("", |arm| arm.name.as_str());
        let line = Line { at_ms: unix_ms(), kind, phase, arm, response_id, more };
        let mut line = serde_json::to_vec(&line).expect("log lines are plain data with text keys");
        line.push(b'\n');
        if self.log.len() + line.len() > LOG_BYTES_MAX {
            return true;
        }
        self.log.extend_from_slice(&line);
        false
    }

    /// What is to be told now: the report that is under way, or a new one if there is news.
    pub(super) fn report(&mut self, tenant: &str) -> Option<pb::ReportObservationsRequest> {
        if self.pending.is_none() && self.is_dirty {
            self.sequence += 1;
            self.is_dirty = false;
            self.pending = Some(pb::ReportObservationsRequest {
                tenant: tenant.to_owned(),
                experiment: self.experiment.id.clone(),
                gateway: self.reporter.clone(),
                sequence: self.sequence,
                statistics: serde_json::to_vec(&self.statistics).expect("statistics are plain data").into(),
                exposures: Bytes::from(std::mem::take(&mut self.log)),
                at_ms: unix_ms(),
            });
        }
        self.pending.clone()
    }

    /// The registry has this report, or refuses it for good; another one may have been answered before.
    pub(super) fn was_answered(&mut self, sequence: u64, is_kept: bool) {
        if self.pending.take_if(|pending| pending.sequence == sequence).is_some() {
            self.told.send_modify(|told| match is_kept {
                true => told.kept = sequence,
                false => told.refused = sequence,
            });
        }
    }

    /// Whether everything is told.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_none() && !self.is_dirty
    }
}

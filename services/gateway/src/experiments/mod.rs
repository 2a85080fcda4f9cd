//! Split tests at this gateway: which version a request gets, what is observed of it, and telling the registry.
//!
//! Who gets what is a plain function of the directory's description and the request's key, so that all gateways agree
//! (`weft_experiments::assign`). What is observed is added up here and told to the registry every few seconds; a gateway that dies takes the
//! observations since its last report with it, but none for which a client's feedback was acknowledged.
//!
//! 1. [`assign()`]: the arm of a request; [`Trial`]: what becomes of it.
//! 2. [`ResponseId`]: an answer's id, by which any gateway knows the arm again when feedback comes.
//! 3. [`Recorder`]: one experiment's sums and log.
//! 4. [`mirror`]: copies of requests for shadow arms.
//! 5. [`report()`]: the way to the registry.

mod id;
mod record;
mod report;
mod shadow;
mod trial;

pub(crate) use id::{Origin, ResponseId};
pub(crate) use record::{Feedback, Recorded, not_yet};
pub(crate) use report::{report, report_rest};
pub(crate) use shadow::mirror;
pub(crate) use trial::Trial;

use crate::directory::Tenant;
use crate::metrics::Metrics;
use record::Recorder;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};
use weft_experiments::{Assignment, Experiment, Key, RecentKeys};

/// A key that users or sessions send may have so many bytes; longer ones are as good as their hash.
const KEY_BYTES_MAX: usize = 256;

/// Clients that wait for their feedback to be kept; more are told to come back.
const WAITING_MAX: usize = 512;

/// Experiments that are remembered.
const SEEN_MAX: usize = 4096;

/// By tenant and experiment.
type Recorders = HashMap<(String, String), Arc<Mutex<Recorder>>>;

/// All experiments that this gateway has seen requests of.
pub(crate) struct Experiments {
    /// By tenant and id. Entries go when the experiment has left the directory and all is told.
    recorders: Mutex<Recorders>,
    /// Something waits to be told before the next regular report.
    hurry: Notify,
    /// Mirrored requests at once.
    pub(crate) shadows: Arc<Semaphore>,
    /// Clients whose feedback is being kept.
    waiting: Semaphore,
    /// Experiments that had a recorder here: one that is not in the directory any more has ended.
    seen: Mutex<RecentKeys>,
    metrics: Metrics,
}

/// The arm of a request.
#[derive(Clone, Debug)]
pub(crate) struct Assigned {
    pub(crate) experiment: Arc<Experiment>,
    pub(crate) assignment: Assignment,
}

impl Assigned {
    /// `experiment/arm`, for people.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.experiment.id, self.experiment.arms[self.assignment.arm].name)
    }
}

/// Which arm of the experiment a request gets; `None` if it does not run. A request without a key gets an arm of its own.
pub(crate) fn assign(experiment: &Arc<Experiment>, key: Option<&str>) -> Option<Assigned> {
    let hashed;
    let key = match key {
        Some(key) if key.len() > KEY_BYTES_MAX => {
            hashed = weft_types::Digest::of(key.as_bytes()).to_string();
            Key::Sticky(&hashed)
        }
        Some(key) => Key::Sticky(key),
        None => Key::Random(rand::random()),
    };
    let assignment = weft_experiments::assign(experiment, key)?;
    Some(Assigned { experiment: Arc::clone(experiment), assignment })
}

impl Experiments {
    pub(crate) fn new(shadows_max: usize, metrics: Metrics) -> Self {
        let shadows = Arc::new(Semaphore::new(shadows_max));
        let waiting = Semaphore::new(WAITING_MAX);
        let seen = Mutex::new(RecentKeys::new(SEEN_MAX));
        Self { recorders: Mutex::default(), hurry: Notify::new(), shadows, waiting, seen, metrics }
    }

    fn recorders(&self) -> MutexGuard<'_, Recorders> {
        // Entries are put in and taken out whole, so that a poisoned lock carries no torn state.
        self.recorders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the experiment of this answer had requests here.
    pub(crate) fn has_seen(&self, origin: &Origin) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(origin.number())
    }

    fn recorder(&self, tenant: &str, experiment: &Arc<Experiment>) -> Arc<Mutex<Recorder>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_new(Some(id::short_number(&experiment.id)));
        let mut recorders = self.recorders();
        let key = (tenant.to_owned(), experiment.id.clone());
        Arc::clone(recorders.entry(key).or_insert_with(|| Arc::new(Mutex::new(Recorder::new(experiment)))))
    }

    /// Counts a request with this arm, and says how it is to be observed.
    pub(crate) fn enter(self: &Arc<Self>, tenant: &Tenant, assigned: &Assigned, request_id: &str) -> Entered {
        let recorder = self.recorder(&tenant.name, &assigned.experiment);
        let response = ResponseId::new(tenant.salt.as_ref());
        let is_unit = locked(&recorder).is_new_key(assigned.assignment.key);
        let entered = Entered { experiments: Arc::clone(self), recorder, response, is_unit };
        entered.expose(assigned, assigned.assignment.arm, request_id);
        let labels = [&tenant.name, &assigned.experiment.id, arm(assigned)];
        self.metrics.experiment_exposures.with_label_values(&labels).inc();
        entered
    }

    /// Counts a client's word about an answer. `Ok` once the registry has it, or at once where there is nothing to count.
    ///
    /// # Errors
    /// The registry could not be told in time: the word is counted here and may be said again.
    pub(crate) async fn feedback(
        &self,
        tenant: &Tenant,
        experiment: &Arc<Experiment>,
        origin: &Origin,
        answer: &str,
        feedback: &Feedback,
    ) -> Result<Recorded, weft_fault::Fault> {
        let busy = |_| {
            let message = format!("{WAITING_MAX} clients wait for their feedback to be kept");
            weft_fault::Fault::new(weft_fault::Kind::Overloaded, message).with_retry_after_ms(1_000)
        };
        let _waiting = self.waiting.try_acquire().map_err(busy)?;
        let recorder = self.recorder(&tenant.name, experiment);
        let recorded = locked(&recorder).feedback(experiment, origin, answer, feedback)?;
        self.hurry.notify_one();
        report::told(&recorder, recorded.report).await?;
        Ok(recorded)
    }
}

fn arm(assigned: &Assigned) -> &str {
    &assigned.experiment.arms[assigned.assignment.arm].name
}

fn locked(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    // Sums and log lines are changed whole, so that a poisoned lock carries no torn state.
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that takes part in an experiment.
pub(crate) struct Entered {
    experiments: Arc<Experiments>,
    recorder: Arc<Mutex<Recorder>>,
    response: ResponseId,
    is_unit: bool,
}

impl Entered {
    fn expose(&self, assigned: &Assigned, arm: usize, request_id: &str) {
        let lost = locked(&self.recorder).expose(assigned, arm, self.is_unit, &self.response, request_id);
        self.experiments.metrics.experiment_log_dropped.inc_by(u64::from(lost));
    }

    /// The id that the answer has: it carries the arm.
    pub(crate) fn response_id(&self, assigned: &Assigned) -> String {
        self.response.with_origin(&self.origin(assigned, assigned.assignment.arm))
    }

    fn origin(&self, assigned: &Assigned, arm: usize) -> Origin {
        Origin::new(&assigned.experiment, assigned.assignment.phase, arm, self.counts(assigned))
    }

    /// Whether what is observed counts: with units of keys only the first request of a key does.
    fn counts(&self, assigned: &Assigned) -> bool {
        self.is_unit || assigned.experiment.unit == weft_experiments::Unit::Request
    }

    /// What becomes of the request.
    pub(crate) fn trial(&self, assigned: &Assigned) -> Arc<Trial> {
        self.trial_of(assigned, assigned.assignment.arm)
    }

    /// A copy of the request for a shadow arm, and what becomes of it.
    pub(crate) fn shadow(&self, assigned: &Assigned, arm: usize, request_id: &str) -> Arc<Trial> {
        self.expose(assigned, arm, request_id);
        self.trial_of(assigned, arm)
    }

    fn trial_of(&self, assigned: &Assigned, arm: usize) -> Arc<Trial> {
        Arc::new(Trial::new(
            Arc::clone(&self.recorder),
            assigned,
            arm,
            self.counts(assigned),
            self.response.plain(),
            self.experiments.metrics.clone(),
        ))
    }
}

//! Telling the registry what was observed: every few seconds, and soon when a client waits for its feedback to be kept.

use super::locked;
use super::record::Recorder;
use crate::app::Gateway;
use futures::StreamExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weft_fault::{Fault, Kind};

/// Feedback that comes within this time is told with the first of it.
const GROUP: Duration = Duration::from_millis(50);
/// Longest wait of a client for its feedback to be kept.
const FEEDBACK_WAIT: Duration = Duration::from_secs(10);
/// Experiments that are told about at once.
const AT_ONCE: usize = 16;
/// Between two tries while the registry is away.
const AGAIN: Duration = Duration::from_millis(500);

/// Tells what was observed, for ever. Cancel safe: what was not answered is told again.
pub(crate) async fn report(gateway: Arc<Gateway>) {
    let interval = Duration::from_millis(gateway.settings.experiment_report_ms);
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = gateway.experiments.hurry.notified() => tokio::time::sleep(GROUP).await,
        }
        if !report_once(&gateway).await {
            tokio::time::sleep(AGAIN).await;
            // Whoever waits still does.
            gateway.experiments.hurry.notify_one();
        }
    }
}

/// Tells all that is to be told. Returns whether the registry has it.
async fn report_once(gateway: &Gateway) -> bool {
    let recorders: Vec<_> =
        gateway.experiments.recorders().iter().map(|(key, recorder)| (key.clone(), Arc::clone(recorder))).collect();
    let telling = futures::stream::iter(recorders).map(|((tenant, id), recorder)| async move {
        let is_told = tell(gateway, &tenant, &id, &recorder).await;
        forget(gateway, &tenant, &id, recorder);
        is_told
    });
    // One that hangs holds up none of the others.
    telling.buffer_unordered(AT_ONCE).fold(true, |all, is_told| async move { all && is_told }).await
}

/// Tells what one experiment has. Returns whether nothing is left to be tried again.
async fn tell(gateway: &Gateway, tenant: &str, id: &str, recorder: &Mutex<Recorder>) -> bool {
    let Some(report) = locked(recorder).report(tenant) else { return true };
    let sequence = report.sequence;
    let told = gateway.ask(gateway.registry.clone().report_observations(report)).await;
    let result = if told.is_ok() { "ok" } else { "failed" };
    gateway.mesh.metrics.experiment_reports.with_label_values(&[result]).inc();
    match told {
        Ok(_) => locked(recorder).was_answered(sequence, true),
        // A later try would fare no better: the experiment is gone, the report wrong, or what it would replace damaged.
        Err(fault) if !matches!(fault.kind, Kind::Unavailable | Kind::Timeout | Kind::Overloaded | Kind::Internal) => {
            tracing::error!(tenant, experiment = id, fault = %fault, "observations are dropped");
            locked(recorder).was_answered(sequence, false);
        }
        Err(fault) => {
            tracing::warn!(tenant, experiment = id, fault = %fault, "observations wait to be told");
            return false;
        }
    }
    true
}

/// Tells what is left, after the last answer: at most two passes, for a report may be under way when the first begins.
pub(crate) async fn report_rest(gateway: &Gateway) {
    for _ in 0..2 {
        report_once(gateway).await;
    }
}

/// Forgets an experiment that does not run any more, once all of it is told and no request of it is under way.
fn forget(gateway: &Gateway, tenant: &str, id: &str, recorder: Arc<Mutex<Recorder>>) {
    let Some(snapshot) = gateway.directory.last() else { return };
    if snapshot.tenant(tenant).is_some_and(|tenant| tenant.experiment(id).is_some()) {
        return;
    }
    let mut recorders = gateway.experiments.recorders();
    // This one and the map's: nobody else has it, and while the map is locked nobody gets it.
    if Arc::strong_count(&recorder) > 2 || !locked(&recorder).is_quiet() {
        return;
    }
    recorders.remove(&(tenant.to_owned(), id.to_owned()));
    for arm in &locked(&recorder).experiment.arms {
        // An arm that nobody got has none.
        let _ = gateway.mesh.metrics.experiment_exposures.remove_label_values(&[tenant, id, &arm.name]);
    }
}

/// Waits until the registry has report number `report`.
pub(super) async fn told(recorder: &Mutex<Recorder>, report: u64) -> Result<(), Fault> {
    let mut told = locked(recorder).told.subscribe();
    let answered = told.wait_for(|told| told.kept >= report || told.refused >= report);
    match tokio::time::timeout(FEEDBACK_WAIT, answered).await {
        Ok(Ok(told)) if told.kept >= report => Ok(()),
        Ok(_) => Err(Fault::internal("the registry does not take this feedback")),
        Err(_) => Err(Fault::unavailable("the registry does not answer: send the feedback again")
            .with_code("registry_unavailable")
            .with_retry_after_ms(1_000)),
    }
}

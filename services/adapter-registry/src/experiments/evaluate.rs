//! What follows from what was observed, done by every registry again and again: conditional writes let only one of them do it.

use super::change::gets_requests;
use super::observations::Observed;
use crate::Error;
use crate::catalog::Tenant;
use crate::core::{Core, now_ms};
use crate::records::ExperimentRecord;
use std::sync::Arc;
use std::time::Duration;
use weft_experiments::{Decision, EndReason, Rule, State, Stop, decide};
use weft_service_kit::shutdown::Shutdown;

/// Who it was, in the history.
const GUARDRAIL: &str = "guardrail";
const SCHEDULE: &str = "schedule";

/// Looks at all running experiments until shutdown.
pub(crate) async fn evaluate(core: Arc<Core>, observed: Arc<Observed>, shutdown: Shutdown) {
    let interval = Duration::from_millis(core.settings.experiment_evaluate_ms);
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = shutdown.wait() => return,
        }
        for record in open(&core) {
            let (tenant, id) = (record.experiment.tenant.clone(), record.experiment.id.clone());
            let result = evaluate_one(&core, &observed, record).await;
            core.metrics.experiments_evaluated(result.is_ok());
            if let Err(error) = result {
                // Another registry was first, or the store is away: the next turn sees.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%tenant, experiment = id, error, "an experiment is left as it is");
            }
        }
    }
}

/// Experiments that run, or whose end is not done: the alias of one that has ended names nobody.
fn open(core: &Core) -> Vec<ExperimentRecord> {
    let catalog = core.catalog();
    let all =
        catalog.tenants.values().flat_map(|tenant| tenant.experiments.values().map(move |record| (tenant, record)));
    let is_open = |(tenant, record): &(&Tenant, &ExperimentRecord)| {
        let is_half_done = record.ending.as_ref().is_some_and(|end| *end != record.experiment.state);
        record.is_running() || is_half_done || (record.ending.is_some() && tenant.is_claimed_by(record))
    };
    all.filter(is_open).map(|(_, record)| record.clone()).collect()
}

async fn evaluate_one(core: &Core, observed: &Observed, record: ExperimentRecord) -> Result<(), Error> {
    if record.ending.is_some() {
        return core.finish_experiment(record).await.map(drop);
    }
    let statistics = observed.gather(core, &record.experiment).await?;
    let experiment = record.experiment.clone();
    let decision = tokio::task::spawn_blocking(move || decide(&experiment, &statistics, now_ms())).await?;
    let (tenant, id) = (&record.experiment.tenant, record.experiment.id.as_str());
    match decision {
        // Promoting is for people: an experiment that has a winner goes on until they do.
        Decision::Keep { .. } | Decision::Winner { .. } => {}
        Decision::StopArms { stops } => {
            for stop in stops {
                let changed = |now: &ExperimentRecord| match gets_requests(&now.experiment, &stop.arm) {
                    // What was shown once stays shown, whatever its weight is now.
                    true if now.is_running() => {
                        let without = now.experiment.without_arm(&stop.arm);
                        without.map(Some).map_err(|error| Error::Conflict(error.to_string()))
                    }
                    _ => Ok(None),
                };
                core.update_experiment(tenant, id, GUARDRAIL, told(&stop), changed).await?;
                core.metrics.experiment_arms_stopped.inc();
            }
        }
        Decision::End { reason } => {
            let why = match reason {
                EndReason::Time => "stopped: its time is over",
                EndReason::NoArms => "stopped: no arm beside the control is left",
            };
            core.end_experiment(tenant, id, State::Stopped, SCHEDULE, why.to_owned()).await?;
        }
    }
    Ok(())
}

fn told(stop: &Stop) -> String {
    let Stop { arm, metric, rule, at_least } = stop;
    match rule {
        Rule::WorseBy(margin) => {
            format!("arm {arm} is stopped: {metric} is off the control's by {at_least:.4} at best, allowed is {margin}")
        }
        Rule::Limit(limit) => format!("arm {arm} is stopped: {metric} is {at_least:.4} at best, the limit is {limit}"),
    }
}

//! Copies of requests for shadow arms: answered after the request itself was let in, recorded, returned to nobody.
//!
//! They are nobody's to pay, have the least priority and are bounded: one that finds no room is dropped and counted.

use super::{Assigned, Entered};
use crate::app::Gateway;
use crate::generate::{Admission, Wanted};
use crate::http::Known;
use crate::quota::Meter;
use crate::resolve::Resolved;
use std::sync::Arc;

/// The last in the worker's queue.
const PRIORITY: i32 = 1;

/// Sends a copy of the request to each of its shadow arms; a request with several answers is copied once.
pub(crate) fn mirror(
    gateway: &Gateway,
    entered: &Entered,
    assigned: &Assigned,
    admission: &Admission,
    wanted: &[Wanted],
) {
    let Some(wanted) = wanted.first() else { return };
    let results = &gateway.mesh.metrics.experiment_shadows;
    for arm in &assigned.assignment.shadows {
        let digest = assigned.experiment.arms[*arm].digest;
        let name = assigned.experiment.adapter.as_str();
        let adapter = admission.tenant.adapters.get(name);
        let version = adapter.and_then(|known| known.versions.iter().find(|(_, known)| **known == digest));
        let room = Arc::clone(&gateway.experiments.shadows).try_acquire_owned();
        let (Some((version, _)), Ok(room)) = (version, room) else {
            results.with_label_values(&["dropped"]).inc();
            continue;
        };
        let trial = entered.shadow(assigned, *arm, &admission.request_id);
        let admission = Admission {
            request_id: format!("{}.shadow", admission.request_id),
            known: Known::default(),
            resolved: Resolved::Adapter { name: name.to_owned(), version: *version, digest },
            meter: Meter::free(),
            trial: Some(Arc::clone(&trial)),
            account: None,
            ..admission.clone()
        };
        let wanted = Wanted { priority: PRIORITY, ..wanted.clone() };
        let (mesh, results) = (Arc::clone(&gateway.mesh), results.clone());
        tokio::spawn(async move {
            let _room = room;
            let answer = match mesh.start(&admission, &wanted).await {
                Ok(mut generation) => generation.collect().await,
                Err(fault) => Err(fault),
            };
            results.with_label_values(&[if answer.is_ok() { "answered" } else { "failed" }]).inc();
            if let Ok(answer) = answer {
                trial.answered(answer.text);
            }
        });
    }
}

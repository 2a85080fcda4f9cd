//! What gateways observed: for each gateway one document with all its statistics, which replaces the one before, and the exposure
//! log, in objects that are written once.
//!
//! Statistics add up, so each gateway's document counts once. They are no records: a directory does not need them, and they change all the time.

use super::change::unknown;
use crate::Error;
use crate::core::{Core, now_ms};
use crate::layout::{is_experiment_id, observations_prefix};
use crate::records::ExperimentRecord;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use weft_experiments::{Experiment, State, Statistics};
use weft_object_store::{ETag, ObjectMeta, PutOutcome};
use weft_proto::registry::v1 as pb;
use weft_types::TenantName;

/// Longest document of one gateway, and longest piece of an exposure log.
const REPORT_BYTES_MAX: usize = 1 << 20;
/// Gateways' lives that may report to one experiment.
const REPORTERS_MAX: usize = 4_096;
/// Documents kept in memory, all experiments together.
const KEPT_MAX: usize = 1_024;
/// How far a gateway's clock may be off ours.
const CLOCK_SKEW_MS: u64 = 24 * 3_600_000;
const GATEWAY_BYTES_MAX: usize = 64;

/// One gateway's statistics.
#[derive(Deserialize, Serialize)]
struct Document {
    sequence: u64,
    statistics: Statistics,
}

/// Documents that were read, so that only those that changed are read again.
#[derive(Default)]
pub(crate) struct Observed(Mutex<HashMap<String, (ETag, Statistics)>>);

impl Observed {
    /// All gateways' statistics of an experiment, added up. Cost: a listing, and a read for each document that changed.
    pub(super) async fn gather(&self, core: &Core, experiment: &Experiment) -> Result<Statistics, Error> {
        let prefix = format!("{}statistics/", observations_prefix(&experiment.tenant, &experiment.id));
        let mut sum = Statistics::new(experiment);
        for object in core.store.list(&prefix).await? {
            if let Some(statistics) = self.read(core, &object).await?
                && let Err(error) = sum.merge(&statistics)
            {
                tracing::error!(key = object.key, %error, "statistics are left out");
            }
        }
        Ok(sum)
    }

    async fn read(&self, core: &Core, object: &ObjectMeta) -> Result<Option<Statistics>, Error> {
        let known = |documents: &HashMap<String, (ETag, Statistics)>| {
            documents
                .get(&object.key)
                .filter(|(etag, _)| *etag == object.etag)
                .map(|(_, statistics)| statistics.clone())
        };
        if let Some(statistics) = known(&self.documents()) {
            return Ok(Some(statistics));
        }
        let Some(found) = core.store.get(&object.key).await? else { return Ok(None) };
        let document: Document = match serde_json::from_slice(&found.bytes) {
            Ok(document) => document,
            Err(error) => {
                tracing::error!(key = object.key, %error, "an object of an experiment is damaged and left out");
                return Ok(None);
            }
        };
        let mut documents = self.documents();
        if documents.len() >= KEPT_MAX {
            documents.clear();
        }
        documents.insert(object.key.clone(), (found.etag, document.statistics.clone()));
        Ok(Some(document.statistics))
    }

    fn documents(&self) -> std::sync::MutexGuard<'_, HashMap<String, (ETag, Statistics)>> {
        // Entries are put in whole, so that a poisoned lock carries no torn state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_long(param: &'static str, bytes: usize) -> Error {
    Error::invalid(param, format!("{param} has {bytes} bytes, the limit is {REPORT_BYTES_MAX}"))
}

impl Core {
    /// Keeps a gateway's report. A report that is kept already, or was overtaken by a later one, changes nothing.
    pub(crate) async fn keep_observations(&self, report: pb::ReportObservationsRequest) -> Result<(), Error> {
        let tenant: TenantName = report.tenant.parse().map_err(|source| Error::Name { param: "tenant", source })?;
        let id = report.experiment.as_str();
        let record = self.observable(&tenant, id).await?;
        let gateway = &report.gateway;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if gateway.is_empty() || gateway.len() > GATEWAY_BYTES_MAX || !gateway.bytes().all(is_plain) {
            let message = format!("gateway must be 1 to {GATEWAY_BYTES_MAX} letters, digits and dashes");
            return Err(Error::invalid("gateway", message));
        }
        for (param, bytes) in [("statistics", report.statistics.len()), ("exposures", report.exposures.len())] {
            if bytes > REPORT_BYTES_MAX {
                return Err(too_long(param, bytes));
            }
        }
        let day = day_of(report.at_ms)?;
        let statistics: Statistics = serde_json::from_slice(&report.statistics)
            .map_err(|error| Error::invalid("statistics", format!("statistics: {error}")))?;
        let mut check = Statistics::new(&record.experiment);
        check.merge(&statistics).map_err(|error| Error::invalid("statistics", error.to_string()))?;
        let prefix = observations_prefix(&tenant, id);
        let key = format!("{prefix}statistics/{gateway}.json");
        let document = serde_json::to_vec(&Document { sequence: report.sequence, statistics });
        let document: bytes::Bytes = document.expect("statistics are plain data").into();
        // Ends: whoever wins against us in a turn has a larger sequence, or is a try of the same report.
        loop {
            let there = match self.store.get(&key).await? {
                Some(object) => {
                    let there: Document = serde_json::from_slice(&object.bytes)
                        .map_err(|error| Error::Damaged { key: key.clone(), problem: error.to_string() })?;
                    if there.sequence >= report.sequence {
                        return Ok(());
                    }
                    Some(object.etag)
                }
                None => {
                    let count = self.store.list(&format!("{prefix}statistics/")).await?.len();
                    if count >= REPORTERS_MAX {
                        return Err(Error::Full { what: format!("reporters to experiment {id}"), max: REPORTERS_MAX });
                    }
                    None
                }
            };
            // The log first: while its report is not the latest, it is written again under the same key.
            if !report.exposures.is_empty() {
                let log = format!("{prefix}exposures/{day}/{gateway}-{:012}.jsonl", report.sequence);
                self.store.put_if_absent(&log, report.exposures.clone()).await?;
            }
            let outcome = match there {
                Some(etag) => self.store.put_if_match(&key, document.clone(), &etag).await?,
                None => self.store.put_if_absent(&key, document.clone()).await?,
            };
            if let PutOutcome::Written(_) = outcome {
                return Ok(());
            }
        }
    }

    /// An experiment that was started once: answers come in when it has ended, too.
    async fn observable(&self, tenant: &TenantName, id: &str) -> Result<ExperimentRecord, Error> {
        let record = match self.experiment(tenant, id) {
            Ok(record) if record.experiment.state != State::Draft => return Ok(record),
            _ => self.fresh_experiment(tenant, id).await?,
        };
        match record.experiment.state {
            State::Draft => Err(Error::Conflict(format!("experiment {id} was not started"))),
            _ => Ok(record),
        }
    }

    /// The objects of one day's exposure log; an empty day is today.
    pub(crate) async fn exposure_log(
        &self,
        tenant: &TenantName,
        id: &str,
        day: &str,
    ) -> Result<Vec<ObjectMeta>, Error> {
        let today = if day.is_empty() { day_of(now_ms())? } else { day.to_owned() };
        let day = today.as_str();
        if day.len() != 10 || time::Date::parse(day, &Iso8601::DATE).is_err() {
            return Err(Error::invalid(
                "day",
                format!("day must be like 2026-01-31, not {:?}", crate::publish::cut(day, 80)),
            ));
        }
        if !is_experiment_id(id) {
            return Err(unknown(tenant, id));
        }
        self.fresh_experiment(tenant, id).await?;
        Ok(self.store.list(&format!("{}exposures/{day}/", observations_prefix(tenant, id))).await?)
    }
}

/// The day in UTC.
fn day_of(at_ms: u64) -> Result<String, Error> {
    let now = now_ms();
    if at_ms.abs_diff(now) > CLOCK_SKEW_MS {
        let message = format!("at_ms is {at_ms}, more than {CLOCK_SKEW_MS} from this registry's clock, {now}");
        return Err(Error::invalid("at_ms", message));
    }
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(at_ms / 1000).unwrap_or(0));
    let day = at.ok().map(|at| at.date().to_string());
    day.ok_or_else(|| Error::invalid("at_ms", format!("at_ms is {at_ms}, which is no day")))
}

//! Create, start, weigh, promote, stop.

use super::observations::Observed;
use crate::Error;
use crate::admin::check_actor;
use crate::core::{self, Core, now_ms};
use crate::layout::{Place, tenant_prefix};
use crate::records::{AliasRecord, ExperimentChange, ExperimentRecord};
use weft_experiments::{ChangeError, Experiment, Report, Role, State, report};
use weft_object_store::ETag;
use weft_proto::registry::v1 as pb;
use weft_types::{Digest, TenantName, VersionNumber};

/// Experiments of one tenant, ended ones among them.
const EXPERIMENTS_PER_TENANT_MAX: usize = 1_000;
/// Changes of a description: far more than a running one can go through.
const CHANGES_MAX: usize = 200;
/// That run at once: so that a directory with everything at its limit still fits one message.
const RUNNING_PER_TENANT_MAX: usize = 16;
pub(crate) const RUNNING_MAX: usize = 256;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    Start,
    Weigh { arm: String, weight: u32 },
    Promote { arm: String },
    Stop,
}

impl Change {
    pub(crate) fn read(change: pb::change_experiment_request::Change) -> Self {
        use pb::change_experiment_request::Change as Wire;
        match change {
            Wire::Start(_) => Self::Start,
            Wire::Weigh(weigh) => Self::Weigh { arm: weigh.arm, weight: weigh.weight },
            Wire::Promote(promote) => Self::Promote { arm: promote.arm },
            Wire::Stop(_) => Self::Stop,
        }
    }
}

fn refused(error: ChangeError) -> Error {
    match error {
        ChangeError::State { .. } | ChangeError::Phases { .. } => Error::Conflict(error.to_string()),
        ChangeError::Arm { .. } => Error::invalid("arm", error.to_string()),
        ChangeError::Weight { .. } => Error::invalid("weight", error.to_string()),
    }
}

pub(super) fn unknown(tenant: &TenantName, id: &str) -> Error {
    Error::NotFound(format!("tenant {tenant} has no experiment {:?}", id.chars().take(80).collect::<String>()))
}

impl Core {
    /// Writes a draft; the same description again is the draft that it was.
    pub(crate) async fn create_experiment(
        &self,
        tenant: TenantName,
        description: &[u8],
        actor: &str,
    ) -> Result<ExperimentRecord, Error> {
        check_actor(actor)?;
        self.require_tenant(&tenant).await?;
        let experiment = self.described(&tenant, description).await?;
        let count = self.catalog().tenant(&tenant).map_or(0, |tenant| tenant.experiments.len());
        if count >= EXPERIMENTS_PER_TENANT_MAX {
            return Err(Error::Full {
                what: format!("experiments of tenant {tenant}"),
                max: EXPERIMENTS_PER_TENANT_MAX,
            });
        }
        let place = Place::Experiment(tenant.clone(), experiment.id.clone());
        let record = ExperimentRecord {
            revision: 1,
            experiment: experiment.clone(),
            created_ms: now_ms(),
            actor: actor.to_owned(),
            ending: None,
            changes: Vec::new(),
        };
        if self.create(&place, &record).await?.is_some() {
            let digests: Vec<Digest> = experiment.arms.iter().map(|arm| arm.digest).collect();
            self.revive_all(&tenant, &experiment.adapter, &digests).await?;
            tracing::info!(%tenant, experiment = experiment.id, actor, "created an experiment");
            return Ok(record);
        }
        self.refresh(&place.key()).await?;
        let there = self.experiment(&tenant, &experiment.id)?;
        // Started or not: what was described.
        let (State::Draft | State::Running) = there.experiment.state else { return Err(taken(&experiment.id)) };
        let described = Experiment { state: State::Draft, revision: 0, ..there.experiment.clone() };
        if described == experiment { Ok(there) } else { Err(taken(&experiment.id)) }
    }

    /// The record, as far as it is known here.
    pub(crate) fn experiment(&self, tenant: &TenantName, id: &str) -> Result<ExperimentRecord, Error> {
        let catalog = self.catalog();
        let found = catalog.tenant(tenant).and_then(|tenant| tenant.experiments.get(id));
        found.cloned().ok_or_else(|| unknown(tenant, id))
    }

    /// The record as the store has it.
    pub(crate) async fn fresh_experiment(&self, tenant: &TenantName, id: &str) -> Result<ExperimentRecord, Error> {
        if !crate::layout::is_experiment_id(id) {
            return Err(unknown(tenant, id));
        }
        self.require_tenant(tenant).await?;
        self.refresh(&Place::Experiment(tenant.clone(), id.to_owned()).key()).await?;
        self.experiment(tenant, id)
    }

    /// Does what is asked. Asking again for what is done already changes nothing.
    pub(crate) async fn change_experiment(
        &self,
        tenant: TenantName,
        id: &str,
        change: Change,
        actor: &str,
    ) -> Result<ExperimentRecord, Error> {
        check_actor(actor)?;
        self.fresh_experiment(&tenant, id).await?;
        match change {
            Change::Start => self.start_experiment(&tenant, id, actor).await,
            Change::Weigh { arm, weight } => {
                let what = format!("arm {arm} has weight {weight}");
                let changed = |record: &ExperimentRecord| {
                    let is_so =
                        record.experiment.arm(&arm).is_some_and(|at| record.experiment.arms[at].weight == weight);
                    if is_so && record.is_running() {
                        return Ok(None);
                    }
                    record.experiment.reweighted(&arm, weight).map(Some).map_err(refused)
                };
                self.update_experiment(&tenant, id, actor, what, changed).await
            }
            Change::Promote { arm } => {
                let end = State::Promoted { arm: arm.clone() };
                self.end_experiment(&tenant, id, end, actor, format!("arm {arm} is promoted")).await
            }
            Change::Stop => self.end_experiment(&tenant, id, State::Stopped, actor, "stopped".to_owned()).await,
        }
    }

    /// Changes a record that has no end yet. `None` from `change` leaves it.
    pub(super) async fn update_experiment(
        &self,
        tenant: &TenantName,
        id: &str,
        actor: &str,
        what: String,
        change: impl Fn(&ExperimentRecord) -> Result<Option<Experiment>, Error> + Send + Sync,
    ) -> Result<ExperimentRecord, Error> {
        let place = Place::Experiment(tenant.clone(), id.to_owned());
        let updated = self.update(&place, |found: Option<(&ExperimentRecord, &ETag)>| {
            let (record, _) = found.ok_or_else(|| unknown(tenant, id))?;
            if record.ending.is_some() {
                return Err(Error::Conflict(format!("experiment {id} has ended")));
            }
            if record.changes.len() >= CHANGES_MAX {
                return Err(Error::Full { what: format!("changes of experiment {id}"), max: CHANGES_MAX });
            }
            Ok(match change(record)? {
                Some(experiment) => core::Change::Write(record.changed(experiment, now_ms(), actor, what.clone())),
                None => core::Change::Keep(record.clone()),
            })
        });
        let (record, _) = updated.await?;
        tracing::info!(%tenant, experiment = id, actor, what, "an experiment is as asked");
        Ok(record)
    }

    async fn start_experiment(&self, tenant: &TenantName, id: &str, actor: &str) -> Result<ExperimentRecord, Error> {
        let record = self.experiment(tenant, id)?;
        if record.is_running() && record.ending.is_none() {
            return Ok(record);
        }
        if record.experiment.state != State::Draft || record.ending.is_some() {
            return Err(Error::Conflict(format!("experiment {id} has ended")));
        }
        self.refresh(&tenant_prefix(tenant)).await?;
        self.check_room_to_run(tenant, id)?;
        let experiment = &record.experiment;
        let control = experiment.arms[experiment.control()].digest;
        self.claim_alias(experiment, |alias| {
            let is_free = alias.experiment.as_deref().is_none_or(|other| other == id);
            if !is_free {
                let other = alias.experiment.clone().unwrap_or_default();
                return Err(Error::Conflict(format!("alias {} is split by experiment {other}", experiment.alias)));
            }
            if alias.digest != control {
                let problem =
                    format!("alias {} is version {}, which is not the control", experiment.alias, alias.version);
                return Err(Error::Conflict(problem));
            }
            Ok(alias.claimed(Some(id.to_owned())))
        })
        .await?;
        let started = |record: &ExperimentRecord| match record.is_running() {
            true => Ok(None),
            false => record.experiment.started().map(Some).map_err(refused),
        };
        match self.update_experiment(tenant, id, actor, "started".to_owned(), started).await {
            Err(Error::Conflict(why)) => {
                // It was ended meanwhile, by somebody who found the alias unclaimed.
                self.finish_experiment(self.fresh_experiment(tenant, id).await?).await?;
                Err(Error::Conflict(why))
            }
            result => result,
        }
    }

    fn check_room_to_run(&self, tenant: &TenantName, id: &str) -> Result<(), Error> {
        let catalog = self.catalog();
        let running = |tenant: &crate::catalog::Tenant| {
            tenant.experiments.values().filter(|other| other.is_running() && other.experiment.id != id).count()
        };
        let here = catalog.tenant(tenant).map_or(0, running);
        let all = catalog.tenants.values().map(running).sum::<usize>();
        for (what, count, max) in [
            (format!("running experiments of tenant {tenant}"), here, RUNNING_PER_TENANT_MAX),
            ("running experiments".to_owned(), all, RUNNING_MAX),
        ] {
            if count >= max {
                return Err(Error::Full { what, max });
            }
        }
        Ok(())
    }

    /// Changes the alias of an experiment; where `change` gives back what is there, nothing is written.
    async fn claim_alias(
        &self,
        experiment: &Experiment,
        change: impl Fn(&AliasRecord) -> Result<AliasRecord, Error> + Send + Sync,
    ) -> Result<(), Error> {
        let (adapter, alias) = (&experiment.adapter, &experiment.alias);
        let place = Place::Alias(experiment.tenant.clone(), adapter.clone(), alias.clone());
        let mut moved: Option<(Digest, Digest)> = None;
        let updated = self.update(&place, |found: Option<(&AliasRecord, &ETag)>| {
            let (record, _) =
                found.ok_or_else(|| Error::NotFound(format!("adapter {adapter} has no alias {alias}")))?;
            let next = change(record)?;
            moved = Some((record.digest, next.digest));
            let is_same = AliasRecord { revision: record.revision, ..next.clone() } == *record;
            Ok(if is_same { core::Change::Keep(record.clone()) } else { core::Change::Write(next) })
        });
        updated.await?;
        if let Some((from, to)) = moved.filter(|(from, to)| from != to) {
            self.tell_alias_moved(&from, &to);
        }
        Ok(())
    }

    /// Ends an experiment in three writes, of which the second one is what requests see.
    pub(super) async fn end_experiment(
        &self,
        tenant: &TenantName,
        id: &str,
        end: State,
        actor: &str,
        what: String,
    ) -> Result<ExperimentRecord, Error> {
        let place = Place::Experiment(tenant.clone(), id.to_owned());
        if let State::Promoted { arm } = &end {
            // Before anything is noted: an arm whose version is gone cannot win.
            self.version_of_arm(&self.fresh_experiment(tenant, id).await?.experiment, arm).await?;
        }
        let noted = self.update(&place, |found: Option<(&ExperimentRecord, &ETag)>| {
            let (record, _) = found.ok_or_else(|| unknown(tenant, id))?;
            let known = record.ending.as_ref().or(match &record.experiment.state {
                state @ (State::Stopped | State::Promoted { .. }) => Some(state),
                State::Draft | State::Running => None,
            });
            match known {
                Some(known) if *known == end => return Ok(core::Change::Keep(record.clone())),
                Some(known) => return Err(Error::Conflict(format!("experiment {id} is {} already", known.as_str()))),
                None => {}
            }
            ended(&record.experiment, &end)?;
            let change = ExperimentChange { at_ms: now_ms(), actor: actor.to_owned(), what: what.clone() };
            let mut next =
                ExperimentRecord { revision: record.revision + 1, ending: Some(end.clone()), ..record.clone() };
            next.changes.push(change);
            Ok(core::Change::Write(next))
        });
        let (record, _) = noted.await?;
        tracing::info!(%tenant, experiment = id, actor, what, "an experiment ends");
        self.finish_experiment(record).await
    }

    /// The rest of an end that is noted.
    pub(super) async fn finish_experiment(&self, record: ExperimentRecord) -> Result<ExperimentRecord, Error> {
        // Again where it is done already: a start that raced the end may have claimed the alias since.
        let Some(end) = record.ending.clone() else { return Ok(record) };
        let experiment = &record.experiment;
        let actor = record.changes.last().map_or("", |change| change.actor.as_str()).to_owned();
        let winner = match &end {
            State::Promoted { arm } if experiment.state != end => Some(self.version_of_arm(experiment, arm).await?),
            _ => None,
        };
        let let_go = self.claim_alias(experiment, |alias| {
            if alias.experiment.as_deref() != Some(experiment.id.as_str()) {
                return Ok(alias.clone());
            }
            Ok(match winner {
                Some((version, digest)) => AliasRecord::moved(Some(alias), version, digest, now_ms(), &actor),
                None => alias.claimed(None),
            })
        });
        match let_go.await {
            // A draft's alias need not be there.
            Err(Error::NotFound(_)) => {}
            result => result?,
        }
        let place = Place::Experiment(experiment.tenant.clone(), experiment.id.clone());
        let finished = self.update(&place, |found: Option<(&ExperimentRecord, &ETag)>| {
            let (record, _) = found.ok_or_else(|| unknown(&experiment.tenant, &experiment.id))?;
            if record.experiment.state == end {
                return Ok(core::Change::Keep(record.clone()));
            }
            let experiment = ended(&record.experiment, &end)?;
            Ok(core::Change::Write(ExperimentRecord { revision: record.revision + 1, experiment, ..record.clone() }))
        });
        Ok(finished.await?.0)
    }

    async fn version_of_arm(&self, experiment: &Experiment, arm: &str) -> Result<(VersionNumber, Digest), Error> {
        let at = experiment.arm(arm).ok_or_else(|| Error::invalid("arm", format!("there is no arm {arm:?}")))?;
        let digest = experiment.arms[at].digest;
        let selector = weft_types::Selector::Digest(digest);
        let version = self.resolve(&experiment.tenant, &experiment.adapter, &selector).await?;
        Ok((version.number, digest))
    }

    /// The results as of now.
    pub(crate) async fn experiment_report(
        &self,
        record: &ExperimentRecord,
        observed: &Observed,
    ) -> Result<Report, Error> {
        let statistics = observed.gather(self, &record.experiment).await?;
        let experiment = record.experiment.clone();
        Ok(tokio::task::spawn_blocking(move || report(&experiment, &statistics, now_ms())).await?)
    }
}

fn taken(id: &str) -> Error {
    Error::Conflict(format!("there is an experiment {id} already, with another description or a past"))
}

/// The description with this end.
fn ended(experiment: &Experiment, end: &State) -> Result<Experiment, Error> {
    match end {
        State::Promoted { arm } => experiment.promoted(arm).map_err(refused),
        // A draft may be given up too.
        _ if experiment.state == State::Draft => {
            experiment.started().and_then(|started| started.stopped()).map_err(refused)
        }
        _ => experiment.stopped().map_err(refused),
    }
}

/// Whether an arm can be stopped by a guardrail.
pub(super) fn gets_requests(experiment: &Experiment, arm: &str) -> bool {
    experiment.arm(arm).is_some_and(|at| experiment.arms[at].weight > 0 && experiment.arms[at].role != Role::Control)
}

//! One turn of clean-up, or a dry run of it; and the turns that come by themselves.

use super::collect::BATCH;
use super::judge::{Hold, Named, Rules, condemned, hold, unheld};
use crate::Error;
use crate::core::{Change, Core, now_ms};
use crate::layout::{Place, ROOT};
use crate::placing::Placing;
use crate::records::{Condemned, VersionRecord};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use weft_object_store::ETag;
use weft_service_kit::shutdown::Shutdown;
use weft_types::{AdapterName, Digest, TenantName, VersionNumber};

/// Who it is, in records.
const ACTOR: &str = "gc";
/// Versions condemned, and blobs deleted, in one turn: the next turn goes on.
const PER_TURN_MAX: usize = 1_000;

/// What a turn did with a version, or a dry run would.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) tenant: TenantName,
    pub(crate) adapter: AdapterName,
    pub(crate) version: VersionNumber,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) stage: Stage,
}

/// How far a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing holds it: it leaves the directory.
    Condemned,
    /// Condemned before; its bytes stay until the grace is over.
    Waiting,
    /// Its bytes go, where no other version has them.
    Collected,
}

impl Stage {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Condemned => "condemned",
            Self::Waiting => "waiting",
            Self::Collected => "collected",
        }
    }
}

fn found(named: &Named, stage: Stage) -> Found {
    Found {
        tenant: named.tenant.clone(),
        adapter: named.adapter.clone(),
        version: named.version.number,
        digest: named.version.digest,
        bytes: named.version.bytes,
        stage,
    }
}

impl Core {
    /// The rules of the settings.
    pub(crate) fn gc_rules(&self) -> Rules {
        let of = |seconds: u64| seconds.saturating_mul(1_000);
        let settings = &self.settings;
        Rules {
            keep_versions: settings.gc_keep_versions,
            age_min_ms: of(settings.gc_age_min_s),
            rollback_ms: of(settings.gc_rollback_s),
        }
    }

    /// One turn, of one tenant or of all. `asked`: digests that were asked for lately. A dry run changes nothing.
    pub(crate) async fn collect_garbage(
        &self,
        only: Option<&TenantName>,
        rules: Rules,
        asked: &HashSet<Digest>,
        dry_run: bool,
    ) -> Result<Vec<Found>, Error> {
        self.refresh(ROOT).await?;
        self.check_undamaged()?;
        let now = now_ms();
        let (unheld, condemned) = {
            let catalog = self.catalog();
            (unheld(&catalog, only, &rules, asked, now), condemned(&catalog, only))
        };
        let mut done = Vec::new();
        let mut over = Vec::new();
        for named in condemned.into_iter().take(PER_TURN_MAX) {
            // Whoever marked it may not have come to look again.
            if self
                .hold_on(&named.tenant, &named.adapter, named.version.number, &Rules::NONE, &HashSet::new())
                .is_some()
            {
                if !dry_run {
                    self.revive(&named.tenant, &named.adapter, named.version.number).await?;
                }
                continue;
            }
            let since = named.version.condemned.as_ref().map_or(now, |condemned| condemned.at_ms);
            let is_over = now.saturating_sub(since) >= self.settings.gc_grace_s.saturating_mul(1_000);
            if is_over { over.push(named) } else { done.push(found(&named, Stage::Waiting)) }
        }
        for batch in over.chunks(BATCH) {
            let collected = if dry_run { vec![true; batch.len()] } else { self.collect(batch).await? };
            for (named, is_collected) in batch.iter().zip(collected) {
                done.push(found(named, if is_collected { Stage::Collected } else { Stage::Waiting }));
            }
        }
        for named in unheld.iter().take(PER_TURN_MAX) {
            if dry_run
                || self.condemn(&named.tenant, &named.adapter, named.version.number, &rules, asked, ACTOR).await?
            {
                done.push(found(named, Stage::Condemned));
            }
        }
        if !dry_run {
            self.collect_left_over().await?;
            for found in &done {
                self.metrics.garbage(found.stage, found.bytes);
            }
        }
        if only.is_none() {
            for (blob, is_gone) in self.collect_orphans(dry_run).await? {
                tracing::info!(blob = blob.key, bytes = blob.bytes, is_gone, dry_run, "a blob is of no version");
            }
        }
        Ok(done)
    }

    /// Deletes one version, whatever its age: nothing but what names it holds it.
    pub(crate) async fn delete_version(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        number: VersionNumber,
        asked: &HashSet<Digest>,
        actor: &str,
    ) -> Result<(), Error> {
        crate::admin::check_actor(actor)?;
        self.refresh(ROOT).await?;
        self.require_listed(tenant, adapter, number)?;
        if let Some(hold) = self.hold_on(tenant, adapter, number, &Rules::NONE, asked) {
            return Err(Error::Conflict(format!("version {number} of {adapter} stays: {hold}")));
        }
        if self.condemn(tenant, adapter, number, &Rules::NONE, asked, actor).await? {
            return Ok(());
        }
        Err(Error::Conflict(format!("version {number} of {adapter} stays: somebody needs it since a moment ago")))
    }

    /// Sees to it that the tenant may keep one more merge made at request time: the oldest that nobody asks for goes. Registries that make
    /// room at once may keep one more each.
    ///
    /// # Errors
    /// The tenant may keep none, or all that it may keep are asked for.
    pub(crate) async fn make_room_for_merge(&self, tenant: &TenantName, asked: &HashSet<Digest>) -> Result<(), Error> {
        let max = self.policy(tenant).request_merges_max(&self.settings);
        let mut kept: Vec<(u64, AdapterName, VersionNumber)> = {
            let catalog = self.catalog();
            let adapters = catalog.tenant(tenant).into_iter().flat_map(|tenant| &tenant.adapters);
            let merges = adapters.filter(|(name, _)| name.is_merged()).flat_map(|(name, adapter)| {
                adapter.versions().map(|version| (version.created_ms, name.clone(), version.number))
            });
            merges.collect()
        };
        kept.sort_unstable();
        let mut excess = (kept.len() + 1).saturating_sub(max);
        for (_, adapter, number) in kept.iter().take(if max == 0 { 0 } else { kept.len() }) {
            if excess == 0 {
                break;
            }
            let is_held = self.hold_on(tenant, adapter, *number, &Rules::NONE, asked).is_some();
            if !is_held && self.condemn(tenant, adapter, *number, &Rules::NONE, asked, ACTOR).await? {
                excess -= 1;
            }
        }
        match excess {
            0 => Ok(()),
            _ => Err(Error::Full { what: format!("merges of tenant {tenant} that are asked for"), max }),
        }
    }

    fn hold_on(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        number: VersionNumber,
        rules: &Rules,
        asked: &HashSet<Digest>,
    ) -> Option<Hold> {
        let catalog = self.catalog();
        let tenant = catalog.tenant(tenant)?;
        let adapter = tenant.adapters.get(name)?;
        let version = adapter.all().find(|version| version.number == number)?;
        hold(tenant, name, adapter, version, rules, asked, now_ms())
    }

    /// Marks a version, then looks for holds again. Returns whether it stays marked.
    async fn condemn(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        number: VersionNumber,
        rules: &Rules,
        asked: &HashSet<Digest>,
        actor: &str,
    ) -> Result<bool, Error> {
        let place = Place::Version(tenant.clone(), adapter.clone(), number);
        let marked = self.update(&place, |found: Option<(&VersionRecord, &ETag)>| {
            let Some((record, _)) = found else { return Err(Error::NotFound(format!("version {number} is gone"))) };
            if record.condemned.is_some() {
                return Ok(Change::Keep(record.clone()));
            }
            let condemned = Some(Condemned { at_ms: now_ms(), actor: actor.to_owned() });
            Ok(Change::Write(VersionRecord { revision: record.revision + 1, condemned, ..record.clone() }))
        });
        marked.await?;
        // All of the tenant: an experiment or a pin may hold it as well as an alias.
        self.refresh(&crate::layout::tenant_prefix(tenant)).await?;
        if self.hold_on(tenant, adapter, number, rules, asked).is_some() {
            self.revive(tenant, adapter, number).await?;
            return Ok(false);
        }
        tracing::info!(%tenant, %adapter, version = number, actor, "a version is condemned");
        Ok(true)
    }
}

/// Turns that come by themselves, until shutdown.
pub(crate) async fn keep_clean(core: Arc<Core>, placing: Arc<Placing>, shutdown: Shutdown) {
    let every_s = core.settings.gc_every_s;
    if every_s == 0 {
        return;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(every_s)) => {}
            () = shutdown.wait() => return,
        }
        if core.settings.placement && !placing.is_warm() {
            // Who has just begun to listen takes silence for no requests.
            continue;
        }
        let asked = placing.asked_lately();
        match core.collect_garbage(None, core.gc_rules(), &asked, false).await {
            Ok(done) if done.is_empty() => {}
            Ok(done) => tracing::info!(versions = done.len(), "cleaned up"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the clean-up stopped half-way and goes on next time"
                );
            }
        }
    }
}

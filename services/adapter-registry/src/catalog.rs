//! What this process knows of the records, and the directory made of it. No IO.
//!
//! Records only grow newer, so merging is a join: in whatever order and however often records arrive, from a listing or
//! from our own write, the catalog ends up with the newest of each. A listing that began before a write therefore cannot
//! undo it. A condemned version is a newer state of its record. Only records of revoked keys are ever deleted, the oldest when there are too many ([`Catalog::forget_key`]);
//! their ids are random and never used again.

use crate::layout::Place;
use crate::records::{AliasRecord, BaseRecord, ExperimentRecord, KeyRecord, Record, TenantRecord, VersionRecord};
use crate::wire;
use std::collections::BTreeMap;
use std::ops::Bound;
use weft_object_store::ETag;
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, AliasName, Digest, Selector, TenantName, VersionNumber};

/// Everything known.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) base: Option<BaseRecord>,
    pub(crate) tenants: BTreeMap<TenantName, Tenant>,
    /// The state of each object that was merged, so that it is not read again.
    etags: BTreeMap<String, ETag>,
    counts: Counts,
}

/// A tenant, or what was seen of it before its own record.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) record: Option<TenantRecord>,
    pub(crate) keys: BTreeMap<String, KeyRecord>,
    pub(crate) adapters: BTreeMap<AdapterName, Adapter>,
    pub(crate) experiments: BTreeMap<String, ExperimentRecord>,
}

#[derive(Debug, Default)]
pub(crate) struct Adapter {
    /// Condemned ones among them.
    records: BTreeMap<VersionNumber, VersionRecord>,
    pub(crate) aliases: BTreeMap<AliasName, (AliasRecord, ETag)>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) tenants: usize,
    /// That are not revoked.
    pub(crate) keys: usize,
    pub(crate) adapters: usize,
    /// That are not condemned.
    pub(crate) versions: usize,
    pub(crate) aliases: usize,
}

impl Catalog {
    /// Whether this state of the object was merged before.
    pub(crate) fn has_seen(&self, key: &str, etag: &ETag) -> bool {
        self.etags.get(key) == Some(etag)
    }

    /// Takes in a record, if it is newer than what is known. Returns whether it was.
    pub(crate) fn merge(&mut self, place: &Place, record: Record, etag: ETag) -> bool {
        let seen = etag.clone();
        let is_newer = match (place, record) {
            (Place::Base, Record::Base(new)) => {
                let is_newer = self.base.as_ref().is_none_or(|old| new.revision > old.revision);
                if is_newer {
                    self.base = Some(new);
                }
                is_newer
            }
            (Place::Tenant(name), Record::Tenant(new)) => {
                let known = &mut self.tenant_mut(name).record;
                let is_newer = known.as_ref().is_none_or(|old| new.revision > old.revision);
                if is_newer {
                    *known = Some(new);
                }
                is_newer
            }
            (Place::Key(tenant, id), Record::Key(new)) => {
                let keys = &mut self.tenant_mut(tenant).keys;
                let is_newer = keys.get(id).is_none_or(|old| new.revision > old.revision);
                if is_newer {
                    let is_live = new.revoked.is_none();
                    let was_live = keys.insert(id.clone(), new).is_some_and(|old| old.revoked.is_none());
                    recount(&mut self.counts.keys, was_live, is_live);
                }
                is_newer
            }
            (Place::Version(tenant, adapter, number), Record::Version(new)) => {
                let records = &mut self.adapter_mut(tenant, adapter).records;
                let is_newer = records.get(number).is_none_or(|old| new.revision > old.revision);
                if is_newer {
                    let is_kept = new.condemned.is_none();
                    let was_kept = records.insert(*number, new).is_some_and(|old| old.condemned.is_none());
                    recount(&mut self.counts.versions, was_kept, is_kept);
                }
                is_newer
            }
            (Place::Alias(tenant, adapter, alias), Record::Alias(new)) => {
                let aliases = &mut self.adapter_mut(tenant, adapter).aliases;
                let is_newer = aliases.get(alias).is_none_or(|(old, _)| new.revision > old.revision);
                if is_newer {
                    let was_there = aliases.insert(alias.clone(), (new, etag)).is_some();
                    recount(&mut self.counts.aliases, was_there, true);
                }
                is_newer
            }
            (Place::Experiment(tenant, id), Record::Experiment(new)) => {
                let experiments = &mut self.tenant_mut(tenant).experiments;
                let is_newer = experiments.get(id).is_none_or(|old| new.revision > old.revision);
                if is_newer {
                    experiments.insert(id.clone(), new);
                }
                is_newer
            }
            // A record of another kind is no JSON of this place: reading it fails before.
            _ => false,
        };
        if is_newer {
            self.etags.insert(place.key(), seen);
        }
        is_newer
    }

    /// The newest known state of the record at this place.
    pub(crate) fn record(&self, place: &Place) -> Option<(Record, ETag)> {
        let tenant = place.tenant().and_then(|tenant| self.tenants.get(tenant));
        let record: Record = match place {
            Place::Base => self.base.clone()?.into(),
            Place::Tenant(_) => tenant?.record.clone()?.into(),
            Place::Key(_, id) => tenant?.keys.get(id)?.clone().into(),
            Place::Version(_, adapter, number) => tenant?.adapters.get(adapter)?.records.get(number)?.clone().into(),
            Place::Alias(_, adapter, alias) => tenant?.adapters.get(adapter)?.aliases.get(alias)?.0.clone().into(),
            Place::Experiment(_, id) => tenant?.experiments.get(id)?.clone().into(),
        };
        Some((record, self.etags.get(&place.key())?.clone()))
    }

    /// How many records are known.
    pub(crate) fn known(&self) -> usize {
        self.etags.len()
    }

    /// The keys of records after this one, in order, at most so many.
    pub(crate) fn keys_after(&self, key: &str, most: usize) -> Vec<String> {
        let after = (Bound::Excluded(key), Bound::Unbounded);
        self.etags.range::<str, _>(after).take(most).map(|(key, _)| key.clone()).collect()
    }

    /// Forgets a key whose object is gone. Returns whether it was known.
    pub(crate) fn forget_key(&mut self, tenant: &TenantName, id: &str) -> bool {
        self.etags.remove(&Place::Key(tenant.clone(), id.to_owned()).key());
        let forgotten = self.tenants.get_mut(tenant).and_then(|tenant| tenant.keys.remove(id));
        let was_live = forgotten.as_ref().is_some_and(|key| key.revoked.is_none());
        recount(&mut self.counts.keys, was_live, false);
        forgotten.is_some()
    }

    /// The keys whose objects lie below this prefix. Cost: one string a key.
    pub(crate) fn keys_below(&self, prefix: &str) -> Vec<(TenantName, String)> {
        let all = self.tenants.iter().flat_map(|(name, tenant)| tenant.keys.keys().map(move |id| (name, id)));
        let below = all.filter(|(name, id)| Place::Key((*name).clone(), (*id).clone()).key().starts_with(prefix));
        below.map(|(name, id)| (name.clone(), id.clone())).collect()
    }

    fn tenant_mut(&mut self, name: &TenantName) -> &mut Tenant {
        self.tenants.entry(name.clone()).or_default()
    }

    /// The tenant, if it was created.
    pub(crate) fn tenant(&self, name: &TenantName) -> Option<&Tenant> {
        self.tenants.get(name).filter(|tenant| tenant.record.is_some())
    }

    /// The adapter, if it has a version.
    pub(crate) fn adapter(&self, tenant: &TenantName, adapter: &AdapterName) -> Option<&Adapter> {
        self.tenant(tenant)?.adapters.get(adapter).filter(|adapter| adapter.is_visible())
    }

    /// The adapter, if anything was ever seen of it: versions in quarantine and condemned ones among it.
    pub(crate) fn known_adapter(&self, tenant: &TenantName, adapter: &AdapterName) -> Option<&Adapter> {
        self.tenant(tenant)?.adapters.get(adapter)
    }

    /// The version that the selector means.
    pub(crate) fn resolve(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        selector: &Selector,
    ) -> Option<&VersionRecord> {
        let adapter = self.adapter(tenant, name)?;
        match selector {
            Selector::Alias(alias) => adapter.version(adapter.aliases.get(alias)?.0.version),
            Selector::Version(number) => adapter.version(*number),
            Selector::Digest(digest) => adapter.version_with(digest),
        }
    }

    /// How much there is.
    pub(crate) fn counts(&self) -> Counts {
        Counts { tenants: self.tenants.len(), ..self.counts }
    }

    /// The adapter as it is known, or as it begins to be.
    fn adapter_mut(&mut self, tenant: &TenantName, adapter: &AdapterName) -> &mut Adapter {
        let adapters = &mut self.tenants.entry(tenant.clone()).or_default().adapters;
        self.counts.adapters += usize::from(!adapters.contains_key(adapter));
        adapters.entry(adapter.clone()).or_default()
    }

    /// What a gateway needs, but for its age, which is told when it is sent. Cost: one step a version.
    pub(crate) fn directory(&self, generation: u64, incarnation: &str) -> pb::Directory {
        let tenants = self.tenants.values().filter_map(|tenant| {
            let record = tenant.record.as_ref()?;
            Some(pb::DirectoryTenant {
                name: record.name.to_string(),
                default_adapter: record.default_adapter.clone(),
                keys: tenant.keys.values().filter(|key| key.revoked.is_none()).map(directory_key).collect(),
                adapters: tenant.adapters.iter().filter_map(directory_adapter).collect(),
                salt: record.salt.to_vec().into(),
                weight: record.weight.value(),
                limits: (!record.limits.is_empty()).then(|| wire::limits(&record.limits)),
                experiments: tenant.splits().map(|split| wire::description(&split.experiment)).collect(),
                policy: (!record.policy.is_empty()).then(|| record.policy.wire()),
            })
        });
        pb::Directory { generation, incarnation: incarnation.to_owned(), tenants: tenants.collect(), age_ms: 0 }
    }
}

/// Counts a thing that was there, or not, and is there now, or not.
fn recount(count: &mut usize, was_there: bool, is_there: bool) {
    *count = *count + usize::from(is_there) - usize::from(was_there);
}

impl Tenant {
    /// Keys that are not revoked.
    pub(crate) fn live_keys(&self) -> usize {
        self.keys.values().filter(|key| key.revoked.is_none()).count()
    }

    /// Experiments that split an alias now: running, and named by the alias.
    pub(crate) fn splits(&self) -> impl Iterator<Item = &ExperimentRecord> {
        self.experiments.values().filter(|record| record.is_running()).filter(|record| self.is_claimed_by(record))
    }

    /// Whether the alias of this experiment names it.
    pub(crate) fn is_claimed_by(&self, record: &ExperimentRecord) -> bool {
        let experiment = &record.experiment;
        let alias = self.adapters.get(&experiment.adapter).and_then(|adapter| adapter.aliases.get(&experiment.alias));
        alias.is_some_and(|(alias, _)| alias.experiment.as_ref() == Some(&experiment.id))
    }

    /// Ids of the revoked keys beyond the `kept` newest, the oldest first.
    pub(crate) fn revoked_beyond(&self, kept: usize) -> Vec<String> {
        let revoked = self.keys.values().filter_map(|key| Some((key.revoked.as_ref()?.at_ms, &key.id)));
        let mut revoked: Vec<_> = revoked.collect();
        revoked.sort_unstable();
        let beyond = revoked.len().saturating_sub(kept);
        revoked.into_iter().take(beyond).map(|(_, id)| id.clone()).collect()
    }
}

impl Adapter {
    /// The versions that can be asked for, by number: not in quarantine, and not condemned or named by an alias all the same, as long as it takes
    /// until the mark is taken away.
    pub(crate) fn versions(&self) -> impl DoubleEndedIterator<Item = &VersionRecord> {
        self.records.values().filter(|version| self.shows(version))
    }

    /// Those that an operator is shown: quarantined ones among them.
    pub(crate) fn listed(&self) -> impl DoubleEndedIterator<Item = &VersionRecord> {
        self.records
            .values()
            .filter(|version| version.quarantined && version.condemned.is_none() || self.shows(version))
    }

    /// All that were ever published.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &VersionRecord> {
        self.records.values()
    }

    fn shows(&self, version: &VersionRecord) -> bool {
        if version.quarantined {
            return false;
        }
        version.condemned.is_none() || self.aliases.values().any(|(alias, _)| alias.version == version.number)
    }

    /// The version with this number, if it can be asked for.
    pub(crate) fn version(&self, number: VersionNumber) -> Option<&VersionRecord> {
        self.records.get(&number).filter(|version| self.shows(version))
    }

    /// Whether it has a version that can be asked for.
    pub(crate) fn is_visible(&self) -> bool {
        self.versions().next().is_some()
    }

    /// The number given last; 0: none was.
    pub(crate) fn last_number(&self) -> VersionNumber {
        self.records.keys().next_back().copied().unwrap_or(0)
    }

    /// The version with this digest; there is at most one that can be asked for.
    pub(crate) fn version_with(&self, digest: &Digest) -> Option<&VersionRecord> {
        self.versions().find(|version| version.digest == *digest)
    }

    /// What there is already of the same: a version that can be asked for, else one in quarantine.
    pub(crate) fn existing(&self, is_same: impl Fn(&VersionRecord) -> bool) -> Option<&VersionRecord> {
        let visible = self.versions().find(|version| is_same(version));
        visible.or_else(|| self.listed().find(|version| is_same(version)))
    }

    /// When its first version was published.
    pub(crate) fn created_ms(&self) -> u64 {
        self.records.values().next().map_or(0, |first| first.created_ms)
    }
}

fn directory_key(key: &KeyRecord) -> pb::DirectoryKey {
    pb::DirectoryKey {
        id: key.id.clone(),
        secret_sha256: key.secret_sha256.to_vec().into(),
        limits: (!key.limits.is_empty()).then(|| wire::limits(&key.limits)),
    }
}

fn directory_adapter((name, adapter): (&AdapterName, &Adapter)) -> Option<pb::DirectoryAdapter> {
    if !adapter.is_visible() {
        return None;
    }
    let versions = adapter.versions().map(|version| pb::DirectoryVersion {
        number: version.number,
        digest: version.digest.to_vec().into(),
        bytes: version.bytes,
    });
    // An alias may be seen before the version it names: it is shown once both are known.
    let aliases = adapter.aliases.iter().filter(|(_, (alias, _))| adapter.version(alias.version).is_some());
    let aliases =
        aliases.map(|(name, (alias, _))| pb::DirectoryAlias { name: name.to_string(), version: alias.version });
    Some(pb::DirectoryAdapter {
        name: name.to_string(),
        created_ms: adapter.created_ms(),
        versions: versions.collect(),
        aliases: aliases.collect(),
    })
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;

#[cfg(test)]
pub(crate) mod tests_support {
    //! Small adapters and tenants for tests of what goes by the catalog.

    use super::*;
    use crate::records::Places;

    /// An adapter with versions 1 to `versions`, published at the milliseconds of their numbers, whose alias `live` was moved to these versions
    /// at these times.
    pub(crate) fn adapter_with(versions: u64, moves: &[(VersionNumber, u64)]) -> Adapter {
        let digest = |number: u64| Digest::of(&number.to_le_bytes());
        let record = |number| VersionRecord {
            revision: 0,
            number,
            digest: digest(number),
            bytes: 1,
            rank_max: 8,
            target_modules: Vec::new(),
            config_sha256: digest(number),
            weights_sha256: digest(number),
            base_digest: digest(0),
            created_ms: number,
            actor: String::new(),
            warnings: Vec::new(),
            parameters: 0,
            signed_by: None,
            quarantined: false,
            again_ms: 0,
            lineage: None,
            origin: None,
            condemned: None,
            collected_ms: None,
        };
        let mut alias: Option<AliasRecord> = None;
        for (version, moved_ms) in moves {
            alias = Some(AliasRecord::moved(alias.as_ref(), *version, digest(*version), *moved_ms, "ada"));
        }
        let aliases = alias.map(|alias| (AliasName::live(), (alias, ETag::new("e"))));
        Adapter {
            records: (1..=versions).map(|number| (number, record(number))).collect(),
            aliases: aliases.into_iter().collect(),
        }
    }

    /// A tenant with these pins.
    pub(crate) fn tenant_with(pins: &[Digest]) -> Tenant {
        let record = TenantRecord {
            revision: 1,
            name: "t".parse().expect("a name"),
            created_ms: 1,
            actor: String::new(),
            salt: [1; 32],
            default_adapter: String::new(),
            weight: Default::default(),
            limits: Default::default(),
            places: Places { pins: pins.iter().map(|digest| (*digest, 0)).collect(), ..Places::default() },
            policy: Default::default(),
        };
        Tenant { record: Some(record), ..Tenant::default() }
    }
}

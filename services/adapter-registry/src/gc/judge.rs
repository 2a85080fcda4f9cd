//! Whether anything holds a version. No IO.

use crate::catalog::{Adapter, Catalog, Tenant};
use crate::records::VersionRecord;
use std::collections::{BTreeSet, HashSet};
use weft_experiments::State;
use weft_types::{AdapterName, Digest, TenantName, VersionNumber};

/// What is kept although nothing names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// So many of an adapter's newest versions.
    pub(crate) keep_versions: usize,
    /// Versions published within so many milliseconds.
    pub(crate) age_min_ms: u64,
    /// What an alias meant within so many milliseconds, so that it can be rolled back.
    pub(crate) rollback_ms: u64,
}

impl Rules {
    /// Nothing but what names a version holds it: for a version that an operator deletes.
    pub(crate) const NONE: Self = Self { keep_versions: 0, age_min_ms: 0, rollback_ms: 0 };
}

/// Why a version stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Alias(String),
    /// An alias meant it before, not long ago.
    Rollback(String),
    Experiment(String),
    Pin,
    /// It was asked for lately.
    Requests,
    /// The newest of its adapter.
    Newest,
    Young,
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alias(alias) => write!(f, "alias {alias} means it"),
            Self::Rollback(alias) => write!(f, "alias {alias} can be rolled back to it"),
            Self::Experiment(id) => write!(f, "experiment {id} has it as an arm"),
            Self::Pin => f.write_str("it is pinned"),
            Self::Requests => f.write_str("it was asked for lately"),
            Self::Newest => f.write_str("it is one of the newest that are kept"),
            Self::Young => f.write_str("it is younger than what may go"),
        }
    }
}

/// What holds this version; the first that is found. `asked`: digests that were asked for lately. Cost: linear in the adapter's aliases
/// and their histories, and in the tenant's experiments.
pub(crate) fn hold(
    tenant: &Tenant,
    name: &AdapterName,
    adapter: &Adapter,
    version: &VersionRecord,
    rules: &Rules,
    asked: &HashSet<Digest>,
    now_ms: u64,
) -> Option<Hold> {
    for (alias, (record, _)) in &adapter.aliases {
        if record.version == version.number {
            return Some(Hold::Alias(alias.to_string()));
        }
    }
    for experiment in tenant.experiments.values().map(|record| &record.experiment) {
        let is_open = matches!(experiment.state, State::Draft | State::Running);
        if is_open && experiment.adapter == *name && experiment.arms.iter().any(|arm| arm.digest == version.digest) {
            return Some(Hold::Experiment(experiment.id.clone()));
        }
    }
    if tenant.record.as_ref().is_some_and(|record| record.places.pins.contains_key(&version.digest)) {
        return Some(Hold::Pin);
    }
    if asked.contains(&version.digest) {
        return Some(Hold::Requests);
    }
    if version.created_ms.max(version.again_ms).saturating_add(rules.age_min_ms) > now_ms {
        return Some(Hold::Young);
    }
    // A merge made at request time is made again when it is asked for.
    let keep_versions = if name.is_merged() { 0 } else { rules.keep_versions };
    let newest = adapter.versions().rev().take(keep_versions).map(|kept| kept.number);
    if newest.collect::<BTreeSet<VersionNumber>>().contains(&version.number) {
        return Some(Hold::Newest);
    }
    for (alias, (record, _)) in &adapter.aliases {
        // A meaning ended when the next move came.
        let mut ended_ms = record.moved_ms;
        for earlier in &record.history {
            if earlier.version == version.number && ended_ms.saturating_add(rules.rollback_ms) > now_ms {
                return Some(Hold::Rollback(alias.to_string()));
            }
            ended_ms = earlier.moved_ms;
        }
    }
    None
}

/// A version and where it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) tenant: TenantName,
    pub(crate) adapter: AdapterName,
    pub(crate) version: VersionRecord,
}

/// Visible versions that nothing holds. Cost: a look at every version.
pub(crate) fn unheld(
    catalog: &Catalog,
    only: Option<&TenantName>,
    rules: &Rules,
    asked: &HashSet<Digest>,
    now_ms: u64,
) -> Vec<Named> {
    let mut found = Vec::new();
    for (name, tenant) in catalog.tenants.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        for (adapter_name, adapter) in &tenant.adapters {
            for version in adapter.listed() {
                if hold(tenant, adapter_name, adapter, version, rules, asked, now_ms).is_none() {
                    let (tenant, adapter) = (name.clone(), adapter_name.clone());
                    found.push(Named { tenant, adapter, version: version.clone() });
                }
            }
        }
    }
    found
}

/// Condemned versions whose blob is still there as far as is known; those that an alias names all the same among them.
pub(crate) fn condemned(catalog: &Catalog, only: Option<&TenantName>) -> Vec<Named> {
    let mut found = Vec::new();
    for (name, tenant) in catalog.tenants.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        for (adapter_name, adapter) in &tenant.adapters {
            let waiting = adapter.all().filter(|version| version.condemned.is_some() && version.collected_ms.is_none());
            let named = |version: &VersionRecord| Named {
                tenant: name.clone(),
                adapter: adapter_name.clone(),
                version: version.clone(),
            };
            found.extend(waiting.map(named));
        }
    }
    found
}

/// Whether any version has this digest, whoever's it is, that is not condemned or whose own grace is not over: then its blob is needed.
pub(crate) fn is_needed(catalog: &Catalog, digest: &Digest, grace_ms: u64, now_ms: u64) -> bool {
    let adapters = catalog.tenants.values().flat_map(|tenant| tenant.adapters.values());
    let needs = |version: &VersionRecord| match &version.condemned {
        _ if version.collected_ms.is_some() => false,
        Some(condemned) => now_ms < condemned.at_ms.saturating_add(grace_ms),
        None => true,
    };
    let mut versions = adapters.flat_map(Adapter::all);
    versions.any(|version| version.digest == *digest && needs(version))
}

/// Whether any version has this digest whose bytes are not known to be gone.
pub(crate) fn has_record(catalog: &Catalog, digest: &Digest) -> bool {
    let adapters = catalog.tenants.values().flat_map(|tenant| tenant.adapters.values());
    let mut versions = adapters.flat_map(Adapter::all);
    versions.any(|version| version.digest == *digest && version.collected_ms.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests_support::{adapter_with, tenant_with};

    const DAY: u64 = 86_400_000;

    fn judged(version: VersionNumber, rules: Rules, now_ms: u64) -> Option<Hold> {
        // Five versions, published at 1 to 5; `live` went 1 → 2 → 4 at 10, 20, 30.
        let adapter = adapter_with(5, &[(1, 10), (2, 20), (4, 30)]);
        let tenant = tenant_with(&[]);
        let name = "a".parse().unwrap();
        let record = adapter.versions().find(|known| known.number == version).unwrap().clone();
        hold(&tenant, &name, &adapter, &record, &rules, &HashSet::new(), now_ms)
    }

    #[test]
    fn what_an_alias_means_or_meant_lately_stays() {
        let rules = Rules { keep_versions: 0, age_min_ms: 0, rollback_ms: 100 };
        assert_eq!(judged(4, rules, 10 * DAY), Some(Hold::Alias("live".to_owned())));
        // It meant 2 until 30, and 1 until 20.
        for (now_ms, two, one) in [(119, true, true), (120, true, false), (129, true, false), (130, false, false)] {
            assert_eq!(judged(2, rules, now_ms).is_some(), two, "{now_ms}");
            assert_eq!(judged(1, rules, now_ms).is_some(), one, "{now_ms}");
        }
        assert_eq!(judged(3, rules, 10 * DAY), None);
    }

    #[test]
    fn the_newest_and_the_young_stay_by_rule_alone() {
        let rules = Rules { keep_versions: 3, age_min_ms: DAY, rollback_ms: 0 };
        assert_eq!(judged(1, rules, 1 + DAY - 1), Some(Hold::Young));
        assert_eq!(judged(1, rules, 1 + DAY), None);
        assert_eq!(judged(3, rules, 10 * DAY), Some(Hold::Newest));
        assert_eq!(judged(3, Rules::NONE, 10 * DAY), None);
    }

    #[test]
    fn a_merge_made_at_request_time_is_not_kept_for_being_the_newest() {
        let (adapter, tenant) = (adapter_with(1, &[]), tenant_with(&[]));
        let rules = Rules { keep_versions: 10, age_min_ms: DAY, rollback_ms: 0 };
        let version = adapter.versions().next().unwrap();
        let merged = AdapterName::of_recipe(&Digest::of(b"recipe"));
        let judge =
            |name: &AdapterName, now_ms| hold(&tenant, name, &adapter, version, &rules, &HashSet::new(), now_ms);
        assert_eq!(judge(&merged, 2), Some(Hold::Young));
        assert_eq!(judge(&merged, 10 * DAY), None);
        assert_eq!(judge(&"a".parse().unwrap(), 10 * DAY), Some(Hold::Newest));
    }

    #[test]
    fn pins_and_requests_hold() {
        let adapter = adapter_with(2, &[(2, 10)]);
        let version = adapter.versions().next().unwrap().clone();
        let name = "a".parse().unwrap();
        let pinned = tenant_with(&[version.digest]);
        let judge = |tenant: &Tenant, asked: &HashSet<Digest>| {
            hold(tenant, &name, &adapter, &version, &Rules::NONE, asked, 10 * DAY)
        };
        assert_eq!(judge(&pinned, &HashSet::new()), Some(Hold::Pin));
        assert_eq!(judge(&tenant_with(&[]), &HashSet::from([version.digest])), Some(Hold::Requests));
        assert_eq!(judge(&tenant_with(&[]), &HashSet::new()), None);
    }
}

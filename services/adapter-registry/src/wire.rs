//! From records to messages, and limits both ways.

use crate::catalog::Adapter;
use crate::gc::{Found, Rules};
use crate::publish::cut;
use crate::records::{
    AliasMove, AliasRecord, ExperimentRecord, KeyRecord, Lineage, LineageParent, Places, TenantRecord, VersionRecord,
};
use bytes::Bytes;
use weft_experiments::Experiment;
use weft_object_store::ETag;
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, AliasName, LimitChange, LimitKind, Limits, TenantName};

/// Reasons of a refusal on the wire: what a person can read, and less than a message holds.
const REASONS_MAX: usize = 1_000;
const REASON_BYTES_MAX: usize = 1_024;

pub(crate) fn adapter(tenant: &TenantName, name: &AdapterName, adapter: &Adapter) -> pb::Adapter {
    pb::Adapter {
        tenant: tenant.to_string(),
        name: name.to_string(),
        aliases: adapter.aliases.iter().map(|(name, (record, etag))| alias(name, record, etag)).collect(),
        latest_version: adapter.versions().next_back().map_or(0, |last| last.number),
        created_ms: adapter.created_ms(),
    }
}

pub(crate) fn alias(name: &AliasName, record: &AliasRecord, etag: &ETag) -> pb::Alias {
    pb::Alias {
        name: name.to_string(),
        version: record.version,
        digest: record.digest.to_vec().into(),
        etag: etag.as_str().to_owned(),
        moved_ms: record.moved_ms,
        actor: record.actor.clone(),
        experiment: record.experiment.clone().unwrap_or_default(),
    }
}

pub(crate) fn alias_move(earlier: &AliasMove) -> pb::AliasMove {
    pb::AliasMove {
        version: earlier.version,
        digest: earlier.digest.to_vec().into(),
        moved_ms: earlier.moved_ms,
        actor: earlier.actor.clone(),
    }
}

/// As [`Experiment::parse`] reads it.
pub(crate) fn description(experiment: &Experiment) -> Bytes {
    serde_json::to_vec(experiment).expect("descriptions are plain data with text keys").into()
}

pub(crate) fn experiment(record: &ExperimentRecord) -> pb::Experiment {
    let changes = record.changes.iter().map(|change| pb::ExperimentChange {
        at_ms: change.at_ms,
        actor: change.actor.clone(),
        what: change.what.clone(),
    });
    pb::Experiment {
        description: description(&record.experiment),
        created_ms: record.created_ms,
        actor: record.actor.clone(),
        changes: changes.collect(),
    }
}

/// The rules of a request, over those of the settings.
pub(crate) fn rules(request: &pb::CollectGarbageRequest, rules: Rules) -> Rules {
    let ms = |seconds: Option<u64>, or: u64| seconds.map_or(or, |seconds| seconds.saturating_mul(1_000));
    Rules {
        keep_versions: request
            .keep_versions
            .map_or(rules.keep_versions, |keep| usize::try_from(keep).unwrap_or(usize::MAX)),
        age_min_ms: ms(request.age_min_s, rules.age_min_ms),
        rollback_ms: ms(request.rollback_s, rules.rollback_ms),
    }
}

pub(crate) fn garbage(found: &Found) -> pb::Garbage {
    pb::Garbage {
        tenant: found.tenant.to_string(),
        adapter: found.adapter.to_string(),
        version: found.version,
        digest: found.digest.to_vec().into(),
        bytes: found.bytes,
        stage: found.stage.as_str().to_owned(),
    }
}

pub(crate) fn version(tenant: &TenantName, adapter: &AdapterName, record: &VersionRecord) -> pb::Version {
    pb::Version {
        tenant: tenant.to_string(),
        adapter: adapter.to_string(),
        number: record.number,
        digest: record.digest.to_vec().into(),
        bytes: record.bytes,
        rank_max: record.rank_max,
        target_modules: record.target_modules.clone(),
        config_sha256: record.config_sha256.to_vec().into(),
        weights_sha256: record.weights_sha256.to_vec().into(),
        base_digest: record.base_digest.to_vec().into(),
        created_ms: record.created_ms,
        actor: record.actor.clone(),
        warnings: record.warnings.clone(),
        lineage: record.lineage.as_deref().map(lineage),
        origin: record.origin.clone().unwrap_or_default(),
        parameters: record.parameters,
        signed_by: record.signed_by.clone().unwrap_or_default(),
        quarantined: record.quarantined,
    }
}

pub(crate) fn lineage(lineage: &Lineage) -> pb::Lineage {
    let parent = |parent: &LineageParent| pb::LineageParent {
        adapter: parent.adapter.to_string(),
        version: parent.version,
        digest: parent.digest.to_vec().into(),
        weight: parent.weight,
    };
    pb::Lineage {
        recipe_digest: lineage.recipe_digest.to_vec().into(),
        // Plain data: it always serializes.
        recipe: serde_json::to_string(&lineage.recipe).unwrap_or_default(),
        parents: lineage.parents.iter().map(parent).collect(),
        error: lineage.error,
    }
}

pub(crate) fn published(adapter: &AdapterName, record: VersionRecord, created: bool) -> pb::Published {
    pb::Published {
        adapter: adapter.to_string(),
        version: record.number,
        digest: record.digest.to_vec().into(),
        warnings: record.warnings,
        created,
        bytes: record.bytes,
        parameters: record.parameters,
        quarantined: record.quarantined,
        signed_by: record.signed_by.unwrap_or_default(),
    }
}

pub(crate) fn tenant(record: &TenantRecord) -> pb::Tenant {
    pb::Tenant {
        name: record.name.to_string(),
        created_ms: record.created_ms,
        default_adapter: record.default_adapter.clone(),
        weight: record.weight.value(),
        limits: Some(limits(&record.limits)),
        places: Some(places(&record.places)),
        policy: Some(record.policy.wire()),
    }
}

fn places(places: &Places) -> pb::Places {
    let pins = places.pins.iter().map(|(digest, copies)| pb::Pin { digest: digest.to_vec().into(), copies: *copies });
    pb::Places { floor: places.floor, ceiling: places.ceiling, pins: pins.collect() }
}

pub(crate) fn limits(limits: &Limits) -> pb::Limits {
    pb::Limits {
        requests_per_minute: limits.requests_per_minute.unwrap_or(0),
        tokens_per_minute: limits.tokens_per_minute.unwrap_or(0),
        tokens_per_day: limits.tokens_per_day.unwrap_or(0),
        concurrent_requests: limits.concurrent_requests.unwrap_or(0),
        queue_length: limits.queue_length.unwrap_or(0),
    }
}

/// What a change asks for; an absent one asks for nothing.
pub(crate) fn changes(change: Option<pb::LimitsChange>) -> Vec<LimitChange> {
    let change = change.unwrap_or_default();
    let asked = |kind| match kind {
        LimitKind::RequestsPerMinute => change.requests_per_minute,
        LimitKind::TokensPerMinute => change.tokens_per_minute,
        LimitKind::TokensPerDay => change.tokens_per_day,
        LimitKind::ConcurrentRequests => change.concurrent_requests,
        LimitKind::QueueLength => change.queue_length,
    };
    LimitKind::ALL.into_iter().filter_map(|kind| Some((kind, asked(kind)?))).collect()
}

/// The limits of something new.
pub(crate) fn first_limits(limits: Option<pb::Limits>) -> Vec<LimitChange> {
    let limits = limits.unwrap_or_default();
    vec![
        (LimitKind::RequestsPerMinute, limits.requests_per_minute),
        (LimitKind::TokensPerMinute, limits.tokens_per_minute),
        (LimitKind::TokensPerDay, limits.tokens_per_day),
        (LimitKind::ConcurrentRequests, limits.concurrent_requests),
        (LimitKind::QueueLength, limits.queue_length),
    ]
}

pub(crate) fn key(tenant: &TenantName, record: &KeyRecord) -> pb::Key {
    pb::Key {
        id: record.id.clone(),
        tenant: tenant.to_string(),
        label: record.label.clone(),
        created_ms: record.created_ms,
        revoked_ms: record.revoked.as_ref().map_or(0, |revocation| revocation.at_ms),
        limits: Some(limits(&record.limits)),
    }
}

pub(crate) fn refusal(reasons: Vec<String>) -> pb::Refusal {
    let count = reasons.len();
    let mut reasons: Vec<String> =
        reasons.iter().take(REASONS_MAX).map(|reason| cut(reason, REASON_BYTES_MAX)).collect();
    if count > REASONS_MAX {
        reasons.push(format!("{} more reasons", count - REASONS_MAX));
    }
    pb::Refusal { reasons }
}

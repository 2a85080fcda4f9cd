//! `/admin/v1/gc` and `DELETE …/versions/{version}`: versions that nobody needs any more.

use super::InPath;
use super::admin::{checked, digest, operator};
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::directory::Snapshot;
use axum::Json;
use axum::extract::{Request, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, Digest, TenantName};

/// One turn of clean-up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GcAsked {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
    /// One tenant; absent: all.
    tenant: Option<String>,
    /// In place of the registry's `gc_keep_versions`.
    keep_versions: Option<u64>,
    /// In place of the registry's `gc_age_min_s`.
    age_min_s: Option<u64>,
    /// In place of the registry's `gc_rollback_s`.
    rollback_s: Option<u64>,
}

/// What was done, or would be.
#[derive(Serialize, ToSchema)]
pub(crate) struct GcDone {
    versions: Vec<GarbageBody>,
    /// Of those whose bytes went, or would.
    bytes_collected: u64,
}

/// A version that nothing holds.
#[derive(Serialize, ToSchema)]
pub(crate) struct GarbageBody {
    tenant: String,
    adapter: String,
    version: u64,
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    bytes: u64,
    /// `condemned`: it leaves the directory; `waiting`: condemned before, its bytes stay until `gc_grace_s` is over; `collected`: its bytes go.
    stage: String,
}

/// Clean up: versions that no alias, experiment, pin, request or rule of retention holds leave the directory, and the bytes of those that left
/// it long enough ago go.
#[utoipa::path(post, path = "/admin/v1/gc", tag = "admin", security(("admin" = [])), request_body = GcAsked,
    responses((status = 200, description = "What was done, or would be", body = GcDone)))]
pub(crate) async fn collect(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Json<GcDone>, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<GcAsked>(request).await?;
    let tenant = asked.tenant.as_deref().map(|tenant| checked::<TenantName>("tenant", tenant)).transpose()?;
    let request = pb::CollectGarbageRequest {
        tenant: tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
        dry_run: asked.dry_run,
        actor,
        keep_versions: asked.keep_versions,
        age_min_s: asked.age_min_s,
        rollback_s: asked.rollback_s,
    };
    let answer = gateway.judged(gateway.registry.clone().collect_garbage(request)).await?;
    let is_collected = |garbage: &&pb::Garbage| garbage.stage == "collected";
    let bytes_collected = answer.garbage.iter().filter(is_collected).map(|garbage| garbage.bytes).sum();
    let versions = answer.garbage.into_iter().map(|garbage| GarbageBody {
        tenant: garbage.tenant,
        adapter: garbage.adapter,
        version: garbage.version,
        digest: digest(&garbage.digest),
        bytes: garbage.bytes,
        stage: garbage.stage,
    });
    Ok(Json(GcDone { versions: versions.collect(), bytes_collected }))
}

/// Delete a version: it leaves the directory at once; its bytes go with a later clean-up. Its number is never given again.
#[utoipa::path(delete, path = "/admin/v1/tenants/{tenant}/adapters/{name}/versions/{version}", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path), ("version" = u64, Path)),
    responses((status = 204, description = "It cannot be asked for any more"), (status = 404, description = "No such version", body = OpenAiBody),
        (status = 409, description = "An alias, an experiment, a pin or requests hold it", body = OpenAiBody)))]
pub(crate) async fn delete_version(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, version)): InPath<(String, String, u64)>,
    request: Request,
) -> Result<StatusCode, OpenAiError> {
    let (tenant, name): (TenantName, AdapterName) = (checked("tenant", &tenant)?, checked("name", &name)?);
    let request = pb::DeleteVersionRequest {
        tenant: tenant.to_string(),
        adapter: name.to_string(),
        version,
        actor: operator(&request.into_parts().0),
    };
    gateway.ask(gateway.registry.clone().delete_version(request)).await?;
    let is_gone = |snapshot: &Snapshot| {
        let adapter = snapshot.adapter(tenant.as_str(), name.as_str());
        adapter.is_none_or(|adapter| !adapter.versions.contains_key(&version))
    };
    gateway.show(is_gone).await;
    Ok(StatusCode::NO_CONTENT)
}

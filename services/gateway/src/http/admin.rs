//! `/admin/v1`: tenants, keys, adapters, versions, aliases, workers. Needs an admin key.
//!
//! A write is answered after this gateway's own directory shows it, so that whoever got the answer can use it at once.

use super::InPath;
use super::body;
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::directory::{Snapshot, registry_fault};
use crate::error::code;
use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, AliasName, Digest, TenantName};

/// Longest wait for the registry.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a worker's word on itself.
const WORKER_TIMEOUT: Duration = Duration::from_secs(3);

/// The name of the admin key that a request carried.
#[derive(Clone)]
pub(crate) struct Operator(pub(crate) String);

/// Lets operators pass.
pub(crate) async fn require_operator(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Result<Response, OpenAiError> {
    let operator = gateway.admin_keys.operator(request.headers())?;
    request.extensions_mut().insert(Operator(operator));
    Ok(next.run(request).await)
}

pub(super) fn operator(parts: &http::request::Parts) -> String {
    parts.extensions.get::<Operator>().map_or_else(String::new, |operator| operator.0.clone())
}

impl Gateway {
    /// One call of the registry, within its time.
    async fn ask<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Fault> {
        match tokio::time::timeout(REGISTRY_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(registry_fault(&status)),
            Err(_) => Err(Fault::new(Kind::Timeout, format!("the registry did not answer within {} s", REGISTRY_TIMEOUT.as_secs()))),
        }
    }

    /// Waits until this gateway serves from a directory that has the write in it.
    pub(super) async fn show(&self, shows: impl Fn(&Snapshot) -> bool) {
        let wait = Duration::from_millis(self.settings.admin_visible_ms);
        self.directory.show(self.registry.clone(), wait, shows).await;
    }

    async fn admin_json<T: serde::de::DeserializeOwned>(&self, request: Request) -> Result<(String, HeaderMap, T), Fault> {
        let (parts, body) = request.into_parts();
        let body = self.read_body(&parts, body).await?;
        // Scripts post `{}` or nothing where nothing is needed.
        let bytes: &[u8] = if body.bytes.is_empty() { b"{}" } else { &body.bytes };
        Ok((operator(&parts), parts.headers, body::json(bytes)?))
    }
}

pub(super) fn checked<T: std::str::FromStr<Err = weft_types::NameError>>(field: &str, text: &str) -> Result<T, Fault> {
    text.parse().map_err(|error: weft_types::NameError| Fault::invalid(field, error.to_string()))
}

fn digest(raw: &[u8]) -> Option<Digest> {
    Digest::try_from(raw).ok()
}

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantBody {
    name: String,
    created_ms: u64,
    /// What an absent model name means; null: the base.
    default_adapter: Option<String>,
}

impl From<pb::Tenant> for TenantBody {
    fn from(tenant: pb::Tenant) -> Self {
        let default_adapter = Some(tenant.default_adapter).filter(|name| !name.is_empty());
        Self { name: tenant.name, created_ms: tenant.created_ms, default_adapter }
    }
}

/// All tenants.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantList {
    tenants: Vec<TenantBody>,
}

/// A tenant to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    /// `[a-z0-9][a-z0-9-]{0,62}`.
    name: String,
}

/// Create a tenant.
#[utoipa::path(
    post, path = "/admin/v1/tenants", tag = "admin", request_body = NewTenant, security(("admin" = [])),
    responses(
        (status = 201, description = "Created", body = TenantBody),
        (status = 200, description = "It existed already", body = TenantBody),
        (status = 400, description = "The name is wrong", body = OpenAiBody),
    )
)]
pub(crate) async fn create_tenant(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<NewTenant>(request).await?;
    let name: TenantName = checked("name", &asked.name)?;
    let mut registry = gateway.registry.clone();
    let request = pb::CreateTenantRequest { name: name.to_string(), actor };
    let answer = gateway.ask(registry.create_tenant(request)).await?;
    gateway.show(|snapshot| snapshot.tenant(name.as_str()).is_some()).await;
    let status = if answer.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TenantBody::from(answer.tenant.unwrap_or_default()))).into_response())
}

/// List tenants.
#[utoipa::path(get, path = "/admin/v1/tenants", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "All tenants", body = TenantList)))]
pub(crate) async fn list_tenants(State(gateway): State<Arc<Gateway>>) -> Result<Json<TenantList>, OpenAiError> {
    let answer = gateway.ask(gateway.registry.clone().list_tenants(pb::ListTenantsRequest {})).await?;
    Ok(Json(TenantList { tenants: answer.tenants.into_iter().map(Into::into).collect() }))
}

/// A key to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    /// Free text, up to 128 bytes.
    #[serde(default)]
    label: String,
}

/// A key, shown once.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedKey {
    id: String,
    /// The bearer token; stored nowhere.
    secret: String,
}

/// A key, without its secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeyBody {
    id: String,
    label: String,
    created_ms: u64,
    /// Null: valid.
    revoked_ms: Option<u64>,
}

/// All keys of a tenant.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeyList {
    keys: Vec<KeyBody>,
}

/// Create a key. Its secret is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/keys", tag = "admin", request_body = NewKey, security(("admin" = [])),
    params(("tenant" = String, Path)),
    responses((status = 201, description = "Created", body = CreatedKey), (status = 404, description = "No such tenant", body = OpenAiBody))
)]
pub(crate) async fn create_key(
    State(gateway): State<Arc<Gateway>>,
    InPath(tenant): InPath<String>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<NewKey>(request).await?;
    let tenant: TenantName = checked("tenant", &tenant)?;
    let request = pb::CreateKeyRequest { tenant: tenant.to_string(), label: asked.label, actor };
    let answer = gateway.ask(gateway.registry.clone().create_key(request)).await?;
    gateway.show(|snapshot| snapshot.has_key(tenant.as_str(), &answer.id)).await;
    let mut response = (StatusCode::CREATED, Json(CreatedKey { id: answer.id, secret: answer.secret })).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// List a tenant's keys.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/keys", tag = "admin", security(("admin" = [])), params(("tenant" = String, Path)),
    responses((status = 200, description = "All keys, revoked ones too", body = KeyList)))]
pub(crate) async fn list_keys(
    State(gateway): State<Arc<Gateway>>,
    InPath(tenant): InPath<String>,
) -> Result<Json<KeyList>, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let request = pb::ListKeysRequest { tenant: tenant.to_string() };
    let answer = gateway.ask(gateway.registry.clone().list_keys(request)).await?;
    let keys = answer.keys.into_iter().map(|key| KeyBody {
        id: key.id,
        label: key.label,
        created_ms: key.created_ms,
        revoked_ms: Some(key.revoked_ms).filter(|ms| *ms > 0),
    });
    Ok(Json(KeyList { keys: keys.collect() }))
}

/// Revoke a key. The gateway that answers refuses it at once, others within seconds.
#[utoipa::path(delete, path = "/admin/v1/tenants/{tenant}/keys/{id}", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)),
    responses((status = 204, description = "Revoked"), (status = 404, description = "No such key", body = OpenAiBody)))]
pub(crate) async fn revoke_key(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, id)): InPath<(String, String)>,
    request: Request,
) -> Result<StatusCode, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let actor = operator(&request.into_parts().0);
    let revoke = pb::RevokeKeyRequest { tenant: tenant.to_string(), id: id.clone(), actor };
    gateway.ask(gateway.registry.clone().revoke_key(revoke)).await?;
    gateway.show(|snapshot| !snapshot.has_key(tenant.as_str(), &id)).await;
    Ok(StatusCode::NO_CONTENT)
}

/// An alias.
#[derive(Serialize, ToSchema)]
pub(crate) struct AliasBody {
    alias: String,
    version: u64,
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    /// For `If-Match`.
    etag: String,
    moved_ms: u64,
    /// The admin key that moved it.
    actor: String,
}

impl From<pb::Alias> for AliasBody {
    fn from(alias: pb::Alias) -> Self {
        Self {
            digest: digest(&alias.digest),
            alias: alias.name,
            version: alias.version,
            etag: alias.etag,
            moved_ms: alias.moved_ms,
            actor: alias.actor,
        }
    }
}

/// An adapter.
#[derive(Serialize, ToSchema)]
pub(crate) struct AdapterBody {
    name: String,
    aliases: Vec<AliasBody>,
    latest_version: u64,
    created_ms: u64,
}

/// A tenant's adapters.
#[derive(Serialize, ToSchema)]
pub(crate) struct AdapterList {
    adapters: Vec<AdapterBody>,
}

/// List a tenant's adapters.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/adapters", tag = "admin", security(("admin" = [])), params(("tenant" = String, Path)),
    responses((status = 200, description = "All adapters", body = AdapterList)))]
pub(crate) async fn list_adapters(
    State(gateway): State<Arc<Gateway>>,
    InPath(tenant): InPath<String>,
) -> Result<Json<AdapterList>, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    Ok(Json(AdapterList { adapters: gateway.adapters(&tenant).await?.into_iter().map(adapter_body).collect() }))
}

fn adapter_body(adapter: pb::Adapter) -> AdapterBody {
    AdapterBody {
        name: adapter.name,
        aliases: adapter.aliases.into_iter().map(Into::into).collect(),
        latest_version: adapter.latest_version,
        created_ms: adapter.created_ms,
    }
}

impl Gateway {
    async fn adapters(&self, tenant: &TenantName) -> Result<Vec<pb::Adapter>, Fault> {
        let request = pb::ListAdaptersRequest { tenant: tenant.to_string() };
        Ok(self.ask(self.registry.clone().list_adapters(request)).await?.adapters)
    }

    async fn aliases(&self, tenant: &TenantName, name: &AdapterName) -> Result<Vec<pb::Alias>, Fault> {
        let adapters = self.adapters(tenant).await?;
        let adapter = adapters.into_iter().find(|adapter| adapter.name == name.as_str());
        Ok(adapter.ok_or_else(|| Fault::not_found(format!("tenant {tenant} has no adapter {name}")))?.aliases)
    }
}

/// A version.
#[derive(Serialize, ToSchema)]
pub(crate) struct VersionBody {
    version: u64,
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    /// Of the canonical blob.
    bytes: u64,
    rank_max: u32,
    target_modules: Vec<String>,
    #[schema(value_type = Option<String>)]
    config_sha256: Option<Digest>,
    #[schema(value_type = Option<String>)]
    weights_sha256: Option<Digest>,
    #[schema(value_type = Option<String>)]
    base_digest: Option<Digest>,
    created_ms: u64,
    actor: String,
    warnings: Vec<String>,
}

/// An adapter's versions.
#[derive(Serialize, ToSchema)]
pub(crate) struct VersionList {
    versions: Vec<VersionBody>,
}

/// List an adapter's versions.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/adapters/{name}/versions", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path, description = "One segment: a slash is `%2F`")),
    responses((status = 200, description = "All versions", body = VersionList), (status = 404, description = "No such adapter", body = OpenAiBody)))]
pub(crate) async fn list_versions(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
) -> Result<Json<VersionList>, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let name: AdapterName = checked("name", &name)?;
    let request = pb::ListVersionsRequest { tenant: tenant.to_string(), adapter: name.to_string() };
    let answer = gateway.ask(gateway.registry.clone().list_versions(request)).await?;
    let versions = answer.versions.into_iter().map(|version| VersionBody {
        version: version.number,
        digest: digest(&version.digest),
        bytes: version.bytes,
        rank_max: version.rank_max,
        target_modules: version.target_modules,
        config_sha256: digest(&version.config_sha256),
        weights_sha256: digest(&version.weights_sha256),
        base_digest: digest(&version.base_digest),
        created_ms: version.created_ms,
        actor: version.actor,
        warnings: version.warnings,
    });
    Ok(Json(VersionList { versions: versions.collect() }))
}

/// An adapter's aliases.
#[derive(Serialize, ToSchema)]
pub(crate) struct AliasList {
    aliases: Vec<AliasBody>,
}

/// List an adapter's aliases.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/adapters/{name}/aliases", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "All aliases", body = AliasList), (status = 404, description = "No such adapter", body = OpenAiBody)))]
pub(crate) async fn list_aliases(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
) -> Result<Json<AliasList>, OpenAiError> {
    let aliases = gateway.aliases(&checked("tenant", &tenant)?, &checked("name", &name)?).await?;
    Ok(Json(AliasList { aliases: aliases.into_iter().map(Into::into).collect() }))
}

/// Read one alias; its `etag` is for `If-Match`.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path), ("alias" = String, Path)),
    responses((status = 200, description = "The alias", body = AliasBody), (status = 404, description = "No such alias", body = OpenAiBody)))]
pub(crate) async fn get_alias(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, alias)): InPath<(String, String, String)>,
) -> Result<Response, OpenAiError> {
    let (name, alias): (AdapterName, AliasName) = (checked("name", &name)?, checked("alias", &alias)?);
    let aliases = gateway.aliases(&checked("tenant", &tenant)?, &name).await?;
    let found = aliases.into_iter().find(|known| known.name == alias.as_str());
    Ok(alias_response(found.ok_or_else(|| Fault::not_found(format!("adapter {name} has no alias {alias}")))?))
}

fn alias_response(alias: pb::Alias) -> Response {
    let etag = HeaderValue::from_str(&format!("\"{}\"", alias.etag.trim_matches('"')));
    let mut response = Json(AliasBody::from(alias)).into_response();
    if let Ok(etag) = etag {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// Where an alias goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveAlias {
    version: u64,
}

/// Move or create an alias. `If-Match: "etag"` moves it only from there, `If-Match: *` only if it exists,
/// `If-None-Match: *` only if it does not.
#[utoipa::path(put, path = "/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path), ("alias" = String, Path),
        ("If-Match" = Option<String>, Header), ("If-None-Match" = Option<String>, Header)),
    request_body = MoveAlias,
    responses((status = 200, description = "Where it is now", body = AliasBody), (status = 404, description = "No such version", body = OpenAiBody),
        (status = 412, description = "Somebody else moved it first", body = OpenAiBody)))]
pub(crate) async fn set_alias(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, alias)): InPath<(String, String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (actor, headers, asked) = gateway.admin_json::<MoveAlias>(request).await?;
    let tenant: TenantName = checked("tenant", &tenant)?;
    let name: AdapterName = checked("name", &name)?;
    let alias: AliasName = checked("alias", &alias)?;
    let expected_etag = expected_etag(&headers)?;
    let conditional = !expected_etag.is_empty();
    let request = pb::SetAliasRequest {
        tenant: tenant.to_string(),
        adapter: name.to_string(),
        alias: alias.to_string(),
        version: asked.version,
        expected_etag,
        actor,
    };
    let answer = gateway.ask(gateway.registry.clone().set_alias(request)).await.map_err(|fault| {
        if fault.kind == Kind::Conflict && conditional { fault.with_code(code::PRECONDITION_FAILED) } else { fault }
    })?;
    let moved = answer.alias.unwrap_or_default();
    let there = |snapshot: &Snapshot| {
        let adapter = snapshot.tenant(tenant.as_str()).and_then(|tenant| tenant.adapters.get(name.as_str()));
        adapter.and_then(|adapter| adapter.aliases.get(alias.as_str())) == Some(&moved.version)
    };
    gateway.show(there).await;
    Ok(alias_response(moved))
}

/// `If-Match` and `If-None-Match` in the registry's words.
fn expected_etag(headers: &HeaderMap) -> Result<String, Fault> {
    let text = |name: header::HeaderName| {
        let Some(value) = headers.get(&name) else { return Ok(None) };
        match value.to_str() {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(_) => Err(Fault::invalid(name.as_str(), format!("`{name}` must be plain text"))),
        }
    };
    match (text(header::IF_MATCH)?, text(header::IF_NONE_MATCH)?) {
        (None, None) => Ok(String::new()),
        (Some(star), None) if star == "*" => Ok(star),
        (Some(etag), None) => Ok(etag.trim_matches('"').to_owned()),
        (None, Some(star)) if star == "*" => Ok("none".to_owned()),
        _ => Err(Fault::invalid("if-none-match", "only one of `if-match` and `if-none-match: *` can be given")),
    }
}

/// What is known of the workers. Fields of a worker that does not answer are null.
#[utoipa::path(get, path = "/admin/v1/workers", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "Every configured worker: what it serves and how busy it is", body = serde_json::Value)))]
pub(crate) async fn workers(State(gateway): State<Arc<Gateway>>) -> Json<serde_json::Value> {
    let asked = gateway.mesh.pool.workers().iter().map(|worker| async move {
        let mut client = worker.client();
        let request = weft_proto::worker::v1::GetLoadRequest {};
        let load = tokio::time::timeout(WORKER_TIMEOUT, client.get_load(request)).await.ok().and_then(Result::ok);
        let (seen, load) = (worker.seen(), load.map(tonic::Response::into_inner));
        let base = seen.base.as_ref().map(|base| {
            let d = &base.description;
            serde_json::json!({
                "worker": d.worker, "served_name": d.served_name, "model_id": d.model_id, "base_digest": base.digest,
                "dtype": d.dtype, "isa": d.isa, "context_tokens_max": d.context_tokens_max,
                "prompt_tokens_max": d.prompt_tokens_max, "kv_tokens_max": d.kv_tokens_max,
                "slot_bytes_max": d.slot_bytes_max, "step_tokens_max": d.step_tokens_max,
                "concurrent_requests_max": d.concurrent_requests_max, "queue_requests_max": d.queue_requests_max,
            })
        });
        let load = load.map(|l| {
            serde_json::json!({
                "running_requests": l.running_requests, "queued_requests": l.queued_requests,
                "loading_requests": l.loading_requests, "kv_blocks_used": l.kv_blocks_used,
                "kv_blocks_max": l.kv_blocks_max, "slot_bytes_used": l.slot_bytes_used,
                "slot_bytes_max": l.slot_bytes_max, "steps_total": l.steps_total,
                "prompt_tokens_total": l.prompt_tokens_total, "output_tokens_total": l.output_tokens_total,
                "mixed_steps_total": l.mixed_steps_total, "preemptions_total": l.preemptions_total,
                "draining": l.draining, "step_us": l.step_us,
            })
        });
        serde_json::json!({"address": worker.address, "up": seen.up, "problem": seen.problem, "describes": base, "load": load})
    });
    Json(serde_json::json!({"workers": join_all(asked).await}))
}

/// Which adapters hold a slot where. Null for a worker that does not answer.
#[utoipa::path(get, path = "/admin/v1/residency", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "Slots of every worker", body = serde_json::Value)))]
pub(crate) async fn residency(State(gateway): State<Arc<Gateway>>) -> Json<serde_json::Value> {
    let asked = gateway.mesh.pool.workers().iter().map(|worker| async move {
        let mut client = worker.client();
        let request = weft_proto::worker::v1::ListResidencyRequest {};
        let answer = tokio::time::timeout(WORKER_TIMEOUT, client.list_residency(request)).await.ok().and_then(Result::ok);
        let slots = answer.map(tonic::Response::into_inner).map(|residency| {
            let adapters: Vec<_> = residency.adapters.iter().map(|adapter| serde_json::json!({
                "digest": digest(&adapter.digest), "bytes": adapter.bytes, "users": adapter.users, "pinned": adapter.pinned,
            })).collect();
            serde_json::json!({
                "adapters": adapters, "slot_bytes_used": residency.slot_bytes_used,
                "slot_bytes_max": residency.slot_bytes_max, "generation": residency.generation,
            })
        });
        serde_json::json!({"address": worker.address, "slots": slots})
    });
    Json(serde_json::json!({"workers": join_all(asked).await}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preconditions_become_the_registrys_words() {
        let of = |pairs: &[(header::HeaderName, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            expected_etag(&HeaderMap::from_iter(headers)).ok()
        };
        assert_eq!(of(&[]).as_deref(), Some(""));
        assert_eq!(of(&[(header::IF_MATCH, "*")]).as_deref(), Some("*"));
        assert_eq!(of(&[(header::IF_MATCH, "\"abc\"")]).as_deref(), Some("abc"));
        assert_eq!(of(&[(header::IF_NONE_MATCH, "*")]).as_deref(), Some("none"));
        assert_eq!(of(&[(header::IF_NONE_MATCH, "\"abc\"")]), None);
        assert_eq!(of(&[(header::IF_MATCH, "*"), (header::IF_NONE_MATCH, "*")]), None);
    }
}

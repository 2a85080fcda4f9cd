//! `/admin/v1`: tenants, keys, adapters, versions. Needs an admin key. Aliases, uploads and workers have files of their own.
//!
//! A write is answered after this gateway's own directory shows it, so that whoever got the answer can use it at once.

use super::InPath;
use super::admin_limits::{LimitsAsked, LimitsBody};
use super::admin_merge::LineageBody;
use super::admin_placement::PlacesBody;
use super::admin_policy::PolicyBody;
use super::errors::{OpenAiBody, OpenAiError};
use super::{admin_update, body};
use crate::app::Gateway;
use crate::directory::{Snapshot, registry_fault};
use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, Digest, TenantName};

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

pub(super) fn registry_silent(limit: Duration) -> Fault {
    Fault::new(Kind::Timeout, format!("the registry did not answer within {} ms", limit.as_millis()))
}

impl Gateway {
    /// One call of the registry, within its time.
    pub(crate) async fn ask<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Fault> {
        let (asked, limit) = (Instant::now(), self.settings.registry_timeout());
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // A call that the deadline ended looks like a broken one.
            Ok(Err(status)) if asked.elapsed() < limit => Err(registry_fault(&status)),
            Ok(Err(_)) | Err(_) => Err(registry_silent(limit)),
        }
    }

    /// Waits until this gateway serves from a directory that has the write in it.
    pub(crate) async fn show(&self, shows: impl Fn(&Snapshot) -> bool) {
        let wait = Duration::from_millis(self.settings.admin_visible_ms);
        self.directory.show(self.registry.clone(), wait, shows).await;
    }

    pub(super) async fn admin_json<T: serde::de::DeserializeOwned>(
        &self,
        request: Request,
    ) -> Result<(String, HeaderMap, T), Fault> {
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

pub(super) fn digest(raw: &[u8]) -> Option<Digest> {
    Digest::try_from(raw).ok()
}

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantBody {
    name: String,
    created_ms: u64,
    /// What an absent model name means; null: the base.
    default_adapter: Option<String>,
    /// Its share of a worker that many tenants want, relative to theirs.
    weight: f64,
    /// Its own; where it has none, the gateways' settings `default_…` hold.
    limits: LimitsBody,
    places: PlacesBody,
    policy: PolicyBody,
}

impl From<pb::Tenant> for TenantBody {
    fn from(tenant: pb::Tenant) -> Self {
        let default_adapter = Some(tenant.default_adapter).filter(|name| !name.is_empty());
        Self {
            name: tenant.name,
            created_ms: tenant.created_ms,
            default_adapter,
            weight: tenant.weight,
            limits: tenant.limits.into(),
            places: tenant.places.into(),
            policy: tenant.policy.into(),
        }
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
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    name: String,
    /// 0.01 to 100. Absent: 1. A tenant that exists keeps its own.
    #[schema(minimum = 0.01, maximum = 100)]
    weight: Option<f64>,
    /// Absent: none. A tenant that exists keeps its own.
    #[serde(default)]
    limits: LimitsAsked,
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
pub(crate) async fn create_tenant(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<NewTenant>(request).await?;
    let name: TenantName = checked("name", &asked.name)?;
    let mut registry = gateway.registry.clone();
    let weight = asked.weight.map(admin_update::checked_weight).transpose()?.unwrap_or_default();
    let request =
        pb::CreateTenantRequest { name: name.to_string(), actor, weight, limits: Some(asked.limits.first()?) };
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
    /// What may be used with this key, besides what the tenant may use.
    #[serde(default)]
    limits: LimitsAsked,
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
    /// Besides the tenant's.
    limits: LimitsBody,
}

impl From<pb::Key> for KeyBody {
    fn from(key: pb::Key) -> Self {
        Self {
            id: key.id,
            label: key.label,
            created_ms: key.created_ms,
            revoked_ms: Some(key.revoked_ms).filter(|ms| *ms > 0),
            limits: key.limits.into(),
        }
    }
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
    let request = pb::CreateKeyRequest {
        tenant: tenant.to_string(),
        label: asked.label,
        actor,
        limits: Some(asked.limits.first()?),
    };
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
    Ok(Json(KeyList { keys: answer.keys.into_iter().map(Into::into).collect() }))
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
    /// The experiment that splits its requests; while there is one, the alias is not moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    experiment: Option<String>,
}

impl AliasBody {
    pub(super) fn version(&self) -> u64 {
        self.version
    }
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
            experiment: Some(alias.experiment).filter(|id| !id.is_empty()),
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

    pub(super) async fn aliases(&self, tenant: &TenantName, name: &AdapterName) -> Result<Vec<pb::Alias>, Fault> {
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
    /// Null: it was no merge.
    lineage: Option<LineageBody>,
    /// Where it was imported from; null: it was uploaded or merged.
    origin: Option<String>,
    /// Elements of all low-rank factors; null: it was published before they were counted.
    parameters: Option<u64>,
    /// The key or certificate that signed the package; null: none did, or nobody asked.
    signed_by: Option<String>,
    /// Nobody is shown it until it is released.
    quarantined: bool,
}

impl From<pb::Version> for VersionBody {
    fn from(version: pb::Version) -> Self {
        Self {
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
            lineage: version.lineage.map(Into::into),
            origin: Some(version.origin).filter(|origin| !origin.is_empty()),
            parameters: Some(version.parameters).filter(|parameters| *parameters > 0),
            signed_by: Some(version.signed_by).filter(|by| !by.is_empty()),
            quarantined: version.quarantined,
        }
    }
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
    let versions = answer.versions.into_iter().map(VersionBody::from);
    Ok(Json(VersionList { versions: versions.collect() }))
}

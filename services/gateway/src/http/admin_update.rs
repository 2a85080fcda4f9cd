//! `PATCH /admin/v1/tenants/{tenant}` and `…/keys/{id}`: what can be changed about a tenant and a key.

use super::InPath;
use super::admin::{KeyBody, TenantBody, checked};
use super::admin_limits::LimitsAsked;
use super::admin_placement::PlacesAsked;
use super::admin_policy::PolicyAsked;
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::directory::limits;
use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_types::{TenantName, Weight};

/// What is to be changed; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantChange {
    /// The tenant's share of a worker that many tenants want, relative to theirs: 0.01 to 100.
    #[schema(minimum = 0.01, maximum = 100)]
    weight: Option<f64>,
    /// What the tenant may use.
    limits: Option<LimitsAsked>,
    /// What placement promises the tenant and denies it.
    places: Option<PlacesAsked>,
    /// What the tenant may publish and ask for.
    policy: Option<PolicyAsked>,
    /// The adapter that an absent model name means; empty: the base.
    default_adapter: Option<String>,
}

/// Change a tenant. Requests that arrive from now on have the new weight and limits.
#[utoipa::path(
    patch, path = "/admin/v1/tenants/{tenant}", tag = "admin", request_body = TenantChange, security(("admin" = [])),
    params(("tenant" = String, Path)),
    responses(
        (status = 200, description = "As it is now", body = TenantBody),
        (status = 400, description = "A value is wrong", body = OpenAiBody),
        (status = 404, description = "No such tenant", body = OpenAiBody),
    )
)]
pub(crate) async fn update_tenant(
    State(gateway): State<Arc<Gateway>>,
    InPath(tenant): InPath<String>,
    request: Request,
) -> Result<Json<TenantBody>, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<TenantChange>(request).await?;
    let name: TenantName = checked("tenant", &tenant)?;
    let weight = asked.weight.map(checked_weight).transpose()?;
    let change = asked.limits.map(|limits| limits.change()).transpose()?;
    let places = asked.places.map(|places| places.change()).transpose()?;
    let policy = asked.policy.map(PolicyAsked::change).transpose()?;
    let request = pb::UpdateTenantRequest {
        name: name.to_string(),
        actor,
        weight,
        limits: change,
        places,
        policy,
        default_adapter: asked.default_adapter,
    };
    let answer = gateway.ask(gateway.registry.clone().update_tenant(request)).await?.tenant.unwrap_or_default();
    let now = limits(answer.limits);
    let policy = answer.policy.clone().unwrap_or_default();
    let is_now = |tenant: &crate::directory::Tenant| {
        tenant.weight == answer.weight
            && tenant.limits == now
            && tenant.default_adapter.as_deref().unwrap_or_default() == answer.default_adapter
            && tenant.base_is_default == policy.base_is_default
            && tenant.adapter_sources.iter().eq(policy.adapter_sources.iter().collect::<BTreeMap<_, _>>())
    };
    gateway.show(|snapshot| snapshot.tenant(name.as_str()).is_some_and(|tenant| is_now(tenant))).await;
    Ok(Json(answer.into()))
}

/// The registry checks it too; here the answer names the range without a call.
pub(super) fn checked_weight(weight: f64) -> Result<f64, Fault> {
    Weight::new(weight).map(|_| weight).map_err(|error| Fault::invalid("weight", error.to_string()))
}

/// What is to be changed; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyChange {
    /// What may be used with this key, besides what the tenant may use.
    limits: Option<LimitsAsked>,
}

/// Change a key. Requests that arrive from now on have the new limits.
#[utoipa::path(
    patch, path = "/admin/v1/tenants/{tenant}/keys/{id}", tag = "admin", request_body = KeyChange, security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)),
    responses(
        (status = 200, description = "As it is now", body = KeyBody),
        (status = 400, description = "A value is wrong", body = OpenAiBody),
        (status = 404, description = "No such key", body = OpenAiBody),
    )
)]
pub(crate) async fn update_key(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, id)): InPath<(String, String)>,
    request: Request,
) -> Result<Json<KeyBody>, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<KeyChange>(request).await?;
    let tenant: TenantName = checked("tenant", &tenant)?;
    let change = asked.limits.map(|limits| limits.change()).transpose()?;
    let request = pb::UpdateKeyRequest { tenant: tenant.to_string(), id: id.clone(), actor, limits: change };
    let answer = gateway.ask(gateway.registry.clone().update_key(request)).await?.key.unwrap_or_default();
    let now = limits(answer.limits);
    gateway.show(|snapshot| snapshot.key_limits(tenant.as_str(), &id) == Some(now)).await;
    Ok(Json(answer.into()))
}

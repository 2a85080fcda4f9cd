//! `PATCH /admin/v1/tenants/{tenant}`: what can be changed about a tenant.

use super::InPath;
use super::admin::{TenantBody, checked};
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_types::TenantName;

/// What is to be changed; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantChange {
    /// The tenant's share of a worker that many tenants want, relative to theirs: 0.01 to 100.
    weight: Option<f64>,
}

/// Change a tenant. Requests that arrive from now on have the new weight.
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
    let request = pb::UpdateTenantRequest { name: name.to_string(), actor, weight };
    let answer = gateway.ask(gateway.registry.clone().update_tenant(request)).await?.tenant.unwrap_or_default();
    gateway.show(|snapshot| snapshot.tenant(name.as_str()).is_some_and(|tenant| tenant.weight == answer.weight)).await;
    Ok(Json(answer.into()))
}

/// The registry checks it too; here the answer names the range without a call.
pub(super) fn checked_weight(weight: f64) -> Result<f64, Fault> {
    if (0.01..=100.0).contains(&weight) {
        return Ok(weight);
    }
    Err(Fault::invalid("weight", format!("`weight` must be from 0.01 to 100, not {weight}")))
}

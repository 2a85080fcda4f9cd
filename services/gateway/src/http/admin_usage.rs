//! `GET /admin/v1/usage`: what tenants used, from the ledger.

use super::admin::checked;
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::clock::unix_ms;
use crate::directory::registry_fault;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, header};
use serde::Deserialize;
use std::sync::Arc;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_types::TenantName;

const DAY_MS: u64 = 86_400_000;
/// What is read where no time is given.
const DAYS: u64 = 31;

/// Which usage, as what.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    tenant: Option<String>,
    from_ms: Option<u64>,
    to_ms: Option<u64>,
    format: Option<String>,
    #[serde(default)]
    records: bool,
}

/// Usage by day, tenant, adapter and version, from the ledger in S3.
///
/// Gateways tell the ledger every few seconds what they wrote to their disks, so the last seconds may be missing. `format` is `json` (the default), `csv` or
/// `parquet`; with `records=true` each record in place of totals.
#[utoipa::path(get, path = "/admin/v1/usage", tag = "admin", security(("admin" = [])),
    params(("tenant" = Option<String>, Query, description = "Absent: all"),
        ("from_ms" = Option<u64>, Query, description = "Unix milliseconds; absent: 31 days ago"),
        ("to_ms" = Option<u64>, Query, description = "Unix milliseconds, exclusive; absent: now"),
        ("format" = Option<String>, Query, pattern = "^(json|csv|parquet)$", description = "`json`, `csv` or `parquet`"),
        ("records" = Option<bool>, Query, description = "Each record in place of totals; not as `json`")),
    responses((status = 200, description = "The table", content((Object = "application/json"), (String = "text/csv"), (String = "application/vnd.apache.parquet"))),
        (status = 400, description = "The range or the format is wrong", body = OpenAiBody)))]
pub(crate) async fn usage(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, OpenAiError> {
    let asked = Query::<Asked>::try_from_uri(request.uri());
    let asked = asked.map_err(|error| Fault::invalid("query", error.body_text()))?.0;
    let tenant = asked.tenant.as_deref().map(|tenant| checked::<TenantName>("tenant", tenant)).transpose()?;
    let to_ms = asked.to_ms.unwrap_or_else(|| unix_ms() + 1);
    let format = asked.format.unwrap_or_else(|| "json".to_owned());
    let kind = match format.as_str() {
        "csv" => "text/csv; charset=utf-8",
        "parquet" => "application/vnd.apache.parquet",
        _ => "application/json",
    };
    let request = pb::ReadUsageRequest {
        tenant: tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
        from_ms: asked.from_ms.unwrap_or_else(|| to_ms.saturating_sub(DAYS * DAY_MS)),
        to_ms,
        format,
        records: asked.records,
    };
    let stream = gateway.ask(gateway.registry.clone().read_usage(request)).await?;
    let pieces =
        stream.map(|piece| -> Result<Bytes, Fault> { Ok(piece.map_err(|status| registry_fault(&status))?.piece) });
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], Body::from_stream(pieces)).into_response())
}

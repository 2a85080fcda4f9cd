//! `/admin/v1/…/aliases`: reading and moving, with `If-Match`.

use super::InPath;
use super::admin::{AliasBody, checked};
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::directory::Snapshot;
use crate::error::code;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, AliasName, TenantName};

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

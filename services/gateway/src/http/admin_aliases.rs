//! `/admin/v1/…/aliases`: reading, moving and rolling back, with `If-Match`, and history.

use super::InPath;
use super::admin::{AliasBody, checked, digest, operator};
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
use weft_types::{AdapterName, AliasName, Digest, TenantName};

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

/// What an alias meant.
#[derive(Serialize, ToSchema)]
pub(crate) struct AliasHistory {
    /// Now.
    alias: AliasBody,
    /// Before, newest first; at most 100.
    earlier: Vec<AliasMove>,
}

/// An earlier meaning of an alias.
#[derive(Serialize, ToSchema)]
pub(crate) struct AliasMove {
    version: u64,
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    /// When it was moved there.
    moved_ms: u64,
    /// The admin key that moved it there.
    actor: String,
}

/// What an alias meant before, when and by whom.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}/history", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path), ("alias" = String, Path)),
    responses((status = 200, description = "Newest first", body = AliasHistory), (status = 404, description = "No such alias", body = OpenAiBody)))]
pub(crate) async fn history(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, alias)): InPath<(String, String, String)>,
) -> Result<Json<AliasHistory>, OpenAiError> {
    Ok(Json(
        gateway
            .alias_history(&checked("tenant", &tenant)?, &checked("name", &name)?, &checked("alias", &alias)?)
            .await?,
    ))
}

/// Move an alias back to what it meant before its last move. Twice is forth again. `If-Match` as for a move.
#[utoipa::path(post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}/rollback", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path), ("alias" = String, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, description = "Where it is now", body = AliasBody), (status = 404, description = "No such alias", body = OpenAiBody),
        (status = 409, description = "It meant nothing else before, or an experiment splits it", body = OpenAiBody),
        (status = 412, description = "Somebody else moved it first", body = OpenAiBody)))]
pub(crate) async fn roll_back(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, alias)): InPath<(String, String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let parts = request.into_parts().0;
    let place =
        Place { tenant: checked("tenant", &tenant)?, name: checked("name", &name)?, alias: checked("alias", &alias)? };
    let expected_etag = expected_etag(&parts.headers)?;
    let is_conditional = !expected_etag.is_empty();
    let history = gateway.alias_history(&place.tenant, &place.name, &place.alias).await?;
    if let Some(earlier) = history.earlier.iter().find(|earlier| earlier.version != history.alias.version()) {
        gateway.prewarm(&place.tenant, &place.name, &place.alias, earlier.version).await;
    }
    let request = pb::RollBackAliasRequest {
        tenant: place.tenant.to_string(),
        adapter: place.name.to_string(),
        alias: place.alias.to_string(),
        expected_etag,
        actor: operator(&parts),
    };
    let answer = gateway.ask(gateway.registry.clone().roll_back_alias(request)).await;
    gateway.moved(&place, answer, is_conditional).await
}

/// An alias of an adapter of a tenant.
struct Place {
    tenant: TenantName,
    name: AdapterName,
    alias: AliasName,
}

impl Gateway {
    async fn alias_history(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        alias: &AliasName,
    ) -> Result<AliasHistory, Fault> {
        let request = pb::ListAliasMovesRequest {
            tenant: tenant.to_string(),
            adapter: name.to_string(),
            alias: alias.to_string(),
        };
        let answer = self.ask(self.registry.clone().list_alias_moves(request)).await?;
        let earlier = answer.earlier.into_iter().map(|earlier| AliasMove {
            version: earlier.version,
            digest: digest(&earlier.digest),
            moved_ms: earlier.moved_ms,
            actor: earlier.actor,
        });
        Ok(AliasHistory { alias: answer.alias.unwrap_or_default().into(), earlier: earlier.collect() })
    }

    /// Answers for a move, once this gateway shows it.
    async fn moved(
        &self,
        place: &Place,
        answer: Result<pb::SetAliasResponse, Fault>,
        is_conditional: bool,
    ) -> Result<Response, OpenAiError> {
        let answer = answer.map_err(|fault| {
            let is_unmet = fault.kind == Kind::Conflict && is_conditional && fault.code != code::ALIAS_SPLIT;
            if is_unmet { fault.with_code(code::PRECONDITION_FAILED) } else { fault }
        })?;
        let moved = answer.alias.unwrap_or_default();
        let there = |snapshot: &Snapshot| {
            let tenant = snapshot.tenant(place.tenant.as_str());
            let adapter = tenant.and_then(|tenant| tenant.adapters.get(place.name.as_str()));
            adapter.and_then(|adapter| adapter.aliases.get(place.alias.as_str())) == Some(&moved.version)
        };
        self.show(there).await;
        Ok(alias_response(moved))
    }
}

/// Move or create an alias; the new version is brought to the workers that hold the old one first. `If-Match: "etag"` moves it only from there, `If-Match: *` only if it exists,
/// `If-None-Match: *` only if it does not.
#[utoipa::path(put, path = "/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path), ("alias" = String, Path),
        ("If-Match" = Option<String>, Header), ("If-None-Match" = Option<String>, Header)),
    request_body = MoveAlias,
    responses((status = 200, description = "Where it is now", body = AliasBody), (status = 404, description = "No such version", body = OpenAiBody),
        (status = 409, description = "An experiment splits it", body = OpenAiBody),
        (status = 412, description = "Somebody else moved it first", body = OpenAiBody)))]
pub(crate) async fn set_alias(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, alias)): InPath<(String, String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (actor, headers, asked) = gateway.admin_json::<MoveAlias>(request).await?;
    let place =
        Place { tenant: checked("tenant", &tenant)?, name: checked("name", &name)?, alias: checked("alias", &alias)? };
    let expected_etag = expected_etag(&headers)?;
    let is_conditional = !expected_etag.is_empty();
    gateway.prewarm(&place.tenant, &place.name, &place.alias, asked.version).await;
    let request = pb::SetAliasRequest {
        tenant: place.tenant.to_string(),
        adapter: place.name.to_string(),
        alias: place.alias.to_string(),
        version: asked.version,
        expected_etag,
        actor,
    };
    let answer = gateway.ask(gateway.registry.clone().set_alias(request)).await;
    gateway.moved(&place, answer, is_conditional).await
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
        // An ETag is its text with the quotes, in the registry and in S3 too; so it is none of the registry's other words.
        (Some(etag), None) => Ok(format!("\"{}\"", etag.trim_matches('"'))),
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
        for etag in ["\"abc\"", "abc"] {
            assert_eq!(of(&[(header::IF_MATCH, etag)]).as_deref(), Some("\"abc\""));
        }
        for etag in ["", "\"\"", "\"*\"", "none"] {
            assert!(of(&[(header::IF_MATCH, etag)]).is_some_and(|words| words.starts_with('"')), "{etag}");
        }
        assert_eq!(of(&[(header::IF_NONE_MATCH, "*")]).as_deref(), Some("none"));
        assert_eq!(of(&[(header::IF_NONE_MATCH, "\"abc\"")]), None);
        assert_eq!(of(&[(header::IF_MATCH, "*"), (header::IF_NONE_MATCH, "*")]), None);
    }
}

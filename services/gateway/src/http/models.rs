//! `GET /v1/models` and `/v1/models/{id}`: the base and the tenant's own adapters.

use super::errors::{OpenAiBody, OpenAiError};
use super::{InPath, Known};
use crate::app::Gateway;
use crate::authenticate;
use crate::directory::Tenant;
use crate::resolve::{Resolved, resolve};
use axum::extract::State;
use axum::{Extension, Json};
use http::HeaderMap;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_types::{AliasName, Digest};

/// One model.
#[derive(Serialize, ToSchema)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    /// Unix seconds.
    created: u64,
    /// The tenant; of the base: `weft`.
    owned_by: String,
    /// The base.
    root: String,
    /// What an adapter is applied to; null for the base.
    parent: Option<String>,
    /// Of the adapter, or of the base.
    #[schema(value_type = String)]
    digest: Digest,
    /// The adapter's version that this id means now.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

fn model(gateway: &Gateway, tenant: &Tenant, id: &str, resolved: &Resolved, base: &crate::workers::Base) -> Model {
    let root = base.served_name().to_owned();
    match resolved {
        Resolved::Base => Model {
            id: id.to_owned(),
            object: "model",
            created: gateway.started_unix,
            owned_by: "weft".into(),
            root,
            parent: None,
            digest: base.digest,
            version: None,
        },
        Resolved::Adapter { name, version, digest } => Model {
            id: id.to_owned(),
            object: "model",
            created: tenant.adapters.get(name).map_or(0, |adapter| adapter.created_ms / 1000),
            owned_by: tenant.name.clone(),
            parent: Some(root.clone()),
            root,
            digest: *digest,
            version: Some(*version),
        },
    }
}

/// List the base and the tenant's adapters that have a `live` version.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai", operation_id = "list_models", security(("key" = [])),
    responses(
        (status = 200, description = "What this key can ask for", body = ModelList),
        (status = 401, description = "No or wrong key", body = OpenAiBody),
    )
)]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Result<Json<ModelList>, OpenAiError> {
    let (_, tenant) = authenticate::tenant(&*gateway.directory.snapshot()?, &headers)?;
    let base = gateway.mesh.pool.base()?;
    let mut data = vec![model(&gateway, &tenant, base.served_name(), &Resolved::Base, &base)];
    for (name, adapter) in &tenant.adapters {
        let live = adapter.aliases.get(AliasName::live().as_str());
        if let Some((version, digest)) = live.and_then(|number| adapter.versions.get_key_value(number)) {
            let resolved = Resolved::Adapter { name: name.clone(), version: *version, digest: *digest };
            data.push(model(&gateway, &tenant, name, &resolved, &base));
        }
    }
    Ok(Json(ModelList { object: "list", data }))
}

/// One model, by any name that a request may use. A slash in the name may be plain or `%2F`.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "openai", security(("key" = [])),
    params(("id" = String, Path, description = "As in a request's `model`")),
    responses(
        (status = 200, description = "What this name means now", body = Model),
        (status = 401, description = "No or wrong key", body = OpenAiBody),
        (status = 404, description = "No such model for this tenant", body = OpenAiBody),
    )
)]
pub(crate) async fn one(
    State(gateway): State<Arc<Gateway>>,
    InPath(id): InPath<String>,
    Extension(known): Extension<Known>,
    headers: HeaderMap,
) -> Result<Json<Model>, OpenAiError> {
    let (_, tenant) = authenticate::tenant(&*gateway.directory.snapshot()?, &headers)?;
    let base = gateway.mesh.pool.base()?;
    let resolved = resolve(&tenant, Some(&id), base.served_name())?;
    known.resolved(&tenant.name, &resolved);
    Ok(Json(model(&gateway, &tenant, &id, &resolved, &base)))
}

//! `POST /admin/v1/tenants/{tenant}/adapters/{name}/imports`: a package from a hub, from S3 or from a folder of the registry's machine.

use super::InPath;
use super::admin::checked;
use super::admin_publish::{PublishedBody, judgement, wished_alias, wished_quarantine};
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::import_response::Result as Imported;
use weft_types::{AdapterName, TenantName};

/// Where a package is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportAsked {
    /// `hf://org/name[@revision]`, `s3://bucket/prefix`, or `file:///path` of a folder or an archive. The registry's settings `source_…` say
    /// what is allowed.
    source: String,
}

/// An imported version.
#[derive(Serialize, ToSchema)]
pub(crate) struct ImportedBody {
    #[serde(flatten)]
    published: PublishedBody,
    /// What was read: of a hub the commit, of S3 the states of the objects.
    origin: String,
}

/// Publish a package from elsewhere as a new version, and move the alias `live` to it. `?alias=` as for an upload.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/imports", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path, description = "One segment: a slash is `%2F`"),
        ("alias" = Option<String>, Query, description = "`none`, or the alias to move; absent: `live`"),
        ("quarantine" = Option<bool>, Query, description = "Shown to nobody, and no alias moves, until it is released")),
    request_body = ImportAsked,
    responses(
        (status = 201, description = "A new version", body = ImportedBody),
        (status = 200, description = "These bytes were a version already", body = ImportedBody),
        (status = 400, description = "The source is none", body = OpenAiBody),
        (status = 409, description = "These bytes are in quarantine, or an experiment splits the alias", body = OpenAiBody),
        (status = 404, description = "There is nothing there", body = OpenAiBody),
        (status = 422, description = "The source is not allowed, or the package is refused; then every reason is in `error.reasons`", body = OpenAiBody),
    )
)]
pub(crate) async fn import(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let name: AdapterName = checked("name", &name)?;
    let (alias, quarantined) = (wished_alias(request.uri())?, wished_quarantine(request.uri())?);
    let _room = gateway.mesh.limits.upload()?;
    let (actor, _, asked) = gateway.admin_json::<ImportAsked>(request).await?;
    let moving = gateway.moving(&tenant, &name, alias, &actor);
    let start = pb::PublishStart {
        tenant: tenant.to_string(),
        adapter: name.to_string(),
        alias: moving.at_once(),
        actor,
        quarantined,
    };
    let request = pb::ImportRequest { start: Some(start), source: asked.source };
    let (published, origin) = gateway.ask_import(request).await?;
    let (status, published) = gateway.finish_publish(&tenant, &name, moving, published).await?;
    Ok((status, Json(ImportedBody { published, origin })).into_response())
}

impl Gateway {
    /// Has the registry import. Also returns what exactly was read.
    ///
    /// # Errors
    /// It cannot, within `import_timeout_ms`, or the package is refused.
    pub(crate) async fn ask_import(&self, request: pb::ImportRequest) -> Result<(pb::Published, String), Fault> {
        let answer = self.judged_within(self.settings.import_timeout(), self.registry.clone().import(request)).await?;
        let published = judgement(answer.result.map(|result| match result {
            Imported::Published(published) => Ok(published),
            Imported::Refusal(refusal) => Err(refusal),
        }))?;
        Ok((published, answer.origin))
    }
}

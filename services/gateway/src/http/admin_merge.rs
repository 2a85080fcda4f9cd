//! `POST /admin/v1/tenants/{tenant}/adapters/{name}/merges`: versions merged into a new one.

use super::InPath;
use super::admin::{checked, digest};
use super::admin_publish::{PublishedBody, judgement, wished_alias};
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
use weft_proto::registry::v1::merge_response::Result as Merged;
use weft_types::{AdapterName, Digest, TenantName};

/// A merge.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MergeAsked {
    /// 1 to 32 versions of adapters of this tenant, each once.
    parents: Vec<ParentAsked>,
    /// `linear` (exact: the ranks add up), `svd`, `ties`, `dare_linear` or `dare_ties`.
    method: String,
    /// For `ties` and `dare_…`: the share of a delta's elements that stay, over 0 and at most 1.
    density: Option<f64>,
    /// For `ties` and `dare_ties`: `total` (the default) or `frequency`.
    #[serde(default)]
    majority_sign: String,
    /// For `dare_…`: decides which elements stay.
    seed: Option<u64>,
    /// The rank to cut each module to, 1 to 256; required by every method but `linear`.
    target_rank: Option<u32>,
    /// `delta` (the default): what the adapters do. `lorax`: A and B apart, as LoRAX merges.
    #[serde(default)]
    space: String,
    /// `F32` (the default) or `BF16`.
    #[serde(default)]
    dtype: String,
}

/// One parent and its share.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParentAsked {
    adapter: String,
    /// An alias, a number or a digest; absent: `live`.
    #[serde(default)]
    version: String,
    /// -100 to 100; negative subtracts. Weights are not made to add up to 1.
    #[serde(default = "one")]
    weight: f64,
}

fn one() -> f64 {
    1.0
}

/// A merged version.
#[derive(Serialize, ToSchema)]
pub(crate) struct MergedBody {
    #[serde(flatten)]
    published: PublishedBody,
    lineage: Option<LineageBody>,
}

/// Where a merged version comes from.
#[derive(Serialize, ToSchema)]
pub(crate) struct LineageBody {
    /// Of the recipe in its canonical order.
    #[schema(value_type = Option<String>)]
    recipe_digest: Option<Digest>,
    /// The recipe; its parents are digests.
    #[schema(value_type = Object)]
    recipe: serde_json::Value,
    parents: Vec<LineageParentBody>,
    /// Relative Frobenius error of the cut to the target rank, over all modules.
    error: f64,
}

/// A parent of a merge, as it was called then.
#[derive(Serialize, ToSchema)]
pub(crate) struct LineageParentBody {
    adapter: String,
    version: u64,
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    weight: f64,
}

impl From<pb::Lineage> for LineageBody {
    fn from(lineage: pb::Lineage) -> Self {
        let parent = |parent: pb::LineageParent| LineageParentBody {
            adapter: parent.adapter,
            version: parent.version,
            digest: digest(&parent.digest),
            weight: parent.weight,
        };
        Self {
            recipe_digest: digest(&lineage.recipe_digest),
            recipe: serde_json::from_str(&lineage.recipe).unwrap_or_default(),
            parents: lineage.parents.into_iter().map(parent).collect(),
            error: lineage.error,
        }
    }
}

/// Merge versions of a tenant's adapters into a new version, and move the alias `live` to it.
///
/// Methods act on the deltas, exactly, whatever the ranks and scales; `error` says what the cut to the target rank took away. `?alias=` as
/// for an upload. The same merge again is the version that it was.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/merges", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path, description = "The adapter that gets the version; a slash is `%2F`"),
        ("alias" = Option<String>, Query, description = "`none`, or the alias to move; absent: `live`")),
    request_body = MergeAsked,
    responses(
        (status = 201, description = "A new version", body = MergedBody),
        (status = 200, description = "This merge was a version already", body = MergedBody),
        (status = 400, description = "A value is wrong, or the parents do not go together", body = OpenAiBody),
        (status = 409, description = "These bytes are in quarantine, or an experiment splits the alias", body = OpenAiBody),
        (status = 404, description = "No such tenant, adapter or version", body = OpenAiBody),
        (status = 422, description = "The result is refused; every reason is in `error.reasons`", body = OpenAiBody),
    )
)]
pub(crate) async fn merge(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let name: AdapterName = checked("name", &name)?;
    let alias = wished_alias(request.uri())?;
    let _room = gateway.mesh.limits.upload()?;
    let (actor, _, asked) = gateway.admin_json::<MergeAsked>(request).await?;
    let parent = |parent: ParentAsked| pb::MergeParent {
        adapter: parent.adapter,
        selector: parent.version,
        weight: parent.weight,
    };
    let moving = gateway.moving(&tenant, &name, alias, &actor);
    let request = pb::MergeRequest {
        tenant: tenant.to_string(),
        adapter: name.to_string(),
        alias: moving.at_once(),
        actor,
        parents: asked.parents.into_iter().map(parent).collect(),
        method: asked.method,
        density: asked.density,
        majority_sign: asked.majority_sign,
        seed: asked.seed,
        target_rank: asked.target_rank,
        space: asked.space,
        dtype: asked.dtype,
        at_request: false,
    };
    let (published, lineage) = gateway.ask_merge(request).await?;
    let (status, published) = gateway.finish_publish(&tenant, &name, moving, published).await?;
    let lineage = lineage.map(Into::into);
    Ok((status, Json(MergedBody { published, lineage })).into_response())
}

impl Gateway {
    /// Has the registry merge.
    ///
    /// # Errors
    /// It cannot, in the time that judging may take, or the result is refused.
    pub(crate) async fn ask_merge(
        &self,
        request: pb::MergeRequest,
    ) -> Result<(pb::Published, Option<pb::Lineage>), Fault> {
        let answer = self.judged(self.registry.clone().merge(request)).await?;
        let published = judgement(answer.result.map(|result| match result {
            Merged::Published(published) => Ok(published),
            Merged::Refusal(refusal) => Err(refusal),
        }))?;
        Ok((published, answer.lineage))
    }
}

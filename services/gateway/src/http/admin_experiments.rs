//! `/admin/v1/tenants/{tenant}/experiments`: split tests of an alias. The description is `crates/experiments`' own, and so is the report.

use super::InPath;
use super::admin::{checked, operator};
use super::errors::{OpenAiBody, OpenAiError};
use super::experiment_page;
use crate::app::Gateway;
use crate::directory::{Snapshot, registry_fault};
use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{Html, IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_experiments::{Experiment, Report, State as ExperimentState};
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::change_experiment_request::Change;
use weft_types::TenantName;

/// Longest id.
const ID_BYTES_MAX: usize = 63;

/// An experiment.
#[derive(Serialize, ToSchema)]
pub(crate) struct ExperimentBody {
    /// As it was given, with what the registry keeps of it: tenant, state, revision, weights of earlier phases.
    #[schema(value_type = Object)]
    experiment: Box<RawValue>,
    created_ms: u64,
    /// The admin key that created it.
    actor: String,
    /// Oldest first.
    changes: Vec<ExperimentChange>,
    /// Arms, comparisons, the check of the split, and what follows; only where results are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    report: Option<Box<RawValue>>,
}

/// Something that was done to an experiment.
#[derive(Serialize, ToSchema)]
pub(crate) struct ExperimentChange {
    at_ms: u64,
    /// An admin key, `guardrail` or `schedule`.
    actor: String,
    what: String,
}

/// A tenant's experiments.
#[derive(Serialize, ToSchema)]
pub(crate) struct ExperimentList {
    experiments: Vec<ExperimentBody>,
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, Fault> {
    let text = String::from_utf8(json.to_vec()).ok();
    let raw = text.and_then(|text| RawValue::from_string(text).ok());
    raw.ok_or_else(|| Fault::internal("the registry's answer is no JSON"))
}

fn body(experiment: Option<pb::Experiment>, report: &[u8]) -> Result<ExperimentBody, Fault> {
    let experiment = experiment.ok_or_else(|| Fault::internal("the registry answered with nothing"))?;
    let change =
        |change: pb::ExperimentChange| ExperimentChange { at_ms: change.at_ms, actor: change.actor, what: change.what };
    Ok(ExperimentBody {
        experiment: raw(&experiment.description)?,
        created_ms: experiment.created_ms,
        actor: experiment.actor,
        changes: experiment.changes.into_iter().map(change).collect(),
        report: (!report.is_empty()).then(|| raw(report)).transpose()?,
    })
}

/// What a new experiment does at once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default)]
    start: bool,
}

/// A weight to give.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weigh {
    arm: String,
    /// 0 to 10,000; a control's is 1 or more.
    weight: u32,
}

/// An arm that wins.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promote {
    arm: String,
}

/// Create an experiment.
///
/// The description names the adapter, the alias to split (absent: `live`), arms with weights, metrics and guardrails (`docs/experiments.md`). An
/// arm has a `digest`, or a `version`: an alias, a number or a digest. With `?start=true` it runs at once; else it is a draft.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/experiments", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("start" = Option<bool>, Query, description = "Start it at once")),
    request_body = Object,
    responses(
        (status = 201, description = "Created, or the draft that it was already", body = ExperimentBody),
        (status = 400, description = "The description breaks rules; all of them are told", body = OpenAiBody),
        (status = 404, description = "No such tenant, adapter or version", body = OpenAiBody),
        (status = 409, description = "The id is taken, or the alias is split or is not the control", body = OpenAiBody),
    )
)]
pub(crate) async fn create(
    State(gateway): State<Arc<Gateway>>,
    InPath(tenant): InPath<String>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let wish =
        Query::<Wish>::try_from_uri(request.uri()).map_err(|error| Fault::invalid("start", error.body_text()))?;
    let (parts, content) = request.into_parts();
    let content = gateway.read_body(&parts, content).await?;
    let (actor, start) = (operator(&parts), wish.start);
    let description = content.bytes.clone();
    let request = pb::CreateExperimentRequest { tenant: tenant.to_string(), description, start, actor };
    let answer = gateway.ask(gateway.registry.clone().create_experiment(request)).await?;
    let created = gateway.shown(&tenant, answer).await?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// List a tenant's experiments, ended ones too.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/experiments", tag = "admin", operation_id = "list_experiments", security(("admin" = [])),
    params(("tenant" = String, Path)),
    responses((status = 200, description = "All experiments", body = ExperimentList), (status = 404, description = "No such tenant", body = OpenAiBody)))]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    InPath(tenant): InPath<String>,
) -> Result<Json<ExperimentList>, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let request = pb::ListExperimentsRequest { tenant: tenant.to_string() };
    let answer = gateway.ask(gateway.registry.clone().list_experiments(request)).await?;
    let experiments = answer.experiments.into_iter().map(|experiment| body(Some(experiment), b""));
    Ok(Json(ExperimentList { experiments: experiments.collect::<Result<_, _>>()? }))
}

/// An experiment and its results as of now: JSON, or a page for whoever accepts `text/html`.
///
/// Looking is free: the promises hold however often one looks.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/experiments/{id}", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "The experiment with its `report`", content((ExperimentBody = "application/json"), (String = "text/html"))),
        (status = 404, description = "No such experiment", body = OpenAiBody)))]
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, id)): InPath<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let request = pb::GetExperimentRequest { tenant: tenant.to_string(), id: checked_id(id)? };
    let answer = gateway.ask(gateway.registry.clone().get_experiment(request)).await?;
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepts.split(',').any(|kind| kind.trim().starts_with("text/html")) {
        let report: Report = serde_json::from_slice(&answer.report)
            .map_err(|error| Fault::internal(format!("the registry's report cannot be read: {error}")))?;
        return Ok(Html(experiment_page::page(&report)).into_response());
    }
    Ok(Json(body(answer.experiment, &answer.report)?).into_response())
}

/// Start a draft: from now on its alias is split.
#[utoipa::path(post, path = "/admin/v1/tenants/{tenant}/experiments/{id}/start", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "It runs", body = ExperimentBody),
        (status = 409, description = "It has ended, or the alias is split by another one or is not the control", body = OpenAiBody)))]
pub(crate) async fn start(
    State(gateway): State<Arc<Gateway>>,
    InPath(at): InPath<(String, String)>,
    request: Request,
) -> Result<Json<ExperimentBody>, OpenAiError> {
    gateway.change_experiment(at, operator(&request.into_parts().0), Change::Start(pb::StartExperiment {})).await
}

/// Give an arm another weight: a new phase begins, and no more keys change their arm than must.
#[utoipa::path(post, path = "/admin/v1/tenants/{tenant}/experiments/{id}/weight", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)), request_body = Weigh,
    responses((status = 200, description = "As asked", body = ExperimentBody),
        (status = 400, description = "No such arm, or the weight is beyond its limits", body = OpenAiBody),
        (status = 409, description = "It has ended, or its weights were changed too often", body = OpenAiBody)))]
pub(crate) async fn weigh(
    State(gateway): State<Arc<Gateway>>,
    InPath(at): InPath<(String, String)>,
    request: Request,
) -> Result<Json<ExperimentBody>, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<Weigh>(request).await?;
    let change = Change::Weigh(pb::WeighArm { arm: asked.arm, weight: asked.weight });
    gateway.change_experiment(at, actor, change).await
}

/// Move the alias to an arm's version and end the experiment, in one step.
#[utoipa::path(post, path = "/admin/v1/tenants/{tenant}/experiments/{id}/promote", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)), request_body = Promote,
    responses((status = 200, description = "The alias means the arm's version", body = ExperimentBody),
        (status = 400, description = "No such treatment", body = OpenAiBody),
        (status = 409, description = "It has ended otherwise", body = OpenAiBody)))]
pub(crate) async fn promote(
    State(gateway): State<Arc<Gateway>>,
    InPath(at): InPath<(String, String)>,
    request: Request,
) -> Result<Json<ExperimentBody>, OpenAiError> {
    let (actor, _, asked) = gateway.admin_json::<Promote>(request).await?;
    gateway.change_experiment(at, actor, Change::Promote(pb::PromoteArm { arm: asked.arm })).await
}

/// End an experiment without a winner: the alias means what it meant.
#[utoipa::path(post, path = "/admin/v1/tenants/{tenant}/experiments/{id}/stop", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "It has ended", body = ExperimentBody),
        (status = 409, description = "It has ended otherwise", body = OpenAiBody)))]
pub(crate) async fn stop(
    State(gateway): State<Arc<Gateway>>,
    InPath(at): InPath<(String, String)>,
    request: Request,
) -> Result<Json<ExperimentBody>, OpenAiError> {
    gateway.change_experiment(at, operator(&request.into_parts().0), Change::Stop(pb::StopExperiment {})).await
}

/// Which day.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Day {
    #[serde(default)]
    day: String,
}

/// The exposure log of one day (UTC): JSON lines of kinds `exposure`, `outcome` and `feedback`, in no order.
#[utoipa::path(get, path = "/admin/v1/tenants/{tenant}/experiments/{id}/exposures", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("id" = String, Path), ("day" = Option<String>, Query, pattern = "^([0-9]{4}-[0-9]{2}-[0-9]{2})?$", description = "Such as 2026-01-31; absent: today")),
    responses((status = 200, description = "The log", body = String, content_type = "application/x-ndjson"), (status = 404, description = "No such experiment", body = OpenAiBody)))]
pub(crate) async fn exposures(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, id)): InPath<(String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let day = Query::<Day>::try_from_uri(request.uri()).map_err(|error| Fault::invalid("day", error.body_text()))?;
    let request = pb::ReadExposuresRequest { tenant: tenant.to_string(), experiment: checked_id(id)?, day: day.0.day };
    let stream = gateway.ask(gateway.registry.clone().read_exposures(request)).await?;
    let lines =
        stream.map(|piece| -> Result<Bytes, Fault> { Ok(piece.map_err(|status| registry_fault(&status))?.lines) });
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

fn checked_id(id: String) -> Result<String, Fault> {
    if id.len() <= ID_BYTES_MAX {
        return Ok(id);
    }
    Err(Fault::invalid("id", format!("id has {} bytes, the limit is {ID_BYTES_MAX}", id.len())))
}

impl Gateway {
    async fn change_experiment(
        &self,
        (tenant, id): (String, String),
        actor: String,
        change: Change,
    ) -> Result<Json<ExperimentBody>, OpenAiError> {
        let tenant: TenantName = checked("tenant", &tenant)?;
        let request = pb::ChangeExperimentRequest {
            tenant: tenant.to_string(),
            id: checked_id(id)?,
            actor,
            change: Some(change),
        };
        let answer = self.ask(self.registry.clone().change_experiment(request)).await?;
        Ok(Json(self.shown(&tenant, answer).await?))
    }

    /// Waits until this gateway splits requests as the answer says.
    async fn shown(&self, tenant: &TenantName, answer: pb::ExperimentResponse) -> Result<ExperimentBody, Fault> {
        let description = answer.experiment.as_ref().map(|experiment| experiment.description.clone());
        if let Some(experiment) = description.and_then(|json| Experiment::parse(&json).ok()) {
            let shows = |snapshot: &Snapshot| {
                let known = snapshot.tenant(tenant.as_str()).and_then(|tenant| tenant.experiment(&experiment.id));
                match experiment.state {
                    ExperimentState::Running => known.is_some_and(|known| known.revision >= experiment.revision),
                    _ => known.is_none(),
                }
            };
            self.show(shows).await;
        }
        body(answer.experiment, &answer.report)
    }
}

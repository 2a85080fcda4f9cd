//! `/admin/v1/…/adapters/{name}/pin` and `/evict`: what operators decide about slots, passed on to every worker that is up.
//!
//! `{name}` may carry a selector, as in requests: `name`, `name@alias`, `name@3`. What is pinned is the version it means
//! now; an alias that moves later takes no pin along. Workers keep pins as long as their process lives; the registry keeps them for
//! good, and placement pins again what a worker has forgotten or where one is new (`docs/placement.md`).

use super::InPath;
use super::admin::{Operator, checked};
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::resolve::resolve;
use crate::workers::Worker;
use axum::extract::State;
use axum::{Extension, Json};
use futures::future::join_all;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb_registry;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::transport::within;
use weft_types::{Digest, TenantName};

/// Longest wait for a worker: a pin may have to load the adapter first.
const WORKER_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of a wish, worker by worker.
#[derive(Serialize, ToSchema)]
pub(crate) struct ResidencyChange {
    /// `sha256:…` of the version that was meant.
    digest: String,
    workers: Vec<WorkerChange>,
}

/// One worker's answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct WorkerChange {
    address: String,
    /// Pin: bytes in its slot. Evict: bytes that got free, 0 if it was not there. Unpin: null.
    bytes: Option<u64>,
    /// Unpin: whether there was a pin. Else null.
    was_pinned: Option<bool>,
    /// Why this worker did not do it.
    problem: Option<String>,
}

/// Keep an adapter in its slot on every worker that is up, loading it where it is not.
#[utoipa::path(put, path = "/admin/v1/tenants/{tenant}/adapters/{name}/pin", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "At least one worker has pinned it", body = ResidencyChange),
        (status = 404, description = "No such adapter", body = OpenAiBody),
        (status = 422, description = "Pins have their part of the slots", body = OpenAiBody)))]
pub(crate) async fn pin(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<ResidencyChange>, OpenAiError> {
    let ask = async |mut worker: WorkerClient<Channel>, digest: Digest| {
        let answer =
            worker.pin(within(WORKER_TIMEOUT, pb::PinRequest { digest: digest.to_vec().into() })).await?.into_inner();
        Ok((Some(answer.bytes), None))
    };
    let changed = gateway.change_residency(&tenant, &name, ask).await?;
    let keep = |digest| pb_registry::PlacesChange { pin: vec![pin_everywhere(digest)], ..Default::default() };
    gateway.keep_pin(&tenant, &name, operator, keep).await?;
    Ok(changed)
}

fn pin_everywhere(digest: Digest) -> pb_registry::Pin {
    pb_registry::Pin { digest: digest.to_vec().into(), copies: 0 }
}

/// Let go of an adapter's pin on every worker that is up.
#[utoipa::path(delete, path = "/admin/v1/tenants/{tenant}/adapters/{name}/pin", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "No worker that answered has a pin on it", body = ResidencyChange),
        (status = 404, description = "No such adapter", body = OpenAiBody)))]
pub(crate) async fn unpin(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<ResidencyChange>, OpenAiError> {
    let release =
        |digest: Digest| pb_registry::PlacesChange { unpin: vec![digest.to_vec().into()], ..Default::default() };
    // First, so that placement does not pin it again.
    gateway.keep_pin(&tenant, &name, operator, release).await?;
    let ask = async |mut worker: WorkerClient<Channel>, digest: Digest| {
        let answer = worker
            .unpin(within(WORKER_TIMEOUT, pb::UnpinRequest { digest: digest.to_vec().into() }))
            .await?
            .into_inner();
        Ok((None, Some(answer.was_pinned)))
    };
    gateway.change_residency(&tenant, &name, ask).await
}

/// Free the memory of an adapter on every worker that is up, where nobody uses it.
#[utoipa::path(post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/evict", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "At least one worker does not hold it any more", body = ResidencyChange),
        (status = 404, description = "No such adapter", body = OpenAiBody),
        (status = 409, description = "Requests run with it, or it is pinned", body = OpenAiBody)))]
pub(crate) async fn evict(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
) -> Result<Json<ResidencyChange>, OpenAiError> {
    let ask = async |mut worker: WorkerClient<Channel>, digest: Digest| {
        let answer = worker
            .evict(within(WORKER_TIMEOUT, pb::EvictRequest { digest: digest.to_vec().into() }))
            .await?
            .into_inner();
        Ok((Some(answer.bytes_freed), None))
    };
    gateway.change_residency(&tenant, &name, ask).await
}

type Changed = (Option<u64>, Option<bool>);

impl Gateway {
    /// Asks every worker that is up. If none of them did it, the answer is the first one's reason.
    async fn change_residency(
        &self,
        tenant: &str,
        name: &str,
        ask: impl AsyncFn(WorkerClient<Channel>, Digest) -> Result<Changed, tonic::Status>,
    ) -> Result<Json<ResidencyChange>, OpenAiError> {
        let digest = self.digest_of(&checked("tenant", tenant)?, name)?;
        let (known, now) = (self.mesh.pool.workers(), Instant::now());
        let is_up = |worker: &&Arc<Worker>| worker.read(|view| view.is_up(now, &self.mesh.pool.pace));
        let workers: Vec<_> = known.iter().filter(is_up).collect();
        let asked = workers.iter().map(|worker| async {
            match tokio::time::timeout(WORKER_TIMEOUT, ask(worker.client(), digest)).await {
                Ok(answer) => answer.map_err(|status| Fault::from(&status)),
                Err(_) => {
                    let seconds = WORKER_TIMEOUT.as_secs();
                    Err(Fault::new(Kind::Timeout, format!("the worker did not answer within {seconds} s")))
                }
            }
        });
        let answers = join_all(asked).await;
        if !answers.iter().any(Result::is_ok) {
            let none = || Fault::unavailable("no worker is up").with_code("no_worker");
            return Err(answers.into_iter().find_map(Result::err).unwrap_or_else(none).into());
        }
        let changes = workers.iter().zip(answers).map(|(worker, answer)| {
            let (bytes, was_pinned) = *answer.as_ref().unwrap_or(&(None, None));
            let problem = answer.err().map(|fault| fault.message);
            WorkerChange { address: worker.address.clone(), bytes, was_pinned, problem }
        });
        Ok(Json(ResidencyChange { digest: digest.to_string(), workers: changes.collect() }))
    }

    /// Writes down what was changed about a pin.
    async fn keep_pin(
        &self,
        tenant: &str,
        name: &str,
        operator: Operator,
        change: impl FnOnce(Digest) -> pb_registry::PlacesChange,
    ) -> Result<(), Fault> {
        let tenant: TenantName = checked("tenant", tenant)?;
        let places = Some(change(self.digest_of(&tenant, name)?));
        let request = pb_registry::UpdateTenantRequest {
            name: tenant.to_string(),
            actor: operator.0,
            places,
            ..Default::default()
        };
        self.ask(self.registry.clone().update_tenant(request)).await.map(drop)
    }

    fn digest_of(&self, tenant: &TenantName, name: &str) -> Result<Digest, Fault> {
        let snapshot = self.directory.snapshot()?;
        let unknown = || Fault::not_found(format!("tenant {tenant} has no adapter {name:?}"));
        let tenant = snapshot.tenant(tenant.as_str()).ok_or_else(unknown)?;
        // The base has no slot, so its names mean nothing here.
        resolve(tenant, Some(name), "").ok().and_then(|resolved| resolved.digest()).ok_or_else(unknown)
    }
}

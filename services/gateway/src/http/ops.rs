//! Operations: is it alive, is it ready, what does it count.

use crate::app::Gateway;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use prometheus::{Encoder, TextEncoder};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// What the gateway still waits for.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    ready: bool,
    /// Empty when ready.
    waiting_for: Vec<Waiting>,
    /// Milliseconds since the registry was last heard; null before the first time.
    directory_age_ms: Option<u64>,
    /// Where the limits are kept that tenants have.
    limits: LimitsState,
    /// Workers that are good for requests, of those that are known.
    workers_ready: usize,
    workers: usize,
    /// What it does without now.
    degraded: Vec<Waiting>,
}

/// Where limits are kept. Readiness does not depend on it: without Redis a gateway goes on with its part of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsState {
    /// `redis`, or `memory`: they are this gateway's alone.
    kept_in: &'static str,
    /// False: it does not answer now.
    shared: bool,
    /// Why not; told to operators only.
    why: Option<String>,
    /// Gateways that share them.
    gateways: u64,
}

/// One condition.
#[derive(Serialize, ToSchema)]
pub(crate) struct Waiting {
    pub(crate) condition: &'static str,
    pub(crate) why: String,
}

/// The process runs.
#[derive(Serialize, ToSchema)]
pub(crate) struct Alive {
    alive: bool,
}

/// Whether the process runs: always 200.
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, description = "It runs", body = Alive)))]
pub(crate) async fn livez() -> Json<Alive> {
    Json(Alive { alive: true })
}

/// Whether requests can be answered, and if not, what is missing.
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    responses((status = 200, description = "Ready", body = Ready), (status = 503, description = "Not ready, and why", body = Ready))
)]
pub(crate) async fn readyz(State(gateway): State<Arc<Gateway>>) -> Response {
    // Anybody may ask this: where the workers are and what ails them is for operators.
    let waiting = gateway.waiting_for().into_iter().map(|waiting| match waiting.condition {
        "worker" => Waiting { why: "no worker is ready".into(), ..waiting },
        _ => waiting,
    });
    let degraded = gateway.degraded().into_iter().map(|waiting| Waiting { why: "it is away".into(), ..waiting });
    ready(&gateway, waiting.collect(), degraded.collect(), false)
}

/// The same on the admin listener, with each worker's address and problem.
pub(crate) async fn readyz_in_full(State(gateway): State<Arc<Gateway>>) -> Response {
    ready(&gateway, gateway.waiting_for(), gateway.degraded(), true)
}

fn ready(gateway: &Gateway, waiting_for: Vec<Waiting>, degraded: Vec<Waiting>, in_full: bool) -> Response {
    let limits = gateway.quota.limiter.health();
    let ready = Ready {
        ready: waiting_for.is_empty(),
        waiting_for,
        directory_age_ms: gateway.directory.age().map(|age| age.as_millis() as u64),
        limits: LimitsState {
            kept_in: if gateway.quota.in_redis { "redis" } else { "memory" },
            shared: limits.away.is_none(),
            why: limits.away.filter(|_| in_full),
            gateways: limits.gateways,
        },
        workers_ready: gateway.mesh.pool.ready(),
        workers: gateway.mesh.pool.workers().len(),
        degraded,
    };
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready)).into_response()
}

/// Prometheus text. On the admin listener only.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let metrics = &gateway.mesh.metrics;
    if let Some(snapshot) = gateway.directory.last() {
        metrics.directory_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
    }
    let age = gateway.directory.age().map_or(-1, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    metrics.directory_age_ms.set(age);
    metrics.limits.show(&gateway.quota.limiter.state());
    metrics.show_workers(&gateway.mesh.pool);
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    if let Err(error) = encoder.encode(&gateway.prometheus.gather(), &mut text) {
        tracing::error!(%error, "metrics cannot be written");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

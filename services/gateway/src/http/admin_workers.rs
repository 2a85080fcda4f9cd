//! `/admin/v1/workers` and `/admin/v1/residency`: what this gateway knows, beside what the workers themselves say now.

use super::admin::digest;
use crate::app::Gateway;
use crate::workers::{View, Worker};
use axum::Json;
use axum::extract::State;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use weft_proto::mesh::v1::Tier;
use weft_service_kit::transport::within;

/// Longest wait for a worker's word on itself.
const WORKER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is known of the workers: `view` as this gateway last heard or saw it, `load` as each says now. Fields of a worker that does not
/// answer are null.
#[utoipa::path(get, path = "/admin/v1/workers", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "Every known worker: what it serves, how busy it is, and the view that requests are placed by", body = serde_json::Value)))]
pub(crate) async fn workers(State(gateway): State<Arc<Gateway>>) -> Json<serde_json::Value> {
    let (pool, workers) = (&gateway.mesh.pool, gateway.mesh.pool.workers());
    let asked = workers.iter().map(|worker| async move {
        let mut client = worker.client();
        let request = within(WORKER_TIMEOUT, weft_proto::worker::v1::GetLoadRequest {});
        let load = tokio::time::timeout(WORKER_TIMEOUT, client.get_load(request)).await.ok().and_then(Result::ok);
        let load = load.map(tonic::Response::into_inner);
        let now = Instant::now();
        let (up, problem, view) =
            worker.read(|view| (view.is_up(now, &pool.pace), view.problem.clone(), shown(worker, view, now)));
        let base = worker.read(|view| view.base.clone()).map(|base| {
            let d = &base.description;
            serde_json::json!({
                "worker": d.worker, "served_name": d.served_name, "model_id": d.model_id, "base_digest": base.digest,
                "dtype": d.dtype, "isa": d.isa, "context_tokens_max": d.context_tokens_max,
                "prompt_tokens_max": d.prompt_tokens_max, "kv_tokens_max": d.kv_tokens_max,
                "slot_bytes_max": d.slot_bytes_max, "step_tokens_max": d.step_tokens_max,
                "concurrent_requests_max": d.concurrent_requests_max, "queue_requests_max": d.queue_requests_max,
            })
        });
        let load = load.map(|l| {
            serde_json::json!({
                "running_requests": l.running_requests, "queued_requests": l.queued_requests,
                "loading_requests": l.loading_requests, "kv_blocks_used": l.kv_blocks_used,
                "kv_blocks_max": l.kv_blocks_max, "slot_bytes_used": l.slot_bytes_used,
                "slot_bytes_max": l.slot_bytes_max, "steps_total": l.steps_total,
                "prompt_tokens_total": l.prompt_tokens_total, "output_tokens_total": l.output_tokens_total,
                "mixed_steps_total": l.mixed_steps_total, "preemptions_total": l.preemptions_total,
                "draining": l.draining, "step_us": l.step_us, "kv_blocks_idle": l.kv_blocks_idle,
                "kv_blocks_reclaimed_total": l.kv_blocks_reclaimed_total,
                "prefix_lookup_tokens_total": l.prefix_lookup_tokens_total,
                "prefix_hit_tokens_total": l.prefix_hit_tokens_total,
            })
        });
        serde_json::json!({
            "address": worker.address, "up": up, "problem": problem, "describes": base, "load": load, "view": view,
        })
    });
    Json(serde_json::json!({"workers": join_all(asked).await}))
}

fn shown(worker: &Worker, view: &View, now: Instant) -> serde_json::Value {
    let ms = |age: Option<Duration>| age.map(|age| age.as_millis() as u64);
    let of = |tier: Tier| view.adapters.held().values().filter(|held| **held == tier).count();
    let load = &view.load;
    serde_json::json!({
        "id": worker.id.0, "source": if worker.is_static { "setting" } else { "bus" }, "incarnation": view.incarnation,
        "age_ms": ms(view.age(now)), "heartbeat_age_ms": ms(view.heartbeat_age(now)),
        "in_flight": worker.in_flight(), "running_requests": load.running_requests,
        "queued_requests": load.queued_requests, "loading_requests": load.loading_requests,
        "kv_blocks_free": load.kv_blocks_free, "kv_blocks_max": load.kv_blocks_max,
        "slot_bytes_used": load.slot_bytes_used, "slot_bytes_max": load.slot_bytes_max,
        "step_us": load.step.as_micros() as u64, "prefill_tokens_per_s": load.prefill_tokens_per_s,
        "draining": load.draining, "circuit_open": worker.circuit_is_open(now), "residency_generation": view.adapters.generation(),
        "adapters_in_slot": of(Tier::Slot), "adapters_in_memory": of(Tier::Memory),
    })
}

/// Which adapters hold a slot where. Null for a worker that does not answer.
#[utoipa::path(get, path = "/admin/v1/residency", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "Slots of every worker, and what it holds packed without a slot", body = serde_json::Value)))]
pub(crate) async fn residency(State(gateway): State<Arc<Gateway>>) -> Json<serde_json::Value> {
    let workers = gateway.mesh.pool.workers();
    let asked = workers.iter().map(|worker| async move {
        let mut client = worker.client();
        let request = within(WORKER_TIMEOUT, weft_proto::worker::v1::ListResidencyRequest {});
        let answer = tokio::time::timeout(WORKER_TIMEOUT, client.list_residency(request)).await.ok().and_then(Result::ok);
        let slots = answer.map(tonic::Response::into_inner).map(|residency| {
            let adapters: Vec<_> = residency.adapters.iter().map(|adapter| serde_json::json!({
                "digest": digest(&adapter.digest), "bytes": adapter.bytes, "users": adapter.users, "pinned": adapter.pinned,
            })).collect();
            let prepared: Vec<_> = residency.prepared.iter().map(|adapter| serde_json::json!({
                "digest": digest(&adapter.digest), "bytes": adapter.bytes, "users": adapter.users,
            })).collect();
            serde_json::json!({
                "adapters": adapters, "slot_bytes_used": residency.slot_bytes_used,
                "slot_bytes_max": residency.slot_bytes_max, "generation": residency.generation,
                "prepared": prepared, "prepared_bytes_used": residency.prepared_bytes_used,
                "prepared_bytes_max": residency.prepared_bytes_max,
            })
        });
        serde_json::json!({"address": worker.address, "slots": slots})
    });
    Json(serde_json::json!({"workers": join_all(asked).await}))
}

//! The last placement that the authority has published, from whichever registry this gateway reaches.
//!
//! A gateway never goes back to an earlier one, and stays with the last one however long the authority or every registry is gone.

use crate::directory::Registry;
use crate::metrics::Metrics;
use crate::workers::Pool;
use std::sync::Arc;
use std::time::Duration;
use weft_placement::Document;
use weft_proto::registry::v1 as pb;
use weft_service_kit::transport::Backoff;

/// The registry speaks every few seconds; a stream that is silent for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(12);

/// Follows a registry for ever. Cancel safe.
pub(crate) async fn follow(registry: Registry, pool: Arc<Pool>, metrics: Metrics) {
    let mut backoff = Backoff::default();
    loop {
        let ended = follow_once(registry.clone(), &pool, &metrics, &mut backoff).await;
        // The directory's stream, which ends for the same reasons, says so louder.
        tracing::debug!(reason = %ended, epoch = pool.epoch(), "lost the registry's placements");
        backoff.wait().await;
    }
}

async fn follow_once(mut registry: Registry, pool: &Pool, metrics: &Metrics, backoff: &mut Backoff) -> String {
    let mut stream = match registry.watch_placement(pb::WatchPlacementRequest {}).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    loop {
        match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(placement))) => {
                backoff.reset();
                if !placement.document.is_empty() && !take(&placement, pool) {
                    metrics.placements_refused.inc();
                }
                metrics.placement_epoch.set(pool.epoch() as i64);
            }
            Ok(Ok(None)) => return "the stream ended".to_owned(),
            Ok(Err(status)) => return status.message().to_owned(),
            Err(_) => return format!("silent for {} s", SILENCE_MAX.as_secs()),
        }
    }
}

/// Takes a placement, unless it is older than what is known. False: it cannot be read.
fn take(placement: &pb::Placement, pool: &Pool) -> bool {
    match Document::decode(&placement.document) {
        Ok(document) => {
            let (epoch, adapters) = (document.epoch.number(), document.adapters.len());
            if pool.offer(document) {
                tracing::debug!(epoch, adapters, "a newer placement");
            }
            true
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(epoch = placement.epoch, error, "a placement cannot be read; the last one stays");
            false
        }
    }
}

//! Tells the registry which base this worker serves, again and again: the registry keeps nothing that it cannot rebuild.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Channel;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Backoff, within};

use crate::model::Model;

/// An announcement that takes longer than this counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Announces until shutdown. The worker serves whether or not the registry is there.
pub(crate) async fn announce(
    channel: Channel,
    model: Arc<Model>,
    interval: Duration,
    readiness: Readiness,
    shutdown: Shutdown,
) {
    let mut client = RegistryClient::new(channel);
    let mut backoff = Backoff::default();
    let mut was_told = false;
    loop {
        let call = client.announce_base(within(CALL_TIMEOUT, request(&model)));
        let problem = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(_)) => None,
            Ok(Err(status)) => Some(status.message().to_owned()),
            Err(_) => Some("no answer".to_owned()),
        };
        let pause = match problem {
            None => {
                backoff.reset();
                if !was_told {
                    tracing::info!(base = %model.digest, "announced the base to the registry");
                    readiness.met(CONDITION);
                }
                was_told = true;
                interval
            }
            Some(problem) => {
                tracing::warn!(problem, "could not announce the base");
                was_told = false;
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return,
        }
    }
}

/// Name of the readiness condition: met once the registry has heard of the base for the first time.
pub(crate) const CONDITION: &str = "registry";

fn request(model: &Model) -> pb::AnnounceBaseRequest {
    let linear = |shape: &weft_base_model::LinearShape| pb::LinearShape {
        module: shape.module.to_string(),
        parent: shape.parent.to_string(),
        in_features: shape.in_features as u32,
        out_features: shape.out_features as u32,
    };
    pb::AnnounceBaseRequest {
        base_digest: model.digest.to_vec().into(),
        served_name: model.served_name.clone(),
        worker: model.worker.clone(),
        layers: model.layers as u32,
        vocabulary_size: model.vocabulary as u32,
        hidden_size: model.hidden_size as u32,
        linears: model.linears.iter().map(linear).collect(),
    }
}

//! What the last placement wants of this worker, asked of the registry and told to the step loop.
//!
//! While no registry answers the last word stays.

use std::sync::mpsc::Sender;
use std::time::Duration;

use tonic::transport::Channel;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_service_kit::transport::{Backoff, MESSAGE_BYTES_MAX};
use weft_types::Digest;

use crate::metrics::Metrics;
use crate::step_loop::Command;

/// The registry speaks every few seconds; a stream that is silent for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(12);

/// An adapter that the last placement wants here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desired {
    pub(crate) adapter: Digest,
    /// To be brought before a request needs it.
    pub(crate) ahead: bool,
    /// To be kept in a slot.
    pub(crate) pinned: bool,
}

/// Follows the registry for ever. `address`: as in heartbeats. Cancel safe.
pub(crate) async fn follow(registry: Channel, address: String, commands: Sender<Command>, metrics: Metrics) {
    let client = RegistryClient::new(registry).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut backoff = Backoff::default();
    let mut last = Vec::new();
    loop {
        let request = pb::WatchDesiredRequest { worker: address.clone() };
        let ended = follow_once(client.clone(), request, &commands, &metrics, &mut last, &mut backoff).await;
        tracing::debug!(reason = %ended, "lost the registry's word on what is wanted here; the last one stays");
        backoff.wait().await;
    }
}

async fn follow_once(
    mut client: RegistryClient<Channel>,
    request: pb::WatchDesiredRequest,
    commands: &Sender<Command>,
    metrics: &Metrics,
    last: &mut Vec<Desired>,
    backoff: &mut Backoff,
) -> String {
    let mut stream = match client.watch_desired(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    loop {
        let told = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(told))) => told,
            Ok(Ok(None)) => return "the stream ended".to_owned(),
            Ok(Err(status)) => return status.message().to_owned(),
            Err(_) => return format!("silent for {} s", SILENCE_MAX.as_secs()),
        };
        backoff.reset();
        metrics.placement_epoch.set(i64::try_from(told.epoch).unwrap_or(i64::MAX));
        // A registry that was just started may not have read a placement yet.
        if told.epoch == 0 {
            continue;
        }
        if told.is_list {
            *last = told.adapters.iter().filter_map(read).collect();
        }
        // Without news too: a pin that could not be had is tried again. An error means that the loop has ended.
        let _ = commands.send(Command::Desire { desired: last.clone(), is_news: told.is_list });
    }
}

fn read(told: &pb::DesiredAdapter) -> Option<Desired> {
    let adapter = Digest::try_from(told.digest.as_ref()).ok()?;
    Some(Desired { adapter, ahead: told.ahead, pinned: told.pinned })
}

//! Hears workers and gateways on the bus.

use super::{Placing, records::Known};
use crate::core::Core;
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use weft_bus::{Bus, Heard, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_service_kit::shutdown::Shutdown;

/// Messages that wait to be read; with more, the oldest go.
const QUEUE_MESSAGES_MAX: usize = 4096;

/// Listens until shutdown.
pub(crate) async fn hear(core: Arc<Core>, placing: Arc<Placing>, bus: Arc<dyn Bus>, shutdown: Shutdown) {
    let mut beats = bus.subscribe(subjects::WORKER_HEARTBEAT, QUEUE_MESSAGES_MAX);
    let mut pieces = bus.subscribe(subjects::WORKER_RESIDENCY, QUEUE_MESSAGES_MAX);
    let mut demands = bus.subscribe(subjects::GATEWAY_DEMAND, QUEUE_MESSAGES_MAX);
    drop(bus);
    let mut records = Records::default();
    loop {
        let refused = tokio::select! {
            heard = beats.next() => match heard {
                Heard::Message(message) => hear_worker(&placing, message),
                Heard::Missed { .. } => {
                    let now_ms = placing.now_ms();
                    placing.observer().missed(now_ms);
                    Ok(())
                }
            },
            heard = pieces.next() => match heard {
                Heard::Message(message) => hear_residency(&placing, message),
                Heard::Missed { .. } => Ok(()),
            },
            heard = demands.next() => match heard {
                Heard::Message(message) => hear_demand(&placing, records.now(&core), message),
                Heard::Missed { .. } => Ok(()),
            },
            () = shutdown.wait() => return,
        };
        if let Err(problem) = refused {
            placing.metrics.messages_refused.inc();
            tracing::debug!(problem, "a message for placement is left out");
        }
    }
}

fn hear_worker(placing: &Placing, message: Bytes) -> Result<(), String> {
    let beat = mesh::WorkerHeartbeat::decode(message).map_err(|error| error.to_string())?;
    let now_ms = placing.now_ms();
    placing.observer().hear_worker(&beat, now_ms)
}

fn hear_residency(placing: &Placing, message: Bytes) -> Result<(), String> {
    let piece = mesh::WorkerResidency::decode(message).map_err(|error| error.to_string())?;
    placing.observer().hear_residency(&piece);
    Ok(())
}

fn hear_demand(placing: &Placing, known: &Known, message: Bytes) -> Result<(), String> {
    let told = mesh::GatewayDemand::decode(message).map_err(|error| error.to_string())?;
    let now_ms = placing.now_ms();
    placing.observer().hear_demand(&told, |digest| known.has(digest), now_ms)
}

/// The catalog's word on adapters, read again when the directory has changed.
#[derive(Default)]
pub(super) struct Records {
    generation: Option<u64>,
    known: Known,
}

impl Records {
    /// As the records are now. Cost: one step a version after a change, else none.
    pub(super) fn now(&mut self, core: &Core) -> &Known {
        // Before the catalog is read: at worst it is read once more.
        let generation = core.generation();
        if self.generation != Some(generation) {
            self.known = Known::of(&core.catalog());
            self.generation = Some(generation);
        }
        &self.known
    }
}

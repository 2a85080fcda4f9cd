//! Tells the mesh that this worker is there, how busy it is and what it holds: every interval, and at once when a drain begins.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;
use weft_bus::residency::{Held, Teller};
use weft_bus::{Bus, Subject, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_proto::mesh::v1::Tier;
use weft_proto::worker::v1 as pb;
use weft_service_kit::shutdown::Shutdown;
use weft_types::Digest;

use crate::view::View;

/// Every so many beats carry the whole list, for those who missed something and cannot ask: registries do not call workers.
const BEATS_PER_LIST: u64 = 15;

/// What does not change while the process lives.
pub(crate) struct Facts {
    pub(crate) worker: String,
    pub(crate) address: String,
    pub(crate) incarnation: String,
    pub(crate) base: Digest,
    pub(crate) interval: Duration,
}

/// Beats until it is dropped. From the shutdown on the beats say that the worker drains; `told` hears when the first of them has left.
pub(crate) async fn beat(
    bus: Arc<dyn Bus>,
    facts: Facts,
    view: Arc<View>,
    shutdown: Shutdown,
    told: oneshot::Sender<()>,
) {
    let mut told = Some(told);
    let mut pulse = Pulse { facts, teller: Teller::default(), sequence: 0 };
    loop {
        let load = view.load();
        // One whose loop is stuck falls silent.
        if view.stuck_for().is_none() {
            for (subject, message) in pulse.next(load, &view.residency()) {
                // It may be lost: whoever listens sees the gap, and the bus counts it.
                let _ = bus.publish(subject, message);
            }
        }
        if load.draining
            && let Some(told) = told.take()
        {
            bus.flush().await;
            // Whoever waited may have given up.
            let _ = told.send(());
        }
        // So that workers started together do not beat together.
        let pause = pulse.facts.interval.mul_f64(rand::random_range(0.9..1.1));
        if load.draining {
            tokio::time::sleep(pause).await;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Whoever hears of the drain must not be sent here again: it begins before it is told.
            () = shutdown.wait() => view.drain(),
        }
    }
}

/// Makes the messages.
struct Pulse {
    facts: Facts,
    teller: Teller,
    sequence: u64,
}

impl Pulse {
    /// A heartbeat, and what of its residency does not fit.
    fn next(&mut self, load: pb::GetLoadResponse, residency: &pb::ListResidencyResponse) -> Vec<(Subject, Bytes)> {
        self.sequence += 1;
        if self.sequence.is_multiple_of(BEATS_PER_LIST) {
            self.teller.start_over();
        }
        let mut pieces = self.teller.tell(held(residency), residency.generation).into_iter();
        let facts = &self.facts;
        let heartbeat = mesh::WorkerHeartbeat {
            worker: facts.worker.clone(),
            address: facts.address.clone(),
            incarnation: facts.incarnation.clone(),
            sequence: self.sequence,
            interval_ms: facts.interval.as_millis() as u32,
            base_digest: facts.base.to_vec().into(),
            draining: load.draining,
            running_requests: load.running_requests,
            queued_requests: load.queued_requests,
            loading_requests: load.loading_requests,
            kv_blocks_free: load.kv_blocks_max.saturating_sub(load.kv_blocks_used),
            kv_blocks_max: load.kv_blocks_max,
            slot_bytes_used: load.slot_bytes_used,
            slot_bytes_max: load.slot_bytes_max,
            step_us: load.step_us,
            prefill_tokens_per_s: load.prefill_tokens_per_s,
            residency: pieces.next(),
            prepared_bytes_max: residency.prepared_bytes_max,
            memory_bytes_per_s: load.memory_bytes_per_s,
            disk_bytes_per_s: load.disk_bytes_per_s,
            remote_bytes_per_s: load.remote_bytes_per_s,
        };
        let mut messages = vec![(subjects::WORKER_HEARTBEAT, heartbeat.encode_to_vec().into())];
        messages.extend(pieces.map(|piece| {
            let (address, incarnation) = (facts.address.clone(), facts.incarnation.clone());
            let message = mesh::WorkerResidency { address, incarnation, residency: Some(piece) };
            (subjects::WORKER_RESIDENCY, message.encode_to_vec().into())
        }));
        messages
    }
}

/// An adapter that has a slot and is packed too is nearest in its slot.
fn held(residency: &pb::ListResidencyResponse) -> Held {
    let of = |rows: &[pb::ResidentAdapter], tier: Tier| -> Vec<(Digest, Tier)> {
        rows.iter().filter_map(|row| Some((Digest::try_from(row.digest.as_ref()).ok()?, tier))).collect()
    };
    of(&residency.prepared, Tier::Memory).into_iter().chain(of(&residency.adapters, Tier::Slot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Bytes {
        Digest::of(&number.to_le_bytes()).to_vec().into()
    }

    fn residency(generation: u64, slots: u64) -> pb::ListResidencyResponse {
        let row = |number| pb::ResidentAdapter { digest: digest(number), ..Default::default() };
        pb::ListResidencyResponse { adapters: (0..slots).map(row).collect(), generation, ..Default::default() }
    }

    fn pulse() -> Pulse {
        let facts = Facts {
            worker: "w".into(),
            address: "h:1".into(),
            incarnation: "i".into(),
            base: Digest::of(b"base"),
            interval: Duration::from_secs(1),
        };
        Pulse { facts, teller: Teller::default(), sequence: 0 }
    }

    fn decoded(messages: &[(Subject, Bytes)]) -> mesh::WorkerHeartbeat {
        assert_eq!(messages[0].0, subjects::WORKER_HEARTBEAT);
        mesh::WorkerHeartbeat::decode(messages[0].1.clone()).unwrap()
    }

    #[test]
    fn beats_count_up_and_carry_what_changed_since_the_last() {
        let mut pulse = pulse();
        let first = decoded(&pulse.next(pb::GetLoadResponse::default(), &residency(7, 2)));
        let delta = first.residency.unwrap();
        assert_eq!((first.sequence, delta.since, delta.generation, delta.changes.len()), (1, 0, 7, 2));
        let load = pb::GetLoadResponse {
            draining: true,
            kv_blocks_used: 3,
            kv_blocks_max: 10,
            prefill_tokens_per_s: 1000.0,
            ..Default::default()
        };
        let second = decoded(&pulse.next(load, &residency(7, 2)));
        let delta = second.residency.unwrap();
        assert_eq!((second.sequence, delta.since, delta.generation, delta.changes.len()), (2, 7, 7, 0));
        assert_eq!((second.draining, second.kv_blocks_free, second.prefill_tokens_per_s), (true, 7, 1000.0));
        let third = decoded(&pulse.next(pb::GetLoadResponse { prefill_tokens_per_s: 0.0, ..load }, &residency(9, 1)));
        assert_eq!((third.residency.unwrap().changes.len(), third.prefill_tokens_per_s), (1, 0.0));
    }

    #[test]
    fn some_beats_carry_the_whole_list() {
        let mut pulse = pulse();
        let deltas = (0..2 * BEATS_PER_LIST).map(|_| {
            let delta = decoded(&pulse.next(pb::GetLoadResponse::default(), &residency(7, 2))).residency.unwrap();
            (delta.since, delta.changes.len())
        });
        let deltas: Vec<_> = deltas.collect();
        assert_eq!(deltas.iter().filter(|delta| **delta == (0, 2)).count(), 3, "the first and every 15th");
        assert_eq!(deltas.iter().filter(|delta| **delta == (7, 0)).count(), 27);
    }

    #[test]
    fn many_adapters_are_told_in_messages_below_the_limit() {
        let messages = pulse().next(pb::GetLoadResponse::default(), &residency(1, 4000));
        assert_eq!(messages.len(), 4);
        assert!(messages.iter().all(|(_, message)| message.len() < weft_bus::MESSAGE_BYTES_MAX));
        assert!(messages[1..].iter().all(|(subject, _)| *subject == subjects::WORKER_RESIDENCY));
    }
}

//! What is asked of this gateway, told to the registries: they plan by it which workers hold which adapters (`docs/placement.md`).
//!
//! Whatever of it is lost costs accuracy only.

use bytes::Bytes;
use prost::Message;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use weft_bus::{Bus, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_types::Digest;

/// Between two messages, with jitter.
const INTERVAL: Duration = Duration::from_secs(1);
/// Adapters counted at once; what is asked for beyond it is not counted until the next message has left.
const ADAPTERS_MAX: usize = 1 << 14;
/// Rows of one message: 69 bytes each at most, so that it stays below 64 KiB.
const ROWS_MAX: usize = 900;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    requests: u64,
    prompt_tokens: u64,
    output_tokens: u64,
}

/// Counts since the last message.
#[derive(Default)]
pub(crate) struct Demand(Mutex<HashMap<Digest, Row>>);

impl Demand {
    /// A request for an adapter was let in.
    pub(crate) fn asked(&self, adapter: &Digest) {
        self.count(adapter, |row| row.requests += 1);
    }

    /// Its prompt had so many tokens that a worker computed.
    pub(crate) fn prompted(&self, adapter: &Digest, tokens: u32) {
        self.count(adapter, |row| row.prompt_tokens += u64::from(tokens));
    }

    /// Its answer went on by so many tokens.
    pub(crate) fn answered(&self, adapter: &Digest, tokens: usize) {
        self.count(adapter, |row| row.output_tokens += tokens as u64);
    }

    fn count(&self, adapter: &Digest, with: impl FnOnce(&mut Row)) {
        let mut rows = self.rows();
        if let Some(row) = rows.get_mut(adapter) {
            with(row);
        } else if rows.len() < ADAPTERS_MAX {
            with(rows.entry(*adapter).or_default());
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<Digest, Row>> {
        // Counting cannot be torn, so a poisoned lock carries nothing wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the rows that are most asked for; the rest stays for the next time.
    fn take(&self) -> Vec<(Digest, Row)> {
        let mut taken: Vec<(Digest, Row)> = self.rows().drain().collect();
        if taken.len() > ROWS_MAX {
            taken.select_nth_unstable_by(ROWS_MAX, |(a, first), (b, second)| {
                let worth = |row: &Row| (row.requests, row.prompt_tokens.saturating_add(row.output_tokens));
                worth(second).cmp(&worth(first)).then(a.cmp(b))
            });
            for (adapter, row) in taken.drain(ROWS_MAX..) {
                self.count(&adapter, |now| {
                    now.requests += row.requests;
                    now.prompt_tokens += row.prompt_tokens;
                    now.output_tokens += row.output_tokens;
                });
            }
        }
        taken
    }

    /// The next message; `None` without anything to tell.
    fn message(&self, incarnation: &str, sequence: u64) -> Option<Bytes> {
        let rows = self.take();
        if rows.is_empty() {
            return None;
        }
        let rows = rows.into_iter().map(|(adapter, row)| mesh::AdapterDemand {
            digest: adapter.to_vec().into(),
            requests: row.requests,
            prompt_tokens: row.prompt_tokens,
            output_tokens: row.output_tokens,
        });
        let told = mesh::GatewayDemand { incarnation: incarnation.to_owned(), sequence, adapters: rows.collect() };
        Some(told.encode_to_vec().into())
    }

    /// Tells for ever. Cancel safe.
    pub(crate) async fn tell(self: Arc<Self>, bus: Arc<dyn Bus>) {
        let incarnation = uuid::Uuid::new_v4().to_string();
        let mut sequence = 0;
        loop {
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.9..1.1))).await;
            if let Some(message) = self.message(&incarnation, sequence + 1) {
                sequence += 1;
                // It may be lost, and the bus counts it.
                let _ = bus.publish(subjects::GATEWAY_DEMAND, message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    fn decoded(demand: &Demand) -> Vec<mesh::AdapterDemand> {
        let message = demand.message(&"i".repeat(36), u64::MAX).unwrap();
        assert!(message.len() < weft_bus::MESSAGE_BYTES_MAX, "{} bytes", message.len());
        mesh::GatewayDemand::decode(message).unwrap().adapters
    }

    #[test]
    fn counts_are_told_once() {
        let demand = Demand::default();
        demand.asked(&digest(1));
        demand.asked(&digest(1));
        demand.prompted(&digest(1), 30);
        demand.answered(&digest(1), 4);
        let rows = decoded(&demand);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].requests, rows[0].prompt_tokens, rows[0].output_tokens), (2, 30, 4));
        assert!(demand.message("i", 2).is_none());
    }

    #[test]
    fn of_more_than_a_message_holds_the_most_asked_for_go_first_and_nothing_is_lost() {
        let demand = Demand::default();
        for n in 0..2 * ROWS_MAX + 7 {
            demand.count(&digest(n), |row| row.requests = n as u64);
        }
        let (first, second, third) = (decoded(&demand), decoded(&demand), decoded(&demand));
        assert_eq!((first.len(), second.len(), third.len()), (ROWS_MAX, ROWS_MAX, 7));
        let least = |rows: &[mesh::AdapterDemand]| rows.iter().map(|row| row.requests).min().unwrap();
        assert_eq!((least(&first), least(&second), least(&third)), (ROWS_MAX as u64 + 7, 7, 0));
    }

    fn big() -> Row {
        Row { requests: u64::MAX, prompt_tokens: u64::MAX, output_tokens: u64::MAX }
    }

    #[test]
    fn the_largest_message_is_below_the_limit_and_the_tally_is_bounded() {
        let demand = Demand::default();
        for n in 0..ADAPTERS_MAX + 10 {
            demand.count(&digest(n), |row| *row = big());
        }
        assert_eq!(demand.rows().len(), ADAPTERS_MAX);
        assert_eq!(decoded(&demand).len(), ROWS_MAX);
    }
}

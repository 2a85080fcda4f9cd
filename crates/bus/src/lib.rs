//! What services tell each other and may lose: heartbeats, residency, change events.
//!
//! A message here is a hint. Nothing may depend on its arrival: whoever listens also lists again, when told that something was
//! missed and from time to time. So nothing is stored (core NATS, no JetStream), and a sender never waits.
//!
//! This room knows how messages travel and how deltas of residency are cut and followed. It must not know what anybody does with
//! them. In the order of use:
//!
//! 1. [`connect`] makes a [`Bus`]: over NATS, or in memory for a process that talks to itself.
//! 2. [`subjects`] are what is published and subscribed to; a message is one of `weft.mesh.v1`.
//! 3. [`residency`] turns two states into a delta below the size limit, and deltas back into a state.

mod error;
mod memory;
mod metrics;
mod nats;
mod port;
mod queue;
pub mod residency;
pub mod subjects;

pub use error::Error;
pub use memory::MemoryBus;
pub use metrics::Metrics;
pub use nats::{NatsBus, NatsSettings};
pub use port::{Bus, FLUSH_TIMEOUT, Heard, MESSAGE_BYTES_MAX, State, Subject, Subscription, report};

use std::sync::Arc;

/// The bus that these settings name: NATS, or, without an address, one of this process alone. Returns at once; a NATS that is
/// away is waited for in the background. Must run within a tokio runtime.
///
/// # Errors
/// [`Error::Setting`] for a value that cannot be used; [`Error::Metrics`] if the registry has a bus already.
pub fn connect(settings: NatsSettings, metrics: &prometheus::Registry) -> Result<Arc<dyn Bus>, Error> {
    let metrics = Metrics::new(metrics)?;
    if settings.url.is_empty() {
        return Ok(Arc::new(MemoryBus::new(metrics)));
    }
    Ok(Arc::new(NatsBus::start(settings, metrics)?))
}

//! Placement and routing against hashing and least-loaded, in simulated time.
//!
//! The decisions are those of `crates/placement`; workers, gateways and the authority's rounds are a model. A run is a
//! function of (scenario, policy, seed). What the model leaves out and what its numbers mean: `docs/placement.md`.
//!
//! 1. [`Scenario`] and [`Arrivals`]: what is asked for, when.
//! 2. `worker`: seats, a prompt queue, slots, memory and disk, one loader.
//! 3. `gateway`: what a gateway knows: heartbeats, and what it sent since.
//! 4. [`Policy`]: hashing, least-loaded, ours.
//! 5. [`simulate`]: the events, and the [`Outcome`].
//! 6. [`routing_cost`]: what one decision costs, on this machine.

mod arrivals;
mod cost;
mod gateway;
mod measure;
mod policy;
mod ring;
mod run;
mod shape;
mod worker;

pub use arrivals::{Arrival, Arrivals, Scenario};
pub use cost::{Cost, routing_cost};
pub use measure::{Outcome, mean};
pub use policy::Policy;
pub use run::simulate;
pub use shape::Shape;

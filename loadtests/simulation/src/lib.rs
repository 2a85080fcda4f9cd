//! The mesh in one process, in simulated time, on a simulated network that fails, and so does everything on it.
//!
//! Two real gateways and two real registries run over a real S3 client and server, with three workers that play a script over the real
//! protocol. Everything is drawn from one seed: what tenants ask, what fails and when, every delay, every key. A seed takes the same
//! course in every run, so that one that breaks a rule is a test of its own.
//!
//! - `machine.rs`: time and randomness as the services see them. `network.rs`, `bus.rs`: connections and the bus, over
//!   `turmoil`.
//! - `run.rs`: hosts and steps. `services.rs`, `worker.rs`, `s3`: what runs on the hosts. `world.rs`: what outlives a process.
//! - `faults.rs`: what fails. `trouble.rs`: what failed when, for rules that ask.
//! - `tenants`: who asks and writes. `ledger.rs`: what was acknowledged. `checks.rs`: the rules.
//! - `record.rs`: events, counts and broken rules. `suite.rs`: many seeds, each in a process of its own, and whether enough happened.
//!
//! What is not simulated: the engine and the worker's own loop (threads, whose order no seed decides), the cache daemon (files), NATS and
//! Redis. `make chaos` has all of them as processes.

pub mod answer;
mod bus;
pub mod checks;
mod faults;
mod http;
mod ledger;
pub mod machine;
mod network;
mod package;
mod random;
pub mod record;
mod run;
mod s3;
mod services;
mod stage;
pub mod suite;
mod tenants;
mod trouble;
mod worker;
mod world;

pub use faults::Kind;
pub use run::{Outcome, simulate};

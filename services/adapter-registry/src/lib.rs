//! The registry: takes packages, checks them against the base, stores them as immutable numbered versions, and keeps
//! aliases, tenants and keys.
//!
//! S3 is the system of record. Every object below `registry/` is written under a condition and only grows newer, so
//! that several registries may run side by side and the memory of each is a join of what it saw ([`catalog`]).
//! This room must not know requests or where adapter bytes are cached; of workers only [`placing`] knows.
//!
//! 1. [`grpc`]: the face; one method a call, limits and metrics around it.
//! 2. [`publish`]: upload, check, blob, version, alias.
//! 3. [`core`]: reading and writing records under conditions; the directory after every change.
//! 4. [`catalog`]: what is known, and the [`weft_proto::registry::v1::Directory`] made of it.
//! 5. [`layout`] and [`records`]: keys and content of the objects.
//! 6. [`tell`]: what registries tell each other, so that a write is seen before the next listing.
//! 7. [`experiments`]: split tests of an alias, what gateways observed in them, and guardrails.
//! 8. [`gc`]: versions that nobody can still need, in two phases.
//! 9. [`usage`]: the ledger of what tenants used, for gateways that write it and operators that read it.
//! 10. [`placing`]: the authority for placement, and who is told of its epochs.

mod admin;
mod app;
mod catalog;
mod core;
mod error;
mod experiments;
mod gc;
mod grpc;
mod layout;
mod metrics;
mod places;
mod placing;
mod policy;
mod publish;
mod records;
mod settings;
mod snapshot;
mod tell;
mod usage;
mod wire;

pub use app::App;
pub use error::Error;
pub use grpc::{DIRECTORY_GENERATION_HEADER, DIRECTORY_INCARNATION_HEADER};
pub use settings::Settings;

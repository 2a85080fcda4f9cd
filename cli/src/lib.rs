//! What the `weft` program does, as a library so that tests can call it.
//!
//! - [`embedded`]: the one place where all four services are wired together in a process.
//! - [`up`]: its settings and life.
//! - [`client`]: the HTTP clients behind the subcommands; they know the services only through HTTP.
//! - [`limits`]: the flags of limits.
//! - [`merge`]: the flags of merges.
//! - [`experiment`]: split tests.
//! - [`probe`]: a health check.
//! - [`usage`]: the ledger.
//! - [`demo`], [`bench`]: stories told and measured through that client.

pub mod bench;
pub mod client;
pub mod demo;
pub mod embedded;
pub mod experiment;
pub mod limits;
pub mod merge;
pub mod model;
pub mod policy;
pub mod probe;
pub mod progress;
pub mod publish;
pub mod synthetic;
pub mod up;
pub mod usage;

//! Three registries over one S3 server, racing each other under `kill -9`, and a check of everything they acknowledged.
//!
//! 1. [`world`]: the processes, killed and started again.
//! 2. [`workload`]: publishes, alias moves and reads of a few adapters at a time, each written down with when it began and ended.
//! 3. [`check`]: whether there is one order of all of it, per key, that everybody could have seen. No IO.
//! 4. [`rates`]: publishes and resolves against the S3 server's own `PUT` and `GET`.
//!
//! This room knows registries by their gRPC face alone.

pub mod check;
pub mod package;
pub mod rates;
pub mod workload;
pub mod world;

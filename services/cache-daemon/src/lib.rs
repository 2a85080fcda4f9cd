//! The cache daemon: one per node, brings adapter bytes near exactly once, verified, and keeps them while leased.
//!
//! This service knows digests and files. It must not know what an adapter, a tenant or a model is, and it never
//! looks into the bytes it keeps.
//!
//! The way of a lease:
//!
//! 1. [`service`](CacheService): the stream of a holder; its leases end with it, however the holder dies.
//! 2. [`Cache::acquire`]: memory, disk, else one *flight* per digest, however many wait for it.
//! 3. `flight`: hash what an earlier process left behind, or fetch.
//! 4. `fetch`: from a neighbour daemon, else from the object store, in ranges that are resumed, within a bandwidth.
//! 5. `folder`: temporary file, SHA-256 while writing, fsync, rename, fsync of the folder; mode 0444, never rewritten.
//! 6. `books`: which files there are and who holds them, under the byte budgets of [`weft_residency::Ledger`].
//!
//! Beside it, `tell` says on the bus what is here, `neighbours` hears what others have and that aliases moved, `serve`
//! sends bytes to neighbour daemons, and `for_neighbours` is the face that they see where they have a listener of their own.
//!
#![doc = include_str!("../README.md")]

mod app;
mod bandwidth;
mod books;
mod cache;
mod error;
mod fetch;
mod flight;
mod folder;
mod for_neighbours;
mod metrics;
mod neighbours;
mod prefetch;
mod promote;
mod serve;
mod service;
mod settings;
mod tell;

pub use app::App;
pub use cache::{Cache, Lease};
pub use error::Error;
pub use folder::TierKind;
pub use service::CacheService;
pub use settings::Settings;

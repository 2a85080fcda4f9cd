//! What every Weft service needs around its own work, once: settings, telemetry, transport, readiness and shutdown.
//!
//! This room knows nothing of adapters, tenants or models. In the order in which a `main` uses it:
//!
//! 1. [`settings`]: one struct a service, filled from a TOML file, `WEFT_*` variables and flags.
//! 2. [`telemetry`]: logs to stderr, as text or JSON.
//! 3. [`transport`]: listeners and channels over TCP, Unix sockets or memory; who the other end is, by certificates.
//! 4. [`readiness`]: what the service still waits for.
//! 5. [`health`]: readiness as `grpc.health.v1`; [`operations`]: readiness and metrics over HTTP.
//! 6. [`shutdown`]: from SIGTERM to the last running request.

pub mod health;
pub mod operations;
pub mod readiness;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod transport;

#[doc(hidden)]
pub use serde;
#[doc(hidden)]
pub use serde_json;

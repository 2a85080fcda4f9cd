//! The port over memory and over a real `nats-server`: one suite for both, and what only a server can do to us.

mod contract;
mod credentials;
mod server;
mod support;
mod tls;

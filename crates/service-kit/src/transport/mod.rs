//! How services reach each other: the same tonic servers and clients over TCP, a Unix socket, memory or whatever carries connections.
//!
//! Embedded mode is not a second implementation: it runs the same server on [`Listener::memory`] and gives its clients
//! the channel that belongs to it.
//!
//! - `address.rs`: where a service is; `listener.rs`, `channel.rs`: the two ends; `carried.rs`: both over connections that somebody else
//!   makes; `backoff.rs`: when to try again.
//! - `peers.rs`: [`Peers`], by which a service listens for others and connects to them: TLS on both sides where there are
//!   certificates, and nothing in the clear beyond this machine unless a setting says so.
//! - `identity.rs`: whom a certificate names; `calls.rs`: who may call whom; `admit.rs`: refuses other calls;
//!   `certificates.rs`: the files, read again when they change; `verify.rs`: the other end's certificate.

mod address;
mod admit;
mod backoff;
mod calls;
mod carried;
mod certificates;
mod channel;
mod identity;
mod listener;
mod peer_metrics;
mod peers;
mod tls_settings;
mod verify;

pub use address::{Address, AddressError, check_advertise};
pub use admit::{Admit, AdmitLayer, Peer};
pub use backoff::Backoff;
pub use carried::carried;
pub use channel::{connect, set_deadline, within};
pub use identity::{Identity, IdentityError, Service};
pub use listener::{Connection, Incoming, Listener};
pub use peers::{ListenError, Peers, Plaintext, WrongSetting};
pub use tls_settings::TlsSettings;

use std::time::Duration;
use tonic::transport::Server;
use tower::layer::util::{Identity as NoLayer, Stack};

/// Largest gRPC message a service sends or takes: uploads come in chunks of 1 MiB, directories may be larger.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Largest frame that a server takes. What comes in large messages (uploads, blobs) is read and woken for a few times a message, not once for
/// every 16 KiB.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// What a call may send before the server has read it, and what all calls of a connection may: two chunks of an upload on their way. What a
/// connection can make a server hold is bounded by it.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// A silent peer is noticed within about 30 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A tonic server with the limits that every service of ours uses. It answers only those callers that may call
/// ([`Peers`] has the table).
#[must_use]
pub fn server() -> Server<Stack<AdmitLayer, NoLayer>> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(4096)
        .http2_max_header_list_size(16 << 10)
        .layer(AdmitLayer)
}

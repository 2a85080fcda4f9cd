//! The simulated network under the services' listeners and channels, which run on it as they run on TCP.

use futures::stream;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::transport::Channel;
use turmoil::net::{TcpListener, TcpStream};
use weft_service_kit::transport::{Listener, carried};

/// Listens on every interface of the host that this runs on.
///
/// # Errors
/// The port is taken.
pub(crate) async fn listen(port: u16) -> io::Result<Listener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let accepted = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, peer)| (stream, Some(peer)));
        Some((accepted, listener))
    });
    Ok(Listener::carried(format!("0.0.0.0:{port}"), accepted))
}

/// A channel from the host that this runs on to a service that several hosts run: each new connection goes to the next of them, beginning
/// with `first`, as behind an address that a balancer owns.
#[must_use]
pub(crate) fn channel(hosts: &'static [&'static str], port: u16, first: usize) -> Channel {
    let turn = Arc::new(AtomicUsize::new(first));
    carried(move || {
        let host = hosts[turn.fetch_add(1, Ordering::Relaxed) % hosts.len()];
        TcpStream::connect((host, port))
    })
}

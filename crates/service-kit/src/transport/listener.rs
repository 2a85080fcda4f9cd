//! Listeners over TCP, Unix sockets and memory, and what they accept.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use super::Address;
use super::admit::Peer;
use super::carried::over;

/// Bytes in flight in each direction of an in-memory connection.
const MEMORY_PIPE_BYTES: usize = 256 << 10;
/// Connections waiting to be accepted in memory.
const MEMORY_BACKLOG: usize = 64;

/// One accepted connection, whatever carries it.
pub struct Connection {
    io: Box<dyn Io>,
    peer: Option<SocketAddr>,
    /// What its certificate says.
    who: Peer,
}

impl Connection {
    fn local(io: impl Io + 'static) -> Self {
        Self::carried(io, None)
    }

    /// One that shows no certificate.
    pub(super) fn carried(io: impl Io + 'static, peer: Option<SocketAddr>) -> Self {
        Self { io: Box::new(io), peer, who: Peer::default() }
    }

    fn plain(stream: TcpStream) -> Self {
        let peer = stream.peer_addr().ok();
        Self::carried(stream, peer)
    }

    /// One whose other end has shown a certificate.
    pub(super) fn certified(io: impl Io + 'static, peer: Option<SocketAddr>, who: Peer) -> Self {
        Self { io: Box::new(io), peer, who }
    }

    /// Who connected; none over a Unix socket or memory.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.who.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Accepted connections, for `tonic::transport::Server::serve_with_incoming_shutdown`.
pub type Incoming = BoxStream<'static, io::Result<Connection>>;

/// A bound listener.
pub struct Listener {
    incoming: Incoming,
    address: String,
    local: Option<SocketAddr>,
}

impl Listener {
    /// Binds, without TLS; services listen for each other through [`Peers::listen`](super::Peers::listen). Port 0 picks a free one; see [`Listener::local_addr`]. A stale Unix socket nobody answers on is replaced.
    ///
    /// # Errors
    /// The address is taken, not local or not permitted; the error names it.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        let named = named(address);
        match address {
            Address::Tcp(host_port) => {
                let (streams, local) = tcp_streams(host_port).await.map_err(named)?;
                Ok(Self::over(streams.map(|stream| stream.map(Connection::plain)).boxed(), local))
            }
            Address::Unix(path) => {
                if path.exists() && UnixStream::connect(path).await.is_err() {
                    std::fs::remove_file(path).map_err(named)?;
                }
                let listener = UnixListener::bind(path).map_err(named)?;
                let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(Connection::local));
                Ok(Self::of(incoming.boxed(), address.to_string()))
            }
        }
    }

    /// One at a bound TCP address.
    pub(super) fn over(incoming: Incoming, local: SocketAddr) -> Self {
        Self { incoming, address: local.to_string(), local: Some(local) }
    }

    /// One that has no TCP address.
    pub(super) fn of(incoming: Incoming, address: String) -> Self {
        Self { incoming, address, local: None }
    }

    /// A listener within this process, and the channel that reaches it.
    #[must_use]
    pub fn memory() -> (Self, Channel) {
        let (connected, accepted) = tokio::sync::mpsc::channel::<DuplexStream>(MEMORY_BACKLOG);
        let channel = over(Endpoint::from_static("http://memory"), move || {
            let connected = connected.clone();
            async move {
                let (near, far) = tokio::io::duplex(MEMORY_PIPE_BYTES);
                connected.send(far).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok(near)
            }
        });
        let accepted = ReceiverStream::new(accepted).map(|stream| Ok((stream, None)));
        (Self::carried("memory", accepted), channel)
    }

    /// The bound TCP address, with the real port.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Where it listens, for logs.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where others reach it: at what is advertised, else where it listens.
    #[must_use]
    pub fn advertised(&self, advertise: &str) -> String {
        if advertise.is_empty() { self.address() } else { advertise }.to_owned()
    }

    /// The accepted connections.
    #[must_use]
    pub fn incoming(self) -> Incoming {
        self.incoming
    }
}

/// An error of listening that names the address.
pub(super) fn named(address: &Address) -> impl Fn(io::Error) -> io::Error + Copy {
    move |error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}

/// The connections accepted at `host:port`, and the address with its real port.
pub(super) async fn tcp_streams(
    host_port: &str,
) -> io::Result<(impl Stream<Item = io::Result<TcpStream>> + Send + use<>, SocketAddr)> {
    let listener = TcpListener::bind(host_port).await?;
    let local = listener.local_addr()?;
    let streams = TcpListenerStream::new(listener).map(|stream| {
        stream.inspect(|stream| {
            // Small frames of a token stream must not wait for more; a failure only costs latency.
            let _ = stream.set_nodelay(true);
        })
    });
    Ok((streams, local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let taken = first.local_addr().unwrap().to_string();
        let Err(error) = Listener::bind(&taken.parse().unwrap()).await else { panic!("bound twice") };
        assert!(error.to_string().contains(&taken), "{error}");
    }
}

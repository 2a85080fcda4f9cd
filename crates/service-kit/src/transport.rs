//! How services reach each other: the same tonic servers and clients over TCP, a Unix socket or memory.
//!
//! Embedded mode is not a second implementation: it runs the same server on [`Listener::memory`] and gives its clients
//! the channel that belongs to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

/// Largest gRPC message a service sends or takes: uploads come in chunks of 1 MiB, directories may be larger.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Bytes in flight in each direction of an in-memory connection.
const MEMORY_PIPE_BYTES: usize = 256 << 10;
/// Connections waiting to be accepted in memory.
const MEMORY_BACKLOG: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is noticed within about 30 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a service listens or is reached: `127.0.0.1:7001`, `http://host:7001` or `unix:/run/weft/worker.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {0:?} must be host:port, http://host:port or unix:/path")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let host_port = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = host_port.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        format!("http://{host_port}").parse::<Uri>().map_err(|_| wrong())?;
        Ok(Self::Tcp(host_port.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => write!(f, "http://{host_port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether others can reach a service that listens at `listen` by what it advertises; empty stands for `listen`.
///
/// # Errors
/// What is wrong, naming the setting.
pub fn check_advertise(advertise: &str, listen: &str) -> Result<(), String> {
    if !advertise.is_empty() {
        return advertise.parse::<Address>().map(drop).map_err(|error| format!("advertise: {error}"));
    }
    let Ok(Address::Tcp(host_port)) = listen.parse() else { return Ok(()) };
    let host = host_port.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    match host.parse::<std::net::IpAddr>() {
        Ok(address) if address.is_unspecified() => Err(format!(
            "advertise is not set, and listen is {listen}, every interface: say at which address others reach it"
        )),
        _ => Ok(()),
    }
}

/// A channel that connects when it is first used and again whenever it breaks: start order does not matter.
///
/// # Panics
/// Never: every [`Address`] is a valid URI by construction.
#[must_use]
pub fn connect(address: &Address) -> Channel {
    match address {
        Address::Tcp(host_port) => {
            tuned(format!("http://{host_port}").parse().expect("checked by Address")).connect_lazy()
        }
        Address::Unix(path) => {
            let path = path.clone();
            tuned(Endpoint::from_static("http://unix")).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
        }
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// One accepted connection, whatever carries it.
pub struct Connection {
    io: Box<dyn Io>,
    peer: Option<SocketAddr>,
}

impl Connection {
    fn local(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), peer: None }
    }

    /// Who connected; none over a Unix socket or memory.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
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
    /// Binds. Port 0 picks a free one; see [`Listener::local_addr`]. A stale Unix socket nobody answers on is replaced.
    ///
    /// # Errors
    /// The address is taken, not local or not permitted; the error names it.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        match address {
            Address::Tcp(host_port) => {
                let listener = TcpListener::bind(host_port).await.map_err(named)?;
                let local = listener.local_addr().map_err(named)?;
                let incoming = TcpListenerStream::new(listener).map(|stream| {
                    stream.map(|stream| {
                        // Small frames of a token stream must not wait for more; a failure only costs latency.
                        let _ = stream.set_nodelay(true);
                        let peer = stream.peer_addr().ok();
                        Connection { io: Box::new(stream), peer }
                    })
                });
                Ok(Self { incoming: incoming.boxed(), address: local.to_string(), local: Some(local) })
            }
            Address::Unix(path) => {
                if path.exists() && UnixStream::connect(path).await.is_err() {
                    std::fs::remove_file(path).map_err(named)?;
                }
                let listener = UnixListener::bind(path).map_err(named)?;
                let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(Connection::local));
                Ok(Self { incoming: incoming.boxed(), address: address.to_string(), local: None })
            }
        }
    }

    /// A listener within this process, and the channel that reaches it.
    #[must_use]
    pub fn memory() -> (Self, Channel) {
        let (connected, accepted) = tokio::sync::mpsc::channel::<DuplexStream>(MEMORY_BACKLOG);
        let channel =
            Endpoint::from_static("http://memory").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let connected = connected.clone();
                async move {
                    let (near, far) = tokio::io::duplex(MEMORY_PIPE_BYTES);
                    connected.send(far).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                    Ok::<_, io::Error>(TokioIo::new(near))
                }
            }));
        let incoming = ReceiverStream::new(accepted).map(|stream| Ok(Connection::local(stream)));
        (Self { incoming: incoming.boxed(), address: "memory".to_owned(), local: None }, channel)
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

/// A tonic server with the limits that every service of ours uses.
#[must_use]
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(4096)
        .http2_max_header_list_size(16 << 10)
}

/// Waits with jitter, longer after each failure: 50 ms to 2 s.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling_ms = 50u64 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        // Jitter without a generator: the sub-microsecond part of the clock differs from process to process.
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::from(since.subsec_nanos()));
        let ceiling_ms = ceiling_ms.min(2000);
        Duration::from_millis(ceiling_ms / 2 + (nanos / 97) % (ceiling_ms / 2).max(1))
    }

    /// Sleeps for [`Backoff::next_delay`]. Cancel safe.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        assert_eq!("127.0.0.1:80".parse(), Ok(Address::Tcp("127.0.0.1:80".into())));
        assert_eq!("http://host:80/".parse(), Ok(Address::Tcp("host:80".into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for wrong in ["", "host", "host:", ":80", "host:99999", "https://host:1", "unix:", "a b:1", "h/x:1"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_advertised_can_be_dialled() {
        for (advertise, listen) in [("", "10.0.0.1:1"), ("", "unix:/a"), ("h:1", "0.0.0.0:1"), ("", "host:1")] {
            assert_eq!(check_advertise(advertise, listen), Ok(()), "{advertise} {listen}");
        }
        for (advertise, listen) in [("", "0.0.0.0:1"), ("", "[::]:1"), ("h", "10.0.0.1:1")] {
            assert!(check_advertise(advertise, listen).is_err_and(|error| error.contains("advertise")));
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let taken = first.local_addr().unwrap().to_string();
        let Err(error) = Listener::bind(&taken.parse().unwrap()).await else { panic!("bound twice") };
        assert!(error.to_string().contains(&taken), "{error}");
    }

    #[test]
    fn backoff_grows_and_stays_bounded() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..20).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] < Duration::from_millis(51));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(2)));
        assert!(delays[19] >= Duration::from_secs(1));
    }
}

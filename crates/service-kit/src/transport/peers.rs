//! By which a service listens for others and connects to them.

use std::io;
use std::sync::Arc;

use futures::stream::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Uri};

use super::address::host_of;
use super::admit::Peer;
use super::certificates::{Certificates, Material};
use super::channel::{CONNECT_TIMEOUT, endpoint, plain};
use super::listener::{named, tcp_streams};
use super::peer_metrics::{PeerMetrics, Why};
use super::verify::identity_error;
use super::{Address, AddressError, Connection, Identity, IdentityError, Listener, Service, TlsSettings};

/// Handshakes at once on one listener; more connections wait in the system's backlog.
const HANDSHAKES_MAX: usize = 1024;

/// An address beyond this machine, where nothing goes without TLS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} is beyond this machine and there is no TLS: set tls_cert_file, tls_key_file and tls_ca_file, or --insecure-network to speak in the clear"
)]
pub struct Plaintext {
    address: String,
}

impl Plaintext {
    pub(super) fn new(address: &Address) -> Self {
        Self { address: address.to_string() }
    }
}

/// A setting by which a service cannot meet others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct WrongSetting {
    /// Its name, or that of the group.
    pub setting: &'static str,
    /// What is wrong with it, naming it.
    pub problem: String,
}

/// Why a service does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The settings forbid it.
    #[error(transparent)]
    Plaintext(#[from] Plaintext),
    /// The system does; the error names the address.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How one service meets the others. Cheap to clone.
///
/// With certificates, all TCP is TLS 1.3 on both sides: a caller must show a certificate of the authority and may call what the table in
/// `calls.rs` says; a server must be the service that is meant. Unix sockets and memory stay as they are: who reaches them is on this
/// machine. Without certificates, nothing is listened on or connected to beyond this machine, unless `insecure_network` is set.
#[derive(Clone)]
pub struct Peers {
    us: Service,
    certificates: Option<Arc<Certificates>>,
    insecure: bool,
    metrics: PeerMetrics,
}

impl Peers {
    /// The peers of the service that we are. Reads the files.
    ///
    /// # Errors
    /// What is wrong with the settings or their files, naming them; or the registry has these metrics already.
    pub fn new(us: Service, settings: TlsSettings, registry: &prometheus::Registry) -> Result<Self, String> {
        let metrics = PeerMetrics::register(registry).map_err(|error| error.to_string())?;
        let insecure = settings.insecure_network;
        let files = settings.files()?;
        if insecure {
            tracing::warn!("insecure_network: gRPC beyond this machine is neither encrypted nor authenticated");
        }
        let open = |files| Certificates::open(files, us, metrics.clone());
        let certificates = files.map(open).transpose()?.map(Arc::new);
        Ok(Self { us, certificates, insecure, metrics })
    }

    /// Whether they may be listened for or connected to at this address.
    ///
    /// # Errors
    /// [`Plaintext`].
    pub fn check(&self, address: &Address) -> Result<(), Plaintext> {
        let allowed = self.certificates.is_some() || self.insecure || address.is_local();
        if allowed { Ok(()) } else { Err(Plaintext::new(address)) }
    }

    /// The address that a setting names, if they may be listened for or connected to there. Opens nothing.
    ///
    /// # Errors
    /// It is no address, or [`Plaintext`].
    pub fn address(&self, setting: &'static str, text: &str) -> Result<Address, WrongSetting> {
        let wrong = |problem: String| WrongSetting { setting, problem: format!("{setting}: {problem}") };
        let address: Address = text.parse().map_err(|error: AddressError| wrong(error.to_string()))?;
        self.check(&address).map_err(|refused| wrong(refused.to_string()))?;
        Ok(address)
    }

    /// Listens for other services; as [`Listener::bind`].
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn listen(&self, address: &Address) -> Result<Listener, ListenError> {
        self.check(address)?;
        let (Some(certificates), Address::Tcp(host_port)) = (&self.certificates, address) else {
            return Ok(Listener::bind(address).await?);
        };
        let (streams, local) = tcp_streams(host_port).await.map_err(named(address))?;
        let (certificates, us, metrics) = (Arc::clone(certificates), self.us, self.metrics.clone());
        let accepted = streams.map(move |stream| {
            let (certificates, metrics) = (Arc::clone(&certificates), metrics.clone());
            async move {
                match stream {
                    Ok(stream) => accept(stream, certificates, us, metrics).await.map(Ok),
                    Err(error) => Some(Err(error)),
                }
            }
        });
        let connections = accepted.buffer_unordered(HANDSHAKES_MAX).filter_map(|connection| async { connection });
        Ok(Listener::over(connections.boxed(), local))
    }

    /// A channel to a service at this address, which connects when it is first used and again whenever it breaks.
    ///
    /// # Errors
    /// [`Plaintext`].
    pub fn connect(&self, address: &Address, to: Service) -> Result<Channel, Plaintext> {
        self.check(address)?;
        let (Some(certificates), Address::Tcp(host_port)) = (&self.certificates, address) else {
            return Ok(plain(address));
        };
        let (certificates, metrics) = (Arc::clone(certificates), self.metrics.clone());
        let host_port: Arc<str> = host_port.as_str().into();
        Ok(endpoint(address).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (certificates, metrics) = (Arc::clone(&certificates), metrics.clone());
            let host_port = Arc::clone(&host_port);
            async move {
                let silent = || io::Error::new(io::ErrorKind::TimedOut, silent(to, &host_port));
                let dialled = timeout(CONNECT_TIMEOUT, dial(&host_port, certificates, to, &metrics)).await;
                dialled.unwrap_or_else(|_| Err(silent())).map(TokioIo::new)
            }
        })))
    }

    /// The same to an address that somebody told us, who may be anybody. With certificates it must be one where the service can show its
    /// own.
    ///
    /// # Errors
    /// It is no address, or nothing is sent there.
    pub fn connect_heard(&self, address: &str, to: Service) -> Result<Channel, String> {
        let parsed: Address = address.parse().map_err(|error: AddressError| error.to_string())?;
        let channel = match &parsed {
            Address::Unix(_) if self.certificates.is_some() => {
                Err(format!("{parsed} is a Unix socket, where a {to} that was only heard of cannot show who it is"))
            }
            _ => self.connect(&parsed, to).map_err(|refused| refused.to_string()),
        };
        if channel.is_err() {
            self.metrics.refused_server(Why::Plaintext);
        }
        channel
    }
}

/// The certificates as the files have them now.
async fn current(certificates: Arc<Certificates>) -> io::Result<Arc<Material>> {
    tokio::task::spawn_blocking(move || certificates.current()).await.map_err(io::Error::other)
}

/// The server's side of a handshake. None: it failed, which is said and counted here.
async fn accept(
    stream: TcpStream,
    certificates: Arc<Certificates>,
    us: Service,
    metrics: PeerMetrics,
) -> Option<Connection> {
    let peer = stream.peer_addr().ok();
    let handshake = async {
        let material = current(certificates).await?;
        let stream = TlsAcceptor::from(Arc::clone(&material.server)).accept(stream).await?;
        Ok::<_, io::Error>((material, stream))
    };
    let (material, stream) = match timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(done)) => done,
        // Whoever only looks whether the port is open.
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            tracing::debug!(?peer, %error, "a connection ended before its handshake");
            return None;
        }
        Ok(Err(error)) => {
            metrics.refused_caller(Why::Handshake);
            tracing::warn!(?peer, %error, "refused a connection");
            return None;
        }
        Err(_) => {
            metrics.refused_caller(Why::Handshake);
            tracing::warn!(?peer, "refused a connection: no handshake within {} s", CONNECT_TIMEOUT.as_secs());
            return None;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = shown.map_or(Err(IdentityError::Unreadable), |shown| Identity::of_certificate(shown));
    let caller = caller.and_then(|caller| {
        let ours = Identity::of_service(&material.identity.trust_domain, caller.service);
        caller.must_be(&ours).map(|()| caller)
    });
    Some(Connection::certified(stream, peer, Peer::certified(caller, us, metrics)))
}

fn silent(to: Service, host_port: &str) -> String {
    format!("the {to} at {host_port} did not finish a handshake within {} s", CONNECT_TIMEOUT.as_secs())
}

/// The client's side.
async fn dial(
    host_port: &str,
    certificates: Arc<Certificates>,
    to: Service,
    metrics: &PeerMetrics,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(host_port).await?;
    // Small frames of a token stream must not wait for more; a failure only costs latency.
    let _ = stream.set_nodelay(true);
    let material = current(certificates).await?;
    let config = material.client(to).map_err(io::Error::other)?;
    // For whoever routes by it; it proves nothing, and nobody looks for it in the certificate.
    let name = ServerName::try_from(host_of(host_port).to_owned());
    let name = name.or_else(|_| ServerName::try_from("weft.invalid")).map_err(io::Error::other)?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(|error| {
        let (why, problem) = match identity_error(&error) {
            Some(somebody_else) => (Why::Identity, somebody_else.to_string()),
            None => (Why::Handshake, error.to_string()),
        };
        metrics.refused_server(why);
        io::Error::new(error.kind(), format!("the {to} at {host_port} is refused: {problem}"))
    })
}

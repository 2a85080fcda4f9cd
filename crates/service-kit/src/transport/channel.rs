//! Channels: the client's end.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use super::peers::Plaintext;
use super::{Address, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT};

/// For the connection, TLS included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// By which a deadline on the wire is later than the caller's own.
const WIRE_SLACK: Duration = Duration::from_millis(100);

/// A channel without TLS that connects when it is first used and again whenever it breaks: start order does not matter. Beyond this
/// machine it never connects; services reach each other through [`Peers::connect`](super::Peers::connect).
#[must_use]
pub fn connect(address: &Address) -> Channel {
    let refused = (!address.is_local()).then(|| Plaintext::new(address));
    match refused {
        None => plain(address),
        Some(refused) => endpoint(address).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let refused = io::Error::new(io::ErrorKind::PermissionDenied, refused.clone());
            async move { Err::<TokioIo<TcpStream>, _>(refused) }
        })),
    }
}

/// The same to anywhere.
pub(super) fn plain(address: &Address) -> Channel {
    match address {
        Address::Tcp(_) => endpoint(address).connect_timeout(CONNECT_TIMEOUT).connect_lazy(),
        Address::Unix(path) => {
            let path = path.clone();
            endpoint(address).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
        }
    }
}

/// How channels to this address behave.
///
/// # Panics
/// Never: every [`Address`] is a valid URI by construction.
pub(super) fn endpoint(address: &Address) -> Endpoint {
    let endpoint = match address {
        Address::Tcp(host_port) => format!("http://{host_port}").parse().expect("checked by Address"),
        Address::Unix(_) => Endpoint::from_static("http://unix"),
    };
    kept_alive(endpoint)
}

/// What all channels beyond this process have: small frames go out at once, and a silent peer is noticed.
pub(super) fn kept_alive(endpoint: Endpoint) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// A call whose whole answer must be there within `limit`: the other end hears of the deadline (`grpc-timeout`) and gives up then, too, even
/// if we are gone without a word. The caller still needs a timer of its own, which this deadline leaves [`WIRE_SLACK`] to speak first.
pub fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    set_deadline(&mut request, limit);
    request
}

/// The same for a request that is there already.
pub fn set_deadline<T>(request: &mut Request<T>, limit: Duration) {
    request.set_timeout(limit.saturating_add(WIRE_SLACK));
}

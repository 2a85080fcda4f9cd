//! Listeners and channels over connections that somebody else carries: the pipes of one process, or a network that is not this
//! machine's. The servers and clients on top are the same as over TCP.

use std::io;
use std::net::SocketAddr;

use futures::stream::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};

use super::channel::{CONNECT_TIMEOUT, kept_alive};
use super::{Connection, Listener};

impl Listener {
    /// A listener over connections that `accepted` yields, each with who connected, if that is known. `address`: what is told of it in
    /// logs, and where others reach it. Nothing is encrypted here: whoever carries the connections answers for who can make them.
    #[must_use]
    pub fn carried<I>(
        address: impl Into<String>,
        accepted: impl Stream<Item = io::Result<(I, Option<SocketAddr>)>> + Send + 'static,
    ) -> Self
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connections = accepted.map(|accepted| accepted.map(|(io, peer)| Connection::carried(io, peer)));
        Self::of(connections.boxed(), address.into())
    }
}

/// A channel over connections that `dial` makes, when it is first used and again whenever it breaks. It notices a silent peer, and gives
/// up a dial, as one over TCP does.
pub fn carried<F, I>(dial: impl Fn() -> F + Send + Sync + 'static) -> Channel
where
    F: Future<Output = io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    over(kept_alive(Endpoint::from_static("http://carried")), dial)
}

/// The same with settings of its own.
pub(super) fn over<F, I>(endpoint: Endpoint, dial: impl Fn() -> F + Send + Sync + 'static) -> Channel
where
    F: Future<Output = io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let dialled = timeout(CONNECT_TIMEOUT, dial());
        async move { dialled.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn a_listener_passes_on_what_it_is_given_and_who_connected() {
        let peer: SocketAddr = "10.1.2.3:4".parse().unwrap();
        let (mut near, far) = duplex(64);
        let broken = io::Error::from(io::ErrorKind::ConnectionAborted);
        let accepted = futures::stream::iter([Err(broken), Ok((far, Some(peer)))]);
        let listener = Listener::carried("there", accepted);
        assert_eq!((listener.address(), listener.local_addr()), ("there", None));
        let mut incoming = listener.incoming();
        assert!(incoming.next().await.unwrap().is_err(), "an error of accepting is told");
        let mut connection = incoming.next().await.unwrap().unwrap();
        assert_eq!(connection.peer(), Some(peer));
        near.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        connection.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }
}

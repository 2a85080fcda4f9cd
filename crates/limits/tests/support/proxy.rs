//! A service address: what stands before Redis and can be moved, shut, or lose every answer.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where connections lead. Those that lead elsewhere now are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To this port of this machine.
    To(u16),
    /// There too, but no answer comes back.
    Unanswered(u16),
    /// Nowhere.
    Shut,
}

impl Way {
    fn port(self) -> Option<u16> {
        match self {
            Self::To(port) | Self::Unanswered(port) => Some(port),
            Self::Shut => None,
        }
    }
}

/// Carries connections until it is dropped.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    way: watch::Sender<Way>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, seen) = watch::channel(way);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, seen.clone()));
            }
        });
        Self { port, way, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Way::Shut);
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, mut way: watch::Receiver<Way>) {
    let Some(port) = way.borrow().port() else { return };
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let now = way.clone();
    let answers = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(bytes @ 1..) = from_server.read(&mut buffer).await {
            let is_carried = *now.borrow() == Way::To(port);
            if is_carried && to_client.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = way.wait_for(|way| way.port() != Some(port)) => {}
    }
}

//! Any `s3s::S3` over HTTP on a local port.

use super::REGION;
use crate::{Error, S3Settings};
use base64::Engine;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::S3;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// More clients than this wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Also ends idle connections, so it is longer than a client's usual pause.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// An access key and its secret.
#[derive(Clone)]
pub struct Credentials {
    /// Names the key.
    pub access_key_id: String,
    /// Signs with it.
    pub secret_access_key: String,
}

impl Credentials {
    /// 128 random bits of name and 256 of secret.
    #[must_use]
    pub fn random() -> Self {
        let text = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        Self {
            access_key_id: hex::encode_upper(rand::random::<[u8; 16]>()),
            secret_access_key: text(&rand::random::<[u8; 32]>()),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A running HTTP server. Dropping it ends it and every connection.
pub struct Server {
    address: SocketAddr,
    credentials: Credentials,
    stop: CancellationToken,
    accepting: AbortOnDropHandle<()>,
}

impl Server {
    /// Serves the operations to whoever signs with the credentials. Port 0 picks a free one.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(s3: impl S3, listen: SocketAddr, credentials: Credentials) -> Result<Self, Error> {
        let named = |error| Error::io(format!("address {listen}"), error);
        let listener = TcpListener::bind(listen).await.map_err(named)?;
        let address = listener.local_addr().map_err(named)?;
        let mut builder = S3ServiceBuilder::new(s3);
        let secret = credentials.secret_access_key.clone();
        builder.set_auth(SimpleAuth::from_single(credentials.access_key_id.clone(), secret));
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, builder.build(), stop.clone()));
        Ok(Self { address, credentials, stop, accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What reaches this server.
    #[must_use]
    pub fn settings(&self, bucket: &str) -> S3Settings {
        S3Settings {
            endpoint: Some(format!("http://{}", self.address)),
            bucket: bucket.to_owned(),
            prefix: String::new(),
            region: REGION.to_owned(),
            access_key_id: Some(self.credentials.access_key_id.clone()),
            secret_access_key: Some(self.credentials.secret_access_key.clone()),
            path_style: true,
        }
    }

    /// Takes no more requests and lets those under way end, at most 5 s.
    pub async fn stop(self) {
        self.stop.cancel();
        // An error means that the task panicked: it has ended all the same.
        let _ = self.accepting.await;
    }
}

async fn accept(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Owns the connections, so that they end with this task.
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit.expect("the semaphore is never closed"),
            () = stop.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stop.cancelled() => break,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: give connections time to end.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Answers are small and must not wait for more; a failure only costs latency.
        let _ = stream.set_nodelay(true);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service.clone());
        let stop = stop.clone();
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            // A connection that breaks is its client's loss.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(permit);
        });
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    // What has not ended by then is dropped with the set.
    let _ = tokio::time::timeout(STOP_GRACE, all_ended).await;
}

//! HTTP as a tenant's program speaks it: one connection a request, and an end to patience.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use turmoil::net::TcpStream;

/// How long a client waits for a whole answer. Longer than any limit of a gateway.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection could not be made, or broke.
    Connection,
    /// Nothing came within [`PATIENCE`].
    Silence,
}

/// An answer as it comes.
pub(crate) struct Answer {
    /// HTTP's.
    pub(crate) status: u16,
    /// HTTP's.
    pub(crate) headers: http::HeaderMap,
    body: Incoming,
    deadline: Instant,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    /// HTTP's.
    pub(crate) status: u16,
    /// HTTP's.
    pub(crate) headers: http::HeaderMap,
    /// Null if it is no JSON.
    pub(crate) json: Value,
}

/// Sends a request, and waits for the head of its answer.
///
/// # Errors
/// [`Broken`]
pub(crate) async fn open(
    host: &str,
    port: u16,
    request: http::request::Builder,
    body: Bytes,
) -> Result<Answer, Broken> {
    let deadline = Instant::now() + PATIENCE;
    let request = request.header("host", host).body(Full::new(body)).expect("requests are built of plain text");
    let exchange = async {
        let stream = TcpStream::connect((host, port)).await.map_err(|_| Broken::Connection)?;
        let connection = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connection.map_err(|_| Broken::Connection)?;
        // Ends with the sender and the body.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|_| Broken::Connection)
    };
    let answer = timeout_at(deadline, exchange).await.map_err(|_| Broken::Silence)??;
    let (head, body) = answer.into_parts();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, deadline })
}

impl Answer {
    /// The next piece of the body; none at its proper end.
    ///
    /// # Errors
    /// [`Broken`]
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            let frame = timeout_at(self.deadline, self.body.frame()).await.map_err(|_| Broken::Silence)?;
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(Broken::Connection),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`Broken`]
    pub(crate) async fn whole(mut self) -> Result<Whole, Broken> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        let json = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Whole { status: self.status, headers: self.headers, json })
    }
}

/// Sends a request with a JSON body (null: none) and waits for the whole answer.
///
/// # Errors
/// [`Broken`]
pub(crate) async fn call(
    host: &str,
    port: u16,
    method: &str,
    path: &str,
    key: &str,
    body: &Value,
) -> Result<Whole, Broken> {
    let request = http::Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
    let request = request.header("content-type", "application/json");
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    open(host, port, request, body).await?.whole().await
}

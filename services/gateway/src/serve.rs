//! Connections: how many, how long a client may take for its headers or to read its answer, and how they end.

use crate::http::Peer;
use crate::metrics::Metrics;
use axum::Router;
use futures::StreamExt;
use http::{HeaderValue, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep};
use tower::ServiceExt;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Connection, Listener};

/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How long a connection over the limit may take to read its refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Refusals told at once; beyond these, connections are closed without a word.
const REFUSALS_MAX: usize = 64;
/// Pause after an error of accept itself: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that were made before the listener closes are still taken, until none has come for so long, ...
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);
/// ... or for so long at most: closing it resets those that wait to be accepted.
const BACKLOG_MAX: Duration = Duration::from_millis(250);
/// Most that an idle connection outlives the listener, so that requests which are on their way then find it.
const LINGER_MAX: Duration = Duration::from_secs(1);

const REFUSAL_BODY: &str =
    r#"{"error":{"message":"too many connections","type":"server_error","param":null,"code":"too_many_connections"}}"#;

/// Limits of one listener.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) connections_max: usize,
    pub(crate) header_bytes_max: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) write_stall: Duration,
    pub(crate) grace: Duration,
    /// How long idle connections stay after the listener has closed; more than [`LINGER_MAX`] is that.
    pub(crate) linger: Duration,
}

/// When a listener ends.
#[derive(Clone)]
pub(crate) struct Ending {
    /// From here on each answer asks its client to close the connection, so that the next request finds another gateway.
    pub(crate) draining: Shutdown,
    /// From here on no connection is accepted, and idle ones close a little later.
    pub(crate) closing: Shutdown,
}

/// Serves until it is to close; then answers have `grace` to finish. `refusal_headers` gives the lines of headers that a refusal of a whole connection has besides its own.
pub(crate) async fn serve(
    name: &'static str,
    listener: Listener,
    router: Router,
    bounds: Bounds,
    metrics: &Metrics,
    ending: &Ending,
    refusal_headers: impl Fn() -> String,
) {
    let mut incoming = listener.incoming();
    let open = metrics.connections.with_label_values(&[name]);
    let refused = metrics.connections_refused.with_label_values(&[name]);
    let room = Arc::new(Semaphore::new(bounds.connections_max.min(Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    let mut closes_by = None;
    while closes_by.is_none_or(|by| Instant::now() < by) {
        let accepted = tokio::select! {
            biased;
            () = ending.closing.wait(), if closes_by.is_none() => {
                closes_by = Some(Instant::now() + BACKLOG_MAX);
                continue;
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = incoming.next() => accepted,
            () = sleep(BACKLOG_PAUSE), if closes_by.is_some() => break,
        };
        let connection = match accepted {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => {
                tracing::warn!(listener = name, %error, "cannot accept");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
            None => break,
        };
        if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
            let (router, ending, open) = (router.clone(), ending.clone(), open.clone());
            connections.spawn(async move {
                let _permit = permit;
                open.inc();
                serve_one(connection, router, bounds, ending).await;
                open.dec();
            });
        } else {
            refused.inc();
            if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                let headers = refusal_headers();
                connections.spawn(async move {
                    let _permit = permit;
                    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(connection, &headers)).await;
                });
            }
        }
    }
    drop(incoming);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(bounds.grace, finished).await.is_err() {
        tracing::warn!(
            listener = name,
            grace_s = bounds.grace.as_secs(),
            "answers did not finish in time and are cut off"
        );
    }
    // Dropping the set ends what is left.
}

async fn serve_one(connection: Connection, router: Router, bounds: Bounds, ending: Ending) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_buf_size(bounds.header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(bounds.header_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let peer = Peer(connection.peer());
    let draining = ending.draining;
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        let (router, draining) = (router.clone(), draining.clone());
        // Later versions have a way of their own to say so, and no such header.
        let says_close = request.version() < http::Version::HTTP_2;
        async move {
            let mut response = router.oneshot(request).await?;
            if says_close && draining.is_triggered() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let io = TokioIo::new(StallGuard::new(connection, &bounds));
    let mut serving = std::pin::pin!(builder.serve_connection(io, TowerToHyperService::new(service)));
    let over = async {
        ending.closing.wait().await;
        tokio::time::sleep(bounds.linger.min(LINGER_MAX)).await;
    };
    let ended = tokio::select! {
        // What has arrived is read before the connection is closed as idle.
        biased;
        ended = serving.as_mut() => ended,
        () = over => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients hang up all the time; this is not worth more.
        tracing::debug!(%error, "connection ended");
    }
}

/// Says that there is no room, as plain HTTP/1.1, and waits for the client to have read it.
async fn refuse(mut connection: Connection, headers: &str) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\nretry-after-ms: 1000\r\n{headers}connection: close\r\n\r\n{REFUSAL_BODY}",
        REFUSAL_BODY.len()
    );
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await?;
    // Closing with unread bytes would reset the connection under the answer.
    let mut unread = [0; 4096];
    while connection.read(&mut unread).await? > 0 {}
    Ok(())
}

/// What HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client that has not yet shown which HTTP it speaks. The HTTP library's own clocks begin after that.
struct Greeting {
    /// Bytes of the preface that came.
    heard: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Greeting {
    /// Whether the version is clear with these bytes. They are the end of what there is as well.
    fn is_over(&mut self, bytes: &[u8]) -> bool {
        let expected = &PREFACE[self.heard..];
        let same = bytes.iter().zip(expected).take_while(|(byte, expected)| byte == expected).count();
        self.heard += same;
        bytes.is_empty() || same < bytes.len() || self.heard == PREFACE.len()
    }
}

/// Fails a write that makes no progress for too long: a client that does not read must not hold its answer's KV for ever. And a
/// connection that does not begin: it must not hold a place.
struct StallGuard {
    io: Connection,
    limit: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    greeting: Option<Greeting>,
}

impl StallGuard {
    fn new(io: Connection, bounds: &Bounds) -> Self {
        let deadline = Box::pin(sleep(bounds.header_timeout));
        Self { io, limit: bounds.write_stall, stalled: None, greeting: Some(Greeting { heard: 0, deadline }) }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let Some(greeting) = &mut self.greeting else { return read };
        if read.is_ready() {
            if greeting.is_over(&buf.filled()[before..]) {
                self.greeting = None;
            }
        } else if greeting.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")));
        }
        read
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.io).poll_shutdown(cx);
        self.watch(cx, progress)
    }
}

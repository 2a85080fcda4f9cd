//! The SDK's HTTP over connections that somebody else makes: a network that is not this machine's.

use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::shared::IntoShared;
use futures::future::BoxFuture;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// As the SDK's own client.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A connection, whatever carries it.
trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// Makes connections to `host:port`.
type Dial = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Wire>> + Send + Sync>;

/// A client of the SDK whose connections to `host:port` are made by `dial`, within `connect_timeout`. It keeps them as the SDK's own does.
pub(super) fn http_client<F, I>(
    dial: impl Fn(String) -> F + Send + Sync + 'static,
    connect_timeout: Duration,
) -> SharedHttpClient
where
    F: Future<Output = io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let dial: Dial = Arc::new(move |address| {
        let dialled = timeout(connect_timeout, dial(address));
        Box::pin(async move {
            let io = dialled.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            Ok(Wire(TokioIo::new(Box::new(io))))
        })
    });
    let connect = tower::service_fn(move |uri: http::Uri| {
        let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        dial(address)
    });
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build::<_, SdkBody>(connect);
    let connector: SharedHttpConnector = Carried(Arc::new(move |request| {
        let answer = client.request(request);
        Box::pin(async move {
            // A connection that could not be made, or that broke: worth another try, as with the SDK's own client.
            let answer = answer.await.map_err(|error| ConnectorError::io(Box::new(error)))?;
            let answer = answer.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }))
    .into_shared();
    http_client_fn(move |_, _| connector.clone())
}

type Answer = BoxFuture<'static, Result<HttpResponse, ConnectorError>>;

struct Carried(Arc<dyn Fn(http::Request<SdkBody>) -> Answer + Send + Sync>);

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Carried")
    }
}

impl HttpConnector for Carried {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match request.try_into_http1x() {
            Ok(request) => HttpConnectorFuture::new((self.0)(request)),
            Err(error) => HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        }
    }
}

struct Wire(TokioIo<Box<dyn Io>>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

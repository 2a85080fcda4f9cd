//! Around every request, whoever answers it: its id, what is known of the bytes that answer, and the rest of its body.
//!
//! The headers of an answer are the same on success and on failure: a stage that learns something tells [`Known`], and
//! whatever answer comes out at the end carries it.

use super::body;
use super::put;
use super::standing;
use crate::app::Gateway;
use crate::resolve::Resolved;
use crate::workers::Base;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use weft_limits::Standing;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
pub(super) const ADAPTER: &str = "x-weft-adapter";
pub(super) const ADAPTER_DIGEST: &str = "x-weft-adapter-digest";
/// Of a merge made at request time.
pub(super) const RECIPE_DIGEST: &str = "x-weft-recipe-digest";
pub(super) const BASE_DIGEST: &str = "x-weft-base-digest";
pub(super) const WORKER: &str = "x-weft-worker";
/// What feedback about the answer names.
pub(super) const RESPONSE_ID: &str = "x-weft-response-id";
/// `experiment/arm`, where the request is of an experiment.
pub(super) const EXPERIMENT: &str = "x-weft-experiment";
/// In a request: whose requests get the same arm of an experiment.
pub(super) const SESSION: &str = "x-weft-session";
/// Microseconds until the answer's adapter was resident; 0 if it was.
pub(super) const ADAPTER_WAIT_US: &str = "x-weft-adapter-wait-us";

/// The id of a request: the client's if it is short and plain, else ours.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// What is known so far of who answers a request. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<Mutex<HeaderMap>>);

impl Known {
    /// Of the request with these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    fn headers(&self) -> MutexGuard<'_, HeaderMap> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The base that would answer.
    pub(super) fn base(&self, base: &Base) {
        put(&mut self.headers(), BASE_DIGEST, &base.digest.to_string());
    }

    /// What the request's model name came to.
    pub(super) fn resolved(&self, tenant: &str, resolved: &Resolved) {
        let mut headers = self.headers();
        put(&mut headers, ADAPTER, &resolved.label(tenant));
        if let Some(digest) = resolved.digest() {
            put(&mut headers, ADAPTER_DIGEST, &digest.to_string());
        }
        if let Resolved::Adapter { name, .. } = resolved
            && let Some(recipe) = weft_types::recipe_of(name)
        {
            put(&mut headers, RECIPE_DIGEST, &recipe.to_string());
        }
    }

    /// What the answer is called.
    pub(super) fn response_id(&self, id: &str) {
        put(&mut self.headers(), RESPONSE_ID, id);
    }

    /// Which arm of which experiment answers.
    pub(super) fn experiment(&self, label: &str) {
        put(&mut self.headers(), EXPERIMENT, label);
    }

    /// What is left of the limits.
    pub(super) fn standing(&self, standing: &Standing) {
        standing::put(&mut self.headers(), standing);
    }

    /// The worker that was asked last.
    pub(crate) fn worker(&self, name: &str) {
        put(&mut self.headers(), WORKER, name);
    }
}

/// Gives a request its id, and its answer the headers that every answer has. What the answer left unread of the body is
/// read and dropped first, so that a client that is still sending gets to read the answer instead of a reset.
pub(super) async fn identify(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable =
        |id: &&str| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(|b| b.is_ascii_graphic());
    let id = given.filter(usable).map_or_else(new_id, ToOwned::to_owned);
    let known = Known::default();
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(known.clone());
    let (request, unread) = watched(request);

    let mut response = next.run(request).await;
    if let Some(rest) = unread.and_then(|mut unread| unread.try_recv().ok())
        && response.status() != StatusCode::REQUEST_TIMEOUT
    {
        body::drain(rest).await;
    }
    let headers = response.headers_mut();
    for (name, value) in known.headers().iter() {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    for (name, value) in &unasked(&gateway) {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

fn new_id() -> String {
    format!("req_{}", uuid::Uuid::now_v7().simple())
}

/// What every answer carries, even one for which no request was read.
fn unasked(gateway: &Gateway) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(base) = gateway.mesh.pool.base() {
        put(&mut headers, BASE_DIGEST, &base.digest.to_string());
    }
    headers
}

/// The same as lines of HTTP/1.1, with an id.
pub(crate) fn unasked_lines(gateway: &Gateway) -> String {
    let mut lines = format!("{REQUEST_ID}: {}\r\n", new_id());
    for (name, value) in &unasked(gateway) {
        lines.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    lines
}

/// The request with a body whose unread rest comes back when it is dropped.
fn watched(request: Request) -> (Request, Option<oneshot::Receiver<Body>>) {
    if request.body().is_end_stream() {
        return (request, None);
    }
    let (sender, receiver) = oneshot::channel();
    // Who asks "may I send?" and hears no does not send.
    let asks = request.headers().contains_key(header::EXPECT);
    let request = request.map(|body| Body::new(Watched { body, sends: !asks, rest: Some(sender), ended: false }));
    (request, Some(receiver))
}

/// A body that gives back what its reader did not read.
struct Watched {
    body: Body,
    /// The client sends without having been asked to, or was asked.
    sends: bool,
    ended: bool,
    rest: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.sends = true;
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take().filter(|_| self.sends && !self.ended && !self.body.is_end_stream()) {
            // An error means that the answer is out already.
            let _ = rest.send(std::mem::take(&mut self.body));
        }
    }
}

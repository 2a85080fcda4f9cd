//! Server-sent events: pieces of one or more generations, as events of a dialect, in the order in which they come.

use crate::generate::{Generation, Piece};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use weft_fault::Fault;

/// A comment goes out when nothing else did for this long, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A dialect's way to write a stream.
pub(crate) trait Dialect: Send + 'static {
    /// Before the first piece.
    fn open(&mut self, out: &mut VecDeque<Event>);
    /// One piece of answer `index`.
    fn piece(&mut self, index: usize, piece: Piece, out: &mut VecDeque<Event>);
    /// After all answers are finished.
    fn close(&mut self, out: &mut VecDeque<Event>);
    /// Instead of everything that would still come.
    fn fault(&mut self, fault: &Fault, out: &mut VecDeque<Event>);
}

/// A JSON event: exactly one `data:` line.
pub(crate) fn json_event<T: Serialize>(value: &T) -> Event {
    // Only maps with keys that are no strings fail, and no answer has one.
    Event::default().data(serde_json::to_string(value).expect("answers serialize"))
}

type Pieces = BoxStream<'static, (usize, Result<Piece, Fault>)>;

/// The pieces of one generation. Dropping the stream cancels the generation.
fn pieces(index: usize, generation: Generation) -> Pieces {
    stream::unfold(Some(generation), move |generation| async move {
        let mut generation = generation?;
        match generation.next().await {
            Ok(Some(piece)) => Some(((index, Ok(piece)), Some(generation))),
            Ok(None) => None,
            Err(fault) => Some(((index, Err(fault)), None)),
        }
    })
    .boxed()
}

struct Running<D, G> {
    merged: stream::SelectAll<Pieces>,
    dialect: D,
    out: VecDeque<Event>,
    ended: bool,
    _guard: G,
}

/// Events of all these generations. `guard` is dropped with the stream.
pub(crate) fn events<D: Dialect, G: Send + 'static>(
    generations: Vec<Generation>,
    mut dialect: D,
    guard: G,
) -> impl Stream<Item = Event> + Send + 'static {
    let merged = stream::select_all(generations.into_iter().enumerate().map(|(index, one)| pieces(index, one)));
    let mut out = VecDeque::new();
    dialect.open(&mut out);
    let running = Running { merged, dialect, out, ended: false, _guard: guard };
    stream::unfold(running, |mut running| async move {
        loop {
            if let Some(event) = running.out.pop_front() {
                return Some((event, running));
            }
            if running.ended {
                return None;
            }
            match running.merged.next().await {
                Some((index, Ok(piece))) => running.dialect.piece(index, piece, &mut running.out),
                Some((_, Err(fault))) => {
                    running.dialect.fault(&fault, &mut running.out);
                    running.merged.clear();
                    running.ended = true;
                }
                None => {
                    running.dialect.close(&mut running.out);
                    running.ended = true;
                }
            }
        }
    })
}

/// The client left its answer unread.
#[derive(Debug, thiserror::Error)]
#[error("the client does not read its answer")]
struct Unread;

/// Asks for events by itself. A connection of HTTP/2 whose window is shut asks for nothing: nobody would look at the request's clock, and
/// what it holds, here and at the worker, would be held for as long as the connection.
fn driven(
    events: impl Stream<Item = Event> + Send + 'static,
    stall: Duration,
) -> impl Stream<Item = Result<Event, Unread>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(1);
    let is_unread = Arc::new(AtomicBool::new(false));
    let says_unread = Arc::clone(&is_unread);
    tokio::spawn(async move {
        let mut events = Box::pin(events);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sender.closed() => None,
            };
            let Some(event) = event else { break };
            match tokio::time::timeout(stall, sender.send(event)).await {
                Ok(Ok(())) => {}
                // It hung up.
                Ok(Err(_)) => break,
                Err(_) => {
                    says_unread.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        // What the answer held is given back before its end is seen.
        drop(events);
        drop(sender);
    });
    stream::unfold((receiver, is_unread), |(mut receiver, is_unread)| async move {
        match receiver.recv().await {
            Some(event) => Some((Ok(event), (receiver, is_unread))),
            // Once: without the flag the next look finds the end.
            None => is_unread.swap(false, Ordering::Relaxed).then(|| (Err(Unread), (receiver, is_unread))),
        }
    })
}

/// An HTTP answer of these events. A client that takes none for `stall` gets no more, and its answer ends.
pub(crate) fn response(events: impl Stream<Item = Event> + Send + 'static, stall: Duration) -> Response {
    let sse = Sse::new(driven(events, stall)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = sse.into_response();
    // nginx and others would collect the stream otherwise.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

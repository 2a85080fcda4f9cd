//! Graphs: work that was enqueued once, to be replayed by one call.

use crate::device::Inner;
use crate::driver::{GraphId, StreamId};
use crate::error::Error;
use crate::memory::{Buffer, Pinned};
use crate::record::{Counts, Kind, Record};
use crate::stream::{State, Stream, never_recorded};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What becomes a graph.
#[derive(Debug)]
pub(crate) struct Capture {
    number: u64,
    streams: BTreeSet<StreamId>,
    records: Vec<Record>,
    kept: Kept,
}

/// What a graph names, and so keeps.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) pinned: Vec<Pinned>,
}

/// Captured work. Clones are the same graph.
///
/// Replay it on the stream that was captured, or order the two: products keep the workspace of the stream that they were captured on.
#[derive(Clone, Debug)]
pub struct Graph(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    device: Arc<Inner>,
    id: GraphId,
    records: Vec<Record>,
    // Held, not read.
    _kept: Kept,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.device.driver.drop_graph(self.id);
    }
}

impl Graph {
    /// Its operations, in the order in which they were captured, with the counts that were stated then.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.0.records
    }

    /// Enqueues all of it. Replays of one graph run one after the other.
    ///
    /// # Errors
    ///
    /// On another device's stream or one in a capture; what the driver says.
    pub fn replay(&self, stream: &Stream) -> Result<(), Error> {
        self.replay_as(stream, self.0.records.iter().map(|record| record.counts))
    }

    /// As [`Graph::replay`]; `counts` says what each operation costs this time, since tables may name other work than when it was captured.
    ///
    /// # Errors
    ///
    /// When there are not as many counts as operations; as [`Graph::replay`].
    pub fn replay_counting(&self, stream: &Stream, counts: &[Counts]) -> Result<(), Error> {
        if counts.len() != self.0.records.len() {
            let limit = format!("{}, one for each operation", self.0.records.len());
            return Err(Error::value("graph", "counts", counts.len(), limit));
        }
        self.replay_as(stream, counts.iter().copied())
    }

    fn replay_as(&self, stream: &Stream, counts: impl Iterator<Item = Counts>) -> Result<(), Error> {
        let device = &self.0.device;
        stream.same_device(stream.is_of(device))?;
        if capture_of(device, stream.id()).is_some() {
            return Err(Error::Capture("a graph within a graph".into()));
        }
        device.driver.replay(self.0.id, stream.id())?;
        if device.recorder.is_on() {
            let stream = stream.name().to_owned();
            let call = Record { kind: Kind::Replay, stream, counts: Counts::default(), in_graph: false };
            let operations =
                self.0.records.iter().zip(counts).map(|(record, counts)| Record { counts, ..record.clone() });
            device.recorder.extend(std::iter::once(call).chain(operations));
        }
        Ok(())
    }
}

pub(crate) fn capture(
    device: &Arc<Inner>,
    stream: StreamId,
    body: impl FnOnce() -> Result<(), Error>,
) -> Result<Graph, Error> {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    {
        let mut capture = device.capture.lock().expect("no panic while it is held");
        if capture.is_some() {
            return Err(Error::Capture("another one is under way on this device".into()));
        }
        device.driver.begin_capture(stream)?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let streams = BTreeSet::from([stream]);
        *capture = Some(Capture { number, streams, records: Vec::new(), kept: Kept::default() });
    }
    let ending = Ending { device, stream };
    let result = body();
    let (graph, capture) = ending.end();
    // Dropped, and so destroyed, when the body failed.
    let graph = graph.map(|id| {
        let Capture { records, kept, .. } = capture;
        Graph(Arc::new(Owned { device: Arc::clone(device), id, records, _kept: kept }))
    });
    result?;
    graph
}

/// Ends the capture also when its body panics.
struct Ending<'a> {
    device: &'a Arc<Inner>,
    stream: StreamId,
}

impl Ending<'_> {
    fn end(self) -> (Result<GraphId, Error>, Capture) {
        let ended = self.take();
        std::mem::forget(self);
        ended
    }

    fn take(&self) -> (Result<GraphId, Error>, Capture) {
        let graph = self.device.driver.end_capture(self.stream);
        let capture = self.device.capture.lock().expect("no panic while it is held").take();
        (graph, capture.expect("only this ends it"))
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let (Ok(graph), _) = self.take() {
            self.device.driver.drop_graph(graph);
        }
    }
}

/// The number of the capture that the stream is in.
pub(crate) fn capture_of(device: &Inner, stream: StreamId) -> Option<u64> {
    let capture = device.capture.lock().expect("no panic while it is held");
    capture.as_ref().filter(|capture| capture.streams.contains(&stream)).map(|capture| capture.number)
}

/// Whether the stream may wait for an event that was recorded there. If that is in the capture, so is the stream from now on.
pub(crate) fn may_wait(device: &Inner, stream: StreamId, name: &str, event: State) -> Result<(), Error> {
    let mut capture = device.capture.lock().expect("no panic while it is held");
    let current = capture.as_mut();
    let is_inside = current.as_ref().is_some_and(|capture| capture.streams.contains(&stream));
    match event {
        State::Nowhere => Err(never_recorded()),
        State::Outside if is_inside => {
            Err(Error::Capture(format!("stream {name} waits for an event that was recorded outside of it")))
        }
        State::Outside => Ok(()),
        State::Inside(number) => match current.filter(|capture| capture.number == number) {
            Some(capture) => {
                capture.streams.insert(stream);
                Ok(())
            }
            None => Err(Error::Capture(format!("stream {name} waits for an event of a capture that is over"))),
        },
    }
}

/// Gives an operation that was enqueued to the capture of its stream, or else to the records.
pub(crate) fn note(
    device: &Inner,
    stream: StreamId,
    record: impl FnOnce(bool) -> Record,
    keep: impl FnOnce(&mut Kept),
) {
    let mut capture = device.capture.lock().expect("no panic while it is held");
    if let Some(capture) = capture.as_mut().filter(|capture| capture.streams.contains(&stream)) {
        capture.records.push(record(true));
        keep(&mut capture.kept);
    } else if device.recorder.is_on() {
        device.recorder.extend([record(false)]);
    }
}

//! Streams and events: what is enqueued, and what orders it.

use crate::device::Inner;
use crate::driver::{self, Direction, EventId, Operation, StreamId};
use crate::error::Error;
use crate::graph::{self, Graph, Kept};
use crate::launch::Launch;
use crate::matmul::Matmul;
use crate::memory::{Buffer, Pinned, View, within};
use crate::record::{Counts, Kind, Record};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// A queue of work: one thing after the other, in no order with other streams but that of events. Clones are the same stream.
///
/// No call waits for the work that it enqueues; an error of that work comes from a later call. While a stream is in a capture
/// ([`Stream::capture`]), nothing runs.
#[derive(Clone, Debug)]
pub struct Stream(Arc<StreamInner>);

#[derive(Debug)]
struct StreamInner {
    device: Arc<Inner>,
    id: StreamId,
    name: String,
    /// For products; allocated by the first one.
    workspace: Mutex<Option<Buffer>>,
}

impl Drop for StreamInner {
    fn drop(&mut self) {
        self.device.driver.drop_stream(self.id);
    }
}

impl Stream {
    pub(crate) fn new(device: &Arc<Inner>, name: &str) -> Result<Self, Error> {
        let id = device.driver.new_stream(name)?;
        let device = Arc::clone(device);
        Ok(Self(Arc::new(StreamInner { device, id, name: name.to_owned(), workspace: Mutex::new(None) })))
    }

    /// As it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::NoKernel`]; a shape that the kernel or the device cannot take, arguments that are not its parameters'; what the driver says.
    ///
    /// # Safety
    ///
    /// With these arguments the kernel touches nothing but the views of the launch, and only reads those that say so. (The shim holds it
    /// to that; a device does not.) Those views outlive the work, or what gets their memory next comes after it.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        let kernel = self.0.device.kernel(launch.kernel)?;
        let operation = launch.checked(kernel, &self.0.device)?;
        let kind = || Kind::Launch {
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
        };
        let keep = |kept: &mut Kept| kept.buffers.extend(launch.accesses().map(|access| access.view.buffer.clone()));
        self.enqueue(Operation::Launch(operation), kind, launch.counts, keep)
    }

    /// Multiplies.
    ///
    /// # Errors
    ///
    /// Shapes, strides or types that do not fit; [`Error::OutOfMemory`] for the workspace of the first product of a stream; what the driver says.
    pub fn matmul(&self, matmul: &Matmul<'_>) -> Result<(), Error> {
        let workspace = self.workspace()?;
        let operation = matmul.checked(&workspace, &self.0.device)?;
        let kind = || Kind::Matmul { rows: matmul.rows, inputs: matmul.inputs, outputs: matmul.outputs };
        let keep = |kept: &mut Kept| {
            let buffers = [matmul.x.buffer, matmul.w.buffer, matmul.out.buffer, &workspace];
            kept.buffers.extend(buffers.into_iter().cloned());
        };
        self.enqueue(Operation::Matmul(operation), kind, matmul.counts(), keep)
    }

    /// Takes the memory that products on this stream need beside their matrices; else the first one does.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn prepare_products(&self) -> Result<(), Error> {
        self.workspace().map(drop)
    }

    fn workspace(&self) -> Result<Buffer, Error> {
        let mut workspace = self.0.workspace.lock().expect("no panic while it is held");
        if let Some(workspace) = &*workspace {
            return Ok(workspace.clone());
        }
        let made = Buffer::allocate(&self.0.device, self.0.device.driver.properties().workspace_bytes)?;
        Ok(workspace.insert(made).clone())
    }

    /// Copies bytes `range` of pinned memory to the device.
    ///
    /// # Errors
    ///
    /// When the two are not of one size, or what the driver says.
    pub fn upload(&self, from: &Pinned, range: Range<usize>, to: View<'_>) -> Result<(), Error> {
        self.copy_pinned(Direction::Upload, from, range, to)
    }

    /// Copies from the device to bytes `range` of pinned memory.
    ///
    /// # Errors
    ///
    /// As [`Stream::upload`].
    pub fn download(&self, from: View<'_>, to: &Pinned, range: Range<usize>) -> Result<(), Error> {
        self.copy_pinned(Direction::Download, to, range, from)
    }

    fn copy_pinned(
        &self,
        direction: Direction,
        pinned: &Pinned,
        range: Range<usize>,
        view: View<'_>,
    ) -> Result<(), Error> {
        within("copy", &range, pinned.bytes())?;
        same_size(range.len(), view.bytes())?;
        self.same_device(pinned.is_of(&self.0.device) && view.buffer.is_of(&self.0.device))?;
        let (host, device) = (pinned.range(range).start, view.address());
        let (from, to) = if direction == Direction::Upload { (host, device) } else { (device, host) };
        let keep = |kept: &mut Kept| {
            kept.buffers.push(view.buffer.clone());
            kept.pinned.push(pinned.clone());
        };
        self.copy_bytes(driver::Copy { direction, from, to, bytes: view.bytes() }, keep)
    }

    /// Copies within the device.
    ///
    /// # Errors
    ///
    /// When the two are not of one size, or overlap; or what the driver says.
    pub fn copy(&self, from: View<'_>, to: View<'_>) -> Result<(), Error> {
        same_size(from.bytes(), to.bytes())?;
        self.same_device(from.buffer.is_of(&self.0.device) && to.buffer.is_of(&self.0.device))?;
        let (read, written) = (from.range(), to.range());
        if read.start < written.end && written.start < read.end {
            return Err(Error::value("copy", "to", format!("{written:#x?}"), format!("apart from {read:#x?}")));
        }
        let keep = |kept: &mut Kept| kept.buffers.extend([from.buffer.clone(), to.buffer.clone()]);
        let copy =
            driver::Copy { direction: Direction::Within, from: read.start, to: written.start, bytes: from.bytes() };
        self.copy_bytes(copy, keep)
    }

    fn copy_bytes(&self, copy: driver::Copy, keep: impl FnOnce(&mut Kept)) -> Result<(), Error> {
        if copy.bytes == 0 {
            return Ok(());
        }
        let (direction, bytes) = (copy.direction, copy.bytes as u64);
        let counts = Counts {
            read_bytes: if direction == Direction::Upload { 0 } else { bytes },
            written_bytes: if direction == Direction::Download { 0 } else { bytes },
            operations: 0,
        };
        self.enqueue(Operation::Copy(copy), || Kind::Copy(direction), counts, keep)
    }

    /// Makes all bytes of a view equal to `byte`.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn fill(&self, to: View<'_>, byte: u8) -> Result<(), Error> {
        if to.bytes() == 0 {
            return Ok(());
        }
        self.same_device(to.buffer.is_of(&self.0.device))?;
        let counts = Counts { written_bytes: to.bytes() as u64, ..Counts::default() };
        let fill = Operation::Fill { to: to.address(), bytes: to.bytes(), byte };
        self.enqueue(fill, || Kind::Fill, counts, |kept| kept.buffers.push(to.buffer.clone()))
    }

    /// Lets the event stand for all that was enqueued here so far; what it stood for before is forgotten.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        self.same_device(event.is_of(&self.0.device))?;
        let capture = graph::capture_of(&self.0.device, self.0.id);
        self.0.device.driver.record(event.0.id, self.0.id)?;
        *event.state() = capture.map_or(State::Outside, State::Inside);
        Ok(())
    }

    /// Lets what is enqueued here from now on wait for the event. A wait within a capture brings this stream into it.
    ///
    /// # Errors
    ///
    /// When the event was not recorded, or not on the same side of a capture; what the driver says.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.same_device(event.is_of(&self.0.device))?;
        let state = *event.state();
        graph::may_wait(&self.0.device, self.0.id, &self.0.name, state)?;
        self.0.device.driver.wait(self.0.id, event.0.id)
    }

    /// Waits until all that was enqueued here is done.
    ///
    /// # Errors
    ///
    /// In a capture; when work has failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        if graph::capture_of(&self.0.device, self.0.id).is_some() {
            return Err(Error::Capture(format!("stream {} is not running: nothing to wait for", self.0.name)));
        }
        self.0.device.driver.synchronize(self.0.id)
    }

    /// Makes a graph of what `body` enqueues here, and on streams that wait for events of it. Nothing runs meanwhile. One capture at a time on a
    /// device; other streams go on working.
    ///
    /// Arguments are kept as they are; what lies in device memory and pinned memory is read by each replay anew. The graph keeps the
    /// buffers that its operations name, though not those that they reach through tables.
    ///
    /// # Errors
    ///
    /// What `body` returns; when another stream's work was not brought back here by an event; what the driver says.
    pub fn capture(&self, body: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        graph::capture(&self.0.device, self.0.id, body)
    }

    pub(crate) fn enqueue(
        &self,
        operation: Operation,
        kind: impl FnOnce() -> Kind,
        counts: Counts,
        keep: impl FnOnce(&mut Kept),
    ) -> Result<(), Error> {
        // SAFETY: the operation was made of views of this device's buffers; a kernel's caller vouches for what it touches.
        let enqueue = || unsafe { self.0.device.driver.enqueue(self.0.id, operation) };
        self.enqueue_by(enqueue, kind, counts, keep)
    }

    /// Enqueues by `enqueue`, and records it or gives it to the capture.
    pub(crate) fn enqueue_by(
        &self,
        enqueue: impl FnOnce() -> Result<(), Error>,
        kind: impl FnOnce() -> Kind,
        counts: Counts,
        keep: impl FnOnce(&mut Kept),
    ) -> Result<(), Error> {
        enqueue()?;
        let record = |in_graph| Record { kind: kind(), stream: self.0.name.clone(), counts, in_graph };
        graph::note(&self.0.device, self.0.id, record, keep);
        Ok(())
    }

    pub(crate) fn id(&self) -> StreamId {
        self.0.id
    }

    pub(crate) fn same_device(&self, is_same: bool) -> Result<(), Error> {
        if is_same {
            return Ok(());
        }
        Err(Error::value(format!("stream {}", self.0.name), "memory or event", "of another device", "of its device"))
    }

    pub(crate) fn is_of(&self, device: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0.device, device)
    }
}

fn same_size(from: usize, to: usize) -> Result<(), Error> {
    if from == to {
        return Ok(());
    }
    Err(Error::value("copy", "bytes", from, format!("{to}, as many as there is room for")))
}

/// A point in a stream. Clones are the same event.
#[derive(Clone, Debug)]
pub struct Event(Arc<EventInner>);

#[derive(Debug)]
struct EventInner {
    device: Arc<Inner>,
    id: EventId,
    state: Mutex<State>,
}

/// Where an event was recorded last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Nowhere,
    Outside,
    /// In the capture of this number.
    Inside(u64),
}

impl Drop for EventInner {
    fn drop(&mut self) {
        self.device.driver.drop_event(self.id);
    }
}

impl Event {
    pub(crate) fn new(device: &Arc<Inner>) -> Result<Self, Error> {
        let id = device.driver.new_event()?;
        Ok(Self(Arc::new(EventInner { device: Arc::clone(device), id, state: Mutex::new(State::Nowhere) })))
    }

    /// Waits until the work that the event stands for is done.
    ///
    /// # Errors
    ///
    /// When it was not recorded, or in a capture; when work has failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.happens()?;
        self.0.device.driver.synchronize_event(self.0.id)
    }

    /// Whether the work that the event stands for is done. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`Event::synchronize`].
    pub fn is_done(&self) -> Result<bool, Error> {
        self.happens()?;
        self.0.device.driver.is_done(self.0.id)
    }

    fn happens(&self) -> Result<(), Error> {
        match *self.state() {
            State::Outside => Ok(()),
            State::Nowhere => Err(never_recorded()),
            State::Inside(_) => {
                Err(Error::Capture("an event of a capture never happens: graphs have no events".into()))
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while it is held")
    }

    fn is_of(&self, device: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0.device, device)
    }
}

pub(crate) fn never_recorded() -> Error {
    Error::value("wait", "event", "recorded nowhere", "recorded before")
}

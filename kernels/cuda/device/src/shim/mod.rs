//! A driver on a processor: the kernels in the shim of `weft-cuda-kernels`, and streams that keep no order but the one that was asked for.
//!
//! What is enqueued waits until the host waits for something. Then work of all streams runs, one operation after the other, the next one drawn by a seed
//! from all that streams and events let run: right work gives the same result for every seed. Besides, each operation's memory is held
//! against that of all earlier ones by vector clocks, so that a missing event is found in every order, not only in one that goes wrong
//! ([`Error::Race`]). For kernels that reach memory through tables the bytes are those that they did touch.
//!
//! As on a device, failed work makes everything after it fail.

mod clock;
mod queue;
mod ranks;
mod run;
mod script;
mod shadow;

pub use ranks::{Rank, ranks};

use crate::driver::{Driver, EventId, GraphId, Kernel, Operation, Parameter, Properties, StreamId};
use crate::error::Error;
use queue::{HOST, Job, State};
use script::Script;
use shadow::{Label, Now};
use std::alloc::Layout;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use weft_cuda_kernels::within::{self, Touched};

/// Alignment of what a driver allocates.
const ALIGNMENT: usize = 256;

/// What the shim pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Draws the order of execution.
    pub seed: u64,
    /// Launches are shaped by it.
    pub multiprocessors: usize,
    /// Most that [`Driver::reserve`] gives.
    pub memory_bytes: usize,
    /// The operation that fails, counted from one as they are enqueued, to see what becomes of the caller. 0: none.
    pub fails_at: u64,
    /// Compute capability. It changes which kernels are asked for, not what they do here.
    pub capability: (i32, i32),
}

impl Default for Options {
    fn default() -> Self {
        let capability = crate::requirements::CAPABILITY;
        Self { seed: 0, multiprocessors: 8, memory_bytes: 1 << 30, fails_at: 0, capability }
    }
}

/// What a launch touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Its kernel.
    pub kernel: String,
    /// Different bytes of device memory that it read.
    pub read_bytes: u64,
    /// Different bytes of device memory that it wrote.
    pub written_bytes: u64,
    /// Which.
    pub touched: Vec<Touched>,
}

/// The driver on a processor.
#[derive(Debug)]
pub struct Shim {
    properties: Properties,
    state: Mutex<State>,
    regions: Mutex<HashMap<u64, Layout>>,
    handles: AtomicU64,
}

impl Shim {
    /// A device with nothing on it.
    #[must_use]
    pub fn new(options: &Options) -> Arc<Self> {
        let properties = Properties {
            name: "shim".to_owned(),
            capability: options.capability,
            multiprocessors: options.multiprocessors,
            memory_bytes: options.memory_bytes,
            // What shim.cpp takes.
            shared_bytes_max: 48 * 1024,
            threads_max: 1024,
            // Products do not need it. They are taken to write it, so that two at a time with one workspace are found.
            workspace_bytes: 256,
        };
        let state = Mutex::new(State::new(options.seed, options.fails_at));
        Arc::new(Self { properties, state, regions: Mutex::default(), handles: AtomicU64::new(0) })
    }

    /// Measures launches from now on.
    pub fn start_measuring(&self) {
        self.state().measured = Some(Vec::new());
    }

    /// The launches that ran since [`Shim::start_measuring`], in the order in which they ran. Under the address sanitizer nothing is measured.
    #[must_use]
    pub fn stop_measuring(&self) -> Vec<Measured> {
        self.state().measured.take().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    fn handle(&self) -> u64 {
        self.handles.fetch_add(1, Ordering::Relaxed)
    }

    fn enqueue_job(&self, stream: StreamId, job: Job) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        let stream = stream.0 as usize;
        let left = match &mut state.capture {
            Some(capture) => capture.enqueue(stream, job),
            None => Some(job),
        };
        if let Some(job) = left {
            state.enqueue(stream, job);
        }
        Ok(())
    }

    fn map(&self, memory: &'static str, bytes: usize, free: usize) -> Result<u64, Error> {
        let total = self.properties.memory_bytes;
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok().filter(|_| bytes > 0 && bytes <= free);
        let layout = layout.ok_or(Error::OutOfMemory { memory, asked: bytes, free, largest: free, total })?;
        // SAFETY: the size is not zero.
        let at = unsafe { std::alloc::alloc(layout) };
        if at.is_null() {
            return Err(Error::OutOfMemory { memory, asked: bytes, free, largest: free, total });
        }
        // SAFETY: it was just allocated, with this size. All bits set is NaN in every type: what nobody wrote shows.
        unsafe { std::ptr::write_bytes(at, 0xff, bytes) };
        let address = at.expose_provenance() as u64;
        self.regions.lock().expect("no panic while it is held").insert(address, layout);
        Ok(address)
    }

    fn unmap(&self, address: u64) {
        self.state().finish();
        let layout = self.regions.lock().expect("no panic while it is held").remove(&address);
        let layout = layout.expect("a region is given back once");
        // SAFETY: `map` allocated it with this layout; nothing runs any more that could use it.
        unsafe { std::alloc::dealloc(run::pointer(address), layout) };
    }
}

impl Driver for Shim {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_bytes(&self) -> Result<usize, Error> {
        let regions = self.regions.lock().expect("no panic while it is held");
        let used: usize = regions.values().map(Layout::size).sum();
        Ok(self.properties.memory_bytes.saturating_sub(used))
    }

    fn reserve(&self, bytes: usize) -> Result<u64, Error> {
        let free = self.free_bytes()?;
        self.map("device", bytes, free)
    }

    fn release(&self, address: u64) {
        self.unmap(address);
    }

    fn pin(&self, bytes: usize) -> Result<u64, Error> {
        self.map("pinned", bytes, isize::MAX as usize)
    }

    fn unpin(&self, address: u64) {
        self.unmap(address);
    }

    fn new_stream(&self, name: &str) -> Result<StreamId, Error> {
        Ok(StreamId(self.state().new_stream(name) as u64))
    }

    /// Streams are kept: clocks know them by number.
    fn drop_stream(&self, _: StreamId) {}

    fn new_event(&self) -> Result<EventId, Error> {
        Ok(EventId(self.handle()))
    }

    fn drop_event(&self, event: EventId) {
        self.state().events.remove(&event);
    }

    fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let parameters = within::parameters(name).ok_or_else(|| Error::NoKernel(name.to_owned()))?;
        let parameter =
            |of: &within::Parameter| Parameter { bytes: of.bytes as usize, is_pointer: Some(of.is_pointer()) };
        Ok(Kernel {
            name: name.to_owned(),
            handle: 0,
            parameters: parameters.iter().map(parameter).collect(),
            threads_max: self.properties.threads_max,
            static_shared_bytes: 0,
        })
    }

    unsafe fn enqueue(&self, stream: StreamId, operation: Operation) -> Result<(), Error> {
        self.enqueue_job(stream, Job::Operation(operation))
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        let stream = stream.0 as usize;
        let is_captured = state.capture.as_mut().is_some_and(|capture| capture.record(event, stream));
        if !is_captured {
            let point = state.point(stream);
            state.events.insert(event, point);
        }
        Ok(())
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        let stream = stream.0 as usize;
        let is_captured = state.capture.as_mut().is_some_and(|capture| capture.wait(stream, event));
        if !is_captured && let Some(point) = state.events.get(&event).cloned() {
            state.wait(stream, &point);
        }
        Ok(())
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), Error> {
        let mut state = self.state();
        let point = state.point(stream.0 as usize);
        state.reach(&point)
    }

    fn synchronize_event(&self, event: EventId) -> Result<(), Error> {
        let mut state = self.state();
        match state.events.get(&event).cloned() {
            Some(point) => state.reach(&point),
            None => state.check(),
        }
    }

    fn is_done(&self, event: EventId) -> Result<bool, Error> {
        let mut state = self.state();
        match state.events.get(&event).cloned() {
            Some(point) => state.look(&point),
            None => state.check().map(|()| true),
        }
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        state.capture = Some(Script::new(stream.0 as usize));
        Ok(())
    }

    fn end_capture(&self, _: StreamId) -> Result<GraphId, Error> {
        let mut state = self.state();
        let capture = state.capture.take().expect("a capture is begun before it ends");
        let graph = capture.end(&mut state)?;
        let id = GraphId(self.handle());
        state.graphs.insert(id, graph);
        Ok(id)
    }

    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        let mut replayable = state.graphs.remove(&graph).expect("a graph is replayed until it is dropped");
        replayable.replay(stream.0 as usize, &mut state);
        state.graphs.insert(graph, replayable);
        Ok(())
    }

    fn drop_graph(&self, graph: GraphId) {
        self.state().graphs.remove(&graph);
    }

    fn host_access(&self, at: Range<u64>, writes: bool) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        state.host.tick(HOST);
        let (clock, label) = (state.host.clone(), Arc::new(Label::Host));
        state.shadow.access(at, writes, Now { agent: HOST, clock: &clock, label: &label })
    }

    fn poison(&self, at: Range<u64>) {
        if self.state().is_idle() {
            // SAFETY: the range is of a buffer that was just made, in memory that `map` gave, and no work runs.
            unsafe { std::ptr::write_bytes(run::pointer(at.start), 0xff, (at.end - at.start) as usize) };
        }
    }
}

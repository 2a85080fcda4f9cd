//! The port: what a driver does for [`crate::Device`], which has checked everything before it asks.
//!
//! Addresses are numbers. What they point at belongs to the device, or, on the shim, to the process; nobody above the driver reads there.

use crate::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A stream of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// An event of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u64);

/// A graph of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GraphId(pub u64);

/// What the device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// All of its memory.
    pub memory_bytes: usize,
    /// Most shared memory of a block, static and dynamic.
    pub shared_bytes_max: usize,
    /// Most threads of a block.
    pub threads_max: u32,
    /// Memory that products of one stream need beside their matrices.
    pub workspace_bytes: usize,
}

/// A kernel that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As in its `.cu` file.
    pub name: String,
    /// The driver's own.
    pub handle: u64,
    /// What it takes, in order.
    pub parameters: Vec<Parameter>,
    /// Most threads of a block, by its registers and bounds.
    pub threads_max: u32,
    /// Shared memory that it has whatever the launch says.
    pub static_shared_bytes: usize,
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Size of the value.
    pub bytes: usize,
    /// Whether it is an address. A device does not say.
    pub is_pointer: Option<bool>,
}

/// Memory that an operation touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Addresses.
    pub at: Range<u64>,
    /// Writes, and perhaps reads. Otherwise only reads.
    pub writes: bool,
    /// Any part of it, to be found out; otherwise all of it.
    pub parts: bool,
}

/// Types of numbers that products and collectives know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
    /// 2 bytes.
    F16,
}

impl Type {
    /// Size of a number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Values of a launch's arguments, each at a multiple of 16 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    words: Vec<u128>,
    /// First word of each value.
    starts: Vec<usize>,
}

impl Values {
    /// Puts another value behind the others.
    pub(crate) fn push(&mut self, value: &[u8]) {
        self.starts.push(self.words.len());
        for piece in value.chunks(16) {
            let mut word = [0; 16];
            word[..piece.len()].copy_from_slice(piece);
            self.words.push(u128::from_ne_bytes(word));
        }
    }

    /// Pointers to the values, as launches take them; good until the values are changed or dropped.
    #[cfg(any(feature = "cuda", feature = "shim"))]
    pub(crate) fn pointers(&mut self) -> Vec<*mut std::ffi::c_void> {
        let Self { words, starts } = self;
        starts.iter().map(|start| std::ptr::from_mut(&mut words[*start]).cast()).collect()
    }
}

/// A kernel, its shape and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What to run.
    pub kernel: Arc<Kernel>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// As the kernel takes them.
    pub values: Values,
    /// All memory that it touches.
    pub touches: Vec<Touch>,
}

/// From where to where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Pinned to device.
    Upload,
    /// Device to pinned.
    Download,
    /// Within the device.
    Within,
}

/// Bytes to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// From where to where.
    pub direction: Direction,
    /// Address of the first to read.
    pub from: u64,
    /// Address of the first to write.
    pub to: u64,
    /// How many.
    pub bytes: usize,
}

/// `out [rows, outputs] = x [rows, inputs] w^T [outputs, inputs]`, or plus what `out` holds; all row-major, sums in f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matmul {
    /// Rows of x and out.
    pub rows: usize,
    /// Columns of x and w.
    pub inputs: usize,
    /// Rows of w, columns of out.
    pub outputs: usize,
    /// Address of x.
    pub x: u64,
    /// Elements from row to row.
    pub x_stride: usize,
    /// Address of w, whose rows have no gaps.
    pub w: u64,
    /// Of x and w.
    pub of: Type,
    /// Address of out.
    pub out: u64,
    /// Elements from row to row.
    pub out_stride: usize,
    /// As `of`, or f32.
    pub out_of: Type,
    /// Whether to add to what is there.
    pub adds: bool,
    /// Address of memory that no other product uses meanwhile.
    pub workspace: u64,
    /// Its size: [`Properties::workspace_bytes`].
    pub workspace_bytes: usize,
}

impl Matmul {
    /// All memory that it touches. Between rows it touches none: gaps are another's to use meanwhile.
    #[must_use]
    pub fn touches(&self) -> Vec<Touch> {
        let matrix = |at: u64, of: Type, [rows, stride, columns]: [usize; 3], writes: bool| {
            let (count, columns) = if stride == columns { (1, rows * columns) } else { (rows, columns) };
            (0..count).map(move |row| {
                let begin = at + (row * stride * of.bytes()) as u64;
                Touch { at: begin..begin + (columns * of.bytes()) as u64, writes, parts: false }
            })
        };
        let workspace = self.workspace..self.workspace + self.workspace_bytes as u64;
        matrix(self.x, self.of, [self.rows, self.x_stride, self.inputs], false)
            .chain(matrix(self.w, self.of, [self.outputs, self.inputs, self.inputs], false))
            .chain(matrix(self.out, self.out_of, [self.rows, self.out_stride, self.outputs], true))
            .chain([Touch { at: workspace, writes: true, parts: false }])
            .collect()
    }
}

/// What a stream does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Runs a kernel.
    Launch(Launch),
    /// Moves bytes.
    Copy(Copy),
    /// Makes bytes equal.
    Fill {
        /// Address of the first.
        to: u64,
        /// How many.
        bytes: usize,
        /// To what.
        byte: u8,
    },
    /// Multiplies.
    Matmul(Matmul),
}

/// A device, or the shim. Handles that it gives are used until they are dropped, once, and never after.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What the device is. Cost: none.
    fn properties(&self) -> &Properties;

    /// Allocates device memory, aligned to 256 bytes at least.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], or what the driver says.
    fn reserve(&self, bytes: usize) -> Result<u64, Error>;

    /// Frees what [`Driver::reserve`] gave, when all work is done.
    fn release(&self, address: u64);

    /// Allocates page-locked memory of this process, aligned to 256 bytes at least.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], or what the driver says.
    fn pin(&self, bytes: usize) -> Result<u64, Error>;

    /// Frees what [`Driver::pin`] gave, when all work is done.
    fn unpin(&self, address: u64);

    /// Makes a stream. The name is for messages.
    ///
    /// # Errors
    ///
    /// What the driver says.
    fn new_stream(&self, name: &str) -> Result<StreamId, Error>;

    /// What was enqueued still runs.
    fn drop_stream(&self, stream: StreamId);

    /// Makes an event.
    ///
    /// # Errors
    ///
    /// What the driver says.
    fn new_event(&self) -> Result<EventId, Error>;

    /// Waits that were enqueued stay.
    fn drop_event(&self, event: EventId);

    /// Finds a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::NoKernel`], or what the driver says.
    fn kernel(&self, name: &str) -> Result<Kernel, Error>;

    /// Puts an operation at the end of a stream, and does not wait for it.
    ///
    /// # Errors
    ///
    /// What the driver says; of this operation, or of earlier ones that failed meanwhile.
    ///
    /// # Safety
    ///
    /// Addresses are those of memory of this driver. A kernel does with its arguments no more than its touches say.
    unsafe fn enqueue(&self, stream: StreamId, operation: Operation) -> Result<(), Error>;

    /// Lets the event stand for all that was enqueued on the stream so far.
    ///
    /// # Errors
    ///
    /// As [`Driver::enqueue`].
    fn record(&self, event: EventId, stream: StreamId) -> Result<(), Error>;

    /// Lets what is enqueued on the stream from now on wait for the event, which was recorded.
    ///
    /// # Errors
    ///
    /// As [`Driver::enqueue`].
    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), Error>;

    /// Waits until the stream is empty.
    ///
    /// # Errors
    ///
    /// As [`Driver::enqueue`].
    fn synchronize(&self, stream: StreamId) -> Result<(), Error>;

    /// Waits for the event.
    ///
    /// # Errors
    ///
    /// As [`Driver::enqueue`].
    fn synchronize_event(&self, event: EventId) -> Result<(), Error>;

    /// Whether the event has happened. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`Driver::enqueue`].
    fn is_done(&self, event: EventId) -> Result<bool, Error>;

    /// From now on what is enqueued on the stream, and on others that wait for its events, becomes a graph instead. The thread is that of
    /// [`Driver::end_capture`].
    ///
    /// # Errors
    ///
    /// What the driver says.
    fn begin_capture(&self, stream: StreamId) -> Result<(), Error>;

    /// Ends what [`Driver::begin_capture`] began, also when it fails.
    ///
    /// # Errors
    ///
    /// When the work of another stream does not come back to this one, or what the driver says.
    fn end_capture(&self, stream: StreamId) -> Result<GraphId, Error>;

    /// Puts a graph at the end of a stream. Replays of one graph run one after the other.
    ///
    /// # Errors
    ///
    /// As [`Driver::enqueue`].
    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), Error>;

    /// Replays that were enqueued still run.
    fn drop_graph(&self, graph: GraphId);

    /// Says that this thread is about to read or write pinned memory.
    ///
    /// # Errors
    ///
    /// On the shim, work that failed meanwhile.
    fn host_access(&self, at: Range<u64>, writes: bool) -> Result<(), Error>;

    /// Whether all work is done and memory may be given other contents, for tests: what is allocated anew then holds NaN.
    fn poison(&self, at: Range<u64>) {
        let _ = at;
    }
}

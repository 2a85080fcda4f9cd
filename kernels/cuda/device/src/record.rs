//! What was enqueued, to be counted.

use crate::driver::Direction;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an operation costs, as its caller states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes that must come from device memory.
    pub read_bytes: u64,
    /// Bytes that go there.
    pub written_bytes: u64,
    /// Floating point operations; a multiplication with its addition is two.
    pub operations: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.operations += other.operations;
    }
}

/// What kind of operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A kernel.
    Launch {
        /// Its name.
        kernel: String,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        threads: u32,
        /// Dynamic shared memory.
        shared_bytes: usize,
    },
    /// Bytes moved.
    Copy(Direction),
    /// Bytes made equal.
    Fill,
    /// A product.
    Matmul {
        /// Rows of x.
        rows: usize,
        /// Columns of x.
        inputs: usize,
        /// Columns of the result.
        outputs: usize,
    },
    /// A sum over ranks.
    AllReduce,
    /// The values of all ranks.
    AllGather,
    /// The call that started a graph; its operations follow.
    Replay,
}

/// An operation that was enqueued, or replayed by a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which.
    pub kind: Kind,
    /// Name of its stream; in a graph, of the stream that was captured.
    pub stream: String,
    /// What it costs.
    pub counts: Counts,
    /// Part of a graph: no call of the host.
    pub in_graph: bool,
}

/// Off, unless somebody counts.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    is_on: AtomicBool,
    records: Mutex<Vec<Record>>,
}

impl Recorder {
    pub(crate) fn start(&self) {
        self.records.lock().expect("no panic while it is held").clear();
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) -> Vec<Record> {
        self.is_on.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.records.lock().expect("no panic while it is held"))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    pub(crate) fn extend(&self, records: impl IntoIterator<Item = Record>) {
        if self.is_on() {
            self.records.lock().expect("no panic while it is held").extend(records);
        }
    }
}

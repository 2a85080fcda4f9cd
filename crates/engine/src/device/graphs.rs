//! The captured decoding steps, and which of them are kept.

use std::collections::{HashMap, HashSet};
use weft_cuda_device::Graph;
use weft_cuda_kernels::table::Path;

/// Graphs that are kept. Each takes memory of the driver, some hundred bytes to some kilobytes for each of its launches.
const MOST: usize = 256;

/// Steps that one graph serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) rows: usize,
    /// Columns of its block tables: room for the longest context in the step.
    pub(crate) table_stride: usize,
    /// None: base rows alone, and no launch for adapters.
    pub(crate) adapters: Option<Path>,
    /// Whether one of them has magnitudes.
    pub(crate) has_dora: bool,
}

/// The last [`MOST`] that were used.
#[derive(Default)]
pub(crate) struct Graphs {
    graphs: HashMap<Bucket, Kept>,
    uses: u64,
    /// Could not be captured: those steps stay launches.
    refused: HashSet<Bucket>,
}

struct Kept {
    graph: Graph,
    last_use: u64,
}

impl Graphs {
    pub(crate) fn len(&self) -> usize {
        self.graphs.len()
    }

    /// Whether such a step is still to be captured.
    pub(crate) fn lack(&self, bucket: &Bucket) -> bool {
        !self.graphs.contains_key(bucket) && !self.refused.contains(bucket)
    }

    /// Such a step cannot be captured, and is not tried again.
    pub(crate) fn refuse(&mut self, bucket: Bucket) {
        self.refused.insert(bucket);
    }

    /// One that is about to be replayed.
    pub(crate) fn use_of(&mut self, bucket: &Bucket) -> Option<&Graph> {
        let kept = self.graphs.get_mut(bucket)?;
        self.uses += 1;
        kept.last_use = self.uses;
        Some(&kept.graph)
    }

    /// Takes in a new one. If there are too many, the one whose last use lies back farthest goes.
    pub(crate) fn put(&mut self, bucket: Bucket, graph: Graph) {
        if self.graphs.len() >= MOST
            && let Some(oldest) = self.graphs.iter().min_by_key(|(_, kept)| kept.last_use).map(|(bucket, _)| *bucket)
        {
            self.graphs.remove(&oldest);
        }
        self.uses += 1;
        self.graphs.insert(bucket, Kept { graph, last_use: self.uses });
    }
}

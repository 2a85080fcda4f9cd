//! Plain consistent hashing (Karger et al., STOC 1997): points of every worker on a ring, a key goes to the next point.

use weft_types::Digest;

const POINTS: u32 = 128;

pub(crate) struct Ring(Vec<(u64, usize)>);

fn hash(text: &str) -> u64 {
    Digest::of(text.as_bytes()).as_bytes()[..8].try_into().map_or(0, u64::from_le_bytes)
}

impl Ring {
    pub(crate) fn new(workers: usize) -> Self {
        let point = |worker: usize| (0..POINTS).map(move |point| (hash(&format!("worker {worker} {point}")), worker));
        let mut points: Vec<(u64, usize)> = (0..workers).flat_map(point).collect();
        points.sort_unstable();
        Self(points)
    }

    /// The first worker at or after the key's point for which `is_there` holds.
    pub(crate) fn find(&self, adapter: u32, is_there: impl Fn(usize) -> bool) -> Option<usize> {
        let key = hash(&format!("adapter {adapter}"));
        let from = self.0.partition_point(|(point, _)| *point < key);
        let after = self.0[from..].iter().chain(&self.0[..from]);
        after.map(|(_, worker)| *worker).find(|worker| is_there(*worker))
    }
}

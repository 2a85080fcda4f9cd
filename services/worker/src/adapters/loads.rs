//! Which adapters are on their way. Owned by the step loop.

use std::collections::{HashMap, HashSet};

use weft_types::Digest;

use super::load::Near;

/// Loads, from the ask for a lease to the packed adapter. At most `adapter_leases_max`.
pub(crate) struct Loads {
    limit: usize,
    /// Asked for a lease, or packed right after it.
    asked: HashSet<Digest>,
    /// Leased, waiting for a turn.
    near: HashMap<Digest, Near>,
    packing: HashSet<Digest>,
}

impl Loads {
    /// No loads, and at most so many from now on.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, asked: HashSet::new(), near: HashMap::new(), packing: HashSet::new() }
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.asked.contains(digest) || self.near.contains_key(digest) || self.packing.contains(digest)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.asked.len() + self.near.len() + self.packing.len() >= self.limit
    }

    /// Nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.near.is_empty() && self.packing.is_empty()
    }

    pub(crate) fn ask(&mut self, digest: Digest) {
        self.asked.insert(digest);
    }

    /// Its bytes are here.
    pub(crate) fn came_near(&mut self, digest: Digest, near: Near) {
        if self.asked.remove(&digest) {
            self.near.insert(digest, near);
        }
    }

    pub(crate) fn is_near(&self, digest: &Digest) -> bool {
        self.near.contains_key(digest)
    }

    pub(crate) fn any_near(&self) -> bool {
        !self.near.is_empty()
    }

    /// Its turn has come.
    pub(crate) fn start_packing(&mut self, digest: Digest) -> Option<Near> {
        let near = self.near.remove(&digest)?;
        self.packing.insert(digest);
        Some(near)
    }

    /// Gives back the leases that nobody waits for any more, and says which.
    pub(crate) fn give_up_near(&mut self, wanted: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        self.near.extract_if(|digest, _| !wanted(digest)).map(|(digest, _)| digest).collect()
    }

    /// It has arrived, or failed.
    pub(crate) fn ended(&mut self, digest: &Digest) {
        self.asked.remove(digest);
        self.packing.remove(digest);
    }
}

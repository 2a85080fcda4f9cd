//! Which adapters an operator, or the last placement, wants to stay in their slots.
//!
//! Pins live as long as this process: after a restart placement, which goes by the registry's records, pins again. They take at
//! most a fraction of the slot budget, so that pins alone can never shut others out.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;
use weft_fault::Fault;
use weft_types::Digest;

use crate::Error;

/// Told the bytes once the adapter is pinned in its slot, and whether it was before.
pub(crate) type Reply = oneshot::Sender<Result<(u64, bool), Fault>>;

pub(crate) struct Pins {
    bytes_max: u64,
    waiting_max: usize,
    pinned: HashSet<Digest>,
    /// Who waits for an adapter that has no slot yet.
    waiting: HashMap<Digest, Vec<Reply>>,
    /// What the last placement wants pinned and is not yet.
    wanted: HashSet<Digest>,
    /// What is pinned and wanted so by the last placement: its pin ends with that.
    placed: HashSet<Digest>,
}

impl Pins {
    /// No pins. They may take `bytes_max` of the slots, and `waiting_max` may wait for their adapter at once.
    pub(crate) fn new(bytes_max: u64, waiting_max: usize) -> Self {
        Self {
            bytes_max,
            waiting_max,
            pinned: HashSet::new(),
            waiting: HashMap::new(),
            wanted: HashSet::new(),
            placed: HashSet::new(),
        }
    }

    /// The last placement wants these pinned and no others. Returns whose pins end with that.
    pub(crate) fn want(&mut self, digests: &HashSet<Digest>) -> Vec<Digest> {
        let over: Vec<Digest> = self.placed.difference(digests).copied().collect();
        self.placed = digests.intersection(&self.pinned).copied().collect();
        self.wanted = digests.difference(&self.pinned).copied().collect();
        over
    }

    /// Whether the last placement wants it pinned and it is not yet.
    pub(crate) fn is_wanted(&self, digest: &Digest) -> bool {
        self.wanted.contains(digest)
    }

    /// It cannot be had or has no room: not tried again before the placement is told again.
    pub(crate) fn give_up(&mut self, digest: &Digest) {
        self.wanted.remove(digest);
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.pinned.contains(digest)
    }

    pub(crate) fn awaits(&self, digest: &Digest) -> bool {
        self.waiting.contains_key(digest) || self.is_wanted(digest)
    }

    /// Adapters that a pin waits for, in no order.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = &Digest> {
        self.waiting.keys().chain(&self.wanted)
    }

    /// Pins an adapter of so many bytes beside `pinned_bytes` of others.
    ///
    /// # Errors
    /// [`Error::PinBudget`].
    pub(crate) fn pin(&mut self, digest: Digest, bytes: u64, pinned_bytes: u64) -> Result<u64, Error> {
        if !self.pinned.contains(&digest) && pinned_bytes + bytes > self.bytes_max {
            return Err(Error::PinBudget { digest, bytes, pinned: pinned_bytes, limit: self.bytes_max });
        }
        self.pinned.insert(digest);
        if self.wanted.remove(&digest) {
            self.placed.insert(digest);
        }
        Ok(bytes)
    }

    /// Waits for the adapter to get a slot.
    pub(crate) fn wait(&mut self, digest: Digest, reply: Reply) {
        let waiting: usize = self.waiting.values().map(Vec::len).sum();
        if waiting >= self.waiting_max {
            // Whoever does not wait for the answer any more does not need it.
            let _ = reply.send(Err(Error::PinsWaiting(self.waiting_max).into()));
            return;
        }
        self.waiting.entry(digest).or_default().push(reply);
    }

    /// Those who wait for this adapter.
    pub(crate) fn take_waiting(&mut self, digest: &Digest) -> Vec<Reply> {
        self.waiting.remove(digest).unwrap_or_default()
    }

    /// Forgets who does not wait any more.
    pub(crate) fn drop_gone(&mut self) {
        self.waiting.retain(|_, replies| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
    }

    /// Ends a pin, also one that still waits. False if there is none.
    pub(crate) fn unpin(&mut self, digest: &Digest) -> bool {
        let waited = self.waiting.remove(digest);
        let was_waited_for = waited.is_some();
        for reply in waited.into_iter().flatten() {
            let _ = reply.send(Err(Error::Unpinned(*digest).into()));
        }
        self.placed.remove(digest);
        self.pinned.remove(digest) || was_waited_for
    }
}

//! Loads that found no memory to be packed into, and are tried again, in order, once others have given some back.

use std::collections::{HashMap, VecDeque};

use weft_types::Digest;

/// Tries of one adapter in a row. Each follows another load's end or leaves less in memory, so that more would wait for a miracle.
const TRIES_MAX: u32 = 32;

#[derive(Default)]
pub(crate) struct Starved {
    /// Of those that found none the last time.
    tries: HashMap<Digest, u32>,
    waiting: VecDeque<Digest>,
}

impl Starved {
    /// A load ended. True: it found no memory and may be tried again. Any other may have given some back.
    pub(crate) fn ended(&mut self, digest: &Digest, is_memory_out: bool) -> bool {
        if !is_memory_out {
            self.wake_first();
        }
        let tries = if is_memory_out { self.tries.get(digest).map_or(1, |tries| tries + 1) } else { TRIES_MAX };
        if tries < TRIES_MAX {
            self.tries.insert(*digest, tries);
            return true;
        }
        self.tries.remove(digest);
        false
    }

    /// It waits until memory may have been given back.
    pub(crate) fn wait(&mut self, digest: Digest) {
        if !self.waits(&digest) {
            self.waiting.push_back(digest);
        }
    }

    /// Memory may have been given back: the first one is tried again.
    pub(crate) fn wake_first(&mut self) {
        self.waiting.pop_front();
    }

    /// Nobody is left who would give any back.
    pub(crate) fn wake_all(&mut self) {
        self.waiting.clear();
    }

    /// Whether it waits.
    pub(crate) fn waits(&self, digest: &Digest) -> bool {
        self.waiting.contains(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_wait_in_order_and_are_tried_so_often() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| Digest::of(name));
        let mut starved = Starved::default();
        for waiting in [a, b] {
            assert!(starved.ended(&waiting, true));
            starved.wait(waiting);
        }
        assert!(!starved.ended(&c, false), "another load that went well");
        assert!(!starved.waits(&a) && starved.waits(&b), "the first is tried again, and nobody else");
        starved.wake_all();
        assert!(!starved.waits(&b));
        for _ in 2..TRIES_MAX {
            assert!(starved.ended(&a, true));
        }
        assert!(!starved.ended(&a, true), "enough");
        assert!(starved.ended(&a, true), "a later request begins anew");
        assert!(!starved.ended(&a, false) && !starved.ended(&b, false));
        assert!(starved.tries.is_empty());
    }
}

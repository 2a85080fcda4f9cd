//! The second tier: adapters without a slot that stay packed, so that they get one by moving a pointer.
//!
//! Their digest is the one that was hashed when they were packed; nothing here could change their bytes.

use std::collections::{HashMap, HashSet};

use weft_engine::PreparedAdapter;
use weft_residency::{Ledger, Past, Room, Worth};
use weft_types::Digest;

/// Adapters whose worth is remembered after their bytes are gone: some 100 bytes each.
const PAST_MAX: usize = 16 << 10;

pub(crate) struct Prepared {
    bytes_max: u64,
    /// Its budget is smaller than `bytes_max` by what slots have borrowed.
    ledger: Ledger<Digest>,
    adapters: HashMap<Digest, PreparedAdapter>,
    past: Past<Digest>,
}

impl Prepared {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let ledger = Ledger::new(bytes_max).with_half_life_ms(super::slots::HALF_LIFE_MS);
        Self { bytes_max, ledger, adapters: HashMap::new(), past: Past::new(PAST_MAX) }
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.adapters.contains_key(digest)
    }

    pub(crate) fn bytes(&self, digest: &Digest) -> Option<u64> {
        self.ledger.bytes(digest)
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<&PreparedAdapter> {
        self.adapters.get(digest)
    }

    /// What an adapter that comes from outside is worth, with what was known of it before.
    pub(crate) fn recall(&mut self, digest: &Digest, reload_ms: f64, now_ms: u64) -> Worth {
        match self.past.take(digest) {
            Some(worth) => worth.with_reload_cost(reload_ms),
            None => Worth::new(reload_ms, now_ms),
        }
    }

    /// Takes in an adapter that lost its slot, or never got one. The least valuable go, maybe this one.
    pub(crate) fn put(&mut self, adapter: PreparedAdapter, worth: Worth, now_ms: u64) {
        let digest = adapter.digest();
        if self.ledger.insert_worth(digest, adapter.bytes(), worth) {
            self.adapters.insert(digest, adapter);
        }
        self.shed(now_ms);
    }

    /// Keeps it until it is taken: it is about to get a slot.
    pub(crate) fn hold(&mut self, digest: &Digest) -> bool {
        self.ledger.pin(digest)
    }

    /// Takes it out.
    pub(crate) fn take(&mut self, digest: &Digest) -> Option<(PreparedAdapter, Worth)> {
        let worth = self.ledger.worth(digest)?;
        self.ledger.remove(digest);
        Some((self.adapters.remove(digest)?, worth))
    }

    /// A request uses it where it is.
    pub(crate) fn touch(&mut self, digest: &Digest, now_ms: u64) {
        self.ledger.touch(digest, now_ms);
    }

    /// These go last.
    pub(crate) fn favour(&mut self, favourites: HashSet<Digest>) {
        self.ledger.favour(favourites);
    }

    /// Whether slots could take so many bytes of this budget, in all.
    pub(crate) fn can_lend(&self, bytes: u64) -> bool {
        self.ledger.held() + bytes <= self.bytes_max
    }

    /// Slots have taken so many bytes of this budget, in all.
    pub(crate) fn set_lent(&mut self, bytes: u64, now_ms: u64) {
        let left = self.bytes_max.saturating_sub(bytes);
        if left != self.ledger.bytes_max() {
            self.ledger.set_bytes_max(left);
            self.shed(now_ms);
        }
    }

    pub(crate) fn bytes_used(&self) -> u64 {
        self.ledger.used()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Digest and bytes of each, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.adapters.iter().map(|(digest, adapter)| (digest, adapter.bytes()))
    }

    /// Remembers what an adapter was worth that is dropped elsewhere.
    pub(crate) fn remember(&mut self, digest: Digest, worth: Worth) {
        self.past.keep(digest, worth);
    }

    /// Drops at least one, and half of the bytes, as far as nothing holds them. False: there is nothing to drop.
    pub(crate) fn shed_half(&mut self, now_ms: u64) -> bool {
        let half = self.ledger.used() / 2 + 1;
        // What is held may be in the way of a half; then one will do.
        [half, 1].into_iter().any(|bytes| self.drop_victims(self.ledger.make_room_beyond(bytes, now_ms)))
    }

    fn shed(&mut self, now_ms: u64) {
        self.drop_victims(self.ledger.make_room(0, now_ms));
    }

    /// False: there were none.
    fn drop_victims(&mut self, room: Room<Digest>) -> bool {
        let Room::Evict(victims) = room else { return false };
        for digest in victims {
            if let Some((_, worth)) = self.take(&digest) {
                self.remember(digest, worth);
            }
        }
        true
    }
}

//! Which adapters hold a slot, who uses them, and who has to go. Owned by the step loop; never waits.
//!
//! A loaded adapter that finds no room waits here, in order. Room comes from idle adapters; if there is not enough, the
//! least used of the busy ones take no new requests (their waiting requests step beside the queue), so that they get idle
//! within the time of the requests that run. An adapter that has served nobody since it came is spared, so that every load
//! serves at least one request.

use std::collections::{HashMap, HashSet, VecDeque};

use weft_batching::{Phase, Scheduler};
use weft_engine::{Engine, PreparedAdapter, SlotId};
use weft_proto::worker::v1 as pb;
use weft_residency::{Ledger, Room};
use weft_types::Digest;

/// What became of a loaded adapter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// It holds a slot; its requests wait in the queue now.
    Installed(Digest),
    /// It can never fit; its requests have to be failed.
    TooLarge { digest: Digest, bytes: u64 },
    /// Nobody asks for it any more, and it would cost another its slot.
    Dropped(Digest),
    /// It took the slot of this idle one.
    Evicted(Digest),
}

struct Slot {
    id: SlotId,
    /// A request ran with it since it came.
    served: bool,
}

pub(crate) struct Slots {
    ledger: Ledger<Digest>,
    slots: HashMap<Digest, Slot>,
    /// Loaded, in order, waiting for room. At most `adapter_loads_max`.
    arrived: VecDeque<PreparedAdapter>,
    /// Busy ones that take no new requests until room is found.
    draining: HashSet<Digest>,
    generation: u64,
}

impl Slots {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            ledger: Ledger::new(bytes_max),
            slots: HashMap::new(),
            arrived: VecDeque::new(),
            draining: HashSet::new(),
            generation: 0,
        }
    }

    pub(crate) fn slot(&self, digest: &Digest) -> Option<SlotId> {
        self.slots.get(digest).map(|slot| slot.id)
    }

    /// Whether it is here, or loaded and waiting for room.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.slots.contains_key(digest) || self.arrived.iter().any(|prepared| prepared.digest() == *digest)
    }

    pub(crate) fn arrived_len(&self) -> usize {
        self.arrived.len()
    }

    /// A request runs with it from now on.
    pub(crate) fn lease(&mut self, digest: &Digest, now_ms: u64) {
        let leased = self.ledger.lease(digest, now_ms);
        debug_assert!(leased, "invariant: only requests of resident adapters are admitted");
        if let Some(slot) = self.slots.get_mut(digest) {
            slot.served = true;
        }
    }

    /// That request ended.
    pub(crate) fn release(&mut self, digest: &Digest) {
        self.ledger.release(digest);
    }

    /// Takes in a loaded adapter; [`Slots::place`] finds it a slot.
    pub(crate) fn arrive(&mut self, prepared: PreparedAdapter) {
        self.arrived.push_back(prepared);
    }

    /// Puts loaded adapters into slots, in order, as far as there is room.
    pub(crate) fn place(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, now_ms: u64) -> Vec<Placed> {
        let mut placed = Vec::new();
        while let Some(prepared) = self.arrived.front() {
            let (digest, bytes) = (prepared.digest(), prepared.bytes());
            self.spare_unserved(scheduler);
            let is_wanted = !scheduler.of_adapter(&digest, Phase::Beside).is_empty();
            let evict = match self.ledger.make_room(bytes, now_ms) {
                Room::Fits => Vec::new(),
                Room::TooLarge => {
                    self.arrived.pop_front();
                    placed.push(Placed::TooLarge { digest, bytes });
                    continue;
                }
                _ if !is_wanted => {
                    self.arrived.pop_front();
                    placed.push(Placed::Dropped(digest));
                    continue;
                }
                Room::Evict(victims) => victims,
                Room::Full { .. } => {
                    self.drain_busy(bytes, scheduler);
                    return placed;
                }
            };
            for victim in evict {
                self.evict(&victim, engine, scheduler);
                placed.push(Placed::Evicted(victim));
            }
            let Some(prepared) = self.arrived.pop_front() else { break };
            self.install(prepared, engine, scheduler, now_ms);
            placed.push(Placed::Installed(digest));
        }
        for digest in std::mem::take(&mut self.draining) {
            if self.slots.contains_key(&digest) {
                scheduler.open(digest);
            }
        }
        placed
    }

    fn install(&mut self, prepared: PreparedAdapter, engine: &mut Engine, scheduler: &mut Scheduler, now_ms: u64) {
        let (digest, bytes) = (prepared.digest(), prepared.bytes());
        let id = engine.install(prepared);
        self.ledger.insert(digest, bytes, now_ms);
        self.slots.insert(digest, Slot { id, served: false });
        self.generation += 1;
        scheduler.open(digest);
    }

    fn evict(&mut self, digest: &Digest, engine: &mut Engine, scheduler: &mut Scheduler) {
        scheduler.close(digest);
        self.draining.remove(digest);
        self.ledger.remove(digest);
        if let Some(slot) = self.slots.remove(digest) {
            engine.remove(slot.id);
        }
        self.generation += 1;
    }

    /// Pins exactly those that came for a request which still waits.
    fn spare_unserved(&mut self, scheduler: &Scheduler) {
        for (digest, slot) in &self.slots {
            let awaited = !slot.served && !scheduler.of_adapter(digest, Phase::Waiting).is_empty();
            if awaited && !self.ledger.is_pinned(digest) {
                self.ledger.pin(digest);
            } else if !awaited && self.ledger.is_pinned(digest) {
                self.ledger.unpin(digest);
            }
        }
    }

    /// Closes the least used busy adapters, until their bytes and the idle ones' would be enough.
    fn drain_busy(&mut self, bytes: u64, scheduler: &mut Scheduler) {
        let mut missing = (self.ledger.used() + bytes).saturating_sub(self.ledger.bytes_max());
        let mut busy: Vec<(u32, Digest, u64)> = Vec::new();
        for entry in self.ledger.iter() {
            if entry.leases == 0 && !entry.pinned || self.draining.contains(entry.key) {
                missing = missing.saturating_sub(entry.bytes);
            } else if entry.leases > 0 {
                busy.push((entry.leases, *entry.key, entry.bytes));
            }
        }
        busy.sort_unstable();
        for (_, digest, bytes) in busy {
            if missing == 0 {
                break;
            }
            scheduler.close(&digest);
            self.draining.insert(digest);
            missing = missing.saturating_sub(bytes);
        }
    }

    pub(crate) fn bytes_used(&self) -> u64 {
        self.ledger.used()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.ledger.bytes_max()
    }

    /// Grows with every install and eviction.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// For `ListResidency`. Cost: linear in slots.
    pub(crate) fn residents(&self) -> Vec<pb::ResidentAdapter> {
        let resident = |entry: weft_residency::EntryView<'_, Digest>| pb::ResidentAdapter {
            digest: entry.key.to_vec().into(),
            bytes: entry.bytes,
            users: entry.leases,
            pinned: false,
        };
        let mut residents: Vec<pb::ResidentAdapter> = self.ledger.iter().map(resident).collect();
        residents.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
        residents
    }
}

//! Which adapters hold a slot, who uses them, and who has to go. Owned by the step loop; never waits.
//!
//! An adapter that arrived and finds no room waits here, in order. Room comes from idle adapters, the least valuable first
//! (`weft_residency`); they stay packed in the second tier as far as its budget goes. If all are busy and slots are main
//! memory anyway, the slot borrows its bytes from the second tier. Else the least used of the busy ones take no new
//! requests (their waiting requests step beside the queue), so that they get idle within the time of the requests that
//! run. An adapter that has served nobody since it came is spared, so that every load serves at least one request. Neither
//! holds for adapters of a tenant that, while others have requests, has more ahead than its share: they wait until something
//! gets idle, and go before what others use.
//!
//! On a device slots lie in blocks of the pool that keys and values are in, too: `blocks` has who gets those, and `streams` how adapters run that wait for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use weft_batching::{Phase, Scheduler};
use weft_engine::{Engine, NotInstalled, PreparedAdapter, SlotId};
use weft_proto::worker::v1 as pb;
use weft_residency::{Ledger, Room, Worth};
use weft_types::Digest;

use super::blocks::Found;
use super::load::{Packed, Turn};
use super::pins::{Pins, Reply};
use super::prepared::Prepared;
use super::rates::{Measured, Rates};
use super::streams::Streams;
use crate::Error;

/// A use that lies this far back counts half. Short enough to follow what is asked for now, long enough that a burst of
/// cold adapters is worth less than what is asked for all the time (`crates/residency/tests/hit_ratio.rs`).
pub(crate) const HALF_LIFE_MS: u64 = 120_000;

/// What became of an adapter that arrived.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It holds a slot; its requests wait in the queue now.
    Installed(Digest),
    /// It waits for room; meanwhile its requests wait in the queue and may run.
    Streamed(Digest),
    /// It can never fit; its requests have to be failed.
    TooLarge { digest: Digest, bytes: u64 },
    /// Nobody asks for it any more, and it would cost another its slot.
    Dropped(Digest),
    /// It lost its slot to make room.
    Evicted(Digest),
    /// The engine did not take it; its requests have to be failed.
    Failed(Digest, Error),
}

/// Budgets in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budgets {
    pub(crate) slots: u64,
    pub(crate) prepared: u64,
    pub(crate) pins: u64,
    /// Of a block of the pool that keys, values and adapters share; 0 where they share none.
    pub(crate) block: u64,
    /// Pins that may wait for their adapter.
    pub(crate) pins_waiting: usize,
}

pub(super) struct Slot {
    id: SlotId,
    /// Of the device's pool; none on processors.
    blocks: Vec<u32>,
    /// A request ran with it since it came.
    served: bool,
}

/// An adapter that waits for room.
pub(super) struct Arrival {
    pub(super) digest: Digest,
    bytes: u64,
    from: From,
}

enum From {
    /// In hand, with the turn that its load took.
    Hand(PreparedAdapter, Worth, Option<Turn>),
    /// Still in the second tier, held.
    Prepared,
}

pub(crate) struct Slots {
    pub(super) ledger: Ledger<Digest>,
    pub(super) slots: HashMap<Digest, Slot>,
    prepared: Prepared,
    pub(super) pins: Pins,
    rates: Rates,
    /// In order. From loads: at most `adapter_loads_max`, each with its turn.
    pub(super) arrived: VecDeque<Arrival>,
    /// Those of them that run meanwhile.
    pub(super) streams: Streams,
    /// Busy ones that take no new requests until room is found.
    draining: HashSet<Digest>,
    pub(super) block_bytes: u64,
    pub(super) generation: u64,
}

impl Slots {
    pub(crate) fn new(budgets: &Budgets) -> Self {
        Self {
            ledger: Ledger::new(budgets.slots).with_half_life_ms(HALF_LIFE_MS),
            slots: HashMap::new(),
            prepared: Prepared::new(budgets.prepared),
            pins: Pins::new(budgets.pins, budgets.pins_waiting),
            rates: Rates::default(),
            arrived: VecDeque::new(),
            streams: Streams::default(),
            draining: HashSet::new(),
            block_bytes: budgets.block,
            generation: 0,
        }
    }

    /// Where its requests run: its slot, or what it is streamed by.
    pub(crate) fn slot(&self, digest: &Digest) -> Option<SlotId> {
        self.slots.get(digest).map(|slot| slot.id).or_else(|| self.streams.slot(digest))
    }

    /// Whether any waits for room.
    pub(crate) fn has_arrivals(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether it is here, or waiting for room.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.slots.contains_key(digest) || self.arrived.iter().any(|arrival| arrival.digest == *digest)
    }

    /// A request runs with it from now on.
    pub(crate) fn lease(&mut self, digest: &Digest, now_ms: u64) {
        if self.streams.lease(digest) {
            self.note_use(digest, now_ms);
            return;
        }
        let leased = self.ledger.lease(digest, now_ms);
        debug_assert!(leased, "invariant: only requests of resident adapters are admitted");
        if let Some(slot) = self.slots.get_mut(digest) {
            slot.served = true;
            if !self.pins.has(digest) {
                self.ledger.unpin(digest);
            }
        }
    }

    /// That request ended.
    pub(crate) fn release(&mut self, digest: &Digest) {
        if !self.streams.release(digest) {
            self.ledger.release(digest);
        }
    }

    /// Takes in a loaded adapter; [`Slots::place`] finds it a slot. `step` is the mean time of a step.
    pub(crate) fn arrive(&mut self, packed: Packed, step: Duration, now_ms: u64) {
        self.rates.note(packed.tier, packed.blob_bytes, packed.took);
        let reload_ms = self.rates.reload_ms(packed.tier, packed.blob_bytes, step);
        let (digest, bytes) = (packed.prepared.digest(), packed.prepared.bytes());
        let worth = self.prepared.recall(&digest, reload_ms, now_ms);
        self.arrived.push_back(Arrival { digest, bytes, from: From::Hand(packed.prepared, worth, Some(packed.turn)) });
    }

    /// The same for one of the second tier, without a load. False: it is not there.
    pub(crate) fn bring_back(&mut self, digest: &Digest) -> bool {
        let Some(bytes) = self.prepared.bytes(digest) else { return false };
        self.prepared.hold(digest);
        self.arrived.push_back(Arrival { digest: *digest, bytes, from: From::Prepared });
        true
    }

    /// Puts adapters that arrived into slots, in order, as far as there is room.
    pub(crate) fn place(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, now_ms: u64) -> Vec<Placed> {
        let mut placed = Vec::new();
        // Whoever waits for blocks says so again below.
        scheduler.owe_blocks(0);
        if self.arrived.is_empty() && self.draining.is_empty() && self.borrowed(0) == 0 {
            return placed;
        }
        self.spare_unserved(scheduler);
        self.give_back_borrowed(engine, scheduler, now_ms, &mut placed);
        self.end_idle_streams(engine, scheduler, now_ms, &mut placed);
        while let Some(arrival) = self.arrived.front() {
            let (digest, bytes) = (arrival.digest, arrival.bytes);
            let is_wanted = self.is_wanted(&digest, scheduler);
            match self.ledger.make_room(bytes, now_ms) {
                Room::Fits => {}
                Room::TooLarge => {
                    self.drop_first(engine, scheduler);
                    placed.push(Placed::TooLarge { digest, bytes });
                    continue;
                }
                _ if !is_wanted => {
                    self.lay_aside_first(engine, scheduler, now_ms);
                    placed.push(Placed::Dropped(digest));
                    continue;
                }
                Room::Evict(victims) => {
                    // Out of the second tier first, so that those who lose their slots find its room there.
                    self.lift_first();
                    self.evict(&victims, engine, scheduler, now_ms, &mut placed);
                }
                Room::Full { .. } if self.may_borrow(engine) => {}
                Room::Full { .. } if scheduler.is_within_share(&digest) => {
                    self.drain_busy(bytes, scheduler);
                    self.stream_arrivals(engine, scheduler, &mut placed);
                    return placed;
                }
                Room::Full { .. } if self.put_first(|digest| scheduler.is_within_share(digest)) => continue,
                Room::Full { .. } => break,
            }
            // Its request takes blocks first, whichever are left for it.
            let yields = self.streams.is_fresh(&digest) && scheduler.next_adapter() == Some(digest);
            let blocks = match self.find_blocks(is_wanted && !yields, engine, scheduler, now_ms, &mut placed) {
                Found::Blocks(blocks) => blocks,
                _ if !is_wanted => {
                    self.lay_aside_first(engine, scheduler, now_ms);
                    placed.push(Placed::Dropped(digest));
                    continue;
                }
                // It runs; who has all the room are operators.
                Found::BetweenPins(_) if self.streams.has(&digest) => {
                    let streamed = self.streams.digests();
                    if self.put_first(|digest| !streamed.contains(digest)) {
                        continue;
                    }
                    break;
                }
                Found::BetweenPins(needed) => {
                    self.drop_first(engine, scheduler);
                    placed.push(Placed::Failed(digest, Error::NoBlocks { digest, needed }));
                    continue;
                }
                found if scheduler.is_within_share(&digest) => {
                    self.stream_arrivals(engine, scheduler, &mut placed);
                    match found {
                        _ if yields => {}
                        Found::WithRequests(blocks) => scheduler.owe_blocks(blocks),
                        _ if scheduler.load().blocks_used > 0 => scheduler.owe_blocks(usize::MAX),
                        _ => {}
                    }
                    if matches!(found, Found::Scattered) && !yields {
                        self.drain_busy(self.ledger.unused() + bytes, scheduler);
                    }
                    return placed;
                }
                _ if self.put_first(|digest| scheduler.is_within_share(digest)) => continue,
                _ => break,
            };
            match self.install_first(blocks, engine, scheduler, now_ms) {
                Ok(()) => placed.push(Placed::Installed(digest)),
                Err(error) => placed.push(Placed::Failed(digest, error)),
            }
            self.spare_unserved(scheduler);
        }
        for digest in std::mem::take(&mut self.draining) {
            if self.slots.contains_key(&digest) {
                scheduler.open(digest);
            }
        }
        placed
    }

    /// The first one that arrived is not placed, and streamed no more.
    fn drop_first(&mut self, engine: &mut Engine, scheduler: &mut Scheduler) -> Option<From> {
        self.lift_first();
        let Arrival { digest, from, .. } = self.arrived.pop_front()?;
        self.end_stream(&digest, engine);
        scheduler.close(&digest);
        Some(from)
    }

    /// A request runs with one that waits for room.
    fn note_use(&mut self, digest: &Digest, now_ms: u64) {
        let arrival = self.arrived.iter_mut().find(|arrival| arrival.digest == *digest);
        match arrival.map(|arrival| &mut arrival.from) {
            Some(From::Hand(_, worth, _)) => *worth = worth.used(now_ms, HALF_LIFE_MS),
            Some(From::Prepared) => self.prepared.touch(digest, now_ms),
            None => {}
        }
    }

    /// Whether a request or a pin waits for it, or a request runs with it that has no slot yet.
    pub(crate) fn is_wanted(&self, digest: &Digest, scheduler: &Scheduler) -> bool {
        self.pins.awaits(digest)
            || !scheduler.of_adapter(digest, Phase::Beside).is_empty()
            || self.is_streamed_for_somebody(digest, scheduler)
    }

    /// Lets the first one like this overtake the others. False: there is none.
    pub(super) fn put_first(&mut self, like: impl Fn(&Digest) -> bool) -> bool {
        let found = self.arrived.iter().position(|arrival| like(&arrival.digest));
        let Some(arrival) = found.and_then(|at| self.arrived.remove(at)) else { return false };
        self.arrived.push_front(arrival);
        true
    }

    /// Takes the first one that arrived into our hands.
    pub(super) fn lift_first(&mut self) {
        if let Some(arrival) = self.arrived.front_mut()
            && matches!(arrival.from, From::Prepared)
            && let Some((adapter, worth)) = self.prepared.take(&arrival.digest)
        {
            arrival.from = From::Hand(adapter, worth, None);
        }
    }

    /// Blocks of the pool that the first one that arrived needs: the sum of these, each of them so many neighbours.
    pub(super) fn first_runs(&self) -> Vec<usize> {
        let first = self.arrived.front().and_then(|arrival| self.adapter_of(arrival));
        first.map_or(Vec::new(), |adapter| adapter.runs().to_vec())
    }

    pub(super) fn adapter_of<'a>(&'a self, arrival: &'a Arrival) -> Option<&'a PreparedAdapter> {
        match &arrival.from {
            From::Hand(adapter, ..) => Some(adapter),
            From::Prepared => self.prepared.get(&arrival.digest),
        }
    }

    /// # Errors
    /// What the engine says.
    fn install_first(
        &mut self,
        blocks: Vec<u32>,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
    ) -> Result<(), Error> {
        self.lift_first();
        let Some(Arrival { digest, bytes, from: From::Hand(adapter, worth, _turn) }) = self.arrived.pop_front() else {
            scheduler.take_blocks_back(&blocks);
            return Ok(());
        };
        let id = match engine.install(adapter, &blocks) {
            Ok(id) => id,
            Err(refused) => {
                scheduler.take_blocks_back(&blocks);
                self.end_stream(&digest, engine);
                scheduler.close(&digest);
                let NotInstalled { error, .. } = *refused;
                return Err(error.into());
            }
        };
        self.ledger.insert_worth(digest, bytes, worth);
        let leases = self.end_stream(&digest, engine);
        for _ in 0..leases {
            // As a use they were counted when they began.
            self.ledger.hold(&digest);
        }
        self.slots.insert(digest, Slot { id, blocks, served: leases > 0 });
        self.tell_prepared(now_ms);
        self.generation += 1;
        scheduler.open(digest);
        self.pin_if_awaited(digest);
        Ok(())
    }

    /// Frees memory that adapters are packed into, for one that found none: half of the second tier, or, if that is empty, the least valuable idle
    /// adapter, its slot and all. False: nothing can go.
    pub(crate) fn shed(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, now_ms: u64) -> bool {
        if self.prepared.shed_half(now_ms) {
            self.generation += 1;
            return true;
        }
        self.spare_unserved(scheduler);
        let Room::Evict(victims) = self.ledger.make_room_beyond(1, now_ms) else { return false };
        for digest in &victims {
            if let Some((_, worth)) = self.take_out(digest, engine, scheduler) {
                self.prepared.remember(*digest, worth);
            }
        }
        true
    }

    /// The first one that arrived gets no slot: nobody wants it.
    pub(super) fn lay_aside_first(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, now_ms: u64) {
        if let Some(From::Hand(adapter, worth, _turn)) = self.drop_first(engine, scheduler) {
            self.prepared.put(adapter, worth, now_ms);
            self.generation += 1;
        }
    }

    pub(super) fn evict(
        &mut self,
        victims: &[Digest],
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
        placed: &mut Vec<Placed>,
    ) {
        for digest in victims {
            if let Some((adapter, worth)) = self.take_out(digest, engine, scheduler) {
                self.tell_prepared(now_ms);
                self.prepared.put(adapter, worth, now_ms);
            }
            placed.push(Placed::Evicted(*digest));
        }
    }

    fn take_out(
        &mut self,
        digest: &Digest,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
    ) -> Option<(PreparedAdapter, Worth)> {
        scheduler.close(digest);
        self.draining.remove(digest);
        let worth = self.ledger.worth(digest)?;
        self.ledger.remove(digest);
        self.generation += 1;
        let slot = self.slots.remove(digest)?;
        scheduler.take_blocks_back(&slot.blocks);
        Some((engine.remove(slot.id)?, worth))
    }

    /// Pins those that came for a request which still waits, and those that an operator has pinned.
    pub(super) fn spare_unserved(&mut self, scheduler: &Scheduler) {
        for (digest, slot) in &self.slots {
            let awaited = !slot.served
                && scheduler.is_within_share(digest)
                && !scheduler.of_adapter(digest, Phase::Waiting).is_empty();
            let stays = awaited || self.pins.has(digest);
            if stays && !self.ledger.is_pinned(digest) {
                self.ledger.pin(digest);
            } else if !stays && self.ledger.is_pinned(digest) {
                self.ledger.unpin(digest);
            }
        }
    }

    /// Bytes of slots beyond their own budget, with these ones more.
    fn borrowed(&self, more: u64) -> u64 {
        (self.ledger.used() + more).saturating_sub(self.ledger.bytes_max())
    }

    /// Whether the first one that arrived may have a slot in memory of the second tier.
    fn may_borrow(&self, engine: &Engine) -> bool {
        let Some(arrival) = self.arrived.front() else { return false };
        let borrowed = self.borrowed(arrival.bytes);
        let own = if matches!(arrival.from, From::Prepared) { arrival.bytes } else { 0 };
        engine.slots_are_main_memory() && self.prepared.can_lend(borrowed.saturating_sub(own))
    }

    fn tell_prepared(&mut self, now_ms: u64) {
        self.prepared.set_lent(self.borrowed(0), now_ms);
    }

    fn give_back_borrowed(
        &mut self,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
        placed: &mut Vec<Placed>,
    ) {
        if let Room::Evict(victims) = self.ledger.make_room(0, now_ms) {
            self.evict(&victims, engine, scheduler, now_ms, placed);
        }
    }

    /// Closes the least used busy adapters, until their bytes and the idle ones' would be enough.
    fn drain_busy(&mut self, bytes: u64, scheduler: &mut Scheduler) {
        let mut missing = self.borrowed(bytes);
        let mut busy: Vec<(u32, Digest, u64)> = Vec::new();
        for entry in self.ledger.iter() {
            if entry.leases == 0 && !entry.pinned || self.draining.contains(entry.key) {
                missing = missing.saturating_sub(entry.bytes);
            } else if entry.leases > 0 && !self.pins.has(entry.key) {
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

    /// Pins an adapter, at once if it has a slot, else when it gets one.
    pub(crate) fn pin(&mut self, digest: Digest, reply: Reply) {
        self.pins.wait(digest, reply);
        if self.slots.contains_key(&digest) {
            self.pin_if_awaited(digest);
        }
    }

    fn pin_if_awaited(&mut self, digest: Digest) {
        let (waiting, was_pinned) = (self.pins.take_waiting(&digest), self.pins.has(&digest));
        let is_wanted = self.pins.is_wanted(&digest);
        if waiting.is_empty() && !is_wanted {
            return;
        }
        let bytes = self.ledger.bytes(&digest).unwrap_or(0);
        let of_others = self.ledger.iter().filter(|entry| self.pins.has(entry.key)).map(|entry| entry.bytes).sum();
        if is_wanted {
            match self.pins.pin(digest, bytes, of_others) {
                Ok(_) => self.generation += 1,
                Err(error) => {
                    tracing::warn!(%digest, %error, "a placement's pin has no room here");
                    self.pins.give_up(&digest);
                }
            }
        }
        for reply in waiting {
            let pinned = self.pins.pin(digest, bytes, of_others);
            self.generation += u64::from(pinned.is_ok());
            // Whoever does not wait for the answer any more sees it in the residency.
            let _ = reply.send(pinned.map(|bytes| (bytes, was_pinned)).map_err(Into::into));
        }
        if self.pins.has(&digest) {
            self.ledger.pin(&digest);
        }
    }

    /// Ends a pin. False if there is none. The next [`Slots::place`] may evict it.
    pub(crate) fn unpin(&mut self, digest: &Digest) -> bool {
        let was_pinned = self.pins.unpin(digest);
        self.generation += u64::from(was_pinned);
        was_pinned
    }

    /// What the last placement wants here goes last, and some of it is pinned; pins of earlier placements end.
    pub(crate) fn desire(&mut self, desired: HashSet<Digest>, pinned: &HashSet<Digest>) {
        self.prepared.favour(desired.clone());
        self.ledger.favour(desired);
        for digest in self.pins.want(pinned) {
            self.unpin(&digest);
        }
        for digest in pinned {
            if self.slots.contains_key(digest) {
                self.pin_if_awaited(*digest);
            }
        }
    }

    /// Whether it is in a slot, packed, or waits for room.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.has(digest) || self.is_prepared(digest)
    }

    /// The load of this adapter failed: those who wait for its pin.
    pub(crate) fn take_pins(&mut self, digest: &Digest) -> Vec<Reply> {
        self.pins.give_up(digest);
        self.pins.take_waiting(digest)
    }

    /// Adapters that only a pin waits for: neither here nor skipped.
    pub(crate) fn wanted_by_pin(&mut self, skip: impl Fn(&Digest) -> bool) -> Option<Digest> {
        self.pins.drop_gone();
        self.pins.awaited().find(|digest| !self.has(digest) && !skip(digest)).copied()
    }

    /// Frees the bytes of an idle adapter, slot and second tier, and tells how many; 0 if it is not here.
    ///
    /// # Errors
    /// [`Error::InUse`] while requests run or a pin holds it.
    pub(crate) fn evict_now(
        &mut self,
        digest: &Digest,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
    ) -> Result<u64, Error> {
        let users = self.ledger.leases(digest) + self.streams.leases(digest);
        let pinned = self.pins.has(digest);
        let waits = self.arrived.iter().any(|arrival| arrival.digest == *digest);
        if users > 0 || pinned || waits {
            return Err(Error::InUse { digest: *digest, users, pinned });
        }
        let found = match self.prepared.take(digest) {
            Some(found) => Some(found),
            None => self.take_out(digest, engine, scheduler),
        };
        let Some((adapter, worth)) = found else { return Ok(0) };
        self.prepared.remember(*digest, worth);
        self.generation += 1;
        Ok(adapter.bytes())
    }

    pub(crate) fn is_prepared(&self, digest: &Digest) -> bool {
        self.prepared.has(digest)
    }

    /// How fast adapters come.
    pub(crate) fn measured(&self) -> Measured {
        self.rates.measured()
    }

    pub(crate) fn bytes_used(&self) -> u64 {
        self.ledger.used()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.ledger.bytes_max()
    }

    pub(crate) fn prepared_bytes_used(&self) -> u64 {
        self.prepared.bytes_used()
    }

    /// Grows with every install, eviction and pin.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// For `ListResidency`. Cost: linear in resident adapters.
    pub(crate) fn residency(&self) -> pb::ListResidencyResponse {
        let resident = |entry: weft_residency::EntryView<'_, Digest>| pb::ResidentAdapter {
            digest: entry.key.to_vec().into(),
            bytes: entry.bytes,
            users: entry.leases,
            pinned: self.pins.has(entry.key),
        };
        let prepared = |(digest, bytes): (&Digest, u64)| pb::ResidentAdapter {
            digest: digest.to_vec().into(),
            bytes,
            users: 0,
            pinned: false,
        };
        let mut adapters: Vec<pb::ResidentAdapter> = self.ledger.iter().map(resident).collect();
        let mut prepared: Vec<pb::ResidentAdapter> = self.prepared.iter().map(prepared).collect();
        self.add_streamed(&mut prepared);
        for list in [&mut adapters, &mut prepared] {
            list.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
        }
        pb::ListResidencyResponse {
            adapters,
            slot_bytes_used: self.bytes_used(),
            slot_bytes_max: self.bytes_max(),
            generation: self.generation,
            prepared,
            prepared_bytes_used: self.prepared.bytes_used(),
            prepared_bytes_max: self.prepared.bytes_max(),
            ..pb::ListResidencyResponse::default()
        }
    }

    /// Adapters that run from main memory, each once.
    fn add_streamed(&self, prepared: &mut Vec<pb::ResidentAdapter>) {
        for (digest, users) in self.streams.iter() {
            let wanted = digest.to_vec();
            match prepared.iter_mut().find(|adapter| adapter.digest == wanted) {
                Some(adapter) => adapter.users = users,
                None => {
                    let arrival = self.arrived.iter().find(|arrival| arrival.digest == *digest);
                    let bytes = arrival.map_or(0, |arrival| arrival.bytes);
                    prepared.push(pb::ResidentAdapter { digest: wanted.into(), bytes, users, pinned: false });
                }
            }
        }
    }
}

//! Who gets the blocks of a device's pool: running requests, adapters, or what is kept in case somebody comes back to it.
//!
//! Running requests and the adapters that they run with keep what they have. What is left is *idle*: adapters that nobody runs with, and blocks of the prefix cache.
//! Both are worth what it would cost to have them again, by how often and how lately they were used, for each of their bytes (`weft_residency`): an adapter its
//! load, a block the computation of its tokens. Whoever needs blocks takes what is worth least, whichever it is.
//!
//! An adapter that finds too few waits for those that running requests have: until it gets them no new request is let in for its blocks. If it finds enough that are no
//! neighbours, no request is let in at all, and busy adapters take no new ones, until it has a place: rare, for only matrices that are longer than a block need neighbours,
//! and requests and adapters begin at the two ends of the pool. Adapters together never take more than their budget, so that the rest is there for the longest request.

use weft_batching::Scheduler;
use weft_engine::Engine;
use weft_residency::Value;

use super::slots::{Placed, Slots};
use crate::model::BLOCK_SIZE;

/// What became of a search.
pub(super) enum Found {
    /// These, lent by the scheduler.
    Blocks(Vec<u32>),
    /// Requests have so many more than are left for it.
    WithRequests(usize),
    /// Enough are left, but no such neighbours: requests and busy adapters lie between them.
    Scattered,
    /// The same, with nothing but pinned adapters between them; so many are needed.
    BetweenPins(usize),
}

impl Slots {
    /// Blocks for the first one that arrived. What is idle goes for it, if somebody wants it.
    pub(super) fn find_blocks(
        &mut self,
        is_wanted: bool,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
        placed: &mut Vec<Placed>,
    ) -> Found {
        let runs = self.first_runs();
        let needed: usize = runs.iter().sum();
        if needed == 0 {
            return Found::Blocks(Vec::new());
        }
        loop {
            if scheduler.blank_blocks() >= needed
                && let Some(blocks) = scheduler.lend_blocks(&runs)
            {
                return Found::Blocks(blocks);
            }
            if !is_wanted || !self.free_some(engine, scheduler, now_ms, placed) {
                break;
            }
        }
        let missing = needed.saturating_sub(scheduler.blank_blocks());
        if missing > 0 {
            // Not with other adapters: together with this one they stay within their budget.
            return Found::WithRequests(missing);
        }
        // Pins end when operators say so.
        let only_pins = scheduler.load().blocks_used == 0 && self.slots.keys().all(|digest| self.pins.has(digest));
        if is_wanted && only_pins { Found::BetweenPins(needed) } else { Found::Scattered }
    }

    /// Makes blocks blank that the next step wants: of idle adapters, where nothing else is there or else is worth more.
    pub(crate) fn make_way(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, now_ms: u64) -> Vec<Placed> {
        let mut placed = Vec::new();
        if self.block_bytes == 0 || self.slots.is_empty() {
            return placed;
        }
        scheduler.set_lent_idle(self.idle_blocks());
        let wanted = scheduler.blocks_wanted();
        if wanted.to_admit == 0 && wanted.from_idle == 0 {
            return placed;
        }
        self.spare_unserved(scheduler);
        // Without it the request that is next in turn would wait again.
        let kept = wanted.adapter.filter(|adapter| self.ledger.hold(adapter));
        let before = scheduler.blank_blocks();
        // Nobody loses a slot for a request that is not let in even so.
        let admits = wanted.to_admit <= self.idle_blocks();
        let (missing, from_idle) = if admits { (wanted.to_admit, wanted.from_idle) } else { (wanted.to_grow, 0) };
        while scheduler.blank_blocks() < before + missing && self.evict_next(engine, scheduler, now_ms, &mut placed) {}
        while scheduler.blank_blocks() < before + from_idle
            && scheduler.idle_block().is_some()
            && self.free_some(engine, scheduler, now_ms, &mut placed)
        {}
        if let Some(kept) = kept {
            self.ledger.release(&kept);
        }
        scheduler.set_lent_idle(self.idle_blocks());
        placed
    }

    /// What is idle and worth least goes. False: nothing is idle.
    fn free_some(
        &mut self,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
        placed: &mut Vec<Placed>,
    ) -> bool {
        match self.idle_block(scheduler) {
            Some(block) if self.ledger.goes_before(block).is_none() => scheduler.reclaim_block(),
            _ => self.evict_next(engine, scheduler, now_ms, placed),
        }
    }

    /// What the idle block is worth that would go next.
    fn idle_block(&self, scheduler: &Scheduler) -> Option<Value> {
        // Nothing as long as no prompt has been computed.
        let token_micros = scheduler.costs().prompt_token_micros(0).unwrap_or(0.0);
        let reload_ms = BLOCK_SIZE as f64 * token_micros / 1000.0;
        let worth = scheduler.idle_block()?.with_reload_cost(reload_ms);
        Some(worth.value(self.block_bytes, self.ledger.half_life_ms()))
    }

    /// The least valuable idle adapter loses its slot. False: none is idle.
    fn evict_next(
        &mut self,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
        placed: &mut Vec<Placed>,
    ) -> bool {
        let Some(&victim) = self.ledger.next_to_go() else { return false };
        // Out of the second tier first, so that who loses its slot finds its room there.
        self.lift_first();
        self.evict(&[victim], engine, scheduler, now_ms, placed);
        true
    }

    /// Blocks of adapters that nobody runs with: requests may have them.
    pub(crate) fn idle_blocks(&self) -> usize {
        self.blocks_of(self.ledger.idle_bytes())
    }

    /// Blocks that adapters have.
    pub(crate) fn blocks_used(&self) -> usize {
        self.blocks_of(self.ledger.used())
    }

    fn blocks_of(&self, bytes: u64) -> usize {
        bytes.checked_div(self.block_bytes).unwrap_or(0) as usize
    }
}

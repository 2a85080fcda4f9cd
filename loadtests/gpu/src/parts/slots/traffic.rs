//! A step loop under requests for adapters.

use crate::bench::Bench;
use crate::budget::Budget;
use crate::report::Spread;
use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::time::Instant;
use weft_engine::device::PreparedAdapter;
use weft_engine::{SeqStep, SlotId, StepBatch};

/// Of the time, before anything counts: slots fill, and requests no longer begin together.
const WARM_SHARE: u32 = 5;
/// First tokens for each place that are waited for, however late it is.
const FIRST_TOKENS: usize = 4;

/// What was seen of it.
pub(super) struct Seen {
    pub(super) first_token: Spread,
    pub(super) tokens_per_s: f64,
    pub(super) loads: usize,
}

/// An adapter on the device.
struct Resident {
    slot: SlotId,
    /// Requests that run with it.
    users: usize,
    /// Number of the request that asked for it last.
    last_use: usize,
}

/// A request at a place.
struct Request {
    adapter: usize,
    came: Instant,
    /// None: it waits for its adapter.
    slot: Option<SlotId>,
    /// Tokens whose keys are there, the prompt's first.
    done: usize,
    /// With its answer.
    length: usize,
}

pub(super) struct Traffic<'a, 'b> {
    bench: &'a mut Bench<'b>,
    copies: &'a [PreparedAdapter],
    slots: usize,
    /// Sums of the weights `1 / rank` of adapters.
    weights: Vec<f64>,
    random: StdRng,
    residents: HashMap<usize, Resident>,
    places: Vec<Option<Request>>,
    requests: usize,
    loads: usize,
}

impl<'a, 'b> Traffic<'a, 'b> {
    pub(super) fn new(
        bench: &'a mut Bench<'b>,
        copies: &'a [PreparedAdapter],
        registered: usize,
        slots: usize,
        running: usize,
    ) -> Self {
        let weights = (1..=registered).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self {
            bench,
            copies,
            slots,
            weights: weights.collect(),
            random: StdRng::seed_from_u64(registered as u64),
            residents: HashMap::new(),
            places: (0..running).map(|_| None).collect(),
            requests: 0,
            loads: 0,
        }
    }

    /// Until the time is over, and a few requests have their first token.
    pub(super) fn run(&mut self, budget: &Budget) -> Result<Seen> {
        let warm = budget.first_of(1, WARM_SHARE);
        while !warm.is_over() {
            self.step()?;
        }
        self.loads = 0;
        let (began, mut tokens, mut first) = (Instant::now(), 0, Vec::new());
        while first.len() < FIRST_TOKENS * self.places.len() || !budget.is_over() {
            for came in self.step()? {
                tokens += 1;
                first.extend(came.map(|came| came.elapsed().as_secs_f64()));
            }
        }
        let tokens_per_s = tokens as f64 / began.elapsed().as_secs_f64();
        Ok(Seen { first_token: Spread::of(first), tokens_per_s, loads: self.loads })
    }

    /// Empties all slots.
    pub(super) fn end(self) {
        for resident in self.residents.into_values() {
            self.bench.engine.remove(resident.slot);
        }
    }

    /// Requests come, get their adapters, and a token each. Of each token: when the request came whose first it is.
    fn step(&mut self) -> Result<Vec<Option<Instant>>> {
        for place in 0..self.places.len() {
            if self.places[place].is_none() {
                self.places[place] = Some(self.draw());
            }
            self.admit(place)?;
        }
        let seqs: Vec<SeqStep> = (0..self.places.len()).filter_map(|place| self.seq(place)).collect();
        self.bench.step(&StepBatch { seqs })?;
        let [prompt, _] = self.bench.shared.plan.request;
        let mut tokens = Vec::new();
        for place in &mut self.places {
            let Some(request) = place.as_mut().filter(|request| request.slot.is_some()) else { continue };
            tokens.push((request.done == 0).then_some(request.came));
            request.done = if request.done == 0 { prompt } else { request.done + 1 };
            // The last token of an answer is nobody's key.
            if request.done + 1 >= request.length {
                let resident = self.residents.get_mut(&request.adapter);
                resident.expect("invariant: an adapter in use is there").users -= 1;
                *place = None;
            }
        }
        Ok(tokens)
    }

    fn draw(&mut self) -> Request {
        let sum = self.weights[self.weights.len() - 1];
        let at = self.random.random_range(0.0..sum);
        let adapter = self.weights.partition_point(|before| *before <= at).min(self.weights.len() - 1);
        let [prompt, answer] = self.bench.shared.plan.request;
        let length = prompt + self.random.random_range(answer.div_ceil(2)..=answer + answer / 2);
        self.requests += 1;
        Request { adapter, came: Instant::now(), slot: None, done: 0, length }
    }

    /// Gives a waiting request its adapter, if there is room or somebody who may go.
    fn admit(&mut self, place: usize) -> Result<()> {
        let Some(request) = self.places[place].as_mut().filter(|request| request.slot.is_none()) else { return Ok(()) };
        let adapter = request.adapter;
        if !self.residents.contains_key(&adapter) {
            let Some(slot) = self.load(adapter)? else { return Ok(()) };
            self.residents.insert(adapter, Resident { slot, users: 0, last_use: 0 });
            self.loads += 1;
        }
        let resident = self.residents.get_mut(&adapter).expect("it is there by now");
        resident.users += 1;
        resident.last_use = self.requests;
        if let Some(request) = &mut self.places[place] {
            request.slot = Some(resident.slot);
        }
        Ok(())
    }

    /// None: all that are there are in use.
    fn load(&mut self, adapter: usize) -> Result<Option<SlotId>> {
        let copy = &self.copies[adapter % self.copies.len()];
        loop {
            let is_full = self.residents.len() >= self.slots;
            if !is_full && let Some(slot) = self.bench.install(copy)? {
                return Ok(Some(slot));
            }
            let idle = self.residents.iter().filter(|(_, resident)| resident.users == 0);
            ensure!(!self.residents.is_empty(), "no blocks are left for an adapter");
            let Some((&oldest, _)) = idle.min_by_key(|(_, resident)| resident.last_use) else { return Ok(None) };
            if let Some(resident) = self.residents.remove(&oldest) {
                self.bench.engine.remove(resident.slot);
            }
        }
    }

    /// Its prompt, or its next token.
    fn seq(&self, place: usize) -> Option<SeqStep> {
        let request = self.places[place].as_ref()?;
        let slot = request.slot?;
        let [prompt, _] = self.bench.shared.plan.request;
        let tokens = if request.done == 0 { prompt } else { 1 };
        Some(self.bench.seq(place, request.done, tokens, Some(slot)))
    }
}

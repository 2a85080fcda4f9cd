//! A worker: seats, a prompt queue, three tiers and one loader.
//!
//! A request whose adapter is in a slot joins the queue; others wait beside it for the load. The head of the queue takes
//! a seat when one is free and the prompt before it is computed; its first token comes when its prompt is computed, its
//! seat is free again when its answer ends. Slots in use are not taken. What a slot or the memory loses goes one tier down.

use crate::shape::{Micros, Shape};
use std::collections::{HashMap, HashSet, VecDeque};

pub(crate) const SLOT: u8 = 0;
pub(crate) const REMOTE: u8 = 3;

/// Half-life of the uses that decide what a tier gives up.
const USE_HALF_LIFE: f64 = 60e6;
/// Half-life of the work that a worker calls recent.
const RECENT_HALF_LIFE: f64 = 5e6;

/// A request on a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) id: usize,
    pub(crate) adapter: u32,
    pub(crate) prefill: Micros,
    pub(crate) decode: Micros,
}

#[derive(Clone, Copy, Default)]
struct Uses {
    count: f64,
    at: Micros,
}

impl Uses {
    fn at(&self, now: Micros) -> f64 {
        self.count * (-((now - self.at) as f64) / USE_HALF_LIFE).exp2()
    }
}

/// A load under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) adapter: u32,
    pub(crate) from: u8,
    pub(crate) is_ahead: bool,
    /// When it is done.
    pub(crate) at: Micros,
}

/// What began on a worker.
pub(crate) enum Begun {
    /// The first token of this job comes at this time, its end after its answer.
    Prompt(Job, Micros),
    Load(Load),
}

pub(crate) struct Worker {
    shape: Shape,
    /// Which tier an adapter is in.
    pub(crate) tiers: Vec<u8>,
    held: [HashSet<u32>; 3],
    uses: Vec<Uses>,
    /// Jobs that need an adapter in its slot.
    users: HashMap<u32, u32>,
    waiting: HashMap<u32, Vec<Job>>,
    to_load: VecDeque<u32>,
    ahead: VecDeque<u32>,
    pub(crate) desired: HashSet<u32>,
    loading: Option<Load>,
    queue: VecDeque<Job>,
    queued_prefill: Micros,
    seats_taken: usize,
    prompt_until: Micros,
    is_computing: bool,
    jobs: HashMap<usize, Job>,
    recent: f64,
    recent_at: Micros,
    seat_time: f64,
    seat_time_at: Micros,
}

impl Worker {
    pub(crate) fn new(shape: &Shape, adapters: usize) -> Self {
        Self {
            shape: *shape,
            tiers: vec![REMOTE; adapters],
            held: Default::default(),
            uses: vec![Uses::default(); adapters],
            users: HashMap::new(),
            waiting: HashMap::new(),
            to_load: VecDeque::new(),
            ahead: VecDeque::new(),
            desired: HashSet::new(),
            loading: None,
            queue: VecDeque::new(),
            queued_prefill: 0,
            seats_taken: 0,
            prompt_until: 0,
            is_computing: false,
            jobs: HashMap::new(),
            recent: 0.0,
            recent_at: 0,
            seat_time: 0.0,
            seat_time_at: 0,
        }
    }

    /// Requests that are here.
    pub(crate) fn active(&self) -> usize {
        self.jobs.len()
    }

    /// The jobs of a worker that is lost.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.jobs.values().copied().collect();
        jobs.sort_by_key(|job| job.id);
        jobs
    }

    /// Prompt work before a new request.
    pub(crate) fn prompt_backlog(&self, now: Micros) -> Micros {
        self.queued_prefill + self.prompt_until.saturating_sub(now)
    }

    /// Loads before a new one.
    pub(crate) fn loading_ms(&self, now: Micros) -> f64 {
        let under_way = self.loading.map_or(0, |load| load.at.saturating_sub(now)) as f64 / 1000.0;
        let queued = self.to_load.iter().map(|adapter| self.shape.load_ms(*adapter, self.tiers[*adapter as usize]));
        under_way + queued.sum::<f64>()
    }

    /// Work that came lately, in milliseconds of seat time.
    pub(crate) fn recent(&self, now: Micros) -> f64 {
        self.recent * (-((now - self.recent_at) as f64) / RECENT_HALF_LIFE).exp2()
    }

    /// Seat time in microseconds since the last call.
    pub(crate) fn take_seat_time(&mut self, now: Micros) -> f64 {
        self.count_seats(now);
        std::mem::take(&mut self.seat_time)
    }

    fn count_seats(&mut self, now: Micros) {
        self.seat_time += self.seats_taken as f64 * (now - self.seat_time_at) as f64;
        self.seat_time_at = now;
    }

    pub(crate) fn arrive(&mut self, job: Job, now: Micros) {
        self.recent = self.recent(now) + (job.prefill + job.decode) as f64 / 1000.0;
        self.recent_at = now;
        self.jobs.insert(job.id, job);
        *self.users.entry(job.adapter).or_insert(0) += 1;
        let uses = &mut self.uses[job.adapter as usize];
        *uses = Uses { count: uses.at(now) + 1.0, at: now };
        if self.tiers[job.adapter as usize] == SLOT {
            self.enqueue(job);
            return;
        }
        let waiting = self.waiting.entry(job.adapter).or_default();
        waiting.push(job);
        let is_loading = self.loading.is_some_and(|load| load.adapter == job.adapter);
        if waiting.len() == 1 && !is_loading {
            self.to_load.push_back(job.adapter);
        }
    }

    /// Whether a request for this adapter would wait for bytes from disk or from elsewhere.
    pub(crate) fn is_cold(&self, adapter: u32) -> bool {
        self.tiers[adapter as usize] >= 2
    }

    fn enqueue(&mut self, job: Job) {
        self.queued_prefill += job.prefill;
        self.queue.push_back(job);
    }

    /// What an epoch wants here, and whether elsewhere as well. A copy of several is brought ahead: nobody would ask for it
    /// here while others have it. An only copy is brought by the request that needs it.
    pub(crate) fn desire(&mut self, desired: &HashMap<u32, bool>) {
        let missing = desired.iter().filter(|(adapter, is_one_of_many)| **is_one_of_many && self.is_cold(**adapter));
        let mut missing: Vec<u32> = missing.map(|(adapter, _)| *adapter).collect();
        missing.sort_unstable();
        self.ahead = missing.into();
        self.desired = desired.keys().copied().collect();
    }

    /// Begins what can begin.
    pub(crate) fn begin(&mut self, now: Micros) -> Vec<Begun> {
        let mut begun = Vec::new();
        if !self.is_computing
            && self.seats_taken < self.shape.seats
            && let Some(job) = self.queue.pop_front()
        {
            self.count_seats(now);
            self.seats_taken += 1;
            self.is_computing = true;
            self.queued_prefill -= job.prefill;
            self.prompt_until = now + job.prefill;
            begun.push(Begun::Prompt(job, self.prompt_until));
        }
        if self.loading.is_none()
            && let Some(load) = self.next_load(now)
        {
            self.loading = Some(load);
            begun.push(Begun::Load(load));
        }
        begun
    }

    fn next_load(&mut self, now: Micros) -> Option<Load> {
        // What requests wait for comes first.
        if let Some(adapter) = self.to_load.front().copied() {
            if self.held[0].len() >= self.shape.slots && !self.lose(0, now) {
                return None;
            }
            self.to_load.pop_front();
            return Some(self.load(adapter, false, now));
        }
        while let Some(adapter) = self.ahead.pop_front() {
            if self.is_cold(adapter) && self.desired.contains(&adapter) {
                return Some(self.load(adapter, true, now));
            }
        }
        None
    }

    fn load(&self, adapter: u32, is_ahead: bool, now: Micros) -> Load {
        let from = self.tiers[adapter as usize];
        let at = now + (self.shape.load_ms(adapter, from) * 1000.0) as Micros;
        Load { adapter, from, is_ahead, at }
    }

    pub(crate) fn loaded(&mut self, now: Micros) -> Option<Load> {
        let load = self.loading.take()?;
        let has_slot = self.held[0].len() < self.shape.slots || self.waiting.contains_key(&load.adapter);
        let tier = if has_slot && (!load.is_ahead || self.held[0].len() < self.shape.slots) { 0 } else { 1 };
        self.put(load.adapter, tier, now);
        if tier == SLOT {
            for job in self.waiting.remove(&load.adapter).unwrap_or_default() {
                self.enqueue(job);
            }
        } else if self.waiting.contains_key(&load.adapter) {
            // Brought ahead into memory, and asked for meanwhile.
            self.to_load.push_back(load.adapter);
        }
        Some(load)
    }

    fn put(&mut self, adapter: u32, tier: u8, now: Micros) {
        let before = self.tiers[adapter as usize];
        if let Some(held) = self.held.get_mut(usize::from(before)) {
            held.remove(&adapter);
        }
        self.tiers[adapter as usize] = tier;
        let rooms = [self.shape.slots, self.shape.memory, self.shape.disk];
        let Some(held) = self.held.get_mut(usize::from(tier)) else { return };
        held.insert(adapter);
        if tier > 0 && held.len() > rooms[usize::from(tier)] {
            self.lose(tier, now);
        }
    }

    /// Gives up what is worth least in a tier: what no epoch wants here before the rest. False if all is in use.
    fn lose(&mut self, tier: u8, now: Micros) -> bool {
        let idle = self.held[usize::from(tier)].iter().filter(|adapter| tier > 0 || !self.users.contains_key(*adapter));
        let worth = |adapter: &u32| (self.desired.contains(adapter), self.uses[*adapter as usize].at(now), *adapter);
        let least = idle.copied().min_by(|a, b| {
            let (a, b) = (worth(a), worth(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
        });
        let Some(adapter) = least else { return false };
        self.put(adapter, tier + 1, now);
        true
    }

    /// A prompt is computed: the next may begin.
    pub(crate) fn prompt_done(&mut self) {
        self.is_computing = false;
    }

    pub(crate) fn ended(&mut self, id: usize, now: Micros) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.count_seats(now);
        self.seats_taken -= 1;
        if let Some(users) = self.users.get_mut(&job.adapter) {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&job.adapter);
            }
        }
    }
}

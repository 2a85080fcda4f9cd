//! A worker on paper: the real scheduler, a clock that jumps, a machine whose steps and loads cost what is written here,
//! the worker's books of slots, and tenants that ask. Deterministic: no threads, no time, own random numbers.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use weft_batching::pace::StepShape;
use weft_batching::{
    BlockPool, Fairness, Limits, NewRequest, Pace, Phase, Priority, RequestId, Scheduler, StepPlan, Weight,
};
use weft_residency::{Ledger, Room};
use weft_types::Digest;

/// Tokens in a block, as in the worker.
const BLOCK: usize = 16;

/// Microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) step: f64,
    pub(crate) decode: f64,
    pub(crate) prompt_token: f64,
    pub(crate) attended: f64,
    pub(crate) load: f64,
    pub(crate) loads_max: usize,
    /// Part by which each load that runs slows down a step.
    pub(crate) load_slows: f64,
    pub(crate) slots: usize,
    pub(crate) adapter_bytes: u64,
    /// Steps take up to this part more or less.
    pub(crate) noise: f64,
}

impl Default for Machine {
    /// About what the demo model costs on two cores.
    fn default() -> Self {
        Self {
            step: 9000.0,
            decode: 400.0,
            prompt_token: 500.0,
            attended: 0.1,
            load: 20_000.0,
            loads_max: 4,
            load_slows: 0.05,
            slots: 24,
            adapter_bytes: 1 << 20,
            noise: 0.0,
        }
    }
}

/// How a tenant asks.
#[derive(Clone, Debug)]
pub(crate) struct Asks {
    pub(crate) tenant: String,
    pub(crate) weight: f64,
    pub(crate) priority: Priority,
    /// Takes turns among so many adapters of its own. 0: the base.
    pub(crate) adapters: usize,
    pub(crate) prompt: usize,
    pub(crate) output: usize,
    pub(crate) output_max: usize,
    pub(crate) when: When,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// So many at any time.
    Always(usize),
    /// One after another, this many microseconds apart on average (exponential).
    Every(f64),
    /// One, at this time.
    Once(f64),
}

impl Asks {
    pub(crate) fn new(tenant: impl Into<String>, when: When) -> Self {
        Self {
            tenant: tenant.into(),
            weight: 1.0,
            priority: Priority::Normal,
            adapters: 1,
            prompt: 64,
            output: 32,
            output_max: 64,
            when,
        }
    }
}

/// What a tenant got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Got {
    /// Prompt tokens of requests that started, and twice the output tokens.
    pub(crate) service: f64,
    pub(crate) finished: usize,
    pub(crate) loads: usize,
    /// Microseconds, in order of the first tokens.
    pub(crate) first_token: Vec<f64>,
    /// Microseconds between tokens, with the time of the later one.
    pub(crate) between: Vec<(f64, f64)>,
}

struct Live {
    asks: usize,
    adapter: Option<Digest>,
    arrived: f64,
    /// Prompt tokens computed at least once.
    prompt: usize,
    output: usize,
    last_token: f64,
}

pub(crate) struct Sim {
    pub(crate) scheduler: Scheduler,
    pub(crate) machine: Machine,
    asks: Vec<Asks>,
    asked: Vec<usize>,
    pub(crate) now: f64,
    live: HashMap<RequestId, Live>,
    next_id: u64,
    /// Requests to come: time (whole microseconds, so that it orders) and a number, to who asks.
    arrivals: BTreeMap<(u64, u64), usize>,
    loading: Vec<(f64, Digest)>,
    arrived: VecDeque<Digest>,
    slots: Ledger<Digest>,
    served: HashSet<Digest>,
    /// For the machine, and for the times of arrivals, so that both are the same whatever the other does.
    random: [u64; 2],
    pub(crate) got: HashMap<String, Got>,
    pub(crate) steps: usize,
    pub(crate) preempted: usize,
}

impl Sim {
    pub(crate) fn new(machine: Machine, limits: Limits, kv_tokens: usize, fairness: Fairness, pace: Pace) -> Self {
        let pool = BlockPool::new(kv_tokens / BLOCK, BLOCK);
        Self {
            scheduler: Scheduler::new(limits, pool).with_fairness(fairness).with_pace(pace),
            machine,
            asks: Vec::new(),
            asked: Vec::new(),
            now: 0.0,
            live: HashMap::new(),
            next_id: 0,
            arrivals: BTreeMap::new(),
            loading: Vec::new(),
            arrived: VecDeque::new(),
            slots: Ledger::new(machine.slots as u64 * machine.adapter_bytes),
            served: HashSet::new(),
            random: [7, 8],
            got: HashMap::new(),
            steps: 0,
            preempted: 0,
        }
    }

    pub(crate) fn add(&mut self, asks: Asks) {
        let who = self.asks.len();
        match asks.when {
            When::Always(count) => (0..count).for_each(|_| self.arrives(self.now, who)),
            When::Every(_) => self.arrives(self.now, who),
            When::Once(at) => self.arrives(at, who),
        }
        self.asks.push(asks);
        self.asked.push(0);
    }

    /// Runs until this time.
    pub(crate) fn run_until(&mut self, end: f64) {
        while self.now < end {
            self.take_arrivals();
            self.take_loads();
            self.start_loads();
            let plan = self.scheduler.plan();
            self.preempted += plan.preempted.len();
            if plan.chunks.is_empty() {
                let next = self.arrivals.keys().next().map(|(at, _)| *at as f64);
                let loaded = self.loading.iter().map(|(at, _)| *at);
                let wake = next.into_iter().chain(loaded).fold(f64::INFINITY, f64::min);
                if wake.is_infinite() && plan.preempted.is_empty() {
                    return;
                }
                self.now = wake.max(self.now).min(end);
                continue;
            }
            self.step(&plan);
        }
    }

    /// Forgets what was measured so far, not what is known or resident.
    pub(crate) fn measure_from_now(&mut self) {
        self.got.clear();
    }

    pub(crate) fn got(&self, tenant: &str) -> Got {
        self.got.get(tenant).cloned().unwrap_or_default()
    }

    fn random(&mut self, which: usize) -> f64 {
        let state = &mut self.random[which];
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }

    fn arrives(&mut self, at: f64, who: usize) {
        self.next_id += 1;
        self.arrivals.insert((at as u64, self.next_id), who);
    }

    fn take_arrivals(&mut self) {
        while let Some(entry) = self.arrivals.first_entry()
            && entry.key().0 as f64 <= self.now
        {
            let ((at, number), who) = entry.remove_entry();
            let asks = self.asks[who].clone();
            if let When::Every(mean) = asks.when {
                let wait = -mean * (1.0 - self.random(1)).ln();
                self.arrives(at as f64 + wait.max(1.0), who);
            }
            let adapter = (asks.adapters > 0)
                .then(|| Digest::of(format!("{}/{}", asks.tenant, self.asked[who] % asks.adapters).as_bytes()));
            self.asked[who] += 1;
            let new = NewRequest {
                id: RequestId(number),
                tenant: asks.tenant.as_str().into(),
                weight: Weight::new(asks.weight).unwrap(),
                priority: asks.priority,
                adapter,
                prompt_tokens: asks.prompt,
                output_tokens_max: asks.output_max,
                prefix: None,
            };
            let submitted = self.scheduler.submit(new).expect("the queue is long enough");
            assert_eq!(submitted.pushed_out, None);
            let live = Live { asks: who, adapter, arrived: at as f64, prompt: 0, output: 0, last_token: 0.0 };
            self.live.insert(RequestId(number), live);
        }
    }

    fn start_loads(&mut self) {
        while self.loading.len() + self.arrived.len() < self.machine.loads_max {
            let (loading, arrived, slots) = (&self.loading, &self.arrived, &self.slots);
            let here = |digest: &Digest| {
                slots.contains(digest) || arrived.contains(digest) || loading.iter().any(|(_, other)| other == digest)
            };
            let Some(digest) = self.scheduler.next_wanted(here) else { return };
            let who = self.live.values().find(|live| live.adapter == Some(digest)).map(|live| live.asks);
            let tenant = self.asks[who.expect("somebody wants it")].tenant.clone();
            self.got.entry(tenant).or_default().loads += 1;
            self.loading.push((self.now + self.machine.load, digest));
        }
    }

    fn take_loads(&mut self) {
        for (at, digest) in std::mem::take(&mut self.loading) {
            if at <= self.now {
                self.scheduler.loaded(&digest, Some(self.machine.adapter_bytes));
                self.arrived.push_back(digest);
            } else {
                self.loading.push((at, digest));
            }
        }
        let now_ms = (self.now / 1000.0) as u64;
        while let Some(&digest) = self.arrived.front() {
            self.spare_unserved();
            match self.slots.make_room(self.machine.adapter_bytes, now_ms) {
                Room::Fits => {}
                Room::Evict(victims) => {
                    for victim in victims {
                        self.scheduler.close(&victim);
                        self.slots.remove(&victim);
                    }
                }
                Room::TooLarge | Room::Full { .. } => return,
            }
            self.arrived.pop_front();
            self.slots.insert(digest, self.machine.adapter_bytes, now_ms);
            self.served.remove(&digest);
            self.scheduler.open(digest);
        }
    }

    /// As the worker does: what came for a request that still waits is not evicted before it served.
    fn spare_unserved(&mut self) {
        let resident: Vec<Digest> = self.slots.iter().map(|entry| *entry.key).collect();
        for digest in resident {
            let waits = !self.scheduler.of_adapter(&digest, Phase::Waiting).is_empty();
            if !self.served.contains(&digest) && waits && self.scheduler.is_within_share(&digest) {
                self.slots.pin(&digest);
            } else {
                self.slots.unpin(&digest);
            }
        }
    }

    fn step(&mut self, plan: &StepPlan) {
        let shape = StepShape::of(plan);
        let machine = self.machine;
        let work = machine.step
            + machine.decode * shape.decodes as f64
            + machine.prompt_token * shape.prompt_tokens as f64
            + machine.attended * shape.attended as f64;
        let noise = 1.0 + machine.noise * (2.0 * self.random(0) - 1.0);
        let took = work * noise * (1.0 + machine.load_slows * self.loading.len() as f64);
        self.steps += 1;
        for id in &plan.admitted {
            if let Some(digest) = self.live[id].adapter {
                assert!(self.slots.lease(&digest, (self.now / 1000.0) as u64), "admitted without its adapter");
                self.served.insert(digest);
            }
        }
        self.now += took;
        self.scheduler.commit(plan);
        self.scheduler.observe(plan, took);
        for chunk in &plan.chunks {
            let live = self.live.get_mut(&chunk.id).expect("planned requests are live");
            let asks = &self.asks[live.asks];
            let got = self.got.entry(asks.tenant.clone()).or_default();
            let prompt = chunk.tokens.end.min(asks.prompt).max(live.prompt);
            let fresh = prompt - live.prompt;
            live.prompt = prompt;
            got.service += fresh as f64 + 2.0 * f64::from(u8::from(chunk.samples));
            if !chunk.samples {
                continue;
            }
            live.output += 1;
            if live.output == 1 {
                got.first_token.push(self.now - live.arrived);
            } else {
                got.between.push((self.now, self.now - live.last_token));
            }
            live.last_token = self.now;
            if live.output < asks.output {
                self.scheduler.sampled(chunk.id);
                continue;
            }
            got.finished += 1;
            let (who, again) = (live.asks, matches!(asks.when, When::Always(_)));
            if let Some(digest) = live.adapter {
                self.slots.release(&digest);
            }
            self.scheduler.remove(chunk.id);
            self.live.remove(&chunk.id);
            if again {
                self.arrives(self.now, who);
            }
        }
    }
}

/// The value below which this part of the values lies; 0 of none.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

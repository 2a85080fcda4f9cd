//! Who runs in the next step.
//!
//! A request is *beside* the queue while its adapter has no slot, *waiting* once it could run, *running* once it holds
//! KV blocks, and *preempted* when these were taken from it; a preempted request computes its tokens again, those that
//! were delivered included, and goes on where it was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::counters::{Counters, Fairness, Priority, Weight};
use crate::fair_queue::{Entry, FairQueue};
use crate::foresight::OutputLengths;
use crate::loads::Loads;
use crate::pace::{Pace, Room, StepCosts, StepShape};
use crate::turns::Tenant;
use crate::{BlockPool, BlockTable, Error, Prefix};
pub use blocks::BlocksWanted;
pub use cached::PrefixCounts;
use weft_types::Digest;

mod admission;
mod blocks;
mod cached;
mod turns;

/// A request, numbered by arrival: the smaller the older. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What a scheduler may hand out.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most tokens of one step, prompt and output together. At least 1.
    pub step_tokens_max: usize,
    /// Most requests that run at once. At least 1; what exceeds `step_tokens_max` has no effect, so that every running
    /// request gets its token in every step.
    pub running_max: usize,
    /// Most requests that wait, in the queue and beside it.
    pub queue_max: usize,
}

/// A request as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// Its name, larger than all before.
    pub id: RequestId,
    /// Who is charged for it.
    pub tenant: Tenant,
    /// The tenant's share, from this request on.
    pub weight: Weight,
    /// Its class.
    pub priority: Priority,
    /// The adapter that must hold a slot while it runs; none for the base alone.
    pub adapter: Option<Digest>,
    /// At least 1.
    pub prompt_tokens: usize,
    /// At least 1.
    pub output_tokens_max: usize,
    /// Its part in the prefix cache; none: it neither reads nor fills it.
    pub prefix: Option<Prefix>,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its adapter has no slot.
    Beside,
    /// It could run and waits for its turn.
    Waiting,
    /// It holds KV blocks.
    Running,
    /// Its KV blocks were taken; it still counts as a user of its adapter.
    Preempted,
}

/// The answer to a submission that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// The newest request of the tenant with most queued requests had to make room: it is no longer known here and has
    /// to be answered "overloaded".
    pub pushed_out: Option<RequestId>,
}

/// Part of one request in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub id: RequestId,
    /// Positions to compute, as indices into prompt and output. Never empty.
    pub tokens: Range<usize>,
    /// Physical KV blocks; they cover `0..tokens.end`. Those before the one that holds `tokens.start` may be in other
    /// chunks too.
    pub blocks: Vec<u32>,
    /// The chunk ends with the last known token: its logits choose the next one.
    pub samples: bool,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// What to compute; decodes first. No request twice.
    pub chunks: Vec<Chunk>,
    /// Requests that run for the first time: from now on they use their adapter's slot.
    pub admitted: Vec<RequestId>,
    /// Requests whose KV blocks were taken for others.
    pub preempted: Vec<RequestId>,
}

/// How busy the scheduler is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that run, preempted ones included.
    pub running: usize,
    /// Requests that could run.
    pub waiting: usize,
    /// Requests whose adapter is on its way.
    pub beside: usize,
    /// KV blocks that requests hold.
    pub blocks_used: usize,
    /// KV blocks that nobody holds, kept for the prefix cache.
    pub blocks_idle: usize,
    /// KV blocks in all, but for those of adapters in use.
    pub blocks_total: usize,
}

#[derive(Debug)]
struct Request {
    tenant: Tenant,
    adapter: Option<Digest>,
    priority: Priority,
    /// Its place among the tenant's requests; see [`Entry`].
    stamp: u64,
    phase: Phase,
    prompt: usize,
    /// Prompt tokens that were charged: those computed at least once.
    charged: usize,
    /// Output tokens expected when it came.
    output_expected: usize,
    /// Prompt and output so far.
    known: usize,
    /// Of these, how many are in the KV blocks.
    computed: usize,
    /// Prompt and output at most.
    known_max: usize,
    blocks: BlockTable,
    prefix: Option<Prefix>,
    /// Number of its first admission: the larger, the younger.
    admission: u64,
}

impl Request {
    fn missing(&self) -> usize {
        self.known - self.computed
    }

    /// One token behind a computed prefix: a decode.
    fn decodes(&self) -> bool {
        self.computed > 0 && self.missing() == 1
    }

    fn entry(&self, id: RequestId) -> Entry {
        Entry { stamp: self.stamp, id, priority: self.priority }
    }
}

/// Turns requests into step plans. The caller asks for a plan, runs it, and reports with [`Scheduler::commit`],
/// [`Scheduler::sampled`] and [`Scheduler::remove`] before it asks again.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    fairness: Fairness,
    pace: Pace,
    pool: BlockPool,
    requests: HashMap<RequestId, Request>,
    waiting: FairQueue,
    beside: FairQueue,
    counters: Counters,
    loads: Loads,
    lengths: OutputLengths,
    costs: StepCosts,
    /// By first admission, so that the last is the youngest.
    running: BTreeMap<u64, RequestId>,
    preempted: BTreeMap<u64, RequestId>,
    /// Adapters that hold a slot and take new requests.
    open: HashSet<Digest>,
    admissions: u64,
    prefix_counts: PrefixCounts,
}

impl Scheduler {
    /// A scheduler over the blocks of this pool, with the default prices and pace.
    #[must_use]
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        let step_tokens_max = limits.step_tokens_max.max(1);
        let limits = Limits { step_tokens_max, running_max: limits.running_max.clamp(1, step_tokens_max), ..limits };
        Self {
            limits,
            fairness: Fairness::default(),
            pace: Pace::default(),
            pool,
            requests: HashMap::new(),
            waiting: FairQueue::default(),
            beside: FairQueue::default(),
            counters: Counters::default(),
            loads: Loads::default(),
            lengths: OutputLengths::default(),
            costs: StepCosts::default(),
            running: BTreeMap::new(),
            preempted: BTreeMap::new(),
            open: HashSet::new(),
            admissions: 0,
            prefix_counts: PrefixCounts::default(),
        }
    }

    /// With these prices and bounds among tenants.
    #[must_use]
    pub fn with_fairness(self, fairness: Fairness) -> Self {
        Self { fairness, ..self }
    }

    /// With this pace of prompts beside decodes.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Takes a request in.
    ///
    /// When the queue is full, the tenant that has most of it for its weight makes room with the newest request of its
    /// lowest class, if it has at least two more than this one: a flood pushes out its own.
    ///
    /// # Errors
    /// The queue is full of others who have no more than this tenant; the request can never fit the KV memory; a
    /// count is 0; the id is taken.
    pub fn submit(&mut self, new: NewRequest) -> Result<Submitted, Error> {
        for (what, count) in [("prompt_tokens", new.prompt_tokens), ("output_tokens_max", new.output_tokens_max)] {
            if count == 0 {
                return Err(Error::Empty { what });
            }
        }
        if self.requests.contains_key(&new.id) {
            return Err(Error::Duplicate(new.id.0));
        }
        // The last output token is delivered, never computed.
        let known_max = new.prompt_tokens.saturating_add(new.output_tokens_max);
        let limit = self.pool.total() * self.pool.block_size();
        if known_max - 1 > limit {
            return Err(Error::TooLong { tokens: known_max - 1, limit });
        }
        let pushed_out = self.make_room_in_queue(&new.tenant, new.weight)?;
        let ready = new.adapter.is_none_or(|digest| self.open.contains(&digest));
        let phase = if ready { Phase::Waiting } else { Phase::Beside };
        let stamp = self.arrive(&new.tenant, new.weight, phase) + self.fairness.head_start(new.priority);
        self.requests.insert(
            new.id,
            Request {
                output_expected: self.lengths.expect(&new.tenant, new.adapter, new.output_tokens_max),
                tenant: new.tenant,
                adapter: new.adapter,
                priority: new.priority,
                stamp,
                phase,
                prompt: new.prompt_tokens,
                charged: 0,
                known: new.prompt_tokens,
                computed: 0,
                known_max,
                blocks: BlockTable::new(),
                prefix: new.prefix,
                admission: 0,
            },
        );
        self.enqueue(new.id, phase);
        Ok(Submitted { pushed_out })
    }

    /// The adapter holds a slot: its requests join the queue, at their age.
    pub fn open(&mut self, adapter: Digest) {
        self.open.insert(adapter);
        // Whoever did not say how large it was pays the usual.
        self.charge_load(&adapter, None);
        self.requeue(adapter, Phase::Beside, Phase::Waiting);
    }

    /// The adapter takes no new requests: those that wait go beside the queue. Running and preempted ones go on.
    pub fn close(&mut self, adapter: &Digest) {
        self.open.remove(adapter);
        if !self.loads.is_on_its_way(adapter) {
            self.loads.end(adapter);
        }
        self.requeue(*adapter, Phase::Waiting, Phase::Beside);
    }

    /// Requests in this phase that name the adapter. Cost: linear in all requests.
    #[must_use]
    pub fn of_adapter(&self, adapter: &Digest, phase: Phase) -> Vec<RequestId> {
        let of = |(id, request): (&RequestId, &Request)| {
            (request.phase == phase && request.adapter.as_ref() == Some(adapter)).then_some(*id)
        };
        let mut ids: Vec<RequestId> = self.requests.iter().filter_map(of).collect();
        ids.sort_unstable();
        ids
    }

    /// The next step. Empty if nobody can run; then something must arrive, finish or be loaded first.
    pub fn plan(&mut self) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut tokens_left = self.limits.step_tokens_max;
        self.plan_decodes(&mut plan, &mut tokens_left);
        let mut room = self.costs.room(plan.chunks.len(), self.will_run(), tokens_left, &self.pace);
        // What was taken from a request in this step is not given back to it in the same step.
        let may_admit = plan.preempted.is_empty();
        let newcomer_waits = may_admit && self.next_admission().is_some();
        // A long prompt leaves half of the room to whoever waits for its first tokens.
        let kept_for_newcomer = if newcomer_waits { room.split() } else { Room::default() };
        self.plan_prefills(&mut plan, &mut room);
        room.join(kept_for_newcomer);
        if may_admit {
            self.plan_admissions(&mut plan, &mut room);
        }
        self.costs.note_planned(StepShape::of(&plan));
        plan
    }

    /// The step was computed. Requests that were removed meanwhile are passed over.
    pub fn commit(&mut self, plan: &StepPlan) {
        plan.chunks.iter().for_each(|chunk| self.commit_chunk(chunk));
    }

    /// This part of the step was computed, as it should be: whoever begins alike may read its full blocks from now on.
    pub fn commit_chunk(&mut self, chunk: &Chunk) {
        if let Some(request) = self.requests.get_mut(&chunk.id) {
            debug_assert_eq!(request.computed, chunk.tokens.start, "invariant: a token is computed once");
            request.computed = chunk.tokens.end;
            self.cache_completed(chunk.id, chunk.tokens.start);
        }
    }

    /// How long the step of this plan took, in microseconds: prompts are paced by it. Not for a step in which something
    /// failed.
    pub fn observe(&mut self, plan: &StepPlan, micros: f64) {
        self.costs.observe(StepShape::of(plan), micros);
    }

    /// What steps cost, as far as it was observed.
    #[must_use]
    pub fn costs(&self) -> &StepCosts {
        &self.costs
    }

    /// The request has one more token. After its last one the caller removes it instead.
    pub fn sampled(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.known = (request.known + 1).min(request.known_max);
        }
    }

    /// Forgets the request, whatever it does, and frees its blocks at once. Says where it was.
    pub fn remove(&mut self, id: RequestId) -> Option<Phase> {
        let phase = self.requests.get(&id)?.phase;
        match phase {
            Phase::Waiting | Phase::Beside => self.dequeue(id),
            Phase::Running | Phase::Preempted => {}
        }
        let mut request = self.requests.remove(&id)?;
        match phase {
            Phase::Running => drop(self.running.remove(&request.admission)),
            Phase::Preempted => {
                self.preempted.remove(&request.admission);
                self.note_left(&request.tenant);
            }
            Phase::Waiting | Phase::Beside => self.forget_unwanted_load(request.adapter),
        }
        self.learn_length(&request);
        self.pool.release(&mut request.blocks);
        Some(phase)
    }

    /// Where the request is.
    #[must_use]
    pub fn phase(&self, id: RequestId) -> Option<Phase> {
        self.requests.get(&id).map(|request| request.phase)
    }

    /// How busy it is. Cheap.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            running: self.running.len() + self.preempted.len(),
            waiting: self.waiting.len(),
            beside: self.beside.len(),
            blocks_used: self.pool.own() - self.pool.free(),
            blocks_idle: self.pool.idle(),
            blocks_total: self.pool.within_reach(),
        }
    }

    /// How many of those who are here can run at once.
    fn will_run(&self) -> usize {
        (self.running.len() + self.preempted.len() + self.waiting.len()).min(self.limits.running_max)
    }

    /// Every running request gets the block it needs for its next token; those ranked last pay for it.
    fn plan_decodes(&mut self, plan: &mut StepPlan, tokens_left: &mut usize) {
        let mut ranked = self.rank_running();
        let mut next = 0;
        while next < ranked.len() {
            let id = ranked[next];
            next += 1;
            if self.requests[&id].decodes() && self.grow_by_preemption(id, &mut ranked, plan) {
                self.push_chunk(id, 1, plan);
                *tokens_left -= 1;
            }
        }
    }

    /// Grows to all known tokens. Takes the blocks of those ranked last if it has to, at last its own: requests are
    /// served in rank, so the victim has no chunk in this plan yet.
    fn grow_by_preemption(&mut self, id: RequestId, ranked: &mut Vec<RequestId>, plan: &mut StepPlan) -> bool {
        loop {
            let request = self.requests.get_mut(&id).expect("invariant: running requests are known");
            if self.pool.try_grow(&mut request.blocks, request.known) {
                return true;
            }
            let victim = ranked.pop().expect("invariant: the request itself is ranked");
            self.preempt(victim);
            plan.preempted.push(victim);
            if victim == id {
                return false;
            }
        }
    }

    fn preempt(&mut self, id: RequestId) {
        let request = self.requests.get_mut(&id).expect("invariant: running requests are known");
        let tenant = request.tenant.clone();
        request.phase = Phase::Preempted;
        request.computed = 0;
        self.pool.release(&mut request.blocks);
        self.running.remove(&request.admission);
        let admission = request.admission;
        self.lift(&tenant, Phase::Waiting);
        self.preempted.insert(admission, id);
    }

    /// Prompts that run go on, those of the least charged tenant first: as each chunk is charged at once, tenants share
    /// the room over the steps.
    fn plan_prefills(&mut self, plan: &mut StepPlan, room: &mut Room) {
        let open = self.running.values().copied();
        let mut open: Vec<RequestId> =
            open.filter(|id| !self.requests[id].decodes() && self.requests[id].missing() > 0).collect();
        while room.tokens > 0 && !open.is_empty() {
            let rank = |index: &usize| (self.key_of(open[*index]), self.requests[&open[*index]].admission);
            let next = (0..open.len()).min_by_key(rank).expect("invariant: not empty");
            let id = open.remove(next);
            self.prefill(id, plan, room);
        }
    }

    /// Plans as many missing tokens as room and free blocks allow. None is not for ever: decodes that took the blocks
    /// finish, and the blocks of all running prompts were free at admission.
    fn prefill(&mut self, id: RequestId, plan: &mut StepPlan, room: &mut Room) {
        let request = self.requests.get_mut(&id).expect("invariant: running requests are known");
        let places = (request.blocks.len() + self.pool.free()) * self.pool.block_size() - request.computed;
        let start = request.computed;
        let tokens = self.costs.fit(room, start, request.missing()).min(places);
        let grown = self.pool.try_grow(&mut request.blocks, start + tokens);
        debug_assert!(grown, "invariant: the chunk was cut to the places");
        if grown && tokens > 0 {
            self.costs.spend(room, start, tokens);
            self.push_chunk(id, tokens, plan);
        }
    }

    /// Plans the request's next tokens and charges those that are computed for the first time.
    fn push_chunk(&mut self, id: RequestId, tokens: usize, plan: &mut StepPlan) {
        let request = self.requests.get_mut(&id).expect("invariant: running requests are known");
        let end = request.computed + tokens;
        let samples = end == request.known;
        plan.chunks.push(Chunk {
            id,
            tokens: request.computed..end,
            blocks: request.blocks.blocks()[..self.pool.blocks_for(end)].to_vec(),
            samples,
        });
        let first_time = end.min(request.prompt).saturating_sub(request.charged.max(request.computed));
        request.charged = request.charged.max(end.min(request.prompt));
        let cost = Fairness::tokens_cost(first_time, usize::from(samples));
        self.counters.charge(&request.tenant, cost);
    }

    fn enqueue(&mut self, id: RequestId, phase: Phase) {
        let request = self.requests.get_mut(&id).expect("invariant: only known requests are queued");
        request.phase = phase;
        let (tenant, entry) = (request.tenant.clone(), request.entry(id));
        self.lift(&tenant, phase);
        if phase == Phase::Waiting { &mut self.waiting } else { &mut self.beside }.push(&tenant, entry);
    }

    fn dequeue(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        let (tenant, entry) = (request.tenant.clone(), request.entry(id));
        if request.phase == Phase::Waiting {
            self.waiting.remove(&tenant, &entry);
            self.note_left(&tenant);
        } else {
            self.beside.remove(&tenant, &entry);
        }
    }

    fn requeue(&mut self, adapter: Digest, from: Phase, to: Phase) {
        for id in self.of_adapter(&adapter, from) {
            self.dequeue(id);
            self.enqueue(id, to);
        }
    }
}

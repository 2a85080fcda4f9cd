//! Who runs in the next step.
//!
//! A request is *beside* the queue while its adapter has no slot, *waiting* once it could run, *running* once it holds
//! KV blocks, and *preempted* when these were taken from it; a preempted request computes its tokens again, those that
//! were delivered included, and goes on where it was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

pub use crate::turns::Tenant;
use crate::turns::TurnQueue;
use crate::{BlockPool, BlockTable, Error, Prefix};
pub use cached::PrefixCounts;
use weft_types::Digest;

mod cached;

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
    /// Whose turn it uses.
    pub tenant: Tenant,
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
    /// Requests whose KV blocks were taken for older ones.
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
    /// KV blocks in all.
    pub blocks_total: usize,
}

#[derive(Debug)]
struct Request {
    tenant: Tenant,
    adapter: Option<Digest>,
    phase: Phase,
    /// Prompt and output so far.
    known: usize,
    /// Of these, how many are in the KV blocks.
    computed: usize,
    /// Prompt and output at most.
    known_max: usize,
    blocks: BlockTable,
    prefix: Option<Prefix>,
    /// Number of its first admission: the larger, the sooner it is preempted.
    admission: u64,
    /// Step in which it last got prompt tokens.
    prefill_step: u64,
}

impl Request {
    fn missing(&self) -> usize {
        self.known - self.computed
    }

    /// One token behind a computed prefix: a decode.
    fn decodes(&self) -> bool {
        self.computed > 0 && self.missing() == 1
    }
}

/// Turns requests into step plans. The caller asks for a plan, runs it, and reports with [`Scheduler::commit`],
/// [`Scheduler::sampled`] and [`Scheduler::remove`] before it asks again.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    requests: HashMap<RequestId, Request>,
    waiting: TurnQueue<RequestId>,
    beside: TurnQueue<RequestId>,
    /// Waiting and beside, by tenant.
    queued_by_tenant: HashMap<Tenant, usize>,
    /// By first admission, so that the last is the youngest.
    running: BTreeMap<u64, RequestId>,
    preempted: BTreeMap<u64, RequestId>,
    /// Adapters that hold a slot and take new requests.
    open: HashSet<Digest>,
    admissions: u64,
    steps: u64,
    prefix_counts: PrefixCounts,
}

impl Scheduler {
    /// A scheduler over the blocks of this pool.
    #[must_use]
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        let step_tokens_max = limits.step_tokens_max.max(1);
        let limits = Limits { step_tokens_max, running_max: limits.running_max.clamp(1, step_tokens_max), ..limits };
        Self {
            limits,
            pool,
            requests: HashMap::new(),
            waiting: TurnQueue::default(),
            beside: TurnQueue::default(),
            queued_by_tenant: HashMap::new(),
            running: BTreeMap::new(),
            preempted: BTreeMap::new(),
            open: HashSet::new(),
            admissions: 0,
            steps: 0,
            prefix_counts: PrefixCounts::default(),
        }
    }

    /// Takes a request in.
    ///
    /// When the queue is full, the newest request of the tenant that has most of it makes room, if that tenant has
    /// at least two more than this one: a flood pushes out its own.
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
        let pushed_out = self.make_room_in_queue(&new.tenant)?;
        let ready = new.adapter.is_none_or(|digest| self.open.contains(&digest));
        self.requests.insert(
            new.id,
            Request {
                tenant: new.tenant,
                adapter: new.adapter,
                phase: Phase::Waiting,
                known: new.prompt_tokens,
                computed: 0,
                known_max,
                blocks: BlockTable::new(),
                prefix: new.prefix,
                admission: 0,
                prefill_step: 0,
            },
        );
        self.enqueue(new.id, if ready { Phase::Waiting } else { Phase::Beside });
        Ok(Submitted { pushed_out })
    }

    /// The adapter holds a slot: its requests join the queue, at their age.
    pub fn open(&mut self, adapter: Digest) {
        self.open.insert(adapter);
        self.requeue(adapter, Phase::Beside, Phase::Waiting);
    }

    /// The adapter takes no new requests: those that wait go beside the queue. Running and preempted ones go on.
    pub fn close(&mut self, adapter: &Digest) {
        self.open.remove(adapter);
        self.requeue(*adapter, Phase::Waiting, Phase::Beside);
    }

    /// The adapter that should be brought next, among those with requests beside the queue that `skip` does not
    /// know: tenants take turns, the oldest request of a tenant first.
    pub fn next_wanted(&mut self, skip: impl Fn(&Digest) -> bool) -> Option<Digest> {
        let requests = &self.requests;
        let adapter_of = |id: RequestId| requests.get(&id).and_then(|request| request.adapter);
        let id = self.beside.take_turn(|id| adapter_of(id).is_some_and(|digest| !skip(&digest)))?;
        adapter_of(id)
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
        self.steps += 1;
        let mut plan = StepPlan::default();
        let mut tokens_left = self.limits.step_tokens_max;
        self.plan_decodes(&mut plan, &mut tokens_left);
        // What was taken from a request in this step is not given back to it in the same step.
        let may_admit = plan.preempted.is_empty();
        let newcomer_waits = may_admit && self.next_admission().is_some();
        // A long prompt leaves half of the room to whoever waits for its first tokens.
        let kept_for_newcomer = if newcomer_waits { tokens_left / 2 } else { 0 };
        let mut prefill_tokens_left = tokens_left - kept_for_newcomer;
        self.plan_prefills(&mut plan, &mut prefill_tokens_left);
        tokens_left = prefill_tokens_left + kept_for_newcomer;
        if may_admit {
            self.plan_admissions(&mut plan, &mut tokens_left);
        }
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
            Phase::Preempted => drop(self.preempted.remove(&request.admission)),
            Phase::Waiting | Phase::Beside => {}
        }
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
            blocks_used: self.pool.total() - self.pool.free(),
            blocks_idle: self.pool.idle(),
            blocks_total: self.pool.total(),
        }
    }

    /// Every running request gets the block it needs for its next token; the youngest pay for it.
    fn plan_decodes(&mut self, plan: &mut StepPlan, tokens_left: &mut usize) {
        let oldest_first: Vec<RequestId> = self.running.values().copied().collect();
        for id in oldest_first {
            let request = &self.requests[&id];
            // Preempted by an older one a moment ago, or not there yet.
            if request.phase != Phase::Running || !request.decodes() {
                continue;
            }
            if self.grow_by_preemption(id, plan) {
                self.push_chunk(id, 1, plan);
                *tokens_left -= 1;
            }
        }
    }

    /// Grows to all known tokens. Takes the blocks of younger requests if it has to, at last its own. Requests are
    /// served oldest first, so the victim has no chunk in this plan yet.
    fn grow_by_preemption(&mut self, id: RequestId, plan: &mut StepPlan) -> bool {
        loop {
            let request = self.requests.get_mut(&id).expect("invariant: running requests are known");
            if self.pool.try_grow(&mut request.blocks, request.known) {
                return true;
            }
            let (&admission, &victim) = self.running.last_key_value().expect("invariant: the request itself runs");
            self.running.remove(&admission);
            self.preempted.insert(admission, victim);
            let request = self.requests.get_mut(&victim).expect("invariant: running requests are known");
            request.phase = Phase::Preempted;
            request.computed = 0;
            self.pool.release(&mut request.blocks);
            plan.preempted.push(victim);
            if victim == id {
                return false;
            }
        }
    }

    /// Prompts that run go on; tenants take turns, so that the prompts of one do not hold up another's.
    fn plan_prefills(&mut self, plan: &mut StepPlan, tokens_left: &mut usize) {
        let mut last_turn: HashMap<Tenant, u64> = HashMap::new();
        let mut open: Vec<RequestId> = Vec::new();
        for id in self.running.values() {
            let request = &self.requests[id];
            let turn = last_turn.entry(request.tenant.clone()).or_default();
            *turn = (*turn).max(request.prefill_step);
            if !request.decodes() && request.missing() > 0 {
                open.push(*id);
            }
        }
        while *tokens_left > 0 && !open.is_empty() {
            let next = (0..open.len())
                .min_by_key(|index| {
                    let request = &self.requests[&open[*index]];
                    (last_turn.get(&request.tenant).copied(), request.admission)
                })
                .expect("invariant: not empty");
            let id = open.remove(next);
            let chunk = self.prefill_tokens(id, *tokens_left);
            if chunk == 0 {
                continue;
            }
            last_turn.insert(self.requests[&id].tenant.clone(), self.steps);
            self.push_chunk(id, chunk, plan);
            *tokens_left -= chunk;
        }
    }

    /// Grows for as many missing tokens as budget and free blocks allow, and says for how many. An answer of 0 is not
    /// for ever: decodes that took the blocks finish, and the blocks of all running prompts were free at admission.
    fn prefill_tokens(&mut self, id: RequestId, tokens_left: usize) -> usize {
        let request = self.requests.get_mut(&id).expect("invariant: running requests are known");
        let room = (request.blocks.len() + self.pool.free()) * self.pool.block_size() - request.computed;
        let chunk = request.missing().min(tokens_left).min(room);
        let grown = self.pool.try_grow(&mut request.blocks, request.computed + chunk);
        debug_assert!(grown, "invariant: the chunk was cut to the room");
        request.prefill_step = self.steps;
        if grown { chunk } else { 0 }
    }

    fn plan_admissions(&mut self, plan: &mut StepPlan, tokens_left: &mut usize) {
        while *tokens_left > 0 {
            let Some(id) = self.next_admission() else { return };
            let request = self.requests.get_mut(&id).expect("invariant: queued requests are known");
            let first_time = request.phase != Phase::Preempted;
            if !first_time {
                self.preempted.remove(&request.admission);
            } else {
                self.waiting.pop();
                self.admissions += 1;
                request.admission = self.admissions;
                plan.admitted.push(id);
                let tenant = request.tenant.clone();
                self.count_queued(&tenant, false);
            }
            let request = self.requests.get_mut(&id).expect("invariant: queued requests are known");
            request.phase = Phase::Running;
            self.running.insert(request.admission, id);
            self.start_behind_cached(id, first_time);
            let chunk = self.prefill_tokens(id, *tokens_left);
            self.push_chunk(id, chunk, plan);
            *tokens_left -= chunk;
        }
    }

    /// Who is admitted next, if its blocks are free: preempted requests first, the oldest of them; then whose turn it
    /// is. Nobody overtakes a request that does not fit yet, so that it will.
    fn next_admission(&self) -> Option<RequestId> {
        if self.running.len() >= self.limits.running_max {
            return None;
        }
        let id = self.preempted.first_key_value().map(|(_, id)| *id).or_else(|| self.waiting.peek())?;
        let request = &self.requests[&id];
        let own = self.pool.blocks_for((request.known + 1).min(request.known_max - 1));
        let own = own - self.cached(request).referenced;
        // Blocks that running prompts still have to take, and one for each that decodes: else the next step preempts.
        let promised: usize = self
            .running
            .values()
            .map(|id| &self.requests[id])
            .map(|running| self.pool.blocks_for(running.known).saturating_sub(running.blocks.len()) + 1)
            .sum();
        (own + promised <= self.pool.free()).then_some(id)
    }

    fn push_chunk(&mut self, id: RequestId, tokens: usize, plan: &mut StepPlan) {
        let request = &self.requests[&id];
        let end = request.computed + tokens;
        plan.chunks.push(Chunk {
            id,
            tokens: request.computed..end,
            blocks: request.blocks.blocks()[..self.pool.blocks_for(end)].to_vec(),
            samples: end == request.known,
        });
    }

    fn make_room_in_queue(&mut self, tenant: &Tenant) -> Result<Option<RequestId>, Error> {
        let queued = self.waiting.len() + self.beside.len();
        if queued < self.limits.queue_max {
            return Ok(None);
        }
        let full = Error::QueueFull { queued, limit: self.limits.queue_max };
        let own = self.queued_by_tenant.get(tenant).copied().unwrap_or(0);
        let longest = self.queued_by_tenant.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0)));
        let Some((longest, &count)) = longest else { return Err(full) };
        if count < own + 2 {
            return Err(full);
        }
        let newest = self.waiting.newest_of(longest).max(self.beside.newest_of(longest));
        let victim = newest.expect("invariant: counted requests are queued");
        self.remove(victim);
        Ok(Some(victim))
    }

    fn enqueue(&mut self, id: RequestId, phase: Phase) {
        let request = self.requests.get_mut(&id).expect("invariant: only known requests are queued");
        request.phase = phase;
        let tenant = request.tenant.clone();
        if phase == Phase::Waiting { &mut self.waiting } else { &mut self.beside }.push(&tenant, id);
        self.count_queued(&tenant, true);
    }

    fn dequeue(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        let tenant = request.tenant.clone();
        if request.phase == Phase::Waiting { &mut self.waiting } else { &mut self.beside }.remove(&tenant, id);
        self.count_queued(&tenant, false);
    }

    fn requeue(&mut self, adapter: Digest, from: Phase, to: Phase) {
        for id in self.of_adapter(&adapter, from) {
            self.dequeue(id);
            self.enqueue(id, to);
        }
    }

    fn count_queued(&mut self, tenant: &Tenant, joined: bool) {
        if joined {
            *self.queued_by_tenant.entry(tenant.clone()).or_default() += 1;
        } else if let Some(count) = self.queued_by_tenant.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.queued_by_tenant.remove(tenant);
            }
        }
    }
}

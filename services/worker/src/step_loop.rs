//! The loop: one thread of its own that owns the engine, the slots and every request.
//!
//! Each round takes what arrived (requests, cancellations, loaded adapters), finds slots, starts loads, plans a step,
//! runs it and tells the callers. Nothing in it waits for IO; it sleeps only when nobody can run.

mod masks;
mod residency;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use weft_batching::{BlockPool, Chunk, Fairness, Limits, NewRequest, Phase, RequestId, Scheduler, StepPlan, Submitted};
use weft_engine::{Engine, SeqOutput, SeqStep, StepBatch, StepOutput};
use weft_fault::Kind;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

pub(crate) use residency::Wish;

use crate::Error;
use crate::adapters::ahead::Ahead;
use crate::adapters::load::{Brought, Loader};
use crate::adapters::loads::Loads;
use crate::adapters::prefetch::Prefetch;
use crate::adapters::slots::{Budgets, HALF_LIFE_MS, Slots};
use crate::adapters::starved::Starved;
use crate::admit::Job;
use crate::desired::Desired;
use crate::error::chain;
use crate::masks::MaskThreads;
use crate::metrics::Metrics;
use crate::model::{BLOCK_SIZE, Model};
use crate::prefill_rate::PrefillRate;
use crate::request::{Active, Ending, Events, Progress, StepFacts};
use crate::settings::Settings;
use crate::view::View;

/// What is sent to the loop. The channel is unbounded; submissions are bounded by their permits, the rest by them.
pub(crate) enum Command {
    /// A new request. The permit is given back once the scheduler has taken or refused it.
    Submit { id: RequestId, job: Box<Job>, events: Events, arrival: OwnedSemaphorePermit },
    /// The caller is gone.
    Cancel(RequestId),
    /// A mask was computed: it is among those of the helpers.
    MaskDone,
    /// A load ended, or waits for its turn.
    Brought { digest: Digest, result: Result<Brought, Error> },
    /// An operator's wish.
    Residency(Wish),
    /// What the last placement wants here; whether that is news.
    Desire { desired: Vec<Desired>, is_news: bool },
    /// End now; whoever is left is told so.
    Stop,
}

/// What the loop is made of.
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) model: Arc<Model>,
    pub(crate) settings: Settings,
    pub(crate) budgets: Budgets,
    pub(crate) loader: Loader,
    pub(crate) prefetch: Prefetch,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) view: Arc<View>,
    pub(crate) metrics: Metrics,
    pub(crate) masks: MaskThreads,
    /// For what the loop starts to report back.
    pub(crate) commands: Sender<Command>,
}

pub(crate) struct StepLoop {
    parts: Parts,
    inbox: Receiver<Command>,
    scheduler: Scheduler,
    slots: Slots,
    active: HashMap<RequestId, Active>,
    loads: Loads,
    ahead: Ahead,
    starved: Starved,
    /// Whose logits wait for a mask.
    held: Vec<RequestId>,
    /// Last words, told after the next [`StepLoop::show`].
    endings: Vec<Ending>,
    /// Used again by every step.
    output: StepOutput,
    born: Instant,
    load: pb::GetLoadResponse,
    prefill: PrefillRate,
    generation_shown: Option<(u64, u64)>,
    /// Grows whenever a slot gets or loses a user.
    users_changed: u64,
    /// Why no later step would succeed; the loop ends with it.
    fatal: Option<Error>,
}

impl StepLoop {
    pub(crate) fn new(parts: Parts, inbox: Receiver<Command>) -> Self {
        let limits = Limits {
            step_tokens_max: parts.settings.step_tokens_max,
            running_max: parts.settings.running_requests_max,
            queue_max: parts.settings.queue_requests_max,
        };
        parts.metrics.slot_bytes_total.set(i64::try_from(parts.budgets.slots).unwrap_or(i64::MAX));
        let pool = BlockPool::new(parts.engine.kv_blocks(), BLOCK_SIZE).with_half_life_ms(HALF_LIFE_MS);
        let fairness = Fairness {
            load_tokens_per_mib: parts.settings.adapter_load_tokens_per_mib,
            priority_tokens: parts.settings.priority_tokens,
            loads_ahead_max: parts.settings.adapter_loads_ahead_max,
        };
        Self {
            inbox,
            scheduler: Scheduler::new(limits, pool).with_fairness(fairness).with_pace(parts.settings.pace()),
            slots: Slots::new(&parts.budgets),
            active: HashMap::new(),
            loads: Loads::new(parts.settings.adapter_leases_max),
            ahead: Ahead::default(),
            starved: Starved::default(),
            held: Vec::new(),
            endings: Vec::new(),
            output: StepOutput::default(),
            born: Instant::now(),
            load: pb::GetLoadResponse::default(),
            prefill: PrefillRate::default(),
            generation_shown: None,
            users_changed: 0,
            fatal: None,
            parts,
        }
    }

    /// Runs until [`Command::Stop`], or until nobody can send commands any more.
    ///
    /// # Errors
    /// The engine's device has failed: whoever runs this loop should open another.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let mut idle = true;
        loop {
            self.show();
            if idle {
                self.parts.view.rests();
            }
            let goes_on = self.receive(idle);
            self.parts.view.turns();
            if !goes_on {
                break;
            }
            self.take_masks();
            self.advance_held();
            self.expire();
            self.bring_adapters();
            let planning = Instant::now();
            let plan = self.scheduler.plan();
            self.parts.metrics.step.plan(planning.elapsed());
            idle = plan.chunks.is_empty() && plan.preempted.is_empty();
            self.note_plan(&plan);
            if !plan.chunks.is_empty() {
                self.show();
                self.step(&plan);
            }
            if self.fatal.is_some() {
                break;
            }
        }
        let end = if self.fatal.is_some() { Error::LoopEnded } else { Error::Draining };
        let left: Vec<RequestId> = self.active.keys().copied().collect();
        for id in left {
            self.fail(id, &end);
        }
        self.show();
        self.parts.view.rests();
        self.fatal.map_or(Ok(()), Err)
    }

    fn end_if_fatal(&mut self, error: Error) {
        if is_fatal(&error) {
            self.fatal = Some(error);
        }
    }

    /// Takes all commands; sleeps for the first if nobody can run. False: the loop ends.
    fn receive(&mut self, idle: bool) -> bool {
        let mut next = if idle { self.wait() } else { self.inbox.try_recv() };
        loop {
            match next {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
            next = self.inbox.try_recv();
        }
    }

    /// The next command; empty when a deadline comes first.
    fn wait(&self) -> Result<Command, TryRecvError> {
        match self.active.values().filter_map(deadline_of).min() {
            None => self.inbox.recv().map_err(|_| TryRecvError::Disconnected),
            Some(deadline) => {
                let patience = deadline.saturating_duration_since(Instant::now());
                self.inbox.recv_timeout(patience).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            }
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit { id, job, events, arrival } => {
                self.submit(id, *job, events);
                drop(arrival);
            }
            Command::Cancel(id) => {
                if self.active.contains_key(&id) {
                    self.count_end("cancelled");
                    self.forget(id);
                }
            }
            // Looked at in every round.
            Command::MaskDone => {}
            Command::Brought { digest, result } => self.brought(digest, result),
            Command::Residency(wish) => self.grant(wish),
            Command::Desire { desired, is_news } => self.desire(&desired, is_news),
            Command::Stop => return false,
        }
        true
    }

    fn submit(&mut self, id: RequestId, mut job: Job, events: Events) {
        let new = NewRequest {
            id,
            tenant: job.tenant.as_str().into(),
            weight: job.weight,
            priority: job.priority,
            adapter: job.adapter,
            // Tokens that another worker generated are computed like a prompt.
            prompt_tokens: job.answer.tokens_to_compute().len(),
            output_tokens_max: job.answer.tokens_to_come(),
            prefix: job.prefix.take(),
        };
        self.active.insert(id, Active::new(job, events));
        let error = match self.scheduler.submit(new) {
            Ok(Submitted { pushed_out: None }) => return self.hint(id),
            Ok(Submitted { pushed_out: Some(victim) }) => {
                let queued = self.parts.settings.queue_requests_max;
                self.hint(id);
                return self.fail(victim, &Error::QueueFull { queued, limit: queued });
            }
            Err(weft_batching::Error::QueueFull { queued, limit }) => Error::QueueFull { queued, limit },
            Err(weft_batching::Error::TooLong { tokens, limit }) => {
                Error::ContextLength { prompt_tokens: tokens, max_tokens: None, limit }
            }
            Err(other) => Error::field("request", other, "a prompt and at least one token"),
        };
        self.fail(id, &error);
    }

    /// Ends whoever is over its deadline.
    fn expire(&mut self) {
        let now = Instant::now();
        let over = |(id, active): (&RequestId, &Active)| (deadline_of(active)? <= now).then_some(*id);
        let expired: Vec<RequestId> = self.active.iter().filter_map(over).collect();
        for id in expired {
            let deadline_ms = self.active[&id].job.deadline_ms;
            self.fail(id, &Error::Deadline(deadline_ms));
        }
    }

    fn note_plan(&mut self, plan: &StepPlan) {
        let now_ms = self.now_ms();
        for id in &plan.admitted {
            if let Some(digest) = self.active.get(id).and_then(|active| active.job.adapter) {
                self.slots.lease(&digest, now_ms);
                self.users_changed += 1;
            }
        }
        if !plan.preempted.is_empty() {
            self.load.preemptions_total += plan.preempted.len() as u64;
            self.parts.metrics.preemptions.inc_by(plan.preempted.len() as u64);
        }
    }

    /// Runs the plan on the engine and tells the callers. Whatever fails, fails for one request.
    fn step(&mut self, plan: &StepPlan) {
        let (mut chunks, mut batch) = self.batch(plan);
        let mut adapters: Vec<Option<Digest>> = chunks.iter().filter_map(|chunk| self.adapter_of(chunk.id)).collect();
        adapters.sort_unstable();
        adapters.dedup();
        let facts = StepFacts {
            number: self.load.steps_total + 1,
            started: Instant::now(),
            adapters: adapters.len() as u32,
            requests: chunks.len() as u32,
        };
        let mut output = std::mem::take(&mut self.output);
        while !chunks.is_empty() {
            match self.compute(&batch, &mut output) {
                Ok(()) => {
                    self.count_step(&chunks, &facts);
                    if chunks.len() == plan.chunks.len() {
                        self.scheduler.observe(plan, facts.started.elapsed().as_micros() as f64);
                    }
                    let tokens = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
                    self.parts.metrics.step.step(&output.times, tokens);
                    let sampling = Instant::now();
                    self.take_masks();
                    for (chunk, computed) in chunks.iter().zip(&mut output.seqs) {
                        self.deliver(chunk, computed, &facts);
                    }
                    self.parts.metrics.step.sample(sampling.elapsed());
                    break;
                }
                // Nothing was written: the batch goes on without the one to blame.
                Err(Error::Engine(error)) if error.sequence().is_some_and(|at| at < chunks.len()) => {
                    let at = error.sequence().unwrap_or_default();
                    batch.seqs.remove(at);
                    self.fail(chunks.remove(at).id, &error.into());
                }
                Err(error) if chunks.len() == 1 || is_fatal(&error) => {
                    for chunk in chunks.drain(..) {
                        self.fail(chunk.id, &error);
                    }
                    self.end_if_fatal(error);
                }
                // Nobody is named: each alone. Computing a token again writes the same keys and values.
                Err(error) => {
                    tracing::error!(%error, requests = chunks.len(), "step failed; trying each request alone");
                    for (chunk, sequence) in chunks.drain(..).zip(batch.seqs.drain(..)) {
                        self.step_alone(chunk, sequence, &mut output, &facts);
                    }
                }
            }
        }
        self.output = output;
    }

    /// The plan in the engine's terms. A request that is unknown or has no slot is a bug; it fails, and nobody else.
    fn batch<'a>(&mut self, plan: &'a StepPlan) -> (Vec<&'a Chunk>, StepBatch) {
        let mut chunks = Vec::with_capacity(plan.chunks.len());
        let mut batch = StepBatch::default();
        for chunk in &plan.chunks {
            match self.sequence(chunk) {
                Some(sequence) => {
                    chunks.push(chunk);
                    batch.seqs.push(sequence);
                }
                None => self.fail(chunk.id, &Error::Panic("planning")),
            }
        }
        (chunks, batch)
    }

    fn step_alone(&mut self, chunk: &Chunk, sequence: SeqStep, output: &mut StepOutput, facts: &StepFacts) {
        let facts = StepFacts { number: self.load.steps_total + 1, adapters: 1, requests: 1, ..*facts };
        match self.compute(&StepBatch { seqs: vec![sequence] }, output) {
            Ok(()) => {
                self.count_step(&[chunk], &facts);
                if let Some(computed) = output.seqs.first_mut() {
                    self.deliver(chunk, computed, &facts);
                }
            }
            Err(error) => {
                self.fail(chunk.id, &error);
                self.end_if_fatal(error);
            }
        }
    }

    fn compute(&mut self, batch: &StepBatch, output: &mut StepOutput) -> Result<(), Error> {
        let engine = &mut self.parts.engine;
        // The engine's own state is KV and scratch memory: a step that was cut off left nothing another step relies on.
        match catch_unwind(AssertUnwindSafe(|| engine.step_into(batch, output))) {
            Ok(result) => Ok(result?),
            Err(_) => Err(Error::Panic("a step")),
        }
    }

    fn sequence(&self, chunk: &Chunk) -> Option<SeqStep> {
        let active = self.active.get(&chunk.id)?;
        let logits = active.logits_wanted(chunk.samples);
        Some(SeqStep {
            tokens: active.tokens().get(chunk.tokens.clone())?.to_vec(),
            start: chunk.tokens.start,
            blocks: chunk.blocks.clone(),
            // A slot that is missing makes no sequence, never one of the base.
            slot: match active.job.adapter {
                None => None,
                Some(digest) => Some(self.slots.slot(&digest)?),
            },
            logits,
            draw: if self.parts.engine.prefers_draws() { active.draw(logits) } else { None },
        })
    }

    fn deliver(&mut self, chunk: &Chunk, computed: &mut SeqOutput, facts: &StepFacts) {
        let model = Arc::clone(&self.parts.model);
        let Some(active) = self.active.get_mut(&chunk.id) else { return };
        let starts = !active.has_started();
        let advanced = catch_unwind(AssertUnwindSafe(|| {
            active.advance(chunk.tokens.start, chunk.samples, computed, facts, &model)
        }));
        let received = active.job.received;
        if starts {
            self.parts.metrics.queue_seconds.observe((facts.started - received).as_secs_f64());
        }
        if chunk.samples {
            let now = Instant::now();
            match active.last_token.replace(now) {
                None => self.parts.metrics.first_token_seconds.observe((now - received).as_secs_f64()),
                Some(before) => self.parts.metrics.step.inter_token(now - before),
            }
        }
        let advanced = advanced.unwrap_or(Err(Error::Panic("sampling")));
        if advanced.is_ok() {
            // Only now: the right adapter was used, so others may read these blocks. And before an end frees them.
            self.scheduler.commit_chunk(chunk);
        }
        self.note_progress(chunk.id, advanced);
    }

    fn note_progress(&mut self, id: RequestId, progress: Result<Progress, Error>) {
        match progress {
            Ok(Progress::Prefilled) => {}
            Ok(Progress::Sampled) => {
                self.scheduler.sampled(id);
                if let Some(hash) = self.active.get_mut(&id).and_then(Active::filled_block) {
                    self.scheduler.block_filled(id, hash);
                }
                self.follow_grammar(id);
            }
            Ok(Progress::Held) => {
                self.parts.metrics.late_masks.inc();
                // After a preemption the same row may come again.
                if !self.held.contains(&id) {
                    self.held.push(id);
                }
            }
            Ok(Progress::Finished(finished)) => {
                self.count_end(match finished.reason() {
                    pb::FinishReason::Stop => "stop",
                    pb::FinishReason::Eos => "eos",
                    pb::FinishReason::Length | pb::FinishReason::Unspecified => "length",
                });
                let ended = self.forget(id).map(|active| active.end(Ok(finished)));
                self.endings.extend(ended);
            }
            Ok(Progress::Gone) => {
                self.count_end("cancelled");
                self.forget(id);
            }
            Err(error) => self.fail(id, &error),
        }
    }

    fn adapter_of(&self, id: RequestId) -> Option<Option<Digest>> {
        self.active.get(&id).map(|active| active.job.adapter)
    }

    fn count_step(&mut self, chunks: &[&Chunk], facts: &StepFacts) {
        let took = facts.started.elapsed();
        let sampled = chunks.iter().filter(|chunk| chunk.samples).count() as u64;
        let prompt: usize = chunks.iter().map(|chunk| self.prompt_tokens_in(chunk)).sum();
        let mixed = facts.adapters >= 2;
        self.load.steps_total += 1;
        self.load.mixed_steps_total += u64::from(mixed);
        self.load.prompt_tokens_total += prompt as u64;
        self.load.output_tokens_total += sampled;
        if prompt > 0 {
            let tokens = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
            self.prefill.note(tokens, took, Instant::now());
        }
        // A mean in which a step counts half after about eleven more.
        let micros = took.as_micros() as u64;
        self.load.step_us = if self.load.step_us == 0 { micros } else { (self.load.step_us * 15 + micros) / 16 };
        let metrics = &self.parts.metrics;
        metrics.step_seconds.observe(took.as_secs_f64());
        metrics.steps.inc();
        metrics.mixed_steps.inc_by(u64::from(mixed));
        metrics.step_adapters.observe(f64::from(facts.adapters));
        metrics.step_requests.observe(f64::from(facts.requests));
        metrics.prompt_tokens.inc_by(prompt as u64);
        metrics.output_tokens.inc_by(sampled);
    }

    fn prompt_tokens_in(&self, chunk: &Chunk) -> usize {
        let prompt = self.active.get(&chunk.id).map_or(0, |active| active.job.prompt.len());
        chunk.tokens.end.min(prompt).saturating_sub(chunk.tokens.start)
    }

    /// Ends the request with an error.
    fn fail(&mut self, id: RequestId, error: &Error) {
        let Some(active) = self.forget(id) else { return };
        let kind = error.kind();
        self.count_end(kind.as_str());
        if matches!(kind, Kind::Internal | Kind::Corrupt) {
            tracing::error!(request_id = active.job.request_id, message = chain(error), "request failed");
        }
        self.endings.push(active.end(Err(error.into())));
    }

    /// Frees whatever the request holds, at once.
    fn forget(&mut self, id: RequestId) -> Option<Active> {
        let phase = self.scheduler.remove(id);
        let active = self.active.remove(&id)?;
        if let (Some(Phase::Running | Phase::Preempted), Some(digest)) = (phase, active.job.adapter) {
            self.slots.release(&digest);
            self.users_changed += 1;
        }
        Some(active)
    }

    fn count_end(&self, result: &str) {
        self.parts.metrics.requests.with_label_values(&[result]).inc();
    }

    /// Lets others see how things stand, then tells the ends of requests.
    fn show(&mut self) {
        self.scheduler.set_lent_idle(self.slots.idle_blocks());
        let load = self.scheduler.load();
        self.load.running_requests = load.running as u32;
        self.load.queued_requests = load.waiting as u32;
        self.load.loading_requests = load.beside as u32;
        self.load.kv_blocks_used = load.blocks_used as u64;
        self.load.kv_blocks_idle = load.blocks_idle as u64;
        self.load.kv_blocks_max = load.blocks_total as u64;
        self.load.slot_bytes_used = self.slots.bytes_used();
        self.load.slot_bytes_max = self.slots.bytes_max();
        let measured = self.slots.measured();
        self.load.memory_bytes_per_s = measured.memory;
        self.load.disk_bytes_per_s = measured.disk;
        self.load.remote_bytes_per_s = measured.remote;
        self.count_prefixes();
        self.parts.view.set_load(self.load, self.prefill);
        let metrics = &self.parts.metrics;
        metrics.running_requests.set(load.running as i64);
        metrics.queued_requests.set((load.waiting + load.beside) as i64);
        metrics.kv_blocks_used.set(load.blocks_used as i64);
        metrics.kv_blocks_idle.set(load.blocks_idle as i64);
        metrics.kv_blocks_total.set(self.load.kv_blocks_max as i64);
        metrics.adapter_blocks.set(self.slots.blocks_used() as i64);
        metrics.adapters_streamed.set(self.slots.streamed() as i64);
        metrics.slot_bytes_used.set(self.slots.bytes_used() as i64);
        metrics.prepared_bytes_used.set(self.slots.prepared_bytes_used() as i64);
        let now = (self.slots.generation(), self.users_changed);
        if self.generation_shown != Some(now) {
            self.generation_shown = Some(now);
            self.parts.view.set_residency(self.slots.residency());
        }
        for ending in self.endings.drain(..) {
            ending.tell();
        }
    }

    fn count_prefixes(&mut self) {
        let (counts, metrics) = (self.scheduler.prefix_counts(), &self.parts.metrics);
        for (total, shown, metric) in [
            (counts.lookup_tokens, &mut self.load.prefix_lookup_tokens_total, &metrics.prefix_lookup_tokens),
            (counts.hit_tokens, &mut self.load.prefix_hit_tokens_total, &metrics.prefix_hit_tokens),
            (counts.reclaimed_blocks, &mut self.load.kv_blocks_reclaimed_total, &metrics.kv_blocks_reclaimed),
        ] {
            metric.inc_by(total - *shown);
            *shown = total;
        }
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

fn is_fatal(error: &Error) -> bool {
    matches!(error, Error::Engine(error) if error.is_fatal())
}

fn deadline_of(active: &Active) -> Option<Instant> {
    match active.job.deadline_ms {
        0 => None,
        ms => active.job.received.checked_add(Duration::from_millis(ms)),
    }
}

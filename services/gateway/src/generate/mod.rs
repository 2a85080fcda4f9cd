//! One generation: opens a worker's stream and hands on what it says, piece by piece; where the worker is lost, on another.
//!
//! - `attempt.rs`: one worker's stream, and whose bytes spoke.
//! - `resume.rs`: the way from a lost worker to another one, after the first token.

mod attempt;
mod resume;

use crate::demand::Demand;
use crate::directory::Tenant;
use crate::error::{Error, code};
use crate::experiments::Trial;
use crate::http::Known;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::quota::{Meter, estimate};
use crate::resolve::Resolved;
use crate::usage::{Account, PromptTokens, Tab, Usage};
use crate::workers::{Asked, Base, Chain, Pool, Prefixes, WorkerId};
use attempt::{Attempt, raw, request};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all, try_join_all};
use resume::{Delivered, Move, is_worth_another_try};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

/// A request that was let in: who, on what, since when.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) request_id: String,
    pub(crate) known: Known,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) resolved: Resolved,
    pub(crate) base: Base,
    pub(crate) arrived: Instant,
    pub(crate) timeout: Duration,
    /// Counts what it uses.
    pub(crate) meter: Meter,
    /// The answer's id.
    pub(crate) response_id: String,
    /// What becomes of it, if it is of an experiment.
    pub(crate) trial: Option<Arc<Trial>>,
    /// Where it is written down; none: nowhere.
    pub(crate) account: Option<Arc<Account>>,
}

/// What to generate, in the worker's own words.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// Shared by the answers to one prompt; copied only on its way to a worker.
    pub(crate) prompt: Arc<pb::generate_request::Prompt>,
    pub(crate) sampling: pb::Sampling,
    pub(crate) stopping: pb::Stopping,
    pub(crate) logprobs: Option<pb::Logprobs>,
    /// -1, 0 or 1; the smaller, the sooner.
    pub(crate) priority: i32,
    pub(crate) grammar: Option<pb::Grammar>,
}

/// The prompts of these answers, each once.
pub(crate) fn prompts(wanted: &[Wanted]) -> Vec<&Arc<pb::generate_request::Prompt>> {
    let mut prompts: Vec<&Arc<_>> = Vec::new();
    for answer in wanted {
        if !prompts.iter().any(|known| Arc::ptr_eq(known, &answer.prompt)) {
            prompts.push(&answer.prompt);
        }
    }
    prompts
}

/// Where generations run.
pub(crate) struct Mesh {
    pub(crate) pool: Arc<Pool>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) demand: Arc<Demand>,
    pub(crate) prefixes: Prefixes,
    /// Empty: answers are not accounted for.
    pub(crate) usage: OnceLock<Arc<Usage>>,
    /// Other workers tried before the first token.
    pub(crate) retries_max: usize,
    /// Times that one answer goes on at another worker.
    pub(crate) continuations_max: usize,
    /// How long a broken answer waits for a worker that goes on with it.
    pub(crate) patience: Duration,
    /// How long a worker may say nothing, and may then take to answer whether it is there.
    pub(crate) silence: Duration,
}

/// What is known once the first piece is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) worker: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) queue_us: u64,
    /// Until its adapter was resident; `None` for the base.
    pub(crate) adapter_wait_us: Option<u64>,
    pub(crate) first_token_after: Duration,
}

/// The next part of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Tokens(Vec<pb::TokenOut>),
    Finished(pb::Finished),
}

/// A running generation. Dropping it cancels the worker's part.
pub(crate) struct Generation {
    pub(crate) facts: Facts,
    mesh: Arc<Mesh>,
    admission: Admission,
    wanted: Wanted,
    place: Place,
    first: Option<Piece>,
    delivered: Delivered,
    /// Its record in the making, once all answers of its request have begun.
    tab: Option<Tab>,
    /// The end, while it is being written down.
    last: Option<Piece>,
    /// Attempts so far, the running one included.
    attempts: usize,
    continuations: usize,
    end: End,
}

/// How a generation ended, as far as it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It never began: another worker is asked for it, or none is left.
    Unbegun,
    /// It runs; one that is dropped now was cancelled.
    Cancelled,
    Failed,
    Finished,
}

/// Where a generation is.
enum Place {
    Running(Box<Attempt>),
    /// Kept, so that whoever stops waiting for the next piece does not stop the move.
    Moving(BoxFuture<'static, Result<(Attempt, usize), Fault>>),
    Over,
}

/// A whole answer.
pub(crate) struct Collected {
    pub(crate) facts: Facts,
    pub(crate) text: String,
    pub(crate) tokens: Vec<pb::TokenOut>,
    pub(crate) finished: pb::Finished,
}

impl Mesh {
    /// Starts the answers to a request. They are accounted for once all have begun: what is refused is nobody's to pay.
    ///
    /// # Errors
    /// Of the first that does not start; the others are given up.
    pub(crate) async fn start_all(
        self: &Arc<Self>,
        admission: &Admission,
        wanted: &[Wanted],
    ) -> Result<Vec<Generation>, Fault> {
        let mut generations = try_join_all(wanted.iter().map(|wanted| self.start(admission, wanted))).await?;
        for (at, generation) in generations.iter_mut().enumerate() {
            let has_prompt_before = wanted[..at].iter().any(|before| Arc::ptr_eq(&before.prompt, &wanted[at].prompt));
            generation.open_account(at, !has_prompt_before);
        }
        Ok(generations)
    }

    /// Starts a generation and waits for its first piece, so that whatever goes wrong before has a status of its own
    /// and can be tried on another worker.
    ///
    /// # Errors
    /// Of the last worker tried; [`Error::NoWorker`] if there is none.
    pub(crate) async fn start(self: &Arc<Self>, admission: &Admission, wanted: &Wanted) -> Result<Generation, Fault> {
        let started = self.start_somewhere(admission, wanted).await;
        if let (Err(fault), Some(trial)) = (&started, &admission.trial) {
            trial.failed(fault);
        }
        started
    }

    async fn start_somewhere(self: &Arc<Self>, admission: &Admission, wanted: &Wanted) -> Result<Generation, Fault> {
        self.limits.retries.deposit();
        let adapter = admission.resolved.digest();
        if let Some(adapter) = &adapter {
            self.demand.asked(adapter);
        }
        let chain = Chain::of(admission.tenant.salt.as_ref(), &admission.base.digest, adapter.as_ref(), &wanted.prompt);
        let hits = self.prefixes.find(&chain);
        let asked = Asked { hits: &hits, ..admission.asked(adapter.as_ref(), wanted) };
        let mut tried = Vec::new();
        let mut last: Option<Fault> = None;
        loop {
            let Some(chosen) = self.pool.choose(&Asked { tried: &tried, ..asked }) else {
                return Err(last.unwrap_or_else(|| Error::NoWorker.into()));
            };
            let worker = Arc::clone(chosen.worker());
            let id = worker.id;
            if let Some(name) = worker.name() {
                admission.known.worker(&name);
            }
            let request = request(admission, wanted, tried.len(), None);
            tried.push(id);
            let fault = match Attempt::open(self, admission, chosen, request).await {
                Ok((attempt, started)) => {
                    let predicted = hits.iter().find(|hit| hit.worker == id).map_or(0, |hit| hit.tokens);
                    self.prefixes.note(&chain, id, predicted, started.cached_tokens);
                    let mut generation =
                        Generation::new(Arc::clone(self), admission.clone(), wanted.clone(), attempt, tried.len());
                    match generation.begin(started).await {
                        Ok(()) => return Ok(generation),
                        Err(fault) => fault,
                    }
                }
                Err(fault) => fault,
            };
            let elsewhere = is_worth_another_try(&fault) && tried.len() <= self.retries_max;
            // A worker that drains has lost nothing: asking another one is no more work than asking it was.
            let may_be_afforded = || fault.code == code::DRAINING || self.limits.retries.withdraw();
            if !elsewhere || tried.len() == self.pool.workers().len() || !may_be_afforded() {
                return Err(fault);
            }
            self.metrics.retries.inc();
            if fault.kind != Kind::Overloaded {
                tracing::warn!(request_id = admission.request_id, worker = %worker.address, reason = %fault.message, "trying another worker");
            }
            last = Some(fault);
        }
    }
}

impl Admission {
    fn time_left(&self) -> Duration {
        self.timeout.saturating_sub(self.arrived.elapsed())
    }

    fn too_slow(&self) -> Fault {
        Error::TooSlow(self.timeout.as_secs()).into()
    }

    /// What routing goes by.
    fn asked<'a>(&'a self, adapter: Option<&'a Digest>, wanted: &Wanted) -> Asked<'a> {
        Asked {
            base: &self.base.digest,
            adapter,
            adapter_bytes: adapter.and_then(|adapter| self.tenant.adapter_bytes.get(adapter).copied()).unwrap_or(0),
            prompt_tokens: u32::try_from(estimate(&wanted.prompt)).unwrap_or(u32::MAX),
            tried: &[],
            hits: &[],
        }
    }

    /// As the worker writes it: empty stands for the base.
    fn expected_digest(&self) -> Bytes {
        self.resolved.digest().map_or_else(Bytes::new, raw)
    }
}

impl Generation {
    fn new(mesh: Arc<Mesh>, admission: Admission, wanted: Wanted, attempt: Attempt, attempts: usize) -> Self {
        mesh.metrics.generations_in_flight.inc();
        Self {
            facts: Facts::default(),
            mesh,
            admission,
            wanted,
            place: Place::Running(Box::new(attempt)),
            first: None,
            delivered: Delivered::default(),
            tab: None,
            last: None,
            attempts,
            continuations: 0,
            end: End::Cancelled,
        }
    }

    /// Waits for the first piece. A failure before it is none of a generation that has begun.
    async fn begin(&mut self, started: pb::Started) -> Result<(), Fault> {
        let Place::Running(attempt) = &mut self.place else { return Err(Error::CutShort.into()) };
        let first = attempt.piece(&self.mesh, &self.admission).await;
        if first.is_err() {
            self.end = End::Unbegun;
        }
        self.delivered.began(&started);
        let first = first?;
        self.admission.meter.began(&self.wanted.prompt, started.prompt_tokens);
        self.first = Some(self.deliver(first));
        self.facts = Facts {
            worker: started.worker,
            prompt_tokens: started.prompt_tokens,
            cached_tokens: started.cached_tokens,
            queue_us: started.queue_us,
            adapter_wait_us: (!started.adapter_digest.is_empty()).then_some(started.adapter_wait_us),
            first_token_after: self.admission.arrived.elapsed(),
        };
        if let Some(adapter) = self.admission.resolved.digest() {
            let computed = started.prompt_tokens.saturating_sub(started.cached_tokens);
            self.mesh.demand.prompted(&adapter, computed);
        }
        let metrics = &self.mesh.metrics;
        metrics.prompt_tokens.inc_by(u64::from(started.prompt_tokens));
        metrics.cached_tokens.inc_by(u64::from(started.cached_tokens));
        metrics.first_token_seconds.observe(self.facts.first_token_after.as_secs_f64());
        if let Some(trial) = &self.admission.trial {
            trial.first_token(self.facts.first_token_after);
        }
        Ok(())
    }

    /// Opens its record: answer number `at` of its request. A prompt counts for the first of its answers, as in what the client is told.
    fn open_account(&mut self, at: usize, is_first_of_prompt: bool) {
        let Some(account) = &self.admission.account else { return };
        let prompt = PromptTokens { all: self.facts.prompt_tokens, cached: self.facts.cached_tokens };
        let prompt = if is_first_of_prompt { prompt } else { PromptTokens::default() };
        let mut tab = account.open(&self.admission, at, prompt);
        if let Some(Piece::Tokens(tokens)) = &self.first {
            tab.answered(tokens.len());
        }
        self.tab = Some(tab);
    }

    /// The caller wants the prompt alone: the one token that a worker makes all the same is not accounted for.
    pub(crate) fn account_for_prompt_alone(&mut self) {
        if let Some(tab) = &mut self.tab {
            tab.prompt_alone();
        }
    }

    /// The next piece; `None` after [`Piece::Finished`], which is written down before it is given. Cancel safe.
    ///
    /// # Errors
    /// The worker's, if no other one goes on; a mismatch; the time limit; the answer cannot be written down. Nothing comes after an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, Fault> {
        let piece = match self.last.take() {
            Some(last) => Some(last),
            None => self.piece().await?,
        };
        let Some(Piece::Finished(finished)) = &piece else { return Ok(piece) };
        let tokens = finished.completion_tokens;
        // Who asks again, because the disk took longer than they wait, gets the same.
        self.last = piece;
        let settled = self.settle(tokens).await;
        let last = self.last.take();
        settled.map(|()| last)
    }

    /// The next piece, before it is written down. Cancel safe.
    async fn piece(&mut self) -> Result<Option<Piece>, Fault> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            let fault = match &mut self.place {
                Place::Over => return Ok(None),
                Place::Moving(moving) => match moving.await {
                    Ok((attempt, attempts)) => {
                        self.place = Place::Running(Box::new(attempt));
                        self.attempts = attempts;
                        continue;
                    }
                    Err(fault) => fault,
                },
                Place::Running(attempt) => {
                    let id = attempt.id;
                    match attempt.piece(&self.mesh, &self.admission).await {
                        Ok(piece) => return Ok(Some(self.deliver(piece))),
                        Err(fault) if self.may_move(&fault) => {
                            self.place = Place::Moving(Box::pin(self.elsewhere((id, fault)).find()));
                            continue;
                        }
                        Err(fault) => fault,
                    }
                }
            };
            self.place = Place::Over;
            self.end = End::Failed;
            if let Some(trial) = &self.admission.trial {
                trial.failed(&fault);
            }
            self.fail_account();
            return Err(fault);
        }
    }

    /// Its request has failed.
    fn fail_account(&mut self) {
        if let Some(tab) = &mut self.tab {
            tab.failed();
        }
    }

    /// Writes the whole answer down. Cancel safe.
    async fn settle(&mut self, tokens: u32) -> Result<(), Fault> {
        let Some(tab) = &mut self.tab else { return Ok(()) };
        let settled = tab.settle(tokens).await;
        if settled.is_err() {
            self.end = End::Failed;
        }
        settled
    }

    /// From here on it counts as delivered.
    fn deliver(&mut self, piece: Piece) -> Piece {
        self.delivered.note(&piece);
        if let Piece::Tokens(tokens) = &piece {
            self.admission.meter.answered(tokens.len());
            if let Some(tab) = &mut self.tab {
                tab.answered(tokens.len());
            }
            if let Some(adapter) = self.admission.resolved.digest() {
                self.mesh.demand.answered(&adapter, tokens.len());
            }
        }
        if let Piece::Finished(finished) = &piece {
            self.place = Place::Over;
            self.end = End::Finished;
            if let Some(trial) = &self.admission.trial {
                trial.finished(finished);
            }
            let metrics = &self.mesh.metrics;
            metrics.completion_tokens.inc_by(u64::from(finished.completion_tokens));
            metrics.generation_seconds.observe(self.admission.arrived.elapsed().as_secs_f64());
        }
        piece
    }

    fn may_move(&self, fault: &Fault) -> bool {
        is_worth_another_try(fault)
            && self.continuations < self.mesh.continuations_max
            && self.delivered.can_be_continued()
    }

    fn elsewhere(&mut self, left: (WorkerId, Fault)) -> Move {
        self.continuations += 1;
        Move {
            mesh: Arc::clone(&self.mesh),
            admission: self.admission.clone(),
            wanted: self.wanted.clone(),
            delivered: self.delivered.clone(),
            left,
            attempts: self.attempts,
        }
    }

    /// Reads to the end, and writes nothing down.
    ///
    /// # Errors
    /// As [`Generation::next`]; what came before is dropped with it.
    pub(crate) async fn collect(&mut self) -> Result<Collected, Fault> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        loop {
            match self.piece().await? {
                Some(Piece::Tokens(more)) => {
                    more.iter().for_each(|token| text.push_str(&token.text));
                    tokens.extend(more);
                }
                Some(Piece::Finished(finished)) => {
                    return Ok(Collected { facts: self.facts.clone(), text, tokens, finished });
                }
                None => return Err(Error::CutShort.into()),
            }
        }
    }
}

/// Reads whole answers that are given together or not at all, and writes them down when all are there.
///
/// # Errors
/// Of the first that fails; then all have failed.
pub(crate) async fn collect_all(mut generations: Vec<Generation>) -> Result<Vec<Collected>, Fault> {
    let collected = match try_join_all(generations.iter_mut().map(Generation::collect)).await {
        Ok(collected) => collected,
        Err(fault) => {
            generations.iter_mut().for_each(Generation::fail_account);
            return Err(fault);
        }
    };
    let settling = generations.iter_mut().zip(&collected);
    let settling = settling.map(|(generation, answer)| generation.settle(answer.finished.completion_tokens));
    // All of them, whatever becomes of one: each is in the log or not when the answer goes out.
    join_all(settling).await.into_iter().collect::<Result<(), Fault>>()?;
    Ok(collected)
}

impl Drop for Generation {
    fn drop(&mut self) {
        let metrics = &self.mesh.metrics;
        metrics.generations_in_flight.dec();
        let end = match self.end {
            End::Unbegun => return,
            End::Cancelled => "cancelled",
            End::Failed => "failed",
            End::Finished => "finished",
        };
        metrics.generations.with_label_values(&[end]).inc();
    }
}

//! One request while the step loop has it: its tokens, its sampler, its text, and what its caller is told.

use std::time::Instant;

use tokio::sync::mpsc;
use weft_batching::BlockHash;
use weft_engine::sampling::{Draw, Sampled, logprob_of};
use weft_engine::{LogitsWanted, SeqOutput};
use weft_fault::Fault;
use weft_grammar::{Mask, Matcher};
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

use crate::Error;
use crate::admit::Job;
use crate::answer::{End, Followed};
use crate::model::Model;

/// Where a request's events go. Unbounded, but a request sends at most one event per token of its context, and its
/// end when the caller is gone: a slow reader must not stop the loop.
pub(crate) type Events = mpsc::UnboundedSender<Result<pb::GenerateEvent, tonic::Status>>;

/// What a step was, as far as each of its requests reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepFacts {
    pub(crate) number: u64,
    pub(crate) started: Instant,
    pub(crate) adapters: u32,
    pub(crate) requests: u32,
}

/// What the step made of a request.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Only prompt tokens were computed.
    Prefilled,
    /// It has one more token and goes on.
    Sampled,
    /// Its logits wait for the mask of its grammar.
    Held,
    /// It is complete. The caller is told last, by [`Active::end`].
    Finished(Box<pb::Finished>),
    /// Its caller is gone.
    Gone,
}

/// An answer that follows a grammar.
struct Constraint {
    /// Away while a helper works with it.
    matcher: Option<Box<Matcher>>,
    /// What may come next, once it is known.
    mask: Option<Mask>,
    /// Logits that were there before the mask.
    held: Option<Held>,
}

struct Held {
    logits: Vec<f32>,
    adapter: Option<Digest>,
    step: StepFacts,
}

/// A request in the step loop.
pub(crate) struct Active {
    pub(crate) job: Job,
    events: Events,
    /// When its adapter got its slot; none if it was there.
    pub(crate) adapter_ready: Option<Instant>,
    /// When it last got an output token.
    pub(crate) last_token: Option<Instant>,
    /// First step, once it took part in one.
    first_step: Option<u64>,
    last_step: u64,
    adapters_max: u32,
    requests_max: u32,
    prompt_logprobs: Vec<pb::TokenOut>,
    /// None: any text.
    constraint: Option<Constraint>,
}

impl Active {
    pub(crate) fn new(mut job: Job, events: Events) -> Self {
        let followed = job.followed.take();
        let constraint =
            followed.map(|Followed { matcher, mask }| Constraint { matcher: Some(matcher), mask, held: None });
        Self {
            events,
            adapter_ready: None,
            last_token: None,
            first_step: None,
            last_step: 0,
            adapters_max: 0,
            requests_max: 0,
            prompt_logprobs: Vec::new(),
            constraint,
            job,
        }
    }

    /// Prompt and output so far.
    pub(crate) fn tokens(&self) -> &[u32] {
        self.job.answer.tokens()
    }

    /// The hash of the block that the last token filled.
    pub(crate) fn filled_block(&mut self) -> Option<BlockHash> {
        self.job.hash_chain.as_mut()?.next(self.job.answer.tokens())
    }

    pub(crate) fn has_started(&self) -> bool {
        self.first_step.is_some()
    }

    /// Rows whose logits a chunk needs.
    pub(crate) fn logits_wanted(&self, samples: bool) -> LogitsWanted {
        if self.job.prompt_logprobs && self.prompt_logprobs.len() < self.job.prompt.len() {
            LogitsWanted::All
        } else if samples {
            LogitsWanted::Last
        } else {
            LogitsWanted::None
        }
    }

    /// The choice of the next token, for an engine that makes it within the step. None: that needs the logits, or a mask that is not there yet.
    pub(crate) fn draw(&self, logits: LogitsWanted) -> Option<Draw> {
        if logits != LogitsWanted::Last || self.job.answer.end().is_some() {
            return None;
        }
        let allowed = match &self.constraint {
            None => None,
            Some(constraint) => Some(constraint.mask.as_ref()?.words().into()),
        };
        let position = self.job.answer.tokens().len() as u64;
        Some(self.job.answer.sampler.draw(position, self.job.top_logprobs, allowed))
    }

    /// Takes in what a step computed for `tokens()[start..]`. `samples`: the last row chooses the next token.
    ///
    /// # Errors
    /// The step used another adapter than the request's; logits are not finite. Nothing of this step is delivered then.
    pub(crate) fn advance(
        &mut self,
        start: usize,
        samples: bool,
        output: &mut SeqOutput,
        step: &StepFacts,
        model: &Model,
    ) -> Result<Progress, Error> {
        if output.adapter != self.job.adapter {
            return Err(Error::WrongAdapter { wanted: self.job.adapter, found: output.adapter });
        }
        if self.first_step.is_none() {
            self.send(pb::generate_event::Event::Started(self.started(start, output.adapter, step, model)));
            self.first_step = Some(step.number);
        }
        self.last_step = step.number;
        self.adapters_max = self.adapters_max.max(step.adapters);
        self.requests_max = self.requests_max.max(step.requests);
        self.note_prompt_logprobs(start, output, step, model)?;
        if !samples {
            return Ok(if self.events.is_closed() { Progress::Gone } else { Progress::Prefilled });
        }
        if let Some(end) = self.job.answer.end() {
            return Ok(self.finished(end, output.adapter, step));
        }
        if let Some(drawn) = output.drawn.take() {
            let sampled = drawn.map_err(weft_engine::Error::from)?;
            if let Some(constraint) = &mut self.constraint {
                constraint.mask = None;
            }
            self.job.answer.sampler.record(sampled.token);
            return Ok(self.take(sampled, output.adapter, step, model));
        }
        let row = output.logits.len().checked_sub(model.vocabulary).ok_or(weft_engine::Error::Logits)?;
        let logits = &mut output.logits[row..];
        if let Some(constraint) = self.constraint.as_mut().filter(|constraint| constraint.mask.is_none()) {
            constraint.held = Some(Held { logits: logits.to_vec(), adapter: output.adapter, step: *step });
            return Ok(Progress::Held);
        }
        self.sample(logits, output.adapter, step, model)
    }

    /// The matcher that has to take in the last token, for a helper; none without a grammar.
    pub(crate) fn lend_matcher(&mut self) -> Option<(Box<Matcher>, u32)> {
        let matcher = self.constraint.as_mut()?.matcher.take()?;
        Some((matcher, *self.job.answer.tokens().last()?))
    }

    /// The matcher is back, with what may come next.
    pub(crate) fn take_mask(&mut self, matcher: Option<Box<Matcher>>, mask: Mask) {
        if let Some(constraint) = &mut self.constraint {
            constraint.matcher = matcher;
            constraint.mask = Some(mask);
        }
    }

    /// Samples from logits that waited for their mask, if both are there.
    pub(crate) fn advance_held(&mut self, model: &Model) -> Option<Result<Progress, Error>> {
        let constraint = self.constraint.as_mut()?;
        constraint.mask.as_ref()?;
        let mut held = constraint.held.take()?;
        Some(self.sample(&mut held.logits, held.adapter, &held.step, model))
    }

    /// Whether its logits wait for a mask.
    pub(crate) fn is_held(&self) -> bool {
        self.constraint.as_ref().is_some_and(|constraint| constraint.held.is_some())
    }

    fn sample(
        &mut self,
        logits: &mut [f32],
        adapter: Option<Digest>,
        step: &StepFacts,
        model: &Model,
    ) -> Result<Progress, Error> {
        let mask = self.constraint.as_mut().and_then(|constraint| {
            constraint.held = None;
            constraint.mask.take()
        });
        let position = self.job.answer.tokens().len() as u64;
        let allowed = mask.as_ref().map(Mask::words);
        let sampled = self.job.answer.sampler.sample_allowed(logits, allowed, position, self.job.top_logprobs)?;
        Ok(self.take(sampled, adapter, step, model))
    }

    /// Turns the request into its last word.
    pub(crate) fn end(self, end: Result<Box<pb::Finished>, Fault>) -> Ending {
        Ending { events: self.events, end }
    }

    /// One more token.
    fn take(&mut self, sampled: Sampled, adapter: Option<Digest>, step: &StepFacts, model: &Model) -> Progress {
        let tokens = self.job.answer.take(token_out(&sampled, step.number, model), model);
        if !tokens.is_empty() {
            self.send(pb::generate_event::Event::Tokens(pb::Tokens { adapter_digest: raw(adapter).into(), tokens }));
        }
        match self.job.answer.end() {
            Some(end) => self.finished(end, adapter, step),
            None if self.events.is_closed() => Progress::Gone,
            None => Progress::Sampled,
        }
    }

    fn finished(&mut self, end: End, adapter: Option<Digest>, step: &StepFacts) -> Progress {
        Progress::Finished(Box::new(pb::Finished {
            reason: end.reason as i32,
            completion_tokens: self.job.answer.output_tokens() as u32,
            seed: self.job.answer.sampler.params().seed,
            stop_index: end.stop_index,
            adapter_digest: raw(adapter).into(),
            first_step: self.first_step.unwrap_or(step.number),
            last_step: step.number,
            adapters_in_step_max: self.adapters_max,
            requests_in_step_max: self.requests_max,
            prompt: std::mem::take(&mut self.prompt_logprobs),
        }))
    }

    /// Row `i` of the chunk is the distribution of the token behind `start + i`. After a preemption rows come again;
    /// what is noted stays.
    fn note_prompt_logprobs(
        &mut self,
        start: usize,
        output: &SeqOutput,
        step: &StepFacts,
        model: &Model,
    ) -> Result<(), Error> {
        if self.logits_wanted(false) != LogitsWanted::All {
            return Ok(());
        }
        if self.prompt_logprobs.is_empty() {
            let first = Sampled { token: self.job.prompt[0], logprob: f32::NAN, top: Vec::new() };
            self.prompt_logprobs.push(prompt_token_out(&first, step.number, model));
        }
        for (row, logits) in output.logits.chunks_exact(model.vocabulary).enumerate() {
            let position = start + row + 1;
            if position == self.prompt_logprobs.len() && position < self.job.prompt.len() {
                let noted = logprob_of(logits, self.job.prompt[position], self.job.top_logprobs)?;
                self.prompt_logprobs.push(prompt_token_out(&noted, step.number, model));
            }
        }
        Ok(())
    }

    /// The first chunk begins behind what was cached.
    fn started(&self, cached: usize, adapter: Option<Digest>, step: &StepFacts, model: &Model) -> pb::Started {
        let micros = |until: Instant| until.saturating_duration_since(self.job.received).as_micros() as u64;
        pb::Started {
            adapter_digest: raw(adapter).into(),
            base_digest: model.digest.to_vec().into(),
            prompt_tokens: self.job.prompt.len() as u32,
            cached_tokens: cached.min(self.job.prompt.len()) as u32,
            queue_us: micros(step.started),
            adapter_wait_us: self.adapter_ready.map_or(0, micros),
            worker: model.worker.clone(),
            seed: self.job.answer.sampler.params().seed,
            prompt_digest: self.job.prompt_digest.to_vec().into(),
            replayed_tokens: self.job.answer.output_tokens() as u32,
        }
    }

    fn send(&self, event: pb::generate_event::Event) {
        // An error means that the caller is gone: seen by `is_closed` at the end of the step.
        let _ = self.events.send(Ok(pb::GenerateEvent { event: Some(event) }));
    }
}

/// The last word of a request. It is told after the request's blocks and slot are seen to be free, so that a caller who has
/// the end finds no trace of the request in the worker's load.
pub(crate) struct Ending {
    events: Events,
    end: Result<Box<pb::Finished>, Fault>,
}

impl Ending {
    pub(crate) fn tell(self) {
        let event =
            self.end.map(|finished| pb::GenerateEvent { event: Some(pb::generate_event::Event::Finished(*finished)) });
        // An error means that the caller is gone: nobody to tell.
        let _ = self.events.send(event.map_err(tonic::Status::from));
    }
}

/// The wire form of "which adapter": empty for the base.
fn raw(adapter: Option<Digest>) -> Vec<u8> {
    adapter.map_or_else(Vec::new, |digest| digest.to_vec())
}

/// Its text is still to come, and with it whether the token is special.
fn token_out(sampled: &Sampled, step: u64, model: &Model) -> pb::TokenOut {
    let raw = |id: u32| model.tokenizer.token_bytes(id).into_owned().into();
    let top =
        |&(id, logprob): &(u32, f32)| pb::TopToken { id, text: model.tokenizer.token_text(id), logprob, raw: raw(id) };
    pb::TokenOut {
        id: sampled.token,
        text: String::new(),
        logprob: sampled.logprob,
        special: false,
        step,
        top: sampled.top.iter().map(top).collect(),
        raw: raw(sampled.token),
    }
}

fn prompt_token_out(noted: &Sampled, step: u64, model: &Model) -> pb::TokenOut {
    let text = model.tokenizer.token_text(noted.token);
    let special = model.tokenizer.is_special(noted.token);
    pb::TokenOut { text, special, ..token_out(noted, step, model) }
}

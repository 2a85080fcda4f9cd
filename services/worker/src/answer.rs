//! The output of one request: its tokens, the text they make, and where it ends.
//!
//! All of it follows from the tokens alone, so that an answer which another worker began is rebuilt by taking its tokens
//! in again: [`Answer::replay`] goes the way of [`Answer::take`]. What was delivered is not delivered again.

use weft_engine::sampling::{Sampler, SamplingParams};
use weft_grammar::{Grammar, Mask, Matcher};
use weft_proto::worker::v1 as pb;
use weft_types::{Digest, DigestHasher};

use crate::Error;
use crate::model::Model;
use crate::text::{Piece, TextStream};

/// What bounds an answer.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// 1 or more.
    pub(crate) max_tokens: usize,
    pub(crate) stops: Vec<String>,
    pub(crate) include_stop: bool,
    pub(crate) ignore_eos: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) reason: pb::FinishReason,
    /// Of the stop string.
    pub(crate) stop_index: Option<u32>,
}

/// Where an answer is in its grammar.
pub(crate) struct Followed {
    pub(crate) matcher: Box<Matcher>,
    /// What may come next. None: the answer is whole.
    pub(crate) mask: Option<Mask>,
}

/// The output of one request so far.
pub(crate) struct Answer {
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    bounds: Bounds,
    constrained: bool,
    pub(crate) sampler: Sampler,
    text: TextStream<pb::TokenOut>,
    /// Tokens that were delivered elsewhere and whose text is held back here.
    delivered_and_held: usize,
    end: Option<End>,
}

impl Answer {
    pub(crate) fn new(prompt: &[u32], sampling: SamplingParams, bounds: Bounds, constrained: bool) -> Self {
        Self {
            tokens: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            constrained,
            sampler: Sampler::new(sampling, prompt),
            text: TextStream::new(bounds.stops.clone(), bounds.include_stop),
            delivered_and_held: 0,
            end: None,
            bounds,
        }
    }

    /// Prompt and output.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that have to be computed before the next one can be chosen, or, in an answer that is whole, before it can be said
    /// whose bytes it was computed with. At least 1.
    pub(crate) fn tokens_to_compute(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - usize::from(self.end.is_some())]
    }

    /// Tokens that may still come. At least 1: the last one of an answer that is whole is not computed either.
    pub(crate) fn tokens_to_come(&self) -> usize {
        (self.bounds.max_tokens - self.output_tokens()).max(1)
    }

    /// How it ended, if it did.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Takes in the next token, which the sampler chose, and says which tokens can be delivered now.
    pub(crate) fn take(&mut self, token: pb::TokenOut, model: &Model) -> Vec<pb::TokenOut> {
        let id = token.id;
        self.tokens.push(id);
        let is_eos = self.is_end_token(id, model);
        let last = is_eos || self.output_tokens() >= self.bounds.max_tokens;
        // Special tokens and the end have no text, as in transformers' skip_special_tokens.
        let special = is_eos || model.tokenizer.is_special(id);
        let bytes = if special { Default::default() } else { model.tokenizer.token_bytes(id) };
        let pushed = self.text.push(pb::TokenOut { special, ..token }, &bytes, last);
        self.end = match pushed.stopped {
            Some(index) => Some(End { reason: pb::FinishReason::Stop, stop_index: Some(index as u32) }),
            None if is_eos => Some(End { reason: pb::FinishReason::Eos, stop_index: None }),
            None if last => Some(End { reason: pb::FinishReason::Length, stop_index: None }),
            None => None,
        };
        let mut pieces = pushed.pieces;
        let again = self.delivered_and_held.min(pieces.len());
        self.delivered_and_held -= again;
        pieces.drain(..again);
        pieces.into_iter().map(|Piece { token, text }| pb::TokenOut { text, ..token }).collect()
    }

    /// Takes in tokens that another worker generated and delivered. Cost: a few µs a token with a grammar, else less than one.
    ///
    /// # Errors
    /// [`Error::Field`] for tokens that no worker can have generated for this request; [`Error::NotInGrammar`].
    pub(crate) fn replay(
        &mut self,
        ids: &[u32],
        mut followed: Option<&mut Followed>,
        model: &Model,
    ) -> Result<(), Error> {
        const FIELD: &str = "continuation.ids";
        if ids.len() > self.bounds.max_tokens {
            let allowed = format!("at most max_tokens of {}", self.bounds.max_tokens);
            return Err(Error::field(FIELD, format!("{} tokens", ids.len()), allowed));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= model.vocabulary) {
            return Err(Error::field(FIELD, id, format!("ids below {}", model.vocabulary)));
        }
        for (index, &id) in ids.iter().enumerate() {
            if self.end.is_some() {
                let given = format!("{} tokens of which number {index} ends the answer", ids.len());
                return Err(Error::field(FIELD, given, "nothing behind the end"));
            }
            if let Some(followed) = followed.as_deref_mut() {
                followed.follow(id, self.is_end_token(id, model), index)?;
            }
            self.sampler.record(id);
            self.delivered_and_held += 1;
            self.take(pb::TokenOut { id, ..Default::default() }, model);
        }
        if let Some(followed) = followed {
            followed.mask = if self.end.is_some() { None } else { Some(followed.matcher.mask()?) };
        }
        Ok(())
    }

    /// A grammar allows the end where there is one: nothing comes after it.
    fn is_end_token(&self, id: u32, model: &Model) -> bool {
        model.is_eos(id) && (!self.bounds.ignore_eos || self.constrained)
    }
}

impl Followed {
    pub(crate) fn new(grammar: &Grammar) -> Self {
        Self { matcher: Box::new(grammar.matcher()), mask: Some(grammar.first_mask().clone()) }
    }

    fn follow(&mut self, id: u32, is_end: bool, index: usize) -> Result<(), Error> {
        // The end is no token of the grammar's.
        let followed = if is_end {
            if self.matcher.may_end() { Ok(()) } else { Err(None) }
        } else {
            self.matcher.consume(id).map_err(Some)
        };
        followed.map_err(|source| Error::NotInGrammar { id, index, source })
    }
}

const PROMPT_TAG: &[u8] = b"weft.prompt.v1";

/// Names the tokens of a prompt, so that an answer goes on only behind the prompt it was begun for. Cost: 3 µs for 1,000 tokens
/// with SHA instructions.
pub(crate) fn prompt_digest(prompt: &[u32]) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.update(PROMPT_TAG);
    prompt.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
    hasher.finish()
}

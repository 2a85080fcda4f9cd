//! `POST /v1/completions`: the answer, whole or as events of the same shape.

use super::errors::openai_body;
use super::openai::{self, Usage};
use super::openai_completions::Plan;
use super::sse::{Dialect, json_event};
use crate::generate::{Collected, Piece};
use axum::response::sse::Event;
use serde::Serialize;
use std::collections::VecDeque;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// What all chunks and the whole answer begin with.
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: String,
}

/// A whole answer, or one event of a stream.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    /// In a stream only with `include_usage`: null but in the last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
    system_fingerprint: String,
}

#[derive(Serialize, ToSchema)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    finish_reason: Option<&'static str>,
}

/// Parallel arrays, one entry a token.
#[derive(Default, Serialize, ToSchema)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<serde_json::Map<String, serde_json::Value>>>,
    /// In characters, from the start of `text` (in a stream: of all its texts together).
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    fn push(&mut self, token: pb::TokenOut, offset: &mut usize) {
        // The first token of a prompt follows nothing.
        let known = !token.logprob.is_nan();
        let mut top = serde_json::Map::new();
        for other in token.top {
            top.insert(name(&other.raw, &other.text), openai::logprob(other.logprob).into());
        }
        let own = name(&token.raw, &token.text);
        // The token itself is listed even where it is not among the likeliest.
        top.entry(own.clone()).or_insert_with(|| openai::logprob(token.logprob).into());
        self.text_offset.push(*offset);
        *offset += token.text.chars().count();
        self.tokens.push(own);
        self.token_logprobs.push(known.then(|| openai::logprob(token.logprob)));
        self.top_logprobs.push(known.then_some(top));
    }
}

/// This route marks bytes as such.
fn name(raw: &[u8], text: &str) -> String {
    let name = openai::token_name(raw, text);
    if std::str::from_utf8(raw).is_ok() { name } else { format!("bytes:{name}") }
}

impl Completion {
    pub(super) fn new(head: Head, plan: &Plan, answers: Vec<Collected>) -> Self {
        let mut usage = Usage::default();
        let mut choices = Vec::with_capacity(answers.len());
        for (index, mut answer) in answers.into_iter().enumerate() {
            let prompt = index / plan.choices;
            if index % plan.choices == 0 {
                usage.prompt(&answer.facts);
            }
            if plan.nothing_new {
                answer.text.clear();
                answer.tokens.clear();
            } else {
                usage.completion(answer.finished.completion_tokens);
            }
            let prompt_tokens = std::mem::take(&mut answer.finished.prompt);
            let mut text = String::new();
            if plan.echo {
                match plan.prompts.text(prompt) {
                    Some(prompt) => text.push_str(prompt),
                    None => prompt_tokens.iter().for_each(|token| text.push_str(&token.text)),
                }
            }
            text.push_str(&answer.text);
            let logprobs = plan.logprobs.map(|_| {
                let (mut logprobs, mut offset) = (CompletionLogprobs::default(), 0);
                let echoed = prompt_tokens.into_iter().filter(|_| plan.echo);
                echoed.chain(answer.tokens).for_each(|token| logprobs.push(token, &mut offset));
                logprobs
            });
            let finish_reason = if plan.nothing_new { "length" } else { openai::finish_reason(&answer.finished) };
            choices.push(Choice { index, text, logprobs, finish_reason: Some(finish_reason) });
        }
        Self::of(&head, choices, Some(Some(usage)))
    }

    fn of(head: &Head, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> Self {
        Self {
            id: head.id.clone(),
            object: "text_completion",
            created: head.created,
            model: head.model.clone(),
            choices,
            usage,
            system_fingerprint: head.system_fingerprint.clone(),
        }
    }
}

/// Writes a stream.
pub(super) struct Chunks {
    pub(super) head: Head,
    pub(super) plan: Plan,
    /// Characters delivered of each answer.
    pub(super) offsets: Vec<usize>,
    pub(super) usage: Usage,
    pub(super) with_usage: bool,
}

impl Chunks {
    fn event(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Event {
        json_event(&Completion::of(&self.head, choices, self.with_usage.then_some(usage)))
    }
}

impl Dialect for Chunks {
    fn open(&mut self, out: &mut VecDeque<Event>) {
        if !self.plan.echo {
            return;
        }
        for index in 0..self.plan.answers() {
            let text = self.plan.prompts.text(index / self.plan.choices).unwrap_or_default().to_owned();
            self.offsets[index] = text.chars().count();
            out.push_back(self.event(vec![Choice { index, text, logprobs: None, finish_reason: None }], None));
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut VecDeque<Event>) {
        let choice = match piece {
            Piece::Tokens(_) if self.plan.nothing_new => return,
            Piece::Tokens(tokens) => {
                let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
                if text.is_empty() && self.plan.logprobs.is_none() {
                    return;
                }
                let logprobs = self.plan.logprobs.map(|_| {
                    let mut logprobs = CompletionLogprobs::default();
                    tokens.into_iter().for_each(|token| logprobs.push(token, &mut self.offsets[index]));
                    logprobs
                });
                Choice { index, text, logprobs, finish_reason: None }
            }
            Piece::Finished(finished) => {
                let reason = if self.plan.nothing_new {
                    "length"
                } else {
                    self.usage.completion(finished.completion_tokens);
                    openai::finish_reason(&finished)
                };
                Choice { index, text: String::new(), logprobs: None, finish_reason: Some(reason) }
            }
        };
        out.push_back(self.event(vec![choice], None));
    }

    fn close(&mut self, out: &mut VecDeque<Event>) {
        if self.with_usage {
            out.push_back(self.event(Vec::new(), Some(self.usage)));
        }
        out.push_back(Event::default().data("[DONE]"));
    }

    fn fault(&mut self, fault: &Fault, out: &mut VecDeque<Event>) {
        out.push_back(json_event(&openai_body(fault)));
    }
}

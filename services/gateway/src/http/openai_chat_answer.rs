//! `POST /v1/chat/completions`: the answer, whole or as chunks.

use super::errors::openai_body;
use super::openai::{self, Usage};
use super::sse::{Dialect, json_event};
use crate::generate::{Collected, Piece};
use axum::response::sse::Event;
use serde::Serialize;
use std::collections::VecDeque;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// What all chunks and the whole answer begin with.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: String,
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    system_fingerprint: String,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    finish_reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct AssistantMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Serialize, ToSchema)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Serialize, ToSchema)]
struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    fn of(tokens: Vec<pb::TokenOut>) -> Self {
        let content = tokens.into_iter().map(|token| TokenLogprob {
            logprob: openai::logprob(token.logprob),
            token: openai::token_name(&token.raw, &token.text),
            bytes: bytes_of(&token.raw, &token.text),
            top_logprobs: token.top.into_iter().map(TopLogprob::of).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl TopLogprob {
    fn of(top: pb::TopToken) -> Self {
        Self {
            logprob: openai::logprob(top.logprob),
            bytes: bytes_of(&top.raw, &top.text),
            token: openai::token_name(&top.raw, &top.text),
        }
    }
}

fn bytes_of(raw: &[u8], text: &str) -> Vec<u8> {
    if raw.is_empty() { text.as_bytes().to_vec() } else { raw.to_vec() }
}

impl ChatCompletion {
    pub(super) fn new(head: Head, answers: Vec<Collected>, with_logprobs: bool) -> Self {
        let mut usage = Usage::default();
        if let Some(first) = answers.first() {
            usage.prompt(&first.facts);
        }
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            usage.completion(answer.finished.completion_tokens);
            choices.push(ChatChoice {
                index,
                finish_reason: openai::finish_reason(&answer.finished),
                message: AssistantMessage { role: "assistant", content: answer.text, refusal: None },
                logprobs: with_logprobs.then(|| ChatLogprobs::of(answer.tokens)),
            });
        }
        Self {
            id: head.id,
            object: "chat.completion",
            created: head.created,
            model: head.model,
            choices,
            usage,
            system_fingerprint: head.system_fingerprint,
        }
    }
}

/// Writes a stream.
pub(super) struct Chunks {
    pub(super) head: Head,
    pub(super) choices: usize,
    pub(super) with_logprobs: bool,
    /// Counted only if the client wants it in a last chunk.
    pub(super) usage: Option<Usage>,
}

/// One event of a stream.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<ChunkChoice>,
    /// With `include_usage`: null but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize, ToSchema)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize, ToSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl Chunks {
    fn event(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Event {
        json_event(&ChatChunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: &self.head.system_fingerprint,
            choices,
            usage: self.usage.is_some().then_some(usage),
        })
    }
}

impl Dialect for Chunks {
    fn open(&mut self, out: &mut VecDeque<Event>) {
        for index in 0..self.choices {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            out.push_back(self.event(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None));
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut VecDeque<Event>) {
        let (delta, logprobs, finish_reason) = match piece {
            Piece::Tokens(tokens) => {
                let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
                if text.is_empty() && !self.with_logprobs {
                    return;
                }
                (Delta { role: None, content: Some(text) }, self.with_logprobs.then(|| ChatLogprobs::of(tokens)), None)
            }
            Piece::Finished(finished) => {
                if let Some(usage) = &mut self.usage {
                    usage.completion(finished.completion_tokens);
                }
                (Delta::default(), None, Some(openai::finish_reason(&finished)))
            }
        };
        out.push_back(self.event(vec![ChunkChoice { index, delta, logprobs, finish_reason }], None));
    }

    fn close(&mut self, out: &mut VecDeque<Event>) {
        if let Some(usage) = self.usage {
            out.push_back(self.event(Vec::new(), Some(usage)));
        }
        out.push_back(Event::default().data("[DONE]"));
    }

    fn fault(&mut self, fault: &Fault, out: &mut VecDeque<Event>) {
        out.push_back(json_event(&openai_body(fault)));
    }
}

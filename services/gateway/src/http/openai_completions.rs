//! `POST /v1/completions`: raw prompts, as the caller formatted them.

use super::body;
use super::errors::{OpenAiBody, OpenAiError, openai_body};
use super::openai::{self, Common, TOP_LOGPROBS_MAX, Usage};
use super::sse::{self, Dialect, json_event};
use super::{step_headers, weft_headers};
use crate::app::Gateway;
use crate::error::Error;
use crate::generate::{Collected, Piece, Wanted};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// OpenAI's own default of this route.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// What a completion is asked with. Fields that are not listed are accepted and ignored, unless heeding them would
/// change the answer: those are refused by name.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    #[serde(flatten)]
    #[allow(dead_code, reason = "for the schema; each part is read on its own, so that errors name their field")]
    common: Common,
    #[serde(flatten)]
    #[allow(dead_code, reason = "for the schema; each part is read on its own, so that errors name their field")]
    completion: CompletionFields,
}

/// Fields of completions alone.
#[derive(Deserialize, ToSchema)]
struct CompletionFields {
    /// A text, several, token ids, or several arrays of token ids.
    #[schema(value_type = Object)]
    prompt: Prompts,
    /// Give the prompt back before the answer.
    echo: Option<bool>,
    /// Log-probabilities of the tokens, and so many alternatives for each, 0 to 20.
    logprobs: Option<u32>,
}

enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

/// The first entry of an array decides what the others must be.
enum First {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = First;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }
            fn visit_str<E>(self, text: &str) -> Result<First, E> {
                Ok(First::Text(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<First, E> {
                u32::try_from(id).map(First::Id).map_err(|_| E::custom(format!("{id} is no token id")))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<First, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(First::Ids(ids))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Prompts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of strings, or one or more arrays of token ids")
            }
            fn visit_str<E>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts::Texts(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                match seq.next_element()? {
                    None => Ok(Prompts::Texts(Vec::new())),
                    Some(First::Text(first)) => rest(first, seq).map(Prompts::Texts),
                    Some(First::Id(first)) => rest(first, seq).map(|ids| Prompts::Tokens(vec![ids])),
                    Some(First::Ids(first)) => rest(first, seq).map(Prompts::Tokens),
                }
            }
        }
        fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut all = vec![first];
            while let Some(next) = seq.next_element()? {
                all.push(next);
            }
            Ok(all)
        }
        deserializer.deserialize_any(Read)
    }
}

impl Prompts {
    fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(arrays) => arrays.len(),
        }
    }

    /// Prompt `index` for the worker. The caller formatted it: special tokens in the text are meant.
    fn get(&self, index: usize) -> pb::generate_request::Prompt {
        match self {
            Self::Texts(texts) => pb::generate_request::Prompt::Text(pb::TextPrompt {
                text: texts[index].clone(),
                add_special_tokens: true,
                truncate: 0,
                parse_special: true,
            }),
            Self::Tokens(arrays) => {
                pb::generate_request::Prompt::Tokens(pb::TokenPrompt { ids: arrays[index].clone() })
            }
        }
    }

    /// The text of prompt `index`, if it came as text.
    fn text(&self, index: usize) -> Option<&str> {
        match self {
            Self::Texts(texts) => texts.get(index).map(String::as_str),
            Self::Tokens(_) => None,
        }
    }
}

/// How to write answers, once the request is checked.
struct Plan {
    prompts: Prompts,
    /// Answers a prompt.
    choices: usize,
    echo: bool,
    /// Alternatives a token, if log-probabilities are wanted.
    logprobs: Option<u32>,
    /// The caller wants the prompt alone: the one token that was generated for it is dropped.
    nothing_new: bool,
}

impl Plan {
    fn new(common: &Common, fields: CompletionFields, choices_max: usize) -> Result<Self, Fault> {
        let CompletionFields { prompt: prompts, echo, logprobs } = fields;
        let (choices, echo) = (common.choices(choices_max)?, echo == Some(true));
        if prompts.len() == 0 {
            return Err(Fault::invalid("prompt", "`prompt` must not be empty"));
        }
        let answers = prompts.len().saturating_mul(choices);
        if answers > choices_max {
            let message = format!("`prompt` and `n` ask for {answers} answers, more than {choices_max}");
            return Err(Fault::invalid("prompt", message));
        }
        if logprobs.is_some_and(|top| top > TOP_LOGPROBS_MAX) {
            let message = format!("`logprobs` must be at most {TOP_LOGPROBS_MAX}, not {}", logprobs.unwrap_or(0));
            return Err(Fault::invalid("logprobs", message));
        }
        // The prompt's tokens are known at the end only: too late for the head of a stream.
        if echo && common.streams() && (logprobs.is_some() || matches!(prompts, Prompts::Tokens(_))) {
            let value = Some("with `stream` and `logprobs` or token ids".to_owned());
            return Err(Error::Unsupported { field: "echo".into(), value }.into());
        }
        Ok(Self { prompts, choices, echo, logprobs, nothing_new: common.max_tokens == Some(0) })
    }

    fn answers(&self) -> usize {
        self.prompts.len() * self.choices
    }

    fn wanted(&self, common: &Common, stops_max: usize) -> Result<Vec<Wanted>, Fault> {
        let max_tokens = common.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT).max(1);
        let stopping = common.stopping(max_tokens, stops_max)?;
        // Token prompts have no text of ours; the worker's words for them come with their log-probabilities.
        let prompt_tokens = self.echo && (self.logprobs.is_some() || matches!(self.prompts, Prompts::Tokens(_)));
        let logprobs = (self.logprobs.is_some() || prompt_tokens)
            .then(|| pb::Logprobs { top: self.logprobs.unwrap_or(0), prompt: prompt_tokens });
        let mut wanted = Vec::with_capacity(self.answers());
        for prompt in 0..self.prompts.len() {
            for choice in 0..self.choices {
                let sampling = common.sampling(choice)?;
                wanted.push(Wanted { prompt: self.prompts.get(prompt), sampling, stopping: stopping.clone(), logprobs });
            }
        }
        Ok(wanted)
    }
}

/// Complete a text with the base or an adapter.
///
/// With `stream`, the answer is a series of `text_completion` events, the last being `[DONE]`.
#[utoipa::path(
    post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest, security(("key" = [])),
    responses(
        (status = 200, description = "The answer; with `stream`, `text/event-stream` of the same shape", body = Completion),
        (status = 400, description = "The request is wrong", body = OpenAiBody),
        (status = 401, description = "No or wrong key", body = OpenAiBody),
        (status = 404, description = "No such model for this tenant", body = OpenAiBody),
        (status = 413, description = "Body over the cap", body = OpenAiBody),
        (status = 429, description = "Full; see `retry-after`", body = OpenAiBody),
        (status = 503, description = "A part is away; see `retry-after`", body = OpenAiBody),
    )
)]
pub(crate) async fn completions(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (parts, body) = request.into_parts();
    let call = gateway.enter(&parts)?;
    let body = gateway.read_body(&parts, body).await?;
    let common: Common = body::json(&body.bytes)?;
    let fields: CompletionFields = body::json(&body.bytes)?;
    openai::refuse_unsupported(&body.bytes)?;
    drop(body);

    let plan = Plan::new(&common, fields, gateway.settings.max_choices)?;
    let wanted = plan.wanted(&common, gateway.settings.max_stop_sequences)?;
    let (admission, room) = gateway.admit(call, common.model.as_deref(), wanted.len())?;
    let generations = try_join_all(wanted.iter().map(|wanted| gateway.mesh.start(&admission, wanted))).await?;
    let head = Head {
        id: format!("cmpl-{}", uuid::Uuid::now_v7().simple()),
        created: openai::unix_now(),
        model: openai::echoed_model(common.model.as_deref(), &admission),
        system_fingerprint: admission.base.fingerprint(),
    };
    let mut headers = weft_headers(&admission, &generations[0].facts);

    if common.streams() {
        let mut usage = Usage::default();
        generations.iter().step_by(plan.choices).for_each(|generation| usage.prompt(&generation.facts));
        let offsets = vec![0; plan.answers()];
        let chunks = Chunks { head, plan, offsets, usage, with_usage: common.includes_usage() };
        return Ok((headers, sse::response(sse::events(generations, chunks, room))).into_response());
    }
    let answers = try_join_all(generations.into_iter().map(crate::generate::Generation::collect)).await?;
    step_headers(&gateway, &answers, &mut headers);
    Ok((headers, Json(Completion::new(head, &plan, answers))).into_response())
}

/// What all chunks and the whole answer begin with.
struct Head {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: String,
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
    #[schema(value_type = Vec<Object>)]
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
            top.insert(other.text, openai::logprob(other.logprob).into());
        }
        // The token itself is listed even where it is not among the likeliest.
        top.entry(token.text.clone()).or_insert_with(|| openai::logprob(token.logprob).into());
        self.text_offset.push(*offset);
        *offset += token.text.chars().count();
        self.tokens.push(token.text);
        self.token_logprobs.push(known.then(|| openai::logprob(token.logprob)));
        self.top_logprobs.push(known.then_some(top));
    }
}

impl Completion {
    fn new(head: Head, plan: &Plan, answers: Vec<Collected>) -> Self {
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
struct Chunks {
    head: Head,
    plan: Plan,
    /// Characters delivered of each answer.
    offsets: Vec<usize>,
    usage: Usage,
    with_usage: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(body: &str) -> Result<Plan, Fault> {
        let common: Common = body::json(body.as_bytes())?;
        Plan::new(&common, body::json(body.as_bytes())?, 8)
    }

    #[test]
    fn a_prompt_is_text_texts_ids_or_arrays_of_ids() {
        for (body, prompts) in [
            (r#"{"prompt":"a"}"#, 1),
            (r#"{"prompt":["a","b"]}"#, 2),
            (r#"{"prompt":[1,2,3]}"#, 1),
            (r#"{"prompt":[[1],[2,3]]}"#, 2),
        ] {
            assert_eq!(plan(body).unwrap().prompts.len(), prompts, "{body}");
        }
        for body in [
            r#"{"prompt":[]}"#,
            r#"{"prompt":3}"#,
            r#"{"prompt":["a",1]}"#,
            r#"{"prompt":[1,"a"]}"#,
            r#"{"prompt":[-1]}"#,
            r#"{"prompt":[99999999999]}"#,
            r#"{"prompt":[[1],2]}"#,
        ] {
            let fault = plan(body).err().unwrap();
            assert!(fault.param.as_deref().is_some_and(|param| param.starts_with("prompt")), "{body}: {fault:?}");
        }
        assert!(plan("{}").err().unwrap().message.contains("prompt"));
    }

    #[test]
    fn prompts_times_n_are_bounded() {
        assert!(plan(r#"{"prompt":["a","b"],"n":4}"#).is_ok());
        assert!(plan(r#"{"prompt":["a","b","c"],"n":3}"#).is_err());
        assert!(plan(r#"{"prompt":"a","n":0}"#).is_err());
    }
}

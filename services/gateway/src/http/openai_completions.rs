//! `POST /v1/completions`: raw prompts, as the caller formatted them. The answers are in
//! [`super::openai_completions_answer`].

use super::body;
use super::errors::{OpenAiBody, OpenAiError};
use super::openai::{self, Common, TOP_LOGPROBS_MAX, Usage};
use super::openai_completions_answer::{Chunks, Completion, Head};
use super::sse;
use super::{step_headers, weft_headers};
use crate::app::Gateway;
use crate::error::Error;
use crate::generate::{Generation, Wanted, collect_all};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
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
    #[schema(value_type = PromptForm)]
    prompt: Prompts,
    /// Give the prompt back before the answer.
    echo: Option<bool>,
    /// Log-probabilities of the tokens, and so many alternatives for each, 0 to 20.
    #[schema(maximum = 20)]
    logprobs: Option<u32>,
}

/// What [`Prompts`] reads.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the schema")]
enum PromptForm {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    Arrays(Vec<Vec<u32>>),
}

pub(super) enum Prompts {
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
    pub(super) fn text(&self, index: usize) -> Option<&str> {
        match self {
            Self::Texts(texts) => texts.get(index).map(String::as_str),
            Self::Tokens(_) => None,
        }
    }
}

/// How to write answers, once the request is checked.
pub(super) struct Plan {
    pub(super) prompts: Prompts,
    /// Answers a prompt.
    pub(super) choices: usize,
    pub(super) echo: bool,
    /// Alternatives a token, if log-probabilities are wanted.
    pub(super) logprobs: Option<u32>,
    /// The caller wants the prompt alone: the one token that was generated for it is dropped.
    pub(super) nothing_new: bool,
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

    pub(super) fn answers(&self) -> usize {
        self.prompts.len() * self.choices
    }

    fn wanted(&self, common: &Common, stops_max: usize) -> Result<Vec<Wanted>, Fault> {
        let max_tokens = common.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT).max(1);
        let stopping = common.stopping(max_tokens, stops_max)?;
        let grammar = common.grammar()?;
        // Token prompts have no text of ours; the worker's words for them come with their log-probabilities.
        let prompt_tokens = self.echo && (self.logprobs.is_some() || matches!(self.prompts, Prompts::Tokens(_)));
        let logprobs = (self.logprobs.is_some() || prompt_tokens)
            .then(|| pb::Logprobs { top: self.logprobs.unwrap_or(0), prompt: prompt_tokens });
        let mut wanted = Vec::with_capacity(self.answers());
        for prompt in 0..self.prompts.len() {
            let prompt = Arc::new(self.prompts.get(prompt));
            for choice in 0..self.choices {
                let sampling = common.sampling(choice)?;
                wanted.push(Wanted {
                    prompt: Arc::clone(&prompt),
                    sampling,
                    stopping: stopping.clone(),
                    logprobs,
                    priority: common.priority()?,
                    grammar: grammar.clone(),
                });
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
        (status = 422, description = "The adapter was published for another base model", body = OpenAiBody),
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
    let plan = Plan::new(&common, fields, gateway.settings.max_choices)?;
    let mut body = body.parsed().for_answers(plan.answers(), &gateway.mesh.limits)?;

    let wanted = plan.wanted(&common, gateway.settings.max_stop_sequences)?;
    let (admission, room) = gateway.admit(call, common.model.as_deref(), common.user.as_deref(), &wanted).await?;
    let mut generations = gateway.mesh.start_all(&admission, &wanted).await.map_err(in_our_words)?;
    body.keep_prompts(&wanted);
    if plan.nothing_new {
        generations.iter_mut().for_each(Generation::account_for_prompt_alone);
    }
    let head = Head {
        id: format!("cmpl-{}", admission.response_id),
        created: openai::unix_now(),
        model: openai::echoed_model(common.model.as_deref(), &admission),
        system_fingerprint: admission.base.fingerprint(),
    };
    let mut headers = weft_headers(&generations[0].facts);

    if common.streams() {
        let mut usage = Usage::default();
        generations.iter().step_by(plan.choices).for_each(|generation| usage.prompt(&generation.facts));
        let offsets = vec![0; plan.answers()];
        let chunks = Chunks { head, plan, offsets, usage, with_usage: common.includes_usage() };
        let events = sse::events(generations, chunks, (room, body));
        return Ok((headers, sse::response(events, gateway.settings.write_stall())).into_response());
    }
    let answers = collect_all(generations).await?;
    step_headers(&gateway, &answers, &mut headers);
    Ok((headers, Json(Completion::new(head, &plan, answers))).into_response())
}

/// The worker names the fields of its own message; token ids came here as `prompt`.
fn in_our_words(mut fault: Fault) -> Fault {
    if fault.param.as_deref().is_some_and(|param| param.starts_with("tokens")) {
        fault.param = Some("prompt".into());
    }
    fault
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

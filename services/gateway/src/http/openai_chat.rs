//! `POST /v1/chat/completions`: the request. Its answers are in [`super::openai_chat_answer`].

use super::body;
use super::errors::{OpenAiBody, OpenAiError};
use super::openai::{self, Common, TOP_LOGPROBS_MAX, Usage};
use super::openai_chat_answer::{ChatCompletion, Chunks, Head};
use super::sse;
use super::{step_headers, weft_headers};
use crate::app::Gateway;
use crate::error::Error;
use crate::generate::{Wanted, collect_all};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// What a chat is asked with. Fields that are not listed are accepted and ignored, unless heeding them would change
/// the answer: those are refused by name.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    #[serde(flatten)]
    #[allow(dead_code, reason = "for the schema; each part is read on its own, so that errors name their field")]
    common: Common,
    #[serde(flatten)]
    #[allow(dead_code, reason = "for the schema; each part is read on its own, so that errors name their field")]
    chat: ChatFields,
}

/// Fields of chats alone.
#[derive(Deserialize, ToSchema)]
struct ChatFields {
    /// At least one.
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Takes precedence over `max_tokens`.
    max_completion_tokens: Option<u32>,
    /// Log-probabilities of the answer's tokens.
    logprobs: Option<bool>,
    /// Alternatives per token, 0 to 20; needs `logprobs`.
    #[schema(maximum = 20)]
    top_logprobs: Option<u32>,
    /// Continue the last message, which must be the assistant's, instead of opening a new turn.
    continue_final_message: Option<bool>,
}

/// One turn.
#[derive(Deserialize, ToSchema)]
struct Message {
    #[schema(pattern = "^(system|developer|user|assistant)$")]
    role: String,
    /// A text, or parts of type `text`.
    #[serde(default)]
    #[schema(value_type = Option<ContentForm>)]
    content: Option<Content>,
    /// Passed to the template.
    name: Option<String>,
    #[serde(default)]
    #[schema(ignore)]
    tool_calls: body::Given,
    #[serde(default)]
    #[schema(ignore)]
    function_call: body::Given,
    #[serde(default)]
    #[schema(ignore)]
    audio: body::Given,
}

enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// What [`Content`] reads.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the schema")]
enum ContentForm {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Deserialize, ToSchema)]
struct Part {
    /// `text`.
    r#type: String,
    text: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of content parts")
            }
            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// A message as the template gets it.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

/// The template's messages, as JSON.
fn turns(messages: &[Message]) -> Result<String, Fault> {
    if messages.is_empty() {
        return Err(Fault::invalid("messages", "`messages` must not be empty"));
    }
    let mut turns = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let at = |field: &str| format!("messages[{index}].{field}");
        let role = match message.role.as_str() {
            // Templates know no developers; OpenAI says that theirs replace the system's.
            "developer" => "system",
            role @ ("system" | "user" | "assistant") => role,
            role @ ("tool" | "function") => {
                return Err(Error::Unsupported { field: at("role"), value: Some(role.to_owned()) }.into());
            }
            role => {
                let role: String = role.chars().take(32).collect();
                let message = format!("`{}` must be system, developer, user or assistant, not {role:?}", at("role"));
                return Err(Fault::invalid(at("role"), message));
            }
        };
        for (field, given) in
            [("tool_calls", &message.tool_calls), ("function_call", &message.function_call), ("audio", &message.audio)]
        {
            if !given.is_off() {
                return Err(Error::Unsupported { field: at(field), value: None }.into());
            }
        }
        let content = match &message.content {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => joined(parts, &at("content"))?,
            None if role == "assistant" => String::new(),
            None => return Err(Fault::invalid(at("content"), format!("`{}` is required", at("content")))),
        };
        turns.push(Turn { role, content, name: message.name.as_deref() });
    }
    // Strings alone: cannot fail.
    Ok(serde_json::to_string(&turns).unwrap_or_default())
}

fn joined(parts: &[Part], at: &str) -> Result<String, Fault> {
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        if part.r#type != "text" {
            let kind: String = part.r#type.chars().take(32).collect();
            return Err(Error::Unsupported { field: format!("{at}[{index}].type"), value: Some(kind) }.into());
        }
        let field = format!("{at}[{index}].text");
        texts
            .push(part.text.as_deref().ok_or_else(|| Fault::invalid(field.clone(), format!("`{field}` is required")))?);
    }
    Ok(texts.join("\n"))
}

impl ChatFields {
    fn max_tokens(&self, common: &Common) -> Result<u32, Fault> {
        let (field, given) = match self.max_completion_tokens {
            Some(tokens) => ("max_completion_tokens", Some(tokens)),
            None => ("max_tokens", common.max_tokens),
        };
        match given {
            Some(0) => Err(Fault::invalid(field, format!("`{field}` must be at least 1, not 0"))),
            given => Ok(given.unwrap_or(0)),
        }
    }

    fn logprobs(&self) -> Result<Option<pb::Logprobs>, Fault> {
        let top = self.top_logprobs.unwrap_or(0);
        if top > TOP_LOGPROBS_MAX {
            let message = format!("`top_logprobs` must be at most {TOP_LOGPROBS_MAX}, not {top}");
            return Err(Fault::invalid("top_logprobs", message));
        }
        match (self.logprobs, top) {
            (Some(true), top) => Ok(Some(pb::Logprobs { top, prompt: false })),
            (_, 0) => Ok(None),
            _ => Err(Fault::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true")),
        }
    }
}

/// Chat with the base or an adapter.
///
/// The chat template is the base's. With `stream`, the answer is a series of `chat.completion.chunk` events, the last
/// being `[DONE]`.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest, security(("key" = [])),
    responses(
        (status = 200, description = "The answer; with `stream`, `text/event-stream` of chunks", body = ChatCompletion),
        (status = 400, description = "The request is wrong", body = OpenAiBody),
        (status = 401, description = "No or wrong key", body = OpenAiBody),
        (status = 404, description = "No such model for this tenant", body = OpenAiBody),
        (status = 413, description = "Body over the cap", body = OpenAiBody),
        (status = 422, description = "The adapter was published for another base model", body = OpenAiBody),
        (status = 429, description = "Full; see `retry-after`", body = OpenAiBody),
        (status = 503, description = "A part is away; see `retry-after`", body = OpenAiBody),
    )
)]
pub(crate) async fn chat(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, OpenAiError> {
    let (parts, body) = request.into_parts();
    let call = gateway.enter(&parts)?;
    let body = gateway.read_body(&parts, body).await?;
    let common: Common = body::json(&body.bytes)?;
    let fields: ChatFields = body::json(&body.bytes)?;
    openai::refuse_unsupported(&body.bytes)?;
    let choices = common.choices(gateway.settings.max_choices)?;
    let mut body = body.parsed().for_answers(choices, &gateway.mesh.limits)?;

    let prompt = Arc::new(pb::generate_request::Prompt::Chat(pb::ChatPrompt {
        messages_json: turns(&fields.messages)?,
        tools_json: String::new(),
        continue_final_message: fields.continue_final_message == Some(true),
    }));
    let stopping = common.stopping(fields.max_tokens(&common)?, gateway.settings.max_stop_sequences)?;
    let logprobs = fields.logprobs()?;
    let grammar = common.grammar()?;
    let mut wanted = Vec::with_capacity(choices);
    for index in 0..choices {
        let (prompt, stopping, grammar) = (Arc::clone(&prompt), stopping.clone(), grammar.clone());
        let (sampling, priority) = (common.sampling(index)?, common.priority()?);
        wanted.push(Wanted { prompt, sampling, stopping, logprobs, priority, grammar });
    }

    let (admission, room) = gateway.admit(call, common.model.as_deref(), common.user.as_deref(), &wanted).await?;
    let generations = gateway.mesh.start_all(&admission, &wanted).await.map_err(in_chat_words)?;
    body.keep_prompts(&wanted);
    let head = Head {
        id: format!("chatcmpl-{}", admission.response_id),
        created: openai::unix_now(),
        model: openai::echoed_model(common.model.as_deref(), &admission),
        system_fingerprint: admission.base.fingerprint(),
    };
    let mut headers = weft_headers(&generations[0].facts);

    if common.streams() {
        let mut usage = Usage::default();
        usage.prompt(&generations[0].facts);
        let chunks = Chunks {
            head,
            choices,
            with_logprobs: logprobs.is_some(),
            usage: common.includes_usage().then_some(usage),
        };
        let events = sse::events(generations, chunks, (room, body));
        return Ok((headers, sse::response(events, gateway.settings.write_stall())).into_response());
    }
    let answers = collect_all(generations).await?;
    step_headers(&gateway, &answers, &mut headers);
    Ok((headers, Json(ChatCompletion::new(head, answers, logprobs.is_some()))).into_response())
}

/// Below, a chat is a prompt like any other; here its field is `messages`.
fn in_chat_words(mut fault: Fault) -> Fault {
    if fault.param.as_deref() == Some("prompt") {
        fault.param = Some("messages".into());
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &str) -> Result<serde_json::Value, Fault> {
        let fields: ChatFields = body::json(format!("{{\"messages\":{messages}}}").as_bytes())?;
        turns(&fields.messages).map(|json| serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn messages_reach_the_template_as_texts() {
        let turns = read(
            r#"[{"role":"developer","content":"be brief"},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"ada"},
                {"role":"assistant","content":null,"tool_calls":[]}]"#,
        );
        let expected = serde_json::json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a\nb", "name": "ada"},
            {"role": "assistant", "content": ""},
        ]);
        assert_eq!(turns.unwrap(), expected);
    }

    #[test]
    fn a_wrong_message_names_the_field() {
        for (messages, param) in [
            ("[]", "messages"),
            (r#""hi""#, "messages"),
            (r#"[{"content":"x"}]"#, "messages[0]"),
            (r#"[{"role":"user","content":"x"},{"role":"robot","content":"x"}]"#, "messages[1].role"),
            (r#"[{"role":"tool","content":"x"}]"#, "messages[0].role"),
            (r#"[{"role":"user"}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":3}]"#, "messages[0].content"),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]"#,
                "messages[0].content[0].type",
            ),
            (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "messages[0].content[0].text"),
            (r#"[{"role":"assistant","tool_calls":[{"id":"1"}]}]"#, "messages[0].tool_calls"),
        ] {
            assert_eq!(read(messages).unwrap_err().param.as_deref(), Some(param), "{messages}");
        }
    }
}

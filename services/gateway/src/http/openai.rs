//! What OpenAI's chat and completion routes share: fields, checks, usage, finish reasons.

use super::body::{self, Given};
use super::response_format::{self, ResponseFormat};
use crate::error::Error;
use crate::generate::{Admission, Facts};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// Most alternatives per token.
pub(crate) const TOP_LOGPROBS_MAX: u32 = 20;
/// What a log-probability of minus infinity is written as: JSON has no infinities.
const LOGPROB_MIN: f32 = -9999.0;

/// Fields of both routes.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Common {
    /// `name`, `name@alias`, `name@3`, `name@sha256:…` of the tenant's adapter, or `base`. Absent: the tenant's default.
    pub(crate) model: Option<String>,
    /// 0 to 2; 0 is greedy. Absent: 1.
    #[schema(minimum = 0, maximum = 2)]
    pub(crate) temperature: Option<f64>,
    /// 0 to 1. Absent: 1.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f64>,
    /// Keep only the k likeliest tokens; 0 and -1 are off.
    #[schema(minimum = -1, maximum = 4_294_967_295_i64)]
    pub(crate) top_k: Option<i64>,
    /// 0 to 1: keep only tokens at least this likely, relative to the likeliest.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) min_p: Option<f64>,
    /// 0 to 1; both are off.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) typical_p: Option<f64>,
    /// The same seed, request and base give the same answer.
    pub(crate) seed: Option<i64>,
    /// -2 to 2.
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) frequency_penalty: Option<f64>,
    /// -2 to 2.
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) presence_penalty: Option<f64>,
    /// Larger than 0, at most 100; 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub(crate) repetition_penalty: Option<f64>,
    /// How many answers. Absent: 1.
    #[schema(minimum = 1)]
    pub(crate) n: Option<usize>,
    /// One text or several; the answer ends before the first that would come.
    #[schema(value_type = Option<StopForm>)]
    pub(crate) stop: Option<Stop>,
    /// Absent: as many as the context allows (completions: 16).
    pub(crate) max_tokens: Option<u32>,
    /// Answer as server-sent events, the last being `[DONE]`.
    pub(crate) stream: Option<bool>,
    /// Only with `stream`.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Go on after the end-of-text token.
    pub(crate) ignore_eos: Option<bool>,
    /// LoRAX's name of `ignore_eos`.
    pub(crate) ignore_eos_token: Option<bool>,
    /// -1, 0 or 1; the smaller, the sooner, as vLLM has it. Orders your own requests; against other tenants it is a small
    /// head start, and no larger share. Absent: 0.
    #[schema(minimum = -1, maximum = 1)]
    pub(crate) priority: Option<i64>,
    /// Absent: free text.
    pub(crate) response_format: Option<ResponseFormat>,
    /// vLLM's way to give a JSON schema: an object, or the text of one.
    #[schema(value_type = Option<serde_json::Value>)]
    pub(crate) guided_json: Option<Box<RawValue>>,
    /// vLLM's way to give a regular expression.
    pub(crate) guided_regex: Option<String>,
    /// Whose request it is: the same user gets the same arm of an experiment. The header `x-weft-session` goes before.
    pub(crate) user: Option<String>,
}

/// How to stream.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk without choices carries the usage.
    pub(crate) include_usage: Option<bool>,
}

/// A text or an array of texts.
#[derive(Clone, Debug)]
pub(crate) struct Stop(pub(crate) Vec<String>);

/// What [`Stop`] reads.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the schema")]
pub(crate) enum StopForm {
    One(String),
    Several(Vec<String>),
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Stop;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }
            fn visit_str<E>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Stop, A::Error> {
                let mut stops = Vec::new();
                while let Some(stop) = seq.next_element()? {
                    stops.push(stop);
                }
                Ok(Stop(stops))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl Common {
    pub(crate) fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    pub(crate) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage) == Some(true)
    }

    /// Answers for each prompt.
    pub(crate) fn choices(&self, max: usize) -> Result<usize, Fault> {
        match self.n.unwrap_or(1) {
            0 => Err(Fault::invalid("n", "`n` must be at least 1, not 0")),
            n if n > max => Err(Fault::invalid("n", format!("`n` must be at most {max}, not {n}"))),
            n => Ok(n),
        }
    }

    /// Sampling of answer `index`: with a seed, each answer of one request has its own.
    pub(crate) fn sampling(&self, index: usize) -> Result<pb::Sampling, Fault> {
        let temperature = within("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(1.0);
        let top_p = within("top_p", self.top_p, 0.0, 1.0)?;
        let top_k = match self.top_k.unwrap_or(0) {
            -1 | 0 => 0,
            k => u32::try_from(k)
                .map_err(|_| Fault::invalid("top_k", format!("`top_k` must be -1, 0 or a positive number, not {k}")))?,
        };
        let repetition_penalty = within("repetition_penalty", self.repetition_penalty, 0.0, 100.0)?;
        if repetition_penalty == Some(0.0) {
            return Err(Fault::invalid("repetition_penalty", "`repetition_penalty` must be larger than 0"));
        }
        Ok(pb::Sampling {
            temperature,
            // The worker reads 0 as "not set"; the smallest number keeps the likeliest token alone, as 0 asks.
            top_p: top_p.map_or(0.0, |top_p| top_p.max(f32::MIN_POSITIVE)),
            top_k,
            min_p: within("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(0.0),
            typical_p: within("typical_p", self.typical_p, 0.0, 1.0)?.filter(|p| *p < 1.0).unwrap_or(0.0),
            // Negative seeds are seeds too: any 64 bits.
            seed: self.seed.map(|seed| (seed as u64).wrapping_add(index as u64)),
            repetition_penalty: repetition_penalty.unwrap_or(0.0),
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        })
    }

    pub(crate) fn priority(&self) -> Result<i32, Fault> {
        match self.priority.unwrap_or(0) {
            priority @ -1..=1 => Ok(priority as i32),
            other => Err(Fault::invalid("priority", format!("`priority` must be -1, 0 or 1, not {other}"))),
        }
    }

    /// What the answer may look like; none: anything.
    pub(crate) fn grammar(&self) -> Result<Option<pb::Grammar>, Fault> {
        let (json, regex) = (self.guided_json.as_deref(), self.guided_regex.as_deref());
        response_format::grammar(self.response_format.as_ref(), json, regex)
    }

    pub(crate) fn stopping(&self, max_tokens: u32, stops_max: usize) -> Result<pb::Stopping, Fault> {
        let stop = self.stop.as_ref().map(|stop| stop.0.clone()).unwrap_or_default();
        if stop.len() > stops_max {
            let message = format!("`stop` takes at most {stops_max} sequences, not {}", stop.len());
            return Err(Fault::invalid("stop", message));
        }
        if stop.iter().any(String::is_empty) {
            return Err(Fault::invalid("stop", "`stop` must not contain an empty string"));
        }
        let ignore_eos = self.ignore_eos == Some(true) || self.ignore_eos_token == Some(true);
        Ok(pb::Stopping { max_tokens, stop, ignore_eos, include_stop: false })
    }
}

/// A number within its range, ends included.
pub(crate) fn within(field: &str, value: Option<f64>, min: f64, max: f64) -> Result<Option<f32>, Fault> {
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(Fault::invalid(field, format!("`{field}` must be from {min} to {max}, not {value}")))
        }
        value => Ok(value.map(|value| value as f32)),
    }
}

/// Whether a field's value leaves the answer as it is.
type Harmless = fn(&Given) -> bool;

/// Fields that would change the answer if they were heeded, and the values under which they do not. Anything else
/// that we do not know is accepted, as OpenAI's own servers do.
const UNSUPPORTED: &[(&str, Harmless)] = &[
    ("tools", Given::is_off),
    ("tool_choice", |given| given.is_off() || matches!(given.text(), Some("none" | "auto"))),
    ("functions", Given::is_off),
    ("function_call", |given| given.is_off() || matches!(given.text(), Some("none" | "auto"))),
    ("logit_bias", Given::is_off),
    ("modalities", |given| given.is_off() || matches!(given, Given::Array(1))),
    ("audio", Given::is_off),
    ("prediction", Given::is_off),
    ("web_search_options", |given| *given == Given::Nothing),
    ("moderation", Given::is_off),
    ("reasoning_effort", |given| given.is_off() || given.text() == Some("none")),
    ("verbosity", |given| given.is_off() || given.text() == Some("medium")),
    ("suffix", Given::is_off),
    ("best_of", |given| matches!(given, Given::Nothing) || *given == Given::Number(1.0)),
    ("use_beam_search", Given::is_off),
    ("length_penalty", |given| given.is_off() || *given == Given::Number(1.0)),
    ("min_tokens", |given| given.is_off() || *given == Given::Number(0.0)),
    ("stop_token_ids", Given::is_off),
    ("bad_words", Given::is_off),
    ("allowed_token_ids", Given::is_off),
    ("chat_template", Given::is_off),
    ("chat_template_kwargs", Given::is_off),
    ("documents", Given::is_off),
    ("structured_outputs", Given::is_off),
    ("guided_choice", Given::is_off),
    ("guided_grammar", Given::is_off),
    ("grammar", Given::is_off),
    ("json_schema", Given::is_off),
    ("regex", Given::is_off),
    ("ebnf", Given::is_off),
    ("merged_adapters", Given::is_off),
    ("guideline", Given::is_off),
    ("tool_prompt", Given::is_off),
];

/// Refuses what would change the answer silently.
///
/// # Errors
/// `unsupported_parameter`, naming the field.
pub(crate) fn refuse_unsupported(bytes: &[u8]) -> Result<(), Fault> {
    let unsupported: Unsupported = body::json(bytes)?;
    unsupported.0.map_or(Ok(()), |(field, value)| Err(Error::Unsupported { field, value }.into()))
}

/// The first unsupported field that is set, and its value where that tells more.
struct Unsupported(Option<(String, Option<String>)>);

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scan;
        impl<'de> Visitor<'de> for Scan {
            type Value = Unsupported;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    let refused = if let Some((_, harmless)) = UNSUPPORTED.iter().find(|(name, _)| *name == key) {
                        (!harmless(&map.next_value::<Given>()?)).then_some((key, None))
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        None
                    };
                    found = found.or(refused);
                }
                Ok(Unsupported(found))
            }
        }
        deserializer.deserialize_map(Scan)
    }
}

/// What the request cost.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) total_tokens: u32,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

/// Of the prompt tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Served from the prefix cache.
    pub(crate) cached_tokens: u32,
}

impl Usage {
    /// Counts a prompt once, however many answers it has.
    pub(crate) fn prompt(&mut self, facts: &Facts) {
        self.prompt_tokens += facts.prompt_tokens;
        self.total_tokens += facts.prompt_tokens;
        self.prompt_tokens_details.cached_tokens += facts.cached_tokens;
    }

    pub(crate) fn completion(&mut self, tokens: u32) {
        self.completion_tokens += tokens;
        self.total_tokens += tokens;
    }
}

/// OpenAI's word for why an answer ended.
pub(crate) fn finish_reason(finished: &pb::Finished) -> &'static str {
    match finished.reason() {
        pb::FinishReason::Length => "length",
        pb::FinishReason::Eos | pb::FinishReason::Stop | pb::FinishReason::Unspecified => "stop",
    }
}

/// A token as OpenAI spells it: its text, or the bytes of one that is only part of a character. A token has this name
/// whatever of it was delivered and when. `text` stands in for a worker that does not send the bytes.
pub(crate) fn token_name(raw: &[u8], text: &str) -> String {
    if raw.is_empty() {
        return text.to_owned();
    }
    match std::str::from_utf8(raw) {
        Ok(name) => name.to_owned(),
        Err(_) => raw.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    }
}

pub(crate) fn logprob(value: f32) -> f32 {
    if value.is_finite() { value.max(LOGPROB_MIN) } else { LOGPROB_MIN }
}

/// The `model` of an answer: what the client sent, or what that came to.
pub(crate) fn echoed_model(sent: Option<&str>, admission: &Admission) -> String {
    match (sent, &admission.resolved) {
        (Some(sent), _) if !sent.is_empty() => sent.to_owned(),
        (_, crate::resolve::Resolved::Adapter { name, .. }) => name.clone(),
        (_, crate::resolve::Resolved::Base) => admission.base.served_name().to_owned(),
    }
}

/// Unix seconds.
pub(crate) fn unix_now() -> u64 {
    crate::clock::unix_ms() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_named() {
        for (field, body) in [
            ("temperature", r#"{"temperature":2.1}"#),
            ("top_p", r#"{"top_p":-0.1}"#),
            ("top_k", r#"{"top_k":-2}"#),
            ("min_p", r#"{"min_p":1.5}"#),
            ("frequency_penalty", r#"{"frequency_penalty":3}"#),
            ("presence_penalty", r#"{"presence_penalty":-3}"#),
            ("repetition_penalty", r#"{"repetition_penalty":0}"#),
        ] {
            let common: Common = body::json(body.as_bytes()).unwrap();
            let fault = common.sampling(0).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some(field));
            assert!(fault.message.contains(field), "{fault}");
        }
    }

    #[test]
    fn absent_temperature_is_one_and_answers_of_a_seed_differ() {
        let common: Common = body::json(br#"{"seed":-1}"#).unwrap();
        let first = common.sampling(0).unwrap();
        assert_eq!((first.temperature, first.seed), (1.0, Some(u64::MAX)));
        assert_eq!(common.sampling(1).unwrap().seed, Some(0));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (field, body) in [
            ("tools", r#"{"tools":[{}]}"#),
            ("tool_choice", r#"{"tool_choice":"required"}"#),
            ("logit_bias", r#"{"logit_bias":{"1":2}}"#),
            ("guided_choice", r#"{"guided_choice":["a"]}"#),
        ] {
            let fault = refuse_unsupported(body.as_bytes()).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some(field));
        }
    }

    #[test]
    fn what_would_not_change_the_answer_is_accepted() {
        let body = r#"{"tools":[],"tool_choice":"auto","response_format":{"type":"text"},"user":"u","metadata":{"a":1},
            "store":true,"logit_bias":null,"parallel_tool_calls":true,"something_new":{"deep":[1,2,{}]}}"#;
        assert!(refuse_unsupported(body.as_bytes()).is_ok());
        assert!(refuse_unsupported(b"[]").is_err());
    }

    #[test]
    fn stop_is_a_text_or_several() {
        let stops =
            |body: &str| body::json::<Common>(body.as_bytes()).unwrap().stopping(1, 2).map(|stopping| stopping.stop);
        assert_eq!(stops(r#"{"stop":"a"}"#).unwrap(), ["a"]);
        assert_eq!(stops(r#"{"stop":["a","b"]}"#).unwrap(), ["a", "b"]);
        assert_eq!(stops(r#"{"stop":null}"#).unwrap(), [""; 0]);
        assert!(stops(r#"{"stop":["a","b","c"]}"#).is_err());
        assert!(stops(r#"{"stop":""}"#).is_err());
        let fault = body::json::<Common>(br#"{"stop":["a",3]}"#).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("stop[1]"));
    }
}

//! A request in LoRAX's dialect: its fields, defaults, checks and the texts of its refusals, which clients match on.
//!
//! Differences on purpose, each refused by name instead of ignored: `watermark`.
//! A `response_format` of type `text` leaves the answer free, which LoRAX does not.
//! `api_token` is ignored. An `adapter_id` is always the name of an adapter that this tenant has here; where the tenant's policy says what an
//! `adapter_source` is, one that it has not is imported from there.

use super::lorax_merged::MergedAdapters;
use super::response_format::ResponseFormat;
use crate::generate::Wanted;
use crate::settings::Settings;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;

/// Most `return_k_alternatives`.
const ALTERNATIVES_MAX: i32 = 20;

/// LoRAX's request.
#[derive(Deserialize, ToSchema)]
pub(crate) struct LoraxRequest {
    /// The whole prompt, as the caller formatted it.
    #[schema(min_length = 1)]
    pub(crate) inputs: String,
    #[serde(default)]
    pub(crate) parameters: Option<Parameters>,
    /// On `/` and `/invocations`: answer as server-sent events.
    #[serde(default)]
    pub(crate) stream: Option<bool>,
}

/// LoRAX's parameters. Each may be null.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Parameters {
    /// A name that the tenant published here; absent or empty: the tenant's default, else the base.
    pub(crate) adapter_id: Option<String>,
    /// `hub` (the default), `local`, `s3` or `pbase`: where an adapter that the tenant has not is imported from, if its policy says what that is.
    adapter_source: Option<String>,
    /// Not together with `adapter_id`.
    merged_adapters: Option<MergedAdapters>,
    /// Accepted and ignored: the key is in `authorization`.
    api_token: Option<String>,
    /// Generate so many and answer with the likeliest.
    best_of: Option<usize>,
    temperature: Option<f64>,
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    top_k: Option<i32>,
    top_p: Option<f64>,
    typical_p: Option<f64>,
    do_sample: Option<bool>,
    /// Absent: as many as the context allows.
    max_new_tokens: Option<u32>,
    ignore_eos_token: Option<bool>,
    /// Answer with the prompt before the text.
    return_full_text: Option<bool>,
    /// The text that stopped stays in the answer.
    stop: Option<Vec<String>>,
    /// Keep only the last so many tokens of the prompt.
    truncate: Option<usize>,
    watermark: Option<bool>,
    details: Option<bool>,
    /// Log-probabilities of the prompt.
    decoder_input_details: Option<bool>,
    return_k_alternatives: Option<i32>,
    /// Accepted and ignored, as LoRAX does.
    apply_chat_template: Option<bool>,
    seed: Option<u64>,
    response_format: Option<ResponseFormat>,
}

/// A checked request.
pub(crate) struct Checked {
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) adapter_id: Option<String>,
    /// Where it is imported from if the tenant has it not.
    pub(crate) source: String,
    /// In place of it.
    pub(crate) merged: Option<MergedAdapters>,
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) details: bool,
    pub(crate) prefill: bool,
    pub(crate) full_text: bool,
    pub(crate) alternatives: bool,
    /// The answer is drawn, so its seed means something.
    pub(crate) sampled: bool,
}

impl Checked {
    fn prompt(&self) -> Option<&pb::TextPrompt> {
        match self.wanted.first().map(|wanted| &*wanted.prompt) {
            Some(pb::generate_request::Prompt::Text(prompt)) => Some(prompt),
            _ => None,
        }
    }

    /// The prompt's text.
    pub(crate) fn inputs(&self) -> &str {
        self.prompt().map_or("", |prompt| &prompt.text)
    }

    /// Tokens that are left of a prompt of so many.
    pub(crate) fn kept(&self, tokens: usize) -> usize {
        match self.prompt().map_or(0, |prompt| prompt.truncate as usize) {
            0 => tokens,
            truncate => tokens.min(truncate),
        }
    }
}

/// A refusal in LoRAX's words; the HTTP layer puts `Input validation error: ` before them.
pub(crate) fn refusal(param: &str, message: impl Into<String>) -> Fault {
    Fault::invalid(param, message).with_code("validation")
}

fn not_yet(param: &str) -> Fault {
    refusal(param, format!("`{param}` is not supported yet"))
}

impl LoraxRequest {
    /// Checks everything that needs no tokenizer.
    pub(crate) fn check(self, stream: bool, settings: &Settings) -> Result<Checked, Fault> {
        let p = self.parameters.unwrap_or_default();
        p.refuse_unsupported()?;
        if self.inputs.is_empty() {
            return Err(refusal("inputs", "`inputs` cannot be empty"));
        }
        let best_of = p.best_of(stream, settings.max_best_of)?;
        let prefill = p.decoder_input_details == Some(true);
        if stream && prefill {
            return Err(refusal(
                "decoder_input_details",
                "`decoder_input_details` == true is not supported when streaming tokens",
            ));
        }
        let (sampling, sampled) = p.sampling()?;
        let grammar = p.response_format.as_ref().map_or(Ok(None), ResponseFormat::grammar);
        let grammar = grammar.map_err(|fault| fault.with_code("validation"))?;
        let stopping = p.stopping(settings.max_stop_sequences)?;
        let truncate = match p.truncate {
            Some(0) => return Err(refusal("truncate", "`truncate` must be strictly positive")),
            truncate => truncate.map_or(0, |tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
        };
        let top = match p.return_k_alternatives {
            Some(k) if k <= 0 => {
                return Err(refusal("return_k_alternatives", "`return_k_alternatives` must be strictly positive"));
            }
            Some(k) if k > ALTERNATIVES_MAX => {
                let message = format!("`return_k_alternatives` must be <= {ALTERNATIVES_MAX}. Given: {k}");
                return Err(refusal("return_k_alternatives", message));
            }
            k => k.unwrap_or(0).unsigned_abs(),
        };
        let prompt = pb::TextPrompt { text: self.inputs, add_special_tokens: true, truncate, parse_special: true };
        let one = Wanted {
            prompt: Arc::new(pb::generate_request::Prompt::Text(prompt)),
            sampling,
            stopping,
            logprobs: (top > 0 || prefill).then_some(pb::Logprobs { top, prompt: prefill }),
            priority: 0,
            grammar,
        };
        Ok(Checked {
            wanted: vec![one; best_of],
            adapter_id: p.adapter_id,
            source: p.adapter_source.filter(|source| !source.is_empty()).unwrap_or_else(|| "hub".to_owned()),
            merged: p.merged_adapters.filter(|merged| !merged.is_off()),
            max_new_tokens: p.max_new_tokens,
            details: p.details == Some(true) || prefill,
            prefill,
            full_text: p.return_full_text == Some(true),
            alternatives: top > 0,
            sampled,
        })
    }
}

impl Parameters {
    fn refuse_unsupported(&self) -> Result<(), Fault> {
        if let Some(merged) = self.merged_adapters.as_ref().filter(|merged| !merged.is_off()) {
            if self.adapter_id.as_deref().is_some_and(|id| !id.is_empty()) {
                return Err(refusal("merged_adapters", "at most one of `adapter_id` or `adapters` may be provided"));
            }
            merged.check()?;
        }
        if self.watermark == Some(true) {
            return Err(not_yet("watermark"));
        }
        match self.adapter_source.as_deref() {
            None | Some("" | "hub" | "local" | "s3" | "pbase") => Ok(()),
            Some(other) => {
                let other: String = other.chars().take(32).collect();
                Err(refusal(
                    "adapter_source",
                    format!("`adapter_source` must be one of hub, local, s3, pbase. Given: {other:?}"),
                ))
            }
        }
    }

    fn best_of(&self, stream: bool, max: usize) -> Result<usize, Fault> {
        let best_of = self.best_of.unwrap_or(1);
        if best_of == 0 || best_of > max {
            return Err(refusal("best_of", format!("`best_of` must be > 0 and <= {max}. Given: {best_of}")));
        }
        if best_of == 1 {
            return Ok(1);
        }
        let asked_for_sampling = self.do_sample == Some(true)
            || self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.typical_p.is_some();
        if !asked_for_sampling {
            return Err(refusal("best_of", "you must use sampling when `best_of` is > 1"));
        }
        if self.seed.is_some() {
            return Err(refusal("best_of", "`seed` must not be set when `best_of` > 1"));
        }
        if stream {
            return Err(refusal("best_of", "`best_of` != 1 is not supported when streaming tokens"));
        }
        Ok(best_of)
    }

    /// The worker's sampling, and whether anything is drawn at all.
    fn sampling(&self) -> Result<(pb::Sampling, bool), Fault> {
        let temperature = self.temperature.unwrap_or(1.0);
        // `contains` is false for NaN, which JSON cannot carry anyway.
        if !(0.0..=f64::from(f32::MAX)).contains(&temperature) {
            return Err(refusal("temperature", "`temperature` must be non-negative"));
        }
        let repetition = self.repetition_penalty.unwrap_or(1.0);
        if repetition <= 0.0 || repetition > f64::from(f32::MAX) {
            return Err(refusal("repetition_penalty", "`repetition_penalty` must be strictly positive"));
        }
        for (name, value) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if value.is_some_and(|value| !(-2.0..=2.0).contains(&value)) {
                return Err(refusal(name, format!("`{name}` must be >= -2.0 and <= 2.0")));
            }
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if top_p <= 0.0 || top_p > 1.0 {
            return Err(refusal("top_p", "`top_p` must be > 0.0 and < 1.0"));
        }
        let typical_p = self.typical_p.unwrap_or(1.0);
        if self.typical_p.is_some() && (typical_p <= 0.0 || typical_p >= 1.0) {
            return Err(refusal("typical_p", "`typical_p` must be > 0.0 and < 1.0"));
        }
        if self.top_k.is_some_and(|top_k| top_k <= 0) {
            return Err(refusal("top_k", "`top_k` must be strictly positive"));
        }
        let sampled = temperature != 0.0
            && (self.do_sample == Some(true)
                || temperature != 1.0
                || self.top_k.is_some()
                || top_p < 1.0
                || typical_p < 1.0);
        let sampling = pb::Sampling {
            // A positive temperature never becomes greedy by rounding to f32.
            temperature: if sampled { (temperature as f32).max(f32::MIN_POSITIVE) } else { 0.0 },
            top_p: (top_p as f32).max(f32::MIN_POSITIVE),
            top_k: self.top_k.map_or(0, i32::unsigned_abs),
            min_p: 0.0,
            typical_p: if typical_p < 1.0 { typical_p as f32 } else { 0.0 },
            seed: self.seed,
            repetition_penalty: (repetition as f32).max(f32::MIN_POSITIVE),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0) as f32,
            presence_penalty: self.presence_penalty.unwrap_or(0.0) as f32,
        };
        Ok((sampling, sampled))
    }

    fn stopping(&self, stops_max: usize) -> Result<pb::Stopping, Fault> {
        if self.max_new_tokens == Some(0) {
            return Err(refusal("max_new_tokens", "`max_new_tokens` must be strictly positive"));
        }
        let stop = self.stop.clone().unwrap_or_default();
        if stop.len() > stops_max {
            let message = format!("`stop` supports up to {stops_max} stop sequences. Given: {}", stop.len());
            return Err(refusal("stop", message));
        }
        if stop.iter().any(String::is_empty) {
            return Err(refusal("stop", "`stop` must not contain an empty stop sequence"));
        }
        Ok(pb::Stopping {
            max_tokens: self.max_new_tokens.unwrap_or(0),
            stop,
            ignore_eos: self.ignore_eos_token == Some(true),
            include_stop: true,
        })
    }
}

/// A prompt that does not fit, in LoRAX's words: first the sum, then the prompt alone.
pub(crate) fn too_long(
    input_tokens: usize,
    max_new_tokens: Option<u32>,
    limits: &pb::DescribeResponse,
) -> Option<Fault> {
    let total_max = limits.context_tokens_max as usize;
    let input_max = limits.prompt_tokens_max as usize;
    let new = max_new_tokens.map_or_else(|| total_max.saturating_sub(input_tokens), |new| new as usize);
    let message = if input_tokens.saturating_add(new) > total_max {
        format!(
            "`inputs` tokens + `max_new_tokens` must be <= {total_max}. Given: {input_tokens} `inputs` tokens and {new} `max_new_tokens`"
        )
    } else if input_tokens > input_max {
        format!("`inputs` must have less than {input_max} tokens. Given: {input_tokens}")
    } else {
        return None;
    };
    Some(Fault::new(Kind::Invalid, message).with_param("inputs").with_code(crate::error::code::CONTEXT_LENGTH_EXCEEDED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::json;

    fn check(parameters: &str, stream: bool) -> Result<Checked, Fault> {
        let request: LoraxRequest = json(format!("{{\"inputs\":\"x\",\"parameters\":{parameters}}}").as_bytes())?;
        request.check(stream, &Settings::default())
    }

    #[test]
    fn refusals_use_the_words_that_clients_match_on() {
        for (parameters, stream, expected) in [
            (r#"{"best_of":3}"#, false, "`best_of` must be > 0 and <= 2. Given: 3"),
            (r#"{"best_of":0}"#, false, "`best_of` must be > 0 and <= 2. Given: 0"),
            (r#"{"best_of":2}"#, false, "you must use sampling when `best_of` is > 1"),
            (r#"{"best_of":2,"do_sample":true,"seed":1}"#, false, "`seed` must not be set when `best_of` > 1"),
            (r#"{"best_of":2,"do_sample":true}"#, true, "`best_of` != 1 is not supported when streaming tokens"),
            (
                r#"{"decoder_input_details":true}"#,
                true,
                "`decoder_input_details` == true is not supported when streaming tokens",
            ),
            (r#"{"temperature":-1}"#, false, "`temperature` must be non-negative"),
            (r#"{"repetition_penalty":0}"#, false, "`repetition_penalty` must be strictly positive"),
            (r#"{"top_p":0}"#, false, "`top_p` must be > 0.0 and < 1.0"),
            (r#"{"top_k":0}"#, false, "`top_k` must be strictly positive"),
            (r#"{"max_new_tokens":0}"#, false, "`max_new_tokens` must be strictly positive"),
            (r#"{"stop":["a","b","c","d","e"]}"#, false, "`stop` supports up to 4 stop sequences. Given: 5"),
            (
                r#"{"adapter_id":"a","merged_adapters":{"ids":["a"]}}"#,
                false,
                "at most one of `adapter_id` or `adapters` may be provided",
            ),
            (
                r#"{"merged_adapters":{"ids":["a"],"merge_strategy":"nonsense"}}"#,
                false,
                "number of adapter IDs must match number of adapter weights",
            ),
            (r#"{"watermark":true}"#, false, "`watermark` is not supported yet"),
            (
                r#"{"response_format":{"type":"xml"}}"#,
                false,
                "`response_format.type` must be text, json_object, json_schema, regex or lark, not \"xml\"",
            ),
        ] {
            assert_eq!(check(parameters, stream).err().unwrap().message, expected, "{parameters}");
        }
        let empty: LoraxRequest = json(br#"{"inputs":""}"#).unwrap();
        assert_eq!(empty.check(false, &Settings::default()).err().unwrap().message, "`inputs` cannot be empty");
    }

    #[test]
    fn every_key_may_be_null_as_the_client_sends_them() {
        let parameters = r#"{"adapter_id":null,"adapter_source":null,"merged_adapters":null,"api_token":null,"best_of":null,
            "do_sample":false,"max_new_tokens":20,"ignore_eos_token":false,"repetition_penalty":null,"return_full_text":false,
            "stop":[],"seed":null,"temperature":null,"top_k":null,"top_p":null,"truncate":null,"typical_p":null,
            "watermark":false,"response_format":null,"decoder_input_details":false,"return_k_alternatives":null,"details":true}"#;
        let checked = check(parameters, false).unwrap();
        assert!(checked.details && !checked.sampled);
        assert_eq!(checked.wanted[0].sampling.temperature, 0.0);
        assert_eq!(checked.wanted[0].stopping.max_tokens, 20);
        assert!(checked.wanted[0].stopping.include_stop);
    }

    #[test]
    fn a_schema_reaches_the_worker_as_lorax_clients_send_it() {
        let parameters = r#"{"response_format":{"type":"json_object","schema":{"type":"boolean"}}}"#;
        let grammar = check(parameters, false).unwrap().wanted.remove(0).grammar.unwrap();
        assert_eq!(grammar.source, Some(pb::grammar::Source::JsonSchema(r#"{"type":"boolean"}"#.into())));
        assert!(check(r#"{"response_format":{"type":"text"}}"#, false).unwrap().wanted[0].grammar.is_none());
    }

    #[test]
    fn sampling_starts_where_lorax_starts_it() {
        for (parameters, sampled) in [
            ("{}", false),
            (r#"{"temperature":1.0}"#, false),
            (r#"{"temperature":0.0,"do_sample":true}"#, false),
            (r#"{"temperature":0.7}"#, true),
            (r#"{"do_sample":true}"#, true),
            (r#"{"top_k":5}"#, true),
            (r#"{"top_p":0.9}"#, true),
            (r#"{"typical_p":0.9}"#, true),
        ] {
            let checked = check(parameters, false).unwrap();
            assert_eq!(checked.sampled, sampled, "{parameters}");
            assert_eq!(checked.wanted[0].sampling.temperature > 0.0, sampled, "{parameters}");
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_is_refused_with_both_numbers() {
        let limits = pb::DescribeResponse { context_tokens_max: 100, prompt_tokens_max: 90, ..Default::default() };
        let message = |input, new| too_long(input, new, &limits).map(|fault| fault.message);
        assert_eq!(
            message(80, Some(30)).unwrap(),
            "`inputs` tokens + `max_new_tokens` must be <= 100. Given: 80 `inputs` tokens and 30 `max_new_tokens`"
        );
        assert_eq!(message(95, Some(5)).unwrap(), "`inputs` must have less than 90 tokens. Given: 95");
        assert_eq!(message(50, None), None);
    }
}

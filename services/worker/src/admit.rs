//! From a request on the wire to a job for the step loop: checked, rendered, tokenized. Nothing here touches the loop.

use std::time::Instant;

use weft_base_model::SpecialText;
use weft_batching::{Prefix, Priority, Weight};
use weft_engine::sampling::SamplingParams;
use weft_grammar::Grammar;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

use crate::Error;
use crate::answer::{Answer, Bounds, Followed, prompt_digest};
use crate::model::Model;
use crate::prefix::{HashChain, Namespace};
use crate::settings::Settings;

/// Most alternatives per token.
const TOP_LOGPROBS_MAX: u32 = 20;
/// Longest tenant and request names that are kept.
const NAME_BYTES_MAX: usize = 256;

/// A request that can run.
pub(crate) struct Job {
    pub(crate) request_id: String,
    pub(crate) tenant: String,
    pub(crate) weight: Weight,
    pub(crate) priority: Priority,
    /// None: the base alone.
    pub(crate) adapter: Option<Digest>,
    /// Not empty.
    pub(crate) prompt: Vec<u32>,
    /// Its part in the prefix cache, for the scheduler to take; none: no part.
    pub(crate) prefix: Option<Prefix>,
    /// Goes on where `prefix` ends.
    pub(crate) hash_chain: Option<HashChain>,
    /// Prompt and output fit the context.
    pub(crate) answer: Answer,
    /// None: any text.
    pub(crate) followed: Option<Followed>,
    pub(crate) prompt_digest: Digest,
    pub(crate) top_logprobs: usize,
    pub(crate) prompt_logprobs: bool,
    pub(crate) deadline_ms: u64,
    pub(crate) received: Instant,
}

/// Checks, renders and tokenizes. Cost: a chat template and about 1 µs per token; run it on a blocking thread.
///
/// # Errors
/// Every variant that a request can be blamed for; see [`Error::kind`].
pub(crate) fn admit(
    request: pb::GenerateRequest,
    grammar: Option<Grammar>,
    received: Instant,
    model: &Model,
    settings: &Settings,
) -> Result<Job, Error> {
    let adapter = adapter(&request)?;
    if !request.expected_base_digest.is_empty() {
        let expected = digest("expected_base_digest", &request.expected_base_digest)?;
        if expected != model.digest {
            return Err(Error::OtherBase { expected, actual: model.digest });
        }
    }
    if !matches!(request.tenant_salt.len(), 0 | 32) {
        return Err(Error::field("tenant_salt", format!("{} bytes", request.tenant_salt.len()), "32 bytes or none"));
    }
    check_name("tenant", &request.tenant)?;
    check_name("request_id", &request.request_id)?;
    let (weight, priority) = (weight(request.tenant_weight)?, priority(request.priority)?);
    let sampling = sampling(request.sampling.unwrap_or_default())?;
    let stopping = request.stopping.unwrap_or_default();
    check_stops(&stopping.stop, settings)?;
    let (top_logprobs, prompt_logprobs) = match request.logprobs {
        None => (0, false),
        Some(logprobs) if logprobs.top > TOP_LOGPROBS_MAX => {
            return Err(Error::field("logprobs.top", logprobs.top, format!("0 to {TOP_LOGPROBS_MAX}")));
        }
        Some(logprobs) => (logprobs.top as usize, logprobs.prompt),
    };
    let prompt = prompt_ids(request.prompt, model, settings)?;
    let bounds = Bounds {
        max_tokens: max_tokens(prompt.len(), stopping.max_tokens as usize, model)?,
        stops: stopping.stop,
        include_stop: stopping.include_stop,
        ignore_eos: stopping.ignore_eos,
    };
    let mut answer = Answer::new(&prompt, sampling, bounds, grammar.is_some());
    let mut followed = grammar.as_ref().map(Followed::new);
    let prompt_digest = prompt_digest(&prompt);
    if let Some(continuation) = request.continuation {
        check_continuation(&continuation, &request.sampling.unwrap_or_default(), &prompt_digest)?;
        answer.replay(&continuation.ids, followed.as_mut(), model)?;
    }
    // Without a salt nobody is known to whom these blocks could be shown again.
    let caches = settings.prefix_cache && !request.tenant_salt.is_empty();
    let (hash_chain, prefix) = caches
        .then(|| {
            let namespace = Namespace {
                base: &model.digest,
                adapter: adapter.as_ref(),
                tenant_salt: &request.tenant_salt,
                dtype: model.kv_dtype,
            };
            // Log-probabilities of the prompt need every row of it.
            HashChain::of_prompt(namespace, answer.tokens_to_compute(), !prompt_logprobs)
        })
        .unzip();
    Ok(Job {
        request_id: request.request_id,
        tenant: request.tenant,
        weight,
        priority,
        adapter,
        prompt,
        prefix,
        hash_chain,
        answer,
        followed,
        prompt_digest,
        top_logprobs,
        prompt_logprobs,
        deadline_ms: request.deadline_ms,
        received,
    })
}

/// The tokens themselves are checked by [`Answer::replay`].
fn check_continuation(continuation: &pb::Continuation, sampling: &pb::Sampling, prompt: &Digest) -> Result<(), Error> {
    if !continuation.prompt_digest.is_empty()
        && digest("continuation.prompt_digest", &continuation.prompt_digest)? != *prompt
    {
        return Err(Error::OtherPrompt);
    }
    // One that is drawn here would be another than the one that the tokens were drawn with.
    if !continuation.ids.is_empty() && sampling.temperature > 0.0 && sampling.seed.is_none() {
        return Err(Error::field("sampling.seed", "absent", "the seed that continuation.ids were drawn with"));
    }
    Ok(())
}

/// A name that is short enough to keep.
pub(crate) fn check_name<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Error> {
    if name.len() > NAME_BYTES_MAX {
        let allowed = format!("at most {NAME_BYTES_MAX} bytes");
        return Err(Error::field(field, format!("{} bytes", name.len()), allowed));
    }
    Ok(name)
}

/// The adapter a request names; none: the base alone.
pub(crate) fn adapter(request: &pb::GenerateRequest) -> Result<Option<Digest>, Error> {
    request.adapter.as_ref().map(|adapter| digest("adapter.digest", &adapter.digest)).transpose()
}

/// The text of a tokenize request, as ids with their places.
pub(crate) fn tokenize(
    request: &pb::TokenizeRequest,
    model: &Model,
    settings: &Settings,
) -> Result<Vec<pb::TextToken>, Error> {
    check_bytes(request.text.len(), settings)?;
    let tokens = model.tokenizer.encode_with_offsets(&request.text, request.add_special_tokens)?;
    let token = |token: weft_base_model::TextToken| pb::TextToken {
        id: token.id,
        text: token.text,
        start: token.start as u32,
        end: token.end as u32,
    };
    Ok(tokens.into_iter().map(token).collect())
}

pub(crate) fn digest(field: &'static str, raw: &[u8]) -> Result<Digest, Error> {
    Digest::try_from(raw).map_err(|_| Error::field(field, format!("{} bytes", raw.len()), "32 bytes"))
}

fn sampling(wire: pb::Sampling) -> Result<SamplingParams, Error> {
    // A range check by comparison refuses NaN.
    let within = |field: &'static str, value: f32, ok: bool, allowed: &str| {
        if ok && value.is_finite() { Ok(()) } else { Err(Error::field(field, value, allowed)) }
    };
    let or_one = |value: f32| if value == 0.0 { 1.0 } else { value };
    let (top_p, repetition) = (or_one(wire.top_p), or_one(wire.repetition_penalty));
    within("temperature", wire.temperature, wire.temperature >= 0.0, "0 or more")?;
    within("top_p", wire.top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
    within("min_p", wire.min_p, (0.0..=1.0).contains(&wire.min_p), "0 to 1")?;
    within("typical_p", wire.typical_p, (0.0..1.0).contains(&wire.typical_p), "above 0 and below 1, or 0 for off")?;
    within("repetition_penalty", wire.repetition_penalty, repetition > 0.0, "above 0")?;
    for (field, value) in [("frequency_penalty", wire.frequency_penalty), ("presence_penalty", wire.presence_penalty)] {
        within(field, value, (-2.0..=2.0).contains(&value), "-2 to 2")?;
    }
    Ok(SamplingParams {
        temperature: wire.temperature,
        top_p,
        top_k: wire.top_k as usize,
        min_p: wire.min_p,
        typical_p: wire.typical_p,
        repetition_penalty: repetition,
        frequency_penalty: wire.frequency_penalty,
        presence_penalty: wire.presence_penalty,
        seed: wire.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
    })
}

fn weight(value: f64) -> Result<Weight, Error> {
    if value == 0.0 {
        return Ok(Weight::default());
    }
    let allowed = || format!("{} to {}, or 0 for 1", Weight::MIN, Weight::MAX);
    Weight::new(value).map_err(|_| Error::field("tenant_weight", value, allowed()))
}

fn priority(value: i32) -> Result<Priority, Error> {
    match value {
        -1 => Ok(Priority::High),
        0 => Ok(Priority::Normal),
        1 => Ok(Priority::Low),
        _ => Err(Error::field("priority", value, "-1 (first), 0 or 1 (last)")),
    }
}

fn check_stops(stops: &[String], settings: &Settings) -> Result<(), Error> {
    if stops.len() > settings.stop_strings_max {
        let allowed = format!("at most {} (stop_strings_max)", settings.stop_strings_max);
        return Err(Error::field("stop", format!("{} strings", stops.len()), allowed));
    }
    for stop in stops {
        if stop.is_empty() {
            return Err(Error::field("stop", "an empty string", "1 byte or more"));
        }
        if stop.len() > settings.stop_bytes_max {
            let allowed = format!("at most {} bytes (stop_bytes_max)", settings.stop_bytes_max);
            return Err(Error::field("stop", format!("a string of {} bytes", stop.len()), allowed));
        }
    }
    Ok(())
}

fn check_bytes(bytes: usize, settings: &Settings) -> Result<(), Error> {
    let limit = settings.prompt_bytes_max;
    if bytes > limit { Err(Error::PromptBytes { bytes, limit }) } else { Ok(()) }
}

/// Refuses what cannot fit whatever its tokens are, before the time is spent to find them.
fn check_room(bytes: usize, model: &Model) -> Result<(), Error> {
    let Some(per_token) = model.tokenizer.text_bytes_per_token_max() else { return Ok(()) };
    let (tokens_min, limit) = (bytes.div_ceil(per_token), model.prompt_tokens_max);
    if tokens_min > limit { Err(Error::SurelyTooLong { bytes, tokens_min, limit }) } else { Ok(()) }
}

fn prompt_ids(
    prompt: Option<pb::generate_request::Prompt>,
    model: &Model,
    settings: &Settings,
) -> Result<Vec<u32>, Error> {
    use pb::generate_request::Prompt;
    let ids = match prompt {
        None => return Err(Error::field("prompt", "absent", "one of text, chat and tokens")),
        Some(Prompt::Text(text)) => text_ids(&text, model, settings)?,
        Some(Prompt::Chat(chat)) => chat_ids(&chat, model, settings)?,
        Some(Prompt::Tokens(tokens)) => {
            if let Some(id) = tokens.ids.iter().find(|id| **id as usize >= model.vocabulary) {
                return Err(Error::field("tokens.ids", id, format!("ids below {}", model.vocabulary)));
            }
            tokens.ids
        }
    };
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    Ok(ids)
}

fn text_ids(text: &pb::TextPrompt, model: &Model, settings: &Settings) -> Result<Vec<u32>, Error> {
    check_bytes(text.text.len(), settings)?;
    // One that is to be cut to its last tokens may be longer than they are.
    if text.truncate == 0 {
        check_room(text.text.len(), model)?;
    }
    let special = if text.parse_special { SpecialText::Parse } else { SpecialText::Literal };
    let mut ids = model.tokenizer.encode(&text.text, text.add_special_tokens, special)?;
    if text.truncate > 0 && ids.len() > text.truncate as usize {
        ids.drain(..ids.len() - text.truncate as usize);
    }
    Ok(ids)
}

fn chat_ids(chat: &pb::ChatPrompt, model: &Model, settings: &Settings) -> Result<Vec<u32>, Error> {
    check_bytes(chat.messages_json.len() + chat.tools_json.len(), settings)?;
    let template = model.chat_template.as_ref().ok_or(Error::NoChatTemplate)?;
    let array = |field: &'static str, json: &str| match serde_json::from_str::<serde_json::Value>(json) {
        Ok(value) if value.is_array() => Ok(value),
        _ => Err(Error::field(field, "no JSON array", "a JSON array")),
    };
    let messages = array("messages", &chat.messages_json)?;
    let tools = if chat.tools_json.is_empty() { None } else { Some(array("tools", &chat.tools_json)?) };
    let opens_turn = !chat.continue_final_message;
    let rendered = template.render(&messages, tools.as_ref(), opens_turn, chat.continue_final_message)?;
    check_room(rendered.text().len(), model)?;
    Ok(model.tokenizer.encode_rendered(&rendered)?)
}

/// What is asked for, or all that the context leaves.
fn max_tokens(prompt_tokens: usize, wanted: usize, model: &Model) -> Result<usize, Error> {
    if prompt_tokens > model.prompt_tokens_max {
        return Err(Error::ContextLength { prompt_tokens, max_tokens: None, limit: model.prompt_tokens_max });
    }
    let room = model.context_tokens_max - prompt_tokens;
    match wanted {
        0 => Ok(room),
        _ if wanted > room => {
            Err(Error::ContextLength { prompt_tokens, max_tokens: Some(wanted), limit: model.context_tokens_max })
        }
        _ => Ok(wanted),
    }
}

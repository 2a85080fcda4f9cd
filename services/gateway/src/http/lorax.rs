//! LoRAX's routes, exact for `lorax-client` 0.6.3: `POST /` answers with a JSON **array**, log-probabilities are never
//! null, `skipped` is always there, and errors are flat.

use super::body;
use super::errors::{LoraxBody, LoraxError};
use super::lorax_request::{Checked, LoraxRequest, too_long};
use super::lorax_stream;
use super::{put, sse, step_headers, weft_headers};
use crate::app::Gateway;
use crate::error::code;
use crate::generate::{Admission, Collected, Generation, collect_all};
use crate::workers;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;
use weft_service_kit::transport::within;
use weft_types::AdapterName;

/// LoRAX's answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct LoraxAnswer {
    generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// How the text came about.
#[derive(Serialize, ToSchema)]
struct Details {
    /// `length`, `eos_token` or `stop_sequence`.
    finish_reason: &'static str,
    prompt_tokens: u32,
    generated_tokens: u32,
    skipped_tokens: u32,
    /// Null unless the answer was drawn.
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_of_sequences: Option<Vec<BestOfSequence>>,
}

/// A token of the prompt.
#[derive(Serialize, ToSchema)]
struct PrefillToken {
    id: u32,
    text: String,
    /// Null for the first.
    logprob: Option<f32>,
}

/// A token of the answer.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) logprob: f32,
    pub(super) special: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    alternative_tokens: Option<Vec<AlternativeToken>>,
    /// Won by speculation.
    skipped: bool,
}

#[derive(Clone, Serialize, ToSchema)]
struct AlternativeToken {
    id: u32,
    text: String,
    logprob: f32,
}

/// An answer that another one beat.
#[derive(Serialize, ToSchema)]
struct BestOfSequence {
    generated_text: String,
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<Token>,
}

impl Token {
    pub(super) fn of(token: pb::TokenOut, alternatives: bool) -> Self {
        let top = token.top.into_iter().map(|other| AlternativeToken {
            id: other.id,
            text: other.text,
            logprob: finite(other.logprob),
        });
        Self {
            // Clients drop the text of special tokens. One that carries text brings what was held back before it.
            special: token.special && token.text.is_empty(),
            id: token.id,
            text: token.text,
            logprob: finite(token.logprob),
            alternative_tokens: alternatives.then(|| top.collect()),
            skipped: false,
        }
    }
}

/// The client refuses null, and JSON has no infinities.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { f32::MIN }
}

pub(super) fn finish_reason(finished: &pb::Finished) -> &'static str {
    match finished.reason() {
        pb::FinishReason::Length | pb::FinishReason::Unspecified => "length",
        pb::FinishReason::Eos => "eos_token",
        pb::FinishReason::Stop => "stop_sequence",
    }
}

/// Generate; answers with an object.
#[utoipa::path(
    post, path = "/generate", tag = "lorax", request_body = LoraxRequest, security(("key" = [])),
    responses(
        (status = 200, description = "The answer", body = LoraxAnswer),
        (status = 401, description = "No or wrong key", body = LoraxBody),
        (status = 404, description = "No such adapter for this tenant", body = LoraxBody),
        (status = 422, description = "The request is wrong", body = LoraxBody),
        (status = 429, description = "Full", body = LoraxBody),
    )
)]
pub(crate) async fn generate(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, LoraxError> {
    let asked = read(&gateway, request).await?;
    let (headers, answer) = whole(&gateway, asked).await?;
    Ok((headers, Json(answer)).into_response())
}

/// Generate; answers with server-sent events.
#[utoipa::path(
    post, path = "/generate_stream", tag = "lorax", request_body = LoraxRequest, security(("key" = [])),
    responses(
        (status = 200, description = "One event a token", body = lorax_stream::LoraxEvent, content_type = "text/event-stream"),
        (status = 404, description = "No such adapter for this tenant", body = LoraxBody),
    )
)]
pub(crate) async fn generate_stream(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, LoraxError> {
    let asked = read(&gateway, request).await?;
    streamed(&gateway, asked).await
}

/// What `lorax-client` uses: an array of one answer, or with `stream` server-sent events.
#[utoipa::path(
    post, path = "/", tag = "lorax", request_body = LoraxRequest, security(("key" = [])),
    responses(
        (status = 200, description = "The answer, in an array; with `stream`, one event a token", body = Vec<LoraxAnswer>),
        (status = 404, description = "No such adapter for this tenant", body = LoraxBody),
    )
)]
pub(crate) async fn compat(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, LoraxError> {
    let asked = read(&gateway, request).await?;
    if asked.request.stream == Some(true) {
        return streamed(&gateway, asked).await;
    }
    let (headers, answer) = whole(&gateway, asked).await?;
    Ok((headers, Json([answer])).into_response())
}

/// The same as `POST /`, where model hosts look for it.
#[utoipa::path(
    post, path = "/invocations", tag = "lorax", request_body = LoraxRequest, security(("key" = [])),
    responses(
        (status = 200, description = "The answer, in an array; with `stream`, one event a token", body = Vec<LoraxAnswer>),
        (status = 404, description = "No such adapter for this tenant", body = LoraxBody),
    )
)]
pub(crate) async fn invocations(gateway: State<Arc<Gateway>>, request: Request) -> Result<Response, LoraxError> {
    compat(gateway, request).await
}

/// A request that was read, with the room of its bytes.
struct Asked {
    call: super::Call,
    request: LoraxRequest,
    body: body::Room,
}

async fn read(gateway: &Gateway, request: Request) -> Result<Asked, Fault> {
    let (parts, body) = request.into_parts();
    let call = gateway.enter(&parts)?;
    let body = gateway.read_body(&parts, body).await?;
    Ok(Asked { call, request: body::json(&body.bytes)?, body: body.parsed() })
}

/// Started generations with what their answer needs.
struct Started {
    admission: Admission,
    generations: Vec<Generation>,
    checked: Checked,
    validated: Instant,
    /// For the answers and for the text that they may have to be asked for again.
    room: (OwnedSemaphorePermit, body::Room),
}

async fn start(gateway: &Arc<Gateway>, asked: Asked, stream: bool) -> Result<Started, Fault> {
    let Asked { call, request, body } = asked;
    let mut checked = request.check(stream, &gateway.settings)?;
    let mut body = body.for_answers(checked.wanted.len(), &gateway.mesh.limits)?;
    let call = make_adapter(gateway, call, &mut checked).await?;
    let (admission, room) = gateway.admit(call, checked.adapter_id.as_deref(), None, &checked.wanted).await?;
    let validated = Instant::now();
    match gateway.mesh.start_all(&admission, &checked.wanted).await {
        Ok(generations) => {
            body.keep_prompts(&checked.wanted);
            Ok(Started { admission, generations, checked, validated, room: (room, body) })
        }
        Err(fault) if fault.code == code::CONTEXT_LENGTH_EXCEEDED => {
            Err(in_lorax_words(gateway, &admission, &checked).await.unwrap_or(fault))
        }
        Err(fault) => Err(fault),
    }
}

/// Sees to it that the tenant has what is asked for: a merge gets a name, and what its policy knows a source of is imported. Nothing is made for
/// a request that the tenant's limits refuse.
async fn make_adapter(
    gateway: &Arc<Gateway>,
    mut call: super::Call,
    checked: &mut Checked,
) -> Result<super::Call, Fault> {
    let base = gateway.mesh.pool.base()?;
    if let Some(merged) = &checked.merged {
        let merge = merged.of(&call.tenant, base.served_name())?;
        merge.name()?;
        gateway.reserve_once(&mut call, &checked.wanted, &base).await?;
        let tenant = &call.tenant;
        let (name, snapshot) = gateway.merged(&tenant.name, merge).await?;
        let version = snapshot.newest(&tenant.name, name.as_str()).unwrap_or(1);
        checked.adapter_id = Some(format!("{name}@{version}"));
        return Ok(call.seen_by(&snapshot));
    }
    // Only a plain name is one of something elsewhere.
    let name = checked.adapter_id.as_deref().and_then(|id| id.parse::<AdapterName>().ok());
    let tenant = Arc::clone(&call.tenant);
    let (Some(name), Some(beginning)) = (name, tenant.adapter_sources.get(&checked.source)) else { return Ok(call) };
    let is_base = base.served_name() == name.as_str();
    if is_base || name.is_merged() || tenant.adapters.contains_key(name.as_str()) {
        return Ok(call);
    }
    gateway.reserve_once(&mut call, &checked.wanted, &base).await?;
    let snapshot = gateway.sourced(&tenant.name, name, beginning).await?;
    Ok(call.seen_by(&snapshot))
}

/// The worker counts, but says it in its own words; LoRAX's clients know LoRAX's.
async fn in_lorax_words(gateway: &Gateway, admission: &Admission, checked: &Checked) -> Option<Fault> {
    let at = gateway.mesh.pool.choose(&workers::Asked::of_base(&admission.base.digest))?;
    let request = pb::TokenizeRequest { text: checked.inputs().to_owned(), add_special_tokens: true };
    let limit = gateway.settings.body_timeout();
    let counted = tokio::time::timeout(limit, at.worker().client().tokenize(within(limit, request))).await;
    let tokens = counted.ok()?.ok()?.into_inner().tokens.len();
    too_long(checked.kept(tokens), checked.max_new_tokens, &admission.base.description)
}

async fn streamed(gateway: &Arc<Gateway>, asked: Asked) -> Result<Response, LoraxError> {
    let mut started = start(gateway, asked, true).await?;
    let mut headers = lorax_headers(&started.admission, &started.checked);
    // `best_of` is 1 in a stream, so there is exactly one.
    let generation = started.generations.remove(0);
    headers.extend(weft_headers(&generation.facts));
    let events = lorax_stream::events(generation, started.checked, started.room);
    Ok((headers, sse::response(events, gateway.settings.write_stall())).into_response())
}

async fn whole(gateway: &Arc<Gateway>, asked: Asked) -> Result<(HeaderMap, LoraxAnswer), Fault> {
    let Started { admission, generations, checked, validated, room } = start(gateway, asked, false).await?;
    let mut answers = collect_all(generations).await?;
    drop(room);
    let best = (0..answers.len()).max_by(|a, b| mean_logprob(&answers[*a]).total_cmp(&mean_logprob(&answers[*b])));
    answers.swap(0, best.unwrap_or(0));

    let mut headers = lorax_headers(&admission, &checked);
    headers.extend(weft_headers(&answers[0].facts));
    timing_headers(&mut headers, &admission, validated, &answers);
    step_headers(gateway, &answers, &mut headers);

    let best_of = answers.len() > 1;
    let mut sequences = answers.into_iter().map(|answer| sequence(answer, &checked));
    let (facts, first) = sequences.next().ok_or_else(|| Fault::internal("no answer"))?;
    let generated_text = first.generated_text;
    let losers: Vec<BestOfSequence> = sequences.map(|(_, sequence)| sequence).collect();
    let details = checked.details.then_some(Details {
        finish_reason: first.finish_reason,
        prompt_tokens: facts.prompt_tokens,
        generated_tokens: first.generated_tokens,
        skipped_tokens: 0,
        seed: first.seed,
        prefill: first.prefill,
        tokens: first.tokens,
        best_of_sequences: best_of.then_some(losers),
    });
    Ok((headers, LoraxAnswer { generated_text, details }))
}

fn mean_logprob(answer: &Collected) -> f32 {
    let sum: f32 = answer.tokens.iter().map(|token| finite(token.logprob).max(-1e30)).sum();
    sum / answer.tokens.len().max(1) as f32
}

fn sequence(answer: Collected, checked: &Checked) -> (crate::generate::Facts, BestOfSequence) {
    let prefill = if checked.prefill { answer.finished.prompt.clone() } else { Vec::new() };
    let prefill = prefill.into_iter().map(|token| PrefillToken {
        id: token.id,
        text: token.text,
        logprob: Some(token.logprob).filter(|logprob| logprob.is_finite()),
    });
    let sequence = BestOfSequence {
        generated_text: if checked.full_text { format!("{}{}", checked.inputs(), answer.text) } else { answer.text },
        finish_reason: finish_reason(&answer.finished),
        generated_tokens: answer.finished.completion_tokens,
        seed: checked.sampled.then_some(answer.finished.seed),
        prefill: prefill.collect(),
        tokens: answer.tokens.into_iter().map(|token| Token::of(token, checked.alternatives)).collect(),
    };
    (answer.facts, sequence)
}

/// Headers of both kinds of answers.
fn lorax_headers(admission: &Admission, checked: &Checked) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let description = &admission.base.description;
    let compute = if device(description) == "cuda" { "gpu+optimized" } else { "cpu+optimized" };
    put(&mut headers, "x-compute-type", compute);
    put(&mut headers, "x-compute-characters", &checked.inputs().chars().count().to_string());
    put(&mut headers, "x-model-id", model_id(description));
    if let crate::resolve::Resolved::Adapter { name, .. } = &admission.resolved {
        put(&mut headers, "x-adapter-id", name);
        // Every adapter comes from the mesh's own registry, whatever the request says.
        put(&mut headers, "x-adapter-source", "weft");
    }
    headers
}

/// Times in whole milliseconds, tokens counted.
fn timing_headers(headers: &mut HeaderMap, admission: &Admission, validated: Instant, answers: &[Collected]) {
    let facts = &answers[0].facts;
    let generated: u64 = answers.iter().map(|answer| u64::from(answer.finished.completion_tokens)).sum();
    let total = admission.arrived.elapsed().as_millis() as u64;
    let validation = validated.duration_since(admission.arrived).as_millis() as u64;
    let queue = facts.queue_us / 1000;
    let inference = total.saturating_sub(validation + queue);
    let first = facts.first_token_after.as_millis() as u64;
    let numbers = [
        ("x-compute-time", total),
        ("x-total-time", total),
        ("x-validation-time", validation),
        ("x-queue-time", queue),
        ("x-inference-time", inference),
        ("x-time-per-token", inference / generated.max(1)),
        ("x-time-to-first-token", first),
        ("x-time-per-output-token", total.saturating_sub(first) / generated.saturating_sub(1).max(1)),
        ("x-prompt-tokens", u64::from(facts.prompt_tokens)),
        ("x-generated-tokens", generated),
        ("x-skipped-tokens", 0),
        ("x-total-tokens", u64::from(facts.prompt_tokens) + generated),
    ];
    for (name, number) in numbers {
        put(headers, name, &number.to_string());
    }
}

/// `cuda` or `cpu`, from the instruction set that the worker chose.
fn device(description: &pb::DescribeResponse) -> &'static str {
    if description.isa.starts_with("sm_") || description.isa.starts_with("cuda") { "cuda" } else { "cpu" }
}

/// Where the model came from, without the folders of the worker's machine.
fn model_id(description: &pb::DescribeResponse) -> &str {
    let id = description.model_id.as_str();
    if id.starts_with('/') { id.trim_end_matches('/').rsplit('/').next().unwrap_or(id) } else { id }
}

/// A text to tokenize.
#[derive(Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    inputs: String,
    /// Absent: true.
    add_special_tokens: Option<bool>,
}

/// A token and its place in the text, in characters, end exclusive.
#[derive(Serialize, ToSchema)]
pub(crate) struct TextToken {
    id: u32,
    text: String,
    start: u32,
    stop: u32,
}

/// Text to token ids, with the base's tokenizer.
#[utoipa::path(
    post, path = "/tokenize", tag = "lorax", request_body = TokenizeRequest, security(("key" = [])),
    responses((status = 200, description = "The tokens", body = Vec<TextToken>), (status = 401, description = "No or wrong key", body = LoraxBody))
)]
pub(crate) async fn tokenize(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Json<Vec<TextToken>>, LoraxError> {
    let (parts, body) = request.into_parts();
    let call = gateway.enter(&parts)?;
    let body = gateway.read_body(&parts, body).await?;
    let asked: TokenizeRequest = body::json(&body.bytes)?;
    let _body = body.parsed();
    let base = gateway.mesh.pool.base()?;
    call.known.base(&base);
    call.known.resolved(&call.tenant.name, &crate::resolve::Resolved::Base);
    let _counted = gateway.reserve(&call, &[], 0).await?;
    let at = gateway.mesh.pool.choose(&workers::Asked::of_base(&base.digest)).ok_or(crate::error::Error::NoWorker)?;
    let worker = at.worker();
    if let Some(name) = worker.name() {
        call.known.worker(&name);
    }
    let request =
        pb::TokenizeRequest { text: asked.inputs, add_special_tokens: asked.add_special_tokens != Some(false) };
    let limit = gateway.settings.request_timeout();
    let answer = tokio::time::timeout(limit, worker.client().tokenize(within(limit, request))).await;
    let answer = answer.map_err(|_| crate::error::Error::TooSlow(gateway.settings.request_timeout_s))?;
    let tokens = answer.map_err(|status| crate::error::from_worker(&status))?.into_inner().tokens;
    let tokens = tokens.into_iter().map(|token| TextToken {
        id: token.id,
        text: token.text,
        start: token.start,
        stop: token.end,
    });
    Ok(Json(tokens.collect()))
}

/// LoRAX's description of itself. What does not exist here is null.
#[derive(Serialize, ToSchema)]
pub(crate) struct Info {
    model_id: String,
    /// The base digest.
    model_sha: String,
    model_dtype: String,
    model_device_type: &'static str,
    model_pipeline_tag: &'static str,
    max_concurrent_requests: usize,
    max_best_of: usize,
    max_stop_sequences: usize,
    max_input_length: u32,
    max_total_tokens: u32,
    waiting_served_ratio: f32,
    max_batch_total_tokens: u64,
    max_waiting_tokens: u32,
    validation_workers: u32,
    eager_prefill: bool,
    version: &'static str,
    sha: Option<String>,
    docker_label: Option<String>,
    request_logger_url: Option<String>,
}

/// What is served, within which limits.
#[utoipa::path(
    get, path = "/info", tag = "lorax",
    responses((status = 200, description = "The base and its limits", body = Info), (status = 503, description = "No worker yet", body = LoraxBody))
)]
pub(crate) async fn info(State(gateway): State<Arc<Gateway>>) -> Result<Json<Info>, LoraxError> {
    let base = gateway.mesh.pool.base()?;
    let description = &base.description;
    let dtype = match description.dtype.as_str() {
        "f32" => "torch.float32".to_owned(),
        "bf16" => "torch.bfloat16".to_owned(),
        "f16" => "torch.float16".to_owned(),
        other => other.to_owned(),
    };
    Ok(Json(Info {
        model_id: model_id(description).to_owned(),
        model_sha: base.digest.hex(),
        model_dtype: dtype,
        model_device_type: device(description),
        model_pipeline_tag: "text-generation",
        max_concurrent_requests: gateway.settings.max_concurrent_requests,
        max_best_of: gateway.settings.max_best_of,
        max_stop_sequences: gateway.settings.max_stop_sequences,
        max_input_length: description.prompt_tokens_max,
        max_total_tokens: description.context_tokens_max,
        // Requests join at every step here; nothing waits for a ratio or a count.
        waiting_served_ratio: 0.0,
        max_batch_total_tokens: description.kv_tokens_max,
        max_waiting_tokens: 0,
        validation_workers: 0,
        eager_prefill: true,
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
        request_logger_url: None,
    }))
}

/// Whether requests can be answered: an empty body, or LoRAX's error.
#[utoipa::path(
    get, path = "/health", tag = "lorax",
    responses((status = 200, description = "Ready"), (status = 503, description = "Not ready", body = LoraxBody))
)]
pub(crate) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.waiting_for().is_empty() {
        return StatusCode::OK.into_response();
    }
    let body = serde_json::json!({"error": "unhealthy", "error_type": "healthcheck"});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// The same as `/health`.
#[utoipa::path(
    get, path = "/", tag = "lorax",
    responses((status = 200, description = "Ready"), (status = 503, description = "Not ready", body = LoraxBody))
)]
pub(crate) async fn root(gateway: State<Arc<Gateway>>) -> Response {
    health(gateway).await
}

/// The same as `/health`, where model hosts look for it.
#[utoipa::path(
    get, path = "/ping", tag = "lorax",
    responses((status = 200, description = "Ready"), (status = 503, description = "Not ready", body = LoraxBody))
)]
pub(crate) async fn ping(gateway: State<Arc<Gateway>>) -> Response {
    health(gateway).await
}

//! `POST /v1/feedback`: what a client says of an answer it got.

use super::body;
use super::errors::{OpenAiBody, OpenAiError};
use crate::app::Gateway;
use crate::experiments::{Feedback, ResponseId, not_yet};
use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;
use weft_fault::Fault;

/// The metric that feedback is of where none is named.
const METRIC: &str = "feedback";
const NAME_BYTES_MAX: usize = 63;
const LABEL_BYTES_MAX: usize = 256;
/// A gateway may learn of an experiment so late.
const STALE: Duration = Duration::from_secs(15);
const GOOD: [&str; 6] = ["up", "good", "accept", "accepted", "thumbs_up", "positive"];
const BAD: [&str; 6] = ["down", "bad", "reject", "rejected", "thumbs_down", "negative"];

/// A word about an answer: exactly one of `score`, `label` and `preferred`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FeedbackAsked {
    /// The answer's `id`, or its header `x-weft-response-id`.
    id: String,
    /// The experiment's metric that this is a value of. Absent: `feedback`.
    metric: Option<String>,
    /// A number that is a value of the metric: 0 or 1, stars, a share.
    score: Option<f64>,
    /// `up`, `good`, `accept`, `thumbs_up`, `positive` (1) or `down`, `bad`, `reject`, `thumbs_down`, `negative` (0). Beside a score: any
    /// text, for the log.
    label: Option<String>,
    /// Whether this answer was preferred to another one: 1 or 0.
    preferred: Option<bool>,
}

/// What became of it.
#[derive(Serialize, ToSchema)]
pub(crate) struct FeedbackTaken {
    /// Whether it counts in an experiment.
    counted: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experiment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arm: Option<String>,
}

fn wrong(field: &str, message: impl Into<String>) -> Fault {
    Fault::invalid(field, message.into())
}

fn read(asked: &FeedbackAsked) -> Result<Feedback, Fault> {
    let metric = asked.metric.clone().unwrap_or_else(|| METRIC.to_owned());
    if metric.is_empty() || metric.len() > NAME_BYTES_MAX {
        return Err(wrong("metric", format!("`metric` has {} bytes, allowed are 1 to {NAME_BYTES_MAX}", metric.len())));
    }
    if let Some(label) = asked.label.as_ref().filter(|label| label.len() > LABEL_BYTES_MAX) {
        return Err(wrong("label", format!("`label` has {} bytes, the limit is {LABEL_BYTES_MAX}", label.len())));
    }
    let value = match (asked.score, asked.preferred, asked.label.as_deref()) {
        (Some(_), Some(_), _) => return Err(wrong("preferred", "`score` and `preferred` cannot both be given")),
        (Some(score), None, _) => score,
        (None, Some(preferred), _) => f64::from(u8::from(preferred)),
        (None, None, Some(label)) if GOOD.contains(&label) => 1.0,
        (None, None, Some(label)) if BAD.contains(&label) => 0.0,
        (None, None, Some(label)) => {
            let message = format!("`label` is {label:?}: without a `score` it must be one of {GOOD:?} or {BAD:?}");
            return Err(wrong("label", message));
        }
        (None, None, None) => return Err(wrong("score", "one of `score`, `label` and `preferred` is required")),
    };
    Ok(Feedback { metric, value, label: asked.label.clone() })
}

/// Say how good an answer was.
///
/// It counts in the experiment that the answer was part of, once for each answer and metric; the answer comes when the registry has it. An
/// answer of no experiment, or of one that has ended, takes feedback too, and counts it nowhere.
#[utoipa::path(
    post, path = "/v1/feedback", tag = "openai", request_body = FeedbackAsked, security(("key" = [])),
    responses(
        (status = 200, description = "Taken", body = FeedbackTaken),
        (status = 400, description = "The metric or its value is wrong", body = OpenAiBody),
        (status = 404, description = "No answer that this tenant got", body = OpenAiBody),
        (status = 503, description = "It could not be kept yet: say it again", body = OpenAiBody),
    )
)]
pub(crate) async fn feedback(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Json<FeedbackTaken>, OpenAiError> {
    let (parts, body) = request.into_parts();
    let call = gateway.enter(&parts)?;
    let body = gateway.read_body(&parts, body).await?;
    let asked: FeedbackAsked = body::json(&body.bytes)?;
    // A request like any other, to the tenant's limits; but it generates nothing, and gives its room back before it waits.
    let _meter = gateway.reserve(&call, &[], 0).await?;
    let tenant = call.leave();
    let said = read(&asked)?;
    let unknown = || Fault::not_found("there is no such answer of yours");
    let answer = ResponseId::read(&asked.id, tenant.salt.as_ref()).ok_or_else(unknown)?;
    let results = &gateway.mesh.metrics.feedback;
    let ignored = |reason: &'static str, label: &str| {
        results.with_label_values(&[label]).inc();
        Ok(Json(FeedbackTaken { counted: false, reason: Some(reason), experiment: None, arm: None }))
    };
    let Some(origin) = answer.origin else {
        return ignored("the answer was part of no experiment", "no_experiment");
    };
    let Some(experiment) = tenant.experiments.iter().find(|experiment| origin.is_of(experiment)) else {
        if !gateway.experiments.has_seen(&origin) && ResponseId::age(&answer.plain).is_some_and(|age| age < STALE) {
            return Err(not_yet().into());
        }
        return ignored("the experiment has ended", "ended");
    };
    let taken = gateway.experiments.feedback(&tenant, experiment, &origin, &answer.plain, &said).await?;
    results.with_label_values(&[if taken.counted.is_ok() { "counted" } else { "repeated" }]).inc();
    Ok(Json(FeedbackTaken {
        counted: taken.counted.is_ok(),
        reason: taken.counted.err(),
        experiment: Some(experiment.id.clone()),
        arm: Some(taken.arm),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Result<f64, Option<String>> {
        let asked: FeedbackAsked = body::json(json.as_bytes()).map_err(|fault| fault.param.clone())?;
        read(&asked).map(|feedback| feedback.value).map_err(|fault| fault.param)
    }

    #[test]
    fn a_score_a_label_or_a_preference_is_a_value() {
        assert_eq!(value(r#"{"id":"x","score":0.5,"label":"anything"}"#), Ok(0.5));
        assert_eq!(value(r#"{"id":"x","label":"thumbs_up"}"#), Ok(1.0));
        assert_eq!(value(r#"{"id":"x","label":"down"}"#), Ok(0.0));
        assert_eq!(value(r#"{"id":"x","preferred":false}"#), Ok(0.0));
    }

    #[test]
    fn what_is_no_value_names_its_field() {
        let long = format!(r#"{{"id":"x","score":1,"label":"{}"}}"#, "x".repeat(257));
        for (json, field) in [
            (r#"{"id":"x"}"#, "score"),
            (r#"{"id":"x","score":1,"preferred":true}"#, "preferred"),
            (r#"{"id":"x","label":"so so"}"#, "label"),
            (r#"{"id":"x","score":1,"metric":""}"#, "metric"),
            (&long, "label"),
        ] {
            assert_eq!(value(json).unwrap_err().as_deref(), Some(field), "{json}");
        }
    }
}

//! Faults as HTTP: OpenAI's object on `/v1` and `/admin/v1`, LoRAX's flat shape on its own routes.

use crate::error::code;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};

/// Milliseconds, as the OpenAI SDK reads it before `retry-after`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Whether OpenAI's libraries try again; without it they decide by the status.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A fault that is answered in OpenAI's shape.
#[derive(Debug)]
pub(crate) struct OpenAiError(pub(crate) Fault);

/// A fault that is answered in LoRAX's shape.
#[derive(Debug)]
pub(crate) struct LoraxError(pub(crate) Fault);

impl<E: Into<Fault>> From<E> for OpenAiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<E: Into<Fault>> From<E> for LoraxError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// OpenAI's error body.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiBody {
    pub(crate) error: OpenAiObject,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiObject {
    /// For people.
    message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[schema(example = "invalid_request_error")]
    r#type: &'static str,
    /// The request field at fault.
    param: Option<String>,
    /// A stable word.
    #[schema(example = "model_not_found")]
    code: String,
    /// Every reason of a refusal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

/// LoRAX's error body.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxBody {
    /// For people; validation texts are LoRAX's own.
    error: String,
    /// `validation`, `generation`, `overloaded`, `adapter_not_found`, `unauthenticated`, `healthcheck`.
    error_type: &'static str,
}

/// The body of a fault in OpenAI's shape.
pub(crate) fn openai_body(fault: &Fault) -> OpenAiBody {
    let r#type = match openai_status(fault).as_u16() {
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    OpenAiBody {
        error: OpenAiObject {
            message: fault.message.clone(),
            r#type,
            param: fault.param.clone(),
            code: fault.code.clone(),
            reasons: fault.reasons.clone(),
        },
    }
}

fn openai_status(fault: &Fault) -> StatusCode {
    match fault.code.as_str() {
        code::BODY_TIMEOUT => StatusCode::REQUEST_TIMEOUT,
        code::METHOD_NOT_ALLOWED => StatusCode::METHOD_NOT_ALLOWED,
        code::PRECONDITION_FAILED => StatusCode::PRECONDITION_FAILED,
        _ => fault.kind.http_status(),
    }
}

/// The body of a fault in LoRAX's shape.
pub(crate) fn lorax_body(fault: &Fault) -> LoraxBody {
    let (error_type, prefix) = match fault.kind {
        Kind::Invalid | Kind::Refused | Kind::Conflict | Kind::TooLarge => ("validation", "Input validation error: "),
        Kind::NotFound if fault.code == code::MODEL_NOT_FOUND => ("adapter_not_found", ""),
        Kind::NotFound => ("not_found", ""),
        Kind::Unauthenticated => ("unauthenticated", ""),
        Kind::Overloaded if is_limit(fault) => ("overloaded", ""),
        Kind::Overloaded => return LoraxBody { error: "Model is overloaded".into(), error_type: "overloaded" },
        Kind::Timeout if fault.code == code::BODY_TIMEOUT => ("validation", "Input validation error: "),
        Kind::Unavailable | Kind::Timeout | Kind::Corrupt | Kind::Internal => {
            ("generation", "Request failed during generation: Server error: ")
        }
    };
    LoraxBody { error: format!("{prefix}{}", fault.message), error_type }
}

fn lorax_status(fault: &Fault) -> StatusCode {
    match fault.kind {
        Kind::Invalid if fault.code == code::INVALID_JSON => StatusCode::BAD_REQUEST,
        // The same on all routes: a schema is refused before anything runs.
        Kind::Invalid if fault.code == code::INVALID_GRAMMAR => StatusCode::BAD_REQUEST,
        Kind::Invalid if fault.code != code::METHOD_NOT_ALLOWED => StatusCode::UNPROCESSABLE_ENTITY,
        _ => openai_status(fault),
    }
}

/// Whether it is a tenant's, a key's or an address' own limit that was reached.
fn is_limit(fault: &Fault) -> bool {
    [code::RATE_LIMIT_EXCEEDED, code::INSUFFICIENT_QUOTA, code::REQUEST_EXCEEDS_LIMIT].contains(&fault.code.as_str())
}

/// `retry-after` in whole seconds and `retry-after-ms`, where the fault has a hint or its status demands one. Never sooner, and later
/// for some, so that those who were refused together do not come back together: by up to half, or, where a limit says exactly when,
/// by up to a quarter.
fn retry_headers(fault: &Fault, status: StatusCode) -> HeaderMap {
    let is_final = fault.code == code::REQUEST_EXCEEDS_LIMIT;
    let demanded = (matches!(status.as_u16(), 429 | 503) && !is_final).then_some(1000);
    let mut headers = HeaderMap::new();
    if is_final || fault.code == code::INSUFFICIENT_QUOTA {
        // Clients retry a 429 by themselves, within seconds.
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    if let Some(ms) = fault.retry_after_ms.or(demanded) {
        let spread = if is_limit(fault) { (ms / 4).clamp(50, 5_000) } else { ms / 2 };
        let ms = ms.saturating_add(rand::random_range(0..=spread));
        headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    headers
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let status = openai_status(&self.0);
        (status, retry_headers(&self.0, status), Json(openai_body(&self.0))).into_response()
    }
}

impl IntoResponse for LoraxError {
    fn into_response(self) -> Response {
        let status = lorax_status(&self.0);
        (status, retry_headers(&self.0, status), Json(lorax_body(&self.0))).into_response()
    }
}

/// A path that no route has.
pub(crate) fn unknown_url(method: &http::Method, path: &str) -> Fault {
    let path: String = path.chars().take(200).collect();
    Fault::not_found(format!("unknown URL: {method} {path}")).with_code(code::UNKNOWN_URL)
}

/// A path that has a route, but not for this method.
pub(crate) fn method_not_allowed(method: &http::Method, path: &str) -> Fault {
    let path: String = path.chars().take(200).collect();
    Fault::new(Kind::Invalid, format!("method {method} is not allowed on {path}")).with_code(code::METHOD_NOT_ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(response: &Response) -> (u64, u64) {
        let number = |name: &str| response.headers()[name].to_str().unwrap().parse().unwrap();
        (number("retry-after"), number("retry-after-ms"))
    }

    #[test]
    fn hints_are_spread_so_that_not_all_come_back_at_once() {
        let hint =
            |_| hints(&OpenAiError(Fault::new(Kind::Overloaded, "later").with_retry_after_ms(1000)).into_response()).1;
        let all: Vec<u64> = (0..200).map(hint).collect();
        assert!(all.iter().all(|ms| (1000..=1500).contains(ms)), "{all:?}");
        assert!(all.iter().min().unwrap() + 200 < *all.iter().max().unwrap(), "{all:?}");
    }

    #[test]
    fn full_and_away_say_when_to_try_again() {
        for (kind, status) in [(Kind::Overloaded, 429), (Kind::Unavailable, 503)] {
            let response = OpenAiError(Fault::new(kind, "later").with_retry_after_ms(1500)).into_response();
            assert_eq!(response.status(), status);
            let (seconds, ms) = hints(&response);
            assert!((1500..=2250).contains(&ms) && seconds == ms.div_ceil(1000), "{seconds} s, {ms} ms");
            assert!(LoraxError(Fault::new(kind, "later")).into_response().headers().contains_key("retry-after"));
        }
    }

    #[test]
    fn lorax_clients_get_the_types_they_know() {
        let of = |kind| lorax_body(&Fault::new(kind, "x")).error_type;
        assert_eq!(of(Kind::Invalid), "validation");
        assert_eq!(of(Kind::Overloaded), "overloaded");
        assert_eq!(of(Kind::Unavailable), "generation");
        let unknown = Fault::not_found("x").with_code(code::MODEL_NOT_FOUND);
        assert_eq!(lorax_body(&unknown).error_type, "adapter_not_found");
        assert_eq!(LoraxError(unknown).into_response().status(), 404);
        assert_eq!(LoraxError(Fault::invalid("top_k", "x")).into_response().status(), 422);
        for code in [code::INVALID_JSON, code::INVALID_GRAMMAR] {
            assert_eq!(LoraxError(Fault::invalid("", "x").with_code(code)).into_response().status(), 400);
        }
    }
}

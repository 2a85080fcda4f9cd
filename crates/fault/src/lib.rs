//! What a caller should do about a failure: one closed list of kinds, and their gRPC and HTTP codes.
//!
//! Every room has its own error type with rich causes; at a border it becomes a [`Fault`]. A caller decides on the
//! [`Kind`] and on the stable `code`, never on the message. The mapping to gRPC and HTTP lives here and nowhere else.
//!
//! A fault crosses gRPC as a `tonic::Status`: the kind decides the status code, and `code`, `param`, `reasons` and
//! `retry_after_ms` travel in the status details as JSON, so that the gateway can build the same HTTP error
//! wherever the fault was born.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What the caller should do. Closed: adding one is a change of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request itself is wrong; do not repeat it unchanged. HTTP 400.
    Invalid,
    /// No or wrong credentials. HTTP 401.
    Unauthenticated,
    /// The thing named does not exist, or not for this caller. HTTP 404.
    NotFound,
    /// Somebody else changed it first, or it exists already; read again. HTTP 409.
    Conflict,
    /// Well-formed but refused for its content. HTTP 422.
    Refused,
    /// Larger than a written limit. HTTP 413.
    TooLarge,
    /// A queue or budget is full; try again after `retry_after_ms`. HTTP 429.
    Overloaded,
    /// A part that is needed is away; try again. HTTP 503.
    Unavailable,
    /// It took longer than the deadline. HTTP 504.
    Timeout,
    /// Bytes are not what their name says. Never retried with the same bytes. HTTP 500.
    Corrupt,
    /// A bug or a broken machine. HTTP 500.
    Internal,
}

impl Kind {
    /// The word used on the wire and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }

    /// The kind with this word, if there is one.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [
            Self::Invalid,
            Self::Unauthenticated,
            Self::NotFound,
            Self::Conflict,
            Self::Refused,
            Self::TooLarge,
            Self::Overloaded,
            Self::Unavailable,
            Self::Timeout,
            Self::Corrupt,
            Self::Internal,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == word)
    }

    /// The HTTP status of this kind.
    #[must_use]
    pub fn http_status(self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            Self::Invalid => S::BAD_REQUEST,
            Self::Unauthenticated => S::UNAUTHORIZED,
            Self::NotFound => S::NOT_FOUND,
            Self::Conflict => S::CONFLICT,
            Self::Refused => S::UNPROCESSABLE_ENTITY,
            Self::TooLarge => S::PAYLOAD_TOO_LARGE,
            Self::Overloaded => S::TOO_MANY_REQUESTS,
            Self::Unavailable => S::SERVICE_UNAVAILABLE,
            Self::Timeout => S::GATEWAY_TIMEOUT,
            Self::Corrupt | Self::Internal => S::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC code of this kind.
    #[must_use]
    pub fn grpc_code(self) -> tonic::Code {
        use tonic::Code as C;
        match self {
            Self::Invalid => C::InvalidArgument,
            Self::Unauthenticated => C::Unauthenticated,
            Self::NotFound => C::NotFound,
            Self::Conflict => C::Aborted,
            Self::Refused => C::FailedPrecondition,
            Self::TooLarge => C::OutOfRange,
            Self::Overloaded => C::ResourceExhausted,
            Self::Unavailable => C::Unavailable,
            Self::Timeout => C::DeadlineExceeded,
            Self::Corrupt => C::DataLoss,
            Self::Internal => C::Internal,
        }
    }

    /// The kind behind a gRPC code that carried no details (a proxy's or the transport's own answer).
    #[must_use]
    pub fn from_grpc_code(code: tonic::Code) -> Self {
        use tonic::Code as C;
        match code {
            C::InvalidArgument => Self::Invalid,
            C::Unauthenticated | C::PermissionDenied => Self::Unauthenticated,
            C::NotFound => Self::NotFound,
            C::Aborted | C::AlreadyExists => Self::Conflict,
            C::FailedPrecondition => Self::Refused,
            C::OutOfRange => Self::TooLarge,
            C::ResourceExhausted => Self::Overloaded,
            C::Unavailable | C::Cancelled => Self::Unavailable,
            C::DeadlineExceeded => Self::Timeout,
            C::DataLoss => Self::Corrupt,
            C::Ok | C::Unknown | C::Unimplemented | C::Internal => Self::Internal,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as it crosses a border.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What the caller should do.
    pub kind: Kind,
    /// Stable machine word, e.g. `model_not_found`, `context_length_exceeded`. Defaults to the kind's word.
    pub code: String,
    /// The request field at fault, e.g. `messages`, if one is.
    pub param: Option<String>,
    /// For people: names the field, the value and the limit; lower case, no full stop.
    pub message: String,
    /// All reasons of a refusal, when there are several.
    pub reasons: Vec<String>,
    /// When to try again, for [`Kind::Overloaded`] and [`Kind::Unavailable`].
    pub retry_after_ms: Option<u64>,
}

/// What travels in the details of a `tonic::Status`.
#[derive(Serialize, Deserialize)]
struct Details {
    kind: Kind,
    code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    param: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// Bytes of a status message that survive HTTP/2 header limits together with the details (8 KiB in many stacks).
const MESSAGE_BYTES_MAX: usize = 1024;
/// Reasons are cut to this many bytes in all when they cross gRPC in a status.
const REASONS_BYTES_MAX: usize = 2048;

impl Fault {
    /// A fault of this kind whose code is the kind's own word.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: kind.as_str().to_owned(),
            param: None,
            message: message.into(),
            reasons: Vec::new(),
            retry_after_ms: None,
        }
    }

    /// The same with a stable machine word.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// The same with the request field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The same with every reason of the refusal.
    #[must_use]
    pub fn with_reasons(mut self, reasons: Vec<String>) -> Self {
        self.reasons = reasons;
        self
    }

    /// The same with a hint when to try again.
    #[must_use]
    pub fn with_retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Shorthand for [`Kind::Invalid`] on one request field.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message).with_param(param)
    }

    /// Shorthand for [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Shorthand for [`Kind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Shorthand for [`Kind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl From<Fault> for tonic::Status {
    fn from(fault: Fault) -> Self {
        let mut room = REASONS_BYTES_MAX;
        let mut reasons = Vec::new();
        for reason in &fault.reasons {
            if room == 0 {
                break;
            }
            let kept = cut(reason, room);
            room -= kept.len();
            reasons.push(kept.to_owned());
        }
        let details = Details {
            kind: fault.kind,
            code: cut(&fault.code, 128).to_owned(),
            param: fault.param.as_deref().map(|param| cut(param, 256).to_owned()),
            reasons,
            retry_after_ms: fault.retry_after_ms,
        };
        let json = serde_json::to_vec(&details).unwrap_or_default();
        tonic::Status::with_details(fault.kind.grpc_code(), cut(&fault.message, MESSAGE_BYTES_MAX), json.into())
    }
}

impl From<tonic::Status> for Fault {
    fn from(status: tonic::Status) -> Self {
        Self::from(&status)
    }
}

impl From<&tonic::Status> for Fault {
    fn from(status: &tonic::Status) -> Self {
        match serde_json::from_slice::<Details>(status.details()) {
            Ok(details) => Self {
                kind: details.kind,
                code: details.code,
                param: details.param,
                message: status.message().to_owned(),
                reasons: details.reasons,
                retry_after_ms: details.retry_after_ms,
            },
            Err(_) => Self::new(Kind::from_grpc_code(status.code()), status.message()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_crosses_grpc_whole() {
        let fault = Fault::invalid("messages", "prompt of 9000 tokens exceeds 8192")
            .with_code("context_length_exceeded")
            .with_reasons(vec!["a".into(), "b".into()])
            .with_retry_after_ms(20);
        let status = tonic::Status::from(fault.clone());
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(Fault::from(status), fault);
    }

    #[test]
    fn a_foreign_status_keeps_its_meaning() {
        let fault = Fault::from(tonic::Status::unavailable("no route"));
        assert_eq!((fault.kind, fault.message.as_str()), (Kind::Unavailable, "no route"));
    }

    #[test]
    fn long_messages_are_cut_on_a_character() {
        let status = tonic::Status::from(Fault::internal("ä".repeat(4000)));
        assert!(status.message().len() <= MESSAGE_BYTES_MAX);
    }

    #[test]
    fn every_word_names_its_kind() {
        for word in [
            "invalid",
            "unauthenticated",
            "not_found",
            "conflict",
            "refused",
            "too_large",
            "overloaded",
            "unavailable",
            "timeout",
            "corrupt",
            "internal",
        ] {
            assert_eq!(Kind::from_word(word).map(Kind::as_str), Some(word));
        }
        assert_eq!(Kind::from_word("other"), None);
    }
}

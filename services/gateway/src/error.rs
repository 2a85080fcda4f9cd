//! What goes wrong in the gateway itself, and what the caller should do about it. Faults of the registry and the
//! workers pass through as they are, but for those whose meaning changes at this border (see [`from_worker`]).

use weft_fault::{Fault, Kind};
use weft_types::Digest;

/// Why a gateway cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A setting has a value that cannot be used.
    #[error("setting {name}: {problem}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The metrics are registered already.
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no API key given; send it as `authorization: Bearer KEY`")]
    NoCredentials,
    #[error("incorrect API key")]
    WrongKey,
    #[error("the model `{0}` does not exist or you do not have access to it")]
    UnknownModel(String),
    #[error("the registry has not been reached yet")]
    DirectoryMissing,
    #[error("the registry has been away for {age_s} s, longer than directory_age_max_s = {max_s}")]
    DirectoryStale { age_s: u64, max_s: u64 },
    #[error("no worker is ready")]
    NoWorker,
    #[error("model is overloaded: {running} of {max} generations are running")]
    Overloaded { running: usize, max: usize },
    #[error("{what} in flight reach their limit of {max}")]
    Full { what: &'static str, max: usize },
    #[error("the worker answered with adapter {got} instead of {expected}; nothing of it was delivered")]
    WrongAdapter { expected: String, got: String },
    #[error("the worker answered with base {got} instead of {expected}")]
    WrongBase { expected: Digest, got: String },
    #[error("the worker ended its answer early")]
    CutShort,
    #[error("the answer took longer than request_timeout_s = {0}")]
    TooSlow(u64),
    #[error("body is larger than the limit of {max} bytes")]
    BodyTooLarge { max: u64 },
    #[error("the body did not arrive within {0} s")]
    BodyTooSlow(u64),
    #[error("the body broke off: {0}")]
    BodyBroken(String),
    #[error("`{field}`{} is not supported", value.as_ref().map(|value| format!(" {value:?}")).unwrap_or_default())]
    Unsupported { field: String, value: Option<String> },
}

/// Stable words of `code` that the HTTP layer gives a status of its own.
pub(crate) mod code {
    pub(crate) const MODEL_NOT_FOUND: &str = "model_not_found";
    pub(crate) const INVALID_API_KEY: &str = "invalid_api_key";
    pub(crate) const INVALID_JSON: &str = "invalid_json";
    pub(crate) const BODY_TIMEOUT: &str = "body_timeout";
    pub(crate) const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    pub(crate) const PRECONDITION_FAILED: &str = "precondition_failed";
    pub(crate) const CONTEXT_LENGTH_EXCEEDED: &str = "context_length_exceeded";
    pub(crate) const WORKER_LOST: &str = "worker_lost";
    pub(crate) const UNKNOWN_URL: &str = "unknown_url";
}

/// How long a client should wait after an answer "full".
const RETRY_FULL_MS: u64 = 500;
/// How long a client should wait while a part is away.
const RETRY_AWAY_MS: u64 = 1000;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let fault = |kind| Fault::new(kind, message.clone());
        match &error {
            Error::NoCredentials | Error::WrongKey => fault(Kind::Unauthenticated).with_code(code::INVALID_API_KEY),
            Error::UnknownModel(_) => fault(Kind::NotFound).with_code(code::MODEL_NOT_FOUND).with_param("model"),
            Error::DirectoryMissing | Error::DirectoryStale { .. } => {
                fault(Kind::Unavailable).with_code("directory_unavailable").with_retry_after_ms(RETRY_AWAY_MS)
            }
            Error::NoWorker => fault(Kind::Unavailable).with_code("no_worker").with_retry_after_ms(RETRY_AWAY_MS),
            Error::Overloaded { .. } | Error::Full { .. } => fault(Kind::Overloaded).with_retry_after_ms(RETRY_FULL_MS),
            Error::WrongAdapter { .. } => fault(Kind::Corrupt).with_code("adapter_mismatch"),
            Error::WrongBase { .. } => fault(Kind::Unavailable).with_code("base_mismatch"),
            Error::CutShort => fault(Kind::Unavailable).with_code(code::WORKER_LOST).with_retry_after_ms(RETRY_AWAY_MS),
            Error::TooSlow(_) => fault(Kind::Timeout),
            Error::BodyTooLarge { .. } => fault(Kind::TooLarge).with_code("body_too_large"),
            Error::BodyTooSlow(_) => fault(Kind::Timeout).with_code(code::BODY_TIMEOUT),
            Error::BodyBroken(_) => fault(Kind::Invalid).with_code("body_broken"),
            Error::Unsupported { field, .. } => {
                fault(Kind::Invalid).with_code("unsupported_parameter").with_param(field.clone())
            }
        }
    }
}

/// A worker's status as the tenant should see it: what the tenant asked wrongly passes; what only the mesh can mend
/// does not look like the tenant's fault.
pub(crate) fn from_worker(status: &tonic::Status) -> Fault {
    let mut fault = Fault::from(status);
    match fault.kind {
        // The directory lists the version, so its bytes missing below is not "unknown model".
        Kind::NotFound => {
            fault.kind = Kind::Unavailable;
            fault.code = "adapter_unavailable".into();
        }
        Kind::Unauthenticated | Kind::Conflict | Kind::Internal => {
            // Paths and the like are for the log, not for tenants.
            tracing::error!(code = fault.code, message = fault.message, "a worker failed");
            fault = Fault::internal("the worker failed; its log says why");
        }
        // Without our details it was the transport that spoke: the connection or the process is gone.
        Kind::Unavailable if status.details().is_empty() => fault.code = code::WORKER_LOST.into(),
        Kind::Refused if fault.code == "wrong_base" => fault.kind = Kind::Unavailable,
        _ => {}
    }
    if matches!(fault.kind, Kind::Unavailable | Kind::Overloaded) && fault.retry_after_ms.is_none() {
        fault.retry_after_ms = Some(RETRY_AWAY_MS);
    }
    fault
}

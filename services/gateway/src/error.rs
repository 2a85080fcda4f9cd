//! What goes wrong in the gateway itself, and what the caller should do about it. Faults of the registry and the
//! workers pass through as they are, but for those whose meaning changes at this border (see [`from_worker`]).

use weft_fault::{Fault, Kind};
use weft_limits::Refusal;
use weft_types::{Digest, LimitKind};

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
    #[error("this gateway has no admin key: set admin_key, admin_key_file or admin_keys")]
    NoAdminKeys,
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
    #[error("{}", limit_reached(tenant, refusal))]
    LimitReached { tenant: String, refusal: Box<Refusal> },
    #[error("too many requests from this address")]
    AddressTooFast { pause_ms: u64 },
    #[error("the worker answered with adapter {got} instead of {expected}; nothing of it was delivered")]
    WrongAdapter { expected: String, got: String },
    #[error("the worker answered with base {got} instead of {expected}")]
    WrongBase { expected: Digest, got: String },
    #[error("the worker ended its answer early")]
    CutShort,
    #[error("the worker does not answer")]
    Silent,
    #[error("the worker cannot go on with what another one began")]
    CannotContinue,
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
    /// Of the registry: an experiment splits the alias.
    pub(crate) const ALIAS_SPLIT: &str = "alias_split";
    pub(crate) const CONTEXT_LENGTH_EXCEEDED: &str = "context_length_exceeded";
    /// A worker's word for a `response_format` that it cannot follow.
    pub(crate) const INVALID_GRAMMAR: &str = "invalid_grammar";
    pub(crate) const WORKER_LOST: &str = "worker_lost";
    /// A worker used other bytes than were resolved.
    pub(crate) const ADAPTER_MISMATCH: &str = "adapter_mismatch";
    /// A worker's word for its own shutdown: what it has not finished can go on elsewhere.
    pub(crate) const DRAINING: &str = "draining";
    pub(crate) const WRONG_BASE: &str = "wrong_base";
    /// It is being merged or imported for a request.
    pub(crate) const ADAPTER_IN_THE_MAKING: &str = "adapter_in_the_making";
    pub(crate) const ADAPTER_UNAVAILABLE: &str = "adapter_unavailable";
    pub(crate) const ADAPTER_TOO_LARGE: &str = "adapter_too_large";
    pub(crate) const ADAPTER_WRONG_BASE: &str = "adapter_wrong_base";
    pub(crate) const UNKNOWN_URL: &str = "unknown_url";
    pub(crate) const RATE_LIMIT_EXCEEDED: &str = "rate_limit_exceeded";
    /// The tokens of the day are used up: OpenAI's word.
    pub(crate) const INSUFFICIENT_QUOTA: &str = "insufficient_quota";
    /// Larger than a limit will ever allow.
    pub(crate) const REQUEST_EXCEEDS_LIMIT: &str = "request_exceeds_limit";
}

/// How long a client should wait after an answer "full".
const RETRY_FULL_MS: u64 = 500;
/// How long a client should wait for one of a tenant's slots: nobody knows when an answer ends.
const RETRY_SLOT_MS: u64 = 1000;
/// How long a client should wait while a part is away.
const RETRY_AWAY_MS: u64 = 1000;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let fault = |kind| Fault::new(kind, message.clone());
        match &error {
            Error::NoCredentials | Error::WrongKey | Error::NoAdminKeys => {
                fault(Kind::Unauthenticated).with_code(code::INVALID_API_KEY)
            }
            Error::UnknownModel(_) => fault(Kind::NotFound).with_code(code::MODEL_NOT_FOUND).with_param("model"),
            Error::DirectoryMissing | Error::DirectoryStale { .. } => {
                fault(Kind::Unavailable).with_code("directory_unavailable").with_retry_after_ms(RETRY_AWAY_MS)
            }
            Error::NoWorker => fault(Kind::Unavailable).with_code("no_worker").with_retry_after_ms(RETRY_AWAY_MS),
            Error::Overloaded { .. } | Error::Full { .. } => fault(Kind::Overloaded).with_retry_after_ms(RETRY_FULL_MS),
            Error::LimitReached { refusal, .. } => match refusal.retry_after {
                None => fault(Kind::Overloaded).with_code(code::REQUEST_EXCEEDS_LIMIT),
                Some(wait) => {
                    let is_quota = refusal.kind == LimitKind::TokensPerDay;
                    let code = if is_quota { code::INSUFFICIENT_QUOTA } else { code::RATE_LIMIT_EXCEEDED };
                    let ms = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
                    let ms = if ms == 0 { RETRY_SLOT_MS } else { ms };
                    fault(Kind::Overloaded).with_code(code).with_retry_after_ms(ms)
                }
            },
            Error::AddressTooFast { pause_ms } => {
                fault(Kind::Overloaded).with_code(code::RATE_LIMIT_EXCEEDED).with_retry_after_ms(*pause_ms)
            }
            Error::WrongAdapter { .. } => fault(Kind::Corrupt).with_code(code::ADAPTER_MISMATCH),
            Error::WrongBase { .. } => fault(Kind::Unavailable).with_code("base_mismatch"),
            Error::CannotContinue => fault(Kind::Refused),
            Error::CutShort | Error::Silent => {
                fault(Kind::Unavailable).with_code(code::WORKER_LOST).with_retry_after_ms(RETRY_AWAY_MS)
            }
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

fn limit_reached(tenant: &str, refusal: &Refusal) -> String {
    let Refusal { kind, limit, needs, .. } = refusal;
    let whose = if refusal.of_key { "this key".to_owned() } else { format!("tenant {tenant}") };
    match refusal.retry_after {
        None => format!("this request needs {needs} of {kind}, of which {whose} has {limit}"),
        Some(_) => format!("{kind} of {whose} reaches its limit of {limit}; this request needs {needs} more"),
    }
}

/// A worker's status as the tenant should see it: what the tenant asked wrongly passes; what only the mesh can mend
/// does not look like the tenant's fault, and is told in words of ours, because the worker's may name its files, its
/// settings and its neighbours. Those go to the log.
pub(crate) fn from_worker(status: &tonic::Status) -> Fault {
    if is_of_the_transport(status) {
        tracing::warn!(code = ?status.code(), message = status.message(), "the connection to a worker broke");
        return Fault::unavailable("the worker went away")
            .with_code(code::WORKER_LOST)
            .with_retry_after_ms(RETRY_AWAY_MS);
    }
    let fault = Fault::from(status);
    if matches!(fault.kind, Kind::Invalid) || (fault.kind == Kind::TooLarge && fault.param.is_some()) {
        return fault;
    }
    if fault.kind == Kind::Overloaded {
        // As many as a tenant likes to send; counted at the worker.
        tracing::debug!(code = fault.code, message = fault.message, "a worker is full");
    } else {
        tracing::warn!(kind = %fault.kind, code = fault.code, message = fault.message, "a worker failed a request");
    }
    let told = |kind, code: &str, message: &str| Fault {
        retry_after_ms: fault.retry_after_ms,
        ..Fault::new(kind, message).with_code(code)
    };
    let code = fault.code.as_str();
    let mut told = match fault.kind {
        // Whatever else is tried, this adapter does not fit there: another worker may be larger.
        Kind::TooLarge | Kind::Refused if code == code::ADAPTER_TOO_LARGE || fault.kind == Kind::TooLarge => told(
            Kind::Unavailable,
            code::ADAPTER_TOO_LARGE,
            "the adapter is larger than the memory set aside for adapters",
        ),
        Kind::Refused if code == code::WRONG_BASE => {
            told(Kind::Unavailable, code::WRONG_BASE, "the worker serves another base model")
        }
        Kind::Refused if code == code::ADAPTER_WRONG_BASE => {
            told(Kind::Refused, code::ADAPTER_WRONG_BASE, "the adapter was published for another base model")
        }
        // The directory lists the version, so its bytes missing below is not "unknown model".
        Kind::NotFound => told(Kind::Unavailable, code::ADAPTER_UNAVAILABLE, ADAPTER_AWAY),
        Kind::Unavailable if code == code::ADAPTER_UNAVAILABLE => told(Kind::Unavailable, code, ADAPTER_AWAY),
        Kind::Unavailable => told(Kind::Unavailable, code, "the worker cannot answer now"),
        Kind::Overloaded => told(Kind::Overloaded, code, "model is overloaded"),
        Kind::Timeout => told(Kind::Timeout, code, "the worker did not answer in time"),
        Kind::Corrupt => told(Kind::Corrupt, code, "the adapter's bytes are not those that were published"),
        Kind::Refused => told(Kind::Refused, code, "the worker refuses the request"),
        Kind::Unauthenticated | Kind::Conflict | Kind::Internal | Kind::Invalid | Kind::TooLarge => {
            Fault::internal("the worker failed; its log says why")
        }
    };
    if matches!(told.kind, Kind::Unavailable | Kind::Overloaded) && told.retry_after_ms.is_none() {
        told.retry_after_ms = Some(RETRY_AWAY_MS);
    }
    told
}

/// Our services put details into every status. Without them it was the transport that spoke: the connection or the process
/// is gone. A process that is killed looks like any of these, depending on how far the stream was.
pub(crate) fn is_of_the_transport(status: &tonic::Status) -> bool {
    use tonic::Code;
    status.details().is_empty()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

const ADAPTER_AWAY: &str = "the adapter's bytes cannot be had now";

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fault: Fault) -> Fault {
        from_worker(&fault.into())
    }

    #[test]
    fn nothing_of_a_workers_inside_reaches_tenants_whatever_the_kind() {
        let inside = "no space left in /var/lib/weft/cache for s3://bucket at 10.0.0.7:9000";
        for kind in [
            Kind::Unauthenticated,
            Kind::NotFound,
            Kind::Conflict,
            Kind::Refused,
            Kind::TooLarge,
            Kind::Overloaded,
            Kind::Unavailable,
            Kind::Timeout,
            Kind::Corrupt,
            Kind::Internal,
        ] {
            let told = told(Fault::new(kind, inside).with_reasons(vec![inside.into()]));
            let all = format!("{} {} {:?} {:?}", told.message, told.code, told.param, told.reasons);
            for part in ["/var", "s3:", "10.0.0.7", "bucket"] {
                assert!(!all.contains(part), "{kind}: {all}");
            }
        }
        // The transport's own words, which name addresses.
        for status in [
            tonic::Status::unavailable("tcp connect error: 10.0.0.7:7003"),
            tonic::Status::unknown("h2 protocol error: error reading a body from 10.0.0.7:7003"),
            tonic::Status::internal("h2 protocol error: 10.0.0.7:7003"),
            tonic::Status::cancelled("10.0.0.7:7003"),
        ] {
            let lost = from_worker(&status);
            assert_eq!((lost.code.as_str(), lost.kind), (code::WORKER_LOST, Kind::Unavailable), "{status}");
            assert!(!lost.message.contains("10.0") && lost.retry_after_ms.is_some());
        }
    }

    #[test]
    fn what_the_tenant_asked_wrongly_passes_word_for_word() {
        let asked = Fault::invalid("max_tokens", "max_tokens is 0, allowed is 1 to 100");
        assert_eq!(told(asked.clone()), asked);
        let long =
            Fault::new(Kind::TooLarge, "prompt of 9 bytes exceeds prompt_bytes_max of 8 bytes").with_param("prompt");
        assert_eq!(told(long.clone()), long);
    }

    #[test]
    fn an_adapter_that_fits_nowhere_is_the_meshs_fault_not_the_tenants() {
        for fault in [
            Fault::new(Kind::Refused, "adapter needs 9 bytes").with_code(code::ADAPTER_TOO_LARGE),
            Fault::new(Kind::TooLarge, "blob has 9 bytes, more than the disk budget"),
        ] {
            let told = told(fault);
            assert_eq!((told.kind, told.code.as_str()), (Kind::Unavailable, code::ADAPTER_TOO_LARGE));
            assert!(told.retry_after_ms.is_some());
        }
    }
}

//! From the SDK's errors to ours, in one place.

use crate::Error;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error as StdError;

/// What a failed request means, before anybody decides what to do about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// 404: no such key. A missing bucket is `Error::Refused` instead.
    NotFound,
    /// 412: the condition does not hold.
    ConditionFailed,
    /// 409: another conditional write of the key is under way; nothing was written.
    Busy(Error),
    /// All else.
    Other(Error),
}

impl Failure {
    /// For a caller to whom none of the special answers can happen.
    pub(super) fn into_error(self, operation: &'static str, key: &str) -> Error {
        match self {
            Self::Busy(error) | Self::Other(error) => error,
            Self::NotFound | Self::ConditionFailed => Error::Refused {
                operation,
                key: key.to_owned(),
                code: "UnexpectedStatus".to_owned(),
                message: "the endpoint answered 404 or 412 where that has no meaning".to_owned(),
            },
        }
    }
}

/// Reads an error of the SDK, which has retried what it could.
pub(super) fn classify<E>(operation: &'static str, key: &str, error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let key = key.to_owned();
    let status = error.raw_response().map(|response| response.status().as_u16());
    // A HEAD has no body, hence no code.
    let code = error.code().map(str::to_owned);
    let message = error.message().map(str::to_owned);
    match (&error, status, code.as_deref()) {
        (SdkError::TimeoutError(_), _, _) => Failure::Other(Error::Timeout { operation, key, source: Box::new(error) }),
        (_, Some(404), Some("NoSuchBucket")) => Failure::Other(refused(operation, key, code, message, 404)),
        (_, Some(404), _) => Failure::NotFound,
        (_, Some(412), _) => Failure::ConditionFailed,
        (_, Some(409), _) => Failure::Busy(unavailable(operation, key, code, message, error)),
        (_, Some(status @ 400..=499), _) if status != 408 && status != 429 => {
            Failure::Other(refused(operation, key, code, message, status))
        }
        _ => Failure::Other(unavailable(operation, key, code, message, error)),
    }
}

fn refused(operation: &'static str, key: String, code: Option<String>, message: Option<String>, status: u16) -> Error {
    let code = code.unwrap_or_else(|| format!("HTTP {status}"));
    Error::Refused { operation, key, code, message: message.unwrap_or_default() }
}

fn unavailable<E>(
    operation: &'static str,
    key: String,
    code: Option<String>,
    message: Option<String>,
    error: SdkError<E, HttpResponse>,
) -> Error
where
    E: StdError + Send + Sync + 'static,
{
    let message = match (code, message) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => innermost(&error),
    };
    Error::Unavailable { operation, key, message, source: Box::new(error) }
}

/// The SDK's own messages are of the kind "dispatch failure"; the cause at the bottom says what happened.
fn innermost(error: &dyn StdError) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

//! What can go wrong on the way to a package.

use std::fmt;
use weft_fault::{Fault, Kind};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failure to bring a package.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that cannot work.
    #[error("settings of adapter sources: {}", problems.join("; "))]
    Settings {
        /// Every problem, each naming its field.
        problems: Vec<String>,
    },
    /// The text names no source.
    #[error("source {text:?}: {problem}")]
    Source {
        /// The text, cut to 128 bytes.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The operator does not allow this source.
    #[error("source is not allowed: {what} is not in source_{setting}")]
    NotAllowed {
        /// The owner, bucket or path.
        what: String,
        /// The field of [`crate::Access`] that would allow it; the registry's setting begins with `source_`.
        setting: &'static str,
    },
    /// The repository, revision, object, folder or file does not exist, or not for us.
    #[error("{what} does not exist")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// A package without one of its two files.
    #[error("{place} has no {file}")]
    Missing {
        /// The source, or "the archive".
        place: String,
        /// The file's name.
        file: &'static str,
    },
    /// A package one of whose two files has no bytes.
    #[error("{place} has an empty {file}")]
    Empty {
        /// The source, or "the archive".
        place: String,
        /// The file's name.
        file: &'static str,
    },
    /// The weights are there as a pickle only, which can run code and is never read.
    #[error(
        "{place} has adapter_model.bin but no adapter_model.safetensors: pickles are not read, save the adapter as safetensors"
    )]
    PickleOnly {
        /// The source, or "the archive".
        place: String,
    },
    /// More bytes than allowed.
    #[error("{part} has more than {bytes_max} bytes, the limit of {setting}")]
    TooLarge {
        /// The file's name, or "the archive".
        part: &'static str,
        /// The limit in bytes.
        bytes_max: u64,
        /// What sets the limit.
        setting: &'static str,
    },
    /// 401: the hub wants a token or has another. It says the same of a repository that does not exist.
    #[error("the hub refuses {what} without a valid token, or it does not exist; the setting is hub_token_file")]
    Unauthenticated {
        /// What was asked for.
        what: String,
    },
    /// 403: the hub knows us and does not let us, e.g. because the repository's terms were not accepted.
    #[error("the hub does not let us read {what}: {message}")]
    Forbidden {
        /// What was asked for.
        what: String,
        /// What the hub said, cut to 256 bytes.
        message: String,
    },
    /// 429, also after retries.
    #[error("the hub has too many requests from us; asked for {what}")]
    RateLimited {
        /// What was asked for.
        what: String,
        /// Milliseconds that the hub wants us to wait, if it said so.
        retry_after_ms: Option<u64>,
    },
    /// A redirect that is not followed.
    #[error("redirect to {to} is not followed: {problem}")]
    Redirect {
        /// Scheme, host and port of where it leads, cut to 256 bytes; of a host without a name its scheme alone.
        to: String,
        /// Why not.
        problem: String,
    },
    /// A host whose addresses are inside a network and that the operator did not name. The addresses are logged: whoever asks for an
    /// import need not know the network.
    #[error("{host} is not asked: its address is {class}")]
    Address {
        /// The host, if it has a name.
        host: String,
        /// Why the address is refused, e.g. `private`.
        class: &'static str,
    },
    /// An answer that the protocol does not allow.
    #[error("{what}: the answer cannot be used: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers, or the answer broke off, also after retries.
    #[error("{what} is unavailable: {problem}")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// What happened.
        problem: String,
        /// Its cause, if there is one.
        #[source]
        source: Option<Cause>,
    },
    /// It took too long.
    #[error("{what} took longer than {setting} of {ms} ms")]
    Timeout {
        /// What was asked for.
        what: String,
        /// The field of [`crate::Access`].
        setting: &'static str,
        /// Its value.
        ms: u64,
    },
    /// The content changed while it was read.
    #[error("{what} was changed while it was read")]
    Changed {
        /// What was read.
        what: String,
    },
    /// The content is not what its digest says.
    #[error("{what} has the SHA-256 {received}, the hub says {expected}")]
    Digest {
        /// What was read.
        what: String,
        /// In hexadecimal, from the hub.
        expected: String,
        /// In hexadecimal, of the bytes that came.
        received: String,
    },
    /// The path leads to something that is not read: a link, a device, a pipe, a folder in place of a file.
    #[error("{path} is {is}, which is not read")]
    NotRegular {
        /// The path.
        path: String,
        /// What it is.
        is: &'static str,
    },
    /// The archive is damaged or holds what a package does not.
    #[error("archive: {0}")]
    Archive(String),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] weft_object_store::Error),
    /// A file cannot be read.
    #[error("cannot read {what}")]
    Io {
        /// The path, or "the archive".
        what: String,
        /// Its cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn source(text: &str, problem: impl Into<String>) -> Self {
        Self::Source { text: cut(text, 128), problem: problem.into() }
    }

    pub(crate) fn io(what: impl fmt::Display, source: std::io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    pub(crate) fn unavailable(what: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self::Unavailable { what: what.to_string(), problem: problem.into(), source: None }
    }

    pub(crate) fn answer(what: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self::Answer { what: what.to_string(), problem: problem.into() }
    }

    /// What a caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Settings { .. } | Self::Source { .. } | Self::Archive(_) => Kind::Invalid,
            Self::NotFound { .. } => Kind::NotFound,
            // The caller's own credentials are fine, so these two are not `unauthenticated`.
            Self::Unauthenticated { .. } | Self::Forbidden { .. } => Kind::Refused,
            Self::NotAllowed { .. }
            | Self::Missing { .. }
            | Self::Empty { .. }
            | Self::PickleOnly { .. }
            | Self::Redirect { .. }
            | Self::Address { .. }
            | Self::NotRegular { .. } => Kind::Refused,
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::RateLimited { .. } => Kind::Overloaded,
            Self::Unavailable { .. } | Self::Changed { .. } => Kind::Unavailable,
            Self::Timeout { .. } => Kind::Timeout,
            Self::Digest { .. } => Kind::Corrupt,
            Self::Store(error) => error.kind(),
            Self::Answer { .. } | Self::Io { .. } => Kind::Internal,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = match &error {
            Error::Io { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        let fault = Fault::new(error.kind(), message);
        match error {
            Error::Settings { problems } => fault.with_reasons(problems),
            Error::RateLimited { retry_after_ms: Some(ms), .. } => fault.with_retry_after_ms(ms),
            _ => fault,
        }
    }
}

/// The text's beginning, for messages.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

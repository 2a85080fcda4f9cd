//! What can go wrong in the registry.

use weft_fault::{Fault, Kind};
use weft_types::NameError;

/// A failure of the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that cannot work.
    #[error("{}", problems.join("; "))]
    Settings {
        /// One line each.
        problems: Vec<String>,
    },
    /// The metrics cannot be registered.
    #[error("metrics")]
    Metrics(#[source] prometheus::Error),
    /// The server broke.
    #[error("transport")]
    Transport(#[from] tonic::transport::Error),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] weft_object_store::Error),
    /// A source of packages failed, or is not allowed.
    #[error(transparent)]
    Source(#[from] weft_adapter_sources::Error),
    /// The usage ledger failed.
    #[error(transparent)]
    Usage(#[from] weft_usage::Error),
    /// A name breaks its rule.
    #[error("{source}")]
    Name {
        /// The request field.
        param: &'static str,
        /// Which rule.
        source: NameError,
    },
    /// A request field is wrong.
    #[error("{message}")]
    Invalid {
        /// The request field.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The thing named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// Somebody else changed it first.
    #[error("{0}")]
    Conflict(String),
    /// An experiment splits the alias.
    #[error("alias {alias} of {adapter} is split by experiment {experiment}: {why}")]
    Split {
        /// The alias.
        alias: String,
        /// Its adapter.
        adapter: String,
        /// The experiment.
        experiment: String,
        /// What can be done.
        why: &'static str,
    },
    /// A part of an upload is over its limit.
    #[error("{part} has more than {bytes_max} bytes, the limit of {setting}")]
    TooLarge {
        /// `adapter_config.json` or `adapter_model.safetensors`.
        part: &'static str,
        /// The limit.
        bytes_max: u64,
        /// What sets it.
        setting: &'static str,
    },
    /// A written limit of the registry's content is reached.
    #[error("there are {max} {what} already, the limit")]
    Full {
        /// What there are too many of.
        what: String,
        /// The limit.
        max: usize,
    },
    /// As many calls of this kind run as are allowed.
    #[error("{max} {what} are running, the limit of {setting}")]
    Busy {
        /// What runs.
        what: &'static str,
        /// The limit.
        max: usize,
        /// What sets it.
        setting: &'static str,
    },
    /// No worker has said what it serves, so that there is nothing to check a package against.
    #[error("no worker has announced its base model yet: packages cannot be checked")]
    NoBase,
    /// The upload ended with an error of the client or its connection.
    #[error("the upload broke off: {0}")]
    UploadBroke(String),
    /// The upload took too long.
    #[error("the upload brought nothing for {0} ms")]
    UploadIdle(u64),
    /// The upload took too long in all.
    #[error("the upload took more than {0} ms")]
    UploadSlow(u64),
    /// The folder for uploads cannot be used or is full.
    #[error("the spool folder cannot be used: {0}")]
    Spool(#[source] std::io::Error),
    /// An object is not what its key says.
    #[error("object {key} is damaged: {problem}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody deletes the blob of a version that was just written, and does not come to an end.
    #[error("blob {0} is being deleted: publish again")]
    BlobInMotion(weft_types::Digest),
    /// A task of ours panicked.
    #[error("a task ended without an answer: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { param, message: message.into() }
    }

    /// Whether trying again can help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Store(error) => error.into(),
            Error::Source(error) => error.into(),
            Error::Usage(error) => error.into(),
            Error::Settings { .. } => Fault::new(Kind::Invalid, message),
            Error::Name { param, .. } | Error::Invalid { param, .. } => Fault::invalid(param, message),
            Error::NotFound(_) => Fault::not_found(message),
            Error::Conflict(_) => Fault::new(Kind::Conflict, message),
            Error::Split { .. } => Fault::new(Kind::Conflict, message).with_code("alias_split"),
            Error::TooLarge { .. } => Fault::new(Kind::TooLarge, message).with_code("package_too_large"),
            Error::Full { .. } => Fault::new(Kind::Refused, message).with_code("limit_reached"),
            Error::Busy { .. } => Fault::new(Kind::Overloaded, message).with_retry_after_ms(1_000),
            Error::NoBase => Fault::unavailable(message).with_code("base_unknown").with_retry_after_ms(1_000),
            Error::UploadBroke(_) => Fault::new(Kind::Invalid, message).with_code("upload_incomplete"),
            Error::UploadIdle(_) | Error::UploadSlow(_) => Fault::new(Kind::Timeout, message),
            Error::Spool(_) => Fault::unavailable(message),
            Error::BlobInMotion(_) => Fault::unavailable(message).with_retry_after_ms(10_000),
            Error::Damaged { .. } => Fault::new(Kind::Corrupt, message),
            Error::Metrics(source) => Fault::internal(format!("{message}: {source}")),
            Error::Transport(source) => Fault::internal(format!("{message}: {source}")),
            Error::Task(_) => Fault::internal(message),
        }
    }
}

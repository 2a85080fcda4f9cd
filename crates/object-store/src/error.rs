//! What can go wrong with objects.

use std::path::PathBuf;
use weft_fault::{Fault, Kind};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failure of the object store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that cannot work together or cannot be read.
    #[error("object store setting {field}: {problem}")]
    Settings {
        /// The field of [`crate::S3Settings`].
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The endpoint is away, full or overloaded, also after retries.
    #[error("object store is unavailable: {operation} {key:?}: {message}")]
    Unavailable {
        /// `get`, `put`, ...
        operation: &'static str,
        /// The key or prefix.
        key: String,
        /// What the endpoint or the connection said.
        message: String,
        /// Its cause.
        #[source]
        source: Cause,
    },
    /// No answer in time, also after retries. A write may have happened.
    #[error("object store did not answer in time: {operation} {key:?}")]
    Timeout {
        /// `get`, `put`, ...
        operation: &'static str,
        /// The key or prefix.
        key: String,
        /// Its cause.
        #[source]
        source: Cause,
    },
    /// The endpoint refuses our credentials or does not know the bucket: a human must act.
    #[error("object store refuses {operation} {key:?}: {code}: {message}")]
    Refused {
        /// `get`, `put`, ...
        operation: &'static str,
        /// The key or prefix.
        key: String,
        /// S3's error code, e.g. `AccessDenied`.
        code: String,
        /// What the endpoint said.
        message: String,
    },
    /// The content is shorter than its announced length.
    #[error("object {key:?} ended after {received} of {expected} bytes")]
    Truncated {
        /// The key.
        key: String,
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The object is not in the state any more of which a part was asked for.
    #[error("object {key:?} was changed meanwhile")]
    Changed {
        /// The key.
        key: String,
    },
    /// The endpoint breaks a promise of S3 that we rely on.
    #[error("object store endpoint cannot be used: {0}")]
    NotConforming(String),
    /// Another process serves this folder.
    #[error("folder {path} is in use by process {pid}", path = path.display())]
    FolderTaken {
        /// The folder.
        path: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// A file in the folder is not what we write.
    #[error("file {path} is damaged: {problem}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder or the port of the embedded server cannot be used.
    #[error("cannot use {what}")]
    Io {
        /// The path or address.
        what: String,
        /// Its cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl std::fmt::Display, source: std::io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    /// What a caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Settings { .. } => Kind::Invalid,
            Self::Unavailable { .. } | Self::FolderTaken { .. } | Self::Truncated { .. } | Self::Changed { .. } => {
                Kind::Unavailable
            }
            Self::Timeout { .. } => Kind::Timeout,
            Self::Refused { .. } | Self::NotConforming(_) => Kind::Internal,
            Self::Damaged { .. } => Kind::Corrupt,
            Self::Io { source, .. } if is_full(source) => Kind::Unavailable,
            Self::Io { .. } => Kind::Internal,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = match &error {
            Error::Io { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        Fault::new(error.kind(), message)
    }
}

/// Whether the disk, or this process' share of it, is full.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded | K::FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_worth_another_try() {
        // ENOSPC, EDQUOT, EFBIG.
        for code in [28, 122, 27] {
            let error = Error::io("/data", std::io::Error::from_raw_os_error(code));
            assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        }
        assert_eq!(Error::io("/data", std::io::Error::from_raw_os_error(13)).kind(), Kind::Internal);
    }
}

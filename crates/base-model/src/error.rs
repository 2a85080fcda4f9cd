//! What can go wrong with a base model, and what a caller should do about it.

use std::io;
use std::path::{Path, PathBuf};
use weft_fault::{Fault, Kind};

/// A base model that cannot be used, or a request that its tokenizer or template cannot take.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing at the path given as the model.
    #[error("no model at {path}", path = .0.display())]
    NotFound(PathBuf),
    /// A file of the model could not be read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what its format says: cut short, or with fields that contradict each other.
    #[error("{path} is broken: {problem}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong, with field, value and limit.
        problem: String,
    },
    /// The file is well-formed but asks for something this crate does not do.
    #[error("{path} is not supported: {problem}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field and its value.
        problem: String,
    },
    /// A tensor is missing, or its shape or type does not fit the config.
    #[error("{path}: tensor {tensor} {problem}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name as the file has it.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No tensor of this name belongs to the model.
    #[error("the model has no tensor {0}")]
    UnknownTensor(String),
    /// The tokenizer refused the text.
    #[error("cannot tokenize: {0}")]
    Encode(String),
    /// The chat template refused these messages, or cannot be compiled.
    #[error("chat template: {0}")]
    Template(String),
    /// The demo base could not be fetched.
    #[error("cannot fetch the demo base: {step}: {problem}")]
    Fetch {
        /// What was being done.
        step: &'static str,
        /// Why it failed; for a command the end of what it said.
        problem: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound(path.to_owned()),
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    pub(crate) fn broken(path: &Path, problem: impl Into<String>) -> Self {
        Self::Broken { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn unsupported(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: tensor.into(), problem: problem.into() }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotFound(_) => Kind::NotFound,
            Error::Io { .. } | Error::Fetch { .. } => Kind::Unavailable,
            Error::Broken { .. } | Error::Tensor { .. } => Kind::Corrupt,
            Error::Unsupported { .. } => Kind::Refused,
            Error::UnknownTensor(_) => Kind::Internal,
            Error::Encode(_) | Error::Template(_) => Kind::Invalid,
        };
        let message = match &error {
            Error::Io { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        let fault = Self::new(kind, message);
        match error {
            Error::Template(_) => fault.with_param("messages"),
            _ => fault,
        }
    }
}

//! What can go wrong in office.

use weft_fault::{Fault, Kind};
use weft_placement::DocumentError;

/// A failure of the election or of a publication.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else is the authority now. Nothing that was tried has happened, or was overwritten since.
    #[error("term {term} is over: {reason}")]
    Deposed {
        /// The term that ended.
        term: u64,
        /// What was seen.
        reason: String,
    },
    /// The object store failed. A write may have happened; the office finds out at its next one.
    #[error("placement cannot be read or written")]
    Store(#[from] weft_object_store::Error),
    /// The plan cannot be written: it breaks a limit of the document. Or what is stored is no document.
    #[error("the placement is not a document")]
    Document(#[from] DocumentError),
    /// Terms have run out.
    #[error("term {0} is the last one")]
    LastTerm(u64),
}

impl Error {
    /// What a caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Deposed { .. } => Kind::Conflict,
            Self::Store(error) => error.kind(),
            Self::Document(_) => Kind::Corrupt,
            Self::LastTerm(_) => Kind::Internal,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            other => Fault::new(other.kind(), other.to_string()),
        }
    }
}

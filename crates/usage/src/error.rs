//! What can go wrong with usage.

use std::path::PathBuf;
use weft_fault::{Fault, Kind};

/// A failure to keep, carry or read records.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of its range.
    #[error("usage setting {field} is {value}, not within {limit}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        limit: &'static str,
    },
    /// A record that breaks a limit: a bug of whoever made it.
    #[error("record field {field} is {value}, not {limit}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it is, cut to 80 characters.
        value: String,
        /// What it may be.
        limit: &'static str,
    },
    /// Bytes that are no record that this program can read.
    #[error("record cannot be read: {problem}")]
    Unreadable {
        /// Why not.
        problem: String,
    },
    /// As many appends wait as may.
    #[error("usage log has {waiting_max} appends waiting, the most that may")]
    Full {
        /// The limit.
        waiting_max: usize,
    },
    /// The log has reached its share of the disk, because nothing was shipped for long.
    #[error("usage log has {bytes} bytes on disk and may have bytes_max = {bytes_max}")]
    NoRoom {
        /// What is there.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The disk failed earlier: what of the last batch is on it nobody knows, so nothing is appended any more.
    #[error("usage log takes no more records since {problem}")]
    Poisoned {
        /// The first failure.
        problem: String,
    },
    /// Another process has this directory.
    #[error("usage log directory {path} is in use by another process", path = path.display())]
    DirectoryTaken {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be used.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// `open`, `read`, ...
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Its cause.
        #[source]
        source: std::io::Error,
    },
    /// The object store fails.
    #[error("usage ledger cannot be used")]
    Store(#[from] weft_object_store::Error),
    /// Who keeps the ledger cannot be reached, or cannot keep anything now.
    #[error("usage cannot be told: {problem}")]
    Away {
        /// Why not.
        problem: String,
    },
    /// A key holds other bytes than the same segment would have: the disk or the store altered them.
    #[error("object {key:?} has other bytes than the segment that is to be written there")]
    OtherBytes {
        /// The key.
        key: String,
    },
    /// A line of an object is no record. The others were read.
    #[error("object {key:?} line {line} cannot be read: {problem}")]
    Line {
        /// The key.
        key: String,
        /// From 1.
        line: u64,
        /// Why not.
        problem: String,
    },
    /// Objects of this hour were compacted again and again while they were read.
    #[error("objects of hour {hour} were moved {tries} times while they were read")]
    Moved {
        /// `yyyy-mm-dd/hh`.
        hour: String,
        /// How often it was listed.
        tries: u32,
    },
    /// A range of time that cannot be read.
    #[error("range of {from_ms} ms to {to_ms} ms is not {limit}")]
    Range {
        /// Its first millisecond.
        from_ms: u64,
        /// The first millisecond behind it.
        to_ms: u64,
        /// What a range may be.
        limit: &'static str,
    },
    /// An hour to which batches may still come.
    #[error("hour {hour} can be compacted from {from_ms} ms on, not at {now_ms} ms")]
    TooEarly {
        /// `yyyy-mm-dd/hh`.
        hour: String,
        /// When it can be.
        from_ms: u64,
        /// When it was asked for.
        now_ms: u64,
    },
    /// A sum that the format of an export cannot hold.
    #[error("column {column} is {value}, not at most {limit}")]
    TooLarge {
        /// The column.
        column: &'static str,
        /// The sum.
        value: u128,
        /// What the format can hold.
        limit: u64,
    },
    /// An export cannot be written as CSV.
    #[error("csv cannot be written")]
    Csv(#[from] csv::Error),
    /// An export cannot be written as Parquet.
    #[error("parquet cannot be written")]
    Parquet(#[from] parquet::errors::ParquetError),
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }

    /// A file of this name is there.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists)
    }

    pub(crate) fn unreadable(problem: impl std::fmt::Display) -> Self {
        Self::Unreadable { problem: problem.to_string() }
    }

    /// What a caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Setting { .. } | Self::Field { .. } | Self::Range { .. } | Self::TooEarly { .. } => Kind::Invalid,
            Self::Full { .. } => Kind::Overloaded,
            Self::NoRoom { .. }
            | Self::Poisoned { .. }
            | Self::DirectoryTaken { .. }
            | Self::Away { .. }
            | Self::Moved { .. } => Kind::Unavailable,
            Self::Unreadable { .. } | Self::OtherBytes { .. } | Self::Line { .. } => Kind::Corrupt,
            Self::Store(source) => source.kind(),
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::Io { source, .. } if is_passing(source) => Kind::Unavailable,
            Self::Io { .. } | Self::Csv(_) | Self::Parquet(_) => Kind::Internal,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = match &error {
            Error::Io { source, .. } => format!("{error}: {source}"),
            Error::Store(source) => format!("{error}: {source}"),
            Error::Csv(source) => format!("{error}: {source}"),
            Error::Parquet(source) => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        Fault::new(error.kind(), message)
    }
}

/// No room on the disk, or too many open files of this process (EMFILE) or machine (ENFILE): others may give some back.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded | K::FileTooLarge)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_what_to_do() {
        assert_eq!(Error::Full { waiting_max: 1 }.kind(), Kind::Overloaded);
        assert_eq!(Error::Poisoned { problem: String::new() }.kind(), Kind::Unavailable);
        let full = std::io::Error::from_raw_os_error(28);
        let fault = Fault::from(Error::io("write", "/log", full));
        assert_eq!(fault.kind, Kind::Unavailable);
        assert!(fault.message.starts_with("cannot write /log: "), "{}", fault.message);
        let many_open = std::io::Error::from_raw_os_error(24);
        assert_eq!(Error::io("create", "/log", many_open).kind(), Kind::Unavailable);
    }
}

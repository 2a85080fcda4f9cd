//! What can go wrong in the cache daemon, and what a caller should do about it.

use crate::folder::TierKind;
use std::io;
use std::path::PathBuf;
use weft_fault::{Fault, Kind};
use weft_types::Digest;

/// Why bytes could not be brought near, or the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings do not fit together.
    #[error("{}", problems.join("; "))]
    Settings {
        /// One sentence each.
        problems: Vec<String>,
    },
    /// Another process owns the folder.
    #[error("folder {} is in use by another process", dir.display())]
    Owned {
        /// The folder.
        dir: PathBuf,
    },
    /// The memory tier must be in memory.
    #[error("memory_dir {} is not on a tmpfs", dir.display())]
    NotMemory {
        /// The folder.
        dir: PathBuf,
    },
    /// The memory tier must fit into its tmpfs.
    #[error("memory_bytes_max is {bytes_max}, but the tmpfs of memory_dir {} has {bytes} bytes", dir.display())]
    SmallMemory {
        /// The folder.
        dir: PathBuf,
        /// Size of the file system.
        bytes: u64,
        /// The budget.
        bytes_max: u64,
    },
    /// The operating system refused something on a file or folder.
    #[error("cannot {what} {}", path.display())]
    File {
        /// A verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon counts in the same registry.
    #[error("the metrics cannot be registered")]
    Metrics(#[source] prometheus::Error),
    /// The server could not go on.
    #[error("the transport failed")]
    Transport(#[source] tonic::transport::Error),
    /// There is no such blob.
    #[error("there is no blob {digest}")]
    NotFound {
        /// Asked for.
        digest: Digest,
    },
    /// The blob can never fit.
    #[error("blob {digest} has {bytes} bytes, more than the {tier} budget of {bytes_max} (setting {})", tier.budget_setting())]
    TooLarge {
        /// Asked for.
        digest: Digest,
        /// Its size.
        bytes: u64,
        /// Of which tier.
        tier: TierKind,
        /// The budget.
        bytes_max: u64,
    },
    /// Leased bytes leave no room.
    #[error("no room for {bytes} bytes on {tier}: {held} of {bytes_max} bytes are held by leases (setting {})", tier.budget_setting())]
    Full {
        /// Wanted.
        bytes: u64,
        /// Not evictable now.
        held: u64,
        /// Of which tier.
        tier: TierKind,
        /// The budget.
        bytes_max: u64,
    },
    /// The file system is full below the budget.
    #[error("no space left in {} for {bytes} bytes", dir.display())]
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// Wanted.
        bytes: u64,
        /// ENOSPC, EDQUOT or EFBIG.
        source: io::Error,
    },
    /// The file system takes no bytes: read-only, or its device fails.
    #[error("cannot write in {}", dir.display())]
    Unwritable {
        /// Where.
        dir: PathBuf,
        /// EROFS or EIO.
        source: io::Error,
    },
    /// The bytes are not what their name says.
    #[error("the bytes of {digest} {place} are wrong: {found}")]
    Corrupt {
        /// Asked for.
        digest: Digest,
        /// `in the object store`, `on disk`, ...
        place: String,
        /// What is there instead.
        found: String,
    },
    /// The object store failed.
    #[error("cannot fetch {digest}")]
    Store {
        /// Asked for.
        digest: Digest,
        /// As the store says it.
        source: weft_object_store::Error,
    },
    /// A neighbour daemon failed.
    #[error("neighbour {address} failed: {message}")]
    Neighbour {
        /// Where it is.
        address: String,
        /// What it said, or that it said nothing.
        message: String,
    },
    /// The object store sent less than it announced.
    #[error("the fetch of {digest} ended after {bytes} of {bytes_announced} bytes")]
    CutShort {
        /// Asked for.
        digest: Digest,
        /// Came.
        bytes: u64,
        /// Announced.
        bytes_announced: u64,
    },
    /// The object store sent nothing for too long.
    #[error("the fetch of {digest} brought nothing for {timeout_ms} ms (setting fetch_stall_timeout_ms)")]
    Stalled {
        /// Asked for.
        digest: Digest,
        /// The limit.
        timeout_ms: u64,
    },
    /// The fetch took too long.
    #[error("the fetch of {digest} was not done after {timeout_ms} ms (setting fetch_timeout_ms)")]
    Late {
        /// Asked for.
        digest: Digest,
        /// The limit.
        timeout_ms: u64,
    },
    /// A background thread of ours panicked.
    #[error("a background task failed")]
    Task(#[source] tokio::task::JoinError),
}

/// When leased bytes or a full disk are in the way, room comes with the end of some request.
const RETRY_AFTER_MS: u64 = 500;

impl Error {
    /// What a caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Settings { .. } | Self::NotMemory { .. } | Self::SmallMemory { .. } => Kind::Invalid,
            Self::Owned { .. } => Kind::Conflict,
            Self::NotFound { .. } => Kind::NotFound,
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::Full { .. } => Kind::Overloaded,
            Self::NoSpace { .. }
            | Self::Unwritable { .. }
            | Self::CutShort { .. }
            | Self::Neighbour { .. }
            | Self::Transport(_) => Kind::Unavailable,
            Self::Corrupt { .. } => Kind::Corrupt,
            Self::Stalled { .. } | Self::Late { .. } => Kind::Timeout,
            Self::Store { source, .. } => source.kind(),
            Self::File { .. } | Self::Task(_) | Self::Metrics(_) => Kind::Internal,
        }
    }

    /// Whether the object store may do better at the next try.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::CutShort { .. } | Self::Stalled { .. } => true,
            Self::Store { source: weft_object_store::Error::Changed { .. }, .. } => false,
            Self::Store { source, .. } => matches!(source.kind(), Kind::Unavailable | Kind::Overloaded | Kind::Timeout),
            _ => false,
        }
    }

    /// The file system is full or takes no bytes, or something else is wrong with it.
    pub(crate) fn writing(what: &'static str, path: PathBuf, bytes: u64, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let dir = || path.parent().map_or_else(|| path.clone(), PathBuf::from);
        if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            return Self::NoSpace { dir: dir(), bytes, source };
        }
        // A disk that fails has no kind of its own.
        if source.kind() == ReadOnlyFilesystem || source.raw_os_error() == Some(libc::EIO) {
            return Self::Unwritable { dir: dir(), source };
        }
        Self::File { what, path, source }
    }
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        let kind = error.kind();
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        let fault = Fault::new(kind, message);
        match kind {
            Kind::Overloaded | Kind::Unavailable | Kind::Timeout => fault.with_retry_after_ms(RETRY_AFTER_MS),
            _ => fault,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

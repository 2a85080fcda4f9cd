//! Whether files are still what they were when they were opened.
//!
//! Who rewrites a file in place while it is read gives us a part of each state. The kernel's times tell: a write changes both, and the time
//! of change cannot be set back. What is exchanged by a rename stays whole for us, but is told as well, for its number of names changes.

use super::blocking;
use crate::Error;
use bytes::Bytes;
use futures::future;
use futures::stream::{self, Stream, StreamExt};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// An open file and its state when it was opened.
pub(super) struct Seen {
    file: File,
    state: State,
    /// For messages.
    what: String,
}

impl Seen {
    /// Looks at the file now.
    pub(super) fn now(file: &File, what: String) -> Result<Self, Error> {
        let seen = file.try_clone().and_then(|file| State::of(&file).map(|state| (file, state)));
        let (file, state) = seen.map_err(|error| Error::io(&what, error))?;
        Ok(Self { file, state, what })
    }

    /// Its length when it was opened.
    pub(super) fn bytes(&self) -> u64 {
        self.state.bytes
    }

    /// Whether another opening of the same name found the same file in the same state.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.state == other.state
    }

    fn check(&self) -> Result<(), Error> {
        let now = State::of(&self.file).map_err(|error| Error::io(&self.what, error))?;
        if now == self.state { Ok(()) } else { Err(Error::Changed { what: self.what.clone() }) }
    }
}

/// The same pieces, and behind the last one an error if any of the files is not what it was.
pub(super) fn unless_changed(
    pieces: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
    seen: Vec<Seen>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let check = stream::once(blocking(move || seen.iter().try_for_each(Seen::check)));
    pieces.chain(check.filter_map(|checked| future::ready(checked.err().map(Err))))
}

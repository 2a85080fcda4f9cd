//! The local log of one process: what it answered with success is on the disk.
//!
//! ```text
//! <dir>/LOCK                                      held (flock) while a process has the log
//! <dir>/<writer>-<sequence>-<time>.open           the segment that is being appended to; at most one
//! <dir>/<writer>-<sequence>-<time>.closed         a segment that never changes again, until it was shipped
//! <dir>/<writer>-<sequence>-<time>.damaged        set aside for a human: shipped but for what could not be read, or refused
//! ```
//!
//! `writer` names one opening of the log (32 hex digits, version 7 UUID: never used again), `sequence` counts its segments from 0
//! (8 digits), `time` is the end of the segment's first record in Unix milliseconds (15 digits). The contents are told in `frame`.
//!
//! **An append** goes into a bounded queue. One thread takes whatever waits there, writes it with one write, calls fdatasync once,
//! and then answers all of it (group commit): there is one fsync at a time, and under load each covers many records. The name of
//! a new segment is synced (fsync of the directory) before anything in it is answered.
//!
//! **A segment** closes when its next record would make it longer than `segment_bytes_max`, when that record's hour is neither the
//! hour of the segment's time nor a neighbour of it, or when the shipper asks. So every record lies in the hour of its
//! segment or one hour beside it: readers of the ledger rely on this.
//!
//! **After a kill** the open segment ends, perhaps, within a record that was never answered: it is cut behind its last whole record
//! and closed. Bytes before whole records that are no record themselves are damage: counted, told in the log, and skipped;
//! the other records of the segment and all other segments are read.
//!
//! **After a failed write or fsync** nobody knows what is on the disk, and a second fsync would not tell: the kernel
//! reports a failure once and may have dropped the pages. The log takes no more records until it is opened anew. A new segment that
//! cannot be created (no room, too many open files) leaves nothing in doubt: its record is refused, and the next one tries again.

mod folder;
mod segment;
mod writer;

pub use segment::Segment;

use crate::{Error, Record, frame};
use folder::Folder;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};
use writer::{Command, Writer};

/// How large a log may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Appends that wait for the batch under way to end: 1 to 65,536. More are refused with [`Error::Full`]. A batch has at most
    /// as many. Each holds at most 4 KiB.
    pub waiting_max: usize,
    /// A segment is at most this long: 64 KiB to 64 MiB. It is held in memory whole when it is shipped.
    pub segment_bytes_max: u64,
    /// All files together are at most this long: at least 4 segments. Appends beyond it are refused with [`Error::NoRoom`];
    /// from four fifths of it on [`LogState::is_nearly_full`] says so.
    pub bytes_max: u64,
}

impl Default for LogSettings {
    /// 4,096 waiting, segments of 1 MiB, 1 GiB in all: about three million answers.
    fn default() -> Self {
        Self { waiting_max: 4096, segment_bytes_max: 1 << 20, bytes_max: 1 << 30 }
    }
}

impl LogSettings {
    /// Whether each is within its range.
    ///
    /// # Errors
    /// [`Error::Setting`] with the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let within = |field, value: u64, is_within, limit| {
            if is_within { Ok(()) } else { Err(Error::Setting { field, value, limit }) }
        };
        let waiting = self.waiting_max;
        within("waiting_max", waiting as u64, (1..=65_536).contains(&waiting), "1 to 65536")?;
        let segment = self.segment_bytes_max;
        within("segment_bytes_max", segment, (64 << 10..=64 << 20).contains(&segment), "64 KiB to 64 MiB")?;
        let total = self.bytes_max;
        within("bytes_max", total, total >= 4 * segment, "at least 4 times segment_bytes_max")
    }
}

/// How a log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Records that were answered with success since the log was opened.
    pub appended: u64,
    /// How often the disk was asked to make them durable.
    pub syncs: u64,
    /// Bytes on disk that were not shipped yet, those of the open segment among them.
    pub unshipped_bytes: u64,
    /// When the oldest segment that was not shipped begins, in Unix milliseconds: the end of its first record.
    pub oldest_unshipped_ms: Option<u64>,
    /// Bytes of all files, damaged ones among them.
    pub bytes: u64,
    /// `bytes` is beyond four fifths of the limit: nothing was shipped for long, and appends will be refused.
    pub is_nearly_full: bool,
    /// Bytes that a kill tore from the open segment and that were cut when the log was opened; never answered for.
    pub torn_bytes: u64,
    /// Bytes of segments that are no records, as far as segments were read: what the disk lost.
    pub damaged_bytes: u64,
    /// Why nothing is appended any more; none: it is.
    pub poisoned: Option<String>,
}

/// What the writer's thread and its callers share.
pub(crate) struct Shared {
    settings: LogSettings,
    poison: OnceLock<String>,
    segments: Mutex<folder::Segments>,
    appended: AtomicU64,
    syncs: AtomicU64,
    torn_bytes: AtomicU64,
    damaged_bytes: AtomicU64,
}

impl Shared {
    fn segments(&self) -> MutexGuard<'_, folder::Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poisoned(&self) -> Option<Error> {
        self.poison.get().map(|problem| Error::Poisoned { problem: problem.clone() })
    }
}

/// The log of one process. Dropping it waits for the batch under way and gives the directory back.
pub struct Log {
    folder: Arc<Folder>,
    shared: Arc<Shared>,
    /// None only while it is dropped.
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.folder.dir()).finish_non_exhaustive()
    }
}

impl Log {
    /// Takes the directory, creating it if needed, cuts what a kill tore, and starts the writer's thread. Blocks; reads the
    /// segment that was open, at most `segment_bytes_max`.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::DirectoryTaken`] if another process has it, or this one a second time; [`Error::Io`].
    pub fn open(dir: &Path, settings: LogSettings) -> Result<Self, Error> {
        settings.check()?;
        let folder = Folder::take(dir)?;
        let found = folder.recover()?;
        if found.torn_bytes > 0 {
            tracing::info!(bytes = found.torn_bytes, "cut what a kill tore from the usage log");
        }
        let shared = Arc::new(Shared {
            settings,
            poison: OnceLock::new(),
            segments: Mutex::new(found.segments),
            appended: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            torn_bytes: AtomicU64::new(found.torn_bytes),
            damaged_bytes: AtomicU64::new(0),
        });
        let folder = Arc::new(folder);
        let (commands, receiver) = mpsc::channel(shared.settings.waiting_max);
        let writer = Writer::new(Arc::clone(&folder), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("usage-log".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(|source| Error::io("start a thread for", dir, source))?;
        Ok(Self { folder, shared, commands: Some(commands), thread: Some(thread) })
    }

    /// Appends the record; success means that it is on the disk. Appending it again is harmless: it counts once. Cost: waits for the
    /// fsync under way and the next one.
    ///
    /// # Errors
    /// Kind `invalid`: [`Error::Field`]. Kind `overloaded`: [`Error::Full`]. Kind `unavailable`: [`Error::NoRoom`], and
    /// [`Error::Poisoned`] from the first failure of the disk on. [`Error::Io`]: no segment can be begun now. After [`Error::Poisoned`] the
    /// record may or may not be found later; after the others it is not in the log.
    ///
    /// # Cancel safety
    /// A call that is dropped may or may not have appended.
    pub async fn append(&self, record: &Record) -> Result<(), Error> {
        let payload = record.to_json()?;
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Append { payload, ended_ms: record.ended_ms(), answer };
        self.commands().try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Full { waiting_max: self.shared.settings.waiting_max },
            mpsc::error::TrySendError::Closed(_) => self.ended(),
        })?;
        answered.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// Closes the open segment, so that it can be shipped. Nothing happens if there is none.
    ///
    /// # Errors
    /// [`Error::Poisoned`].
    pub async fn close_segment(&self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        self.commands().send(Command::Close { answer }).await.map_err(|_| self.ended())?;
        answered.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// The closed segments that were not forgotten, oldest writer first, in the order in which they were written.
    #[must_use]
    pub fn unshipped(&self) -> Vec<Segment> {
        self.shared.segments().closed()
    }

    /// The records of a closed segment, as lines of JSON in the order in which they were appended. Blocks; reads the whole file, at
    /// most `segment_bytes_max`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self, segment: &Segment) -> Result<Vec<Vec<u8>>, Error> {
        let bytes = self.folder.read(segment)?;
        let contents = frame::read(&bytes);
        // A closed segment ends with a whole record: what is behind it was damaged too.
        let damaged_bytes = (contents.damaged_bytes + bytes.len() - contents.whole_bytes) as u64;
        if self.shared.segments().damaged(segment, damaged_bytes) {
            self.shared.damaged_bytes.fetch_add(damaged_bytes, Ordering::Relaxed);
            tracing::error!(segment = segment.name(), damaged_bytes, "a segment of the usage log is damaged");
        }
        Ok(contents.payloads.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// Removes a closed segment that was shipped; if it was found damaged, it is set aside. Blocks for a directory's fsync.
    ///
    /// # Errors
    /// [`Error::Io`]; forgetting what is gone succeeds.
    pub fn forget(&self, segment: &Segment) -> Result<(), Error> {
        if self.shared.segments().is_damaged(segment) {
            return self.set_aside(segment);
        }
        self.folder.remove(segment)?;
        self.shared.segments().forget(segment);
        Ok(())
    }

    /// Keeps a closed segment, under another ending, for a human to look at: it is not shipped any more, and counts for the log's
    /// size. Named `.closed` again, it is shipped by the next process. Blocks for a directory's fsync.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_aside(&self, segment: &Segment) -> Result<(), Error> {
        self.folder.set_aside(segment)?;
        self.shared.segments().set_aside(segment);
        Ok(())
    }

    /// How it is. Cost: a short lock.
    #[must_use]
    pub fn state(&self) -> LogState {
        let segments = self.shared.segments();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogState {
            appended: count(&self.shared.appended),
            syncs: count(&self.shared.syncs),
            unshipped_bytes: segments.unshipped_bytes(),
            oldest_unshipped_ms: segments.oldest_ms(),
            bytes: segments.bytes(),
            is_nearly_full: segments.bytes() > self.shared.settings.bytes_max / 5 * 4,
            torn_bytes: count(&self.shared.torn_bytes),
            damaged_bytes: count(&self.shared.damaged_bytes),
            poisoned: self.shared.poison.get().cloned(),
        }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.dir().to_owned()
    }

    fn commands(&self) -> &mpsc::Sender<Command> {
        self.commands.as_ref().expect("taken only while the log is dropped")
    }

    /// The thread ends early only by a panic.
    fn ended(&self) -> Error {
        let problem = "its thread has ended".to_owned();
        self.shared.poisoned().unwrap_or(Error::Poisoned { problem })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // An error means that it panicked: it has ended all the same, and the panic was printed.
            let _ = thread.join();
        }
    }
}

//! The directory of a log, owned by one process, and what is known of its segments. Blocking.

use super::segment::Segment;
use crate::{Error, frame};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const OPEN: &str = "open";
const CLOSED: &str = "closed";
const DAMAGED: &str = "damaged";

/// A directory that this process owns until it is dropped.
pub(super) struct Folder {
    dir: PathBuf,
    /// Open for its fsync.
    dir_file: File,
    /// The lock is released when the file is closed, however the process ends.
    _lock: File,
}

/// What a directory held when it was opened.
pub(super) struct Found {
    pub(super) segments: Segments,
    pub(super) torn_bytes: u64,
}

impl Folder {
    pub(super) fn take(dir: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| Error::io("create", dir, source))?;
        let path = dir.join("LOCK");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Error::io("open", &path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::DirectoryTaken { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
        }
        let dir_file = File::open(dir).map_err(|source| Error::io("open", dir, source))?;
        let folder = Self { dir: dir.to_owned(), dir_file, _lock: lock };
        folder.sync()?;
        // The directory's own name must last as well.
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let synced = File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(|source| Error::io("sync", parent, source))?;
        }
        Ok(folder)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, segment: &Segment, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", segment.name()))
    }

    /// Makes names durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.dir_file.sync_all().map_err(|source| Error::io("sync", &self.dir, source))
    }

    /// Lists what is there, and cuts and closes what was open.
    pub(super) fn recover(&self) -> Result<Found, Error> {
        let mut found = Found { segments: Segments::default(), torn_bytes: 0 };
        let entries = fs::read_dir(&self.dir).map_err(|source| Error::io("list", &self.dir, source))?;
        for entry in entries {
            let path = entry.map_err(|source| Error::io("list", &self.dir, source))?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(Segment::parse);
            let (Some(segment), Some(ending)) = (name, path.extension().and_then(|ending| ending.to_str())) else {
                continue;
            };
            let bytes = fs::metadata(&path).map_err(|source| Error::io("read", &path, source))?.len();
            match ending {
                CLOSED => found.segments.add(segment, bytes),
                DAMAGED => found.segments.set_aside_bytes += bytes,
                OPEN => {
                    let whole_bytes = self.cut(&segment)?;
                    found.torn_bytes += bytes - whole_bytes.unwrap_or(0);
                    if let Some(whole_bytes) = whole_bytes {
                        found.segments.add(segment, whole_bytes);
                    }
                }
                _ => {}
            }
        }
        self.sync()?;
        Ok(found)
    }

    /// Cuts an open segment behind its last whole record and closes it; returns its length. None: it has no record, and is gone.
    fn cut(&self, segment: &Segment) -> Result<Option<u64>, Error> {
        let path = self.path(segment, OPEN);
        let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
        let contents = frame::read(&bytes);
        if contents.payloads.is_empty() {
            fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
            return Ok(None);
        }
        let whole_bytes = contents.whole_bytes as u64;
        let file = OpenOptions::new().write(true).open(&path).map_err(|source| Error::io("open", &path, source))?;
        file.set_len(whole_bytes).map_err(|source| Error::io("cut", &path, source))?;
        // Also what was written and never synced: it is going to be shipped.
        file.sync_all().map_err(|source| Error::io("sync", &path, source))?;
        self.close(segment)?;
        Ok(Some(whole_bytes))
    }

    pub(super) fn create(&self, segment: &Segment) -> Result<File, Error> {
        let path = self.path(segment, OPEN);
        OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Error::io("create", &path, source))
    }

    /// Gives a segment, all of which is durable, the name of a closed one. The name is durable with the next sync: until then a kill
    /// leaves it open, which is as good.
    pub(super) fn close(&self, segment: &Segment) -> Result<(), Error> {
        let path = self.path(segment, OPEN);
        fs::rename(&path, self.path(segment, CLOSED)).map_err(|source| Error::io("rename", path, source))
    }

    pub(super) fn read(&self, segment: &Segment) -> Result<Vec<u8>, Error> {
        let path = self.path(segment, CLOSED);
        fs::read(&path).map_err(|source| Error::io("read", path, source))
    }

    pub(super) fn remove(&self, segment: &Segment) -> Result<(), Error> {
        let path = self.path(segment, CLOSED);
        self.unless_gone(fs::remove_file(&path), "remove", path)
    }

    pub(super) fn set_aside(&self, segment: &Segment) -> Result<(), Error> {
        let path = self.path(segment, CLOSED);
        self.unless_gone(fs::rename(&path, self.path(segment, DAMAGED)), "rename", path)
    }

    fn unless_gone(&self, done: std::io::Result<()>, operation: &'static str, path: PathBuf) -> Result<(), Error> {
        match done {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io(operation, path, source)),
            _ => self.sync(),
        }
    }
}

/// What is known of the segments on disk.
#[derive(Default)]
pub(super) struct Segments {
    closed: BTreeMap<Segment, Known>,
    open: Option<(Segment, u64)>,
    /// Bytes of damaged segments that were set aside.
    set_aside_bytes: u64,
}

#[derive(Default)]
struct Known {
    bytes: u64,
    damaged_bytes: u64,
}

impl Segments {
    fn add(&mut self, segment: Segment, bytes: u64) {
        self.closed.insert(segment, Known { bytes, damaged_bytes: 0 });
    }

    pub(super) fn opened(&mut self, segment: Segment, bytes: u64) {
        self.open = Some((segment, bytes));
    }

    pub(super) fn grown(&mut self, bytes: u64) {
        if let Some((_, open_bytes)) = &mut self.open {
            *open_bytes = bytes;
        }
    }

    pub(super) fn close_open(&mut self) {
        if let Some((segment, bytes)) = self.open.take() {
            self.add(segment, bytes);
        }
    }

    pub(super) fn closed(&self) -> Vec<Segment> {
        self.closed.keys().cloned().collect()
    }

    /// Returns whether this damage is news.
    pub(super) fn damaged(&mut self, segment: &Segment, damaged_bytes: u64) -> bool {
        let Some(known) = self.closed.get_mut(segment) else { return false };
        let is_news = damaged_bytes > 0 && known.damaged_bytes == 0;
        known.damaged_bytes = damaged_bytes;
        is_news
    }

    pub(super) fn is_damaged(&self, segment: &Segment) -> bool {
        self.closed.get(segment).is_some_and(|known| known.damaged_bytes > 0)
    }

    pub(super) fn forget(&mut self, segment: &Segment) {
        self.closed.remove(segment);
    }

    pub(super) fn set_aside(&mut self, segment: &Segment) {
        let known = self.closed.remove(segment);
        self.set_aside_bytes += known.map_or(0, |known| known.bytes);
    }

    pub(super) fn unshipped_bytes(&self) -> u64 {
        let open_bytes = self.open.as_ref().map_or(0, |(_, bytes)| *bytes);
        self.closed.values().map(|known| known.bytes).sum::<u64>() + open_bytes
    }

    pub(super) fn bytes(&self) -> u64 {
        self.unshipped_bytes() + self.set_aside_bytes
    }

    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let open = self.open.iter().map(|(segment, _)| segment.time_ms());
        self.closed.keys().map(Segment::time_ms).chain(open).min()
    }
}

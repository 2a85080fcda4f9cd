//! Reading a range of time: folder by folder, object by object, line by line, each id once.
//!
//! **Memory.** One line, one listing (about 150 bytes an object of an hour), and the ids that were seen: 16 bytes of each id's
//! SHA-256 in one set for each day of folders. Yesterday's set is dropped at the day's hour 03, because copies of a record
//! lie in folders at most two hours apart. So: 18 to 36 bytes a record of one day, 360 MB for ten million records a day
//! at worst.
//!
//! **Compaction meanwhile.** An object that was listed and is gone was compacted: the folder is listed again, and what was not read yet is
//! read; whatever comes twice is known by its id.

use super::keys;
use super::lines::{self, Line, Lines};
use crate::{Day, Error, Hour, Record};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use weft_object_store::{ObjectStore, ObjectStream};
use weft_types::Digest;

/// A range is at most this long: each hour costs a request.
pub const RANGE_DAYS_MAX: u64 = 400;
/// How often a folder is listed, because of objects that were gone, before a read gives up.
const LISTINGS_MAX: u32 = 16;
/// How often an object is read whose content breaks off.
const READS_MAX: u32 = 3;
/// From this hour of a day on no copy of yesterday's records can come.
const YESTERDAY_UNTIL_HOUR: u32 = 3;

/// Reads records of a range of time. Made by [`crate::Ledger::read`].
pub struct Reader {
    store: Arc<dyn ObjectStore>,
    range_ms: Range<u64>,
    /// The next folder; none behind the last one.
    next: Option<Hour>,
    last: Hour,
    folder: Option<Folder>,
    seen: Seen,
    /// Records and failures that were read and not handed out yet.
    ready: VecDeque<Result<Record, Error>>,
    damaged_lines: u64,
    duplicates: u64,
}

/// The folder that is being read.
struct Folder {
    hour: Hour,
    listings: u32,
    /// Objects that were not read yet.
    keys: VecDeque<String>,
    done: HashSet<String>,
    /// An object was gone: there must be another one that has its records.
    is_stale: bool,
    /// The first key's object, if it is being read.
    object: Option<Object>,
    /// Lines of it that were handed out.
    lines_done: u64,
    /// How often its content broke off.
    reads: u32,
}

struct Object {
    stream: BoxStream<'static, Result<Bytes, weft_object_store::Error>>,
    lines: Lines,
    /// The line that was read last, from 1.
    line: u64,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("range_ms", &self.range_ms).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(store: Arc<dyn ObjectStore>, range_ms: Range<u64>) -> Result<Self, Error> {
        let refused = |limit| Error::Range { from_ms: range_ms.start, to_ms: range_ms.end, limit };
        if range_ms.is_empty() {
            return Err(refused("from an earlier to a later time"));
        }
        if range_ms.end - range_ms.start > RANGE_DAYS_MAX * 86_400_000 {
            return Err(refused("at most 400 days long"));
        }
        let first = Hour::of_ms(range_ms.start);
        let last = Hour::of_ms(range_ms.end - 1).after();
        Ok(Self {
            store,
            range_ms,
            next: Some(first.before().unwrap_or(first)),
            last,
            folder: None,
            seen: Seen::default(),
            ready: VecDeque::new(),
            damaged_lines: 0,
            duplicates: 0,
        })
    }

    /// The next record. `None`: that was all.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that cannot be read: the next call goes on behind it. [`Error::Store`] and [`Error::Moved`]: the next
    /// call tries again where this one failed; records that were handed out do not come again.
    ///
    /// # Cancel safety
    /// A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Option<Result<Record, Error>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            match self.advance().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Lines that could not be read so far.
    #[must_use]
    pub fn damaged_lines(&self) -> u64 {
        self.damaged_lines
    }

    /// Records of the range that came again so far, and were not counted.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// One step: a folder's listing, an object's beginning, or a piece of it. Returns whether there is more. State is changed only after
    /// a step's last await.
    async fn advance(&mut self) -> Result<bool, Error> {
        let Some(folder) = &mut self.folder else {
            let Some(hour) = self.next else { return Ok(false) };
            let keys = list(&*self.store, hour).await?;
            self.seen.enter(hour);
            self.folder = Some(Folder::new(hour, keys));
            return Ok(true);
        };
        if let Some(object) = &mut folder.object {
            let piece = object.stream.next().await;
            return self.take_in(piece).map(|()| true);
        }
        if let Some(key) = folder.keys.front() {
            let found = self.store.get_stream(key).await?;
            folder.begin(found);
            return Ok(true);
        }
        if folder.is_stale {
            if folder.listings >= LISTINGS_MAX {
                folder.listings = 0;
                return Err(Error::Moved { hour: folder.hour.to_string(), tries: LISTINGS_MAX });
            }
            let keys = list(&*self.store, folder.hour).await?;
            folder.list_again(keys);
            return Ok(true);
        }
        self.next = (folder.hour < self.last).then(|| folder.hour.after());
        self.folder = None;
        Ok(true)
    }

    fn take_in(&mut self, piece: Option<Result<Bytes, weft_object_store::Error>>) -> Result<(), Error> {
        let folder = self.folder.as_mut().expect("an object is read within a folder");
        let object = folder.object.as_mut().expect("a piece belongs to an object");
        let lines: Vec<Line> = match &piece {
            Some(Ok(piece)) => object.lines.push(piece),
            Some(Err(_)) => Vec::new(),
            None => object.lines.finish().into_iter().collect(),
        };
        let read: Vec<_> = lines.into_iter().filter_map(|line| folder.read_line(line)).collect();
        let ended = match piece {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => folder.broke_off(error),
            None => {
                folder.end_object();
                Ok(())
            }
        };
        read.into_iter().for_each(|read| self.offer(read));
        ended
    }

    fn offer(&mut self, read: Result<Record, Error>) {
        match read {
            Err(error) => {
                self.damaged_lines += 1;
                self.ready.push_back(Err(error));
            }
            Ok(record) if !self.range_ms.contains(&record.ended_ms()) => {}
            Ok(record) if self.seen.is_new(record.id()) => self.ready.push_back(Ok(record)),
            Ok(_) => self.duplicates += 1,
        }
    }
}

impl Folder {
    fn new(hour: Hour, keys: VecDeque<String>) -> Self {
        Self { hour, listings: 1, keys, done: HashSet::new(), is_stale: false, object: None, lines_done: 0, reads: 0 }
    }

    /// The first key's object was opened, or is gone.
    fn begin(&mut self, found: Option<ObjectStream>) {
        match found {
            Some(found) => self.object = Some(Object { stream: found.stream, lines: Lines::default(), line: 0 }),
            None => {
                self.is_stale = true;
                self.end_object();
            }
        }
    }

    fn end_object(&mut self) {
        self.object = None;
        (self.lines_done, self.reads) = (0, 0);
        self.done.extend(self.keys.pop_front());
    }

    /// Objects never change: it is read again, and what was handed out already is left out.
    fn broke_off(&mut self, error: weft_object_store::Error) -> Result<(), Error> {
        self.object = None;
        self.reads += 1;
        if self.reads < READS_MAX {
            return Ok(());
        }
        self.reads = 0;
        Err(error.into())
    }

    fn list_again(&mut self, keys: VecDeque<String>) {
        self.listings += 1;
        self.is_stale = false;
        self.keys = keys.into_iter().filter(|key| !self.done.contains(key)).collect();
    }

    fn read_line(&mut self, line: Line) -> Option<Result<Record, Error>> {
        let object = self.object.as_mut()?;
        object.line += 1;
        if object.line <= self.lines_done {
            return None;
        }
        self.lines_done = object.line;
        let read = match line {
            Ok(line) => lines::record(&line)?,
            Err(problem) => Err(Error::unreadable(problem)),
        };
        let (key, line) = (self.keys.front().cloned().unwrap_or_default(), object.line);
        Some(read.map_err(|error| Error::Line { key, line, problem: error.to_string() }))
    }
}

async fn list(store: &dyn ObjectStore, hour: Hour) -> Result<VecDeque<String>, Error> {
    let listed = store.list(&keys::folder(hour)).await?;
    let ours = listed.into_iter().filter(|object| keys::level(hour, &object.key).is_some());
    Ok(ours.map(|object| object.key).collect())
}

/// The ids that were handed out, as far back as copies of them may come.
#[derive(Default)]
struct Seen {
    day: Option<Day>,
    today: HashSet<u128>,
    yesterday: HashSet<u128>,
}

impl Seen {
    fn enter(&mut self, hour: Hour) {
        if self.day != Some(hour.day()) {
            self.day = Some(hour.day());
            self.yesterday = std::mem::take(&mut self.today);
        }
        if hour.of_day() >= YESTERDAY_UNTIL_HOUR {
            self.yesterday = HashSet::new();
        }
    }

    fn is_new(&mut self, id: &str) -> bool {
        let id = id_hash(id);
        !self.yesterday.contains(&id) && self.today.insert(id)
    }
}

/// 16 bytes of the id's SHA-256: no two ids share them, also if somebody tries.
pub(super) fn id_hash(id: &str) -> u128 {
    let digest = Digest::of(id.as_bytes());
    let (half, _) = digest.as_bytes().split_at(16);
    u128::from_le_bytes(half.try_into().expect("split at 16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_across_midnight_and_forgotten_later() {
        let midnight = Hour::of_ms(1_751_328_000_000);
        let mut seen = Seen::default();
        seen.enter(midnight.before().unwrap());
        assert!(seen.is_new("a"));
        seen.enter(midnight);
        assert!(!seen.is_new("a") && seen.is_new("b"));
        seen.enter(midnight.after());
        assert!(!seen.is_new("a") && !seen.is_new("b"));
        let three = midnight.after().after().after();
        seen.enter(three);
        assert!(seen.yesterday.is_empty() && !seen.is_new("b"));
    }
}

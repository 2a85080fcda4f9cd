//! The ledger: every record that was shipped, in the object store, append-only.
//!
//! ```text
//! usage/v1/<yyyy-mm-dd>/<hh>/<writer>-<sequence>.jsonl     a batch: the records of one segment, one line each
//! usage/v1/<yyyy-mm-dd>/<hh>/joined-<level>-<digest>.jsonl many batches in one; its first line names them
//! ```
//!
//! **A batch** lies in the folder of its segment's hour (UTC), and is a function of the segment: shipping it again writes the same
//! bytes under the same key. Its records are of that hour or a neighbour of it, so whoever looks for the records of a
//! time reads one folder more on either side.
//!
//! **Ids.** A record may lie in several objects: a batch and what it was joined into, or two batches, if it was appended twice.
//! Readers count each id once.
//!
//! **Compaction** is told in [`compaction`], reading in [`reader`].

pub mod compaction;
mod keys;
mod lines;
pub mod reader;

pub use compaction::Compaction;
pub use reader::Reader;

use crate::{Error, Segment};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use weft_object_store::{ObjectStore, PutOutcome};

/// What shipping a segment came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shipped {
    /// The batch was written.
    Written,
    /// It was there already.
    Already,
    /// The segment has no record that could be read, so there is nothing to write.
    Nothing,
}

/// The ledger in one store. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn ObjectStore>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl Ledger {
    /// The ledger in this store, under `usage/v1/`. Does no IO.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Writes the records of a closed segment, as [`crate::Log::read`] gave them. Success means that they are durable. Cost: one put, and
    /// a get if the key is taken.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::OtherBytes`] if the key holds something else.
    pub async fn ship(&self, segment: &Segment, records: &[Vec<u8>]) -> Result<Shipped, Error> {
        if records.is_empty() {
            return Ok(Shipped::Nothing);
        }
        let mut batch = Vec::with_capacity(records.iter().map(|record| record.len() + 1).sum());
        for record in records {
            batch.extend_from_slice(record);
            batch.push(b'\n');
        }
        self.put_once(&keys::batch(segment), batch.into()).await
    }

    /// The same for the lines of a batch, as another process sent them: each must be a record, none longer than a record may be.
    ///
    /// # Errors
    /// As [`Ledger::ship`]; [`Error::Line`] for one that is no record, and nothing is written.
    pub async fn ship_lines(&self, segment: &Segment, lines: Bytes) -> Result<Shipped, Error> {
        let key = keys::batch(segment);
        for (at, line) in lines.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            crate::Record::from_json(line).map_err(|error| Error::Line {
                key: key.clone(),
                line: at as u64 + 1,
                problem: error.to_string(),
            })?;
        }
        if lines.is_empty() {
            return Ok(Shipped::Nothing);
        }
        self.put_once(&key, lines).await
    }

    /// Writes what is a function of its key.
    async fn put_once(&self, key: &str, bytes: Bytes) -> Result<Shipped, Error> {
        if let PutOutcome::Written(_) = self.store.put_if_absent(key, bytes.clone()).await? {
            return Ok(Shipped::Written);
        }
        match self.store.get(key).await? {
            Some(found) if found.bytes == bytes => Ok(Shipped::Already),
            // Compacted and deleted between the two calls: its records are in another object.
            None => Ok(Shipped::Already),
            Some(_) => Err(Error::OtherBytes { key: key.to_owned() }),
        }
    }

    /// The records that ended within these Unix milliseconds, each id once, folder by folder; within a folder in no order that
    /// means anything.
    ///
    /// # Errors
    /// [`Error::Range`] if the range is empty or longer than [`reader::RANGE_DAYS_MAX`] days.
    pub fn read(&self, range_ms: Range<u64>) -> Result<Reader, Error> {
        Reader::new(Arc::clone(&self.store), range_ms)
    }
}

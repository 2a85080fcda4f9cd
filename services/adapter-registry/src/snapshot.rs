//! All records in one object, so that a registry that starts reads that and not each of them.
//!
//! It is no record: nothing is true because it stands here. A line says what an object had when its ETag was this one, and is believed as long as a
//! listing shows that ETag; whatever the snapshot lacks, or has of an earlier state, is read by itself. So a snapshot may be old, cut short or gone.
//! Any registry writes one when much has changed since it read or wrote the last; the last one stays.

use crate::Error;
use crate::core::Core;
use crate::layout::Place;
use crate::records::Record;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use weft_object_store::ETag;

/// Where it lies.
pub(crate) const KEY: &str = "snapshot/records.jsonl.gz";
/// News that are not worth a snapshot.
const NEWS_MIN: u64 = 1_000;
/// Records that are copied out of the catalog in one go.
const RECORDS_AT_ONCE: usize = 256;
/// More text than this is not read: a directory with everything at its limit has less.
const TEXT_BYTES_MAX: u64 = 2 << 30;

/// What objects had, by key.
pub(crate) type Remembered = HashMap<String, (ETag, Record)>;

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    etag: &'a str,
    record: &'a Record,
}

#[derive(Deserialize)]
struct Told {
    key: String,
    etag: String,
    record: Box<RawValue>,
}

impl Core {
    /// Takes in the snapshot for the first listing. Whatever is wrong with it costs time and nothing else.
    pub(crate) async fn remember(&self) -> Result<(), Error> {
        let Some(object) = self.store.get(KEY).await? else { return Ok(()) };
        let read = tokio::task::spawn_blocking(move || read(&object.bytes[..])).await?;
        match read {
            Ok(found) => {
                tracing::info!(records = found.len(), "read the snapshot of the records");
                *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
            Err(error) => tracing::warn!(%error, "the snapshot of the records cannot be read; each record is"),
        }
        Ok(())
    }

    /// Writes a snapshot if much is new since the last.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn snapshot_if_due(self: &Arc<Self>) -> Result<(), Error> {
        let (news, known) = (self.news.load(Ordering::Relaxed), self.catalog().known());
        if news < NEWS_MIN.max(known as u64 / 4) {
            return Ok(());
        }
        let core = Arc::clone(self);
        let bytes = tokio::task::spawn_blocking(move || core.write_snapshot()).await?;
        let bytes = bytes.map_err(|error| Error::Damaged { key: KEY.to_owned(), problem: error.to_string() })?;
        tracing::info!(records = known, bytes = bytes.len(), "wrote a snapshot of the records");
        self.store.put(KEY, bytes.into()).await?;
        self.news.fetch_sub(news, Ordering::Relaxed);
        Ok(())
    }

    /// Each line stands for itself, so the catalog is held for a few lines at a time.
    fn write_snapshot(&self) -> std::io::Result<Vec<u8>> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let mut last = String::new();
        loop {
            let records: Vec<_> = {
                let catalog = self.catalog();
                let keys = catalog.keys_after(&last, RECORDS_AT_ONCE);
                match keys.last() {
                    Some(key) => last.clone_from(key),
                    None => break,
                }
                let record = |key: String| catalog.record(&Place::parse(&key)?).map(|record| (key, record));
                keys.into_iter().filter_map(record).collect()
            };
            for (key, (record, etag)) in records {
                let mut line = serde_json::to_vec(&Line { key: &key, etag: etag.as_str(), record: &record })?;
                line.push(b'\n');
                gzip.write_all(&line)?;
            }
        }
        gzip.finish()
    }
}

fn read(bytes: impl Read) -> Result<Remembered, String> {
    let text = BufReader::new(GzDecoder::new(bytes).take(TEXT_BYTES_MAX));
    let mut found = Remembered::new();
    for line in text.lines() {
        let line = line.map_err(|error| error.to_string())?;
        let told: Told = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        // A newer registry may have kinds of records that this one does not know.
        let Some(place) = Place::parse(&told.key) else { continue };
        let record = Record::parse(&place, told.record.get().as_bytes());
        if let Ok(record) = record {
            found.insert(told.key, (ETag::new(told.etag), record));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text).unwrap();
        gzip.finish().unwrap()
    }

    const ALIAS: &str = r#"{"key":"registry/tenants/t/adapters/a/aliases/live.json","etag":"e","record":{"revision":2,"version":1,"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","moved_ms":3,"actor":"ada"}}"#;

    #[test]
    fn lines_that_are_no_records_of_ours_are_left_out_and_a_cut_snapshot_is_none() {
        let other = r#"{"key":"registry/tenants/t/robots/r.json","etag":"e","record":{}}"#;
        let wrong = ALIAS.replace("\"version\":1", "\"version\":-1");
        let found = read(&gzip(format!("{other}\n{ALIAS}\n{wrong}\n").as_bytes())[..]).unwrap();
        assert_eq!(found.len(), 1);
        let whole = gzip(ALIAS.as_bytes());
        assert!(read(&whole[..whole.len() / 2]).is_err());
        assert!(read(&gzip(b"{")[..]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_text in any::<bool>()) {
            let _ = if is_text { read(&gzip(&bytes)[..]) } else { read(&bytes[..]) };
        }
    }
}

//! What several tests of this crate use.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use weft_object_store::{EmbeddedS3, ObjectStore, S3Store};
use weft_types::Digest;
use weft_usage::{Hour, Ledger, Log, LogSettings, Outcome, Record, Request, Residency, Totals};

pub(crate) const BUCKET: &str = "bucket";
/// 2025-07-01T12:00:00Z: the middle of a day that is over.
pub(crate) const NOON_MS: u64 = 1_751_371_200_000;
pub(crate) const HOUR_MS: u64 = 3_600_000;
/// A time at which every hour of these tests can be compacted.
pub(crate) const LATER_MS: u64 = NOON_MS + 48 * HOUR_MS;

pub(crate) fn noon() -> Hour {
    Hour::of_ms(NOON_MS)
}

/// An answer with this id that ended then.
pub(crate) fn request(id: &str, ended_ms: u64, tokens: u64) -> Record {
    Record::Request(Request {
        id: id.to_owned(),
        tenant: "harbour".parse().unwrap(),
        key_id: "key".to_owned(),
        adapter: Some("org/pirate".parse().unwrap()),
        version: Some(3),
        digest: Some(Digest::of(b"pirate")),
        ended_ms,
        prompt_tokens: tokens,
        completion_tokens: 2 * tokens,
        cached_tokens: 1,
        outcome: Outcome::Complete,
        duration_ms: 840,
    })
}

pub(crate) fn residency(id: &str, to_ms: u64) -> Record {
    Record::Residency(Residency {
        id: id.to_owned(),
        worker: "10.0.0.7:7001".to_owned(),
        incarnation: "i1".to_owned(),
        from_ms: to_ms - 60_000,
        to_ms,
        digest: Digest::of(b"pirate"),
        slot_ms: 60_001,
        memory_ms: 30_000,
        bytes_moved: 1_000_003,
        bytes: 1_000_003,
    })
}

/// Segments of 64 KiB, so that they change often.
pub(crate) fn small() -> LogSettings {
    LogSettings { segment_bytes_max: 64 << 10, ..LogSettings::default() }
}

/// Every record of the log's closed segments.
pub(crate) fn records(log: &Log) -> Vec<Record> {
    let lines = log.unshipped().into_iter().flat_map(|segment| log.read(&segment).unwrap());
    lines.map(|line| Record::from_json(&line).unwrap()).collect()
}

pub(crate) struct Mesh {
    pub(crate) server: EmbeddedS3,
    pub(crate) store: Arc<S3Store>,
    pub(crate) ledger: Ledger,
    _folder: tempfile::TempDir,
}

/// An embedded server over a fresh folder, and a ledger in it.
pub(crate) async fn mesh() -> Mesh {
    let folder = tempfile::tempdir().unwrap();
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = EmbeddedS3::start(folder.path(), listen).await.unwrap();
    let store = S3Store::connect(&server.settings(BUCKET)).await.unwrap();
    store.ensure_bucket().await.unwrap();
    let store = Arc::new(store);
    let ledger = Ledger::new(store.clone());
    Mesh { server, store, ledger, _folder: folder }
}

impl Mesh {
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        self.store.list(prefix).await.unwrap().into_iter().map(|object| object.key).collect()
    }
}

/// Reads a range; every line must be readable.
pub(crate) async fn read(ledger: &Ledger, range_ms: std::ops::Range<u64>) -> Vec<Record> {
    let mut reader = ledger.read(range_ms).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next().await {
        records.push(record.unwrap());
    }
    records
}

/// The day around noon, by id; no id comes twice.
pub(crate) async fn day(ledger: &Ledger) -> BTreeMap<String, Record> {
    let records = read(ledger, NOON_MS - 12 * HOUR_MS..NOON_MS + 12 * HOUR_MS).await;
    let count = records.len();
    let by_id: BTreeMap<String, Record> = records.into_iter().map(|record| (record.id().to_owned(), record)).collect();
    assert_eq!(by_id.len(), count, "an id came twice");
    by_id
}

pub(crate) fn totals<'a>(records: impl IntoIterator<Item = &'a Record>) -> Totals {
    let mut totals = Totals::new();
    records.into_iter().for_each(|record| totals.add(record, |_| Vec::new()));
    totals
}

/// Appends the records and closes a segment behind each `batch` of them.
pub(crate) async fn append_in_segments(log: &Log, records: &[Record], batch: usize) {
    for batch in records.chunks(batch) {
        for record in batch {
            log.append(record).await.unwrap();
        }
        log.close_segment().await.unwrap();
    }
}

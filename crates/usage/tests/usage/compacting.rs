//! Many batches made one, while others do the same, read, and ship.

use crate::support::{self, HOUR_MS, LATER_MS, NOON_MS, append_in_segments, day, mesh, noon, request, small};
use weft_fault::Kind;
use weft_object_store::ObjectStore;
use weft_usage::{Compaction, Log, Record, Segment};

const BATCHES: usize = 24;

fn folder() -> String {
    format!("usage/v1/{}/", noon())
}

/// Batches in the ledger, and the segments and records that are in them.
async fn batches(mesh: &support::Mesh, count: usize) -> (Vec<(Segment, Vec<Vec<u8>>)>, Vec<Record>) {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    let records: Vec<Record> =
        (0..count * 3).map(|id| request(&format!("r{id}"), NOON_MS + id as u64, id as u64)).collect();
    append_in_segments(&log, &records, 3).await;
    let segments: Vec<_> =
        log.unshipped().into_iter().map(|segment| (segment.clone(), log.read(&segment).unwrap())).collect();
    for (segment, lines) in &segments {
        mesh.ledger.ship(segment, lines).await.unwrap();
    }
    (segments, records)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_becomes_one_object_with_the_same_records() {
    let mesh = mesh().await;
    let (segments, records) = batches(&mesh, BATCHES).await;
    let before = day(&mesh.ledger).await;
    let done = mesh.ledger.compact(noon(), LATER_MS).await.unwrap();
    let expected = Compaction { inputs: BATCHES as u64, outputs: 1, deleted: BATCHES as u64, duplicates: 0 };
    assert_eq!(done, expected);
    let keys = mesh.keys("usage/").await;
    assert_eq!(keys.len(), 1);
    assert!(keys[0].starts_with(&format!("{}joined-000001-", folder())), "{keys:?}");
    assert_eq!(day(&mesh.ledger).await, before);
    assert_eq!(mesh.ledger.compact(noon(), LATER_MS).await.unwrap(), Compaction::default());

    // A gateway that was killed between put and forget ships a batch again, long after.
    let (segment, lines) = &segments[5];
    mesh.ledger.ship(segment, lines).await.unwrap();
    assert_eq!(mesh.keys("usage/").await.len(), 2);
    assert_eq!(support::totals(day(&mesh.ledger).await.values()), support::totals(&records));
    let done = mesh.ledger.compact(noon(), LATER_MS).await.unwrap();
    assert_eq!(done, Compaction { deleted: 1, ..Compaction::default() });
    assert_eq!(mesh.keys("usage/").await, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_killed_before_its_deletes_is_finished() {
    let mesh = mesh().await;
    let (segments, records) = batches(&mesh, 4).await;
    mesh.ledger.compact(noon(), LATER_MS).await.unwrap();
    for (segment, lines) in &segments {
        mesh.ledger.ship(segment, lines).await.unwrap();
    }
    // Both are there: as after a kill behind the first phase.
    assert_eq!(mesh.keys("usage/").await.len(), 5);
    assert_eq!(support::totals(day(&mesh.ledger).await.values()), support::totals(&records));
    let done = mesh.ledger.compact(noon(), LATER_MS).await.unwrap();
    assert_eq!(done, Compaction { deleted: 4, ..Compaction::default() });
    assert_eq!(mesh.keys("usage/").await.len(), 1);
    assert_eq!(support::totals(day(&mesh.ledger).await.values()), support::totals(&records));
}

#[tokio::test(flavor = "multi_thread")]
async fn compactors_that_race_readers_and_shippers_lose_and_double_nothing() {
    let mesh = mesh().await;
    for round in 0..4 {
        let (segments, _) = batches(&mesh, BATCHES).await;
        // The rounds' records have the same ids: each is counted once all the same.
        let compactors: Vec<_> = (0..3)
            .map(|_| {
                let ledger = mesh.ledger.clone();
                tokio::spawn(async move { ledger.compact(noon(), LATER_MS).await })
            })
            .collect();
        let shipper = tokio::spawn({
            let ledger = mesh.ledger.clone();
            async move {
                for (segment, lines) in &segments[..6] {
                    ledger.ship(segment, lines).await.unwrap();
                }
            }
        });
        let mut reads = 0;
        while reads < 3 || compactors.iter().any(|compactor| !compactor.is_finished()) {
            let found = day(&mesh.ledger).await;
            assert_eq!(found.len(), BATCHES * 3, "round {round}, read {reads}");
            reads += 1;
        }
        for compactor in compactors {
            compactor.await.unwrap().unwrap();
        }
        shipper.await.unwrap();
        assert_eq!(day(&mesh.ledger).await.len(), BATCHES * 3, "round {round}");
    }
    while mesh.ledger.compact(noon(), LATER_MS).await.unwrap() != Compaction::default() {}
    assert_eq!(mesh.keys("usage/").await.len(), 1);
    let found = day(&mesh.ledger).await;
    assert_eq!(found.len(), BATCHES * 3);
    let sum: u64 = (0..BATCHES as u64 * 3).sum();
    assert_eq!(support::totals(found.values()).sum().prompt_tokens, u128::from(sum));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_that_is_young_is_left_and_lines_that_nobody_can_read_are_kept() {
    let mesh = mesh().await;
    let (_, records) = batches(&mesh, 2).await;
    let early = mesh.ledger.compact(noon(), NOON_MS + 3 * HOUR_MS - 1).await.unwrap_err();
    assert_eq!(early.kind(), Kind::Invalid);
    let later_program = "{\"v\":2,\"kind\":\"request\",\"id\":\"x\"}\n";
    let key = format!("{}0-foreign.jsonl", folder());
    mesh.store.put(&key, later_program.into()).await.unwrap();
    let done = mesh.ledger.compact(noon(), NOON_MS + 3 * HOUR_MS).await.unwrap();
    assert_eq!((done.inputs, done.outputs), (3, 1));

    let mut reader = mesh.ledger.read(NOON_MS..NOON_MS + HOUR_MS).unwrap();
    let (mut found, mut damaged) = (0, Vec::new());
    while let Some(record) = reader.next().await {
        match record {
            Ok(_) => found += 1,
            Err(error) => damaged.push(error.to_string()),
        }
    }
    assert_eq!((found, reader.damaged_lines()), (records.len(), 1));
    assert!(damaged[0].ends_with("line 2 cannot be read: record cannot be read: version 2 is not 1"), "{damaged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_what_is_compacted_under_it() {
    let mesh = mesh().await;
    let (_, records) = batches(&mesh, BATCHES).await;
    let mut reader = mesh.ledger.read(NOON_MS..NOON_MS + HOUR_MS).unwrap();
    let mut found = Vec::new();
    // In the middle of the folder.
    for _ in 0..10 {
        found.push(reader.next().await.unwrap().unwrap());
    }
    mesh.ledger.compact(noon(), LATER_MS).await.unwrap();
    while let Some(record) = reader.next().await {
        found.push(record.unwrap());
    }
    found.sort_by_key(Record::ended_ms);
    assert_eq!(found, records);
    assert!(reader.duplicates() > 0);
}

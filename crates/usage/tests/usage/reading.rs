//! Ranges of time, duplicates, and bytes that are no records.

use crate::support::{self, HOUR_MS, NOON_MS, append_in_segments, mesh, noon, read, request, small};
use bytes::Bytes;
use proptest::prelude::*;
use weft_fault::Kind;
use weft_object_store::ObjectStore;
use weft_usage::{Error, Log};

#[tokio::test(flavor = "multi_thread")]
async fn a_range_has_the_records_that_ended_in_it_wherever_they_lie() {
    let mesh = mesh().await;
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    // The first decides the folder: these lie in the folder of noon, one hour before, within and after.
    let ended = [NOON_MS, NOON_MS - HOUR_MS, NOON_MS - 1, NOON_MS + HOUR_MS, NOON_MS + 2 * HOUR_MS - 1];
    let records: Vec<_> =
        ended.iter().enumerate().map(|(id, ended_ms)| request(&format!("r{id}"), *ended_ms, 1)).collect();
    append_in_segments(&log, &records, records.len()).await;
    for segment in log.unshipped() {
        mesh.ledger.ship(&segment, &log.read(&segment).unwrap()).await.unwrap();
    }
    assert_eq!(mesh.keys("usage/").await.len(), 1);
    let found = |range: std::ops::Range<u64>| async {
        let mut ids: Vec<String> =
            read(&mesh.ledger, range).await.iter().map(|record| record.id().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(found(NOON_MS..NOON_MS + HOUR_MS).await, ["r0"]);
    assert_eq!(found(NOON_MS - HOUR_MS..NOON_MS).await, ["r1", "r2"]);
    assert_eq!(found(NOON_MS + HOUR_MS..NOON_MS + 2 * HOUR_MS).await, ["r3", "r4"]);
    assert_eq!(found(NOON_MS - 1..NOON_MS + 1).await, ["r0", "r2"]);
    assert_eq!(found(NOON_MS + 2 * HOUR_MS..NOON_MS + 9 * HOUR_MS).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_two_gateways_deliver_counts_once_across_midnight() {
    let mesh = mesh().await;
    let midnight_ms = NOON_MS + 12 * HOUR_MS;
    let shared = request("shared", midnight_ms, 9);
    // In a folder of the day before, and in one of the day after.
    for first_ms in [midnight_ms - 1, midnight_ms + HOUR_MS] {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), small()).unwrap();
        append_in_segments(&log, &[request(&format!("r{first_ms}"), first_ms, 1), shared.clone()], 2).await;
        let segment = log.unshipped().remove(0);
        mesh.ledger.ship(&segment, &log.read(&segment).unwrap()).await.unwrap();
    }
    let records = read(&mesh.ledger, NOON_MS..NOON_MS + 24 * HOUR_MS).await;
    assert_eq!(records.len(), 3);
    assert_eq!(support::totals(&records).sum().prompt_tokens, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_cannot_be_read_are_refused() {
    let mesh = mesh().await;
    for range in [NOON_MS..NOON_MS, 0..u64::MAX] {
        let refused = mesh.ledger.read(range).unwrap_err();
        assert!(matches!(refused, Error::Range { .. }), "{refused}");
        assert_eq!(refused.kind(), Kind::Invalid);
    }
    assert!(read(&mesh.ledger, 0..1).await.is_empty());
    assert!(read(&mesh.ledger, u64::MAX - 1..u64::MAX).await.is_empty());
}

#[test]
fn no_objects_panic_the_reader_or_the_compactor() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mesh = runtime.block_on(mesh());
    let good = request("good", NOON_MS, 1).to_json().unwrap();
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        Just(good.clone()),
        Just(b"\n".to_vec()),
        Just(b"{\"v\":1,\"kind\":\"joined\",\"inputs\":[\"usage/v1/none\"]}\n".to_vec()),
    ];
    let content = proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(48));
    let outcome = runner.run(&(content.clone(), content), |contents| {
        runtime.block_on(async {
            for (name, content) in [("joined-000001-0", contents.0), ("a-00000000", contents.1)] {
                let key = format!("usage/v1/{}/{name}.jsonl", noon());
                mesh.store.put(&key, Bytes::from(content)).await.unwrap();
            }
            for _ in 0..2 {
                let mut reader = mesh.ledger.read(NOON_MS..NOON_MS + 1).unwrap();
                let mut found = 0;
                while let Some(record) = reader.next().await {
                    found += u64::from(record.is_ok());
                }
                assert!(found <= 1);
                mesh.ledger.compact(noon(), support::LATER_MS).await.unwrap();
            }
            for key in mesh.keys("usage/").await {
                mesh.store.delete(&key).await.unwrap();
            }
        });
        Ok(())
    });
    outcome.unwrap();
}

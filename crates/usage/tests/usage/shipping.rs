//! From the log into the ledger.

use crate::support::{self, NOON_MS, append_in_segments, day, mesh, noon, request, residency, small};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_fault::Kind;
use weft_object_store::{ObjectStore, S3Store};
use weft_usage::{Error, Ledger, Log, Record, Shipped, Shipper};

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_was_shipped_and_not_forgotten_is_shipped_again_without_effect() {
    let mesh = mesh().await;
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    let appended = [request("a", NOON_MS, 5), request("b", NOON_MS, 7), residency("c", NOON_MS)];
    append_in_segments(&log, &appended, 3).await;
    let segment = log.unshipped().remove(0);
    let lines = log.read(&segment).unwrap();
    assert_eq!(mesh.ledger.ship(&segment, &lines).await.unwrap(), Shipped::Written);
    // As a kill would do: the segment is still there.
    drop(log);
    let log = Arc::new(Log::open(dir.path(), small()).unwrap());
    let segment = log.unshipped().remove(0);
    let lines = log.read(&segment).unwrap();
    assert_eq!(mesh.ledger.ship(&segment, &lines).await.unwrap(), Shipped::Already);
    let shipper = Shipper::new(Arc::clone(&log), mesh.ledger.clone(), 100).unwrap();
    shipper.ship_once().await.unwrap();
    assert!(log.unshipped().is_empty());

    let key = format!("usage/v1/{}/{}-00000000.jsonl", noon(), segment.writer());
    assert_eq!(mesh.keys("usage/").await, [key.as_str()]);
    let object = mesh.store.get(&key).await.unwrap().unwrap();
    let expected: Vec<u8> =
        appended.iter().flat_map(|record| [record.to_json().unwrap(), b"\n".to_vec()].concat()).collect();
    assert_eq!(object.bytes, expected);
    assert_eq!(support::totals(day(&mesh.ledger).await.values()), support::totals(&appended));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_task_ships_what_is_old_and_ends_with_a_last_pass() {
    let mesh = mesh().await;
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), small()).unwrap());
    let shipper = Arc::new(Shipper::new(Arc::clone(&log), mesh.ledger.clone(), 100).unwrap());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn({
        let (shipper, shutdown) = (Arc::clone(&shipper), shutdown.clone());
        async move { shipper.ship_forever(shutdown).await }
    });
    log.append(&request("a", NOON_MS, 1)).await.unwrap();
    while shipper.state().shipped_segments == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(day(&mesh.ledger).await.len(), 1);
    log.append(&request("b", NOON_MS, 1)).await.unwrap();
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(day(&mesh.ledger).await.len(), 2);
    let state = shipper.state();
    assert_eq!((state.unshipped_bytes, state.oldest_unshipped_age_ms, state.failures), (0, 0, 0));
    assert_eq!(state.last_failure, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_loses_nothing_and_leaves_one_file() {
    let mesh = mesh().await;
    let mut away = mesh.server.settings(support::BUCKET);
    // Nobody listens there.
    away.endpoint = Some("http://127.0.0.1:9".to_owned());
    let away = Ledger::new(Arc::new(S3Store::connect(&away).await.unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), small()).unwrap());
    let shipper = Shipper::new(Arc::clone(&log), away, 100).unwrap();
    let appended: Vec<Record> = (0..6).map(|id| request(&format!("r{id}"), NOON_MS, id)).collect();
    for record in &appended {
        log.append(record).await.unwrap();
        if record.id() != "r0" && record.id() != "r3" {
            continue;
        }
        let failure = shipper.ship_once().await.unwrap_err();
        assert!(matches!(failure.kind(), Kind::Unavailable | Kind::Timeout), "{failure}");
    }
    // Closed by the first pass; the open one was left to grow afterwards.
    assert_eq!(log.unshipped().len(), 1);
    let state = shipper.state();
    assert_eq!((state.failures, state.shipped_segments), (2, 0));
    assert!(state.last_failure.is_some_and(|failure| failure.starts_with("usage ledger cannot be used: ")));
    assert!(state.oldest_unshipped_age_ms > 0 && state.unshipped_bytes > 0);

    let shipper = Shipper::new(Arc::clone(&log), mesh.ledger.clone(), 100).unwrap();
    shipper.ship_once().await.unwrap();
    assert_eq!(support::totals(day(&mesh.ledger).await.values()), support::totals(&appended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_other_bytes_is_refused_and_the_segment_set_aside() {
    let mesh = mesh().await;
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), small()).unwrap());
    append_in_segments(&log, &[request("a", NOON_MS, 1), request("b", NOON_MS, 1)], 1).await;
    let segment = log.unshipped().remove(0);
    let key = format!("usage/v1/{}/{}-00000000.jsonl", noon(), segment.writer());
    mesh.store.put(&key, Bytes::from_static(b"other\n")).await.unwrap();
    let shipper = Shipper::new(Arc::clone(&log), mesh.ledger.clone(), 100).unwrap();
    let refused = shipper.ship_once().await.unwrap_err();
    assert!(matches!(&refused, Error::OtherBytes { key: found } if *found == key), "{refused}");
    assert_eq!(refused.kind(), Kind::Corrupt);
    // The other one was shipped, and what was refused is kept.
    assert!(log.unshipped().is_empty());
    assert_eq!((shipper.state().refused, shipper.state().shipped_segments), (1, 1));
    assert!(dir.path().join(format!("{}.damaged", segment.name())).exists());
    assert!(log.state().bytes > 0);
    shipper.ship_once().await.unwrap();
}

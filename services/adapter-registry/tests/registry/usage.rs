//! Reading usage: in pieces that fit messages, a few readers at once.

use crate::support::{Running, TENANT, World};
use std::time::Duration;
use weft_adapter_registry::Settings;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_types::Digest;
use weft_usage::{Outcome, Record, Request};

const NOON_MS: u64 = 1_751_371_200_000;
const HOUR_MS: u64 = 3_600_000;
const PIECE_BYTES_MAX: usize = 256 << 10;

/// An answer of a version of its own, so that it is a row of its own in totals.
fn answer(version: u64) -> Vec<u8> {
    let record = Record::Request(Request {
        id: format!("answer-{version}"),
        tenant: TENANT.parse().unwrap(),
        key_id: "k1".into(),
        adapter: Some("long-name-".repeat(12).trim_end_matches('-').parse().unwrap()),
        version: Some(version),
        digest: Some(Digest::of(b"x")),
        ended_ms: NOON_MS,
        prompt_tokens: 7,
        completion_tokens: 3,
        cached_tokens: 1,
        outcome: Outcome::Complete,
        duration_ms: 5,
    });
    let mut line = record.to_json().unwrap();
    line.push(b'\n');
    line
}

async fn keep(registry: &mut Running, versions: std::ops::Range<u64>) {
    let segment = format!("{}-{:08}-{NOON_MS:015}", "0a".repeat(16), versions.start);
    let lines: Vec<u8> = versions.flat_map(answer).collect();
    registry.client.keep_usage(pb::KeepUsageRequest { segment, lines: lines.into() }).await.unwrap();
}

fn ask(format: &str, records: bool) -> pb::ReadUsageRequest {
    let (from_ms, to_ms) = (NOON_MS - HOUR_MS, NOON_MS + HOUR_MS);
    pb::ReadUsageRequest { tenant: String::new(), from_ms, to_ms, format: format.into(), records }
}

#[tokio::test]
async fn however_long_a_table_is_its_pieces_are_short() {
    let world = World::new().await;
    let mut registry = world.start().await;
    for begin in [1, 1501] {
        keep(&mut registry, begin..begin + 1500).await;
    }
    for (format, records) in [("json", false), ("csv", false), ("parquet", false), ("csv", true), ("parquet", true)] {
        let mut pieces = registry.client.read_usage(ask(format, records)).await.unwrap().into_inner();
        let mut table = Vec::new();
        while let Some(piece) = pieces.message().await.unwrap() {
            let bytes = piece.piece.len();
            assert!((1..=PIECE_BYTES_MAX).contains(&bytes), "{format}, records {records}: a piece of {bytes} bytes");
            table.extend_from_slice(&piece.piece);
        }
        match format {
            "json" => {
                let rows: serde_json::Value = serde_json::from_slice(&table).unwrap();
                assert_eq!(rows["usage"].as_array().unwrap().len(), 3000);
                assert_eq!((&rows["usage"][0]["version"], &rows["usage"][0]["requests"]), (&1.into(), &1.into()));
            }
            "csv" => assert_eq!(table.iter().filter(|byte| **byte == b'\n').count(), 3001),
            _ => assert!(table.starts_with(b"PAR1") && table.ends_with(b"PAR1")),
        }
    }
    let none = registry.client.read_usage(pb::ReadUsageRequest { tenant: "nobody".into(), ..ask("json", false) });
    let none = none.await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(&none.piece[..], br#"{"usage":[]}"#);
}

#[tokio::test]
async fn readers_are_few_and_one_that_left_makes_room() {
    let world = World::new().await;
    let mut registry = world.start_with(Settings { usage_reads_max: 1, ..Settings::default() }).await;
    keep(&mut registry, 1..3).await;
    world.store.hold_contents(true);
    let first = registry.client.read_usage(ask("json", false)).await.unwrap();
    let refused = Fault::from(&registry.client.read_usage(ask("json", false)).await.unwrap_err());
    assert_eq!(refused.kind, Kind::Overloaded, "{refused}");
    assert!(refused.message.contains("usage_reads_max") && refused.retry_after_ms.is_some(), "{refused:?}");
    // Although its store says nothing.
    drop(first);
    let mut second = None;
    for _ in 0..500 {
        second = registry.client.read_usage(ask("json", false)).await.ok();
        if second.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.store.hold_contents(false);
    let mut pieces = second.expect("the first one's room is free").into_inner();
    assert!(pieces.message().await.unwrap().is_some());
}

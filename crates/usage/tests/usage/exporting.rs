//! Tables, read back by the libraries' own readers.

use crate::support::{NOON_MS, request, residency};
use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use std::collections::HashMap;
use weft_fault::Kind;
use weft_types::Digest;
use weft_usage::{Error, Format, Owner, ROW_GROUP_ROWS, Record, RecordExport, Request, TotalExport, Totals};

fn owners(_: &Digest) -> Vec<Owner> {
    let owner =
        |tenant: &str, version| Owner { tenant: tenant.parse().unwrap(), adapter: "pirate".parse().unwrap(), version };
    vec![owner("quay", 1), owner("harbour", 2)]
}

fn records() -> Vec<Record> {
    let Record::Request(base) = request("=cmd|' /C calc'!A0".split(' ').next().unwrap(), NOON_MS, u64::MAX / 2) else {
        unreachable!("it is a request")
    };
    let base = Request { adapter: None, version: None, digest: None, ..base };
    vec![Record::Request(base), residency("r1", NOON_MS), request("c,\"1", NOON_MS, 3)]
}

fn export(format: Format, records: &[Record]) -> Vec<u8> {
    let mut export = RecordExport::new(format, Vec::new()).unwrap();
    records.iter().for_each(|record| export.add(record, owners).unwrap());
    export.finish().unwrap()
}

fn export_totals(totals: &Totals, format: Format) -> Result<Vec<u8>, Error> {
    let mut export = TotalExport::new(format, Vec::new())?;
    totals.iter().try_for_each(|(key, sum)| export.add(key, sum))?;
    export.finish()
}

/// Rows of a Parquet file by column.
fn rows(bytes: Vec<u8>) -> Vec<HashMap<String, Field>> {
    let reader = SerializedFileReader::new(Bytes::from(bytes)).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    rows.map(|row| row.unwrap().into_columns().into_iter().collect()).collect()
}

#[test]
fn records_come_back_from_csv() {
    let bytes = export(Format::Csv, &records());
    let mut reader = csv::Reader::from_reader(&bytes[..]);
    let rows: Vec<HashMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 4);
    let of = |row: usize, column: &str| rows[row][column].as_str();
    assert_eq!((of(0, "kind"), of(0, "id"), of(0, "adapter")), ("request", "'=cmd|'", ""));
    assert_eq!(of(0, "prompt_tokens"), (u64::MAX / 2).to_string());
    assert_eq!((of(3, "id"), of(3, "adapter"), of(3, "version")), ("c,\"1", "org/pirate", "3"));
    assert_eq!((of(3, "ended_ms"), of(3, "outcome"), of(3, "slot_ms")), ("1751371200000", "complete", ""));
    // A residency is split, and the parts add up.
    let part = |row| (of(row, "tenant"), of(row, "version"), of(row, "slot_ms"), of(row, "bytes_moved"));
    assert_eq!(part(1), ("harbour", "2", "30001", "500002"));
    assert_eq!(part(2), ("quay", "1", "30000", "500001"));
}

#[test]
fn records_come_back_from_parquet() {
    let rows = rows(export(Format::Parquet, &records()));
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0]["id"], Field::Str("=cmd|'".to_owned()));
    assert_eq!(rows[0]["adapter"], Field::Null);
    assert_eq!(rows[0]["completion_tokens"], Field::ULong(u64::MAX - 1));
    assert_eq!(rows[1]["slot_ms"], Field::ULong(30_001));
    assert_eq!(rows[1]["tenant"], Field::Str("harbour".to_owned()));
    assert_eq!(rows[2]["slot_ms"], Field::ULong(30_000));
    assert_eq!(rows[3]["ended_ms"], Field::TimestampMillis(NOON_MS as i64));
    assert_eq!(rows[3]["digest"], Field::Str(Digest::of(b"pirate").to_string()));
}

#[test]
fn many_records_are_written_in_groups() {
    let count = 2 * ROW_GROUP_ROWS + 7;
    let mut export = RecordExport::new(Format::Parquet, Vec::new()).unwrap();
    for id in 0..count {
        export.add(&request(&format!("r{id}"), NOON_MS, id as u64), owners).unwrap();
    }
    let bytes = export.finish().unwrap();
    println!("{count} records are {} bytes of parquet", bytes.len());
    let reader = SerializedFileReader::new(Bytes::from(bytes.clone())).unwrap();
    assert_eq!(reader.metadata().num_row_groups(), 3);
    let rows = rows(bytes);
    assert_eq!(rows.len(), count);
    for (id, row) in rows.iter().enumerate() {
        assert_eq!(row["id"], Field::Str(format!("r{id}")));
        assert_eq!(row["prompt_tokens"], Field::ULong(id as u64));
    }
}

#[test]
fn totals_come_back_from_both() {
    let mut totals = Totals::new();
    records().iter().for_each(|record| totals.add(record, owners));
    let bytes = export_totals(&totals, Format::Csv).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "day,tenant,adapter,version,requests,prompt_tokens,completion_tokens,cached_tokens,bytes_moved,slot_ms,memory_ms"
    );
    assert_eq!(lines[1], "2025-07-01,harbour,,,1,9223372036854775807,18446744073709551614,1,0,0,0");
    assert!(lines.contains(&"2025-07-01,harbour,org/pirate,3,1,3,6,1,0,0,0"), "{text}");
    assert!(lines.contains(&"2025-07-01,quay,pirate,1,0,0,0,0,500001,30000,15000"), "{text}");

    let rows = rows(export_totals(&totals, Format::Parquet).unwrap());
    assert_eq!(rows.len(), lines.len() - 1);
    assert_eq!(rows[0]["day"], Field::Date((NOON_MS / 86_400_000) as i32));
    assert_eq!(rows[0]["requests"], Field::ULong(1));

    // Twice as much is more than Parquet's integers hold; CSV has no limit.
    totals.merge(totals.clone());
    let refused = export_totals(&totals, Format::Parquet).unwrap_err();
    assert_eq!(refused.kind(), Kind::TooLarge);
    let text = String::from_utf8(export_totals(&totals, Format::Csv).unwrap()).unwrap();
    assert!(text.contains(",36893488147419103228,"), "{text}");
}

#[test]
fn an_empty_table_has_its_columns() {
    let text = String::from_utf8(export(Format::Csv, &[])).unwrap();
    assert!(text.starts_with("kind,id,tenant,key_id,") && text.lines().count() == 1);
    assert!(rows(export(Format::Parquet, &[])).is_empty());
}

//! Appends, what a kill or a bad disk leaves of them, and limits.

use crate::support::{HOUR_MS, NOON_MS, records, request, residency, small};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_fault::Kind;
use weft_usage::{Error, Log, LogSettings};

/// Files of a log with this ending, in the order of their names.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
    files.sort();
    files
}

#[tokio::test]
async fn what_was_answered_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let appended = [request("a", NOON_MS, 1), residency("b", NOON_MS), request("c", NOON_MS, 2)];
    let log = Log::open(dir.path(), small()).unwrap();
    for record in &appended {
        log.append(record).await.unwrap();
    }
    assert!(log.unshipped().is_empty(), "the open segment is not offered");
    let state = log.state();
    assert_eq!((state.appended, state.oldest_unshipped_ms), (3, Some(NOON_MS)));
    drop(log);
    let log = Log::open(dir.path(), small()).unwrap();
    assert_eq!(records(&log), appended);
    assert_eq!(log.state().unshipped_bytes, state.unshipped_bytes);
    let segment = log.unshipped().remove(0);
    log.forget(&segment).unwrap();
    log.forget(&segment).unwrap();
    assert!(log.unshipped().is_empty());
    assert_eq!(log.state().bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_wait_together_share_an_fsync() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), small()).unwrap());
    let appends = (0..400).map(|id| {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.append(&request(&format!("r{id}"), NOON_MS, 1)).await })
    });
    for append in appends.collect::<Vec<_>>() {
        append.await.unwrap().unwrap();
    }
    let state = log.state();
    assert_eq!(state.appended, 400);
    assert!(state.syncs < 200, "{} fsyncs for 400 appends", state.syncs);
    log.close_segment().await.unwrap();
    assert_eq!(records(&log).len(), 400);
}

#[tokio::test]
async fn a_log_cut_at_every_byte_of_its_last_record_keeps_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    let mut ends = Vec::new();
    for id in ["a", "b", "c"] {
        log.append(&request(id, NOON_MS, 1)).await.unwrap();
        ends.push(log.state().unshipped_bytes);
    }
    drop(log);
    let closed = files(dir.path(), "closed").remove(0);
    let whole = std::fs::read(&closed).unwrap();
    assert_eq!(whole.len() as u64, ends[2]);
    std::fs::remove_file(&closed).unwrap();
    for length in ends[1]..=ends[2] {
        // As a kill leaves it: open, and ending anywhere.
        std::fs::write(closed.with_extension("open"), &whole[..length as usize]).unwrap();
        let log = Log::open(dir.path(), small()).unwrap();
        let is_whole = length == ends[2];
        assert_eq!(records(&log).len(), if is_whole { 3 } else { 2 }, "cut to {length}");
        let torn_bytes = if is_whole { 0 } else { length - ends[1] };
        assert_eq!((log.state().torn_bytes, log.state().damaged_bytes), (torn_bytes, 0), "cut to {length}");
        assert_eq!(std::fs::metadata(&closed).unwrap().len(), if is_whole { ends[2] } else { ends[1] });
        drop(log);
        std::fs::remove_file(&closed).unwrap();
    }
}

#[tokio::test]
async fn a_segment_without_a_whole_record_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}-00000000-{NOON_MS:015}.open", "0a".repeat(16));
    for content in [&b""[..], b"weft", b"weftuse1", b"weftuse1\x10\0\0\0"] {
        std::fs::write(dir.path().join(&name), content).unwrap();
        let log = Log::open(dir.path(), small()).unwrap();
        assert!(log.unshipped().is_empty() && log.state().bytes == 0);
        assert!(files(dir.path(), "open").is_empty());
    }
}

#[tokio::test]
async fn damage_costs_its_record_alone_and_is_kept_for_a_human() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    for ids in [["a", "b", "c"], ["d", "e", "f"]] {
        for id in ids {
            log.append(&request(id, NOON_MS, 1)).await.unwrap();
        }
        log.close_segment().await.unwrap();
    }
    let first = files(dir.path(), "closed").remove(0);
    let mut bytes = std::fs::read(&first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&first, &bytes).unwrap();

    let ids: Vec<String> = records(&log).iter().map(|record| record.id().to_owned()).collect();
    assert_eq!(ids, ["a", "c", "d", "e", "f"]);
    let damaged_bytes = log.state().damaged_bytes;
    assert_eq!(damaged_bytes, (bytes.len() as u64 - 8) / 3);
    // Counted once, however often it is read.
    assert_eq!(records(&log).len(), 5);
    assert_eq!(log.state().damaged_bytes, damaged_bytes);
    log.unshipped().iter().for_each(|segment| log.forget(segment).unwrap());
    assert_eq!(files(dir.path(), "damaged").len(), 1);
    assert_eq!(log.state().bytes, bytes.len() as u64);
    assert_eq!(log.state().unshipped_bytes, 0);
}

#[test]
fn no_files_panic_the_log() {
    use proptest::prelude::*;
    let dir = tempfile::tempdir().unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(128));
    let content = proptest::collection::vec(any::<u8>(), 0..3000);
    runner
        .run(&(content, any::<bool>(), any::<bool>()), |(content, is_open, has_magic)| {
            let ending = if is_open { "open" } else { "closed" };
            let name = format!("{}-00000000-{NOON_MS:015}.{ending}", "0a".repeat(16));
            let content = if has_magic { [b"weftuse1", &content[..]].concat() } else { content };
            std::fs::write(dir.path().join(name), content).unwrap();
            let log = Log::open(dir.path(), small()).unwrap();
            for segment in log.unshipped() {
                log.read(&segment).unwrap();
                log.forget(&segment).unwrap();
            }
            for path in files(dir.path(), "damaged") {
                std::fs::remove_file(path).unwrap();
            }
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_directory_has_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    let second = Log::open(dir.path(), small()).unwrap_err();
    assert!(matches!(second, Error::DirectoryTaken { .. }), "{second}");
    assert_eq!(second.kind(), Kind::Unavailable);
    drop(log);
    Log::open(dir.path(), small()).unwrap();
}

#[tokio::test]
async fn a_segment_holds_its_hour_and_the_two_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    let ended = [NOON_MS, NOON_MS - 1, NOON_MS + 2 * HOUR_MS - 1, NOON_MS + 2 * HOUR_MS, NOON_MS - HOUR_MS - 1];
    for (id, ended_ms) in ended.into_iter().enumerate() {
        log.append(&request(&format!("r{id}"), ended_ms, 1)).await.unwrap();
    }
    log.close_segment().await.unwrap();
    let segments = log.unshipped();
    assert_eq!(segments.iter().map(|segment| log.read(segment).unwrap().len()).collect::<Vec<_>>(), [3, 1, 1]);
    for segment in segments {
        for line in log.read(&segment).unwrap() {
            assert!(weft_usage::Record::from_json(&line).unwrap().hour().is_near(segment.hour()));
        }
    }
}

#[tokio::test]
async fn segments_and_the_whole_log_have_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings { bytes_max: 256 << 10, ..small() };
    let log = Log::open(dir.path(), settings.clone()).unwrap();
    let mut was_told = false;
    let mut appended = 0;
    let refused = loop {
        match log.append(&request(&format!("r{appended}"), NOON_MS, 1)).await {
            Ok(()) => appended += 1,
            Err(error) => break error,
        }
        was_told |= log.state().is_nearly_full;
    };
    assert!(was_told, "it is told before it is full");
    assert!(matches!(refused, Error::NoRoom { bytes_max, .. } if bytes_max == settings.bytes_max), "{refused}");
    assert_eq!(refused.kind(), Kind::Unavailable);
    log.close_segment().await.unwrap();
    let bytes: Vec<u64> =
        files(dir.path(), "closed").iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
    assert!(bytes.iter().all(|bytes| *bytes <= settings.segment_bytes_max), "{bytes:?}");
    assert!(bytes.iter().sum::<u64>() <= settings.bytes_max);
    assert_eq!(records(&log).len(), appended);
    // What was shipped makes room.
    log.forget(&log.unshipped()[0]).unwrap();
    log.append(&request("more", NOON_MS, 1)).await.unwrap();
}

#[tokio::test]
async fn a_segment_that_cannot_be_begun_costs_its_record_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let (at, away) = (dir.path().join("log"), dir.path().join("away"));
    let log = Log::open(&at, small()).unwrap();
    log.append(&request("a", NOON_MS, 1)).await.unwrap();
    log.close_segment().await.unwrap();
    std::fs::rename(&at, &away).unwrap();
    for _ in 0..2 {
        let refused = log.append(&request("b", NOON_MS, 1)).await.unwrap_err();
        assert!(matches!(refused, Error::Io { operation: "create", .. }), "{refused}");
    }
    assert_eq!(log.state().poisoned, None);
    std::fs::rename(&away, &at).unwrap();
    // A try that failed later than these has left a file.
    let left = format!("{}-00000001-{NOON_MS:015}.open", log.unshipped()[0].writer());
    std::fs::write(at.join(left), "").unwrap();
    log.append(&request("c", NOON_MS, 1)).await.unwrap();
    drop(log);
    let log = Log::open(&at, small()).unwrap();
    assert_eq!(records(&log), [request("a", NOON_MS, 1), request("c", NOON_MS, 1)]);
    assert!(files(&at, "open").is_empty());
}

#[tokio::test]
async fn a_queue_that_is_full_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), LogSettings { waiting_max: 1, ..small() }).unwrap();
    let records: Vec<_> = (0..64).map(|id| request(&format!("r{id}"), NOON_MS, 1)).collect();
    // All are polled before any fsync can end.
    let outcomes = futures::future::join_all(records.iter().map(|record| log.append(record))).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|error| error.kind() == Kind::Overloaded), "{refused:?}");
    log.close_segment().await.unwrap();
    assert_eq!(crate::support::records(&log).len(), 64 - refused.len());
}

#[tokio::test]
async fn a_record_beyond_a_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small()).unwrap();
    let refused = log.append(&request("", NOON_MS, 1)).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
    let wrong = LogSettings { bytes_max: 1, ..small() };
    let refused = Log::open(dir.path(), wrong).unwrap_err().to_string();
    assert_eq!(refused, "usage setting bytes_max is 1, not within at least 4 times segment_bytes_max");
}

//! How many appends a second the disk allows, beside its own rate of fsync.

use crate::support::{NOON_MS, request};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_usage::{Log, LogSettings};

const RUN: Duration = Duration::from_secs(2);

/// Where the disk is that is measured; default: the system's folder for temporary files.
fn folder() -> tempfile::TempDir {
    let parent = std::env::var_os("WEFT_USAGE_RATE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(parent).unwrap()
}

/// Fsyncs a second of one file that grows by a record each time.
fn disk_rate() -> f64 {
    let dir = folder();
    let mut file = std::fs::File::options().append(true).create_new(true).open(dir.path().join("file")).unwrap();
    let record = request("chatcmpl-0123456789abcdef0123456789abcdef", NOON_MS, 1).to_json().unwrap();
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < RUN {
        file.write_all(&record).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; run with --ignored --nocapture"]
async fn appends_a_second() {
    for appenders in [1, 16, 256] {
        // Each time anew: others use the disk as well.
        let disk = tokio::task::spawn_blocking(disk_rate).await.unwrap();
        println!("the disk: {disk:.0} fsyncs/s");
        let dir = folder();
        let log = Arc::new(Log::open(dir.path(), LogSettings::default()).unwrap());
        let next = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let tasks: Vec<_> = (0..appenders)
            .map(|_| {
                let (log, next) = (Arc::clone(&log), Arc::clone(&next));
                tokio::spawn(async move {
                    let mut waited = Vec::new();
                    while start.elapsed() < RUN {
                        let id = format!("chatcmpl-{:032x}", next.fetch_add(1, Ordering::Relaxed));
                        let began = Instant::now();
                        log.append(&request(&id, NOON_MS, 1)).await.unwrap();
                        waited.push(began.elapsed());
                    }
                    waited
                })
            })
            .collect();
        let mut waited = Vec::new();
        for task in tasks {
            waited.extend(task.await.unwrap());
        }
        let elapsed = start.elapsed().as_secs_f64();
        waited.sort();
        let state = log.state();
        println!(
            "{appenders} appenders: {:.0} appends/s, {:.0} fsyncs/s, {:.1} appends an fsync, median {:?}, 99th percentile {:?}",
            state.appended as f64 / elapsed,
            state.syncs as f64 / elapsed,
            state.appended as f64 / state.syncs as f64,
            waited[waited.len() / 2],
            waited[waited.len() / 100 * 99],
        );
    }
}

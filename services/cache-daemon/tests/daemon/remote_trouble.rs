//! The object store as it is on bad days: it breaks off, throttles, fails, falls silent, is slow, sends wrong bytes.

use crate::s3_proxy::Trouble;
use crate::support::{Daemon, Remote, blob, files, settings};
use std::path::Path;
use weft_cache_daemon::Settings;
use weft_fault::Kind;
use weft_types::Digest;

const RANGE: u64 = 256 << 10;

/// Blobs of the tests have four ranges and a bit.
fn ranged(dir: &Path) -> Settings {
    Settings { fetch_range_bytes: RANGE, fetch_ranges_max: 2, ..settings(dir, 1 << 30) }
}

const BLOB_BYTES: usize = (4 << 18) + 1000;

fn whole(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    sorted
}

fn all_ranges() -> Vec<(u64, u64)> {
    // The first may be longer than what there is, the others are cut to it.
    let mut ranges: Vec<_> = (0..4).map(|n| (n * RANGE, (n + 1) * RANGE - 1)).collect();
    ranges.push((4 * RANGE, BLOB_BYTES as u64 - 1));
    ranges
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_comes_in_ranges_and_a_small_one_in_one_request() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(ranged(dir.path()), &remote).await;
    let large = remote.put(&blob(1, BLOB_BYTES)).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&large).await;
    assert_eq!(whole(&proxy.ranges()), all_ranges());
    let small = remote.put(&blob(2, 1000)).await;
    let empty = remote.put(&[]).await;
    holder.use_once(&small).await;
    holder.use_once(&empty).await;
    assert_eq!(proxy.ranges()[5..], [(0, RANGE - 1), (0, RANGE - 1)]);
    assert_eq!(daemon.count("cache_daemon_fetched_bytes_total", &["remote"]), (BLOB_BYTES + 1000) as f64);
    assert_eq!(daemon.count("cache_daemon_fetches_total", &["remote", "done"]), 3.0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_breaks_goes_on_at_its_byte() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    // More breaks than tries: they are counted only in a row without progress.
    let daemon = Daemon::start(Settings { fetch_attempts_max: 2, ..ranged(dir.path()) }, &remote).await;
    let digest = remote.put(&blob(1, BLOB_BYTES)).await;
    proxy.next(&[Trouble::Cut { after: 40_000 }; 6]);
    daemon.holder("worker").await.use_once(&digest).await;
    let ranges = proxy.ranges();
    assert_eq!(ranges.len(), 5 + 6, "{ranges:?}");
    let resumed: Vec<_> = ranges.iter().filter(|(first, _)| first % RANGE != 0).collect();
    assert_eq!(resumed.len(), 6, "{ranges:?}");
    assert!(resumed.iter().all(|(first, _)| (first % RANGE).is_multiple_of(40_000)), "{ranges:?}");
    assert_eq!(daemon.count("cache_daemon_fetch_resumes_total", &[]), 6.0);
    assert_eq!(daemon.count("cache_daemon_fetch_failures_total", &["remote", "unavailable"]), 6.0);
    assert_eq!(daemon.count("cache_daemon_fetched_bytes_total", &["remote"]), BLOB_BYTES as f64, "no byte came twice");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_and_a_storm_of_errors_are_waited_out() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(ranged(dir.path()), &remote).await;
    let digest = remote.put(&blob(1, 1000)).await;
    proxy.next(&[
        Trouble::Refuse { status: 503, code: "SlowDown" },
        Trouble::Refuse { status: 500, code: "InternalError" },
        Trouble::Refuse { status: 503, code: "ServiceUnavailable" },
        Trouble::Refuse { status: 429, code: "TooManyRequests" },
        Trouble::Refuse { status: 503, code: "SlowDown" },
    ]);
    daemon.holder("worker").await.use_once(&digest).await;
    assert_eq!(proxy.ranges().len(), 6);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_that_does_not_end_is_unavailable_and_what_is_near_is_served() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(Settings { fetch_attempts_max: 2, ..ranged(dir.path()) }, &remote).await;
    let near = remote.put(&blob(1, 1000)).await;
    let far = remote.put(&blob(2, 1000)).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&near).await;
    proxy.always(Some(Trouble::Refuse { status: 503, code: "SlowDown" }));
    let refused = holder.refusal(&far).await;
    assert_eq!(refused.kind, Kind::Unavailable.as_str());
    assert!(refused.message.contains("SlowDown"), "{}", refused.message);
    holder.use_once(&near).await;
    assert_eq!(daemon.count("cache_daemon_fetch_failures_total", &["remote", "unavailable"]), 2.0);
    assert_eq!(daemon.count("cache_daemon_fetches_total", &["remote", "unavailable"]), 1.0);
    proxy.always(None);
    holder.use_once(&far).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_falls_silent_is_given_up_and_goes_on_at_its_byte() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(Settings { fetch_stall_timeout_ms: 2_000, ..ranged(dir.path()) }, &remote).await;
    let digest = remote.put(&blob(1, BLOB_BYTES)).await;
    proxy.next(&[Trouble::Silence { after: 70_000 }]);
    daemon.holder("worker").await.use_once(&digest).await;
    assert!(proxy.ranges().contains(&(70_000, RANGE - 1)), "{:?}", proxy.ranges());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_gets_on_too_slowly_ends_at_its_deadline_and_leaves_nothing() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(Settings { fetch_timeout_ms: 300, ..ranged(dir.path()) }, &remote).await;
    let digest = remote.put(&blob(1, BLOB_BYTES)).await;
    proxy.always(Some(Trouble::Trickle { bytes: 100, pause_ms: 20 }));
    let refused = daemon.holder("worker").await.refusal(&digest).await;
    assert_eq!(refused.kind, Kind::Timeout.as_str());
    assert!(refused.message.contains("fetch_timeout_ms"), "{}", refused.message);
    assert_eq!(daemon.list().await.disk_bytes_used, 0);
    daemon.until("the half-written file is gone", |_| files(&dir.path().join("temp")).is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_on_the_way_are_fetched_again_and_wrong_ones_for_good_are_refused_and_not_kept() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(ranged(dir.path()), &remote).await;
    let digest = remote.put(&blob(1, BLOB_BYTES)).await;
    let mut holder = daemon.holder("worker").await;
    proxy.next(&[Trouble::Flip { at: 5 }]);
    holder.use_once(&digest).await;
    assert_eq!(daemon.metric("cache_daemon_corrupt_total", "remote"), 1.0);

    let other = remote.put(&blob(2, BLOB_BYTES)).await;
    proxy.always(Some(Trouble::Flip { at: 999 }));
    assert_eq!(holder.refusal(&other).await.kind, Kind::Corrupt.as_str());
    assert_eq!(daemon.metric("cache_daemon_corrupt_total", "remote"), 3.0);
    assert_eq!(daemon.count("cache_daemon_fetches_total", &["remote", "corrupt"]), 3.0);
    assert_eq!(daemon.list().await.adapters.len(), 1);
    assert!(files(&dir.path().join("temp")).is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_changed_while_it_is_read_is_read_anew_never_mixed() {
    let (remote, proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    let one_by_one = Settings { fetch_ranges_max: 1, ..ranged(dir.path()) };
    let daemon = Daemon::start(one_by_one, &remote).await;
    let right = blob(1, BLOB_BYTES);
    let digest = Digest::of(&right);
    remote.put_as(&digest, &blob(2, BLOB_BYTES)).await;
    proxy.next(&[Trouble::Trickle { bytes: 1 << 20, pause_ms: 0 }, Trouble::Hold]);
    let mut holder = daemon.holder("worker").await;
    holder.acquire(&digest).await;
    daemon.until("the second range is asked for", |_| proxy.ranges().len() == 2).await;
    remote.put_as(&digest, &right).await;
    proxy.open();
    assert_eq!(std::fs::read(holder.granted().await.path).unwrap(), right);
    assert_eq!(proxy.ranges().len(), 2 + 5);
    assert_eq!(daemon.metric("cache_daemon_corrupt_total", "remote"), 0.0, "it was noticed by its ETag");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_takes_no_bandwidth_from_a_lease_and_becomes_one_when_it_is_asked_for() {
    let (remote, _proxy) = Remote::behind_proxy().await;
    let dir = tempfile::tempdir().unwrap();
    // The bucket holds 100 ms: 64 KiB. The blobs need 4 s each at this rate.
    let rate = 256 << 10;
    let daemon = Daemon::start(Settings { fetch_bytes_per_second_max: rate, ..ranged(dir.path()) }, &remote).await;
    let hinted = remote.put(&blob(1, BLOB_BYTES)).await;
    let wanted = remote.put(&blob(2, BLOB_BYTES)).await;
    assert_eq!(daemon.prefetch(&[hinted]).await.started, 1);
    let mut holder = daemon.holder("worker").await;
    holder.lease(&wanted).await;
    assert!(!daemon.list().await.adapters.iter().any(|row| row.digest[..] == hinted.as_bytes()[..]), "it came first");
    holder.lease(&hinted).await;
    daemon.stop().await;
}

//! An object store that lacks the blob, has wrong bytes under its name, or is away.

use crate::support::{Daemon, Remote, blob, files, settings};
use std::sync::atomic::Ordering;
use weft_cache_daemon::Settings;
use weft_fault::Kind;
use weft_types::Digest;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_blob_is_not_found_until_it_is_there() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = blob(1, 1000);
    let digest = Digest::of(&bytes);
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let refused = holder.refusal(&digest).await;
    assert_eq!(refused.kind, Kind::NotFound.as_str());
    assert!(refused.message.contains(&digest.to_string()), "{}", refused.message);
    assert_eq!(remote.store.gets(&digest), 1, "not found is not tried again");
    remote.put(&bytes).await;
    holder.use_once(&digest).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_refused_not_cached_and_not_fetched_over_and_over() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let right = blob(1, 300_000);
    let digest = Digest::of(&right);
    let mut wrong = right.clone();
    wrong[299_999] ^= 1;
    remote.put_as(&digest, &wrong).await;
    let cut = Digest::of(&blob(2, 1000));
    remote.put_as(&cut, &blob(2, 999)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut holder = daemon.holder("worker").await;
    for digest in [&digest, &cut] {
        for _ in 0..5 {
            assert_eq!(holder.refusal(digest).await.kind, Kind::Corrupt.as_str());
        }
        assert_eq!(remote.store.gets(digest), 2, "a second try tells a bad line from a bad blob");
    }
    let listing = daemon.list().await;
    assert_eq!((listing.disk_bytes_used, listing.adapters.len()), (0, 0));
    assert!(files(&dir.path().join("blobs")).is_empty() && files(&dir.path().join("temp")).is_empty());
    assert_eq!(daemon.metric("cache_daemon_corrupt_total", "remote"), 4.0);
    // Others are served as ever.
    let fine = remote.put(&blob(3, 1000)).await;
    holder.use_once(&fine).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passing_failure_is_tried_again() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    remote.store.failures.store(2, Ordering::SeqCst);
    daemon.holder("worker").await.use_once(&digest).await;
    assert_eq!(remote.store.gets(&digest), 3);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_stays_away_is_given_up_and_what_is_near_is_still_served() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let near = remote.put(&blob(1, 1000)).await;
    let far = remote.put(&blob(2, 1000)).await;
    let daemon = Daemon::start(Settings { fetch_attempts_max: 3, ..settings(dir.path(), 1 << 20) }, &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&near).await;
    remote.store.failures.store(usize::MAX, Ordering::SeqCst);
    let refused = holder.refusal(&far).await;
    assert_eq!((refused.kind.as_str(), remote.store.gets(&far)), (Kind::Unavailable.as_str(), 3));
    assert!(refused.message.contains("away"), "{}", refused.message);
    holder.use_once(&near).await;
    remote.store.failures.store(0, Ordering::SeqCst);
    holder.use_once(&far).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_says_nothing_is_a_timeout() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let hasty = Settings { fetch_stall_timeout_ms: 50, fetch_attempts_max: 2, ..settings(dir.path(), 1 << 20) };
    let daemon = Daemon::start(hasty, &remote).await;
    remote.store.close();
    let mut holder = daemon.holder("worker").await;
    let refused = holder.refusal(&digest).await;
    assert_eq!((refused.kind.as_str(), remote.store.gets(&digest)), (Kind::Timeout.as_str(), 2));
    assert!(refused.message.contains("fetch_stall_timeout_ms"), "{}", refused.message);
    assert_eq!(daemon.list().await.disk_bytes_used, 0);
    daemon.stop().await;
}

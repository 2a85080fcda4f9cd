//! The disk budget: what goes, what stays, and what is said when nothing may go.

use crate::support::{Daemon, Remote, blob, files, leases, path_in, settings};
use std::collections::HashSet;
use weft_cache_daemon::Settings;
use weft_fault::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicts_the_least_valuable_idle_file_and_stays_within_the_budget() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let often = remote.put(&blob(1, 1000)).await;
    let first = remote.put(&blob(2, 1000)).await;
    let second = remote.put(&blob(3, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 3000), &remote).await;
    let mut holder = daemon.holder("worker").await;
    for digest in [&often, &often, &first, &second] {
        holder.use_once(digest).await;
    }
    let here = |digest| path_in(dir.path(), digest).exists();
    for (seed, expected) in [(10, [true, false, true]), (11, [true, false, false])] {
        let fresh = remote.put(&blob(seed, 1000)).await;
        let granted = holder.lease(&fresh).await;
        assert_eq!([here(&often), here(&first), here(&second)], expected);
        assert!(std::path::Path::new(&granted.path).exists());
        assert_eq!(daemon.list().await.disk_bytes_used, 3000);
    }
    assert_eq!(daemon.metric("cache_daemon_evictions_total", "disk"), 2.0);
    daemon.until("evicted files are deleted", |_| files(&dir.path().join("temp")).is_empty()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_goes_before_small_ones_of_equal_use() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(settings(dir.path(), 10_000), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let mut small = Vec::new();
    for seed in 0..5 {
        let digest = remote.put(&blob(seed, 1000)).await;
        holder.use_once(&digest).await;
        small.push(digest);
    }
    let large = remote.put(&blob(8, 5000)).await;
    holder.use_once(&large).await;
    let fresh = remote.put(&blob(9, 3000)).await;
    holder.use_once(&fresh).await;
    assert!(small.iter().all(|digest| path_in(dir.path(), digest).exists()));
    assert!(!path_in(dir.path(), &large).exists());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leased_files_are_never_evicted_and_refusals_say_why() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let held = remote.put(&blob(1, 1500)).await;
    let wanted = remote.put(&blob(2, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 2000), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let lease = holder.lease(&held).await;
    let refused = holder.refusal(&wanted).await;
    assert_eq!(refused.kind, Kind::Overloaded.as_str());
    for part in ["1000", "1500", "2000", "disk_bytes_max"] {
        assert!(refused.message.contains(part), "{part} in {}", refused.message);
    }
    assert!(std::path::Path::new(&lease.path).exists());
    assert_eq!(daemon.list().await.disk_bytes_used, 1500, "the refused fetch booked nothing");
    holder.release(lease.lease_id).await;
    holder.use_once(&wanted).await;
    assert!(!path_in(dir.path(), &held).exists());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquire_waits_for_a_lease_to_end() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let held = remote.put(&blob(1, 1500)).await;
    let wanted = remote.put(&blob(2, 1000)).await;
    let patient = Settings { room_wait_ms: 60_000, ..settings(dir.path(), 2000) };
    let daemon = Daemon::start(patient, &remote).await;
    let mut first = daemon.holder("first").await;
    first.lease(&held).await;
    let mut second = daemon.holder("second").await;
    second.acquire(&wanted).await;
    daemon.until("the fetch found no room", |_| daemon.metric("cache_daemon_fetches_total", "overloaded") >= 1.0).await;
    assert!(path_in(dir.path(), &held).exists());
    drop(first);
    second.granted().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_larger_than_the_budget_is_refused_with_both_numbers() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let huge = remote.put(&blob(1, 2001)).await;
    let small = remote.put(&blob(2, 2000)).await;
    let daemon = Daemon::start(settings(dir.path(), 2000), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&small).await;
    let refused = holder.refusal(&huge).await;
    assert_eq!(refused.kind, Kind::TooLarge.as_str());
    assert!(refused.message.contains("2001") && refused.message.contains("2000"), "{}", refused.message);
    assert!(path_in(dir.path(), &small).exists(), "nothing is evicted for what never fits");
    daemon.stop().await;
}

/// A small pseudo-random history over the gRPC face: never over budget, and what is leased is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_keeps_the_budget_and_every_lease() {
    const BUDGET: u64 = 20_000;
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for seed in 0..16u64 {
        digests.push(remote.put(&blob(seed, 500 + 400 * seed as usize)).await);
    }
    let daemon = Daemon::start(settings(dir.path(), BUDGET), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let mut held: Vec<(u64, String)> = Vec::new();
    let choices = blob(42, 600);
    let mut grants = 0;
    for choice in choices.chunks(2) {
        if choice[0] % 3 == 0 && !held.is_empty() {
            let (id, _) = held.remove(usize::from(choice[1]) % held.len());
            holder.release(id).await;
        } else {
            holder.acquire(&digests[usize::from(choice[1]) % digests.len()]).await;
            match holder.next().await.unwrap().unwrap() {
                weft_proto::cache::v1::lease_response::Response::Granted(granted) => {
                    grants += 1;
                    held.push((granted.lease_id, granted.path));
                }
                weft_proto::cache::v1::lease_response::Response::Refused(refused) => {
                    assert_eq!(refused.kind, Kind::Overloaded.as_str(), "{}", refused.message);
                }
            }
        }
        if held.len() > 6 {
            let (id, _) = held.remove(0);
            holder.release(id).await;
        }
        let listing = daemon.list().await;
        assert!(listing.disk_bytes_used <= BUDGET, "{} bytes", listing.disk_bytes_used);
        assert!(held.iter().all(|(_, path)| std::path::Path::new(path).exists()));
    }
    assert!(grants > 100, "{grants} grants");
    let paths: HashSet<&String> = held.iter().map(|(_, path)| path).collect();
    daemon.until("releases are booked", |listing| leases(listing) as usize == held.len()).await;
    assert!(paths.len() <= held.len());
    daemon.stop().await;
}

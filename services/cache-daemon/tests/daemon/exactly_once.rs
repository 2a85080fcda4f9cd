//! However many ask, bytes come near once, whole and verified.

use crate::support::{Daemon, Remote, blob, files, leases, settings};
use std::os::unix::fs::PermissionsExt;
use weft_proto::cache::v1::Tier;
use weft_types::Digest;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_concurrent_leases_of_one_digest_fetch_once() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = blob(1, 3 << 20);
    let digest = remote.put(&bytes).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 30), &remote).await;
    remote.store.close();

    let mut holders = Vec::new();
    for number in 0..8 {
        let mut holder = daemon.holder(&format!("holder-{number}")).await;
        for _ in 0..8 {
            holder.acquire(&digest).await;
        }
        holders.push(holder);
    }
    daemon.until("the fetch began", |_| remote.store.gets(&digest) == 1).await;
    remote.store.open();
    for holder in &mut holders {
        for _ in 0..8 {
            let granted = holder.granted().await;
            assert_eq!((granted.bytes, granted.tier()), (bytes.len() as u64, Tier::Remote));
            let metadata = std::fs::metadata(&granted.path).unwrap();
            assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o444, bytes.len() as u64));
        }
    }
    assert_eq!(remote.store.gets(&digest), 1);
    assert_eq!(std::fs::read(holders[0].lease(&digest).await.path).unwrap(), bytes);
    assert_eq!(leases(&daemon.list().await), 65);
    assert_eq!(daemon.metric("cache_daemon_leases_total", "remote"), 64.0);
    drop(holders);
    daemon.until("all leases ended", |listing| leases(listing) == 0).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_digests_come_side_by_side_and_answers_match_by_lease_id() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for seed in 0..24 {
        digests.push(remote.put(&blob(seed, 10_000 + seed as usize)).await);
    }
    let daemon = Daemon::start(settings(dir.path(), 1 << 30), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let mut asked = std::collections::HashMap::new();
    for digest in &digests {
        asked.insert(holder.acquire(digest).await, *digest);
    }
    while !asked.is_empty() {
        let granted = holder.granted().await;
        let digest = asked.remove(&granted.lease_id).expect("answered once");
        assert_eq!(Digest::of(&std::fs::read(&granted.path).unwrap()), digest);
    }
    assert!(digests.iter().all(|digest| remote.store.gets(digest) == 1));
    let listing = daemon.list().await;
    let total: u64 = (0..24).map(|seed| 10_000 + seed).sum();
    assert_eq!((listing.adapters.len(), listing.disk_bytes_used), (24, total));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_lease_comes_from_disk_and_an_empty_blob_is_a_blob() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(b"").await;
    let daemon = Daemon::start(settings(dir.path(), 100), &remote).await;
    let mut holder = daemon.holder("worker").await;
    assert_eq!(holder.lease(&digest).await.tier(), Tier::Remote);
    assert_eq!(holder.lease(&digest).await.tier(), Tier::Disk);
    assert_eq!(remote.store.gets(&digest), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_nobody_waits_for_any_more_ends_and_leaves_nothing() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 50_000)).await;
    let daemon = Daemon::start(settings(dir.path(), 100_000), &remote).await;
    remote.store.close();
    let mut gone = daemon.holder("gone").await;
    gone.acquire(&digest).await;
    let mut cancelled = daemon.holder("cancelled").await;
    let id = cancelled.acquire(&digest).await;
    daemon.until("the fetch began", |_| remote.store.gets(&digest) == 1).await;
    drop(gone);
    cancelled.release(id).await;
    daemon.until("room is free", |listing| listing.disk_bytes_used == 0).await;
    remote.store.open();

    let granted = cancelled.use_once(&digest).await;
    assert_eq!(granted.tier(), Tier::Remote);
    assert_eq!(files(&dir.path().join("temp")), Vec::<std::path::PathBuf>::new());
    daemon.stop().await;
}

//! Bytes brought near before anybody asks.

use crate::support::{Daemon, Remote, blob, leases, settings};
use weft_cache_daemon::Settings;
use weft_proto::cache::v1::Tier;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_returns_at_once_and_brings_every_digest_once() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for seed in 0..6 {
        digests.push(remote.put(&blob(seed, 1000)).await);
    }
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    daemon.holder("worker").await.use_once(&digests[0]).await;
    remote.store.close();
    // It answers although the store does not.
    let twice = [&digests[..], &digests[..]].concat();
    let answer = daemon.prefetch(&twice).await;
    assert_eq!((answer.started, answer.present), (5, 7));
    let mut holder = daemon.holder("worker").await;
    holder.acquire(&digests[1]).await;
    remote.store.open();
    assert_eq!(holder.granted().await.tier(), Tier::Remote, "it joined the prefetch");
    daemon.until("all are here", |listing| listing.adapters.len() == 6).await;
    assert!(digests.iter().all(|digest| remote.store.gets(digest) == 1));
    assert_eq!(holder.lease(&digests[5]).await.tier(), Tier::Disk);
    drop(holder);
    daemon.until("nobody holds them", |listing| leases(listing) == 0).await;
    let answer = daemon.prefetch(&digests).await;
    assert_eq!((answer.started, answer.present), (0, 6));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_takes_no_more_and_a_lease_overtakes_it() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for seed in 0..10 {
        digests.push(remote.put(&blob(seed, 1000)).await);
    }
    let narrow = Settings { prefetch_queue_max: 3, prefetches_max: 1, ..settings(dir.path(), 1 << 20) };
    let daemon = Daemon::start(narrow, &remote).await;
    remote.store.close();
    assert_eq!(daemon.prefetch(&digests[..1]).await.started, 1);
    daemon.until("the first is under way", |_| remote.store.gets(&digests[0]) == 1).await;
    let answer = daemon.prefetch(&digests).await;
    assert_eq!((answer.started, answer.present), (3, 1));
    let mut holder = daemon.holder("worker").await;
    holder.acquire(&digests[9]).await;
    daemon.until("the lease is under way", |_| remote.store.gets(&digests[9]) == 1).await;
    assert_eq!(remote.store.gets(&digests[1]), 0, "what is queued waits");
    remote.store.open();
    holder.granted().await;
    daemon.until("the queue is done", |listing| listing.adapters.len() == 5).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_that_fails_hurts_nobody() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let missing = weft_types::Digest::of(b"missing");
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    assert_eq!(daemon.prefetch(&[missing]).await.started, 1);
    daemon.until("it failed", |_| daemon.metric("cache_daemon_prefetches_total", "failed") == 1.0).await;
    assert_eq!(daemon.prefetch(&[missing]).await.started, 1, "it may be asked for again");
    daemon.stop().await;
}

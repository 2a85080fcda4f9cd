//! What a daemon finds when it starts: whole files, half-written ones, rotten ones, foreign ones, and holders.

use crate::support::{Daemon, Remote, blob, files, path_in, settings};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use weft_cache_daemon::{App, Settings};
use weft_fault::Kind;
use weft_proto::cache::v1::Tier;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_survive_a_restart_without_a_fetch() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 100_000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    daemon.holder("worker").await.use_once(&digest).await;
    daemon.stop().await;

    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    assert_eq!(daemon.list().await.disk_bytes_used, 100_000);
    let granted = daemon.holder("worker").await.use_once(&digest).await;
    assert_eq!((granted.tier(), remote.store.gets(&digest)), (Tier::Disk, 1));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_written_files_go_and_foreign_ones_stay() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    Daemon::start(settings(dir.path(), 1 << 20), &remote).await.stop().await;
    let half = dir.path().join("temp/2f0c");
    std::fs::write(&half, b"half").unwrap();
    let foreign = dir.path().join("blobs/sha256/README");
    std::fs::write(&foreign, b"keep me").unwrap();

    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    assert!(!half.exists() && foreign.exists());
    assert_eq!(daemon.list().await.disk_bytes_used, 0);
    daemon.holder("worker").await.use_once(&digest).await;
    daemon.stop().await;
}

/// Changes one bit of a file that is mode 0444, keeping its length and times.
fn flip_a_bit(path: &std::path::Path) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_flipped_while_the_daemon_was_away_is_found_before_the_first_lease() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 2 << 20)).await;
    let daemon = Daemon::start(settings(dir.path(), 4 << 20), &remote).await;
    daemon.holder("worker").await.use_once(&digest).await;
    daemon.stop().await;
    flip_a_bit(&path_in(dir.path(), &digest));

    let daemon = Daemon::start(settings(dir.path(), 4 << 20), &remote).await;
    let mut holders = Vec::new();
    for _ in 0..8 {
        let mut holder = daemon.holder("worker").await;
        holder.acquire_as(&digest, true).await;
        holders.push(holder);
    }
    for holder in &mut holders {
        let granted = holder.granted().await;
        assert_eq!(weft_types::Digest::of(&std::fs::read(&granted.path).unwrap()), digest);
        assert_eq!(granted.tier(), Tier::Remote);
    }
    assert_eq!(remote.store.gets(&digest), 2, "once before and once after the restart");
    assert_eq!(daemon.metric("cache_daemon_corrupt_total", "disk"), 1.0);
    assert_eq!(daemon.list().await.disk_bytes_used, 2 << 20);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shortened_file_is_found_too() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 5000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    daemon.holder("worker").await.use_once(&digest).await;
    daemon.stop().await;
    let path = path_in(dir.path(), &digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(4999).unwrap();

    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    daemon.holder("worker").await.use_once(&digest).await;
    assert_eq!((remote.store.gets(&digest), daemon.list().await.disk_bytes_used), (2, 5000));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_deleted_or_replaced_by_somebody_else_is_fetched_again() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = blob(1, 5000);
    let digest = remote.put(&bytes).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let first = holder.lease(&digest).await;
    std::fs::remove_file(&first.path).unwrap();
    holder.use_once(&digest).await;
    assert_eq!(remote.store.gets(&digest), 2);
    assert_eq!(daemon.list().await.disk_bytes_used, 10_000, "the first lease still holds the unlinked file");
    holder.release(first.lease_id).await;
    daemon.until("the unlinked bytes are free", |listing| listing.disk_bytes_used == 5000).await;

    let path = path_in(dir.path(), &digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, blob(2, 5000)).unwrap();
    holder.use_once(&digest).await;
    assert_eq!(remote.store.gets(&digest), 3);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_evicted_in_the_grace_after_a_restart() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let held = remote.put(&blob(1, 1000)).await;
    let idle = remote.put(&blob(2, 1000)).await;
    let wanted = remote.put(&blob(3, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 2000), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&held).await;
    holder.use_once(&idle).await;
    daemon.stop().await;

    let hour = Settings { grace_after_restart_ms: 3_600_000, ..settings(dir.path(), 2000) };
    let daemon = Daemon::start(hour, &remote).await;
    let mut late = daemon.holder("late").await;
    let refused = late.refusal(&wanted).await;
    assert_eq!(refused.kind, Kind::Overloaded.as_str());
    assert!(path_in(dir.path(), &held).exists() && path_in(dir.path(), &idle).exists());
    daemon.stop().await;

    // With a short grace: a fetch waits for its end, and then only what nobody re-asserted goes.
    let short = Settings { grace_after_restart_ms: 300, room_wait_ms: 60_000, ..settings(dir.path(), 2000) };
    let daemon = Daemon::start(short, &remote).await;
    let mut back = daemon.holder("back").await;
    back.acquire_as(&held, true).await;
    assert_eq!(back.granted().await.tier(), Tier::Disk);
    let mut late = daemon.holder("late").await;
    assert_eq!(late.lease(&wanted).await.tier(), Tier::Remote);
    assert!(path_in(dir.path(), &held).exists() && !path_in(dir.path(), &idle).exists());
    assert_eq!(remote.store.gets(&held), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_budget_after_a_restart_is_met_with_the_next_fetch() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(settings(dir.path(), 10_000), &remote).await;
    let mut holder = daemon.holder("worker").await;
    for seed in 0..10 {
        let digest = remote.put(&blob(seed, 1000)).await;
        holder.use_once(&digest).await;
    }
    daemon.stop().await;

    let daemon = Daemon::start(settings(dir.path(), 3000), &remote).await;
    let digest = remote.put(&blob(99, 1000)).await;
    daemon.holder("worker").await.use_once(&digest).await;
    let listing = daemon.list().await;
    assert_eq!((listing.disk_bytes_used, listing.adapters.len()), (3000, 3));
    daemon.stop().await;
    assert_eq!(files(&dir.path().join("blobs")).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_owns_the_folder() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(settings(dir.path(), 1000), &remote).await;
    let store = Arc::clone(&remote.store);
    let second = App::build(settings(dir.path(), 1000), store, &prometheus::Registry::new());
    let Err(error) = second else { panic!("two daemons own one folder") };
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    daemon.stop().await;
    Daemon::start(settings(dir.path(), 1000), &remote).await.stop().await;
}

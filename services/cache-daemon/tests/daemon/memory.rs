//! The memory tier: copies on a tmpfs under a budget of their own.

use crate::support::{Daemon, Remote, blob, path_in, settings};
use std::path::Path;
use weft_cache_daemon::{App, Settings};
use weft_fault::Kind;
use weft_proto::cache::v1::Tier;

/// The tmpfs that every Linux with a C library has.
const SHM: &str = "/dev/shm";

fn with_memory(dir: &Path, memory: &Path, memory_bytes_max: u64) -> Settings {
    Settings { memory_dir: Some(memory.to_owned()), memory_bytes_max, ..settings(dir, 1 << 20) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_from_disk_moves_to_memory_within_its_budget() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in(SHM).unwrap();
    let first = remote.put(&blob(1, 1000)).await;
    let second = remote.put(&blob(2, 1000)).await;
    let large = remote.put(&blob(3, 1501)).await;
    let daemon = Daemon::start(with_memory(dir.path(), memory.path(), 1500), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let here = |digest: weft_types::Digest| {
        move |listing: &weft_proto::cache::v1::ListResidencyResponse| {
            listing.adapters.iter().any(|row| row.digest == digest.to_vec() && row.tier() == Tier::Memory)
        }
    };

    assert_eq!(holder.use_once(&first).await.tier(), Tier::Remote);
    assert_eq!(holder.use_once(&first).await.tier(), Tier::Disk);
    daemon.until("the first is in memory", here(first)).await;
    let granted = holder.lease(&first).await;
    assert_eq!(granted.tier(), Tier::Memory);
    assert!(granted.path.starts_with(&memory.path().display().to_string()), "{}", granted.path);
    assert_eq!(std::fs::read(&granted.path).unwrap(), blob(1, 1000));

    // Held, it keeps its place: the second stays on disk. What is larger than the tier is served from disk as well.
    for digest in [&second, &second, &large, &large] {
        holder.use_once(digest).await;
    }
    let listing = daemon.list().await;
    assert_eq!((listing.memory_bytes_used, listing.memory_bytes_max), (1000, 1500));
    holder.release(granted.lease_id).await;
    daemon.until("the lease ended", |listing| listing.adapters.iter().all(|row| row.leases == 0)).await;
    holder.use_once(&second).await;
    daemon.until("the second took its place", here(second)).await;
    assert!(!path_in(memory.path(), &first).exists() && path_in(dir.path(), &first).exists());
    assert_eq!(remote.store.gets(&first), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_serves_what_the_disk_has_lost_also_after_a_restart() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in(SHM).unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(with_memory(dir.path(), memory.path(), 1500), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&digest).await;
    holder.use_once(&digest).await;
    daemon.until("it is in memory", |listing| listing.memory_bytes_used == 1000).await;
    drop(holder);
    daemon.stop().await;
    std::fs::remove_file(path_in(dir.path(), &digest)).unwrap();

    let daemon = Daemon::start(with_memory(dir.path(), memory.path(), 1500), &remote).await;
    assert_eq!(daemon.holder("worker").await.use_once(&digest).await.tier(), Tier::Memory);
    assert_eq!(remote.store.gets(&digest), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_folder_that_is_not_in_memory_is_refused() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    // The build folder: tests may run with their temporary folder on a tmpfs.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let built =
        App::build(with_memory(dir.path(), disk.path(), 1500), remote.store.clone(), &prometheus::Registry::new());
    let Err(error) = built else { panic!("a disk passed for memory") };
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("tmpfs"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_beyond_the_tmpfs_is_refused_with_both_numbers() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in(SHM).unwrap();
    let built = App::build(
        with_memory(dir.path(), memory.path(), u64::MAX / 2),
        remote.store.clone(),
        &prometheus::Registry::new(),
    );
    let Err(error) = built else { panic!("more memory than there is") };
    assert_eq!(error.kind(), Kind::Invalid);
    let text = error.to_string();
    assert!(text.contains("memory_bytes_max") && text.contains(&(u64::MAX / 2).to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_seldom_does_not_push_out_what_is_used_often() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in(SHM).unwrap();
    let often = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(with_memory(dir.path(), memory.path(), 1500), &remote).await;
    let mut holder = daemon.holder("worker").await;
    for _ in 0..10 {
        holder.use_once(&often).await;
    }
    daemon.until("it is in memory", |listing| listing.memory_bytes_used == 1000).await;
    // Small ones follow, so that what the daemon decided on the others is known when they are in.
    for seed in 2..6 {
        let seldom = remote.put(&blob(seed, 1000)).await;
        holder.use_once(&seldom).await;
        holder.use_once(&seldom).await;
    }
    let small = remote.put(&blob(9, 100)).await;
    holder.use_once(&small).await;
    holder.use_once(&small).await;
    daemon.until("the small one is in memory", |listing| listing.memory_bytes_used == 1100).await;
    assert_eq!(holder.use_once(&often).await.tier(), Tier::Memory);
    assert_eq!(daemon.metric("cache_daemon_evictions_total", "memory"), 0.0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_tier_that_was_switched_off_keeps_no_memory() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in(SHM).unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(with_memory(dir.path(), memory.path(), 1500), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&digest).await;
    holder.use_once(&digest).await;
    daemon.until("it is in memory", |listing| listing.memory_bytes_used == 1000).await;
    drop(holder);
    daemon.stop().await;
    let foreign = path_in(memory.path(), &digest).with_file_name("foreign");
    std::fs::write(&foreign, b"x").unwrap();
    let daemon = Daemon::start(with_memory(dir.path(), memory.path(), 0), &remote).await;
    assert!(!path_in(memory.path(), &digest).exists() && foreign.exists());
    assert_eq!(daemon.holder("worker").await.use_once(&digest).await.tier(), Tier::Disk);
    daemon.stop().await;
}

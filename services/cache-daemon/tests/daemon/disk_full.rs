//! A file system that is full below the budget. Nothing is simulated: the errors come from the operating system.
//!
//! Every promise is tested with EFBIG, from a file size limit on a real daemon process, which works for everybody; the
//! code takes EFBIG, ENOSPC and EDQUOT alike. ENOSPC itself needs a small file system, and so the right to mount one:
//! who has it runs two more tests; who says by `WEFT_TEST_MOUNT=1` to have it fails where the mount does.

use crate::support::{Daemon, Holder, Remote, blob, files, path_in, settings};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use weft_cache_daemon::Settings;
use weft_fault::Kind;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::{ListResidencyRequest, Tier};
use weft_service_kit::transport;

/// A mounted tmpfs of a few pages.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount(kib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={kib}k,mode=0755"), "tmpfs"]).arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self { dir }),
            refused => {
                assert!(std::env::var_os("WEFT_TEST_MOUNT").is_none(), "cannot mount a tmpfs here: {refused:?}");
                eprintln!("ENOSPC is not tested, EFBIG is: cannot mount a tmpfs here: {refused:?}");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn make_read_only(&self) {
        let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(self.dir.path()).status();
        assert!(remounted.is_ok_and(|status| status.success()), "it was mounted by this test");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

fn nothing_half_written(dir: &Path) {
    assert_eq!(files(&dir.join("temp")), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_clearly_and_works_again_once_there_is_room() {
    let Some(disk) = SmallDisk::mount(512) else { return };
    let remote = Remote::start().await;
    let digest = remote.put(&blob(1, 300 << 10)).await;
    let small = remote.put(&blob(2, 8 << 10)).await;
    let daemon = Daemon::start(settings(&disk.path(), 1 << 30), &remote).await;
    let filler = disk.dir.path().join("filler");
    std::fs::write(&filler, vec![1; 400 << 10]).unwrap();

    let mut holder = daemon.holder("worker").await;
    let refused = holder.refusal(&digest).await;
    assert_eq!(refused.kind, Kind::Unavailable.as_str());
    for part in ["no space", &disk.path().display().to_string(), "307200"] {
        assert!(refused.message.contains(part), "{part} in {}", refused.message);
    }
    nothing_half_written(&disk.path());
    assert!(!path_in(&disk.path(), &digest).exists());
    assert_eq!(daemon.list().await.disk_bytes_used, 0);
    holder.use_once(&small).await;
    std::fs::remove_file(&filler).unwrap();
    holder.use_once(&digest).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_idle_files_but_never_leased_ones() {
    let Some(disk) = SmallDisk::mount(512) else { return };
    let remote = Remote::start().await;
    let held = remote.put(&blob(1, 150 << 10)).await;
    let idle = remote.put(&blob(2, 150 << 10)).await;
    let wanted = remote.put(&blob(3, 250 << 10)).await;
    let too_much = remote.put(&blob(4, 400 << 10)).await;
    let daemon = Daemon::start(settings(&disk.path(), 1 << 30), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let lease = holder.lease(&held).await;
    holder.use_once(&idle).await;
    // 500 KiB of 512 would do, but the idle file is in the way of 550.
    holder.use_once(&wanted).await;
    assert!(!path_in(&disk.path(), &idle).exists());
    let refused = holder.refusal(&too_much).await;
    assert_eq!(refused.kind, Kind::Unavailable.as_str());
    assert_eq!(std::fs::read(&lease.path).unwrap(), blob(1, 150 << 10));
    nothing_half_written(&disk.path());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_became_read_only_serves_what_it_has_and_memory_takes_the_rest() {
    let Some(disk) = SmallDisk::mount(512) else { return };
    let remote = Remote::start().await;
    let near = remote.put(&blob(1, 1000)).await;
    let far = remote.put(&blob(2, 1000)).await;
    let daemon = Daemon::start(settings(&disk.path(), 1 << 30), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.use_once(&near).await;
    disk.make_read_only();
    holder.use_once(&near).await;
    let refused = holder.refusal(&far).await;
    assert_eq!(refused.kind, Kind::Unavailable.as_str());
    assert!(refused.message.contains(&disk.path().display().to_string()), "{}", refused.message);
    assert_eq!(daemon.list().await.disk_bytes_used, 1000);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_leaves_the_memory_tier() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let remote = Remote::start().await;
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let digest = remote.put(&blob(1, 300 << 10)).await;
    let with_memory = Settings {
        memory_dir: Some(memory.path().to_owned()),
        memory_bytes_max: 1 << 20,
        ..settings(&disk.path(), 1 << 30)
    };
    let daemon = Daemon::start(with_memory, &remote).await;
    let granted = daemon.holder("worker").await.use_once(&digest).await;
    assert!(Path::new(&granted.path).starts_with(memory.path()), "{}", granted.path);
    nothing_half_written(&disk.path());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_folder_that_somebody_took_away_leaves_the_memory_tier() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let small = remote.put(&blob(1, 1000)).await;
    let large = remote.put(&blob(2, 2000)).await;
    let with_memory = Settings {
        memory_dir: Some(memory.path().to_owned()),
        memory_bytes_max: 1500,
        ..settings(dir.path(), 1 << 30)
    };
    let daemon = Daemon::start(with_memory, &remote).await;
    std::fs::remove_dir_all(dir.path().join("temp")).unwrap();
    let mut holder = daemon.holder("worker").await;
    let granted = holder.use_once(&small).await;
    assert!(Path::new(&granted.path).starts_with(memory.path()), "{}", granted.path);
    assert_eq!(holder.use_once(&small).await.tier(), Tier::Memory);
    // There is no room for this one; what is wrong is the disk.
    let refused = holder.refusal(&large).await;
    assert!(refused.message.contains(&dir.path().display().to_string()), "{}", refused.message);
    daemon.stop().await;
}

/// A daemon process that may write files of 64 KiB at most.
struct LimitedDaemon {
    process: Child,
    address: String,
}

impl LimitedDaemon {
    fn start(dir: &Path, remote: &Remote) -> Self {
        // Ignored, SIGXFSZ leaves EFBIG to the write; both are inherited over exec. The limit is in blocks of 512 bytes.
        let script = "trap '' XFSZ; ulimit -S -f 128; exec \"$@\"";
        let mut process = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_weft-cache-daemon")])
            .args(["--listen", "127.0.0.1:0", "--room-wait-ms", "0", "--dir"])
            .arg(dir)
            .args(remote.flags())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the daemon says where it listens").to_owned();
        Self { process, address }
    }
}

impl Drop for LimitedDaemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_size_limit_is_a_full_disk_it_costs_idle_files_but_never_leased_ones() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let large = remote.put(&blob(1, 200 << 10)).await;
    let held = remote.put(&blob(2, 8 << 10)).await;
    let idle = remote.put(&blob(3, 8 << 10)).await;
    let daemon = LimitedDaemon::start(dir.path(), &remote);
    let channel = transport::connect(&daemon.address.parse().unwrap());
    let mut client = CacheDaemonClient::new(channel);
    let mut holder = Holder::connect(client.clone(), "worker").await;
    let lease = holder.lease(&held).await;
    holder.use_once(&idle).await;
    assert!(path_in(dir.path(), &idle).exists());

    let refused = holder.refusal(&large).await;
    assert_eq!(refused.kind, Kind::Unavailable.as_str(), "{}", refused.message);
    for part in ["no space", &dir.path().display().to_string(), "204800"] {
        assert!(refused.message.contains(part), "{part} in {}", refused.message);
    }
    nothing_half_written(dir.path());
    assert!(!path_in(dir.path(), &large).exists());
    // Room was made once, of what nobody holds.
    assert!(!path_in(dir.path(), &idle).exists());
    assert_eq!(std::fs::read(&lease.path).unwrap(), blob(2, 8 << 10));
    let listing = client.list_residency(ListResidencyRequest {}).await.unwrap().into_inner();
    assert_eq!(listing.disk_bytes_used, 8 << 10);
    holder.use_once(&idle).await;

    // The limit is lifted from outside, as an operator makes room.
    let pid = daemon.process.id().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
    assert!(lifted.is_ok_and(|status| status.success()), "prlimit of util-linux");
    holder.use_once(&large).await;
}

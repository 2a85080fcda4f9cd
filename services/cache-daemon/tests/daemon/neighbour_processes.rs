//! Daemons as processes that find each other over a real NATS server, while one of them is stopped or killed and the object store
//! goes away; with one listener for everybody, and with one for neighbours alone.

use crate::process::{daemon, get};
use crate::support::{Holder, Remote, blob};
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use weft_fault::Kind;
use weft_nats_testkit::NatsServer;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::{ListResidencyRequest, PrefetchRequest, ReadBlobRequest, Tier};
use weft_service_kit::transport;

/// A daemon process, killed when dropped.
struct DaemonProcess {
    process: Child,
    address: String,
    /// Where neighbours have a listener of their own.
    neighbours: Option<String>,
    metrics: String,
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl DaemonProcess {
    /// One listener, for workers and neighbours.
    fn start(dir: &Path, nats: &NatsServer, remote: &Remote) -> Self {
        Self::start_at(&["--listen", "127.0.0.1:0"], dir, nats, remote)
    }

    /// A socket for workers, and a port for neighbours.
    fn start_on_socket(dir: &Path, nats: &NatsServer, remote: &Remote) -> Self {
        let socket = format!("unix:{}", dir.join("socket").display());
        let listeners = ["--listen", &socket, "--neighbours-listen", "127.0.0.1:0"];
        Self::start_at(&listeners, &dir.join("cache"), nats, remote)
    }

    fn start_at(listeners: &[&str], dir: &Path, nats: &NatsServer, remote: &Remote) -> Self {
        // Patient with a neighbour on a slow machine.
        let patience = ["--neighbour-first-byte-timeout-ms", "3000", "--neighbour-stall-timeout-ms", "3000"];
        let mut command = daemon(&[listeners, &["--metrics-listen", "127.0.0.1:0"]].concat());
        command.args(patience).args(["--fetch-attempts-max", "1", "--nats-url", &nats.url(), "--dir"]);
        command.arg(dir).args(remote.flags());
        let mut process = command.stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut said = |what: &str| lines.next().unwrap().unwrap().strip_prefix(what).expect(what).to_owned();
        let metrics = said("metrics on ");
        let neighbours = listeners.contains(&"--neighbours-listen").then(|| said("neighbours listening on "));
        let address = said("listening on ");
        Self { process, address, neighbours, metrics, _lines: lines }
    }

    async fn holder(&self) -> Holder {
        let channel = transport::connect(&self.address.parse().unwrap());
        Holder::connect(CacheDaemonClient::new(channel), "worker").await
    }

    /// Waits until it knows that neighbours hold so many blobs.
    async fn until_neighbours_hold(&self, blobs: usize) {
        let line = format!("\ncache_daemon_neighbour_blobs {blobs}\n");
        let known = async {
            while !get(&self.metrics, "/metrics").1.contains(&line) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(60), known).await.is_ok(), "never knew {blobs}");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.unwrap().success());
        if signal == "-STOP" {
            self.until_stopped();
        }
    }

    /// A thread that runs on another processor goes on for a moment.
    fn until_stopped(&self) {
        let state = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().chars().next()
        };
        let tasks = format!("/proc/{}/task", self.process.id());
        while !std::fs::read_dir(&tasks).unwrap().all(|task| state(task) == Some('T')) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_helps_while_it_lives_and_costs_nothing_but_time_when_it_is_stopped_or_killed() {
    let nats = NatsServer::start();
    let (remote, proxy) = Remote::behind_proxy().await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let there = DaemonProcess::start(there.path(), &nats, &remote);
    let here = DaemonProcess::start(here.path(), &nats, &remote);
    let mut digests = Vec::new();
    let mut holder = there.holder().await;
    for seed in 0..4 {
        let digest = remote.put(&blob(seed, 200_000)).await;
        assert_eq!(holder.use_once(&digest).await.tier(), Tier::Remote);
        digests.push(digest);
    }
    here.until_neighbours_hold(4).await;
    let mut holder = here.holder().await;
    assert_eq!(holder.use_once(&digests[0]).await.tier(), Tier::Neighbour);
    assert_eq!(proxy.ranges().len(), 4, "the object store was asked by the other alone");

    there.signal("-STOP");
    assert_eq!(holder.use_once(&digests[1]).await.tier(), Tier::Remote);
    there.signal("-KILL");
    assert_eq!(holder.use_once(&digests[2]).await.tier(), Tier::Remote);
    assert_eq!(holder.use_once(&digests[0]).await.tier(), Tier::Disk);
    assert_eq!(proxy.ranges().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_object_store_a_node_still_gets_what_another_has() {
    let nats = NatsServer::start();
    let (remote, proxy) = Remote::behind_proxy().await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let there = DaemonProcess::start(there.path(), &nats, &remote);
    let here = DaemonProcess::start(here.path(), &nats, &remote);
    let held = remote.put(&blob(1, 200_000)).await;
    let unknown = remote.put(&blob(2, 200_000)).await;
    there.holder().await.use_once(&held).await;
    here.until_neighbours_hold(1).await;
    drop(proxy);
    let mut holder = here.holder().await;
    assert_eq!(holder.use_once(&held).await.tier(), Tier::Neighbour);
    let refused = holder.refusal(&unknown).await;
    assert_eq!(refused.kind, Kind::Unavailable.as_str(), "{}", refused.message);
    assert_eq!(holder.use_once(&held).await.tier(), Tier::Disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_have_a_port_of_their_own_where_workers_use_sockets_and_nothing_else_is_served_there() {
    let nats = NatsServer::start();
    let (remote, proxy) = Remote::behind_proxy().await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut there = DaemonProcess::start_on_socket(there.path(), &nats, &remote);
    let here = DaemonProcess::start_on_socket(here.path(), &nats, &remote);
    let bytes = blob(1, 200_000);
    let digest = remote.put(&bytes).await;
    assert!(there.address.starts_with("unix:"), "{}", there.address);
    assert_eq!(there.holder().await.use_once(&digest).await.tier(), Tier::Remote);
    here.until_neighbours_hold(1).await;
    assert_eq!(here.holder().await.use_once(&digest).await.tier(), Tier::Neighbour);
    assert_eq!(proxy.ranges().len(), 1, "the object store was asked by the other alone");

    let port = transport::connect(&there.neighbours.as_ref().unwrap().parse().unwrap());
    let mut client = CacheDaemonClient::new(port.clone());
    let listed = client.list_residency(ListResidencyRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.adapters.len(), 1);
    let request = ReadBlobRequest { digest: digest.to_vec().into(), offset: 0 };
    let mut pieces = client.read_blob(request).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        read.extend_from_slice(&piece.data);
    }
    assert!(read == bytes);
    let digests = vec![remote.put(&blob(2, 1000)).await.to_vec().into()];
    let Err(lease) = Holder::open(client.clone()).await else { panic!("a lease from afar") };
    let prefetch = client.prefetch(PrefetchRequest { digests: digests.clone() }).await.unwrap_err();
    for (refused, method) in [(lease, "Lease"), (prefetch, "Prefetch")] {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().starts_with(method), "{refused}");
    }
    let health = HealthClient::new(port).check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(health.code(), Code::Unimplemented, "{health}");
    let mut worker = CacheDaemonClient::new(transport::connect(&there.address.parse().unwrap()));
    assert_eq!(worker.prefetch(PrefetchRequest { digests }).await.unwrap().into_inner().started, 1);

    // Both listeners end with the process, and nobody holds it up.
    there.signal("-TERM");
    assert!(there.process.wait().unwrap().success());
}

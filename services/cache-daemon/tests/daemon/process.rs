//! The binary: what it prints, how it ends, and what probes and scrapers see.

use crate::support::{Daemon, Remote, settings};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_cache_daemon::App;

pub(crate) fn daemon(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-cache-daemon"));
    command.args(args).env_clear().env("WEFT_LOG", "error").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Exit status and what it said.
fn ended(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = daemon(args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn wrong_settings_end_with_status_2_and_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let base = ["--dir", text(&cache)];
    for (wrong, parts) in [
        (&["--no-such-flag", "1"][..], &["--no-such-flag"][..]),
        (&["--fetches-max", "many"], &["fetches-max", "many"]),
        (&["--fetches-max", "0", "--memory-bytes-max", "5"], &["fetches_max", "memory_dir"]),
        (&["--metrics-listen", "nowhere"], &["metrics_listen", "nowhere"]),
        (&["--listen", "nowhere"], &["listen", "nowhere"]),
        (&["--neighbours-listen", "nowhere"], &["neighbours_listen", "nowhere"]),
        (&["--neighbours-listen", "unix:/tmp/neighbours"], &["neighbours_listen", "unix:/tmp/neighbours", "host:port"]),
        (&["--neighbours-listen", "0.0.0.0:0"], &["neighbours_listen", "tls_cert_file", "--insecure-network"]),
    ] {
        let (status, said) = ended(&[&base[..], wrong].concat());
        assert_eq!(status, Some(2), "{wrong:?} {said}");
        for part in parts {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    assert!(!cache.exists(), "refused before the folder was touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_and_a_folder_of_another_process_are_named() {
    let remote = Remote::start().await;
    let flags = remote.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let own = ["--dir", text(dir.path())];
    for ports in [
        &["--listen", &taken][..],
        &["--listen", "127.0.0.1:0", "--metrics-listen", &taken],
        &["--listen", "127.0.0.1:0", "--neighbours-listen", &taken],
    ] {
        let (status, said) = ended(&[&own[..], ports, &flags].concat());
        assert_eq!((status, said.contains(&taken)), (Some(1), true), "{said}");
    }
    let owner = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let (status, said) = ended(&[&own[..], &["--listen", "127.0.0.1:0"], &flags].concat());
    assert_eq!((status, said.contains(text(dir.path()))), (Some(1), true), "{said}");
    owner.stop().await;
}

/// Status and body of a plain HTTP GET.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_metrics_and_readiness_over_http_and_leaves_on_sigterm() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let args = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--dir", text(dir.path())];
    let mut child = daemon(&args).args(remote.flags()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let metrics = lines.next().unwrap();
    let metrics = metrics.strip_prefix("metrics on ").unwrap_or_else(|| panic!("said {metrics:?}"));
    assert!(lines.next().unwrap().starts_with("listening on "));
    assert_eq!(get(metrics, "/readyz"), (200, r#"{"ready":true,"waiting_for":[],"degraded":[]}"#.to_owned()));
    let (status, body) = get(metrics, "/metrics");
    assert!(status == 200 && body.contains("cache_daemon_"), "{status} {body}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert_eq!(lines.next(), None, "nothing else on stdout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_serves_from_the_start_and_no_longer_while_draining() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), 1 << 20);
    // Before it serves, the daemon owns its folders or is not there at all.
    let app = App::build(settings, remote.store.clone(), &prometheus::Registry::new()).unwrap();
    let readiness = app.readiness();
    readiness.wait_for("test", "not yet");
    let (listener, channel) = weft_service_kit::transport::Listener::memory();
    let shutdown = weft_service_kit::shutdown::Shutdown::new();
    let running = tokio::spawn(app.run(listener, shutdown.clone()));
    let mut health = HealthClient::new(channel);
    let mut watches = Vec::new();
    for service in ["", "weft.cache.v1.CacheDaemon"] {
        let about = HealthCheckRequest { service: service.to_owned() };
        let mut watch = health.watch(about.clone()).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        watches.push((about, watch));
    }
    readiness.met("test");
    for (about, watch) in &mut watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let checked = health.check(about.clone()).await.unwrap().into_inner();
        assert_eq!(checked.status(), ServingStatus::Serving);
    }
    shutdown.trigger();
    for (_, watch) in &mut watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watch.message().await.unwrap().is_none());
    }
    running.await.unwrap().unwrap();
}

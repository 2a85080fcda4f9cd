//! The stream of a holder: what ends its leases, and its limits.

use crate::support::{Daemon, Holder, Remote, blob, fault, leases, settings};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use weft_cache_daemon::Settings;
use weft_fault::Kind;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::lease_request::Request as Asks;
use weft_proto::cache::v1::{Acquire, Hello, PrefetchRequest};
use weft_service_kit::transport::{self, Listener};
use weft_types::Digest;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_with_the_stream_and_only_with_it() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut dropped = daemon.holder("dropped").await;
    let mut closed = daemon.holder("closed").await;
    let mut stays = daemon.holder("stays").await;
    for holder in [&mut dropped, &mut closed, &mut stays] {
        holder.lease(&digest).await;
    }
    assert_eq!(leases(&daemon.list().await), 3);
    drop(dropped);
    daemon.until("the dropped stream's lease ended", |listing| leases(listing) == 2).await;
    closed.close().await;
    daemon.until("the closed stream's lease ended", |listing| leases(listing) == 1).await;
    stays.lease(&digest).await;
    assert_eq!(leases(&daemon.list().await), 2);
    daemon.stop().await;
}

/// Not a test of its own: the process that [`leases_of_a_killed_process_end`] kills.
#[tokio::test]
#[ignore = "run by leases_of_a_killed_process_end as a process of its own"]
async fn holder_process() {
    let Ok(address) = std::env::var("TEST_DAEMON") else { return };
    let digest: Digest = std::env::var("TEST_DIGEST").unwrap().parse().unwrap();
    let channel = transport::connect(&address.parse().unwrap());
    let mut holder = Holder::connect(CacheDaemonClient::new(channel), "process").await;
    holder.lease(&digest).await;
    println!("leased");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_a_killed_process_end() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let channel = transport::connect(&address.parse().unwrap());
    let daemon = Daemon::start_on(listener, channel, settings(dir.path(), 1 << 20), &remote);

    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["leases::holder_process", "--exact", "--include-ignored", "--nocapture"])
        .env("TEST_DAEMON", &address)
        .env("TEST_DIGEST", digest.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let said =
        tokio::task::spawn_blocking(move || output.lines().map_while(Result::ok).any(|line| line.contains("leased")));
    assert!(said.await.unwrap(), "the process leased");
    assert_eq!(leases(&daemon.list().await), 1);
    process.kill().unwrap();
    process.wait().unwrap();
    daemon.until("the lease ended", |listing| leases(listing) == 0).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_ends_one_lease_and_an_unknown_one_is_ignored() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut holder = daemon.holder("worker").await;
    let first = holder.lease(&digest).await;
    holder.lease(&digest).await;
    holder.release(first.lease_id).await;
    holder.release(first.lease_id).await;
    holder.release(777).await;
    daemon.until("one lease is left", |listing| leases(listing) == 1).await;
    holder.lease(&digest).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_acquire_is_refused_and_the_stream_goes_on() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.ask(Asks::Acquire(Acquire { lease_id: 90, digest: vec![1, 2, 3].into(), reassert: false })).await;
    let refused = holder.refused().await;
    assert_eq!((refused.lease_id, refused.kind.as_str()), (90, Kind::Invalid.as_str()));

    let lease = holder.lease(&digest).await;
    let again = Acquire { lease_id: lease.lease_id, digest: digest.to_vec().into(), reassert: false };
    holder.ask(Asks::Acquire(again)).await;
    let refused = holder.refused().await;
    assert_eq!((refused.lease_id, refused.kind.as_str()), (lease.lease_id, Kind::Invalid.as_str()));
    assert_eq!(leases(&daemon.list().await), 1, "the first lease is untouched");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_the_protocol_ends_with_a_reason() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;

    let mut silent = Holder::open(daemon.client()).await.unwrap();
    silent.acquire(&digest).await;
    let status = silent.next().await.unwrap_err();
    assert_eq!(fault(status).kind, Kind::Invalid);

    let mut twice = daemon.holder("twice").await;
    twice.lease(&digest).await;
    twice.ask(Asks::Hello(Hello { holder: "again".to_owned() })).await;
    assert_eq!(fault(twice.next().await.unwrap_err()).kind, Kind::Invalid);
    daemon.until("its lease ended", |listing| leases(listing) == 0).await;

    let mut long = daemon.holder(&"x".repeat(257)).await;
    let fault = fault(long.next().await.unwrap_err());
    assert!(fault.message.contains("257") && fault.message.contains("256"), "{fault}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_limit_of_a_stream_has_an_answer() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let near = remote.put(&blob(2, 1000)).await;
    let small = Settings {
        streams_max: 2,
        leases_per_stream_max: 3,
        acquires_per_stream_max: 1,
        ..settings(dir.path(), 1 << 20)
    };
    let daemon = Daemon::start(small, &remote).await;
    let mut holder = daemon.holder("one").await;
    holder.lease(&near).await;

    remote.store.close();
    holder.acquire(&digest).await;
    let refused = holder.refusal(&digest).await;
    assert_eq!(refused.kind, Kind::Overloaded.as_str());
    assert!(refused.message.contains("acquires_per_stream_max"), "{}", refused.message);
    holder.acquire_as(&near, true).await;
    holder.granted().await;
    holder.acquire_as(&near, true).await;
    assert!(holder.refused().await.message.contains("leases_per_stream_max"));
    remote.store.open();
    holder.granted().await;

    let second = daemon.holder("two").await;
    let Err(status) = Holder::open(daemon.client()).await else { panic!("three streams of two") };
    let refusal = fault(status);
    assert_eq!(refusal.kind, Kind::Overloaded);
    assert!(refusal.message.contains("streams_max"), "{refusal}");
    second.close().await;
    while Holder::open(daemon.client()).await.is_err() {
        tokio::task::yield_now().await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_reads_no_answers_does_not_hold_up_others() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut deaf = daemon.holder("deaf").await;
    for _ in 0..4000 {
        deaf.acquire(&digest).await;
    }
    let mut other = daemon.holder("other").await;
    for _ in 0..20 {
        other.use_once(&digest).await;
    }
    drop(deaf);
    daemon.until("its leases ended", |listing| leases(listing) == 0).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_daemon_tells_its_holders() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = remote.put(&blob(1, 1000)).await;
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let mut holder = daemon.holder("worker").await;
    holder.lease(&digest).await;
    daemon.stop().await;
    assert_eq!(fault(holder.next().await.unwrap_err()).kind, Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_of_nonsense_is_refused() {
    let remote = Remote::start().await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(settings(dir.path(), 1 << 20), &remote).await;
    let wrong = PrefetchRequest { digests: vec![vec![0; 31].into()] };
    let status = daemon.client().prefetch(wrong).await.unwrap_err();
    assert_eq!(fault(status).param.as_deref(), Some("digests"));
    let many = PrefetchRequest { digests: vec![vec![0; 32].into(); 1025] };
    let fault = fault(daemon.client().prefetch(many).await.unwrap_err());
    assert!(fault.message.contains("1025") && fault.message.contains("1024"), "{fault}");
    daemon.stop().await;
}

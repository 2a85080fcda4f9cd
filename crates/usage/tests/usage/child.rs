//! What runs in processes that are killed: this test binary once more, with one of these functions.

use crate::slow_store::SlowAfterPut;
use crate::support::{NOON_MS, request, small};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_object_store::embedded::Credentials;
use weft_object_store::{S3Settings, S3Store};
use weft_usage::{Ledger, Log, LogSettings, Record, Shipper};

const DIR: &str = "WEFT_USAGE_TEST_DIR";
const NEXT: &str = "WEFT_USAGE_TEST_NEXT";
const ENDPOINT: &str = "WEFT_USAGE_TEST_ENDPOINT";
/// Each appends its own ids in their order.
pub(crate) const APPENDERS: usize = 4;

pub(crate) fn credentials() -> Credentials {
    Credentials { access_key_id: "id".into(), secret_access_key: "secret".into() }
}

pub(crate) fn store_settings(endpoint: &str) -> S3Settings {
    S3Settings {
        endpoint: Some(endpoint.to_owned()),
        bucket: crate::support::BUCKET.to_owned(),
        prefix: String::new(),
        region: "us-east-1".to_owned(),
        access_key_id: Some(credentials().access_key_id),
        secret_access_key: Some(credentials().secret_access_key),
        path_style: true,
    }
}

/// The record is a function of its id, so that it can be appended again.
pub(crate) fn record(appender: usize, number: u64) -> Record {
    request(&format!("a{appender}-{number}"), NOON_MS + number * 1009 % 10_800_000, number + 1)
}

/// A process that appends until it is killed.
pub(crate) struct Appending {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Appending {
    /// Starts it; each appender begins with its next number. `wrapper` is a shell line that ends with `exec "$@"`.
    pub(crate) fn start(test: &str, dir: &Path, next: &[u64], endpoint: Option<&str>, wrapper: &str) -> Self {
        let next: Vec<String> = next.iter().map(u64::to_string).collect();
        let mut child = Command::new("bash")
            .args(["-c", wrapper, "bash"])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env(NEXT, next.join(","))
            .env(ENDPOINT, endpoint.unwrap_or_default())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the child ended early");
        }
        Self { child, lines }
    }

    /// Lets it run for a while, then SIGKILL; returns what it said.
    pub(crate) fn kill_after(mut self, pause: Duration) -> String {
        std::thread::sleep(pause);
        self.child.kill().unwrap();
        self.said()
    }

    /// What it says until it ends; a line that a kill cut has no end.
    pub(crate) fn said(mut self) -> String {
        let mut said = String::new();
        self.lines.read_to_string(&mut said).unwrap();
        self.child.wait().unwrap();
        said
    }
}

/// Takes the lines `ack <appender> <number>.` into account: `next` becomes the first number that was not acknowledged.
pub(crate) fn acknowledged(said: &str, next: &mut [u64]) -> u64 {
    let mut count = 0;
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    for line in whole.lines().filter_map(|line| line.strip_prefix("ack ")) {
        let (appender, number) = line.split_once(' ').unwrap();
        let (appender, number): (usize, u64) = (appender.parse().unwrap(), number.parse().unwrap());
        assert_eq!(number, next[appender], "an appender appends in order");
        next[appender] += 1;
        count += 1;
    }
    count
}

fn next() -> Option<Vec<u64>> {
    let next = std::env::var(NEXT).ok()?;
    Some(next.split(',').map(|number| number.parse().unwrap()).collect())
}

fn log(settings: LogSettings) -> Arc<Log> {
    let dir = std::env::var_os(DIR).unwrap();
    Arc::new(Log::open(Path::new(&dir), settings).unwrap())
}

/// Appends for ever, and says what was acknowledged.
async fn append(log: Arc<Log>, appender: usize, from: u64) {
    for number in from.. {
        if let Err(error) = log.append(&record(appender, number)).await {
            println!("failed {appender} {number} {}: {error}", error.kind());
            return;
        }
        println!("ack {appender} {number}");
    }
}

async fn append_all(log: &Arc<Log>, next: Vec<u64>) {
    let appenders: Vec<_> = (0..next.len()).map(|of| tokio::spawn(append(Arc::clone(log), of, next[of]))).collect();
    println!("\nready");
    for appender in appenders {
        appender.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a process of its own, started by other tests"]
async fn appends() {
    let Some(next) = next() else { return };
    let log = log(small());
    append_all(&log, next).await;
    // Only after the disk failed.
    for _ in 0..2 {
        let error = log.append(&record(0, 0)).await.unwrap_err();
        println!("later {}: {error}", error.kind());
    }
    println!("poisoned {}", log.state().poisoned.unwrap_or_default());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a process of its own, started by other tests"]
async fn appends_and_ships() {
    let Some(next) = next() else { return };
    let log = log(small());
    let store = S3Store::connect(&store_settings(&std::env::var(ENDPOINT).unwrap())).await.unwrap();
    // So that most kills fall between a put and the end of its segment.
    let slow = SlowAfterPut { store, pause: Duration::from_millis(30) };
    let shipper = Shipper::new(Arc::clone(&log), Ledger::new(Arc::new(slow)), 100).unwrap();
    tokio::spawn(async move { shipper.ship_forever(CancellationToken::new()).await });
    append_all(&log, next).await;
}

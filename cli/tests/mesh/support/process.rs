//! One process of a mesh of separate processes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binaries lie beside each other; `cargo nextest run --workspace` builds all of them.
pub fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build --release -p {name}", path.display());
    path
}

/// A running service. Dropped: killed.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `signal` as `kill` takes it: `-TERM`.
pub fn send_signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// A service that has said where it is.
pub struct Started {
    pub process: Process,
    /// What it said at its start: `listening on` and the like, with what follows.
    pub says: BTreeMap<String, String>,
}

impl Started {
    /// Starts a program with these flags, writing to `log`, and waits until it has said so many lines.
    pub fn new<V: AsRef<str>>(program: &str, flags: &[(&str, V)], lines: usize, log: &Path) -> Self {
        let mut command = Command::new(binary(program));
        command.args(flags.iter().map(|(flag, value)| format!("--{flag}={}", value.as_ref())));
        let log = std::fs::File::create(log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("service starts");
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut says = BTreeMap::new();
        for line in out.by_ref().take(lines) {
            let line = line.unwrap();
            let (what, where_) = line.rsplit_once(' ').expect("what is where");
            says.insert(what.to_owned(), where_.to_owned());
        }
        std::thread::spawn(move || out.for_each(drop));
        Self { process: Process(child), says }
    }

    pub fn signal(&self, signal: &str) {
        send_signal(self.process.0.id(), signal);
    }

    pub fn metrics_url(&self) -> String {
        format!("http://{}", self.says["metrics on"])
    }
}

/// Polls what only other processes can bring about.
pub async fn until<T>(what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

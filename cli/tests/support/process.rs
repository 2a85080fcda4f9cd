//! One process of a mesh of separate processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

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

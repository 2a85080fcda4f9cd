//! A real `nats-server` for tests, on a free port of loopback: started, killed, frozen.
//!
//! A room of its own, so that no other is built twice, with it and without it.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server; killed when dropped.
pub struct NatsServer {
    child: Child,
    port: u16,
    /// Of its monitoring over HTTP.
    monitoring: Option<u16>,
}

impl NatsServer {
    /// Starts one on a port that the system picks, and waits until it listens.
    ///
    /// # Panics
    /// It cannot be started: the test must not pass without it.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`NatsServer::start`], with these flags.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    #[must_use]
    pub fn start_with(flags: &[&str]) -> Self {
        let ports = tempfile::tempdir().expect("temporary folder");
        let folder = ports.path().to_str().expect("path is text");
        let child = spawn(&[&["--port", "-1", "--http_port", "-1", "--ports_file_dir", folder], flags].concat());
        let (port, monitoring) = written_ports(ports.path());
        Self { child, port, monitoring: Some(monitoring) }
    }

    /// Starts one where another one was, with nothing of it.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    #[must_use]
    pub fn start_at(port: u16) -> Self {
        let server = Self { child: spawn(&["--port", &port.to_string()]), port, monitoring: None };
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// A port on which nothing listens now.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound").port()
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `nats://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Subscriptions that it holds now.
    ///
    /// # Panics
    /// It does not say, as one that was started at a given port.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        let port = self.monitoring.expect("started on free ports");
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it monitors");
        stream.write_all(b"GET /subsz HTTP/1.0\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        number_after(&text, "\"num_subscriptions\":").expect("it counts subscriptions") as usize
    }

    /// Stops the process without ending it: connections stay open and silent.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal}");
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // It may have ended by itself; SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(flags: &[&str]) -> Child {
    let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("nats-server");
    command.env("PATH", path).args(["--addr", "127.0.0.1"]).args(flags).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("nats-server starts (Debian package nats-server: scripts/setup.sh test)")
}

/// The server writes `{"nats":["nats://127.0.0.1:PORT"],"monitoring":["http://127.0.0.1:PORT"],…}` into a file once it listens.
fn written_ports(folder: &Path) -> (u16, u16) {
    loop {
        let files = std::fs::read_dir(folder).expect("the folder is ours").flatten();
        for text in files.filter_map(|file| std::fs::read_to_string(file.path()).ok()) {
            let port = |scheme: &str| u16::try_from(number_after(&text, &format!("{scheme}://127.0.0.1:"))?).ok();
            let nats = port("nats").or_else(|| port("tls"));
            if let (Some(nats), Some(monitoring)) = (nats, port("http")) {
                return (nats, monitoring);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn number_after(text: &str, what: &str) -> Option<u64> {
    let digits: String = text.split(what).nth(1)?.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

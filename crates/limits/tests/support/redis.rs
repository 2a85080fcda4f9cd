//! A real Redis of a test's own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A `redis-server` on a free port, with nothing on disk but what [`Redis::save`] puts there. Killed when dropped.
pub(crate) struct Redis {
    child: Child,
    pub(crate) port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_on(free_port())
    }

    /// On a port that was another's before.
    pub(crate) fn start_on(port: u16) -> Self {
        Self::start_with(port, &["--port", &port.to_string()])
    }

    /// On a port that these arguments name.
    pub(crate) fn start_with(port: u16, arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), port, arguments)
    }

    /// With the snapshot that another one left in this folder.
    pub(crate) fn start_in(dir: tempfile::TempDir, port: u16, arguments: &[&str]) -> Self {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(arguments)
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server runs (Debian package redis-server: scripts/setup.sh test)");
        let redis = Self { child, port, dir };
        redis.until_it_answers();
        redis
    }

    fn until_it_answers(&self) {
        for _ in 0..1000 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not listen after 10 s");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it at once, with everything in it.
    pub(crate) fn kill(self) -> u16 {
        self.kill_keeping_the_snapshot().0
    }

    /// Ends it at once, with everything that came after the last [`Redis::save`].
    pub(crate) fn kill_keeping_the_snapshot(mut self) -> (u16, tempfile::TempDir) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.port, std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap()))
    }

    /// Writes a snapshot, as it does by itself now and then if it is told to.
    pub(crate) async fn save(&self) {
        self.ask(&["SAVE"]).await;
    }

    /// Its answer to a command, as text.
    pub(crate) async fn ask(&self, command: &[&str]) -> String {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.unwrap()
    }

    /// It answers nothing, though its port stays open.
    pub(crate) fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the process is our own child and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

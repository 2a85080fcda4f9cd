//! What several tests of this crate use.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use weft_object_store::embedded::Credentials;
use weft_object_store::{EmbeddedS3, S3Settings, S3Store};

pub(crate) const BUCKET: &str = "bucket";

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// An embedded server over a fresh folder, and a store with a bucket in it.
pub(crate) async fn embedded() -> (tempfile::TempDir, EmbeddedS3, S3Store) {
    let folder = tempfile::tempdir().unwrap();
    let server = EmbeddedS3::start(folder.path(), loopback()).await.unwrap();
    let store = S3Store::connect(&server.settings(BUCKET)).await.unwrap();
    store.ensure_bucket().await.unwrap();
    (folder, server, store)
}

/// The server as a child process, killed with SIGKILL when dropped.
pub(crate) struct ServerProcess {
    pub(crate) child: Child,
    pub(crate) settings: S3Settings,
}

impl ServerProcess {
    /// Starts it and waits until it listens. `wrapper` is a shell line that ends with `exec "$@"`.
    pub(crate) async fn start(folder: &Path, wrapper: Option<&str>) -> Self {
        let credentials = Credentials { access_key_id: "id".into(), secret_access_key: "secret".into() };
        let mut command = match wrapper {
            Some(wrapper) => {
                let mut command = Command::new("bash");
                command.args(["-c", wrapper, "bash", env!("CARGO_BIN_EXE_weft-embedded-s3")]);
                command
            }
            None => Command::new(env!("CARGO_BIN_EXE_weft-embedded-s3")),
        };
        let mut child = command
            .arg("--dir")
            .arg(folder)
            .args(["--listen", "127.0.0.1:0", "--access-key-id", &credentials.access_key_id])
            .args(["--secret-access-key", &credentials.secret_access_key])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("the server says where it listens");
        let endpoint = line.strip_prefix("endpoint=").expect("the server says where it listens").to_owned();
        let settings = S3Settings {
            endpoint: Some(endpoint),
            bucket: BUCKET.to_owned(),
            prefix: String::new(),
            region: "us-east-1".to_owned(),
            access_key_id: Some(credentials.access_key_id),
            secret_access_key: Some(credentials.secret_access_key),
            path_style: true,
        };
        Self { child, settings }
    }

    pub(crate) async fn store(&self) -> S3Store {
        let store = S3Store::connect(&self.settings).await.unwrap();
        store.ensure_bucket().await.unwrap();
        store
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }
}

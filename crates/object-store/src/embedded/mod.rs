//! An S3 server over a local folder, on a loopback port: what stands in for S3 on one machine.
//!
//! [`folder`] keeps the objects so that a kill cannot tear them, [`api`] answers S3 operations over it,
//! [`server`] serves them over HTTP. Why this is not `s3s-fs` is told at the top of the crate.

mod api;
mod folder;
mod object_file;
mod server;

pub use server::{Credentials, Server};

use crate::{Error, S3Settings};
use api::FolderS3;
use folder::Folder;
use futures::future::BoxFuture;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// The region that the embedded server claims to be in.
const REGION: &str = "us-east-1";

/// A running embedded server. It owns its folder and stops when it is dropped; [`EmbeddedS3::stop`] also lets requests
/// end.
pub struct EmbeddedS3 {
    server: Server,
    work: TaskTracker,
}

impl fmt::Debug for EmbeddedS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedS3").field("address", &self.server.address()).finish_non_exhaustive()
    }
}

impl EmbeddedS3 {
    /// Takes the folder and serves it with random credentials. Port 0 picks a free one. Cost: opens every object once.
    ///
    /// # Errors
    /// [`Error::FolderTaken`] if another process serves the folder; [`Error::Damaged`] naming a file that is not an
    /// object; [`Error::Io`] if the folder or the port cannot be used.
    pub async fn start(dir: &Path, listen: SocketAddr) -> Result<Self, Error> {
        Self::start_with(dir, listen, Credentials::random()).await
    }

    /// The same with credentials that others know.
    ///
    /// # Errors
    /// As [`EmbeddedS3::start`].
    pub fn start_with(dir: &Path, listen: SocketAddr, credentials: Credentials) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(Self::open(dir, listen, credentials))
    }

    async fn open(dir: &Path, listen: SocketAddr, credentials: Credentials) -> Result<Self, Error> {
        let dir = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || Folder::open(&dir)).await;
        let folder = opened.map_err(|error| Error::io("the folder", std::io::Error::other(error)))??;
        let work = TaskTracker::new();
        let s3 = FolderS3 { folder: Arc::new(folder), work: work.clone() };
        let server = Server::start(s3, listen, credentials).await?;
        Ok(Self { server, work })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What reaches this server; the bucket need not exist, see [`crate::S3Store::ensure_bucket`].
    #[must_use]
    pub fn settings(&self, bucket: &str) -> S3Settings {
        self.server.settings(bucket)
    }

    /// Takes no more requests, lets those under way end (at most 5 s) and gives the folder back.
    pub async fn stop(self) {
        self.server.stop().await;
        self.work.close();
        self.work.wait().await;
    }
}

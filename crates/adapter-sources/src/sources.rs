//! One door for every kind of source.

use crate::patience::Patience;
use crate::source::S3Folder;
use crate::{Access, Error, Opened, Source, file, hub, s3};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::OnceCell;
use weft_object_store::S3Store;

/// What opens packages, within what an operator allows. One for a process: it keeps connections.
pub struct Sources {
    access: Access,
    hub: Arc<hub::Client>,
    /// A store for each bucket that is allowed, made when it is first used.
    stores: HashMap<String, OnceCell<S3Store>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("access", &self.access).finish_non_exhaustive()
    }
}

impl Sources {
    /// Checks the settings and makes the clients. No IO but for reading certificates.
    ///
    /// # Errors
    /// [`Error::Settings`] with every problem at once.
    pub fn new(access: Access) -> Result<Self, Error> {
        access.check()?;
        let hub = Arc::new(hub::Client::new(&access)?);
        let stores = access.s3_buckets.iter().map(|bucket| (bucket.clone(), OnceCell::new())).collect();
        Ok(Self { access, hub, stores })
    }

    /// What is allowed.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Finds the package, reads its config and begins its weights; what can be refused without reading the weights is refused here. Holds the
    /// config and at most a few chunks in memory, and writes nothing. A connection or a file stays open as long as the stream is kept.
    ///
    /// # Errors
    /// `refused` for what the operator does not allow and what is no package, `not_found`, `too_large`, `overloaded` with a time to wait if
    /// the hub says so, `unavailable` and `timeout` after retries, `invalid` for a damaged archive, `internal` for a wrong answer or
    /// setting. The stream's errors are the same, and `corrupt` at its end if the digest is wrong.
    ///
    /// # Cancel safety
    /// Dropping the future or the stream closes what was open.
    pub fn open<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<Opened, Error>> {
        let patience = Patience::start(&self.access);
        match source {
            Source::Hub(model) => Box::pin(hub::open(&self.hub, &self.access, model, patience)),
            Source::S3(folder) => Box::pin(self.open_s3(folder, patience)),
            Source::File(path) => Box::pin(file::open(&self.access, path, patience)),
        }
    }

    async fn open_s3(&self, folder: &S3Folder, patience: Patience) -> Result<Opened, Error> {
        let Some(store) = self.stores.get(folder.bucket()) else {
            return Err(Error::NotAllowed { what: format!("bucket {}", folder.bucket()), setting: "s3_buckets" });
        };
        let settings = self.access.s3.bucket(folder.bucket());
        let connect = async { store.get_or_try_init(|| S3Store::connect(&settings)).await };
        let store = patience.wait("the object store's credentials", connect).await??;
        s3::open(store, &self.access, folder, patience).await
    }
}

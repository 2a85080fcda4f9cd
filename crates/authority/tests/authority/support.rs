//! An S3 server of the test's own, and stores over it that can be paused, lose replies or go away.

use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::watch;
use weft_authority::{Candidate, Office, Settings};
use weft_object_store::{
    ETag, EmbeddedS3, Error, Object, ObjectMeta, ObjectPart, ObjectStore, ObjectStream, PutOutcome, S3Store,
};
use weft_placement::{Host, Placed, Plan};
use weft_types::Digest;

/// Short, so that take-overs do not take long; no test depends on how short.
pub(crate) const SETTINGS: Settings = Settings { silence_ms: 300, epoch_ms: 30 };

pub(crate) struct World {
    s3: EmbeddedS3,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(folder.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let world = Self { s3, _folder: folder };
        world.store().await.inner.ensure_bucket().await.unwrap();
        world
    }

    /// A client of its own, as another process has.
    pub(crate) async fn store(&self) -> Arc<Troubled> {
        let inner = S3Store::connect(&self.s3.settings("weft")).await.unwrap();
        let (is_paused, _) = watch::channel(false);
        Arc::new(Troubled {
            inner,
            is_paused,
            at_write: AtomicBool::new(false),
            lose: AtomicU32::new(0),
            away: AtomicBool::new(false),
        })
    }

    pub(crate) async fn candidate(&self, name: &str) -> (Arc<Troubled>, Candidate) {
        let store = self.store().await;
        let candidate = Candidate::new(Arc::clone(&store) as Arc<dyn ObjectStore>, name, SETTINGS);
        (store, candidate)
    }

    /// In office, fenced.
    pub(crate) async fn office(&self, name: &str) -> (Arc<Troubled>, Office) {
        let (store, mut candidate) = self.candidate(name).await;
        let mut office = candidate.stand().await.unwrap();
        office.fence().await.unwrap();
        (store, office)
    }
}

/// A store whose process can be stopped before a write, whose replies can be lost, that can be away.
pub(crate) struct Troubled {
    pub(crate) inner: S3Store,
    is_paused: watch::Sender<bool>,
    /// A write waits for the pause to end.
    at_write: AtomicBool,
    /// So many writes happen and are not answered.
    lose: AtomicU32,
    away: AtomicBool,
}

impl Troubled {
    pub(crate) fn pause(&self) {
        self.is_paused.send_replace(true);
    }

    pub(crate) fn wake(&self) {
        self.is_paused.send_replace(false);
    }

    /// Waits until a write is held by the pause.
    pub(crate) async fn is_held(&self) {
        while !self.at_write.load(Ordering::SeqCst) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn lose_replies(&self, count: u32) {
        self.lose.store(count, Ordering::SeqCst);
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn fail(key: &str) -> Error {
        let why = "on purpose";
        Error::Unavailable { operation: "test", key: key.to_owned(), message: why.to_owned(), source: why.into() }
    }

    fn reach(&self, key: &str) -> Result<(), Error> {
        if self.away.load(Ordering::SeqCst) { Err(Self::fail(key)) } else { Ok(()) }
    }

    async fn before_write(&self, key: &str) -> Result<(), Error> {
        let mut paused = self.is_paused.subscribe();
        if *paused.borrow_and_update() {
            self.at_write.store(true, Ordering::SeqCst);
            paused.wait_for(|is| !is).await.unwrap();
            self.at_write.store(false, Ordering::SeqCst);
        }
        self.reach(key)
    }

    fn answer<T>(&self, key: &str, result: Result<T, Error>) -> Result<T, Error> {
        let is_lost = self.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_lost { Err(Self::fail(key)) } else { result }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Troubled {
    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        self.reach(key)?;
        self.inner.get(key).await
    }
    async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, Error> {
        self.inner.get_stream(key).await
    }
    async fn get_part(&self, key: &str, range: Range<u64>, etag: Option<&ETag>) -> Result<Option<ObjectPart>, Error> {
        self.inner.get_part(key, range, etag).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, Error> {
        self.reach(key)?;
        self.inner.head(key).await
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<ETag, Error> {
        self.inner.put(key, bytes).await
    }
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, Error> {
        self.before_write(key).await?;
        let result = self.inner.put_if_absent(key, bytes).await;
        self.answer(key, result)
    }
    async fn put_if_match(&self, key: &str, bytes: Bytes, etag: &ETag) -> Result<PutOutcome, Error> {
        self.before_write(key).await?;
        let result = self.inner.put_if_match(key, bytes, etag).await;
        self.answer(key, result)
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, Error> {
        self.inner.list(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.inner.delete(key).await
    }
}

/// A plan that can be told from others.
pub(crate) fn plan_of(number: u64) -> Plan {
    let adapters = vec![Placed(Digest::of(&number.to_le_bytes()), vec![0])];
    Plan { workers: vec![Host("w".to_owned(), 100)], adapters, ..Plan::default() }
}

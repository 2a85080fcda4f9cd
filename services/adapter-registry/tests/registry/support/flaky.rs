//! A store that loses replies: the write happens, the writer is told that the store is away.

use bytes::Bytes;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;
use weft_object_store::{
    Content, ETag, Error, Object, ObjectMeta, ObjectPart, ObjectStore, ObjectStream, PutOutcome, S3Store,
};

pub(crate) struct Flaky {
    inner: S3Store,
    /// The next write whose key contains this is not answered.
    lose_next: Mutex<Option<String>>,
    /// Everything fails.
    away: Mutex<bool>,
    /// Objects that were read.
    reads: AtomicU64,
    /// Contents come only when it is false.
    held: watch::Sender<bool>,
    /// Contents whose keys contain this are put only when it is another again.
    hold_put: watch::Sender<Option<String>>,
}

impl Flaky {
    pub(crate) fn over(inner: S3Store) -> Self {
        Self {
            inner,
            lose_next: Mutex::default(),
            away: Mutex::default(),
            reads: AtomicU64::new(0),
            held: watch::Sender::new(false),
            hold_put: watch::Sender::new(None),
        }
    }

    /// How many objects were read since this was called last.
    pub(crate) fn take_reads(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn lose_reply_of(&self, key_part: &str) {
        *self.lose_next.lock().unwrap() = Some(key_part.to_owned());
    }

    pub(crate) fn set_away(&self, away: bool) {
        *self.away.lock().unwrap() = away;
    }

    pub(crate) fn hold_contents(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Holds contents on their way to such keys; `None` lets all go.
    pub(crate) fn hold_put_of(&self, key_part: Option<&str>) {
        self.hold_put.send_replace(key_part.map(str::to_owned));
    }

    /// Contents that are held.
    pub(crate) fn puts_held(&self) -> usize {
        self.hold_put.receiver_count()
    }

    fn fail(&self, key: &str) -> Error {
        Error::Unavailable {
            operation: "test",
            key: key.to_owned(),
            message: "away on purpose".to_owned(),
            source: "away on purpose".into(),
        }
    }

    fn reach(&self, key: &str) -> Result<(), Error> {
        if *self.away.lock().unwrap() { Err(self.fail(key)) } else { Ok(()) }
    }

    fn answered<T>(&self, key: &str, result: Result<T, Error>) -> Result<T, Error> {
        let mut lose_next = self.lose_next.lock().unwrap();
        if lose_next.as_ref().is_some_and(|part| key.contains(part)) {
            *lose_next = None;
            return Err(self.fail(key));
        }
        result
    }
}

#[tonic::async_trait]
impl ObjectStore for Flaky {
    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        self.reach(key)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key).await
    }
    async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, Error> {
        self.reach(key)?;
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        self.inner.get_stream(key).await
    }
    async fn get_part(&self, key: &str, range: Range<u64>, etag: Option<&ETag>) -> Result<Option<ObjectPart>, Error> {
        self.reach(key)?;
        self.inner.get_part(key, range, etag).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, Error> {
        self.reach(key)?;
        self.inner.head(key).await
    }
    async fn put(&self, key: &str, bytes: Bytes) -> Result<ETag, Error> {
        self.reach(key)?;
        let result = self.inner.put(key, bytes).await;
        self.answered(key, result)
    }
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, Error> {
        self.reach(key)?;
        let result = self.inner.put_if_absent(key, bytes).await;
        self.answered(key, result)
    }
    async fn put_content_if_absent(&self, key: &str, content: Content) -> Result<PutOutcome, Error> {
        self.reach(key)?;
        let is_free = |held: &Option<String>| held.as_ref().is_none_or(|part| !key.contains(part));
        let _ = self.hold_put.subscribe().wait_for(is_free).await;
        let result = self.inner.put_content_if_absent(key, content).await;
        self.answered(key, result)
    }
    async fn put_if_match(&self, key: &str, bytes: Bytes, etag: &ETag) -> Result<PutOutcome, Error> {
        self.reach(key)?;
        let result = self.inner.put_if_match(key, bytes, etag).await;
        self.answered(key, result)
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, Error> {
        self.reach(prefix)?;
        self.inner.list(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.reach(key)?;
        self.inner.delete(key).await
    }
}

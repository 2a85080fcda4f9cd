//! A real store whose puts are answered late, after they were done.

use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::time::Duration;
use weft_object_store::{ETag, Error, Object, ObjectMeta, ObjectPart, ObjectStore, ObjectStream, PutOutcome, S3Store};

pub(crate) struct SlowAfterPut {
    pub(crate) store: S3Store,
    pub(crate) pause: Duration,
}

#[async_trait]
impl ObjectStore for SlowAfterPut {
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, Error> {
        let outcome = self.store.put_if_absent(key, bytes).await;
        tokio::time::sleep(self.pause).await;
        outcome
    }

    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        self.store.get(key).await
    }

    async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, Error> {
        self.store.get_stream(key).await
    }

    async fn get_part(&self, key: &str, range: Range<u64>, etag: Option<&ETag>) -> Result<Option<ObjectPart>, Error> {
        self.store.get_part(key, range, etag).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, Error> {
        self.store.head(key).await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<ETag, Error> {
        self.store.put(key, bytes).await
    }

    async fn put_if_match(&self, key: &str, bytes: Bytes, etag: &ETag) -> Result<PutOutcome, Error> {
        self.store.put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, Error> {
        self.store.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.store.delete(key).await
    }
}

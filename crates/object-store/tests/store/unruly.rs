//! Endpoints that break promises are refused, and answers that get lost or come late do not confuse a writer.

use crate::support::{BUCKET, embedded, loopback};
use bytes::Bytes;
use futures::TryStreamExt;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weft_object_store::embedded::{Credentials, Server};
use weft_object_store::{Content, Error, ObjectStore, PutOutcome, S3Store, probe};

/// How an [`Unruly`] server misbehaves. All false: it behaves.
#[derive(Clone, Copy, Debug, Default)]
struct Manners {
    ignores_if_none_match: bool,
    ignores_if_match: bool,
    /// Checks the condition, then lets others go first.
    checks_without_lock: bool,
    /// 412 instead of 404 for `If-Match` on a missing key.
    missing_is_412: bool,
    /// Lists nothing.
    lists_nothing: bool,
}

#[derive(Clone)]
struct Stored {
    body: Bytes,
    etag: String,
    metadata: Option<Metadata>,
}

/// An S3 in memory whose manners can be chosen.
#[derive(Clone, Default)]
struct Unruly {
    manners: Manners,
    objects: Arc<Mutex<BTreeMap<String, Stored>>>,
    writes: Arc<AtomicU32>,
    /// The next so many puts answer 409 and write nothing.
    busy: Arc<AtomicU32>,
    /// The next so many puts write and answer 500.
    fails_after_write: Arc<AtomicU32>,
    /// The next so many puts write and break the connection.
    breaks_after_write: Arc<AtomicU32>,
}

fn take(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Unruly {
    fn check(&self, input: &PutObjectInput) -> S3Result<()> {
        let objects = self.objects.lock().unwrap();
        let found = objects.get(&input.key);
        if input.if_none_match.is_some() && found.is_some() && !self.manners.ignores_if_none_match {
            return Err(s3_error!(PreconditionFailed));
        }
        if let Some(ETagCondition::ETag(etag)) = &input.if_match
            && !self.manners.ignores_if_match
        {
            match found {
                None if self.manners.missing_is_412 => return Err(s3_error!(PreconditionFailed)),
                None => return Err(s3_error!(NoSuchKey)),
                Some(found) if found.etag != etag.value() => return Err(s3_error!(PreconditionFailed)),
                Some(_) => {}
            }
        }
        Ok(())
    }

    async fn store(&self) -> (Server, S3Store) {
        let server = Server::start(self.clone(), loopback(), Credentials::random()).await.unwrap();
        let store = S3Store::connect(&server.settings(BUCKET)).await.unwrap();
        (server, store)
    }
}

#[async_trait::async_trait]
impl S3 for Unruly {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = request.input;
        let pieces: Vec<Bytes> = input.body.take().unwrap().try_collect().await.unwrap();
        if take(&self.busy) {
            return Err(s3_error!(ConditionalRequestConflict));
        }
        let etag = format!("etag-{}", self.writes.fetch_add(1, Ordering::SeqCst));
        if self.manners.checks_without_lock {
            self.check(&input)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            // One thread serves this fake: nothing comes between the check and the insert.
            self.check(&input)?;
        }
        let stored = Stored { body: pieces.concat().into(), etag: etag.clone(), metadata: input.metadata };
        self.objects.lock().unwrap().insert(input.key, stored);
        if take(&self.fails_after_write) {
            return Err(s3_error!(InternalError));
        }
        assert!(!take(&self.breaks_after_write), "the reply is lost on purpose");
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let found =
            self.objects.lock().unwrap().get(&request.input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
        let body = s3s::Body::from(found.body.clone());
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(found.body.len() as i64),
            body: Some(body.into()),
            e_tag: Some(ETag::Strong(found.etag)),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let found =
            self.objects.lock().unwrap().get(&request.input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(found.body.len() as i64),
            e_tag: Some(ETag::Strong(found.etag)),
            metadata: found.metadata,
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.objects.lock().unwrap().remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let prefix = request.input.prefix.unwrap_or_default();
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && !self.manners.lists_nothing);
        let contents = found.map(|(key, stored)| Object {
            key: Some(key.clone()),
            size: Some(stored.body.len() as i64),
            e_tag: Some(ETag::Strong(stored.etag.clone())),
            ..Default::default()
        });
        Ok(S3Response::new(ListObjectsV2Output { contents: Some(contents.collect()), ..Default::default() }))
    }
}

#[tokio::test]
async fn the_probe_takes_a_server_that_keeps_its_promises_and_leaves_nothing_there() {
    let (_folder, _server, store) = embedded().await;
    probe(&store).await.unwrap();
    assert!(store.list("").await.unwrap().is_empty());

    for missing_is_412 in [false, true] {
        let unruly = Unruly { manners: Manners { missing_is_412, ..Default::default() }, ..Default::default() };
        let (_server, store) = unruly.store().await;
        probe(&store).await.unwrap();
        assert!(unruly.objects.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_probe_refuses_a_server_that_breaks_a_promise_and_names_it() {
    for (manners, promise) in [
        (Manners { ignores_if_none_match: true, ..Default::default() }, "if-none-match: * does not stop"),
        (Manners { ignores_if_match: true, ..Default::default() }, "if-match does not stop"),
        (Manners { checks_without_lock: true, ..Default::default() }, "racing"),
        (Manners { lists_nothing: true, ..Default::default() }, "listing"),
    ] {
        let unruly = Unruly { manners, ..Default::default() };
        let (server, store) = unruly.store().await;
        let error = probe(&store).await.unwrap_err();
        assert!(matches!(&error, Error::NotConforming(_)), "{error:?}");
        assert!(error.to_string().contains(promise), "{error}");
        assert!(error.to_string().contains(&format!(" at http://{}: ", server.address())), "{error}");
    }
}

#[tokio::test]
async fn a_writer_whose_reply_was_lost_learns_that_it_won() {
    for breaks in [false, true] {
        let unruly = Unruly::default();
        let (_server, store) = unruly.store().await;
        let lose = |n| {
            if breaks {
                unruly.breaks_after_write.store(n, Ordering::SeqCst)
            } else {
                unruly.fails_after_write.store(n, Ordering::SeqCst)
            }
        };
        lose(1);
        let outcome = store.put_if_absent("k", Bytes::from_static(b"mine")).await.unwrap();
        let etag = store.get("k").await.unwrap().unwrap().etag;
        assert_eq!(outcome, PutOutcome::Written(etag.clone()), "breaks: {breaks}");
        lose(1);
        let outcome = store.put_if_match("k", Bytes::from_static(b"mine too"), &etag).await.unwrap();
        let object = store.get("k").await.unwrap().unwrap();
        assert_eq!(outcome, PutOutcome::Written(object.etag), "breaks: {breaks}");
        assert_eq!(&object.bytes[..], b"mine too");
        assert_eq!(store.put_if_absent("k", Bytes::from_static(b"other")).await.unwrap(), PutOutcome::Lost);
        // Content in pieces is sent again, too.
        let content = Content::of(vec![Bytes::from_static(b"one "), Bytes::from_static(b"two")]);
        lose(1);
        let outcome = store.put_content_if_absent("pieces", content.clone()).await.unwrap();
        let object = store.get("pieces").await.unwrap().unwrap();
        assert_eq!(outcome, PutOutcome::Written(object.etag), "breaks: {breaks}");
        assert_eq!(&object.bytes[..], b"one two");
        assert_eq!(store.put_content_if_absent("pieces", content).await.unwrap(), PutOutcome::Lost);
    }
}

#[tokio::test]
async fn a_conflict_under_way_is_waited_out_but_not_for_ever() {
    let unruly = Unruly::default();
    let (_server, store) = unruly.store().await;
    unruly.busy.store(3, Ordering::SeqCst);
    assert!(store.put_if_absent("k", Bytes::from_static(b"1")).await.unwrap().is_written());
    unruly.busy.store(u32::MAX, Ordering::SeqCst);
    let error = store.put_if_absent("other", Bytes::from_static(b"1")).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { message, .. } if message.contains("ConditionalRequestConflict")),
        "{error:?}"
    );
    assert!(!unruly.objects.lock().unwrap().contains_key("other"));
}

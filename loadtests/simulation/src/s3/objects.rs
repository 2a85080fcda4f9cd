//! One bucket of objects in memory, and the operations of S3 that registries use on it.

use futures::StreamExt;
use s3s::crypto::{Checksum, Md5};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const LIST_KEYS_MAX: i32 = 1000;

/// One state of an object.
#[derive(Clone)]
struct Stored {
    bytes: bytes::Bytes,
    etag: String,
    metadata: HashMap<String, String>,
}

/// What is stored. Every change is whole and at once.
#[derive(Default)]
pub(crate) struct Objects(Mutex<BTreeMap<String, Stored>>);

impl Objects {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content of this object now, past every fault.
    #[must_use]
    pub(crate) fn peek(&self, key: &str) -> Option<bytes::Bytes> {
        self.all().get(key).map(|stored| stored.bytes.clone())
    }
}

pub(super) struct Operations(pub(super) Arc<Objects>);

impl Operations {
    fn get(&self, key: &str) -> S3Result<Stored> {
        self.0.all().get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

fn content_etag(bytes: &[u8]) -> String {
    let mut md5 = Md5::new();
    md5.update(bytes);
    md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[async_trait::async_trait]
impl S3 for Operations {
    async fn head_bucket(&self, _: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let mut body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let mut bytes = bytes::BytesMut::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|_| s3_error!(IncompleteBody))?);
        }
        if input.content_length.is_some_and(|length| length != bytes.len() as i64) {
            return Err(s3_error!(IncompleteBody));
        }
        // From here on nothing is waited for: condition and write are one.
        let mut all = self.0.all();
        let is_there = all.get(&input.key);
        match (&input.if_none_match, &input.if_match) {
            (None, None) => {}
            (Some(ETagCondition::Any), None) if is_there.is_none() => {}
            (Some(ETagCondition::Any), None) => return Err(s3_error!(PreconditionFailed)),
            (None, Some(ETagCondition::ETag(etag))) => match is_there {
                None => return Err(s3_error!(NoSuchKey)),
                Some(stored) if stored.etag == etag.value() => {}
                Some(_) => return Err(s3_error!(PreconditionFailed)),
            },
            _ => return Err(s3_error!(NotImplemented)),
        }
        let bytes = bytes.freeze();
        let etag = content_etag(&bytes);
        let metadata = input.metadata.unwrap_or_default().into_iter().collect();
        all.insert(input.key, Stored { bytes, etag: etag.clone(), metadata });
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let stored = self.get(&request.input.key)?;
        let length = stored.bytes.len() as i64;
        let body = futures::stream::once(async move { Ok::<_, std::io::Error>(stored.bytes) });
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(body)),
            content_length: Some(length),
            e_tag: Some(ETag::Strong(stored.etag)),
            metadata: Some(stored.metadata.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let stored = self.get(&request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(stored.bytes.len() as i64),
            e_tag: Some(ETag::Strong(stored.etag)),
            metadata: Some(stored.metadata.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.0.all().remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.or(input.start_after).unwrap_or_default();
        let keys_max = input.max_keys.unwrap_or(LIST_KEYS_MAX).clamp(1, LIST_KEYS_MAX) as usize;
        let all = self.0.all();
        let mut found: Vec<(&String, &Stored)> =
            all.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after).take(keys_max + 1).collect();
        let is_truncated = found.len() > keys_max;
        found.truncate(keys_max);
        let next = found.last().map(|(key, _)| (*key).clone()).filter(|_| is_truncated);
        let contents = found.iter().map(|(key, stored)| Object {
            key: Some((*key).clone()),
            size: Some(stored.bytes.len() as i64),
            e_tag: Some(ETag::Strong(stored.etag.clone())),
            ..Default::default()
        });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: Some(found.len() as i32),
            contents: Some(contents.collect()),
            is_truncated: Some(is_truncated),
            next_continuation_token: next,
            prefix: Some(prefix),
            ..Default::default()
        }))
    }
}

//! The S3 operations that the mesh and an operator's `aws s3` use, over a [`Folder`]: buckets, and whole objects with
//! conditions, ranges and listings. No multipart uploads, versions, ACLs or tags: `s3s` answers those `NotImplemented`.

use super::folder::{Bucket, Condition, Folder, KeyError, Temporary, Verdict, check_key};
use super::object_file::{self, Attributes};
use crate::Error;
use crate::error::is_full;
use bytes::Bytes;
use futures::StreamExt;
use s3s::crypto::{Checksum, Md5};
use s3s::dto::*;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use tokio_util::task::TaskTracker;

/// Bytes gathered before a piece goes to disk, and read from disk at once.
const PIECE_BYTES: usize = 256 << 10;
/// S3's limit of one put.
const OBJECT_BYTES_MAX: i64 = 5 << 30;
/// S3's limit of user metadata.
const METADATA_BYTES_MAX: usize = 2 << 10;
const LIST_KEYS_MAX: i32 = 1000;

/// The operations. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FolderS3 {
    pub(crate) folder: Arc<Folder>,
    /// Every piece of work off the runtime, so that stopping can wait for it.
    pub(crate) work: TaskTracker,
}

impl FolderS3 {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let folder = Arc::clone(&self.folder);
        match self.work.spawn_blocking(move || work(&folder)).await {
            Ok(result) => result,
            Err(error) => Err(S3Error::internal_error(error)),
        }
    }

    fn bucket(&self, name: &str) -> S3Result<Arc<Bucket>> {
        self.folder.bucket(name).ok_or_else(|| s3_error!(NoSuchBucket))
    }
}

fn refuse_key(key: &str) -> S3Result<()> {
    match check_key(key) {
        Ok(()) => Ok(()),
        Err(KeyError::TooLong) => Err(s3_error!(KeyTooLongError)),
        Err(KeyError::Empty) => Err(s3_error!(InvalidArgument, "the key is empty")),
        Err(KeyError::ControlCharacter) => Err(s3_error!(InvalidArgument, "the key has a control character")),
    }
}

fn failed(error: Error) -> S3Error {
    if let Error::Io { source, .. } = &error
        && is_full(source)
    {
        return storage_full(source);
    }
    tracing::error!(error = &error as &dyn std::error::Error, "embedded object store failed");
    S3Error::internal_error(error)
}

fn io_failed(error: std::io::Error) -> S3Error {
    if is_full(&error) { storage_full(&error) } else { failed(Error::io("a write under way", error)) }
}

fn storage_full(error: &std::io::Error) -> S3Error {
    tracing::warn!(%error, "embedded object store has no room");
    let mut full =
        S3Error::with_message(S3ErrorCode::Custom("StorageFull".into()), format!("no room for the object: {error}"));
    full.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
    full
}

fn judged(verdict: Verdict) -> S3Result<()> {
    match verdict {
        Verdict::Holds => Ok(()),
        Verdict::Fails => Err(s3_error!(PreconditionFailed, "the condition does not hold")),
        Verdict::Missing => Err(s3_error!(NoSuchKey, "the condition needs an object and there is none")),
    }
}

fn condition(input: &PutObjectInput) -> S3Result<Condition> {
    match (&input.if_match, &input.if_none_match) {
        (None, None) => Ok(Condition::Always),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::Any), None) => Ok(Condition::Present),
        (Some(ETagCondition::ETag(etag)), None) => Ok(Condition::Matches(etag.value().to_owned())),
        (_, Some(ETagCondition::ETag(_))) => Err(s3_error!(NotImplemented, "if-none-match takes only *")),
        (Some(_), Some(_)) => Err(s3_error!(NotImplemented, "if-match and if-none-match exclude each other")),
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn timestamp(ms: u64) -> Timestamp {
    (UNIX_EPOCH + Duration::from_millis(ms)).into()
}

/// Reads a body to its end: whoever still sends when a connection closes may never see the answer.
async fn drain(body: Option<StreamingBlob>) -> S3Result<()> {
    let Some(mut body) = body else { return Ok(()) };
    while let Some(piece) = body.next().await {
        piece.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
    }
    Ok(())
}

/// Streams the body into a temporary file; its length and MD5.
async fn receive(s3: &FolderS3, mut body: StreamingBlob) -> S3Result<(Temporary, u64, [u8; 16])> {
    let mut writing = (s3.blocking(|folder| folder.temporary().map_err(failed)).await?, Md5::new());
    let mut length = 0;
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut gathered = 0;
    loop {
        let next = body.next().await;
        let ended = next.is_none();
        if let Some(piece) = next {
            let piece = piece.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
            gathered += piece.len();
            pieces.push(piece);
        }
        if gathered >= PIECE_BYTES || ended {
            length += gathered as u64;
            gathered = 0;
            let batch = std::mem::take(&mut pieces);
            let (mut temporary, mut md5) = writing;
            writing = s3
                .blocking(move |_| {
                    for piece in batch {
                        md5.update(&piece);
                        temporary.file.write_all(&piece).map_err(io_failed)?;
                    }
                    Ok((temporary, md5))
                })
                .await?;
        }
        if ended {
            let (temporary, md5) = writing;
            return Ok((temporary, length, md5.finalize()));
        }
    }
}

#[async_trait::async_trait]
impl S3 for FolderS3 {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let name = request.input.bucket;
        if !self.blocking(move |folder| folder.create_bucket(&name).map_err(failed)).await? {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.folder.bucket_names().into_iter();
        let buckets = buckets.map(|name| s3s::dto::Bucket { name: Some(name), ..Default::default() }).collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..Default::default() }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let bucket = self.bucket(&input.bucket)?;
        refuse_key(&input.key)?;
        let condition = condition(&input)?;
        let metadata: std::collections::BTreeMap<_, _> = input.metadata.unwrap_or_default().into_iter().collect();
        if metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > METADATA_BYTES_MAX {
            return Err(s3_error!(MetadataTooLarge));
        }
        if input.content_length.is_some_and(|length| length > OBJECT_BYTES_MAX) {
            return Err(s3_error!(EntityTooLarge));
        }
        // Spares the disk a write that has lost already; what counts is the check under the lock.
        if let Err(lost) = judged(bucket.check(&input.key, &condition)) {
            drain(input.body).await?;
            return Err(lost);
        }

        let body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let (mut temporary, bytes, md5) = receive(self, body).await?;
        if input.content_length.is_some_and(|length| length != bytes as i64) {
            return Err(s3_error!(IncompleteBody));
        }
        if input.content_md5.is_some_and(|expected| Checksummed(&md5) != *expected) {
            return Err(s3_error!(BadDigest));
        }
        let etag = hex::encode(md5);
        let attributes =
            Attributes { bytes, etag: etag.clone(), modified_ms: now_ms(), content_type: input.content_type, metadata };
        let verdict = self
            .blocking(move |folder| {
                object_file::finish(&mut temporary.file, &attributes).map_err(io_failed)?;
                folder.commit(&bucket, &input.key, &temporary, &attributes, &condition).map_err(failed)
            })
            .await?;
        judged(verdict)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let bucket = self.bucket(&input.bucket)?;
        let (file, attributes) = read(self, bucket, input.key).await?;
        let is_wanted = match &input.if_match {
            None | Some(ETagCondition::Any) => true,
            Some(ETagCondition::ETag(etag)) => etag.value() == attributes.etag,
        };
        if !is_wanted {
            return Err(s3_error!(PreconditionFailed, "the object is in another state"));
        }
        let whole = attributes.bytes;
        let range = match input.range {
            Some(range) => Some(range.check(whole)?),
            None => None,
        };
        let span = range.clone().unwrap_or(0..whole);
        let length = span.end - span.start;
        let mut file = file;
        let file = self
            .blocking(move |_| {
                file.seek(SeekFrom::Start(span.start)).map_err(io_failed)?;
                Ok(file)
            })
            .await?;
        let content = ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(length), PIECE_BYTES);
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(content)),
            content_length: Some(length as i64),
            content_range: range.map(|range| format!("bytes {}-{}/{whole}", range.start, range.end - 1)),
            accept_ranges: Some("bytes".to_owned()),
            content_type: attributes.content_type,
            e_tag: Some(ETag::Strong(attributes.etag)),
            last_modified: Some(timestamp(attributes.modified_ms)),
            metadata: Some(attributes.metadata.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let bucket = self.bucket(&request.input.bucket)?;
        let (_, attributes) = read(self, bucket, request.input.key).await?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(attributes.bytes as i64),
            accept_ranges: Some("bytes".to_owned()),
            content_type: attributes.content_type,
            e_tag: Some(ETag::Strong(attributes.etag)),
            last_modified: Some(timestamp(attributes.modified_ms)),
            metadata: Some(attributes.metadata.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        if input.if_match.is_some() {
            return Err(s3_error!(NotImplemented, "if-match is not supported on delete"));
        }
        let bucket = self.bucket(&input.bucket)?;
        refuse_key(&input.key)?;
        self.blocking(move |folder| folder.delete(&bucket, &input.key).map_err(failed)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let bucket = self.bucket(&input.bucket)?;
        let prefix = input.prefix.as_deref().unwrap_or("");
        let delimiter = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
        // A token is the last name of the page before, in hex because names are not limited to what XML can carry.
        let token = input.continuation_token.as_deref().map(|token| {
            let name = hex::decode(token).ok().and_then(|name| String::from_utf8(name).ok());
            name.ok_or_else(|| s3_error!(InvalidArgument, "unknown continuation token"))
        });
        let after = token.transpose()?.or_else(|| input.start_after.clone());
        let max_keys = input.max_keys.unwrap_or(LIST_KEYS_MAX).clamp(0, LIST_KEYS_MAX);
        let page = bucket.list(prefix, delimiter, after.as_deref(), max_keys as usize);
        let count = page.objects.len() + page.common_prefixes.len();
        let contents = page.objects.into_iter().map(|(key, entry)| Object {
            key: Some(key),
            size: Some(entry.bytes as i64),
            e_tag: Some(ETag::Strong(entry.etag)),
            last_modified: Some(timestamp(entry.modified_ms)),
            ..Default::default()
        });
        let prefixes = page.common_prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            contents: Some(contents.collect()),
            common_prefixes: Some(prefixes.collect()),
            delimiter: input.delimiter,
            key_count: Some(count as i32),
            max_keys: Some(max_keys),
            is_truncated: Some(page.next_after.is_some()),
            next_continuation_token: page.next_after.map(hex::encode),
            continuation_token: input.continuation_token,
            start_after: input.start_after,
            prefix: input.prefix,
            ..Default::default()
        }))
    }
}

async fn read(s3: &FolderS3, bucket: Arc<Bucket>, key: String) -> S3Result<(std::fs::File, Attributes)> {
    refuse_key(&key)?;
    let found = s3.blocking(move |_| bucket.read(&key).map_err(failed)).await?;
    found.ok_or_else(|| s3_error!(NoSuchKey))
}

/// A digest to compare with its base64 text.
struct Checksummed<'a>(&'a [u8]);

impl PartialEq<str> for Checksummed<'_> {
    fn eq(&self, text: &str) -> bool {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.decode(text).is_ok_and(|digest| digest == self.0)
    }
}

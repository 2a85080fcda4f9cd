//! The port over an S3 endpoint.
//!
//! A conditional put carries a random id in the object's metadata. The SDK retries a put whose reply was lost; if the
//! first try happened, the retry gets 412. The id tells this from a lost race: on 412 the object is asked for its id.

mod carried;
mod failure;
mod part;
mod payload;
mod settings;

pub use settings::S3Settings;

use crate::{Content, ETag, Error, Object, ObjectMeta, ObjectPart, ObjectStore, ObjectStream, PutOutcome};
use async_trait::async_trait;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use aws_sdk_s3::{Client, config};
use aws_smithy_http_client::Builder as HttpClient;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use bytes::Bytes;
use failure::{Failure, classify};
use futures::StreamExt;
use futures::future::BoxFuture;
use payload::Payload;
use settings::Keys;
use std::io;
use std::ops::Range;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Metadata that names the put which wrote the object.
const WRITE_ID: &str = "weft-write-id";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer without a large body.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Slower uploads than this are given up.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// A stream that brings nothing for so long is given up.
const STALL_GRACE: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 4;
/// Tries of a conditional put that meets another one under way (409).
const BUSY_ATTEMPTS: u32 = 8;
const BUSY_DELAY_MS: u64 = 20;

/// Objects in a bucket of an S3 endpoint. Cheap to clone.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    prefix: String,
    region: String,
    /// For messages.
    endpoint: String,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
enum Condition<'a> {
    Always,
    Absent,
    Matches(&'a ETag),
}

impl S3Store {
    /// Makes a client. Does no IO beyond reading certificates and, without keys, finding credentials; whether the
    /// endpoint answers shows in [`S3Store::ensure_bucket`] and [`S3Store::probe`].
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub async fn connect(settings: &S3Settings) -> Result<Self, Error> {
        let http_client = if settings.is_plain_http() {
            HttpClient::new().build_http()
        } else {
            HttpClient::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
        };
        Self::connect_by(settings, http_client).await
    }

    /// The same over connections that `dial` makes to the `host:port` of an endpoint that speaks plain HTTP.
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub async fn connect_carried<F, I>(
        settings: &S3Settings,
        dial: impl Fn(String) -> F + Send + Sync + 'static,
    ) -> Result<Self, Error>
    where
        F: Future<Output = io::Result<I>> + Send + 'static,
        I: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
    {
        if !settings.is_plain_http() {
            let problem = "must be http://host:port where connections are carried".to_owned();
            return Err(Error::Settings { field: "endpoint", problem });
        }
        Self::connect_by(settings, carried::http_client(dial, CONNECT_TIMEOUT)).await
    }

    fn connect_by(settings: &S3Settings, http_client: SharedHttpClient) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(Self::configure(settings, http_client))
    }

    async fn configure(settings: &S3Settings, http_client: SharedHttpClient) -> Result<Self, Error> {
        let keys = settings.check()?;
        let region = Region::new(settings.region.clone());
        let mut config = config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(region.clone())
            .force_path_style(settings.path_style)
            // Servers other than AWS stumble over the trailing checksums that newer SDKs send by default.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts(0))
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE).build())
            .http_client(http_client.clone());
        match keys {
            Keys::Given { id, secret } => {
                config = config.credentials_provider(Credentials::new(id, secret, None, None, "settings"));
            }
            Keys::AwsChain => {
                let chain = aws_config::defaults(BehaviorVersion::latest()).region(region).http_client(http_client);
                config.set_credentials_provider(chain.load().await.credentials_provider());
            }
        }
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Self {
            client: Client::from_conf(config.build()),
            bucket: settings.bucket.clone(),
            prefix: settings.prefix.clone(),
            region: settings.region.clone(),
            endpoint: settings.endpoint.clone().unwrap_or_else(|| format!("s3.{}.amazonaws.com", settings.region)),
        })
    }

    /// Creates the bucket if it is not there.
    ///
    /// # Errors
    /// The endpoint is away, or refuses us.
    pub fn ensure_bucket(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.create_bucket())
    }

    async fn create_bucket(&self) -> Result<(), Error> {
        const OPERATION: &str = "create bucket";
        let head = self.client.head_bucket().bucket(&self.bucket).send().await;
        match head.map_err(|error| classify("head bucket", &self.bucket, error)) {
            Ok(_) => return Ok(()),
            Err(Failure::NotFound) => {}
            Err(failure) => return Err(failure.into_error("head bucket", &self.bucket)),
        }
        let mut create = self.client.create_bucket().bucket(&self.bucket);
        // The one region that must not be named.
        if self.region != "us-east-1" {
            let location = BucketLocationConstraint::from(self.region.as_str());
            let configuration = CreateBucketConfiguration::builder().location_constraint(location).build();
            create = create.create_bucket_configuration(configuration);
        }
        match create.send().await.map_err(|error| classify(OPERATION, &self.bucket, error)) {
            // Busy: somebody created it meanwhile.
            Ok(_) | Err(Failure::Busy(_)) => Ok(()),
            Err(failure) => Err(failure.into_error(OPERATION, &self.bucket)),
        }
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Puts under a condition, telling our own earlier try from somebody else's write.
    async fn put_under(&self, key: &str, payload: Payload, condition: Condition<'_>) -> Result<PutOutcome, Error> {
        const OPERATION: &str = "put";
        let write_id = uuid::Uuid::new_v4().to_string();
        let mut busy = 0;
        loop {
            let mut put = self
                .client
                .put_object()
                .bucket(&self.bucket)
                .key(self.full_key(key))
                .metadata(WRITE_ID, &write_id)
                .content_length(payload.bytes() as i64)
                .body(payload.body());
            put = match condition {
                Condition::Always => put,
                Condition::Absent => put.if_none_match("*"),
                Condition::Matches(etag) => put.if_match(etag.as_str()),
            };
            let mut of_this = config::Builder::new().timeout_config(timeouts(payload.bytes()));
            if let Some(signing) = payload.signing() {
                of_this = of_this.interceptor(signing);
            }
            let sent = put.customize().config_override(of_this).send().await;
            let failure = match sent.map_err(|error| classify(OPERATION, key, error)) {
                Ok(written) => return Ok(PutOutcome::Written(etag(written.e_tag, OPERATION, key)?)),
                Err(failure) => failure,
            };
            match (condition, failure) {
                (Condition::Absent | Condition::Matches(_), Failure::ConditionFailed) => {
                    return self.own_write(key, &write_id).await;
                }
                // S3 answers 404 to if-match on a missing key, others 412.
                (Condition::Matches(_), Failure::NotFound) => return Ok(PutOutcome::Lost),
                (_, Failure::Busy(error)) => {
                    busy += 1;
                    if busy == BUSY_ATTEMPTS {
                        return Err(error);
                    }
                    tokio::time::sleep(jittered(BUSY_DELAY_MS << busy.min(5))).await;
                }
                (_, failure) => return Err(failure.into_error(OPERATION, key)),
            }
        }
    }

    /// Whether the object that stands in the way is the one this call wrote before its reply was lost.
    async fn own_write(&self, key: &str, write_id: &str) -> Result<PutOutcome, Error> {
        let head = self.client.head_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        match head.map_err(|error| classify("head", key, error)) {
            Ok(head)
                if head.metadata().and_then(|metadata| metadata.get(WRITE_ID)).is_some_and(|id| id == write_id) =>
            {
                Ok(PutOutcome::Written(etag(head.e_tag, "head", key)?))
            }
            Ok(_) | Err(Failure::NotFound) => Ok(PutOutcome::Lost),
            Err(failure) => Err(failure.into_error("head", key)),
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn place(&self) -> String {
        format!("bucket {} at {}", self.bucket, self.endpoint)
    }

    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        let Some(found) = self.get_stream(key).await? else { return Ok(None) };
        let mut stream = found.stream;
        // Most objects come in one piece; that one is handed on without a copy.
        let Some(first) = stream.next().await.transpose()? else {
            return Ok(Some(Object { bytes: Bytes::new(), etag: found.etag }));
        };
        if first.len() as u64 == found.bytes {
            return Ok(Some(Object { bytes: first, etag: found.etag }));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(found.bytes).unwrap_or(0));
        bytes.extend_from_slice(&first);
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(Some(Object { bytes: bytes.into(), etag: found.etag }))
    }

    async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, Error> {
        let got = self.client.get_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        let got = match got.map_err(|error| classify("get", key, error)) {
            Ok(got) => got,
            Err(Failure::NotFound) => return Ok(None),
            Err(failure) => return Err(failure.into_error("get", key)),
        };
        let bytes = length(got.content_length, "get", key)?;
        let etag = etag(got.e_tag, "get", key)?;
        Ok(Some(ObjectStream { bytes, etag, stream: pieces(got.body, key.to_owned(), bytes).boxed() }))
    }

    async fn get_part(&self, key: &str, range: Range<u64>, etag: Option<&ETag>) -> Result<Option<ObjectPart>, Error> {
        part::get(self, key, range, etag).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, Error> {
        let head = self.client.head_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        match head.map_err(|error| classify("head", key, error)) {
            Ok(head) => Ok(Some(ObjectMeta {
                key: key.to_owned(),
                bytes: length(head.content_length, "head", key)?,
                etag: etag(head.e_tag, "head", key)?,
            })),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure.into_error("head", key)),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<ETag, Error> {
        match self.put_under(key, Payload::Bytes(bytes), Condition::Always).await? {
            PutOutcome::Written(etag) => Ok(etag),
            PutOutcome::Lost => Err(Failure::ConditionFailed.into_error("put", key)),
        }
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, Error> {
        self.put_under(key, Payload::Bytes(bytes), Condition::Absent).await
    }

    async fn put_content_if_absent(&self, key: &str, content: Content) -> Result<PutOutcome, Error> {
        self.put_under(key, Payload::Content(content), Condition::Absent).await
    }

    async fn put_if_match(&self, key: &str, bytes: Bytes, etag: &ETag) -> Result<PutOutcome, Error> {
        self.put_under(key, Payload::Bytes(bytes), Condition::Matches(etag)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, Error> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(self.full_key(prefix))
                .set_continuation_token(token)
                .send()
                .await
                .map_err(|error| classify("list", prefix, error).into_error("list", prefix))?;
            for object in page.contents.unwrap_or_default() {
                let full_key = object.key.unwrap_or_default();
                let Some(key) = full_key.strip_prefix(&self.prefix) else { continue };
                found.push(ObjectMeta {
                    key: key.to_owned(),
                    bytes: length(object.size, "list", key)?,
                    etag: etag(object.e_tag, "list", key)?,
                });
            }
            token = page.next_continuation_token;
            if token.is_none() || page.is_truncated != Some(true) {
                return Ok(found);
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        let deleted = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key)).send().await;
        match deleted.map_err(|error| classify("delete", key, error)) {
            Ok(_) | Err(Failure::NotFound) => Ok(()),
            Err(failure) => Err(failure.into_error("delete", key)),
        }
    }
}

/// The body in pieces, with an error at the end if some of it is missing.
fn pieces(body: ByteStream, key: String, expected: u64) -> impl futures::Stream<Item = Result<Bytes, Error>> + Send {
    futures::stream::unfold(Some((body, key, 0u64)), move |state| async move {
        let (mut body, key, received) = state?;
        match body.try_next().await {
            Ok(Some(piece)) => {
                let received = received + piece.len() as u64;
                Some((Ok(piece), Some((body, key, received))))
            }
            Ok(None) if received == expected => None,
            Ok(None) => Some((Err(Error::Truncated { key, received, expected }), None)),
            Err(error) => {
                let message = format!("the connection broke after {received} of {expected} bytes");
                Some((Err(Error::Unavailable { operation: "get", key, message, source: Box::new(error) }), None))
            }
        }
    })
}

fn timeouts(upload_bytes: u64) -> TimeoutConfig {
    let upload = Duration::from_secs(upload_bytes / UPLOAD_BYTES_PER_SECOND_MIN);
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT + upload)
        .operation_timeout((ATTEMPT_TIMEOUT + upload) * 2)
        .build()
}

/// Half of it is random, so that those who met do not meet again.
fn jittered(ms: u64) -> Duration {
    Duration::from_millis(rand::random_range(ms / 2..=ms))
}

fn etag(etag: Option<String>, operation: &'static str, key: &str) -> Result<ETag, Error> {
    etag.map(ETag::new).ok_or_else(|| Error::NotConforming(format!("no ETag in the answer to {operation} {key:?}")))
}

fn length(length: Option<i64>, operation: &'static str, key: &str) -> Result<u64, Error> {
    let length = length.and_then(|length| u64::try_from(length).ok());
    length.ok_or_else(|| Error::NotConforming(format!("no length in the answer to {operation} {key:?}")))
}

//! What a put sends: bytes that the SDK hashes for its signature, or content that was hashed already.
//!
//! A signature of S3 covers the SHA-256 of the body, and the endpoint refuses a body that has another. Whoever hashed the content for reasons of
//! its own need not hash it again: the request on the wire is the same, and what is stored has the hash that its writer took.

use crate::Content;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::BeforeSerializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec::IntoIter;

/// The body of a put. Cheap to clone.
#[derive(Clone)]
pub(super) enum Payload {
    Bytes(Bytes),
    Content(Content),
}

impl Payload {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Content(content) => content.bytes(),
        }
    }

    /// A body that can be sent again.
    pub(super) fn body(&self) -> ByteStream {
        match self {
            Self::Bytes(bytes) => bytes.clone().into(),
            Self::Content(content) => {
                let content = content.clone();
                ByteStream::new(SdkBody::retryable(move || SdkBody::from_body_1_x(Pieces::of(&content))))
            }
        }
    }

    /// Makes the signature's hash the known one. None: the SDK hashes the body.
    pub(super) fn signing(&self) -> Option<KnownHash> {
        match self {
            Self::Bytes(_) => None,
            Self::Content(content) => Some(KnownHash(content.sha256().hex())),
        }
    }
}

/// Signs for a body with this SHA-256, in hex.
#[derive(Debug)]
pub(super) struct KnownHash(String);

impl Intercept for KnownHash {
    fn name(&self) -> &'static str {
        "KnownHash"
    }

    fn read_before_serialization(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(PayloadSigningOverride::Precomputed(self.0.clone()));
        Ok(())
    }
}

/// A body that sends pieces as they are.
struct Pieces {
    rest: IntoIter<Bytes>,
    bytes: u64,
}

impl Pieces {
    fn of(content: &Content) -> Self {
        Self { rest: content.pieces().to_vec().into_iter(), bytes: content.bytes() }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.rest.find(|piece| !piece.is_empty());
        if let Some(piece) = &next {
            self.bytes -= piece.len() as u64;
        }
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

//! The port: what the mesh asks of an object store, and what it relies on.

use crate::{Content, Error};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt;
use std::ops::Range;

/// Opaque name of one written state of an object; compared as text, quotes included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(String);

impl ETag {
    /// From the text of the wire.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text of the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object, whole.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its content.
    pub bytes: Bytes,
    /// The state that the bytes belong to.
    pub etag: ETag,
}

/// An object in pieces, for what is too large to hold.
pub struct ObjectStream {
    /// Length of the whole content.
    pub bytes: u64,
    /// The state that the bytes belong to.
    pub etag: ETag,
    /// The content in order. Ends with an error if fewer than `bytes` bytes come.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
}

impl fmt::Debug for ObjectStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStream").field("bytes", &self.bytes).field("etag", &self.etag).finish_non_exhaustive()
    }
}

/// A part of an object, in pieces.
pub struct ObjectPart {
    /// Which bytes come: from the first that was asked for to the last one, or to the object's end. A server that knows no ranges sends
    /// more than was asked for.
    pub range: Range<u64>,
    /// Length of the whole content.
    pub object_bytes: u64,
    /// The state that the bytes belong to.
    pub etag: ETag,
    /// The bytes of `range` in order. Ends with an error if fewer come.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
}

impl fmt::Debug for ObjectPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectPart")
            .field("range", &self.range)
            .field("object_bytes", &self.object_bytes)
            .field("etag", &self.etag)
            .finish_non_exhaustive()
    }
}

/// An object without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key, without the store's prefix.
    pub key: String,
    /// Length of its content.
    pub bytes: u64,
    /// Its state.
    pub etag: ETag,
}

/// What a conditional write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// This call wrote the object; it had this state then.
    Written(ETag),
    /// The condition did not hold: somebody else was first. Nothing was written.
    Lost,
}

impl PutOutcome {
    /// Whether this call wrote the object.
    #[must_use]
    pub fn is_written(&self) -> bool {
        matches!(self, Self::Written(_))
    }
}

/// Objects under keys, with conditional writes.
///
/// A write that was answered with success is durable. A write whose answer was lost either happened whole or not at
/// all. Reads see every write answered before they began. All methods retry what is safe to retry and are bounded in
/// time; dropping a future leaves the write it began either done or not done.
///
/// Errors are of kind `unavailable` or `timeout` if trying again can help, else `internal` or `corrupt`.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Where it is, for messages.
    fn place(&self) -> String {
        "the object store".to_owned()
    }

    /// The whole object, or `None`. For objects that are small by contract.
    async fn get(&self, key: &str) -> Result<Option<Object>, Error>;

    /// The object in pieces, or `None`.
    async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, Error>;

    /// These bytes of the object, as many of them as there are, or `None` if there is no object. With an ETag only of that state.
    ///
    /// # Errors
    /// As above, and [`Error::Changed`] if the object is in another state; `internal` if `range` is empty or begins behind the
    /// object's end (an empty object has the part `0..0`).
    async fn get_part(&self, key: &str, range: Range<u64>, etag: Option<&ETag>) -> Result<Option<ObjectPart>, Error>;

    /// The object's length and state, or `None`.
    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, Error>;

    /// Writes whatever is there.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<ETag, Error>;

    /// Writes if nothing is there. Of any number of racing calls exactly one gets `Written`; a retry after a lost
    /// reply that finds its own write gets `Written` too.
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, Error>;

    /// [`Self::put_if_absent`] of content that was hashed: bytes with another hash are not stored. What is here for stores that know nothing
    /// better copies the pieces into one.
    async fn put_content_if_absent(&self, key: &str, content: Content) -> Result<PutOutcome, Error> {
        self.put_if_absent(key, content.into_bytes()).await
    }

    /// Writes if the object is in this state. A missing object is `Lost`. Of racing calls with one state at most one
    /// gets `Written`. If the reply is lost *and* somebody else writes before the retry, the answer is `Lost` although
    /// the write happened for a while: read the object to know.
    async fn put_if_match(&self, key: &str, bytes: Bytes, etag: &ETag) -> Result<PutOutcome, Error>;

    /// Every object whose key begins with `prefix`, in the order of their keys. Cost: a request for each 1,000.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, Error>;

    /// Removes the object. Removing what is not there succeeds.
    async fn delete(&self, key: &str) -> Result<(), Error>;
}

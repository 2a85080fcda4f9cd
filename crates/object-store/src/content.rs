//! Content that was hashed before it is put.

use bytes::Bytes;
use weft_types::{Digest, DigestHasher};

/// An object's content in pieces, and the SHA-256 of these very bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Content {
    pieces: Vec<Bytes>,
    bytes: u64,
    sha256: Digest,
}

impl Content {
    /// The pieces in order, hashed. Cost: one pass over them; nothing is copied.
    #[must_use]
    pub fn of(pieces: Vec<Bytes>) -> Self {
        let (mut hasher, mut bytes) = (DigestHasher::new(), 0);
        for piece in &pieces {
            hasher.update(piece);
            bytes += piece.len() as u64;
        }
        Self { pieces, bytes, sha256: hasher.finish() }
    }

    /// The pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Length of all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of all of them.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        self.sha256
    }

    /// All of it in one piece. Cost: a copy, unless there is one piece.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match <[Bytes; 1]>::try_from(self.pieces) {
            Ok([piece]) => piece,
            Err(pieces) => pieces.concat().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EmbeddedS3, ObjectStore, PutOutcome, S3Store};

    #[test]
    fn pieces_are_hashed_as_one() {
        for pieces in [&["one"][..], &["on", "", "e"], &[]] {
            let content = Content::of(pieces.iter().copied().map(Bytes::from).collect());
            let whole = pieces.concat();
            assert_eq!((content.bytes(), content.sha256()), (whole.len() as u64, Digest::of(whole.as_bytes())));
            assert_eq!(content.into_bytes(), whole);
        }
    }

    #[tokio::test]
    async fn an_endpoint_stores_only_what_has_the_hash() {
        let folder = tempfile::tempdir().unwrap();
        let server = EmbeddedS3::start(folder.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let store = S3Store::connect(&server.settings("bucket")).await.unwrap();
        store.ensure_bucket().await.unwrap();
        let content = Content::of(vec![Bytes::from_static(b"on"), Bytes::new(), Bytes::from_static(b"e")]);
        let other = Content { pieces: vec![Bytes::from_static(b"two")], ..content.clone() };
        assert!(store.put_content_if_absent("k", other).await.is_err());
        assert!(store.head("k").await.unwrap().is_none());
        assert!(store.put_content_if_absent("k", content.clone()).await.unwrap().is_written());
        assert_eq!(&store.get("k").await.unwrap().unwrap().bytes[..], b"one");
        assert_eq!(store.put_content_if_absent("k", content).await.unwrap(), PutOutcome::Lost);
    }
}

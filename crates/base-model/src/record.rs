//! A canonical byte record for hashing: domain-tagged, every field length-prefixed, so that no two different records
//! have the same bytes.

use weft_types::{Digest, DigestHasher};

pub(crate) struct Record(DigestHasher);

impl Record {
    /// A record of this kind. The domain names what is hashed and the version of the layout.
    pub(crate) fn new(domain: &str) -> Self {
        let mut record = Self(DigestHasher::new());
        record.text(domain);
        record
    }

    pub(crate) fn number(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn optional(&mut self, value: Option<u64>) {
        self.number(u64::from(value.is_some()));
        self.number(value.unwrap_or_default());
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.number(value.to_bits());
    }

    pub(crate) fn digest(&mut self, digest: &Digest) {
        self.bytes(digest.as_bytes());
    }

    pub(crate) fn finish(self) -> Digest {
        self.0.finish()
    }
}

//! SHA-256 as a value: the identity of bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// A SHA-256. Written `sha256:<64 lower-case hex digits>` for people, as 32 raw bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// The text or the bytes are no SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// Raw form of another length.
    #[error("a digest has 32 bytes, not {0}")]
    Length(usize),
    /// Text that is not `sha256:` and 64 hex digits.
    #[error("a digest is written sha256: and 64 lower-case hex digits")]
    Text,
}

impl Digest {
    /// The digest of these bytes. Cost: one pass over them (about 1 to 2 GB/s with SHA extensions).
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From its raw form.
    #[must_use]
    pub const fn from_raw(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The raw form.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The raw form, owned, as protobuf wants it.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// 64 lower-case hex digits, without the prefix: for file names and object keys.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// Hashes bytes that come in pieces.
#[derive(Clone, Default)]
pub struct DigestHasher(Sha256);

impl DigestHasher {
    /// An empty hasher.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = ParseDigestError;

    fn try_from(raw: &[u8]) -> Result<Self, Self::Error> {
        raw.try_into().map(Self).map_err(|_| ParseDigestError::Length(raw.len()))
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha256:").ok_or(ParseDigestError::Text)?;
        if digits.len() != 64 || digits.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseDigestError::Text);
        }
        let mut raw = [0; 32];
        hex::decode_to_slice(digits, &mut raw).map_err(|_| ParseDigestError::Text)?;
        Ok(Self(raw))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", &self.hex()[..12])
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_raw_forms_agree() {
        let digest = Digest::of(b"weft");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(Digest::try_from(&digest.to_vec()[..]), Ok(digest));
        assert_eq!(Digest::try_from(&[1u8; 31][..]), Err(ParseDigestError::Length(31)));
        assert_eq!("sha256:ABC".parse::<Digest>(), Err(ParseDigestError::Text));
        assert_eq!(digest.to_string().to_uppercase().parse::<Digest>(), Err(ParseDigestError::Text));
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut hasher = DigestHasher::new();
        hasher.update(b"we");
        hasher.update(b"ft");
        assert_eq!(hasher.finish(), Digest::of(b"weft"));
    }
}

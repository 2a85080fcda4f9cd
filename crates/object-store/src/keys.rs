//! Keys that more than one service uses.

use weft_types::Digest;

/// Where the canonical blob with this digest lies: `blobs/sha256/<hex>`. Written once, never rewritten.
#[must_use]
pub fn blob(digest: &Digest) -> String {
    format!("{BLOB_PREFIX}{}", digest.hex())
}

/// What every blob key begins with.
pub const BLOB_PREFIX: &str = "blobs/sha256/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_key_is_its_digest_in_hex() {
        let digest = Digest::of(b"");
        assert_eq!(blob(&digest), "blobs/sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}

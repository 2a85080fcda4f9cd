//! One object is one file, so that one rename publishes content, ETag and metadata together:
//!
//! ```text
//! content | attributes as JSON | length of the JSON, u32 little-endian | "WEFTOBJ1"
//! ```
//!
//! The content comes first so that it streams to disk before its ETag (MD5, as S3 has it) is known. A file is
//! written and synced under a temporary name; under its real name it is always whole and never changes.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"WEFTOBJ1";
const FOOTER_BYTES: u64 = 12;
/// Attributes are written by us from bounded headers; anything longer is damage.
const ATTRIBUTES_BYTES_MAX: u64 = 64 << 10;

/// What is known of an object beside its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    /// Length of the content.
    pub(crate) bytes: u64,
    /// MD5 of the content in hex, without quotes.
    pub(crate) etag: String,
    /// Unix milliseconds.
    pub(crate) modified_ms: u64,
    /// As given at the put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    /// User metadata, without the `x-amz-meta-` prefix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Ends a file whose content is written, and makes it durable.
pub(crate) fn finish(file: &mut File, attributes: &Attributes) -> std::io::Result<()> {
    let mut tail = serde_json::to_vec(attributes)?;
    let length = u32::try_from(tail.len()).map_err(std::io::Error::other)?;
    tail.extend_from_slice(&length.to_le_bytes());
    tail.extend_from_slice(MAGIC);
    file.write_all(&tail)?;
    file.sync_all()
}

/// Opens an object's file and reads its attributes; the file is left at the start of the content.
pub(crate) fn open(path: &Path) -> Result<(File, Attributes), Error> {
    let mut file = File::open(path).map_err(|error| Error::io(path.display(), error))?;
    let attributes = read_attributes(&mut file, path)?;
    file.rewind().map_err(|error| Error::io(path.display(), error))?;
    Ok((file, attributes))
}

fn read_attributes(file: &mut File, path: &Path) -> Result<Attributes, Error> {
    let io = |error| Error::io(path.display(), error);
    let damaged = |problem: &str| Error::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    let length = file.metadata().map_err(io)?.len();
    let footer_at = length.checked_sub(FOOTER_BYTES).ok_or_else(|| damaged("shorter than its footer"))?;
    let mut footer = [0; FOOTER_BYTES as usize];
    file.seek(SeekFrom::Start(footer_at)).map_err(io)?;
    file.read_exact(&mut footer).map_err(io)?;
    let (json_bytes, magic) = footer.split_at(4);
    if magic != MAGIC {
        return Err(damaged("no object footer"));
    }
    let json_bytes = u64::from(u32::from_le_bytes(json_bytes.try_into().expect("split at 4")));
    let json_at = footer_at.checked_sub(json_bytes).filter(|_| json_bytes <= ATTRIBUTES_BYTES_MAX);
    let json_at = json_at.ok_or_else(|| damaged("attributes longer than the file"))?;
    let mut json = vec![0; json_bytes as usize];
    file.seek(SeekFrom::Start(json_at)).map_err(io)?;
    file.read_exact(&mut json).map_err(io)?;
    let attributes: Attributes = serde_json::from_slice(&json).map_err(|error| damaged(&error.to_string()))?;
    if attributes.bytes != json_at {
        return Err(damaged("content length differs from its attributes"));
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(bytes: u64) -> Attributes {
        let metadata = BTreeMap::from([("writer".to_owned(), "ä\n".to_owned())]);
        Attributes { bytes, etag: "0".repeat(32), modified_ms: 7, content_type: None, metadata }
    }

    fn write(path: &Path, content: &[u8], attributes: &Attributes) {
        let mut file = File::create(path).unwrap();
        file.write_all(content).unwrap();
        finish(&mut file, attributes).unwrap();
    }

    #[test]
    fn content_and_attributes_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        write(&path, b"hello", &attributes(5));
        let (mut file, read) = open(&path).unwrap();
        assert_eq!(read, attributes(5));
        let mut content = Vec::new();
        file.take(5).read_to_end(&mut content).unwrap();
        file = File::open(&path).unwrap();
        assert!(file.metadata().unwrap().len() > 5);
        assert_eq!(content, b"hello");
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        write(&path, b"hello", &attributes(5));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(open(&path), Err(Error::Damaged { .. })), "cut to {length}");
        }
        write(&path, b"hell", &attributes(5));
        assert!(matches!(open(&path), Err(Error::Damaged { .. })));
    }
}

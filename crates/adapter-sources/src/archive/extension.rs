//! Headers that speak of the entry behind them: GNU's long names and pax records.
//!
//! A reader that ignores what they say reads other files than one that heeds it. So what matters is heeded (name, length), what would
//! change how bytes are read is refused (sparse maps, a length other than the header's), and the rest (times, owners, attributes) is passed
//! over.

use super::counted::Trouble;
use crate::Error;
use crate::opened::NAME_BYTES_MAX;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_tar::{Entry, EntryType};

/// Most bytes of pax records: some writers put a file's attributes there.
const PAX_BYTES_MAX: u64 = 64 << 10;

/// What was said of the next entry.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) name: Option<Vec<u8>>,
    pub(super) bytes: Option<u64>,
    /// Whether records were read at all.
    has_records: bool,
}

/// Why an extension is not read.
pub(super) enum Failure {
    Io(io::Error),
    Refused(String),
}

impl Failure {
    pub(super) fn explain(self, trouble: &Trouble) -> Error {
        match self {
            Self::Io(error) => trouble.explain(error, "is damaged"),
            Self::Refused(problem) => Error::Archive(problem),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(super) fn is_extension(kind: EntryType) -> bool {
    matches!(kind, EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader)
}

/// What an entry is that is not read.
pub(super) fn words(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Link | EntryType::GNULongLink => "a hard link",
        EntryType::Symlink => "a symbolic link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        _ => "of an unknown kind",
    }
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        self.name.is_none() && !self.has_records
    }

    /// Reads one such entry, after its length was looked at.
    pub(super) async fn read<R: AsyncRead + Unpin>(
        &mut self,
        entry: &mut Entry<R>,
        kind: EntryType,
        bytes: u64,
    ) -> Result<(), Failure> {
        // A long name ends with a zero byte.
        let bytes_max = if kind == EntryType::GNULongName { NAME_BYTES_MAX as u64 + 1 } else { PAX_BYTES_MAX };
        if bytes > bytes_max {
            return Err(Failure::Refused(format!("has a header of {bytes} bytes, the limit is {bytes_max}")));
        }
        if kind == EntryType::GNULongName {
            let mut name = Vec::with_capacity(bytes as usize);
            entry.read_to_end(&mut name).await?;
            if name.last() == Some(&0) {
                name.pop();
            }
            return self.set_name(name);
        }
        let is_global = kind == EntryType::XGlobalHeader;
        if !is_global && std::mem::replace(&mut self.has_records, true) {
            return Err(Failure::Refused("has two headers for one entry".to_owned()));
        }
        let Some(records) = entry.pax_extensions().await? else { return Ok(()) };
        for record in records {
            let record = record?;
            self.note(record.key_bytes(), record.value_bytes(), is_global)?;
        }
        Ok(())
    }

    fn note(&mut self, key: &[u8], value: &[u8], is_global: bool) -> Result<(), Failure> {
        let shown = String::from_utf8_lossy(&key[..key.len().min(64)]).into_owned();
        match key {
            b"path" | b"size" | b"linkpath" if is_global => {
                Err(Failure::Refused(format!("has {shown} for every entry")))
            }
            b"path" => self.set_name(value.to_vec()),
            b"size" => {
                let digits =
                    std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()));
                let Some(bytes) = digits.and_then(|digits| digits.parse().ok()) else {
                    return Err(Failure::Refused("has a size that is no number".to_owned()));
                };
                match self.bytes.replace(bytes) {
                    Some(before) if before != bytes => Err(Failure::Refused("has two sizes for one entry".to_owned())),
                    _ => Ok(()),
                }
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                Err(Failure::Refused("has a sparse file, which no package has".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn set_name(&mut self, name: Vec<u8>) -> Result<(), Failure> {
        match self.name.replace(name) {
            None => Ok(()),
            Some(_) => Err(Failure::Refused("has two names for one entry".to_owned())),
        }
    }
}

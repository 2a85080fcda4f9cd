//! A numbered placement as bytes.
//!
//! ```text
//! sha256:<64 hex digits>\n
//! {"format":1,"epoch":5000012,"holder":"registry-a","workers":[["w-1",100],["w-2",100]],"adapters":[["sha256:…",[0,1]], …]}
//! ```
//!
//! The first line is the SHA-256 of everything after its line feed, so that a store that returns other bytes is noticed.
//! `workers` are sorted and distinct, each with its weight; `adapters` are sorted by digest and distinct, each with the distinct positions of
//! its workers in `workers`, the first being its home. Unknown keys, another format and anything beyond the limits below
//! are refused: the reader stays on the epoch it has.

use serde::{Deserialize, Serialize};
use std::fmt;
use weft_types::Digest;

/// The format that is written and read.
const FORMAT: u32 = 1;
/// Longest document.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Most workers in a document.
pub const WORKERS_MAX: usize = 1024;
/// Most adapters in a document.
pub const ADAPTERS_MAX: usize = 20_000;
/// Most copies of all adapters together.
pub const COPIES_MAX: usize = 100_000;
/// Longest name of a worker, and of a holder.
pub const WORKER_NAME_BYTES_MAX: usize = 128;
/// Largest weight of a worker.
pub(crate) const WEIGHT_MAX: u16 = 10_000;

// The largest document that keeps the other limits fits: 83 bytes for each adapter, 5 for each copy, names with quotes and weights.
const _: () = assert!(
    80 + 200
        + 2 * WORKER_NAME_BYTES_MAX
        + WORKERS_MAX * (WORKER_NAME_BYTES_MAX + 11)
        + ADAPTERS_MAX * 83
        + COPIES_MAX * 5
        < DOCUMENT_BYTES_MAX
);

/// The number of a published placement: larger is newer, also over a change of authority, because the authority's term
/// is its upper part (`term × 1,000,000 + serial`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Epochs of one term. An authority that has used them up takes a new term.
    pub const PER_TERM: u64 = 1_000_000;
    /// The largest term: the largest epoch is below 2^53, which every JSON reader can hold.
    pub const TERM_MAX: u64 = (1 << 53) / Self::PER_TERM - 1;

    /// The first epoch of a term; `None` beyond [`Epoch::TERM_MAX`].
    #[must_use]
    pub fn first_of(term: u64) -> Option<Self> {
        (term <= Self::TERM_MAX).then(|| Self(term * Self::PER_TERM))
    }

    /// The next epoch of the same term, or `None` if they are used up.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        let next = Self(self.0 + 1);
        (next.term() == self.term()).then_some(next)
    }

    /// The term of the authority that published it.
    #[must_use]
    pub fn term(self) -> u64 {
        self.0 / Self::PER_TERM
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A worker and its weight in the rendezvous [`crate::Table`]: 100 for a plain one, 1 to 10,000.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host(
    /// Its name.
    pub String,
    /// Its weight.
    pub u16,
);

/// An adapter and the workers that should hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed(
    /// The adapter.
    pub Digest,
    /// Positions in [`Document::workers`], distinct; the home first.
    pub Vec<u16>,
);

/// Desired residency under a number. Adapters that are not in it have no desired worker: they are served from their
/// home in the [`crate::Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its number.
    pub epoch: Epoch,
    /// Who published it.
    pub holder: String,
    /// The workers that were there, sorted.
    pub workers: Vec<Host>,
    /// Sorted by digest.
    pub adapters: Vec<Placed>,
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    epoch: Epoch,
    holder: &'a str,
    workers: &'a [Host],
    adapters: &'a [Placed],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    format: u32,
    epoch: Epoch,
    holder: String,
    workers: Vec<Host>,
    adapters: Vec<Placed>,
}

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than a document may be.
    #[error("placement has {bytes} bytes, the limit is {DOCUMENT_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The first line is missing or is not the digest of the rest: these are not the bytes that were written.
    #[error("placement does not match the digest in its first line")]
    Damaged,
    /// Another format than ours.
    #[error("placement has format {0}, this program reads format {FORMAT}")]
    Format(u32),
    /// Not the JSON that we write.
    #[error("placement cannot be read")]
    Json(#[source] serde_json::Error),
    /// A field breaks its rule.
    #[error("placement field {field}: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// Value and limit.
        problem: String,
    },
}

fn field(field: &'static str, problem: String) -> DocumentError {
    DocumentError::Field { field, problem }
}

impl Document {
    /// The bytes.
    ///
    /// # Errors
    /// [`DocumentError::Field`] if the document breaks a rule of the format.
    pub fn encode(&self) -> Result<Vec<u8>, DocumentError> {
        self.check()?;
        let Self { epoch, holder, workers, adapters } = self;
        let json = serde_json::to_vec(&Written { format: FORMAT, epoch: *epoch, holder, workers, adapters });
        let json = json.map_err(DocumentError::Json)?;
        let mut bytes = format!("{}\n", Digest::of(&json)).into_bytes();
        bytes.extend_from_slice(&json);
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLong { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Reads what [`Document::encode`] wrote and nothing else. Cost: a hash and a parse of at most
    /// [`DOCUMENT_BYTES_MAX`] (10,000 adapters: about 1 MB, 10 ms).
    ///
    /// # Errors
    /// What is wrong first; never a panic, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLong { bytes: bytes.len() });
        }
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(DocumentError::Damaged)?;
        let (line, json) = (&bytes[..end], &bytes[end + 1..]);
        let said = std::str::from_utf8(line).ok().and_then(|line| line.parse::<Digest>().ok());
        if said != Some(Digest::of(json)) {
            return Err(DocumentError::Damaged);
        }
        Self::parse(json)
    }

    /// Reads the JSON alone.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        /// Read first: a later format may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json).map_err(DocumentError::Json)?;
        if format != FORMAT {
            return Err(DocumentError::Format(format));
        }
        let read: Read = serde_json::from_slice(json).map_err(DocumentError::Json)?;
        debug_assert_eq!(read.format, FORMAT);
        let document = Self { epoch: read.epoch, holder: read.holder, workers: read.workers, adapters: read.adapters };
        document.check()?;
        Ok(document)
    }

    /// An adapter's workers, as positions; empty if it has none. Cost: a binary search.
    #[must_use]
    pub fn copies_of(&self, adapter: &Digest) -> &[u16] {
        let found = self.adapters.binary_search_by(|placed| placed.0.cmp(adapter));
        found.map_or(&[], |at| &self.adapters[at].1)
    }

    fn check(&self) -> Result<(), DocumentError> {
        if self.epoch.term() > Epoch::TERM_MAX {
            return Err(field("epoch", format!("{} is beyond term {}", self.epoch, Epoch::TERM_MAX)));
        }
        check_name("holder", &self.holder)?;
        check_count("workers", self.workers.len(), WORKERS_MAX)?;
        check_count("adapters", self.adapters.len(), ADAPTERS_MAX)?;
        for Host(name, weight) in &self.workers {
            check_name("workers", name)?;
            if !(1..=WEIGHT_MAX).contains(weight) {
                return Err(field("workers", format!("{name:?} has weight {weight}, it must be 1 to {WEIGHT_MAX}")));
            }
        }
        if let Some(pair) = self.workers.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(field("workers", format!("{:?} must come before {:?}, once", pair[1].0, pair[0].0)));
        }
        if let Some(pair) = self.adapters.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(field("adapters", format!("{} must come before {}, once", pair[1].0, pair[0].0)));
        }
        let mut copies = 0;
        for Placed(adapter, on) in &self.adapters {
            copies += on.len();
            let mut sorted = on.clone();
            sorted.sort_unstable();
            if on.is_empty() || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(field("adapters", format!("{adapter} needs distinct workers, at least one: {on:?}")));
            }
            if let Some(last) = sorted.last().filter(|last| usize::from(**last) >= self.workers.len()) {
                return Err(field("adapters", format!("{adapter} is on worker {last} of {}", self.workers.len())));
            }
        }
        check_count("adapters", copies, COPIES_MAX)
    }
}

fn check_count(name: &'static str, count: usize, max: usize) -> Result<(), DocumentError> {
    if count <= max { Ok(()) } else { Err(field(name, format!("{count} entries, the limit is {max}"))) }
}

/// Names are written without escapes, so that a document's length is bounded by their length.
fn check_name(name: &'static str, value: &str) -> Result<(), DocumentError> {
    let is_plain = value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    if value.is_empty() || value.len() > WORKER_NAME_BYTES_MAX || !is_plain {
        let shown: String = value.chars().take(80).collect();
        return Err(field(
            name,
            format!("{shown:?} must be 1 to {WORKER_NAME_BYTES_MAX} printable ASCII bytes without quotes"),
        ));
    }
    Ok(())
}

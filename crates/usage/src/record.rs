//! One thing that was used, as it is written into the log and the ledger: a line of JSON.
//!
//! ```text
//! {"v":1,"kind":"request","id":"chatcmpl-…","tenant":"harbour","key_id":"…","adapter":"org/pirate","version":3,
//!  "digest":"sha256:…","ended_ms":1751328000000,"prompt_tokens":12,"completion_tokens":34,"cached_tokens":8,
//!  "outcome":"complete","duration_ms":840}
//! {"v":1,"kind":"residency","id":"…","worker":"10.0.0.7:7001","incarnation":"…","from_ms":…,"to_ms":…,
//!  "digest":"sha256:…","slot_ms":…,"memory_ms":…,"bytes_moved":…,"bytes":…}
//! ```
//!
//! `v` grows only when an older reader would count wrongly; a field that it may ignore is added without. A record is never
//! changed: the same id is the same record, whoever delivers it, and counts once.

use crate::calendar::TIME_MS_MAX;
use crate::{Error, Hour};
use serde::{Deserialize, Serialize};
use weft_types::{AdapterName, Digest, TenantName, VersionNumber};

/// Ids of records, keys and incarnations are at most this long.
pub const ID_BYTES_MAX: usize = 128;
/// A record is at most this long as JSON; the fields' own limits keep it below.
pub const RECORD_BYTES_MAX: usize = 4096;
const VERSION: u32 = 1;

/// One thing that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An answer.
    Request(Request),
    /// An adapter's bytes on a worker.
    Residency(Residency),
}

/// An answer, complete or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The answer's id, unique among all gateways; 1 to 128 printable ASCII characters without spaces.
    pub id: String,
    /// Who pays.
    pub tenant: TenantName,
    /// The id of the key that asked, as `id`; never its secret.
    pub key_id: String,
    /// None: the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterName>,
    /// Which version of the adapter answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionNumber>,
    /// Which bytes answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// When it ended, in Unix milliseconds; at most [`TIME_MS_MAX`]. Decides the day that it counts for.
    pub ended_ms: u64,
    /// Tokens of the prompt, those found in a cache among them.
    pub prompt_tokens: u64,
    /// Tokens that were made.
    pub completion_tokens: u64,
    /// Tokens of the prompt that were not computed again.
    pub cached_tokens: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// From the request to its end.
    pub duration_ms: u64,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// By itself.
    Complete,
    /// The client went away.
    Cancelled,
    /// With an error.
    Failed,
}

impl Outcome {
    /// The word in records and exports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// What an adapter's bytes cost on one worker within an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residency {
    /// Unique among all workers, made of worker, incarnation, digest and interval, say; as [`Request::id`].
    pub id: String,
    /// The worker's address; 1 to 128 printable ASCII characters without spaces.
    pub worker: String,
    /// Which life of the worker's process; as `worker`.
    pub incarnation: String,
    /// The interval's first millisecond.
    pub from_ms: u64,
    /// The first millisecond behind it; at least `from_ms`. Decides the day that it counts for.
    pub to_ms: u64,
    /// Whose bytes: shared by all who own a version with it.
    pub digest: Digest,
    /// Milliseconds in a slot of the device, all slots of the worker together.
    pub slot_ms: u64,
    /// Milliseconds packed in memory.
    pub memory_ms: u64,
    /// Bytes that were fetched or copied for it.
    pub bytes_moved: u64,
    /// How large it is.
    pub bytes: u64,
}

/// What every line begins with.
#[derive(Deserialize)]
struct Head {
    v: u32,
    kind: String,
}

#[derive(Serialize)]
struct Line<'a, T> {
    v: u32,
    kind: &'a str,
    #[serde(flatten)]
    fields: &'a T,
}

impl Record {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Request(request) => &request.id,
            Self::Residency(residency) => &residency.id,
        }
    }

    /// When what it tells of had ended, in Unix milliseconds: it counts for this time, whole.
    #[must_use]
    pub fn ended_ms(&self) -> u64 {
        match self {
            Self::Request(request) => request.ended_ms,
            Self::Residency(residency) => residency.to_ms,
        }
    }

    /// The hour of [`Record::ended_ms`].
    #[must_use]
    pub fn hour(&self) -> Hour {
        Hour::of_ms(self.ended_ms())
    }

    /// Whether every field is within its limit.
    ///
    /// # Errors
    /// [`Error::Field`] with the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        check_text("id", self.id())?;
        match self {
            Self::Request(request) => check_text("key_id", &request.key_id)?,
            Self::Residency(residency) => {
                check_text("worker", &residency.worker)?;
                check_text("incarnation", &residency.incarnation)?;
                if residency.from_ms > residency.to_ms {
                    let value = residency.from_ms.to_string();
                    return Err(Error::Field { field: "from_ms", value, limit: "at most to_ms" });
                }
            }
        }
        if self.ended_ms() > TIME_MS_MAX {
            let (field, value) = (self.ended_field(), self.ended_ms().to_string());
            return Err(Error::Field { field, value, limit: "before the year 10000" });
        }
        Ok(())
    }

    fn ended_field(&self) -> &'static str {
        match self {
            Self::Request(_) => "ended_ms",
            Self::Residency(_) => "to_ms",
        }
    }

    /// The record as one line of JSON, without the line's end. At most [`RECORD_BYTES_MAX`].
    ///
    /// # Errors
    /// As [`Record::check`].
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let line = match self {
            Self::Request(fields) => serde_json::to_vec(&Line { v: VERSION, kind: "request", fields }),
            Self::Residency(fields) => serde_json::to_vec(&Line { v: VERSION, kind: "residency", fields }),
        };
        let line = line.expect("text and integers are written into memory");
        assert!(line.len() <= RECORD_BYTES_MAX, "the fields' limits keep a record short: {}", line.len());
        Ok(line)
    }

    /// Reads what [`Record::to_json`] wrote, or a later program with more fields.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if it is not a record, or of a version or kind that this program does not know;
    /// [`Error::Field`] if a field is beyond its limit.
    pub fn from_json(line: &[u8]) -> Result<Self, Error> {
        if line.len() > RECORD_BYTES_MAX {
            return Err(Error::unreadable(format!("has {} bytes, more than {RECORD_BYTES_MAX}", line.len())));
        }
        let head: Head = serde_json::from_slice(line).map_err(Error::unreadable)?;
        if head.v != VERSION {
            return Err(Error::unreadable(format!("version {} is not {VERSION}", head.v)));
        }
        let record = match head.kind.as_str() {
            "request" => Self::Request(serde_json::from_slice(line).map_err(Error::unreadable)?),
            "residency" => Self::Residency(serde_json::from_slice(line).map_err(Error::unreadable)?),
            _ => return Err(Error::unreadable(format!("unknown kind {:?}", head.kind))),
        };
        record.check()?;
        Ok(record)
    }
}

/// Ids are written into logs, tables and keys of maps as they are: nothing in them may need care.
fn check_text(field: &'static str, text: &str) -> Result<(), Error> {
    if !text.is_empty() && text.len() <= ID_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    let value = format!("{:?}", text.chars().take(80).collect::<String>());
    Err(Error::Field { field, value, limit: "1 to 128 printable ASCII characters without spaces" })
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;

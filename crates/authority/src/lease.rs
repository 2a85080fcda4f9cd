//! The lease: who is the authority, since which term, and a count that shows that it lives.

use crate::Error;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_object_store::{ETag, ObjectStore};

/// Where the lease lies.
pub const LEASE_KEY: &str = "placement/lease";
const FORMAT: u32 = 1;
/// A longer lease is none of ours.
const LEASE_BYTES_MAX: usize = 1024;

/// The content of the lease. No two states of it are equal: the holder's name is unique and the count grows, so that an
/// ETag made from content names one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lease {
    format: u32,
    pub(crate) term: u64,
    pub(crate) holder: String,
    pub(crate) renewals: u64,
    /// Its holder has given it back: nobody needs to wait.
    pub(crate) is_vacant: bool,
}

/// What lies where the lease should be.
pub(crate) enum Found {
    Nothing,
    Lease(Lease, ETag),
    /// Something that is no lease: whoever waits long enough may replace it.
    Damaged(ETag),
}

impl Lease {
    pub(crate) fn new(term: u64, holder: &str) -> Self {
        Self { format: FORMAT, term, holder: holder.to_owned(), renewals: 0, is_vacant: false }
    }

    pub(crate) fn renewed(&self) -> Self {
        Self { renewals: self.renewals.wrapping_add(1), ..self.clone() }
    }

    pub(crate) fn vacated(&self) -> Self {
        Self { is_vacant: true, ..self.renewed() }
    }

    pub(crate) fn encode(&self) -> Bytes {
        // A struct of numbers and text always becomes JSON.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > LEASE_BYTES_MAX {
            return None;
        }
        serde_json::from_slice::<Self>(bytes).ok().filter(|lease| lease.format == FORMAT)
    }
}

pub(crate) async fn read(store: &dyn ObjectStore) -> Result<Found, Error> {
    let Some(object) = store.get(LEASE_KEY).await? else { return Ok(Found::Nothing) };
    Ok(match Lease::decode(&object.bytes) {
        Some(lease) => Found::Lease(lease, object.etag),
        None => Found::Damaged(object.etag),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_back_and_anything_else_is_none() {
        let lease = Lease::new(7, "a").renewed();
        assert_eq!(Lease::decode(&lease.encode()), Some(lease.clone()));
        assert_ne!(lease.encode(), lease.renewed().encode());
        for wrong in [
            "",
            "{}",
            r#"{"format":2,"term":1,"holder":"a","renewals":0,"is_vacant":false}"#,
            r#"{"format":1,"term":1,"holder":"a","renewals":0,"is_vacant":false,"more":1}"#,
            r#"{"format":1,"term":-1,"holder":"a","renewals":0,"is_vacant":false}"#,
        ] {
            assert_eq!(Lease::decode(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

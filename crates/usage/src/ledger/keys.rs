//! Where batches and compacted objects lie. Pure.

use crate::{Hour, Segment};
use weft_types::Digest;

const PREFIX: &str = "usage/v1/";
/// Sorts behind the hex digits that the names of batches begin with.
const JOINED: &str = "joined-";
const ENDING: &str = ".jsonl";

/// What every key of this hour begins with.
pub(super) fn folder(hour: Hour) -> String {
    format!("{PREFIX}{hour}/")
}

pub(super) fn batch(segment: &Segment) -> String {
    format!("{}{}-{:08}{ENDING}", folder(segment.hour()), segment.writer(), segment.sequence())
}

/// The key of an object that was joined of others, the highest of which has the level before this one.
///
/// It is a function of the content: racing compactors of the same inputs write the same object. And it sorts behind those of its
/// inputs: a listing goes by pages, in the order of keys, and may take a while; an input that is deleted before its page came has
/// left its records to an object on a later page.
pub(super) fn joined(hour: Hour, level: u32, content: &[u8]) -> String {
    format!("{}{JOINED}{level:06}-{}{ENDING}", folder(hour), Digest::of(content).hex())
}

/// How often the records of one of this hour's objects were joined: 0 for a batch. None: not ours, or of a later program.
pub(super) fn level(hour: Hour, key: &str) -> Option<u32> {
    let name = key.strip_prefix(&folder(hour))?.strip_suffix(ENDING)?;
    if name.contains('/') {
        return None;
    }
    match name.strip_prefix(JOINED) {
        Some(rest) => rest.split('-').next()?.parse().ok(),
        None => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_hour_and_kind() {
        let hour = Hour::of_ms(1_751_328_000_000);
        assert_eq!(folder(hour), "usage/v1/2025-07-01/00/");
        assert_eq!(level(hour, "usage/v1/2025-07-01/00/aa-00000001.jsonl"), Some(0));
        assert_eq!(level(hour, &joined(hour, 7, b"x")), Some(7));
        assert_eq!(level(hour, "usage/v1/2025-07-01/01/aa-00000001.jsonl"), None);
        assert_eq!(level(hour, "usage/v1/2025-07-01/00/aa.parquet"), None);
        assert_eq!(level(hour, "usage/v1/2025-07-01/00/joined-x.jsonl"), None);
    }

    #[test]
    fn what_is_joined_sorts_behind_its_inputs() {
        let hour = Hour::of_ms(1_751_328_000_000);
        let batch = format!("{}{}-99999999.jsonl", folder(hour), "f".repeat(32));
        assert!(batch < joined(hour, 1, b"x"));
        assert!((1..300).all(|level| joined(hour, level, b"x") < joined(hour, level + 1, b"y")));
    }
}

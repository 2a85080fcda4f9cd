//! How records lie in a segment file.
//!
//! ```text
//! segment   "weftuse1", frame*
//! frame     length (u32, little endian), checksum (u32, little endian), payload (length bytes)
//! ```
//!
//! The checksum is the CRC-32 (IEEE) of length and payload. A payload is 1 to 4,096 bytes of JSON without control characters: it
//! holds no byte that is zero, so no frame can lie within another one, and reading can go on behind damage at the next byte
//! where a frame fits.

use crate::RECORD_BYTES_MAX;

/// What a segment file begins with: its format and version.
pub(crate) const MAGIC: &[u8; 8] = b"weftuse1";
const HEAD_BYTES: usize = 8;

/// How long the frame of such a payload is.
pub(crate) fn frame_bytes(payload_bytes: usize) -> u64 {
    (HEAD_BYTES + payload_bytes) as u64
}

/// Appends a frame to the buffer.
pub(crate) fn write(buffer: &mut Vec<u8>, payload: &[u8]) {
    assert!((1..=RECORD_BYTES_MAX).contains(&payload.len()), "a record has 1 to 4,096 bytes");
    let length = (payload.len() as u32).to_le_bytes();
    buffer.extend_from_slice(&length);
    buffer.extend_from_slice(&checksum(length, payload).to_le_bytes());
    buffer.extend_from_slice(payload);
}

/// What was found in a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents<'a> {
    /// The payloads of whole frames, in order.
    pub(crate) payloads: Vec<&'a [u8]>,
    /// Where the last whole frame ends; behind it is what a kill tore, if anything.
    pub(crate) whole_bytes: usize,
    /// Bytes before `whole_bytes` that belong to no frame: damage.
    pub(crate) damaged_bytes: usize,
}

/// Reads a whole segment. Cost: one pass; behind damage at most 4 KiB are looked at for each byte where a length fits.
pub(crate) fn read(segment: &[u8]) -> Contents<'_> {
    let mut contents = Contents::default();
    let mut at = 0;
    let mut damaged_bytes = 0;
    if segment.starts_with(MAGIC) {
        at = MAGIC.len();
        contents.whole_bytes = at;
    }
    while at < segment.len() {
        match payload_at(segment, at) {
            Some(payload) => {
                contents.payloads.push(payload);
                at += HEAD_BYTES + payload.len();
                contents.whole_bytes = at;
                // What was skipped had records behind it, so it is no torn end.
                contents.damaged_bytes += std::mem::take(&mut damaged_bytes);
            }
            None => {
                at += 1;
                damaged_bytes += 1;
            }
        }
    }
    contents
}

fn payload_at(segment: &[u8], at: usize) -> Option<&[u8]> {
    let head = segment.get(at..at + HEAD_BYTES)?;
    let (length, sum) = head.split_at(4);
    let length: [u8; 4] = length.try_into().expect("split at 4");
    let sum = u32::from_le_bytes(sum.try_into().expect("8 less 4 bytes"));
    let payload_bytes = u32::from_le_bytes(length) as usize;
    if !(1..=RECORD_BYTES_MAX).contains(&payload_bytes) {
        return None;
    }
    let payload = segment.get(at + HEAD_BYTES..at + HEAD_BYTES + payload_bytes)?;
    (checksum(length, payload) == sum).then_some(payload)
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        payloads.iter().for_each(|payload| write(&mut bytes, payload));
        bytes
    }

    #[test]
    fn a_segment_cut_anywhere_has_all_records_before_the_cut() {
        let whole = segment(&[b"{\"a\":1}", b"{}", b"{\"b\":22}"]);
        let ends = [8, 8 + 8 + 7, 8 + 8 + 7 + 8 + 2, whole.len()];
        for length in 0..=whole.len() {
            let contents = read(&whole[..length]);
            let records = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
            assert_eq!(contents.payloads.len(), records, "cut to {length}");
            assert_eq!(contents.damaged_bytes, 0, "cut to {length}");
            let end = ends.iter().rev().find(|end| **end <= length).copied().unwrap_or(0);
            assert_eq!(contents.whole_bytes, end, "cut to {length}");
        }
    }

    #[test]
    fn a_damaged_byte_costs_one_record() {
        let whole = segment(&[b"{\"a\":1}", b"{\"b\":2}", b"{\"c\":3}"]);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let contents = read(&damaged);
            let in_magic = at < MAGIC.len();
            let in_last = at >= MAGIC.len() + 2 * 15;
            assert_eq!(contents.payloads.len(), if in_magic { 3 } else { 2 }, "byte {at}");
            let damaged_bytes = if in_magic {
                MAGIC.len()
            } else if in_last {
                0
            } else {
                15
            };
            assert_eq!(contents.damaged_bytes, damaged_bytes, "byte {at}");
        }
    }

    #[test]
    fn a_hole_of_zeros_is_no_record() {
        let mut torn = segment(&[b"{}"]);
        let whole_bytes = torn.len();
        torn.resize(whole_bytes + 5000, 0);
        let contents = read(&torn);
        assert_eq!((contents.payloads.len(), contents.whole_bytes), (1, whole_bytes));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let contents = read(&bytes);
            prop_assert!(contents.whole_bytes <= bytes.len());
        }

        #[test]
        fn records_behind_any_damage_are_found(noise in proptest::collection::vec(1u8.., 0..100)) {
            let mut bytes = segment(&[b"{\"a\":1}"]);
            bytes.extend_from_slice(&noise);
            write(&mut bytes, b"{\"b\":2}");
            let contents = read(&bytes);
            prop_assert_eq!(contents.payloads, [b"{\"a\":1}", b"{\"b\":2}"]);
            prop_assert_eq!(contents.damaged_bytes, noise.len());
        }
    }
}

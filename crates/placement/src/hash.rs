//! Hashes that every process computes alike: part of the protocol between authority and gateways, so not `std`'s.

use weft_types::Digest;

/// The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// FNV-1a over the bytes, then [`mix`]: names are short.
pub(crate) fn of_name(name: &str) -> u64 {
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv)
}

/// A digest is uniform already; all of it counts, so that nobody steers it with a few chosen bytes.
pub(crate) fn of_digest(digest: &Digest) -> u64 {
    let words = digest.as_bytes().chunks_exact(8);
    words.fold(0, |hash, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        mix(hash ^ word)
    })
}

/// A number in (0, 1), never 0 or 1: 53 bits and a half.
pub(crate) fn unit(hash: u64) -> f64 {
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

//! No bytes make the GGUF reader panic or ask for memory out of proportion to the file.

mod support;
#[path = "support/watching.rs"]
mod watching;

use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::OnceLock;
use weft_base_model::{OpenOptions, open};

/// The tiny file has 122 kB; its tokenizer's hash tables are the largest thing an honest file of that size needs.
const ALLOCATION_MAX: usize = 8 << 20;

fn pristine() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| std::fs::read(support::golden("tiny.gguf")).unwrap())
}

/// Opens these bytes; whether that works is not the question.
fn open_bytes(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("hostile.gguf");
    std::fs::write(&path, bytes).unwrap();
    watching::start();
    let opened = open(&path, &OpenOptions::default()).map(|model| {
        model.weights.names().for_each(|name| drop(model.weights.load_f32(name).unwrap()));
    });
    let largest = watching::largest();
    assert!(largest <= ALLOCATION_MAX, "asked for {largest} bytes at once");
    opened.is_ok()
}

/// Where the header ends: names and numbers are before, weights after.
const HEADER: usize = 6_144;

#[test]
fn the_pristine_file_opens() {
    assert!(open_bytes(pristine()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn truncated_files_are_refused(length in 0..121_984usize) {
        prop_assert!(!open_bytes(&pristine()[..length]));
    }

    #[test]
    fn flipped_bits_in_the_header_do_no_harm(flips in prop::collection::vec((0..HEADER, 0..8u32), 1..6)) {
        let mut bytes = pristine().to_vec();
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        open_bytes(&bytes);
    }

    #[test]
    fn extreme_numbers_anywhere_in_the_header_do_no_harm(
        at in 0..HEADER,
        number in prop::sample::select(vec![0u64, 1, u64::MAX, u64::MAX / 2, 1 << 32, 1 << 40, 1 << 62, (1 << 63) + 7, 0xffff_ffff]),
    ) {
        let mut bytes = pristine().to_vec();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        open_bytes(&bytes);
    }

    #[test]
    fn random_bytes_behind_a_good_beginning_do_no_harm(keep in 0..6000usize, rest in prop::collection::vec(any::<u8>(), 0..3000)) {
        open_bytes(&[&pristine()[..keep], &rest[..]].concat());
    }
}

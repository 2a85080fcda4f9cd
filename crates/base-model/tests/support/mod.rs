//! What several test files need.

use std::path::PathBuf;

/// The demo base: `WEFT_DEMO_MODEL`, else fetched once into `.cache/models` of the workspace. Its absence is a
/// failure, not a reason to skip.
#[allow(dead_code, reason = "each test file uses what it needs")]
pub(crate) fn demo_model() -> PathBuf {
    if let Some(path) = std::env::var_os("WEFT_DEMO_MODEL") {
        return PathBuf::from(path);
    }
    let cache = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/models"));
    weft_base_model::fetch::demo_model(&cache).expect("the demo base must be there")
}

/// A file of `tests/golden`.
#[allow(dead_code, reason = "each test file uses what it needs")]
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

/// Copies of the tiny model in both forms, free to be broken: a folder with `tiny.gguf` and the folder `tiny`.
#[allow(dead_code, reason = "each test file uses what it needs")]
pub(crate) fn tiny_models() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(golden("tiny.gguf"), copy.path().join("tiny.gguf")).unwrap();
    std::fs::create_dir(copy.path().join("tiny")).unwrap();
    for entry in std::fs::read_dir(golden("tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join("tiny").join(entry.file_name())).unwrap();
    }
    copy
}

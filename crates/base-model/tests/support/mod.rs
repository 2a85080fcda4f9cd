//! What several test files need.

use std::path::PathBuf;

/// The demo base: `WEFT_DEMO_MODEL`, else fetched once into `.cache/models` of the workspace. Its absence is a
/// failure, not a reason to skip.
pub(crate) fn demo_model() -> PathBuf {
    if let Some(path) = std::env::var_os("WEFT_DEMO_MODEL") {
        return PathBuf::from(path);
    }
    let cache = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/models"));
    weft_base_model::fetch::demo_model(&cache).expect("the demo base must be there")
}

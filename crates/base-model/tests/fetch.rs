//! The demo base comes once.

mod support;

use weft_base_model::fetch::demo_model;

#[test]
fn a_model_that_is_there_is_found_without_network() {
    let model = support::demo_model();
    let cache = tempfile::tempdir().unwrap();
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    std::os::unix::fs::symlink(model.canonicalize().unwrap(), cache.path().join(name)).unwrap();
    let found = demo_model(cache.path()).unwrap();
    assert_eq!(found, cache.path().join(name));
    // Not even a lock was taken, let alone a venv made.
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
}

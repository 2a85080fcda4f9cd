//! The digest names the model and nothing else; its cache helps and never lies.

mod support;

use serde_json::Value;
use std::path::Path;
use weft_base_model::{OpenOptions, open};

fn digest(path: &Path) -> String {
    open(path, &OpenOptions::default()).unwrap().digest.to_string()
}

/// Committed once; a change means that every base gets a new identity.
const GGUF: &str = "sha256:5f8efb1afbc9b1c1986fe49e8b06e2690bbc13f0b00b378260ed1ef27e0585eb";
const FOLDER: &str = "sha256:1335e416ca602ce1e08af1ace9b0cdbc00d86b6969f5f66d96623d061d3ca137";

#[test]
fn digests_of_known_models_never_change() {
    let models = support::tiny_models();
    assert_eq!(digest(&models.path().join("tiny.gguf")), GGUF);
    assert_eq!(digest(&models.path().join("tiny")), FOLDER);
}

#[test]
fn the_digest_is_of_the_content_not_of_the_place_or_name() {
    let (one, other) = (support::tiny_models(), support::tiny_models());
    std::fs::rename(other.path().join("tiny.gguf"), other.path().join("renamed.gguf")).unwrap();
    assert_eq!(digest(&one.path().join("tiny.gguf")), digest(&other.path().join("renamed.gguf")));
    let options = OpenOptions { served_name: Some("x".into()), ..OpenOptions::default() };
    assert_eq!(open(&one.path().join("tiny.gguf"), &options).unwrap().digest.to_string(), GGUF);
}

#[test]
fn weights_config_vocabulary_and_template_all_count() {
    let change = |name: &str, from: &str, to: &str| {
        let models = support::tiny_models();
        let path = models.path().join("tiny").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{name} lacks {from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        digest(&models.path().join("tiny"))
    };
    let weights = {
        let models = support::tiny_models();
        let path = models.path().join("tiny").join("model-00002-of-00002.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        digest(&models.path().join("tiny"))
    };
    let all = [
        FOLDER.to_owned(),
        weights,
        change("config.json", "1e-05", "2e-05"),
        change("config.json", "10000.0", "10001.0"),
        change("config.json", "\"max_position_embeddings\": 128", "\"max_position_embeddings\": 129"),
        change("generation_config.json", "[1, 2]", "[1]"),
        change("tokenizer.json", "[\"h\",\"e\"],[\"l\",\"l\"]", "[\"l\",\"l\"],[\"h\",\"e\"]"),
        change("chat_template.jinja", "trim", "upper"),
    ];
    let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{all:#?}");
}

/// The cache with its `weights` digest replaced: an answer made from it is recognisable.
fn forge(cache: &Path) {
    let mut entry: Value = serde_json::from_slice(&std::fs::read(cache).unwrap()).unwrap();
    entry["weights"] = Value::String(format!("sha256:{}", "0".repeat(64)));
    std::fs::write(cache, entry.to_string()).unwrap();
}

#[test]
fn a_cache_that_fits_is_used() {
    let models = support::tiny_models();
    for name in ["tiny.gguf", "tiny"] {
        let path = models.path().join(name);
        let honest = digest(&path);
        let cache = models.path().join(format!("{name}.weft-digest.json"));
        forge(&cache);
        assert_ne!(digest(&path), honest, "the cache of {name} was not used");
    }
}

#[test]
fn a_cache_of_other_bytes_is_ignored_and_replaced() {
    let models = support::tiny_models();
    let path = models.path().join("tiny.gguf");
    let cache = models.path().join("tiny.gguf.weft-digest.json");
    digest(&path);
    forge(&cache);
    // Written again with the same bytes: a new modification time.
    let bytes = std::fs::read(&path).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::write(&path, &bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    assert_eq!(digest(&path), GGUF);

    // Replaced by rename with the time kept: a new inode.
    forge(&cache);
    let copy = models.path().join("copy");
    std::fs::write(&copy, &bytes).unwrap();
    std::fs::File::options().write(true).open(&copy).unwrap().set_modified(later).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert_eq!(digest(&path), GGUF);
    assert_eq!(digest(&path), GGUF);
}

#[test]
fn a_corrupt_cache_is_ignored_and_replaced() {
    let models = support::tiny_models();
    let path = models.path().join("tiny.gguf");
    let cache = models.path().join("tiny.gguf.weft-digest.json");
    digest(&path);
    let good = std::fs::read(&cache).unwrap();
    for bad in [&b""[..], b"{}", b"\xff\xfe", &good[..good.len() / 2], b"[1, 2, 3]"] {
        std::fs::write(&cache, bad).unwrap();
        assert_eq!(digest(&path), GGUF);
        assert_eq!(std::fs::read(&cache).unwrap(), good);
    }
}

#[test]
fn where_the_models_folder_cannot_be_written_the_cache_goes_elsewhere() {
    let models = support::tiny_models();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = models.path().join("tiny.gguf");
    // A folder in the cache's place: neither readable as a file nor replaceable by rename.
    std::fs::create_dir(models.path().join("tiny.gguf.weft-digest.json")).unwrap();
    let options = OpenOptions { digest_cache_dir: Some(elsewhere.path().join("new")), ..OpenOptions::default() };
    let open_digest = || open(&path, &options).unwrap().digest.to_string();
    assert_eq!(open_digest(), GGUF);
    let files: Vec<_> = std::fs::read_dir(elsewhere.path().join("new")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    forge(&files[0]);
    assert_ne!(open_digest(), GGUF);
    // Without a cache folder it still opens.
    assert_eq!(digest(&path), GGUF);
}

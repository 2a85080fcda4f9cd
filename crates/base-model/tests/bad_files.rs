//! Every broken or unsupported model is refused with a message that names file, tensor or field, and value.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use weft_base_model::{Error, OpenOptions, open};
use weft_fault::{Fault, Kind};

fn refusal(path: &Path) -> (Kind, String) {
    let error = open(path, &OpenOptions::default()).expect_err("it must be refused");
    let fault = Fault::from(error);
    assert!(fault.message.contains(path.file_stem().unwrap().to_str().unwrap()), "{}", fault.message);
    (fault.kind, fault.message)
}

/// `tiny.gguf` with the bytes `from` (which occur once from `after` on) replaced by as many others.
fn gguf_with(from: &[u8], to: &[u8]) -> (Kind, String) {
    assert_eq!(from.len(), to.len());
    let models = support::tiny_models();
    let path = models.path().join("tiny.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the bytes occur");
    bytes[at..at + to.len()].copy_from_slice(to);
    std::fs::write(&path, bytes).unwrap();
    refusal(&path)
}

/// A metadata string or tensor name as the file holds it.
fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn gguf_key(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [gguf_text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

#[track_caller]
fn assert_says((kind, message): (Kind, String), wanted: Kind, words: &[&str]) {
    assert_eq!(kind, wanted, "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

#[test]
fn a_model_that_is_not_there_is_not_found() {
    assert_says(refusal(Path::new("/nowhere/model.gguf")), Kind::NotFound, &["/nowhere/model.gguf"]);
    let empty = tempfile::tempdir().unwrap();
    assert!(
        matches!(open(empty.path(), &OpenOptions::default()), Err(Error::NotFound(path)) if path.ends_with("config.json"))
    );
}

#[test]
fn a_gguf_file_cut_short_says_so_and_names_the_tensor() {
    let models = support::tiny_models();
    let path = models.path().join("tiny.gguf");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_says(refusal(&path), Kind::Corrupt, &["tensor ", "cut short", "121983"]);
    std::fs::write(&path, &bytes[..1000]).unwrap();
    assert_says(refusal(&path), Kind::Corrupt, &["cut short", "tokenizer.ggml."]);
    std::fs::write(&path, b"").unwrap();
    assert_says(refusal(&path), Kind::Corrupt, &["magic"]);
    std::fs::write(&path, b"PK\x03\x04 and so on").unwrap();
    assert_says(refusal(&path), Kind::Corrupt, &["does not begin with GGUF"]);
}

#[test]
fn gguf_versions_and_architectures_of_others_are_refused_by_name() {
    assert_says(gguf_with(b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0"), Kind::Refused, &["version 1"]);
    assert_says(gguf_with(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), Kind::Refused, &["big-endian"]);
    let key = |name: &str| gguf_key("general.architecture", 8, &gguf_text(name));
    assert_says(gguf_with(&key("llama"), &key("qwen2")), Kind::Refused, &["general.architecture", "qwen2"]);
    let key = |name: &str| gguf_key("tokenizer.ggml.model", 8, &gguf_text(name));
    assert_says(gguf_with(&key("gpt2"), &key("bert")), Kind::Refused, &["tokenizer.ggml.model", "bert"]);
    let key = |name: &str| gguf_key("tokenizer.ggml.pre", 8, &gguf_text(name));
    assert_says(gguf_with(&key("gpt-2"), &key("gpt-4")), Kind::Refused, &["tokenizer.ggml.pre", "gpt-4", "smollm"]);
}

#[test]
fn gguf_tensors_that_do_not_fit_are_refused_by_name() {
    // Type 10 is Q2_K; the entry is name, two dimensions, type.
    let entry = |kind: u32| {
        let dims = [2u32.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec(), 48u64.to_le_bytes().to_vec()].concat();
        [gguf_text("blk.1.ffn_up.weight"), dims, kind.to_le_bytes().to_vec()].concat()
    };
    let models = support::tiny_models();
    let bytes = std::fs::read(models.path().join("tiny.gguf")).unwrap();
    let now = [0, 30].into_iter().find(|kind| bytes.windows(entry(*kind).len()).any(|w| w == entry(*kind))).unwrap();
    assert_says(gguf_with(&entry(now), &entry(10)), Kind::Corrupt, &["blk.1.ffn_up.weight", "Q2_K (10)"]);
    assert_says(gguf_with(&entry(now), &entry(99)), Kind::Corrupt, &["blk.1.ffn_up.weight", "99 (unknown)"]);
    assert_says(gguf_with(&entry(now), &entry(12)), Kind::Corrupt, &["blk.1.ffn_up.weight", "Q4_K", "256"]);

    let name = |name: &str| gguf_text(name);
    let renamed = gguf_with(&name("blk.1.ffn_up.weight"), &name("blk.1.ffn_uq.weight"));
    assert_says(renamed, Kind::Corrupt, &["blk.1.ffn_uq.weight", "does not belong"]);
    let twice = gguf_with(&name("blk.1.ffn_up.weight"), &name("blk.0.ffn_up.weight"));
    assert_says(twice, Kind::Corrupt, &["blk.0.ffn_up.weight", "twice"]);

    let layers = |count: u32| gguf_key("llama.block_count", 4, &count.to_le_bytes());
    assert_says(gguf_with(&layers(2), &layers(3)), Kind::Corrupt, &["model.layers.2.", "missing"]);
    assert_says(gguf_with(&layers(2), &layers(1)), Kind::Corrupt, &["blk.1.", "1 layers"]);
    assert_says(gguf_with(&layers(2), &layers(u32::MAX)), Kind::Corrupt, &["layer count 4294967295"]);
    let inter = |size: u32| gguf_key("llama.feed_forward_length", 4, &size.to_le_bytes());
    assert_says(gguf_with(&inter(48), &inter(64)), Kind::Corrupt, &["ffn_", "[64, 32]", "48"]);
    let heads = |count: u32| gguf_key("llama.attention.head_count_kv", 4, &count.to_le_bytes());
    assert_says(gguf_with(&heads(2), &heads(3)), Kind::Corrupt, &["kv head count 3", "head count 4"]);
    let vocab = |count: u32| gguf_key("llama.vocab_size", 4, &count.to_le_bytes());
    assert_says(gguf_with(&vocab(270), &vocab(2)), Kind::Corrupt, &["token_embd.weight", "[270, 32]", "[2, 32]"]);
}

/// `tiny/config.json` with fields replaced.
fn config_with(fields: Value) -> (Kind, String) {
    let models = support::tiny_models();
    let path = models.path().join("tiny").join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    refusal(&models.path().join("tiny"))
}

#[test]
fn configs_that_would_change_the_answer_are_refused_by_field_and_value() {
    assert_says(config_with(json!({"architectures": ["MistralForCausalLM"]})), Kind::Refused, &["MistralForCausalLM"]);
    assert_says(config_with(json!({"attention_bias": true})), Kind::Refused, &["attention_bias"]);
    assert_says(config_with(json!({"mlp_bias": true})), Kind::Refused, &["mlp_bias"]);
    assert_says(config_with(json!({"hidden_act": "gelu"})), Kind::Refused, &["hidden_act", "gelu"]);
    assert_says(config_with(json!({"quantization_config": {"quant_method": "awq"}})), Kind::Refused, &["awq"]);
    let yarn = json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}});
    assert_says(config_with(yarn), Kind::Refused, &["yarn"]);
    let old_yarn = json!({"rope_parameters": null, "rope_scaling": {"type": "dynamic", "factor": 4.0}});
    assert_says(config_with(old_yarn), Kind::Refused, &["dynamic"]);
    let linear = json!({"rope_parameters": {"rope_type": "linear"}});
    assert_says(config_with(linear), Kind::Corrupt, &["linear", "factor"]);
    assert_says(config_with(json!({"num_hidden_layers": -1})), Kind::Corrupt, &["config.json", "-1"]);
    assert_says(config_with(json!({"head_dim": 7})), Kind::Corrupt, &["head dimension 7"]);
    assert_says(
        config_with(json!({"intermediate_size": 40})),
        Kind::Corrupt,
        &["mlp.down_proj", "[32, 40]", "[32, 48]"],
    );
    assert_says(config_with(json!({"num_hidden_layers": 3})), Kind::Corrupt, &["model.layers.2.", "missing"]);
    assert_says(config_with(json!({"num_hidden_layers": 1})), Kind::Corrupt, &["model.layers.1.", "does not belong"]);
    assert_says(config_with(json!({"vocab_size": 100})), Kind::Corrupt, &["embed_tokens", "[270, 32]"]);
}

/// The tiny folder after `change`.
fn folder_after(change: impl FnOnce(&Path)) -> (Kind, String) {
    let models = support::tiny_models();
    let folder = models.path().join("tiny");
    change(&folder);
    let error = open(&folder, &OpenOptions::default()).expect_err("it must be refused");
    let fault = Fault::from(error);
    (fault.kind, fault.message)
}

#[test]
fn folders_with_broken_parts_are_refused_by_file() {
    let second = "model-00002-of-00002.safetensors";
    let cut = folder_after(|folder| {
        let bytes = std::fs::read(folder.join(second)).unwrap();
        std::fs::write(folder.join(second), &bytes[..bytes.len() - 5]).unwrap();
    });
    assert_says(cut, Kind::Corrupt, &[second, "safetensors"]);
    let gone = folder_after(|folder| std::fs::remove_file(folder.join(second)).unwrap());
    assert_says(gone, Kind::NotFound, &[second]);
    let empty = folder_after(|folder| std::fs::write(folder.join(second), b"").unwrap());
    assert_says(empty, Kind::Corrupt, &[second]);
    let escape = folder_after(|folder| {
        let index = json!({"weight_map": {"lm_head.weight": "../../etc/passwd"}});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    });
    assert_says(escape, Kind::Corrupt, &["model.safetensors.index.json", "../../etc/passwd"]);
    let neither = folder_after(|folder| std::fs::remove_file(folder.join("model.safetensors.index.json")).unwrap());
    assert_says(neither, Kind::NotFound, &["model.safetensors"]);
    let no_tokenizer = folder_after(|folder| std::fs::remove_file(folder.join("tokenizer.json")).unwrap());
    assert_says(no_tokenizer, Kind::NotFound, &["tokenizer.json"]);
    let bad_tokenizer = folder_after(|folder| std::fs::write(folder.join("tokenizer.json"), b"{\"model\":").unwrap());
    assert_says(bad_tokenizer, Kind::Corrupt, &["tokenizer.json"]);
    // Ends within the decoder, over which the tokenizers crate panics.
    let cut = folder_after(|folder| {
        let bytes = std::fs::read(folder.join("tokenizer.json")).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let at = text.find("\"decoder\"").expect("it has a decoder") + "\"decoder\": {\"type\":".len();
        std::fs::write(folder.join("tokenizer.json"), &text[..at]).unwrap();
    });
    assert_says(cut, Kind::Corrupt, &["tokenizer.json", "EOF"]);
    let bad_template = folder_after(|folder| std::fs::write(folder.join("chat_template.jinja"), b"{% if %}").unwrap());
    assert_says(bad_template, Kind::Invalid, &["chat template", "syntax"]);
}

#[test]
fn a_tensor_in_a_type_nobody_decodes_is_refused() {
    let odd = folder_after(|folder| {
        let path = folder.join("model-00002-of-00002.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = bytes.windows(4).position(|w| w == b"BF16").unwrap();
        bytes[header..header + 4].copy_from_slice(b"I16\"");
        // Keep the header valid JSON: drop the quote that follows.
        bytes[header + 4] = b' ';
        std::fs::write(&path, bytes).unwrap();
    });
    assert_says(odd, Kind::Corrupt, &["I16", "supported are F32, F16 and BF16"]);
}

//! One tiny random model as a Hugging Face folder and as a GGUF file (`golden/make_tiny.py`): both open to the same.

mod support;

use serde_json::json;
use weft_base_model::{BaseModel, ModelConfig, OpenOptions, SpecialText, open};

fn both() -> (BaseModel, BaseModel) {
    let models = support::tiny_models();
    let folder = open(&models.path().join("tiny"), &OpenOptions::default()).unwrap();
    let gguf = open(&models.path().join("tiny.gguf"), &OpenOptions::default()).unwrap();
    (folder, gguf)
}

#[test]
fn the_weights_are_the_same_to_the_bit() {
    let (folder, gguf) = both();
    let names: Vec<&str> = folder.weights.names().collect();
    assert_eq!(names, gguf.weights.names().collect::<Vec<_>>());
    assert_eq!(names.len(), 2 * 9 + 3);
    for name in names {
        assert_eq!(folder.weights.shape(name), gguf.weights.shape(name), "{name}");
        assert_eq!(folder.weights.load_f32(name).unwrap(), gguf.weights.load_f32(name).unwrap(), "{name}");
    }
    // Printed by the script from transformers' own state.
    let q = folder.weights.load_f32("model.layers.1.self_attn.q_proj.weight").unwrap();
    assert_eq!(q[5 * 32..5 * 32 + 3], [-0.013_366_699, -0.002_578_735_4, 0.005_523_681_6]);
    assert_eq!((folder.weights.stored_as("lm_head.weight"), folder.weights.parameters()), (Some("BF16"), 32_800));
    assert!(folder.weights.load_f32("model.layers.2.mlp.up_proj.weight").is_err());
}

#[test]
fn the_configs_are_the_same_but_for_the_end_tokens_each_names() {
    let (folder, gguf) = both();
    assert_eq!(folder.config.eos_ids, [1, 2]);
    assert_eq!(gguf.config.eos_ids, [1]);
    assert_eq!(gguf.config, ModelConfig { eos_ids: vec![1], ..folder.config.clone() });
    assert!(!folder.config.tied_embeddings);
    let linears = folder.config.linears();
    let shapes: Vec<_> = linears.iter().map(|l| (l.module, l.parent, l.in_features, l.out_features)).collect();
    assert_eq!(shapes[1], ("k_proj", "self_attn", 32, 16));
    assert_eq!(shapes[6], ("down_proj", "mlp", 48, 32));
    assert_eq!((folder.served_name.as_str(), gguf.served_name.as_str()), ("tiny", "Tiny Llama"));
}

#[test]
fn the_tokenizers_and_templates_are_the_same() {
    let (folder, gguf) = both();
    for text in ["hello world", "the hell", "<|user|>in the world<|eos|>", "", "日本 12"] {
        for special in [SpecialText::Parse, SpecialText::Literal] {
            let ids = folder.tokenizer.encode(text, true, special).unwrap();
            assert_eq!(ids, gguf.tokenizer.encode(text, true, special).unwrap(), "{text:?}");
            // BOS is added, and the folder's padding and truncation are not obeyed.
            assert_eq!(ids[0], 0);
            assert_eq!(folder.tokenizer.decode(&ids[1..], false), text);
        }
    }
    let long = folder.tokenizer.encode("a long text of many words", false, SpecialText::Parse).unwrap();
    assert!(long.len() > 8);
    let messages = json!([{"role": "user", "content": " hello <|eos|> "}]);
    let render = |model: &BaseModel| {
        let rendered = model.chat_template.as_ref().unwrap().render(&messages, None, true, false).unwrap();
        (rendered.text(), model.tokenizer.encode_rendered(&rendered).unwrap())
    };
    let (text, ids) = render(&folder);
    assert_eq!((text.as_str(), ids[0], ids[1]), ("<|bos|><|user|>hello <|eos|><|user|>", 0, 2));
    assert!(!ids.contains(&1));
    assert_eq!(render(&gguf), (text, ids));
}

#[test]
fn a_served_name_given_wins() {
    let models = support::tiny_models();
    let options = OpenOptions { served_name: Some("mine".into()), ..OpenOptions::default() };
    assert_eq!(open(&models.path().join("tiny.gguf"), &options).unwrap().served_name, "mine");
}

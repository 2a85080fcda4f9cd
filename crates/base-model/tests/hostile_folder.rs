//! No content of a Hugging Face folder makes the reader panic or ask for memory out of proportion: each of its files
//! in turn with other JSON in it, other bytes in it, or cut short.

mod support;
#[path = "support/watching.rs"]
mod watching;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use std::path::Path;
use weft_base_model::{OpenOptions, SpecialText, open};

/// The tiny folder has some 200 kB.
const ALLOCATION_MAX: usize = 16 << 20;
const TEXTS: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Opens a folder in which this file has these bytes, and uses whatever opened.
fn open_with(file: &str, bytes: &[u8]) -> bool {
    let models = support::tiny_models();
    let folder = models.path().join("tiny");
    std::fs::write(folder.join(file), bytes).unwrap();
    opens(&folder)
}

fn opens(folder: &Path) -> bool {
    watching::start();
    let opened = open(folder, &OpenOptions::default()).map(|model| {
        model.weights.names().for_each(|name| drop(model.weights.load_f32(name)));
        for special in [SpecialText::Parse, SpecialText::Literal] {
            // An error is an answer.
            if let Ok(ids) = model.tokenizer.encode("hello <|eos|> world\n\u{1F600}", true, special) {
                drop(model.tokenizer.decode(&ids, false));
            }
        }
        if let Some(template) = &model.chat_template {
            let messages = json!([{"role": "user", "content": "hello <|eos|>"}, {"role": "assistant", "content": "a"}]);
            if let Ok(rendered) = template.render(&messages, None, true, false) {
                drop(model.tokenizer.encode_rendered(&rendered));
            }
        }
    });
    let largest = watching::largest();
    assert!(largest <= ALLOCATION_MAX, "asked for {largest} bytes at once");
    opened.is_ok()
}

fn pristine(file: &str) -> Vec<u8> {
    std::fs::read(support::golden("tiny").join(file)).unwrap()
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![0, 1, -1, 2, 255, 1 << 31, 1 << 40, i64::MAX, i64::MIN]).prop_map(Value::from),
        prop::sample::select(vec![0.0, -1.5, 1e300, 1e-300]).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "x",
            "../../etc/passwd",
            "/etc/passwd",
            "model-00001-of-00002.safetensors",
            "BPE",
            "ByteLevel",
            "Sequence",
            "NFC",
            "{{ messages }}",
            "{% for x in",
            "<|eos|>",
            "\u{0}",
            "LlamaForCausalLM",
            "(((",
            "[a-z]+",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            ("[a-z_]{1,8}", inner).prop_map(|(key, value)| json!({key: value})),
        ]
    })
}

/// Every place in a document, as a pointer, with at most 40 of each list or map: vocabularies are long.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Array(items) => {
            items.iter().enumerate().take(40).for_each(|(n, item)| places(item, &format!("{at}/{n}"), found));
        }
        Value::Object(fields) => {
            fields.iter().take(40).for_each(|(key, item)| places(item, &format!("{at}/{}", escaped(key)), found));
        }
        _ => {}
    }
}

/// Puts the value at the place, or takes the place away.
fn change(document: &mut Value, place: &str, value: Option<Value>) {
    match value {
        Some(value) => *document.pointer_mut(place).unwrap() = value,
        None => {
            let Some((parent, key)) = place.rsplit_once('/') else { return };
            match document.pointer_mut(parent).unwrap() {
                Value::Array(items) => drop(items.remove(key.parse().unwrap())),
                Value::Object(fields) => drop(fields.remove(&key.replace("~1", "/").replace("~0", "~"))),
                _ => unreachable!("only lists and maps have members"),
            }
        }
    }
}

#[test]
fn the_pristine_folder_opens() {
    assert!(opens(&support::golden("tiny")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn other_values_anywhere_in_the_json_do_no_harm(
        file in prop::sample::select(TEXTS.to_vec()),
        changes in prop::collection::vec((any::<Index>(), prop::option::weighted(0.8, any_json())), 1..4),
    ) {
        let mut document: Value = serde_json::from_slice(&pristine(file)).unwrap();
        for (index, value) in changes {
            let mut found = Vec::new();
            places(&document, "", &mut found);
            let place = index.get(&found).clone();
            change(&mut document, &place, value);
        }
        open_with(file, document.to_string().as_bytes());
    }

    #[test]
    fn texts_cut_short_are_refused_or_read_and_flipped_bits_do_no_harm(
        file in prop::sample::select(TEXTS.to_vec()),
        flips in prop::collection::vec((any::<Index>(), 0..8u32), 0..5),
        cut in prop::option::of(any::<Index>()),
    ) {
        let mut bytes = pristine(file);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        open_with(file, &bytes);
    }

    #[test]
    fn shards_cut_short_are_refused(file in prop::sample::select(SHARDS.to_vec()), cut in any::<Index>()) {
        let bytes = pristine(file);
        prop_assert!(!open_with(file, &bytes[..cut.index(bytes.len())]));
    }

    #[test]
    fn other_bytes_in_the_header_of_a_shard_do_no_harm(
        file in prop::sample::select(SHARDS.to_vec()),
        edits in prop::collection::vec((any::<Index>(), any::<u8>()), 1..5),
        length in prop::option::of(prop::sample::select(vec![0u64, 1, 7, 1 << 20, 1 << 40, u64::MAX, u64::MAX - 7])),
    ) {
        let mut bytes = pristine(file);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in edits {
            bytes[8 + at.index(header - 8)] = byte;
        }
        if let Some(length) = length {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        open_with(file, &bytes);
    }
}

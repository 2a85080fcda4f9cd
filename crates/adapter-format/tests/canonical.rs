//! The canonical blob: its exact bytes, who can read it, and what its reader refuses.

mod support;

use proptest::prelude::*;
use serde_json::json;
use support::{base, check, config, config_with, file, pair, tensors, weights};
use weft_adapter_format::{CanonicalAdapter, Dtype, Error, Limits, Module, check_package};
use weft_types::Digest;

fn blob() -> Vec<u8> {
    check(&config(), &tensors()).expect("sound").canonical_blob()
}

/// The header text of a blob, with its padding.
fn header_of(blob: &[u8]) -> (&str, &[u8]) {
    let length = u64::from_le_bytes(blob[..8].try_into().expect("eight bytes")) as usize;
    (std::str::from_utf8(&blob[8..8 + length]).expect("ASCII"), &blob[8 + length..])
}

#[test]
fn the_bytes_are_exactly_as_documented() {
    let one = json!({"target_modules": ["0.mlp.up_proj"], "lora_alpha": 1, "r": 3});
    let package = check(&config_with(one), &pair(&base(), 0, "up_proj", 3)).expect("sound");
    let blob = package.canonical_blob();
    let (header, data) = header_of(&blob);
    let expected = concat!(
        r#"{"__metadata__":{"weft.format":"1","weft.peft_type":"LORA","weft.rank.model.layers.0.mlp.up_proj":"3","#,
        r#""weft.scale.model.layers.0.mlp.up_proj":"0.3333333333333333"},"#,
        r#""base_model.model.model.layers.0.mlp.up_proj.lora_A.weight":{"data_offsets":[0,96],"dtype":"F32","shape":[3,8]},"#,
        r#""base_model.model.model.layers.0.mlp.up_proj.lora_B.weight":{"data_offsets":[96,240],"dtype":"F32","shape":[12,3]}}"#,
    );
    assert_eq!(header.trim_end_matches(' '), expected);
    assert_eq!((8 + header.len()) % 64, 0);
    assert!(header.len() - expected.len() < 64);
    assert_eq!(data.len(), 240);
    assert_eq!(package.digest(), Digest::of(&blob));
}

#[test]
fn its_pieces_are_the_blob_and_lie_in_the_weights() {
    let mut sorted = tensors();
    sorted.sort_by(|left, right| left.name.cmp(&right.name));
    let mut reversed = sorted.clone();
    reversed.reverse();
    let mut digests = Vec::new();
    for (tensors, pieces) in [(&sorted, 1), (&reversed, sorted.len())] {
        let file = weights(tensors);
        let package = check_package(config().to_string().as_bytes(), &file, &base(), None, &Limits::default());
        let package = package.expect("sound");
        let (blob, bytes, digest) = (package.canonical_blob(), package.canonical_bytes(), package.digest());
        let (head, data) = package.into_pieces();
        assert_eq!(data.len(), pieces, "tensors that adjoin are one piece");
        for piece in &data {
            assert!(
                file.as_ptr_range().contains(&piece.as_ptr()) && piece.as_ptr_range().end <= file.as_ptr_range().end
            );
        }
        let joined = [&head[..]].into_iter().chain(data).collect::<Vec<_>>().concat();
        assert_eq!((joined.len() as u64, Digest::of(&joined)), (bytes, digest));
        assert_eq!(joined, blob);
        digests.push(digest);
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn any_safetensors_reader_opens_it() {
    let blob = blob();
    let opened = safetensors::SafeTensors::deserialize(&blob).expect("a valid file");
    assert_eq!(opened.len(), 8);
    let (_, header) = safetensors::SafeTensors::read_metadata(&blob).expect("a valid header");
    let metadata = header.metadata().as_ref().expect("metadata");
    assert_eq!(metadata["weft.scale.model.layers.1.self_attn.v_proj"], "2.0");
    assert_eq!(metadata.len(), 2 + 2 * 4);
}

#[test]
fn what_does_not_change_the_answer_does_not_change_the_digest() {
    let digest = check(&config(), &tensors()).expect("sound").digest();
    let mut reordered = tensors();
    reordered.reverse();
    let spelled = json!({
        "target_modules": r".*\.[qv]_proj", "lora_dropout": 0.3, "revision": "abc", "base_model_name_or_path": "x",
        "rank_pattern": {"k_proj": 7},
    });
    let other = check(&config_with(spelled), &reordered).expect("sound");
    assert_eq!(other.digest(), digest);

    let scaled = check(&config_with(json!({"lora_alpha": 5})), &tensors()).expect("sound");
    assert_ne!(scaled.digest(), digest);
    let mut changed = tensors();
    changed[5].bytes[0] ^= 1;
    assert_ne!(check(&config(), &changed).expect("sound").digest(), digest);
}

#[test]
fn modules_come_by_layer_and_in_the_order_of_use() {
    let base = base();
    let modules = ["down_proj", "up_proj", "gate_proj", "o_proj", "v_proj", "k_proj", "q_proj"];
    let tensors: Vec<_> =
        [1, 0].iter().flat_map(|layer| modules.iter().flat_map(|module| pair(&base, *layer, module, 2))).collect();
    let blob = check(&config_with(json!({"target_modules": "all-linear"})), &tensors).expect("sound").canonical_blob();
    let adapter = CanonicalAdapter::parse(&blob).expect("canonical");
    let order: Vec<_> = adapter.modules().iter().map(|delta| (delta.layer, delta.module)).collect();
    let expected: Vec<_> =
        (0..2).flat_map(|layer| Module::ALL.into_iter().map(move |module| (layer, module))).collect();
    assert_eq!(order, expected);
    let down = adapter.modules()[6];
    assert_eq!((down.rank, down.scale, down.a.shape, down.b.shape), (2, 2.0, [2, 12], [8, 2]));
    assert_eq!(down.a.to_f32(), [0.5; 24]);
    assert_eq!(down.b.dtype, Dtype::F32);
}

#[test]
fn dtypes_are_kept_and_may_differ_within_a_module() {
    let mut mixed = tensors();
    mixed[0].dtype = "F16";
    mixed[0].bytes = [0x00, 0x3c].repeat(16);
    mixed[3].dtype = "BF16";
    mixed[3].bytes = [0x80, 0xbf].repeat(8);
    let blob = check(&config(), &mixed).expect("sound").canonical_blob();
    let adapter = CanonicalAdapter::parse(&blob).expect("canonical");
    assert_eq!((adapter.modules()[0].a.dtype, adapter.modules()[0].b.dtype), (Dtype::F16, Dtype::F32));
    assert_eq!(adapter.modules()[0].a.to_f32(), [1.0; 16]);
    assert_eq!(adapter.modules()[1].b.to_f32(), [-1.0; 8]);
    safetensors::SafeTensors::deserialize(&blob).expect("a valid file");
}

fn respelled(change: impl Fn(&str) -> String) -> Result<(), Error> {
    let blob = blob();
    let (header, data) = header_of(&blob);
    let changed = file(&change(header), data);
    CanonicalAdapter::parse(&changed).map(|_| ())
}

#[test]
fn any_other_spelling_is_refused() {
    assert_eq!(respelled(str::to_owned), Ok(()));
    let not_canonical = |change: &dyn Fn(&str) -> String| {
        let error = respelled(change).expect_err("not canonical");
        assert!(matches!(error, Error::NotCanonical(_)), "{error}");
    };
    not_canonical(&|header| header.replacen(':', ": ", 1));
    not_canonical(&|header| format!("{header} "));
    not_canonical(&|header| header.trim_end().to_owned());
    not_canonical(&|header| header.replacen("\"2.0\"", "\"2.00\"", 1));
    not_canonical(&|header| header.replacen("\"2.0\"", "\"NaN\"", 1));
    not_canonical(&|header| header.replacen("q_proj\":\"2\"", "q_proj\":\"3\"", 1));
    not_canonical(&|header| header.replacen("q_proj\":\"2\"", "q_proj\":\"02\"", 1));
    not_canonical(&|header| header.replacen("\"weft.peft_type\":\"LORA\"", "\"weft.peft_type\":\"LOHA\"", 1));
    not_canonical(&|header| header.replacen("{\"weft.format\"", "{\"note\":\"x\",\"weft.format\"", 1));
    not_canonical(&|header| {
        header.replacen("weft.rank.model.layers.0.self_attn.q_proj", "weft.rank.model.layers.0.mlp.q_proj", 1)
    });
    not_canonical(&|header| {
        header.replacen("weft.scale.model.layers.0.self_attn.q_proj", "weft.scale.model.layers.5.self_attn.q_proj", 1)
    });
    not_canonical(&|header| header.replacen("layers.1.self_attn.q_proj.lora_A", "layers.7.self_attn.q_proj.lora_A", 1));
}

#[test]
fn a_later_format_and_foreign_files_are_told_apart() {
    let error =
        respelled(|header| header.replacen("\"weft.format\":\"1\"", "\"weft.format\":\"3\"", 1)).expect_err("format");
    assert_eq!(error, Error::Format { found: Some("3".to_owned()) });
    assert_eq!(error.to_string(), "the blob has format 3, this build reads 1 and 2");
    assert_eq!(CanonicalAdapter::parse(&weights(&tensors())), Err(Error::Format { found: None }));
    assert!(matches!(CanonicalAdapter::parse(b"PK\x03\x04 and so on"), Err(Error::NotSafetensors(_))));
    let blob = blob();
    assert!(matches!(CanonicalAdapter::parse(&blob[..blob.len() - 1]), Err(Error::NotSafetensors(_))));
    assert!(matches!(CanonicalAdapter::parse(&[]), Err(Error::NotSafetensors(_))));
}

proptest! {
    /// Changed bytes: no panic; and whatever is accepted is a file that others read too.
    #[test]
    fn a_damaged_package_is_refused_or_still_yields_a_sound_blob(
        config_hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        weight_hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut config = config().to_string().into_bytes();
        let mut weights = weights(&tensors());
        for (index, byte) in config_hits {
            *index.get_mut(&mut config) = byte;
        }
        for (index, byte) in weight_hits {
            *index.get_mut(&mut weights) = byte;
        }
        if let Some(cut) = cut {
            weights.truncate(cut.index(weights.len()));
        }
        match check_package(&config, &weights, &base(), None, &Limits::default()) {
            Ok(package) => {
                let blob = package.canonical_blob();
                prop_assert_eq!(CanonicalAdapter::parse(&blob).expect("canonical").rank_max(), package.rank_max);
                prop_assert!(safetensors::SafeTensors::deserialize(&blob).is_ok());
                prop_assert!(safetensors::SafeTensors::deserialize(&weights).is_ok());
            }
            Err(refusal) => prop_assert!(!refusal.reasons.is_empty()),
        }
    }

    /// One spelling per adapter: no two headers are accepted for the same data.
    #[test]
    fn a_damaged_blob_header_is_never_accepted(index in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let blob = blob();
        let data_at = blob.len() - header_of(&blob).1.len();
        let mut damaged = blob.clone();
        let at = index.index(data_at);
        damaged[at] = byte;
        if let Ok(adapter) = CanonicalAdapter::parse(&damaged) {
            // Another scale or rank may be a canonical spelling too, of another adapter.
            let first = CanonicalAdapter::parse(&blob).expect("canonical");
            prop_assert_eq!(adapter == first, damaged == blob);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = CanonicalAdapter::parse(&bytes);
        let _ = check_package(&bytes, &bytes, &base(), Some("b"), &Limits::default());
    }
}

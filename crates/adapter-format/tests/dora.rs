//! DoRA packages: what is accepted, what is refused, and how their blobs are spelled.

mod support;

use serde_json::{Value, json};
use support::{base, check, config, dora_config, dora_tensors, file, magnitude, pair, refused, tensor, tensors};
use weft_adapter_format::{CanonicalAdapter, Dtype, Error};
use weft_types::Digest;

const Q0: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";

fn dora_config_with(changes: Value) -> Value {
    let mut config = dora_config();
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

#[test]
fn a_dora_package_is_accepted_with_its_magnitudes() {
    let package = check(&dora_config(), &dora_tensors()).expect("sound");
    assert_eq!(package.warnings, Vec::<String>::new());
    let blob = package.canonical_blob();
    let adapter = CanonicalAdapter::parse(&blob).expect("canonical");
    assert!(adapter.is_dora());
    for (delta, length) in adapter.modules().iter().zip([8, 4, 8, 4]) {
        let magnitude = delta.magnitude.expect("every module has one");
        assert_eq!((magnitude.dtype, magnitude.len()), (Dtype::F32, length));
        assert_eq!(magnitude.to_f32(), vec![-1.5; length]);
        assert_eq!((delta.rank, delta.scale), (2, 2.0));
    }
    let plain = check(&config(), &tensors()).expect("sound").canonical_blob();
    assert!(!CanonicalAdapter::parse(&plain).expect("canonical").is_dora());
}

#[test]
fn ranks_scales_and_dtypes_are_resolved_as_for_lora() {
    let changes = json!({"use_rslora": true, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1],
        "rank_pattern": {"up_proj": 4}, "alpha_pattern": {"up_proj": 6}});
    let mut all = Vec::new();
    for (module, rank) in [("q_proj", 2), ("up_proj", 4)] {
        all.extend(pair(&base(), 1, module, rank));
        all.push(magnitude(&base(), 1, module));
    }
    all[2].dtype = "BF16";
    all[2].bytes = [0x00, 0xc0].repeat(8);
    all[5].dtype = "F16";
    all[5].bytes = [0x00, 0x3c].repeat(12);
    let blob = check(&dora_config_with(changes), &all).expect("sound").canonical_blob();
    let adapter = CanonicalAdapter::parse(&blob).expect("canonical");
    let [q, up] = adapter.modules() else { panic!("two modules") };
    assert_eq!((q.rank, q.scale, up.rank, up.scale), (2, 4.0 / 2f64.sqrt(), 4, 3.0));
    assert_eq!(q.magnitude.expect("of q").to_f32(), [-2.0; 8]);
    assert_eq!(up.magnitude.expect("of up").to_f32(), [1.0; 12]);
    assert_eq!(q.a.dtype, Dtype::F32);
}

#[test]
fn magnitudes_may_be_zero_or_negative_and_b_may_be_zero() {
    let mut zero = dora_tensors();
    zero[8].bytes.fill(0);
    zero[1].bytes.fill(0);
    // Unlike in plain LoRA a B of zero leaves something: the magnitudes.
    assert_eq!(check(&dora_config(), &zero).expect("sound").warnings, Vec::<String>::new());
    let mut plain = tensors();
    plain[1].bytes.fill(0);
    assert!(check(&config(), &plain).expect("sound").warnings[0].contains("nothing changes"));
}

#[test]
fn peft_s_spelling_in_memory_is_read_and_not_kept() {
    let digest = check(&dora_config(), &dora_tensors()).expect("sound").digest();
    let mut in_memory = dora_tensors();
    for tensor in &mut in_memory[8..] {
        tensor.name += ".weight";
    }
    assert_eq!(check(&dora_config(), &in_memory).expect("sound").digest(), digest);
    let mut both = dora_tensors();
    both.push(tensor(&format!("{Q0}.weight"), &[8], 1.0));
    let reasons = refused(&dora_config(), &both);
    assert_eq!(
        reasons,
        [format!("a tensor that Weft cannot use: {Q0}.weight: the module's magnitudes are there in two spellings")]
    );
}

#[test]
fn config_and_magnitudes_must_agree() {
    assert_eq!(
        refused(&dora_config(), &tensors()),
        ["the config selects model.layers.0.self_attn.q_proj, model.layers.0.self_attn.v_proj, \
          model.layers.1.self_attn.q_proj and 1 more, the weights hold no lora_magnitude_vector tensor \
          (use_dora is true) for it"]
    );
    let mut one_missing = dora_tensors();
    one_missing.remove(9);
    assert_eq!(
        refused(&dora_config(), &one_missing),
        ["the config selects model.layers.0.self_attn.v_proj, the weights hold no lora_magnitude_vector tensor \
          (use_dora is true) for it"]
    );
    let mut without_b = dora_tensors();
    without_b.remove(1);
    assert!(refused(&dora_config(), &without_b)[0].contains("no lora_B tensor"));
    // Magnitudes that the config does not ask for would change every answer if they were applied, or if they were not.
    let says = "the config does not say use_dora";
    for config in [config(), dora_config_with(json!({"use_dora": false})), dora_config_with(json!({"use_dora": null}))]
    {
        let reasons = refused(&config, &dora_tensors());
        assert!(reasons.len() == 1 && reasons[0].ends_with(says), "{reasons:?}");
    }
    let mut one_more = tensors();
    one_more.push(magnitude(&base(), 1, "q_proj"));
    assert_eq!(
        refused(&config(), &one_more),
        [format!("the weights hold magnitudes for model.layers.1.self_attn.q_proj, but {says}")]
    );
    let mut of_another = dora_tensors();
    of_another.push(magnitude(&base(), 0, "k_proj"));
    assert_eq!(
        refused(&dora_config(), &of_another),
        ["the weights hold tensors for model.layers.0.self_attn.k_proj, which the config does not select"]
    );
}

#[test]
fn magnitudes_of_a_wrong_shape_dtype_or_value_are_named() {
    for (shape, found) in [(vec![4], "[4]"), (vec![8, 1], "[8, 1]"), (vec![1, 8], "[1, 8]"), (vec![], "[]")] {
        let mut wrong = dora_tensors();
        wrong[8] = tensor(Q0, &shape, 0.5);
        let expected = [format!("tensor {Q0}: shape {found}, the config and this base need [8]")];
        assert_eq!(refused(&dora_config(), &wrong), expected);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut wrong = dora_tensors();
        wrong[8].bytes[4 * 5..4 * 6].copy_from_slice(&bad.to_le_bytes());
        let expected = [format!("tensor {Q0} holds NaN or infinity, first at row 0, column 5")];
        assert_eq!(refused(&dora_config(), &wrong), expected);
    }
    let mut wrong = dora_tensors();
    wrong[8].dtype = "F64";
    assert!(refused(&dora_config(), &wrong)[0].contains("has dtype F64, only F32"));
}

#[test]
fn what_peft_refuses_or_does_otherwise_with_dora_stays_refused() {
    for (changes, words) in [
        (json!({"lora_bias": true}), "lora_bias is true"),
        (json!({"bias": "lora_only"}), "bias is \"lora_only\""),
        (json!({"megatron_config": {"a": 1}}), "megatron_config is"),
        (json!({"use_qalora": true}), "use_qalora is true"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights is \"pissa\""),
    ] {
        let reasons = refused(&dora_config_with(changes), &dora_tensors());
        assert!(reasons.len() == 1 && reasons[0].contains(words), "{words}: {reasons:?}");
    }
}

fn one_module() -> Vec<u8> {
    let config = dora_config_with(json!({"target_modules": ["0.mlp.up_proj"], "lora_alpha": 1, "r": 3}));
    let mut tensors = pair(&base(), 0, "up_proj", 3).to_vec();
    tensors.push(magnitude(&base(), 0, "up_proj"));
    check(&config, &tensors).expect("sound").canonical_blob()
}

fn header_of(blob: &[u8]) -> (&str, &[u8]) {
    let length = u64::from_le_bytes(blob[..8].try_into().expect("eight bytes")) as usize;
    (std::str::from_utf8(&blob[8..8 + length]).expect("ASCII"), &blob[8 + length..])
}

#[test]
fn the_bytes_are_exactly_as_documented() {
    let blob = one_module();
    let (header, data) = header_of(&blob);
    let expected = concat!(
        r#"{"__metadata__":{"weft.format":"2","weft.peft_type":"DORA","weft.rank.model.layers.0.mlp.up_proj":"3","#,
        r#""weft.scale.model.layers.0.mlp.up_proj":"0.3333333333333333"},"#,
        r#""base_model.model.model.layers.0.mlp.up_proj.lora_A.weight":{"data_offsets":[0,96],"dtype":"F32","shape":[3,8]},"#,
        r#""base_model.model.model.layers.0.mlp.up_proj.lora_B.weight":{"data_offsets":[96,240],"dtype":"F32","shape":[12,3]},"#,
        r#""base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector":{"data_offsets":[240,288],"dtype":"F32","shape":[12]}}"#,
    );
    assert_eq!(header.trim_end_matches(' '), expected);
    assert_eq!((8 + header.len()) % 64, 0);
    assert_eq!(data.len(), 288);
    safetensors::SafeTensors::deserialize(&blob).expect("a valid file");
    assert_eq!(
        Digest::of(&blob).to_string(),
        "sha256:77c9fd739db88690a61048e086fa6709407e136059bac0e3953511745f9a2b10"
    );
}

#[test]
fn any_other_spelling_is_refused() {
    let blob = one_module();
    let respelled = |change: &dyn Fn(&str) -> String| {
        let (header, data) = header_of(&blob);
        CanonicalAdapter::parse(&file(&change(header), data)).map(|_| ())
    };
    assert_eq!(respelled(&|header| header.to_owned()), Ok(()));
    let not_canonical = |change: &dyn Fn(&str) -> String| {
        let error = respelled(change).expect_err("not canonical");
        assert!(matches!(error, Error::NotCanonical(_)), "{error}");
    };
    // The format and the kind say DoRA, or neither does.
    not_canonical(&|header| header.replacen("\"DORA\"", "\"LORA\"", 1));
    not_canonical(&|header| header.replacen("\"weft.format\":\"2\"", "\"weft.format\":\"1\"", 1));
    not_canonical(&|header| header.replacen("\"2\"", "\"1\"", 1).replacen("DORA", "LORA", 1));
    not_canonical(&|header| header.replacen("\"shape\":[12]", "\"shape\":[12,1]", 1));
    not_canonical(&|header| header.replacen("lora_magnitude_vector", "lora_magnitude_vectors", 1));
    // Plain LoRA in the new format: no second digest for the same adapter.
    let plain = check(&config(), &tensors()).expect("sound").canonical_blob();
    let (header, data) = header_of(&plain);
    for kind in ["LORA", "DORA"] {
        let header = header.replacen("\"weft.format\":\"1\"", "\"weft.format\":\"2\"", 1).replacen("LORA", kind, 1);
        let error = CanonicalAdapter::parse(&file(&header, data)).expect_err("not canonical");
        assert!(matches!(error, Error::NotCanonical(_)), "{error}");
    }
}

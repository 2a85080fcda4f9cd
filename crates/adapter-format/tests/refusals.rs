//! Each thing that makes Weft refuse a package, and the words it refuses it with.

mod support;

use serde_json::{Value, json};
use support::{base, check, config, config_with, file, pair, refused, tensor, tensors, weights};
use weft_adapter_format::{Limits, REASONS_MAX, check_package};

fn refuses_config(changes: Value, words: &str) {
    let reasons = refused(&config_with(changes.clone()), &tensors());
    assert!(reasons.iter().any(|reason| reason.contains(words)), "{changes}: {reasons:?}");
}

fn reasons_of_files(config: &[u8], weights: &[u8]) -> Vec<String> {
    check_package(config, weights, &base(), None, &Limits::default()).expect_err("refused").reasons
}

fn reasons_of_weights(weights: &[u8]) -> Vec<String> {
    reasons_of_files(config().to_string().as_bytes(), weights)
}

#[test]
fn the_package_that_the_others_vary_is_accepted() {
    let package = check(&config(), &tensors()).expect("sound");
    assert_eq!(package.warnings, Vec::<String>::new());
    assert_eq!((package.rank_max, package.modules), (2, vec!["q_proj".to_owned(), "v_proj".to_owned()]));
}

#[test]
fn other_kinds_of_adapters_are_refused_by_name() {
    refuses_config(json!({"peft_type": "IA3"}), r#"peft_type is "IA3", only "LORA" is supported"#);
    refuses_config(json!({"peft_type": null}), "peft_type is null");
    refuses_config(json!({"task_type": "SEQ_CLS"}), r#"task_type is "SEQ_CLS""#);
    let mut without = config();
    without.as_object_mut().expect("an object").remove("peft_type");
    assert!(refused(&without, &tensors())[0].contains("peft_type is missing"));
}

#[test]
fn features_that_change_the_answer_are_refused_with_key_and_value() {
    for (key, value) in [
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("trainable_token_indices", json!({"embed_tokens": [1]})),
        ("layer_replication", json!([[0, 2]])),
        ("alora_invocation_tokens", json!([5])),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 0.1})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("use_bdlora", json!({"nblocks": 2})),
        ("megatron_config", json!({"a": 1})),
        ("enable_lora", json!([true, false, true])),
        ("use_qalora", json!("false")),
        ("use_dora", json!("true")),
        ("use_dora", json!(1)),
    ] {
        let reasons = refused(&config_with(json!({key: value})), &tensors());
        let start = format!("{key} is {}", value.to_string().replace(':', ": ").replace(',', ", "));
        assert!(reasons.len() == 1 && reasons[0].starts_with(&start), "{start}: {reasons:?}");
    }
    refuses_config(json!({"bias": "lora_only"}), r#"bias is "lora_only", only "none" is supported"#);
    refuses_config(json!({"bias": "all"}), r#"bias is "all""#);
    refuses_config(json!({"bias": null}), "bias is null");
}

#[test]
fn starts_that_changed_the_base_are_refused() {
    for start in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "something_new"] {
        refuses_config(json!({"init_lora_weights": start}), &format!("init_lora_weights is {start:?}"));
    }
    for start in
        [json!(true), json!(false), json!(null), json!("gaussian"), json!("eva"), json!("orthogonal"), json!("mica")]
    {
        assert!(check(&config_with(json!({"init_lora_weights": start})), &tensors()).is_ok(), "{start}");
    }
}

#[test]
fn unknown_keys_pass_only_if_they_say_off() {
    refuses_config(json!({"use_magic": true}), r#"key "use_magic" is not known to Weft and is true"#);
    refuses_config(json!({"magic": {"size": 3}}), r#"key "magic" is not known to Weft and is {"size": 3}"#);
    refuses_config(json!({"magic": "none"}), r#"is "none""#);
    assert!(check(&config_with(json!({"magic": null})), &tensors()).expect("null is absent").warnings.is_empty());
    for off in [json!(false), json!([]), json!({}), json!("")] {
        let package = check(&config_with(json!({"magic": off})), &tensors()).expect("off");
        assert!(package.warnings[0].contains("key \"magic\" is not known to Weft"), "{:?}", package.warnings);
    }
}

#[test]
fn keys_that_cannot_change_an_answer_pass() {
    let changes = json!({
        "auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "inference_mode": true, "revision": "main",
        "peft_version": "0.21.2", "lora_dropout": 0.1, "megatron_core": "megatron.core", "qalora_group_size": 16,
        "loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0}, "corda_config": {"a": 1}, "lora_ga_config": {},
        "velora_config": {"num_groups": 64}, "ensure_weight_tying": true, "runtime_config": {}, "merge_weights": false,
        "modules_to_save": [], "trainable_token_indices": null, "layer_replication": null, "use_dora": false,
        "exclude_modules": null, "rank_pattern": null, "fan_in_fan_out": null,
    });
    assert_eq!(check(&config_with(changes), &tensors()).expect("harmless").warnings, Vec::<String>::new());
}

#[test]
fn wrong_types_and_values_name_the_key() {
    for (changes, words) in [
        (json!({"r": 0}), "r is 0, it must be a positive integer"),
        (json!({"r": -4}), "r is -4"),
        (json!({"r": 4.0}), "r is 4.0"),
        (json!({"r": true}), "r is true"),
        (json!({"r": null}), "r is null"),
        (json!({"r": "8"}), "r is \"8\""),
        (json!({"r": 99999999999u64}), "r is 99999999999"),
        (json!({"lora_alpha": "16"}), "lora_alpha is \"16\", it must be a number"),
        (json!({"lora_alpha": null}), "lora_alpha is null"),
        (json!({"use_rslora": "yes"}), "use_rslora is \"yes\", it must be true or false"),
        (json!({"fan_in_fan_out": 1}), "fan_in_fan_out is 1"),
        (json!({"rank_pattern": [1]}), "rank_pattern is [1], it must be an object"),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern[\"q_proj\"] is 0"),
        (json!({"rank_pattern": {"q_proj": 1.5}}), "rank_pattern[\"q_proj\"] is 1.5"),
        (json!({"alpha_pattern": {"q_proj": "x"}}), "alpha_pattern[\"q_proj\"] is \"x\""),
        (json!({"rank_pattern": {"(q_proj": 2}}), "rank_pattern: pattern \"(q_proj\" is not supported: missing )"),
        (json!({"target_modules": null}), "target_modules is missing"),
        (json!({"target_modules": []}), "target_modules is missing"),
        (json!({"target_modules": 3}), "target_modules is 3"),
        (json!({"target_modules": ["q_proj", 3]}), "target_modules is 3, it must be a list of strings"),
        (json!({"target_modules": r".*\h"}), r"the escape \h"),
        (json!({"exclude_modules": {"a": 1}}), "exclude_modules is {\"a\": 1}"),
        (json!({"layers_to_transform": "0"}), "layers_to_transform is \"0\""),
        (json!({"layers_to_transform": [0, true]}), "layers_to_transform is [0, true]"),
        (json!({"layers_to_transform": [-1]}), "layers_to_transform is [-1]"),
        (json!({"layers_to_transform": [0], "layers_pattern": 5}), "layers_pattern is 5"),
        (json!({"layers_pattern": "layers"}), "layers_pattern needs layers_to_transform"),
        (json!({"target_modules": "all-linear", "layers_to_transform": [0]}), "layers_to_transform cannot be used"),
        (json!({"base_model_name_or_path": 5}), "base_model_name_or_path is 5"),
    ] {
        refuses_config(changes, words);
    }
}

#[test]
fn a_config_that_is_no_sound_json_object_is_refused() {
    let weights = weights(&tensors());
    assert!(reasons_of_files(b"", &weights)[0].contains("adapter_config.json is not valid JSON"));
    assert!(reasons_of_files(b"[1]", &weights)[0].contains("adapter_config.json holds [1], not an object"));
    let twice = br#"{"peft_type": "LORA", "r": 2, "r": 4}"#;
    assert!(reasons_of_files(twice, &weights)[0].contains("key \"r\" appears twice"));
    let nan = br#"{"peft_type": "LORA", "lora_alpha": Infinity}"#;
    assert!(reasons_of_files(nan, &weights)[0].contains("not valid JSON"));
    let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(50), "]".repeat(50));
    assert!(reasons_of_files(deep.as_bytes(), &weights)[0].contains("deeper than 16 levels"));
    let long = format!("{}{}", " ".repeat(1 << 20), config());
    assert!(reasons_of_files(long.as_bytes(), &weights)[0].contains("the limit is 1048576"));
}

#[test]
fn too_many_patterns_and_names_are_refused() {
    let keys = |count: usize, name: &dyn Fn(usize) -> String| -> Value {
        (0..count).map(|index| (name(index), json!(1))).collect::<serde_json::Map<_, _>>().into()
    };
    let unused = check(&config_with(json!({"rank_pattern": keys(4096, &|index| format!("x.{index}"))})), &tensors());
    assert!(unused.is_ok());
    refuses_config(json!({"rank_pattern": keys(4097, &|index| format!("x.{index}"))}), "more than 4096 patterns");
    refuses_config(
        json!({"rank_pattern": keys(257, &|index| format!("x+{index}"))}),
        "more than 256 patterns that are not plain names",
    );
    // Said once, and nothing more is compiled.
    let many = config_with(json!({"rank_pattern": keys(4000, &|index| format!("x+{index}"))}));
    assert_eq!(refused(&many, &tensors()).len(), 1);
    refuses_config(
        json!({"alpha_pattern": keys(17, &|index| format!("(?=x)x{index}"))}),
        "more than 16 patterns with look-around",
    );
    let names: Vec<String> = (0..4097).map(|index| format!("x{index}")).collect();
    refuses_config(json!({"target_modules": names}), "target_modules has 4097 entries, the limit is 4096");
}

#[test]
fn modules_and_tensors_must_agree() {
    let mut extra = tensors();
    extra.extend(pair(&base(), 0, "k_proj", 2));
    assert_eq!(
        refused(&config(), &extra),
        ["the weights hold tensors for model.layers.0.self_attn.k_proj, which the config does not select"]
    );
    let mut few = tensors();
    few.truncate(4);
    assert_eq!(
        refused(&config(), &few),
        ["the config selects model.layers.1.self_attn.q_proj, model.layers.1.self_attn.v_proj, \
          the weights hold no tensors for it"]
    );
    let mut no_a = tensors();
    no_a.remove(0);
    assert_eq!(
        refused(&config(), &no_a),
        ["the config selects model.layers.0.self_attn.q_proj, the weights hold no lora_A tensor for it"]
    );
    let mut no_b = tensors();
    no_b.remove(1);
    assert!(refused(&config(), &no_b)[0].contains("no lora_B tensor"));
    refuses_config(json!({"target_modules": ["c_attn"]}), "target_modules selects no module of this base");
    refuses_config(json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}), "target_modules selects lm_head, which");
    refuses_config(
        json!({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}),
        "selects model.embed_tokens, which",
    );
    refuses_config(
        json!({"target_modules": ["self_attn"]}),
        "selects model.layers.0.self_attn, model.layers.1.self_attn",
    );
}

#[test]
fn tensors_of_other_methods_are_refused_by_name() {
    let prefix = "base_model.model.model";
    for (name, words) in [
        (
            format!("{prefix}.layers.0.self_attn.q_proj.lora_magnitude_vector.default"),
            "the name is not base_model.model.",
        ),
        (format!("{prefix}.layers.2.self_attn.q_proj.lora_magnitude_vector"), "this base has no such module"),
        (format!("{prefix}.embed_tokens.lora_magnitude_vector"), "trained embeddings and lm_head are not supported"),
        (format!("{prefix}.embed_tokens.lora_embedding_A"), "trained embeddings and lm_head are not supported"),
        (format!("{prefix}.embed_tokens.weight"), "trained embeddings and lm_head"),
        (format!("{prefix}.embed_tokens.token_adapter.trainable_tokens_delta"), "trained embeddings and lm_head"),
        ("base_model.model.lm_head.weight".to_owned(), "trained embeddings and lm_head"),
        ("base_model.model.lm_head.lora_A.weight".to_owned(), "trained embeddings and lm_head"),
        ("base_model.model.lm_head.modules_to_save.bias".to_owned(), "fully trained modules"),
        (format!("{prefix}.layers.0.self_attn.q_proj.lora_B.bias"), "biases on lora_B"),
        (format!("{prefix}.layers.0.self_attn.q_proj.bias"), "trained biases"),
        (format!("{prefix}.layers.0.self_attn.q_proj.lora_A.default.weight"), "the name is not base_model.model."),
        ("model.layers.0.self_attn.k_proj.lora_A.weight".to_owned(), "the name is not base_model.model."),
        (format!("{prefix}.layers.0.self_attn.q_proj.base_layer.weight"), "the name is not base_model.model."),
        (format!("{prefix}.layers.2.self_attn.q_proj.lora_A.weight"), "this base has no such module"),
        (format!("{prefix}.layers.00.self_attn.q_proj.lora_A.weight"), "this base has no such module"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight".to_owned(), "this base has no such module"),
    ] {
        let mut more = tensors();
        more.push(tensor(&name, &[2, 8], 1.0));
        let reasons = refused(&config(), &more);
        assert!(reasons.len() == 1 && reasons[0].contains(words) && reasons[0].contains(&name), "{name}: {reasons:?}");
    }
}

#[test]
fn wrong_shapes_name_tensor_found_and_wanted() {
    let q_a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    for (shape, found) in [(vec![2, 16], "[2, 16]"), (vec![4, 8], "[4, 8]"), (vec![16], "[16]"), (vec![8, 2], "[8, 2]")]
    {
        let mut wrong = tensors();
        wrong[0] = tensor(q_a, &shape, 0.5);
        assert_eq!(
            refused(&config(), &wrong),
            [format!("tensor {q_a}: shape {found}, the config and this base need [2, 8]")]
        );
    }
    let mut wrong = tensors();
    wrong[3] = tensor(&wrong[3].name.clone(), &[8, 2], 0.5);
    assert!(refused(&config(), &wrong)[0].contains("shape [8, 2], the config and this base need [4, 2]"));
    // Without a usable config the base's sizes still count.
    let reasons = refused(&config_with(json!({"r": 0})), &wrong);
    assert!(reasons[1].contains("shape [8, 2], the config and this base need [4, r]"), "{reasons:?}");
}

#[test]
fn a_rank_over_the_limit_is_refused() {
    let limits = Limits { rank_max: 1, ..Limits::default() };
    let reasons = check_package(config().to_string().as_bytes(), &weights(&tensors()), &base(), None, &limits)
        .expect_err("refused")
        .reasons;
    assert!(reasons[0].starts_with("rank 2 is over the limit of 1: model.layers.0.self_attn.q_proj"), "{reasons:?}");
}

#[test]
fn values_that_are_not_finite_name_the_tensor_and_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut wrong = tensors();
        wrong[2].bytes[4 * 11..4 * 12].copy_from_slice(&bad.to_le_bytes());
        let name = wrong[2].name.clone();
        assert_eq!(
            refused(&config(), &wrong),
            [format!("tensor {name} holds NaN or infinity, first at row 1, column 3")]
        );
    }
}

#[test]
fn other_dtypes_are_refused_by_name() {
    for dtype in ["F64", "I8", "F8_E4M3", "BOOL"] {
        let mut wrong = tensors();
        wrong[0].dtype = dtype;
        let reasons = refused(&config(), &wrong);
        assert!(reasons.iter().any(|reason| reason.contains(&format!("has dtype {dtype}, only F32"))), "{reasons:?}");
    }
}

#[test]
fn files_that_are_not_sound_safetensors_are_refused() {
    let whole = weights(&tensors());
    assert!(reasons_of_weights(b"")[0].contains("truncated"));
    assert!(reasons_of_weights(&whole[..100])[0].contains("truncated: the header has"));
    assert!(reasons_of_weights(&whole[..whole.len() - 1])[0].contains("truncated: the tensors need"));
    let mut longer = whole.clone();
    longer.push(0);
    assert!(reasons_of_weights(&longer)[0].contains("1 bytes of data behind the last tensor"));
    assert!(reasons_of_weights(b"PK\x03\x04\x00\x00\x08\x08\x00\x00")[0].contains("adapter_model.bin"));
    assert!(reasons_of_weights(b"\x80\x02}q\x00(X\x0c\x00\x00")[0].contains("adapter_model.bin"));
    assert!(reasons_of_weights(&file("{}", &[]))[0].contains("the weights hold no tensor"));
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(reasons_of_weights(&file(twice, &[0; 4]))[0].contains("\"a\" appears twice"));
    let mut header_too_long = (9u64 << 20).to_le_bytes().to_vec();
    header_too_long.extend(b"{}");
    assert!(
        reasons_of_weights(&header_too_long)[0]
            .contains("the header of the weights has 9437184 bytes, the limit is 8388608")
    );
    let limits = Limits { weights_bytes_max: 10, ..Limits::default() };
    let reasons =
        check_package(config().to_string().as_bytes(), &whole, &base(), None, &limits).expect_err("refused").reasons;
    assert!(reasons[0].contains(&format!("the weights have {} bytes, the limit is 10", whole.len())), "{reasons:?}");
}

#[test]
fn every_reason_is_given_at_once() {
    let mut wrong = tensors();
    wrong[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    wrong[2].dtype = "F64";
    wrong.remove(7);
    wrong.push(tensor("base_model.model.lm_head.weight", &[4, 8], 1.0));
    wrong[5] = tensor(&wrong[5].name.clone(), &[8, 3], 1.0);
    let changes = json!({"use_qalora": true, "bias": "all", "new_thing": 7, "modules_to_save": ["lm_head"]});
    // The F64 tensor's bytes do not fit its dtype only if the dtype is known; sizes of foreign dtypes are not judged.
    let reasons = refused(&config_with(changes), &wrong);
    for words in [
        "use_qalora is true",
        "bias is \"all\"",
        "key \"new_thing\"",
        "modules_to_save is [\"lm_head\"]",
        "lm_head.weight: trained",
        "shape [8, 3]",
        "no lora_B tensor",
        "NaN or infinity",
        "dtype F64",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(words)), "{words}: {reasons:#?}");
    }
}

#[test]
fn reasons_and_warnings_stay_bounded_whatever_is_sent() {
    let mut config = config();
    for index in 0..500 {
        config[format!("{}{index}", "k".repeat(1000))] = json!(index % 2);
    }
    let reasons = refused(&config, &tensors());
    assert_eq!(reasons.len(), REASONS_MAX + 1);
    assert!(reasons.iter().all(|reason| reason.len() < 700));
    let mut many = tensors();
    for index in 0..500 {
        many.push(tensor(&format!("{}{index}", "t".repeat(1000)), &[1], 0.0));
    }
    assert_eq!(refused(&support::config(), &many).len(), 1);
}

#[test]
fn harmless_oddities_are_warnings() {
    let mut idle = tensors();
    idle[1] = tensor(&idle[1].name.clone(), &[8, 2], 0.0);
    let package = check(&config(), &idle).expect("accepted");
    assert_eq!(package.warnings, ["lora_B is all zero, so nothing changes in model.layers.0.self_attn.q_proj"]);
    let package =
        check(&config_with(json!({"target_modules": ["q_proj", "v_proj", "c_attn"]})), &tensors()).expect("accepted");
    assert_eq!(package.warnings, ["target_modules names c_attn, which this base does not have"]);
    let mut config = config();
    config.as_object_mut().expect("an object").remove("lora_alpha");
    let package = check(&config, &tensors()).expect("accepted");
    assert_eq!(package.warnings, ["lora_alpha is missing: PEFT's default of 8 is used"]);
    assert_eq!(package.resolved[0].scale, 4.0);
}

//! `adapter_config.json` from a generator that knows its keys: nothing panics, nothing that changes the answer is
//! accepted silently, and what is accepted follows PEFT's rules for rank and scale.

mod support;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use support::{base, magnitude, pair, tensors, weights};
use weft_adapter_format::{CanonicalAdapter, Limits, REASONS_MAX, check_package};

/// Any JSON, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0i64), Just(1), Just(-1), Just(i64::MAX), 0..70i64].prop_map(Value::from),
        prop_oneof![Just(0.0f64), Just(-2.5), Just(1e308), Just(0.1)].prop_map(Value::from),
        "[a-z_.*|()\\[\\]{}\\\\0-9é]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_.]{0,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A key of PEFT's or nearly so, and a value that may suit it.
fn entry() -> impl Strategy<Value = (String, Value)> {
    let modules =
        prop::sample::subsequence(vec!["q_proj", "k_proj", "v_proj", "o_proj", "mlp.up_proj", "lm_head"], 0..4);
    let key = prop::sample::select(vec![
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "bias",
        "use_dora",
        "modules_to_save",
        "init_lora_weights",
        "lora_bias",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "megatron_config",
        "loftq_config",
        "new_key",
    ]);
    prop_oneof![
        2 => (key, any_json()).prop_map(|(key, value)| (key.to_owned(), value)),
        1 => ("[a-z_]{0,12}", any_json()),
        1 => (1..70u64).prop_map(|rank| ("r".to_owned(), json!(rank))),
        1 => (0.0..99.0f64).prop_map(|alpha| ("lora_alpha".to_owned(), json!(alpha))),
        1 => any::<bool>().prop_map(|on| ("use_rslora".to_owned(), json!(on))),
        2 => any::<bool>().prop_map(|on| ("use_dora".to_owned(), json!(on))),
        1 => modules.prop_map(|names| ("target_modules".to_owned(), json!(names))),
        1 => prop::sample::select(vec!["all-linear", ".*_proj", r".*\.(q|v)_proj", "(", "model.*"])
            .prop_map(|pattern| ("target_modules".to_owned(), json!(pattern))),
        1 => ("(q|k|v)_proj", 1..9u64).prop_map(|(key, rank)| ("rank_pattern".to_owned(), json!({key: rank}))),
        1 => prop::collection::vec(0..3u64, 0..3).prop_map(|layers| ("layers_to_transform".to_owned(), json!(layers))),
    ]
}

fn config() -> impl Strategy<Value = Value> {
    (prop::collection::vec(entry(), 0..6), prop::collection::vec(any::<prop::sample::Index>(), 0..2)).prop_map(
        |(entries, removed)| {
            let mut config = support::config();
            for (key, value) in entries {
                config[key] = value;
            }
            for index in removed {
                let keys: Vec<String> = config.as_object().expect("an object").keys().cloned().collect();
                config.as_object_mut().expect("an object").remove(&keys[index.index(keys.len())]);
            }
            config
        },
    )
}

/// Whether the value switches a feature on, as Python's truth has it.
fn is_on(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::Bool(true)) => true,
    }
}

/// Every linear of the base with this rank, and with magnitudes if asked: a config may select any of them.
fn all_tensors(rank: usize, magnitudes: bool) -> Vec<support::Tensor> {
    let base = base();
    let mut tensors = Vec::new();
    for layer in 0..base.layers {
        for linear in &base.linears {
            tensors.extend(pair(&base, layer, &linear.module, rank));
            tensors.extend(magnitudes.then(|| magnitude(&base, layer, &linear.module)));
        }
    }
    tensors
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_generated_config_is_accepted_soundly_or_refused_with_reasons(
        config in config(), everything in any::<bool>(), magnitudes in any::<bool>(),
    ) {
        let tensors = match (everything, magnitudes) {
            (true, magnitudes) => all_tensors(2, magnitudes),
            (false, true) => support::dora_tensors(),
            (false, false) => tensors(),
        };
        let weights = weights(&tensors);
        let checked = check_package(config.to_string().as_bytes(), &weights, &base(), None, &Limits::default());
        let package = match checked {
            Ok(package) => package,
            Err(refusal) => {
                prop_assert!(!refusal.reasons.is_empty() && refusal.reasons.len() <= REASONS_MAX + 1);
                return Ok(());
            }
        };
        // What would change the answer is off.
        for key in ["modules_to_save", "lora_bias", "megatron_config", "new_key"] {
            prop_assert!(!is_on(config.get(key)), "{} is {}", key, config[key]);
        }
        prop_assert_eq!(config.get("peft_type"), Some(&json!("LORA")));
        prop_assert!(matches!(config.get("bias"), None | Some(Value::String(_))));
        prop_assert!(config.get("bias").is_none_or(|bias| bias == "none"));
        // The blob reads back, and its modules are exactly those that came with tensors.
        let blob = package.canonical_blob();
        let read = CanonicalAdapter::parse(&blob).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(read.modules().len() * if magnitudes { 3 } else { 2 }, tensors.len());
        // DoRA's tensors are there if and only if the config says so.
        prop_assert_eq!(is_on(config.get("use_dora")), magnitudes);
        prop_assert_eq!(read.is_dora(), magnitudes);
        // Without patterns every module has the scale that PEFT computes.
        if !is_on(config.get("rank_pattern")) && !is_on(config.get("alpha_pattern")) {
            let alpha = config.get("lora_alpha").map_or(8.0, |alpha| alpha.as_f64().expect("a number"));
            let divisor = if config.get("use_rslora") == Some(&json!(true)) { 2f64.sqrt() } else { 2.0 };
            for module in &package.resolved {
                prop_assert_eq!((module.rank, module.scale), (2, alpha / divisor));
            }
        }
    }

    #[test]
    fn bytes_that_are_nearly_a_config_do_no_harm(
        config in config(),
        cut in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        keep_whole in any::<bool>(),
    ) {
        let mut bytes = config.to_string().into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !keep_whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Err(refusal) = check_package(&bytes, &weights(&tensors()), &base(), None, &Limits::default()) {
            prop_assert!(!refusal.reasons.is_empty());
        }
    }
}

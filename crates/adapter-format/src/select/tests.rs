//! Agreement with PEFT on the configs of tests/peft_selection.json; see the script beside it.

use super::*;
use crate::base::LinearShape;
use serde_json::Value;
use std::collections::BTreeSet;

fn base(layers: usize) -> BaseShape {
    let linears = Module::ALL.into_iter().map(|module| LinearShape {
        module: module.as_str().to_owned(),
        parent: module.parent().to_owned(),
        in_features: 8,
        out_features: 8,
    });
    BaseShape { layers, linears: linears.collect() }
}

/// The outcome in the words of the fixture.
fn outcome(config: &Value, base: &BaseShape) -> Result<BTreeSet<String>, Vec<String>> {
    let mut config = config.clone();
    config["peft_type"] = "LORA".into();
    let (mut reasons, mut warnings) = (Reasons::default(), Reasons::default());
    let parsed = crate::config::parse(config.to_string().as_bytes(), 1 << 20, None, &mut reasons, &mut warnings);
    let selected = parsed.and_then(|parsed| select(&parsed, base, 256, &mut reasons, &mut warnings));
    match (selected, reasons.into_refusal()) {
        (Some(selected), None) => Ok(selected
            .iter()
            .map(|one| {
                let name = one.module.full_name(one.layer);
                format!("{}:{}:{:e}", name.trim_start_matches("model.layers."), one.rank, one.scale)
            })
            .collect()),
        (_, Some(refusal)) => Err(refusal.reasons),
        (None, None) => panic!("nothing selected and no reason given"),
    }
}

/// The fixture's entry with the scale spelled as ours.
fn respelled(entry: &str) -> String {
    let (head, scale) = entry.rsplit_once(':').expect("name:rank:scale");
    format!("{head}:{:e}", scale.parse::<f64>().expect("a number"))
}

#[test]
fn every_config_selects_what_peft_selects() {
    let fixture: Value =
        serde_json::from_str(include_str!("../../tests/peft_selection.json")).expect("the fixture is valid");
    let base = base(usize::try_from(fixture["layers"].as_u64().expect("layers")).expect("few"));
    let cases = fixture["cases"].as_array().expect("cases");
    let mut refused = 0;
    for case in cases {
        let config = &case["config"];
        match (&case["outcome"], outcome(config, &base)) {
            (Value::Array(theirs), Ok(ours)) => {
                let theirs: BTreeSet<String> =
                    theirs.iter().map(|entry| respelled(entry.as_str().expect("text"))).collect();
                assert_eq!(ours, theirs, "{config}");
            }
            (Value::String(_), Err(reasons)) => {
                assert!(!reasons.is_empty(), "{config}");
                refused += 1;
            }
            (theirs, ours) => panic!("{config}\nPEFT: {theirs}\nours: {ours:?}"),
        }
    }
    assert!(cases.len() > 240 && refused > 30, "{} cases, {refused} refused", cases.len());
}

#[test]
fn ranks_over_the_limit_are_one_reason_per_rank() {
    let config = serde_json::json!({"target_modules": ["q_proj", "v_proj"], "r": 300, "rank_pattern": {"v_proj": 257}});
    let reasons = outcome(&config, &base(4)).expect_err("refused");
    assert_eq!(
        reasons,
        [
            "rank 257 is over the limit of 256: model.layers.0.self_attn.v_proj, model.layers.1.self_attn.v_proj, \
             model.layers.2.self_attn.v_proj and 1 more",
            "rank 300 is over the limit of 256: model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj, \
             model.layers.2.self_attn.q_proj and 1 more",
        ]
    );
}

#[test]
fn a_scale_beyond_single_precision_is_refused() {
    let config = serde_json::json!({"target_modules": ["q_proj"], "r": 1, "alpha_pattern": {"q_proj": 1e39}});
    let reasons = outcome(&config, &base(1)).expect_err("refused");
    assert_eq!(reasons, ["the scale of model.layers.0.self_attn.q_proj is 1e39, too large for single precision"]);
    let config = serde_json::json!({"target_modules": ["q_proj"], "r": 1, "lora_alpha": 3e38});
    assert!(outcome(&config, &base(1)).is_ok());
}

#[test]
fn a_pattern_that_explodes_refuses_the_package() {
    let config = serde_json::json!({"target_modules": r"(?=m)(?:(?:\w|\w|\.)*)*(?!x)!"});
    let reasons = outcome(&config, &base(12)).expect_err("refused");
    assert!(reasons[0].contains("takes more than"), "{reasons:?}");
    assert_eq!(reasons.len(), 1);
}

//! Descriptions: read strictly, refused by field, value and limit, changed in one direction.

use crate::support::{DESCRIPTION, running};
use proptest::prelude::*;
use serde_json::{Value, json};
use weft_experiments::{
    DESCRIPTION_BYTES_MAX, DescriptionError, Experiment, Kind, PHASES_MAX, PHASES_REWEIGHTED_MAX, Promise, Role, State,
    Unit,
};

/// The description with one value set, at a JSON pointer.
fn changed(pointer: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(DESCRIPTION).unwrap();
    match json.pointer_mut(pointer) {
        Some(at) => *at = value,
        None => {
            let (object, key) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(object).unwrap()[key] = value;
        }
    }
    json.to_string()
}

#[test]
fn what_is_left_out_has_its_default() {
    let experiment = Experiment::parse(DESCRIPTION.as_bytes()).unwrap();
    assert_eq!(experiment.alias.as_str(), "live");
    assert_eq!((experiment.alpha, experiment.guardrail_alpha), (0.05, 0.05));
    assert_eq!((experiment.unit, &experiment.state, experiment.revision), (Unit::Key, &State::Draft, 0));
    assert_eq!(experiment.arms[1].role, Role::Treatment);
    assert_eq!(experiment.metrics[2].kind, Kind::Positive { max: 10_000.0, promise: Promise::Asymptotic });
    let written = serde_json::to_vec(&experiment).unwrap();
    assert_eq!(Experiment::parse(&written).unwrap(), experiment);
}

#[test]
fn what_breaks_a_rule_is_refused_by_field_value_and_limit() {
    for (pointer, value, expected) in [
        ("/id", json!("Summaries"), "id is \"Summaries\", it must match [a-z0-9][a-z0-9-]{0,62}"),
        ("/alpha", json!(0.5), "alpha is 0.5, allowed is 0.0001 to 0.2"),
        ("/guardrail_alpha", json!(0), "guardrail_alpha is 0, allowed is 0.0001 to 0.2"),
        ("/arms/1/weight", json!(10001), "arms[1].weight is 10001, allowed is 0 to 10000"),
        ("/arms/0/weight", json!(0), "arms[0].weight is 0, a control's is 1 to 10000"),
        ("/arms/1/name", json!("v1"), "arms has \"v1\" more than once, the limit is once"),
        ("/arms/1/role", json!("control"), "arms has 2 controls, it must have 1"),
        ("/arms", json!([]), "arms has 0 entries, allowed are 2 to 8"),
        ("/metrics", json!([]), "metrics has 0 entries, allowed are 1 to 16"),
        ("/metrics/1/name", json!("a-b"), "metrics[1].name is \"a-b\", it must match [a-z0-9][a-z0-9_]{0,62}"),
        ("/metrics/0/kind/score/max", json!(1), "metrics[0].kind.score.max is 1, it must be above min, 1, by 1e-9"),
        ("/metrics/2/kind/positive/max", json!(0), "metrics[2].kind.positive.max is 0, allowed is 0.000000001 to"),
        ("/primary", json!("smile"), "primary is \"smile\", it must be a metric's name"),
        ("/guardrails/0/metric", json!("smile"), "guardrails[0].metric is \"smile\", it must be a metric's name"),
        ("/guardrails/0/rule/worse_by", json!(2), "guardrails[0].rule.worse_by is 2, allowed is 0 to 1"),
        ("/guardrails/1/rule/limit", json!(-1), "guardrails[1].rule.limit is -1, allowed is 0 to 1"),
        ("/earlier_weights", json!([[1]]), "earlier_weights[0] has 1 entries, allowed are 2 to 2"),
        ("/observations_min", json!(1e13 as u64), "observations_min is 10000000000000, allowed is 0 to 1000000000000"),
        ("/state", json!({"promoted": {"arm": "v1"}}), "state.promoted.arm is \"v1\", it must be a treatment's name"),
        ("/more", json!(1), "unknown field `more`"),
        ("/arms/1/more", json!(1), "unknown field `more`"),
        ("/arms/1/digest", json!("sha256:2"), "64 lower-case hex digits"),
        ("/arms/1/weight", json!(-1), "invalid value: integer `-1`"),
        ("/guardrails/0/rule", json!({"better": 1}), "unknown variant `better`"),
        ("/metrics/0/kind/score", json!({"min": 1, "max": 2, "mean": 3}), "unknown field `mean`"),
    ] {
        let error = Experiment::parse(changed(pointer, value).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    let long = vec![b' '; DESCRIPTION_BYTES_MAX + 1];
    assert!(matches!(Experiment::parse(&long), Err(DescriptionError::TooLong { .. })));
}

#[test]
fn all_that_is_wrong_is_told_at_once_and_what_is_not_a_number_is_refused() {
    let mut experiment = running();
    experiment.alpha = f64::NAN;
    experiment.guardrail_alpha = f64::INFINITY;
    experiment.metrics[0].kind = Kind::Score { min: f64::NAN, max: f64::NAN };
    let Err(DescriptionError::Invalid(problems)) = experiment.check() else { panic!("it is refused") };
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    let kind = "metrics[0].kind.score";
    assert_eq!(
        fields,
        [format!("{kind}.min").as_str(), &format!("{kind}.max"), &format!("{kind}.max"), "alpha", "guardrail_alpha"]
    );
}

#[test]
fn it_goes_from_draft_to_running_to_its_end() {
    let draft = Experiment::parse(DESCRIPTION.as_bytes()).unwrap();
    assert!(draft.stopped().is_err() && draft.promoted("v2").is_err() && draft.without_arm("v2").is_err());
    let heavier = draft.reweighted("v2", 20).unwrap();
    assert_eq!((heavier.phase(), heavier.arms[1].weight, heavier.revision), (0, 20, 1));
    let running = heavier.started().unwrap();
    assert_eq!((&running.state, running.revision), (&State::Running, 2));
    let error = running.started().unwrap_err().to_string();
    assert_eq!(error, "experiment summaries-2 is running, this needs it to be draft");
    let error = running.promoted("v1").unwrap_err().to_string();
    assert_eq!(error, "experiment summaries-2 has no arm \"v1\" that can win");
    let promoted = running.promoted("v2").unwrap();
    assert_eq!(promoted.state, State::Promoted { arm: "v2".to_owned() });
    assert!(promoted.stopped().is_err() && promoted.reweighted("v2", 1).is_err());
    assert!(promoted.check().is_ok() && running.stopped().unwrap().check().is_ok());
}

#[test]
fn a_weight_that_changes_begins_a_phase_and_there_is_always_one_left_to_stop_an_arm() {
    let mut experiment = running();
    for weight in 1..PHASES_REWEIGHTED_MAX as u32 {
        experiment = experiment.reweighted("v2", weight).unwrap();
    }
    assert_eq!((experiment.weight(0, 1), experiment.weight(1, 1), experiment.weight(8, 1)), (10, 1, 8));
    assert_eq!((experiment.phase(), experiment.weight(9, 1), experiment.weight(0, 7)), (8, 0, 0));
    let error = experiment.reweighted("v2", 50).unwrap_err().to_string();
    assert!(error.contains("has 9 phases, weights may be changed up to 9"), "{error}");
    let without = experiment.without_arm("v2").unwrap();
    assert_eq!((without.phase(), without.weight(9, 1), without.weight(8, 1)), (9, 0, 8));
    assert!(without.phase() < PHASES_MAX && without.check().is_ok());
    assert_eq!(without.without_arm("v2").unwrap_err().to_string(), "weight is 0, allowed is 1 to 10000");
    assert_eq!(running().reweighted("v1", 0).unwrap_err().to_string(), "weight is 0, allowed is 1 to 10000");
    assert!(running().without_arm("v1").is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Experiment::parse(&bytes).is_err());
    }

    /// Nearly the right shape: a good description with bytes changed, or with another value somewhere.
    #[test]
    fn no_damaged_description_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = DESCRIPTION.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(experiment) = Experiment::parse(&bytes) {
            prop_assert!(experiment.check().is_ok());
        }
    }

    #[test]
    fn no_value_panics(
        pointer in prop::sample::select(vec![
            "/id", "/alpha", "/arms/0/weight", "/arms/1/name", "/metrics/0/kind", "/metrics/2/kind/positive/max",
            "/guardrails/2/rule", "/earlier_weights", "/ends_ms", "/state", "/revision", "/observations_min",
        ]),
        value in prop::sample::select(vec![
            json!(null), json!(-1), json!(0), json!(1e300), json!(u64::MAX), json!("é"), json!([]), json!({}),
            json!([[1, 2], [0, 0]]), json!("binary"), json!({"positive": {"max": 1e-9}}), json!({"limit": 1e12}),
            json!({"promoted": {"arm": "v2"}}), json!("running"),
        ]),
    ) {
        if let Ok(experiment) = Experiment::parse(changed(pointer, value).as_bytes()) {
            let written = serde_json::to_vec(&experiment).unwrap();
            prop_assert_eq!(Experiment::parse(&written).unwrap(), experiment);
        }
    }
}

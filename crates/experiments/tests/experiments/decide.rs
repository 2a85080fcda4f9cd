//! Decisions: what is shown and no more, guardrails before winners, nothing from a broken split.

use crate::support::{expose, record, running, with_arms};
use weft_experiments::{
    Arm, Decision, EndReason, Experiment, KeepReason, Promise, Report, Role, Rule, Statistics, Verdict, WEIGHT_MAX,
    alpha_of, compare, decide, guardrail_alpha, report,
};

/// Half of each arm's scores at 3, the rest at this score; no errors; exposures as planned for 50/50.
fn scored(experiment: &Experiment, count: u32, scores: &[f64]) -> Statistics {
    let mut statistics = Statistics::new(experiment);
    for (arm, score) in scores.iter().enumerate() {
        expose(&mut statistics, experiment, arm, count);
        record(&mut statistics, experiment, arm, "feedback", 3.0, count / 2);
        record(&mut statistics, experiment, arm, "feedback", *score, count - count / 2);
        record(&mut statistics, experiment, arm, "error", 0.0, count);
    }
    statistics
}

fn undecided() -> Decision {
    Decision::Keep { reason: KeepReason::Undecided }
}

#[test]
fn nothing_seen_decides_nothing() {
    let experiment = running();
    let statistics = Statistics::new(&experiment);
    assert_eq!(decide(&experiment, &statistics, 0), undecided());
    let stopped = experiment.stopped().unwrap();
    assert_eq!(decide(&stopped, &statistics, 0), Decision::Keep { reason: KeepReason::NotRunning });
    for comparison in compare(&experiment, &statistics) {
        assert_eq!((comparison.estimate, comparison.verdict), (None, Verdict::Undecided));
        assert_eq!(comparison.p_value, Some(1.0));
    }
}

#[test]
fn the_better_arm_wins_and_of_two_the_best() {
    let experiment = with_arms(&["v2", "v3"]);
    let statistics = scored(&experiment, 400, &[3.0, 4.0, 5.0]);
    assert_eq!(decide(&experiment, &statistics, 0), Decision::Winner { arm: "v3".to_owned() });
    let verdicts: Vec<_> = compare(&experiment, &statistics).iter().map(|comparison| comparison.verdict).collect();
    assert_eq!(verdicts[0], Verdict::Better);
    assert_eq!(verdicts[3], Verdict::Better);
    let worse = scored(&experiment, 400, &[5.0, 3.0, 3.0]);
    assert_eq!(compare(&experiment, &worse)[0].verdict, Verdict::Worse);
    assert_eq!(decide(&experiment, &worse, 0), undecided());
}

#[test]
fn a_winner_needs_its_observations() {
    let mut experiment = with_arms(&["v2"]);
    let statistics = scored(&experiment, 400, &[3.0, 5.0]);
    experiment.observations_min = 401;
    assert_eq!(decide(&experiment, &statistics, 0), undecided());
    experiment.observations_min = 400;
    assert_eq!(decide(&experiment, &statistics, 0), Decision::Winner { arm: "v2".to_owned() });
}

#[test]
fn an_arm_that_is_worse_by_any_metric_does_not_win() {
    let mut experiment = with_arms(&["v2"]);
    experiment.guardrails.clear();
    let mut statistics = scored(&experiment, 400, &[3.0, 5.0]);
    record(&mut statistics, &experiment, 1, "error", 1.0, 150);
    let comparisons = compare(&experiment, &statistics);
    assert_eq!((comparisons[0].verdict, comparisons[1].verdict), (Verdict::Better, Verdict::Worse));
    assert_eq!(decide(&experiment, &statistics, 0), undecided());
}

#[test]
fn a_guardrail_stops_an_arm_by_itself_and_before_it_wins() {
    let experiment = with_arms(&["v2", "v3"]);
    let mut statistics = scored(&experiment, 400, &[3.0, 5.0, 5.0]);
    record(&mut statistics, &experiment, 1, "error", 1.0, 100);
    let Decision::StopArms { stops } = decide(&experiment, &statistics, 0) else { panic!("it is stopped") };
    assert_eq!((stops.len(), stops[0].arm.as_str(), stops[0].metric.as_str()), (1, "v2", "error"));
    assert_eq!(stops[0].rule, Rule::WorseBy(0.02));
    assert!(stops[0].at_least > 0.02 && stops[0].at_least < 0.2);
    // Once it is stopped, the other one wins.
    let experiment = experiment.without_arm("v2").unwrap();
    assert_eq!(decide(&experiment, &statistics, 0), Decision::Winner { arm: "v3".to_owned() });
    let none_left = experiment.without_arm("v3").unwrap();
    assert_eq!(decide(&none_left, &statistics, 0), Decision::End { reason: EndReason::NoArms });
}

#[test]
fn a_ceiling_holds_whatever_the_control_does() {
    let mut experiment = with_arms(&["v2"]);
    experiment.guardrails.remove(0);
    let mut statistics = Statistics::new(&experiment);
    for arm in 0..2 {
        record(&mut statistics, &experiment, arm, "error", 0.0, 100);
        record(&mut statistics, &experiment, arm, "error", 1.0, 100);
    }
    let Decision::StopArms { stops } = decide(&experiment, &statistics, 0) else { panic!("it is stopped") };
    assert_eq!((stops[0].rule, stops[0].arm.as_str()), (Rule::Limit(0.2), "v2"));
    assert!(stops[0].at_least > 0.2 && stops[0].at_least < 0.5);
}

#[test]
fn a_guardrail_waits_for_its_observations_and_for_evidence() {
    let mut experiment = with_arms(&["v2"]);
    experiment.guardrails.truncate(1);
    experiment.guardrails[0].observations_min = 200;
    let mut statistics = Statistics::new(&experiment);
    record(&mut statistics, &experiment, 0, "error", 0.0, 1_000);
    record(&mut statistics, &experiment, 1, "error", 1.0, 199);
    assert_eq!(decide(&experiment, &statistics, 0), undecided());
    record(&mut statistics, &experiment, 1, "error", 1.0, 1);
    assert!(matches!(decide(&experiment, &statistics, 0), Decision::StopArms { .. }));
    // Two errors in ten say nothing yet.
    experiment.guardrails[0].observations_min = 0;
    let mut few = Statistics::new(&experiment);
    record(&mut few, &experiment, 0, "error", 0.0, 10);
    record(&mut few, &experiment, 1, "error", 0.0, 8);
    record(&mut few, &experiment, 1, "error", 1.0, 2);
    assert_eq!(decide(&experiment, &few, 0), undecided());
}

#[test]
fn a_slower_arm_is_stopped_and_a_slow_mesh_is_not() {
    let experiment = with_arms(&["v2"]);
    let mut statistics = Statistics::new(&experiment);
    for (arm, times) in [(0, [200.0, 400.0]), (1, [900.0, 1_100.0])] {
        times.iter().for_each(|time| record(&mut statistics, &experiment, arm, "ttft_ms", *time, 300));
    }
    let Decision::StopArms { stops } = decide(&experiment, &statistics, 0) else { panic!("it is stopped") };
    assert!(stops[0].at_least > 300.0 && stops[0].at_least < 700.0);
    let mut slow = Statistics::new(&experiment);
    (0..2).for_each(|arm| record(&mut slow, &experiment, arm, "ttft_ms", 9_000.0, 600));
    record(&mut slow, &experiment, 1, "ttft_ms", 9_200.0, 1);
    assert_eq!(decide(&experiment, &slow, 0), undecided());
}

#[test]
fn a_broken_split_has_no_winner_but_guardrails() {
    let experiment = with_arms(&["v2"]);
    let mut statistics = scored(&experiment, 400, &[3.0, 5.0]);
    expose(&mut statistics, &experiment, 0, 200);
    assert_eq!(decide(&experiment, &statistics, 0), Decision::Keep { reason: KeepReason::SplitBroken });
    assert!(report(&experiment, &statistics, 0).split.is_broken);
    record(&mut statistics, &experiment, 1, "error", 1.0, 200);
    assert!(matches!(decide(&experiment, &statistics, 0), Decision::StopArms { .. }));
}

#[test]
fn it_ends_when_its_time_is_over_unless_there_is_a_winner() {
    let mut experiment = with_arms(&["v2"]);
    experiment.ends_ms = Some(1_000);
    let nothing = Statistics::new(&experiment);
    assert_eq!(decide(&experiment, &nothing, 999), undecided());
    assert_eq!(decide(&experiment, &nothing, 1_000), Decision::End { reason: EndReason::Time });
    let statistics = scored(&experiment, 400, &[3.0, 5.0]);
    assert_eq!(decide(&experiment, &statistics, 2_000), Decision::Winner { arm: "v2".to_owned() });
}

#[test]
fn a_shadow_arm_is_judged_but_never_wins() {
    let mut experiment = with_arms(&["v2"]);
    experiment.arms[1].role = Role::Shadow;
    experiment.arms[1].weight = WEIGHT_MAX;
    let mut statistics = scored(&experiment, 2_000, &[3.0, 5.0]);
    let comparison = &compare(&experiment, &statistics)[0];
    assert_eq!((comparison.verdict, comparison.p_value, comparison.promise), (Verdict::Better, None, Promise::Exact));
    assert_eq!(decide(&experiment, &statistics, 0), undecided());
    record(&mut statistics, &experiment, 1, "error", 1.0, 2_000);
    assert!(matches!(decide(&experiment, &statistics, 0), Decision::StopArms { .. }));
}

#[test]
fn alpha_is_divided_and_never_exceeded() {
    let mut experiment = with_arms(&["v2", "v3", "v4"]);
    let total: f64 = (0..3).map(|metric| alpha_of(&experiment, metric) * 3.0).sum();
    assert!((total - experiment.alpha).abs() < 1e-12);
    assert!((alpha_of(&experiment, 0) - 0.05 / 6.0).abs() < 1e-12, "half of it for the primary metric");
    assert!((guardrail_alpha(&experiment) * 9.0 - experiment.guardrail_alpha).abs() < 1e-12);
    experiment.metrics.truncate(1);
    assert!((alpha_of(&experiment, 0) * 3.0 - experiment.alpha).abs() < 1e-12);
}

#[test]
fn observations_of_another_phase_are_compared_within_it() {
    // v2 got the bad hour: 10 % of requests in a good phase, 90 % in a bad one, no better and no worse than v1 in
    // either.
    let good = running();
    let mut statistics = Statistics::new(&good);
    record(&mut statistics, &good, 0, "error", 0.0, 9_000);
    record(&mut statistics, &good, 1, "error", 0.0, 1_000);
    let bad = good.reweighted("v2", 810).unwrap();
    for (arm, count) in [(0, 500), (1, 4_500)] {
        record(&mut statistics, &bad, arm, "error", 0.0, count);
        record(&mut statistics, &bad, arm, "error", 1.0, count);
    }
    let comparison = &compare(&bad, &statistics)[1];
    assert!(comparison.estimate.unwrap().abs() < 1e-9, "{comparison:?}");
}

#[test]
fn a_report_is_json_that_is_read_back() {
    let experiment = with_arms(&["v2"]);
    let mut statistics = scored(&experiment, 400, &[3.0, 5.0]);
    record(&mut statistics, &experiment, 1, "ttft_ms", 300.0, 100);
    let report = report(&experiment, &statistics, 1_234);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["decision"]["winner"]["arm"], "v2");
    assert_eq!(value["arms"][1]["metrics"][0]["count"], 400);
    assert_eq!(value["arms"][1]["metrics"][0]["mean"], 4.0);
    assert_eq!(value["arms"][0]["metrics"][2]["mean"], serde_json::Value::Null);
    assert_eq!((&value["state"], &value["now_ms"]), (&"running".into(), &1_234.into()));
    let p50 = value["arms"][1]["metrics"][2]["p50"].as_f64().unwrap();
    assert!((p50 / 300.0 - 1.0).abs() < 0.02);
    assert!((value["comparisons"][0]["estimate"].as_f64().unwrap() - 1.0).abs() < 1e-4);
}

#[test]
fn a_report_since_an_earlier_one_is_never_wider_and_names_contradictions() {
    let experiment = with_arms(&["v2"]);
    let early = report(&experiment, &scored(&experiment, 200, &[3.0, 5.0]), 1);
    let late = report(&experiment, &scored(&experiment, 400, &[3.0, 4.8]), 2).since(&early, &experiment);
    let (before, after) = (early.comparisons[0].interval, late.comparisons[0].interval);
    assert!(after.low >= before.low && after.high <= before.high && after.width() < before.width());
    assert!(late.contradictions.is_empty());
    let turned = report(&experiment, &scored(&experiment, 4_000, &[5.0, 3.0]), 3).since(&early, &experiment);
    assert_eq!(turned.contradictions, ["v2/feedback"]);
    assert_eq!(turned.comparisons[0].verdict, Verdict::Worse);
}

/// Arms' names are what counts, whatever else an arm has.
#[test]
fn an_unchecked_description_does_not_panic() {
    let mut experiment = running();
    experiment.arms.clear();
    experiment.primary = String::new();
    let statistics = Statistics::new(&experiment);
    let _ = report(&experiment, &statistics, 0);
    experiment.arms = vec![Arm { weight: 0, ..running().arms[0].clone() }];
    experiment.metrics.clear();
    assert_eq!(decide(&experiment, &statistics, 0), Decision::End { reason: EndReason::NoArms });
}

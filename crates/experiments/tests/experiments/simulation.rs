//! False alarms, coverage and power by simulation.
//!
//! Seeds are fixed, so these cannot flake; the limits are what a rate of α hardly ever exceeds (`binomial_limit`), so
//! they fail if a rate is really above α. The full tables are those of `weft-experiments-simulator`
//! (`docs/experiments.md`).

use weft_experiments::SPLIT_ALPHA;
use weft_experiments::simulation::{
    Outcome, Test, binomial_limit, coverage, detection, false_alarms, fixed_horizon, split_false_alarms,
};

const ALPHA: f64 = 0.05;
const EXACT: &[Test] = &[Test::Exact];

fn assert_within(alarms: u32, runs: u32, what: &str) {
    let limit = binomial_limit(runs, ALPHA);
    assert!(alarms <= limit, "{what}: {alarms} false alarms in {runs} runs, the limit is {limit}");
}

/// The bar: 10,000 runs, looked at after every observation, for both allocations.
#[test]
fn false_alarms_of_a_binary_metric_stay_within_alpha_and_those_of_a_z_test_do_not() {
    for share in [0.5, 0.1] {
        let tests = [Test::Exact, Test::FixedHorizon];
        let alarms = false_alarms(Outcome::Binary(0.5), share, 1_000, 10_000, ALPHA, &tests, 1);
        assert_within(alarms.exact, alarms.runs, "exact");
        // The simulation would see a test that is wrong: the usual one is, by far.
        assert!(alarms.fixed_horizon > 5 * binomial_limit(alarms.runs, ALPHA) / 2, "{alarms:?}");
    }
}

#[test]
fn false_alarms_of_scores_and_rare_errors_stay_within_alpha() {
    for outcome in [Outcome::Stars(0.0), Outcome::Binary(0.02), Outcome::Latency(1.0)] {
        for share in [0.5, 0.1] {
            let alarms = false_alarms(outcome, share, 500, 2_000, ALPHA, EXACT, 2);
            assert_within(alarms.exact, alarms.runs, &outcome.name());
        }
    }
}

#[test]
fn false_alarms_of_the_asymptotic_sequence_stay_within_alpha_for_latencies() {
    for share in [0.5, 0.2] {
        let alarms = false_alarms(Outcome::LatencyFarBound(1.0), share, 2_000, 2_000, ALPHA, &[Test::Asymptotic], 3);
        assert_within(alarms.asymptotic, alarms.runs, "asymptotic");
    }
}

#[test]
fn a_true_difference_is_covered_at_all_times() {
    for (control, arm) in [(Outcome::Binary(0.3), Outcome::Binary(0.4)), (Outcome::Stars(0.0), Outcome::Stars(0.08))] {
        let alarms = coverage(control, arm, 0.3, 500, 2_000, ALPHA, EXACT, 4);
        assert_within(alarms.exact, alarms.runs, &arm.name());
    }
}

#[test]
fn the_split_check_stays_within_its_alpha() {
    let flagged = split_false_alarms(&[90, 10], 1_000, 5_000, SPLIT_ALPHA, 5);
    assert!(flagged <= binomial_limit(5_000, SPLIT_ALPHA), "{flagged} in 5,000");
}

#[test]
fn a_difference_is_found_in_a_small_multiple_of_what_one_look_needs() {
    let (control, arm) = (Outcome::Binary(0.5), Outcome::Binary(0.6));
    let found = detection(control, arm, 0.5, 8_000, 200, ALPHA, Test::Exact, 6);
    assert!(found.power >= 0.95 && found.wrong_side <= 0.01, "{found:?}");
    let one_look = fixed_horizon(control, arm, 0.5, 0.5);
    assert!(found.median.unwrap() < 4 * one_look, "{found:?} against {one_look}");
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let run = |seed| detection(Outcome::Stars(0.0), Outcome::Stars(0.1), 0.5, 3_000, 20, ALPHA, Test::Exact, seed);
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn the_limit_of_alarms_is_above_the_mean_and_near_it() {
    assert_eq!(binomial_limit(10_000, 0.05), 604);
    assert_eq!(binomial_limit(2_000, 0.05), 147);
}

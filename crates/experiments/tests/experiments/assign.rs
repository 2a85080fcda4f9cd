//! Assignment: by weight, sticky, and moving no more than it must.

use crate::support::{running, with_arms};
use proptest::prelude::*;
use weft_experiments::{Experiment, Key, Role, WEIGHT_MAX, assign};

const KEYS: usize = 100_000;

/// The arm's name for each of 100,000 keys.
fn arms(experiment: &Experiment) -> Vec<&str> {
    let name = |at: usize| {
        let assignment = assign(experiment, Key::Sticky(&format!("user-{at}"))).unwrap();
        experiment.arms[assignment.arm].name.as_str()
    };
    (0..KEYS).map(name).collect()
}

fn share(arms: &[&str], arm: &str) -> f64 {
    arms.iter().filter(|name| **name == arm).count() as f64 / arms.len() as f64
}

/// Six standard deviations of a share over 100,000 keys: at most one run in 10⁸ would be beyond it by chance, and the
/// keys are fixed.
fn assert_share(arms: &[&str], arm: &str, expected: f64) {
    let off = 6.0 * (expected * (1.0 - expected) / KEYS as f64).sqrt();
    let share = share(arms, arm);
    assert!((share - expected).abs() <= off, "{arm} has {share}, not {expected} ± {off}");
}

/// Asserts that keys moved only from `from` or only to `to`, and how many.
fn assert_moves(before: &[&str], after: &[&str], is_allowed: impl Fn(&str, &str) -> bool, expected: f64) {
    let moved: Vec<_> = before.iter().zip(after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(before, after)| is_allowed(before, after)));
    let off = 6.0 * (expected * (1.0 - expected) / KEYS as f64).sqrt();
    let share = moved.len() as f64 / KEYS as f64;
    assert!((share - expected).abs() <= off, "{share} moved, not {expected} ± {off}");
}

#[test]
fn arms_get_their_weights() {
    let experiment = running();
    let arms = arms(&experiment);
    assert_share(&arms, "v1", 0.9);
    assert_share(&arms, "v2", 0.1);
}

#[test]
fn a_larger_weight_moves_keys_only_to_its_arm_and_a_smaller_one_only_from_it() {
    let before = with_arms(&["v2", "v3"]);
    let more = before.reweighted("v2", 200).unwrap();
    let (old, new) = (arms(&before), arms(&more));
    assert_share(&new, "v2", 0.5);
    // The least that can move: what v2 has more, 1/2 - 1/3.
    assert_moves(&old, &new, |_, to| to == "v2", 0.5 - 1.0 / 3.0);
    assert_moves(&new, &old, |from, _| from == "v2", 0.5 - 1.0 / 3.0);
}

#[test]
fn two_arms_may_both_change_and_still_only_the_share_that_must_moves() {
    let (ninety, eighty) = (running(), running().reweighted("v1", 80).unwrap().reweighted("v2", 20).unwrap());
    assert_moves(&arms(&ninety), &arms(&eighty), |_, to| to == "v2", 0.1);
}

#[test]
fn an_arm_more_takes_only_its_share_and_an_arm_less_gives_only_its_own() {
    let (three, four) = (with_arms(&["v2", "v3"]), with_arms(&["v2", "v3", "v4"]));
    assert_moves(&arms(&three), &arms(&four), |_, to| to == "v4", 0.25);
    assert_moves(&arms(&four), &arms(&three), |from, _| from == "v4", 0.25);
    let stopped = four.without_arm("v3").unwrap();
    assert_moves(&arms(&four), &arms(&stopped), |from, _| from == "v3", 0.25);
    assert_eq!(share(&arms(&stopped), "v3"), 0.0);
}

#[test]
fn the_order_of_arms_does_not_matter() {
    let ahead = with_arms(&["v2", "v3"]);
    let mut reversed = ahead.clone();
    reversed.arms.reverse();
    assert_eq!(arms(&ahead), arms(&reversed));
}

#[test]
fn two_experiments_and_two_tenants_split_independently() {
    let first = with_arms(&["v2"]);
    let mut other = first.clone();
    other.id = "tone-1".to_owned();
    let mut tenant = first.clone();
    tenant.tenant = "meadow".parse().unwrap();
    let ours = arms(&first);
    for theirs in [arms(&other), arms(&tenant)] {
        // Of the four pairs each has a quarter; six standard deviations.
        for pair in [("v1", "v1"), ("v1", "v2"), ("v2", "v1"), ("v2", "v2")] {
            let both = ours.iter().zip(&theirs).filter(|(ours, theirs)| (**ours, **theirs) == pair).count();
            let off = (both as f64 / KEYS as f64 - 0.25).abs();
            assert!(off <= 6.0 * (0.1875 / KEYS as f64).sqrt(), "{pair:?} is off by {off}");
        }
    }
}

#[test]
fn shadow_arms_get_copies_and_never_answer() {
    let mut experiment = running();
    let shadow = weft_experiments::Arm {
        name: "v3".to_owned(),
        role: Role::Shadow,
        weight: WEIGHT_MAX / 4,
        ..experiment.arms[1].clone()
    };
    experiment.arms.push(shadow);
    experiment.check().unwrap();
    let without = arms(&running()).iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(arms(&experiment), without, "the split is as without it");
    let (mut mirrored, mut mirrored_of_v2, mut of_v2) = (0, 0, 0);
    for at in 0..KEYS {
        let assignment = assign(&experiment, Key::Sticky(&format!("user-{at}"))).unwrap();
        let is_mirrored = assignment.shadows == [2];
        assert!(is_mirrored || assignment.shadows.is_empty());
        mirrored += usize::from(is_mirrored);
        of_v2 += usize::from(assignment.arm == 1);
        mirrored_of_v2 += usize::from(is_mirrored && assignment.arm == 1);
    }
    let share = |part: usize, of: usize| part as f64 / of as f64;
    assert!((share(mirrored, KEYS) - 0.25).abs() < 0.01);
    assert!((share(mirrored_of_v2, of_v2) - 0.25).abs() < 0.03, "whatever the arm");
    let all = experiment.reweighted("v3", WEIGHT_MAX).unwrap();
    assert!((0..100).all(|at| assign(&all, Key::Random(at)).unwrap().shadows == [2]));
}

#[test]
fn a_request_without_a_key_gets_an_arm_of_its_own() {
    let experiment = running();
    let assignments: Vec<_> = (0..10_000).map(|bits| assign(&experiment, Key::Random(bits)).unwrap()).collect();
    let treated = assignments.iter().filter(|assignment| assignment.arm == 1).count();
    assert!((800..1200).contains(&treated), "{treated} of 10,000");
    assert!(assignments.iter().all(|assignment| assignment.key.is_none()));
    let sticky = assign(&experiment, Key::Sticky("user-1")).unwrap();
    assert!(sticky.key.is_some() && sticky == assign(&experiment, Key::Sticky("user-1")).unwrap());
}

#[test]
fn what_does_not_run_splits_nothing() {
    let running = running();
    for state in [running.stopped().unwrap(), running.promoted("v2").unwrap()] {
        assert_eq!(assign(&state, Key::Sticky("user-1")), None);
    }
}

/// Other gateways, and the versions of tomorrow, give the same answer.
#[test]
fn assignments_are_those_of_the_golden_list() {
    let experiment = with_arms(&["v2", "v3", "v4"]);
    let of = |at: usize| assign(&experiment, Key::Sticky(&format!("user-{at}"))).unwrap();
    let arms: Vec<usize> = (0..24).map(|at| of(at).arm).collect();
    assert_eq!(arms, GOLDEN);
    assert_eq!(of(0).key, Some(GOLDEN_KEY));
}

/// Computed apart, with Python's `hashlib`.
const GOLDEN: [usize; 24] = [1, 0, 3, 0, 0, 1, 1, 2, 0, 1, 2, 0, 1, 1, 3, 2, 3, 0, 3, 0, 3, 3, 2, 3];
const GOLDEN_KEY: u64 = 0xfc2c_0634_e142_973d;

proptest! {
    /// Any weights, any key: the answer is an arm with a weight, and raising one arm's weight moves the key to it or
    /// nowhere.
    #[test]
    fn one_weight_moves_keys_one_way(
        weights in prop::collection::vec(1u32..10_000, 4),
        arm in 0usize..4,
        weight in 1u32..10_000,
        key in ".{0,40}",
    ) {
        let mut before = with_arms(&["v2", "v3", "v4"]);
        before.arms.iter_mut().zip(&weights).for_each(|(arm, weight)| arm.weight = *weight);
        let name = before.arms[arm].name.clone();
        let after = before.reweighted(&name, weight).unwrap();
        let [old, new] = [&before, &after].map(|experiment| assign(experiment, Key::Sticky(&key)).unwrap().arm);
        let is_its_way = if weight > weights[arm] { new == arm } else { old == arm };
        prop_assert!(old == new || is_its_way);
    }
}

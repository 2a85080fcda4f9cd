use super::*;
use weft_bus::residency::Teller;
use weft_proto::mesh::v1::ResidencyDelta;

fn digest(number: u8) -> Digest {
    Digest::of(&[number])
}

fn says(address: &str, incarnation: &str, residency: Option<ResidencyDelta>) -> CacheResidency {
    let (address, incarnation) = (address.to_owned(), incarnation.to_owned());
    CacheResidency { address, incarnation, interval_ms: 100, residency, ..CacheResidency::default() }
}

/// A message in which a new process tells that it holds these.
fn holds(address: &str, incarnation: &str, held: &[(u8, Tier)]) -> CacheResidency {
    let held: Held = held.iter().map(|(number, tier)| (digest(*number), *tier)).collect();
    let delta = Teller::default().tell_next(held).swap_remove(0);
    says(address, incarnation, Some(delta))
}

fn view() -> View {
    View::new("me".to_owned(), 3)
}

fn holders(view: &View, number: u8, now_ms: u64) -> Vec<String> {
    view.holders(&digest(number), now_ms, |_| 0)
}

#[test]
fn those_that_have_it_in_memory_come_first_and_the_order_decides_among_equals() {
    let mut view = view();
    for (address, tier) in [("a:1", Tier::Disk), ("b:1", Tier::Memory), ("c:1", Tier::Disk)] {
        assert!(!view.hear(&holds(address, address, &[(1, tier)]), 0));
    }
    let order = |address: &str| if address == "c:1" { 0 } else { 1 };
    assert_eq!(view.holders(&digest(1), 0, order), ["b:1", "c:1", "a:1"]);
    assert!(holders(&view, 2, 0).is_empty());
}

#[test]
fn we_are_no_neighbour_of_ours_and_no_more_are_known_than_may_be() {
    let mut view = view();
    view.hear(&holds("me:1", "me", &[(1, Tier::Disk)]), 0);
    view.hear(&holds("", "x", &[(1, Tier::Disk)]), 0);
    view.hear(&holds(&"x".repeat(300), "x", &[(1, Tier::Disk)]), 0);
    assert_eq!(view.count(0), (0, 0));
    for number in 0..9 {
        view.hear(&holds(&format!("{number}:1"), "x", &[(1, Tier::Disk)]), 0);
    }
    assert_eq!((view.count(0).0, holders(&view, 1, 0).len()), (3, 3));
    // Room comes with the silence of others.
    view.hear(&holds("late:1", "x", &[(1, Tier::Disk)]), 300);
    assert_eq!(holders(&view, 1, 300), ["late:1"]);
}

#[test]
fn a_silent_neighbour_is_not_asked_and_then_forgotten() {
    let mut view = view();
    view.hear(&holds("a:1", "a", &[(1, Tier::Disk)]), 0);
    assert_eq!(holders(&view, 1, 299).len(), 1);
    assert!(holders(&view, 1, 300).is_empty());
    assert_eq!((view.count(300).0, view.addresses().len()), (0, 0));
}

#[test]
fn after_a_gap_the_list_is_asked_for_once_at_a_time_and_not_too_often() {
    let mut view = view();
    let delta = ResidencyDelta { since: 5, generation: 6, ..ResidencyDelta::default() };
    let gap = CacheResidency { interval_ms: 60_000, ..says("a:1", "a", Some(delta)) };
    assert!(view.hear(&gap, 0));
    assert!(!view.hear(&gap, 5_000), "it is on its way");
    view.listed("a:1", None);
    assert!(view.hear(&gap, 5_000));
    view.listed("a:1", Some(("other", 9, Held::from([(digest(1), Tier::Disk)]))));
    assert!(holders(&view, 1, 5_001).is_empty(), "the list of another process");
    assert!(!view.hear(&gap, 5_999), "too soon");
    assert!(view.hear(&gap, 6_000));
    view.listed("a:1", Some(("a", 9, Held::from([(digest(1), Tier::Disk)]))));
    assert_eq!(holders(&view, 1, 6_001), ["a:1"]);
    assert!(!view.hear(&gap, 8_000), "that is known");
}

#[test]
fn one_that_fails_rests_longer_each_time_until_it_does_well() {
    let mut view = view();
    view.hear(&CacheResidency { interval_ms: 60_000, ..holds("a:1", "a", &[(1, Tier::Disk)]) }, 0);
    let rests = |view: &View, from_ms: u64| {
        (from_ms..from_ms + 200_000)
            .step_by(500)
            .find(|now_ms| !holders(view, 1, *now_ms).is_empty())
            .map(|at| at - from_ms)
    };
    view.failed("a:1", Fault::Failed, 0);
    assert_eq!(rests(&view, 0), Some(1_000));
    view.failed("a:1", Fault::Failed, 1_000);
    assert_eq!(rests(&view, 1_000), Some(2_000));
    view.did_well("a:1");
    view.failed("a:1", Fault::Failed, 3_000);
    assert_eq!(rests(&view, 3_000), Some(1_000));
    for _ in 0..50 {
        view.failed("a:1", Fault::Failed, 4_000);
    }
    assert_eq!(rests(&view, 4_000), Some(60_000));
    view.failed("unknown:1", Fault::Failed, 0);
}

#[test]
fn one_with_wrong_bytes_is_left_alone_long_also_when_it_was_silent_meanwhile_but_its_successor_is_not() {
    let mut view = view();
    view.hear(&holds("a:1", "a", &[(1, Tier::Disk)]), 0);
    view.failed("a:1", Fault::Wrong, 10);
    assert_eq!(view.count(5_000), (1, 1), "remembered");
    view.hear(&holds("a:1", "a", &[(1, Tier::Disk)]), 400_000);
    assert!(holders(&view, 1, 400_001).is_empty());
    view.hear(&holds("a:1", "a", &[(1, Tier::Disk)]), 600_010);
    assert_eq!(holders(&view, 1, 600_011).len(), 1);
    view.failed("a:1", Fault::Wrong, 600_012);
    view.hear(&holds("a:1", "restarted", &[(1, Tier::Disk)]), 600_013);
    assert_eq!(holders(&view, 1, 600_014).len(), 1);
}

#[test]
fn one_that_lacks_what_we_thought_it_had_is_asked_for_its_list_and_a_busy_one_rests_shortly() {
    let mut view = view();
    let message = holds("a:1", "a", &[(1, Tier::Disk)]);
    view.hear(&message, 0);
    view.failed("a:1", Fault::Missing, 1);
    assert_eq!(holders(&view, 1, 2).len(), 1, "it may have others");
    assert!(view.hear(&message, 3));
    view.listed("a:1", Some(("a", 9, Held::new())));
    assert!(holders(&view, 1, 4).is_empty());
    view.hear(&holds("b:1", "b", &[(1, Tier::Disk)]), 1_100);
    view.failed("b:1", Fault::Busy, 1_101);
    assert!(holders(&view, 1, 1_200).is_empty());
    view.hear(&holds("b:1", "b", &[(1, Tier::Disk)]), 2_100);
    assert_eq!(holders(&view, 1, 2_101), ["b:1"]);
}

//! Routing: predictions, exclusions, bounds.

use proptest::prelude::*;
use std::cell::Cell;
use std::collections::HashMap;
use weft_placement::{
    Availability, Bandwidth, COMPARED_MAX, Document, Epoch, Host, INSIDE_PROBES_MAX, Map, Place, Placed, Request,
    RouteSettings, SPILL_PROBES_MAX, Tier, View, WorkerLoad, choose, predict,
};
use weft_types::Digest;

/// Workers whose adapter is in a slot unless said otherwise.
#[derive(Default)]
struct Seen {
    loads: HashMap<u16, WorkerLoad>,
    tiers: HashMap<u16, Tier>,
    reads: Cell<usize>,
}

impl View for Seen {
    fn load(&self, worker: u16) -> Option<WorkerLoad> {
        self.reads.set(self.reads.get() + 1);
        self.loads.get(&worker).copied()
    }

    fn place(&self, worker: u16) -> Place {
        Place { tier: self.tiers.get(&worker).copied().unwrap_or(Tier::Slot), prefix_hit_tokens: 0 }
    }
}

fn idle() -> WorkerLoad {
    WorkerLoad {
        availability: Availability::Serving,
        queue_ms: 0.0,
        loading_ms: 0.0,
        prefill_tokens_per_ms: 2.0,
        bandwidth: Bandwidth { memory: 1e7, disk: 1e6, remote: 1e5 },
        recent: 0.0,
    }
}

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

/// `workers` workers; adapter 1 is on the first `copies`.
fn map(workers: usize, copies: u16) -> Map {
    let hosts: Vec<Host> = (0..workers).map(|at| Host(format!("w-{at:04}"), 100)).collect();
    let adapters = if copies == 0 { Vec::new() } else { vec![Placed(digest(1), (0..copies).collect())] };
    let names = hosts.iter().map(|host| host.0.clone()).collect();
    let document = Document { epoch: Epoch::first_of(1).unwrap(), holder: "a".to_owned(), workers: hosts, adapters };
    Map::new(Some(&document), names)
}

fn all(workers: usize, load: WorkerLoad) -> Seen {
    Seen { loads: (0..workers as u16).map(|at| (at, load)).collect(), ..Default::default() }
}

const REQUEST: Request<'_> = Request { prompt_tokens: 100, adapter_bytes: 10_000_000, avoid: &[], familiar: None };

#[test]
fn a_prediction_adds_queue_load_by_tier_and_prefill_without_the_hit() {
    let load = WorkerLoad { queue_ms: 7.0, loading_ms: 3.0, ..idle() };
    for (tier, load_ms) in [(Tier::Slot, 0.0), (Tier::Memory, 4.0), (Tier::Disk, 14.0), (Tier::Remote, 114.0)] {
        let predicted = predict(&load, Place { tier, prefix_hit_tokens: 40 }, &REQUEST);
        assert_eq!((predicted.queue_ms, predicted.load_ms, predicted.prefill_ms), (7.0, load_ms, 30.0), "{tier:?}");
        assert_eq!(predicted.total_ms(), 37.0 + load_ms);
    }
}

#[test]
fn the_best_of_four_of_the_set_is_taken_and_the_worst_never() {
    let (map, mut seen) = (map(16, 5), all(16, idle()));
    for at in [1, 2] {
        seen.loads.get_mut(&at).unwrap().queue_ms = 300.0;
    }
    let mut taken = HashMap::new();
    for draw in 0..1000u64 {
        let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let choice = choose(&seen, &REQUEST, &map.sets(&digest(1)), draw, &RouteSettings::default()).unwrap();
        assert!(!choice.is_spill && choice.looked_at == COMPARED_MAX);
        *taken.entry(choice.worker).or_insert(0) += 1;
    }
    assert_eq!(taken.len(), 3, "{taken:?}");
    assert!([1, 2].iter().all(|at| !taken.contains_key(at)), "{taken:?}");
    assert!(taken.values().all(|count| (200..=480).contains(count)), "{taken:?}");
}

#[test]
fn the_familiar_one_is_one_of_those_that_are_looked_at_and_wins_only_if_it_is_better() {
    let (map, mut seen) = (map(64, 12), all(64, idle()));
    let sets = map.sets(&digest(1));
    let choose = |seen: &Seen, familiar: u16, draw: u64| {
        let request = Request { familiar: Some(familiar), ..REQUEST };
        let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        choose(seen, &request, &sets, draw, &RouteSettings::default()).unwrap()
    };
    // Anybody else would have to wait.
    for at in (0..12).filter(|at| *at != 7) {
        seen.loads.get_mut(&at).unwrap().queue_ms = 100.0;
    }
    for draw in 0..200 {
        let choice = choose(&seen, 7, draw);
        assert_eq!((choice.worker, choice.looked_at), (7, COMPARED_MAX));
        let outside = choose(&seen, 40, draw);
        assert!(outside.worker < 12 && outside.looked_at == COMPARED_MAX, "one outside counts for nothing");
    }
    seen.loads.get_mut(&7).unwrap().queue_ms = 300.0;
    assert!((0..200).all(|draw| choose(&seen, 7, draw).worker != 7));
    seen.loads.get_mut(&7).unwrap().availability = Availability::Draining;
    assert!((0..200).all(|draw| choose(&seen, 7, draw).looked_at <= INSIDE_PROBES_MAX));
}

#[test]
fn a_worker_that_would_have_to_load_loses_to_one_that_holds_it() {
    let (map, mut seen) = (map(16, 0), all(16, idle()));
    let sets = map.sets(&digest(1));
    seen.tiers.insert(sets.inside()[0], Tier::Remote);
    let choice = choose(&seen, &REQUEST, &sets, 5, &RouteSettings::default()).unwrap();
    assert_eq!(choice.worker, sets.inside()[1]);
}

#[test]
fn equal_predictions_go_to_the_one_with_less_recent_work() {
    let (map, mut seen) = (map(16, 2), all(16, idle()));
    seen.loads.get_mut(&0).unwrap().recent = 2.0;
    seen.loads.get_mut(&1).unwrap().queue_ms = 4.0;
    for draw in [0, 1, 2, u64::MAX] {
        let choice = choose(&seen, &REQUEST, &map.sets(&digest(1)), draw, &RouteSettings::default()).unwrap();
        assert_eq!(choice.worker, 1);
    }
}

#[test]
fn a_full_set_spills_to_the_same_two_workers_and_only_if_that_is_much_better() {
    let (map, mut seen) = (map(64, 2), all(64, idle()));
    for at in 0..2 {
        seen.loads.get_mut(&at).unwrap().queue_ms = 2_000.0;
    }
    let sets = map.sets(&digest(1));
    for draw in 0..100 {
        let choice = choose(&seen, &REQUEST, &sets, draw, &RouteSettings::default()).unwrap();
        assert!(choice.is_spill && sets.spill().contains(&choice.worker));
        assert_eq!(choice.looked_at, 4);
    }
    for at in sets.spill() {
        seen.loads.get_mut(at).unwrap().queue_ms = 1_800.0;
    }
    let choice = choose(&seen, &REQUEST, &sets, 1, &RouteSettings::default()).unwrap();
    assert!(!choice.is_spill);
}

#[test]
fn draining_stale_broken_unknown_and_tried_workers_are_left_out() {
    let (map, mut seen) = (map(16, 5), all(16, idle()));
    for (at, availability) in [(0, Availability::Draining), (1, Availability::Stale), (2, Availability::Broken)] {
        seen.loads.get_mut(&at).unwrap().availability = availability;
    }
    seen.loads.remove(&3);
    for draw in 0..50 {
        let choice = choose(&seen, &REQUEST, &map.sets(&digest(1)), draw, &RouteSettings::default()).unwrap();
        assert_eq!((choice.worker, choice.is_spill), (4, false));
    }
    let tried = Request { avoid: &[4], ..REQUEST };
    let sets = map.sets(&digest(1));
    let choice = choose(&seen, &tried, &sets, 0, &RouteSettings::default()).unwrap();
    assert!(choice.is_spill && sets.spill().contains(&choice.worker), "the set is gone: {choice:?}");
    for at in sets.spill() {
        seen.loads.remove(at);
    }
    let choice = choose(&seen, &tried, &sets, 0, &RouteSettings::default()).unwrap();
    assert!(sets.last().contains(&choice.worker), "{choice:?}");
}

#[test]
fn without_anybody_the_answer_says_how_many_were_asked() {
    let map = map(64, 20);
    let error = choose(&Seen::default(), &REQUEST, &map.sets(&digest(1)), 3, &RouteSettings::default()).unwrap_err();
    assert_eq!(error.to_string(), "none of the 8 workers for this adapter can be used");
    let empty = Map::new(None, Vec::new());
    assert!(choose(&Seen::default(), &REQUEST, &empty.base_sets(), 3, &RouteSettings::default()).is_err());
}

#[test]
fn the_bare_base_goes_to_the_best_of_four_of_all() {
    let (map, seen) = (map(64, 0), all(64, idle()));
    let taken: std::collections::BTreeSet<u16> = (0..2000u64)
        .map(|draw| draw.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .map(|draw| choose(&seen, &REQUEST, &map.base_sets(), draw, &RouteSettings::default()).unwrap().worker)
        .collect();
    assert!(taken.len() > 60, "{}", taken.len());
}

#[test]
fn a_request_costs_as_many_reads_among_64_workers_and_10_000_adapters_as_among_4_and_10() {
    let reads = |workers: usize, adapters: u64| {
        let hosts: Vec<Host> = (0..workers).map(|at| Host(format!("w-{at:04}"), 100)).collect();
        let mut placed: Vec<Placed> = (0..adapters)
            .map(|n| Placed(digest(n), vec![(n % workers as u64) as u16, ((n + 1) % workers as u64) as u16]))
            .collect();
        placed.sort_by_key(|placed| placed.0);
        let names = hosts.iter().map(|host| host.0.clone()).collect();
        let document =
            Document { epoch: Epoch::first_of(1).unwrap(), holder: "a".to_owned(), workers: hosts, adapters: placed };
        let (map, seen) = (Map::new(Some(&document), names), all(workers, idle()));
        for n in 0..10_000 {
            choose(&seen, &REQUEST, &map.sets(&digest(n % adapters)), n, &RouteSettings::default()).unwrap();
        }
        seen.reads.get()
    };
    assert_eq!(reads(4, 10), reads(64, 10_000));
    assert_eq!(reads(64, 10_000), 20_000, "two workers for each request");
}

proptest! {
    // A map for 80 workers is not free.
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn nobody_unavailable_is_chosen_and_few_are_asked(
        workers in 1usize..80, copies in 0u16..80, draw in any::<u64>(), adapter in 0u64..3,
        states in prop::collection::vec((0u8..5, prop_oneof![0.0..5000.0f64, Just(f64::NAN), Just(-1.0), Just(f64::INFINITY)]), 80),
        tiers in prop::collection::vec(0u8..4, 80), bytes in any::<u64>(), tokens in any::<u32>(),
    ) {
        let map = map(workers, copies.min(workers as u16));
        let mut seen = Seen::default();
        for at in 0..workers {
            let (state, number) = states[at];
            let availability = [Availability::Serving, Availability::Draining, Availability::Stale, Availability::Broken];
            let Some(availability) = availability.get(usize::from(state)) else { continue };
            let bandwidth = Bandwidth { memory: number, disk: number, remote: number };
            let load = WorkerLoad { availability: *availability, queue_ms: number, loading_ms: number,
                prefill_tokens_per_ms: number, bandwidth, recent: number };
            seen.loads.insert(at as u16, load);
            seen.tiers.insert(at as u16, [Tier::Slot, Tier::Memory, Tier::Disk, Tier::Remote][usize::from(tiers[at])]);
        }
        let request = Request { prompt_tokens: tokens, adapter_bytes: bytes, avoid: &[1], familiar: None };
        let chosen = choose(&seen, &request, &map.sets(&digest(adapter)), draw, &RouteSettings::default());
        prop_assert!(seen.reads.get() <= INSIDE_PROBES_MAX + SPILL_PROBES_MAX);
        if let Ok(choice) = chosen {
            prop_assert_eq!(choice.looked_at, seen.reads.get());
            prop_assert!(choice.worker != 1);
            prop_assert_eq!(seen.loads[&choice.worker].availability, Availability::Serving);
            prop_assert!(choice.predicted.total_ms().is_finite() && choice.predicted.total_ms() >= 0.0);
        }
    }
}

//! Plans: budgets, floors, pins, stability, bounded moves.

use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use weft_placement::{Adapter, Host, Observed, Placed, Plan, PlanSettings, Tenant, Worker, plan};
use weft_types::{Digest, TenantName};

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn tenant(name: &str) -> TenantName {
    name.parse().unwrap()
}

fn adapter(n: u64, requests_per_s: f64) -> Adapter {
    Adapter {
        digest: digest(n),
        tenant: tenant("harbour"),
        rank: 16,
        bytes: 10 << 20,
        requests_per_s,
        recent_requests_per_s: requests_per_s,
        work_ms_per_s: requests_per_s * 50.0,
        pinned_copies: 0,
    }
}

fn worker(n: usize, slots: u32) -> Worker {
    Worker { name: format!("w-{n:03}"), slots, slot_bytes: 1 << 40, speed: 1.0, resident: Vec::new() }
}

/// A power law over `adapters` adapters on `workers` workers.
fn observed(adapters: u64, workers: usize, slots: u32) -> Observed {
    Observed {
        adapters: (0..adapters).map(|n| adapter(n, 20.0 / (n + 1) as f64)).collect(),
        workers: (0..workers).map(|n| worker(n, slots)).collect(),
        tenants: BTreeMap::new(),
    }
}

fn free_moves() -> PlanSettings {
    PlanSettings { moves_max: usize::MAX, move_bytes_max: u64::MAX, ..Default::default() }
}

fn again(observed: &Observed, before: &Plan, settings: &PlanSettings) -> Plan {
    plan(observed, Some((&before.workers, &before.adapters)), settings)
}

/// (adapter, worker name) of every copy.
fn copies(plan: &Plan) -> HashSet<(Digest, &str)> {
    let on = |placed: &Placed| -> Vec<(Digest, &str)> {
        placed.1.iter().map(|at| (placed.0, plan.workers[usize::from(*at)].0.as_str())).collect()
    };
    plan.adapters.iter().flat_map(on).collect()
}

fn count(plan: &Plan, n: u64) -> usize {
    plan.adapters.iter().find(|placed| placed.0 == digest(n)).map_or(0, |placed| placed.1.len())
}

#[test]
fn load_makes_copies_and_the_most_asked_for_have_a_place() {
    let observed = observed(1000, 8, 20);
    let plan = plan(&observed, None, &PlanSettings { fill: 0.9, ..free_moves() });
    assert!(count(&plan, 0) >= 6, "the first has {} of 8", count(&plan, 0));
    assert!(count(&plan, 0) > count(&plan, 3) && count(&plan, 3) >= count(&plan, 50), "copies follow the load");
    assert_eq!(count(&plan, 999), 0, "160 slots do not hold 1,000 adapters");
    assert!(plan.balance < 1.06, "{}", plan.balance);
    assert_eq!(copies(&plan).len(), 144, "nine tenths of the slots are planned");
    for at in 0..8 {
        let here = plan.adapters.iter().filter(|placed| placed.1.contains(&at)).count();
        assert!(here <= 18, "nine tenths on each worker, not {here} of 20 on {at}");
    }
}

#[test]
fn the_same_demand_again_moves_nothing() {
    let observed = observed(1000, 8, 20);
    let first = plan(&observed, None, &free_moves());
    let second = again(&observed, &first, &free_moves());
    assert_eq!(copies(&second), copies(&first));
    let mut noisy = observed.clone();
    for (at, adapter) in noisy.adapters.iter_mut().enumerate() {
        let factor = if at % 2 == 0 { 1.1 } else { 0.9 };
        adapter.requests_per_s *= factor;
        adapter.work_ms_per_s *= factor;
    }
    let third = again(&noisy, &first, &free_moves());
    let stayed = copies(&third).intersection(&copies(&first)).count();
    assert!(stayed * 100 >= copies(&first).len() * 94, "{stayed} of {} stay", copies(&first).len());
}

#[test]
fn a_lost_worker_moves_only_its_own_copies_and_what_balance_needs() {
    let observed = observed(300, 16, 40);
    let first = plan(&observed, None, &free_moves());
    let mut fewer = observed.clone();
    let lost = fewer.workers.remove(5).name;
    let second = again(&fewer, &first, &free_moves());
    let (before, after) = (copies(&first), copies(&second));
    let own = before.iter().filter(|copy| copy.1 == lost).count();
    let gone = before.iter().filter(|copy| copy.1 != lost && !after.contains(*copy)).count();
    assert!(gone <= own, "{gone} copies left workers that live, {own} were lost");
    assert!(after.iter().all(|copy| copy.1 != lost));
    assert!(second.balance < 1.1, "{}", second.balance);
}

#[test]
fn moves_are_bounded_and_the_rest_comes_later() {
    let observed = observed(300, 8, 40);
    let settings = PlanSettings { moves_max: 10, ..Default::default() };
    let mut last = plan(&observed, None, &settings);
    assert_eq!((last.moves, copies(&last).len()), (10, 10));
    assert!(last.deferred > 100, "{}", last.deferred);
    for _ in 0..60 {
        let next = again(&observed, &last, &settings);
        assert!(next.moves <= 10);
        last = next;
    }
    assert_eq!(last.deferred, 0);
    let bytes = PlanSettings { move_bytes_max: 35 << 20, ..Default::default() };
    let plan = plan(&observed, None, &bytes);
    assert_eq!((plan.moves, plan.move_bytes), (3, 30 << 20));
}

#[test]
fn what_is_resident_is_no_move() {
    let mut observed = observed(20, 4, 20);
    for (at, worker) in observed.workers.iter_mut().enumerate() {
        worker.resident = (0..20).filter(|n| n % 4 == at as u64).map(digest).collect();
    }
    let settings = PlanSettings { moves_max: 0, ..Default::default() };
    let plan = plan(&observed, None, &settings);
    assert_eq!((plan.moves, plan.adapters.len()), (0, 20));
    for Placed(adapter, on) in &plan.adapters {
        let holds = |at: &u16| observed.workers[usize::from(*at)].resident.contains(adapter);
        assert!(on.iter().all(holds), "{adapter} on {on:?}");
    }
}

#[test]
fn an_only_copy_is_given_its_place_where_its_bytes_are_or_none() {
    let mut observed = observed(2, 2, 1);
    // Both are on the first worker, which has room for one.
    observed.workers[0].resident = vec![digest(0), digest(1)];
    observed.adapters.iter_mut().for_each(|adapter| adapter.work_ms_per_s = 1.0);
    let settings = PlanSettings { fill: 1.0, copy_load_max: 1.0, ..free_moves() };
    let bound = plan(&observed, None, &settings);
    assert_eq!(copies(&bound), [(digest(0), "w-000")].into());
    assert_eq!((bound.moves, bound.deferred), (0, 1));
    observed.tenants.insert(tenant("harbour"), Tenant { floor: 2, ceiling: None });
    let promised = plan(&observed, None, &settings);
    assert_eq!(copies(&promised), [(digest(0), "w-000"), (digest(1), "w-001")].into());
}

#[test]
fn what_is_there_takes_the_place_of_what_is_asked_for_less_and_what_is_not_only_when_it_is_asked_for_much_more() {
    let mut observed = observed(2, 1, 1);
    observed.workers[0].resident = vec![digest(0)];
    let settings = PlanSettings { fill: 1.0, copy_load_max: 1.0, ..free_moves() };
    let before = plan(&observed, None, &settings);
    assert_eq!(count(&before, 0), 1);
    let placed = |resident: Vec<u64>, requests_per_s: f64| {
        let mut later = observed.clone();
        later.workers[0].resident = resident.into_iter().map(digest).collect();
        later.adapters[1] = adapter(1, requests_per_s);
        count(&again(&later, &before, &settings), 1) == 1
    };
    // The other one is asked for 20 times a second.
    assert!(placed(vec![0, 1], 21.0) && !placed(vec![0, 1], 19.0));
    assert!(placed(vec![0], 31.0) && !placed(vec![0], 29.0));
}

#[test]
fn an_adapter_goes_by_its_own_share_and_by_the_hours_of_its_tenant() {
    let mut observed = observed(0, 1, 10);
    let of = |n: u64, name: &str, hours: f64| Adapter {
        tenant: tenant(name),
        recent_requests_per_s: hours * 2.0,
        ..adapter(n, 2.0)
    };
    // Ten of each, in no order of their digests.
    observed.adapters = (0..20).map(|n| if n % 2 == 0 { of(n, "day", 2.0) } else { of(n, "night", 0.2) }).collect();
    let made = plan(&observed, None, &PlanSettings { fill: 1.0, copy_load_max: 1.0, ..free_moves() });
    assert!((0..20).all(|n| count(&made, n) == usize::from(n % 2 == 0)), "{:?}", made.adapters);
}

#[test]
fn pins_and_floors_hold_against_any_demand_and_ceilings_bound_it() {
    let mut observed = observed(1000, 4, 10);
    observed.adapters[998] = Adapter { pinned_copies: 3, ..adapter(998, 0.0) };
    for n in 990..995 {
        observed.adapters[n].tenant = tenant("quiet");
    }
    observed.tenants.insert(tenant("quiet"), Tenant { floor: 3, ceiling: None });
    let with_floor = plan(&observed, None, &free_moves());
    assert_eq!(count(&with_floor, 998), 3);
    let quiet: Vec<usize> = (990..995).map(|n| count(&with_floor, n)).collect();
    assert_eq!(quiet, [1, 1, 1, 0, 0], "the three most asked for");

    observed.tenants.insert(tenant("harbour"), Tenant { floor: 0, ceiling: Some(5) });
    let with_ceiling = plan(&observed, None, &free_moves());
    let harbour = copies(&with_ceiling).iter().filter(|copy| !(990..995).any(|n| copy.0 == digest(n))).count();
    assert_eq!(harbour, 5, "three of them pinned");
    assert_eq!(count(&with_ceiling, 998), 3);
}

#[test]
fn a_worker_of_twice_the_speed_gets_twice_the_load() {
    let mut observed = observed(400, 4, 100);
    observed.workers[2].speed = 2.0;
    let plan = plan(&observed, None, &free_moves());
    let rates: HashMap<Digest, f64> = observed.adapters.iter().map(|one| (one.digest, one.requests_per_s)).collect();
    let mut load = [0.0; 4];
    for Placed(adapter, on) in &plan.adapters {
        on.iter().for_each(|at| load[usize::from(*at)] += rates[adapter] / on.len() as f64);
    }
    assert_eq!(plan.workers[2], Host("w-002".to_owned(), 200));
    assert!((load[2] / load[0] - 2.0).abs() < 0.25, "{load:?}");
}

#[test]
fn nobody_and_nothing_are_planned_for() {
    assert_eq!(plan(&Observed::default(), None, &PlanSettings::default()).adapters, []);
    assert_eq!(plan(&observed(10, 0, 0), None, &PlanSettings::default()).adapters, []);
    assert_eq!(plan(&observed(10, 3, 0), None, &PlanSettings::default()).adapters, []);
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..100.0f64, Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(1e300)]
}

prop_compose! {
    fn any_adapter()(n in 0u64..40, requests_per_s in any_number(), recent in any_number(), work_ms_per_s in any_number(), rank in any::<u32>(),
        bytes in prop_oneof![0u64..1000, Just(u64::MAX)], pinned_copies in prop_oneof![0u32..4, Just(u32::MAX)],
        owner in 0..3usize) -> Adapter {
        let tenant = tenant(["a", "b", "c"][owner]);
        let (digest, recent_requests_per_s) = (digest(n), recent);
        Adapter { digest, tenant, rank, bytes, requests_per_s, recent_requests_per_s, work_ms_per_s, pinned_copies }
    }
}

prop_compose! {
    fn any_worker()(n in 0usize..12, slots in 0u32..8, slot_bytes in 0u64..4000, speed in any_number(),
        resident in prop::collection::vec(0u64..40, 0..6)) -> Worker {
        Worker { name: format!("w-{n}"), slots, slot_bytes, speed, resident: resident.into_iter().map(digest).collect() }
    }
}

proptest! {
    /// Two plans in a row over unrelated observations, whatever they say.
    #[test]
    fn no_plan_breaks_a_budget_or_a_bound(
        first in (prop::collection::vec(any_adapter(), 0..60), prop::collection::vec(any_worker(), 0..10)),
        second in (prop::collection::vec(any_adapter(), 0..60), prop::collection::vec(any_worker(), 0..10)),
        moves_max in 0usize..20, fill in any_number(), keep_factor in any_number(), ceiling in 0u32..5,
    ) {
        let settings = PlanSettings { moves_max, fill, keep_factor, ..Default::default() };
        let tenants: BTreeMap<_, _> = [(tenant("a"), Tenant { floor: 2, ceiling: Some(ceiling) })].into();
        let mut before: Option<Plan> = None;
        for (adapters, workers) in [first, second] {
            let observed = Observed { adapters, workers, tenants: tenants.clone() };
            let previous = before.as_ref().map(|plan| (plan.workers.as_slice(), plan.adapters.as_slice()));
            let made = plan(&observed, previous, &settings);
            prop_assert_eq!(&made, &plan(&observed, previous, &settings), "deterministic");
            prop_assert!(made.moves <= moves_max);
            prop_assert!(made.balance.is_finite());
            let document = weft_placement::Document {
                epoch: weft_placement::Epoch::first_of(1).unwrap(),
                holder: "h".to_owned(),
                workers: made.workers.clone(),
                adapters: made.adapters.clone(),
            };
            prop_assert!(document.encode().is_ok(), "{:?}", document.encode());
            let mut used: HashMap<u16, (u32, u128)> = HashMap::new();
            for Placed(adapter, on) in &made.adapters {
                // Of several with one digest, the plan takes one; the budget must hold for the least.
                let bytes = observed.adapters.iter().filter(|one| one.digest == *adapter).map(|one| one.bytes).min();
                for at in on {
                    let (slots, sum) = used.entry(*at).or_default();
                    *slots += 1;
                    *sum += u128::from(bytes.unwrap());
                }
            }
            for (at, (slots, bytes)) in used {
                let name = &made.workers[usize::from(at)].0;
                let worker = observed.workers.iter().find(|worker| worker.name == *name).unwrap();
                prop_assert!(slots <= worker.slots && bytes <= u128::from(worker.slot_bytes), "{name}");
            }
            before = Some(made);
        }
    }
}

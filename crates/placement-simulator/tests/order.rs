//! In what ours is better than hashing and than least-loaded. Where it is not: `docs/placement.md`.

use weft_placement_simulator::{Outcome, Policy, Scenario, Shape, mean, simulate};

/// The tables in `docs/placement.md` have more, and others.
const SEEDS: u64 = 1;

type Measure = (&'static str, fn(&Outcome) -> f64);
const COLD_LOADS: Measure = ("cold loads", |outcome| outcome.cold_loads as f64);
const COLD_REQUESTS: Measure = ("cold requests", |outcome| outcome.cold_requests as f64);
const P99: Measure = ("p99 TTFT", |outcome| outcome.ttft_p99_ms);
const BALANCE: Measure = ("balance", |outcome| outcome.balance);
const ALL: &[Measure] = &[COLD_LOADS, COLD_REQUESTS, P99, BALANCE];

/// An adapter alone is more than a worker can take: what plain hashing cannot carry.
const STEEP: u32 = 0;
/// The most popular adapter is a sixth of a worker's work.
const FLAT: u32 = 10;

fn outcomes(scenario: Scenario, policy: Policy, popularity_offset: u32) -> Vec<Outcome> {
    let shape = Shape { popularity_offset, ..Shape::default() };
    (1..=SEEDS).map(|seed| simulate(scenario, policy, &shape, seed)).collect()
}

fn assert_better(scenario: Scenario, popularity_offset: u32, hashing: &[Measure], least_loaded: &[Measure]) {
    let ours = outcomes(scenario, Policy::Placement, popularity_offset);
    for (policy, measures) in [(Policy::Hashing, hashing), (Policy::LeastLoaded, least_loaded)] {
        let theirs = outcomes(scenario, policy, popularity_offset);
        for (name, of) in measures {
            let [ours, theirs] = [&ours, &theirs].map(|all| mean(&all.iter().map(of).collect::<Vec<_>>()));
            assert!(ours < theirs, "{}, {name}: {ours} is not below {theirs} of {}", scenario.name(), policy.name());
        }
        // All of them answered the same requests.
        let counts = |all: &[Outcome]| all.iter().map(|outcome| outcome.requests).collect::<Vec<_>>();
        assert_eq!(counts(&ours), counts(&theirs));
    }
}

#[test]
fn power_law() {
    assert_better(Scenario::PowerLaw, FLAT, ALL, ALL);
    assert_better(Scenario::PowerLaw, STEEP, &[COLD_REQUESTS, P99, BALANCE], ALL);
}

#[test]
fn diurnal() {
    assert_better(Scenario::Diurnal, FLAT, &[COLD_LOADS, COLD_REQUESTS, BALANCE], &[COLD_LOADS, COLD_REQUESTS, P99]);
    assert_better(Scenario::Diurnal, STEEP, ALL, &[COLD_LOADS, COLD_REQUESTS, P99]);
}

#[test]
fn flash_crowd() {
    assert_better(Scenario::FlashCrowd, FLAT, ALL, &[COLD_LOADS, COLD_REQUESTS, P99]);
    assert_better(Scenario::FlashCrowd, STEEP, ALL, &[COLD_LOADS, COLD_REQUESTS, P99]);
}

#[test]
fn tenant_scan() {
    assert_better(Scenario::TenantScan, FLAT, ALL, ALL);
    assert_better(Scenario::TenantScan, STEEP, &[COLD_REQUESTS, P99, BALANCE], ALL);
}

#[test]
fn node_loss() {
    assert_better(Scenario::NodeLoss, FLAT, ALL, ALL);
    assert_better(Scenario::NodeLoss, STEEP, &[COLD_REQUESTS, P99, BALANCE], ALL);
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let shape = Shape { seconds: 90, warm_up_seconds: 30, adapters: 500, ..Shape::default() };
    for policy in Policy::ALL {
        let run = |seed| format!("{:?}", simulate(Scenario::NodeLoss, policy, &shape, seed));
        assert_eq!(run(1), run(1), "{}", policy.name());
        assert_ne!(run(1), run(2), "{}", policy.name());
    }
}

//! One tenant cycles 200 cold adapters as fast as it can; the others get what a fair split gives them, within a quarter.

mod sim;

use sim::{Asks, Got, Machine, Sim, When, percentile};
use weft_batching::{Fairness, Limits, Pace};

const CALM: usize = 7;
const SECOND: f64 = 1e6;

fn limits() -> Limits {
    Limits { step_tokens_max: 256, running_max: 16, queue_max: 4096 }
}

fn calm(number: usize, when: When) -> Asks {
    Asks::new(format!("calm-{number}"), when)
}

/// What the calm tenants got beside this other one, over five minutes after one to warm up; and all service.
fn beside(other: Asks, calm_when: When, fairness: Fairness) -> (Vec<Got>, Got) {
    let mut sim = Sim::new(Machine::default(), limits(), 1 << 16, fairness, Pace::default());
    let name = other.tenant.clone();
    sim.add(other);
    (0..CALM).for_each(|number| sim.add(calm(number, calm_when)));
    sim.run_until(60.0 * SECOND);
    sim.measure_from_now();
    sim.run_until(360.0 * SECOND);
    ((0..CALM).map(|number| sim.got(&format!("calm-{number}"))).collect(), sim.got(&name))
}

fn cycler() -> Asks {
    Asks { adapters: 200, ..Asks::new("other", When::Always(64)) }
}

fn first_token_p99(calm: &[Got]) -> f64 {
    let all: Vec<f64> = calm.iter().flat_map(|got| got.first_token.iter().copied()).collect();
    percentile(&all, 0.99)
}

#[test]
fn busy_tenants_keep_their_share_and_their_first_tokens_beside_a_cycler_of_200_cold_adapters() {
    let busy = When::Always(6);
    // A fair split: everybody asks alike, with one warm adapter each.
    let (fair, fair_other) = beside(Asks::new("other", busy), busy, Fairness::default());
    let (calm, other) = beside(cycler(), busy, Fairness::default());
    assert!(other.loads > 200, "the other one really cycles: {}", other.loads);
    let fair_share = fair.iter().map(|got| got.service).sum::<f64>() / CALM as f64;
    assert!((fair_other.service / fair_share - 1.0).abs() < 0.05, "the split that is compared with is fair");
    for (number, got) in calm.iter().enumerate() {
        let part = got.service / fair_share;
        println!("calm-{number}: {part:.3} of a fair share, {} loads", got.loads);
        assert!(part > 0.75, "calm-{number} got {part} of a fair share");
    }
    println!("other: {:.3} of a fair share, {} loads", other.service / fair_share, other.loads);
    assert!(other.service < 1.25 * fair_share);
    let ratio = first_token_p99(&calm) / first_token_p99(&fair);
    println!("p99 of first tokens: {ratio:.3} of a fair split's");
    assert!(ratio < 1.25, "{ratio}");
}

#[test]
fn tenants_that_ask_now_and_then_wait_no_longer_beside_the_cycler_than_beside_a_greedy_tenant_with_one_adapter() {
    // Together they want about half of the machine; the other one takes what is left.
    let now_and_then = When::Every(1.6 * SECOND);
    let greedy = Asks::new("other", When::Always(64));
    let (fair, _) = beside(greedy, now_and_then, Fairness::default());
    let (calm, other) = beside(cycler(), now_and_then, Fairness::default());
    assert!(other.loads > 200);
    let (service, fair_service): (f64, f64) =
        (calm.iter().map(|got| got.service).sum(), fair.iter().map(|got| got.service).sum());
    let ratio = first_token_p99(&calm) / first_token_p99(&fair);
    let loads: usize = calm.iter().map(|got| got.loads).sum();
    println!(
        "service {:.3}, p99 of first tokens {ratio:.3}, {loads} loads, other {} loads",
        service / fair_service,
        other.loads
    );
    assert!(service > 0.95 * fair_service, "they get all that they ask for");
    assert!(ratio < 1.25, "{ratio}");
}

#[test]
fn without_a_bound_on_loads_ahead_the_cycler_would_do_harm() {
    let now_and_then = When::Every(1.6 * SECOND);
    let boundless = Fairness { loads_ahead_max: usize::MAX, ..Fairness::default() };
    let (bounded, _) = beside(cycler(), now_and_then, Fairness::default());
    let (harmed, _) = beside(cycler(), now_and_then, boundless);
    let ratio = first_token_p99(&harmed) / first_token_p99(&bounded);
    println!("p99 of first tokens: {ratio:.3} of that with the bound");
    assert!(ratio > 1.25, "{ratio}: the bound is of no use");
}

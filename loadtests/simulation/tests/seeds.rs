//! A hundred seeds keep every rule, and enough happens in them; and a seed is reproduced.

use std::num::NonZero;
use std::path::Path;
use weft_simulation::suite;

const SEEDS: u64 = 100;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_weft-simulation"))
}

#[test]
fn a_hundred_seeds_keep_every_rule_and_enough_happens_in_them() {
    let jobs = std::thread::available_parallelism().map_or(1, NonZero::get);
    let sum = suite::run(program(), 1, SEEDS, jobs, |_, _| {});
    let failures: Vec<String> = sum.failures.iter().map(|(seed, problem)| format!("seed {seed} {problem}")).collect();
    assert!(failures.is_empty(), "{}\nagain with: make simulate SEED=N", failures.join("\n"));
    assert_eq!(sum.seeds, SEEDS);
    assert_eq!(sum.missing(), [""; 0], "counts: {:#?}", sum.counts);
}

#[test]
fn a_seed_takes_the_same_course_in_every_run_and_another_one_does_not() {
    let course = |seed| {
        let outcome = suite::one(program(), seed).unwrap();
        (outcome["hash"].clone(), outcome["lasted_ms"].clone(), outcome["counts"].clone())
    };
    for seed in [7, 1234] {
        assert_eq!(course(seed), course(seed), "seed {seed}");
    }
    assert_ne!(course(7).0, course(8).0);
}

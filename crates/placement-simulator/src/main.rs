//! `weft-placement-simulator`: every scenario with every policy and many seeds, as a table.

use clap::Parser;
use weft_placement_simulator::{Outcome, Policy, Scenario, Shape, mean, routing_cost, simulate};

/// Placement against hashing and least-loaded, in simulated time.
#[derive(Parser)]
struct Args {
    /// Seeds of each scenario.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first of them; the others follow.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Workers.
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// Adapters.
    #[arg(long, default_value_t = 4000)]
    adapters: usize,
    /// The n-th adapter is asked for 1 / (n + offset) as often as the first would be; 0: Zipf with exponent 1.
    #[arg(long, default_value_t = 0)]
    popularity_offset: u32,
    /// What routing one request costs on this machine, by the size of the mesh, instead.
    #[arg(long)]
    routing_cost: bool,
}

fn main() {
    let args = Args::parse();
    if args.routing_cost {
        return print_costs();
    }
    let shape = Shape {
        workers: args.workers.max(2),
        adapters: args.adapters.max(1),
        popularity_offset: args.popularity_offset,
        ..Shape::default()
    };
    println!(
        "| scenario | policy | cold loads | cold requests | p50 TTFT ms | p99 TTFT ms | max/mean load | spilled |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for scenario in Scenario::ALL {
        for policy in Policy::ALL {
            let seeds = (0..args.seeds).map(|nth| args.first_seed.saturating_add(nth));
            let outcomes: Vec<Outcome> = seeds.map(|seed| simulate(scenario, policy, &shape, seed)).collect();
            let of = |value: fn(&Outcome) -> f64| mean(&outcomes.iter().map(value).collect::<Vec<_>>());
            println!(
                "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.3} | {:.1} % |",
                scenario.name(),
                policy.name(),
                of(|outcome| outcome.cold_loads as f64),
                of(|outcome| outcome.cold_requests as f64),
                of(|outcome| outcome.ttft_p50_ms),
                of(|outcome| outcome.ttft_p99_ms),
                of(|outcome| outcome.balance),
                of(|outcome| outcome.spilled) * 100.0,
            );
        }
    }
}

fn print_costs() {
    println!("| workers | adapters | workers looked at | ns |");
    println!("|---|---|---|---|");
    for cost in routing_cost(&[(4, 10), (16, 1_000), (64, 10_000)]) {
        println!("| {} | {} | {:.2} | {:.0} |", cost.workers, cost.adapters, cost.looked_at, cost.ns);
    }
}

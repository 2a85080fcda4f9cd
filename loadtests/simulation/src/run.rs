//! One simulation, from its seed to what came of it.

use crate::checks::Rule;
use crate::faults::{Faults, LATENCY_MAX, LATENCY_MIN};
use crate::machine;
use crate::record::{Record, Violation};
use crate::stage::Stage;
use crate::world::{GATEWAYS, REGISTRIES, TENANTS, WORKERS, World};
use crate::{s3, services, tenants, worker};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use turmoil::{Builder, Sim};

/// What one step of every host covers.
const TICK: Duration = Duration::from_millis(10);
/// Whatever has not ended by then, in simulated time, hangs.
const LIMIT: Duration = Duration::from_secs(900);

/// What came of one simulation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Of all its events: the same for the same seed.
    pub hash: String,
    /// How long it lasted, in its own time.
    pub lasted: Duration,
    /// How often what happened.
    pub counts: BTreeMap<String, u64>,
    /// Rules that did not hold; it ends with the first one.
    pub violations: Vec<Violation>,
    /// What happened, as far as it is kept.
    pub events: Vec<String>,
}

/// Runs one. Once in a process: what counts in statics is not reset, and a second run would take another course.
#[must_use]
pub fn simulate(seed: u64) -> Outcome {
    machine::begin(seed);
    let world = Arc::new(World::new(seed));
    tell_panics(&world.record);
    let mut sim = Builder::new()
        .rng_seed(seed)
        .epoch(UNIX_EPOCH + machine::EPOCH)
        .tick_duration(TICK)
        .simulation_duration(LIMIT * 2)
        .min_message_latency(LATENCY_MIN)
        .max_message_latency(LATENCY_MAX)
        // Whoever listens has room for as many connections as a fault can pile up.
        .tcp_capacity(4096)
        .udp_capacity(4096)
        .enable_random_order()
        .build();
    start(&mut sim, &world);
    let mut faults = Faults::new(seed);
    while world.stage() != Stage::Over && !world.record.is_violated() {
        machine::set_elapsed(sim.elapsed());
        faults.step(&mut sim, &world);
        if let Err(error) = sim.step() {
            world.record.violated(Rule::NoPanic, format!("a host failed: {error}"));
        }
        if sim.elapsed() > LIMIT {
            world.record.violated(Rule::NoHang, format!("the simulation did not end within {LIMIT:?}"));
        }
    }
    let record = &world.record;
    record.add("retries at gateways", world.counted("gateway_retries_total", ""));
    record.add("answers that went on elsewhere", world.counted("gateway_continuations_total", "continued"));
    let outcome = Outcome {
        seed,
        hash: record.hash(),
        lasted: sim.elapsed(),
        counts: record.counts().into_iter().map(|(what, many)| (what.to_owned(), many)).collect(),
        violations: record.violations(),
        events: record.events(),
    };
    // Whatever still runs would be dropped host by host, outside of the simulated network. The process is about to end.
    std::mem::forget(sim);
    outcome
}

/// A panic anywhere is a bug, also where something catches it.
fn tell_panics(record: &Arc<Record>) {
    let record = Arc::clone(record);
    std::panic::set_hook(Box::new(move |panic| record.violated(Rule::NoPanic, panic.to_string())));
}

fn start(sim: &mut Sim<'_>, world: &Arc<World>) {
    let s3 = Arc::clone(world);
    sim.host(s3::HOST, move || {
        let serving = s3::serve(Arc::clone(&s3.objects), Arc::clone(&s3.moods), Arc::clone(&s3.record));
        async { Ok(serving.await?) }
    });
    for name in REGISTRIES {
        let world = Arc::clone(world);
        sim.host(name, move || {
            let running = services::registry(Arc::clone(&world), name);
            async { Ok(running.await?) }
        });
    }
    for (number, name) in WORKERS.into_iter().enumerate() {
        let world = Arc::clone(world);
        sim.host(name, move || {
            let running = worker::run(Arc::clone(&world), name, Arc::clone(&world.workers[number]));
            async { Ok(running.await?) }
        });
    }
    for (number, name) in GATEWAYS.into_iter().enumerate() {
        let world = Arc::clone(world);
        sim.host(name, move || {
            let running = services::gateway(Arc::clone(&world), number);
            async { Ok(running.await?) }
        });
    }
    let running = tenants::run(Arc::clone(world));
    sim.client(TENANTS, async { Ok(running.await?) });
}

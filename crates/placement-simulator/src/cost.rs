//! What routing one request costs, by the size of the mesh.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::Cell;
use std::time::Instant;
use weft_placement::{
    Availability, Bandwidth, Document, Epoch, Host, Map, Place, Placed, Request, RouteSettings, Tier, View, WorkerLoad,
    choose,
};
use weft_types::Digest;

/// Requests of a round.
const REQUESTS: usize = 100_000;
const ROUNDS: usize = 15;

/// Cost of one request.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Workers of the mesh.
    pub workers: usize,
    /// Adapters with a place.
    pub adapters: usize,
    /// Workers that were looked at, in the mean.
    pub looked_at: f64,
    /// Nanoseconds of the fastest round.
    pub ns: f64,
}

struct Loads {
    loads: Vec<WorkerLoad>,
    reads: Cell<u64>,
}

impl View for Loads {
    fn load(&self, worker: u16) -> Option<WorkerLoad> {
        self.reads.set(self.reads.get() + 1);
        self.loads.get(usize::from(worker)).copied()
    }

    fn place(&self, _worker: u16) -> Place {
        Place { tier: Tier::Slot, prefix_hit_tokens: 0 }
    }
}

struct Mesh {
    map: Map,
    view: Loads,
    asked: Vec<Digest>,
    ns: f64,
}

fn mesh(workers: usize, adapters: usize) -> Mesh {
    let mut random = StdRng::seed_from_u64(1);
    let hosts: Vec<Host> = (0..workers).map(|at| Host(format!("worker-{at:03}"), 100)).collect();
    let digests: Vec<Digest> = (0..adapters).map(|number| Digest::of(&number.to_le_bytes())).collect();
    let on = |at: usize| vec![(at % workers) as u16, ((at + 1) % workers) as u16];
    let mut placed: Vec<Placed> = digests.iter().enumerate().map(|(at, digest)| Placed(*digest, on(at))).collect();
    placed.sort_by_key(|placed| placed.0);
    let names = hosts.iter().map(|host| host.0.clone()).collect();
    let epoch = Epoch::first_of(1).expect("1 is a term");
    let document = Document { epoch, holder: "a".to_owned(), workers: hosts, adapters: placed };
    let bandwidth = Bandwidth { memory: 10e6, disk: 1e6, remote: 125e3 };
    let load = |random: &mut StdRng| WorkerLoad {
        availability: Availability::Serving,
        queue_ms: random.random_range(0.0..300.0),
        loading_ms: 0.0,
        prefill_tokens_per_ms: 16.0,
        bandwidth,
        recent: random.random(),
    };
    let loads = (0..workers).map(|_| load(&mut random)).collect();
    let asked = (0..REQUESTS).map(|_| digests[random.random_range(0..adapters)]).collect();
    Mesh { map: Map::new(Some(&document), names), view: Loads { loads, reads: Cell::new(0) }, asked, ns: f64::INFINITY }
}

fn round(mesh: &mut Mesh) {
    let settings = RouteSettings::default();
    let began = Instant::now();
    let mut sum = 0u64;
    for (at, adapter) in mesh.asked.iter().enumerate() {
        let request = Request { prompt_tokens: 400, adapter_bytes: 10 << 20, avoid: &[], familiar: None };
        let draw = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let choice = choose(&mesh.view, &request, &mesh.map.sets(adapter), draw, &settings);
        sum += choice.map_or(0, |choice| u64::from(choice.worker));
    }
    std::hint::black_box(sum);
    mesh.ns = mesh.ns.min(began.elapsed().as_nanos() as f64 / REQUESTS as f64);
}

/// Measures meshes of these (workers, adapters), round by round in turn. Reads the machine's clock: a benchmark, no test.
#[must_use]
pub fn routing_cost(sizes: &[(usize, usize)]) -> Vec<Cost> {
    let mut meshes: Vec<Mesh> = sizes.iter().map(|(workers, adapters)| mesh(*workers, *adapters)).collect();
    for _ in 0..ROUNDS {
        meshes.iter_mut().for_each(round);
    }
    let cost = |(mesh, (workers, adapters)): (Mesh, &(usize, usize))| Cost {
        workers: *workers,
        adapters: *adapters,
        looked_at: mesh.view.reads.get() as f64 / (REQUESTS * ROUNDS) as f64,
        ns: mesh.ns,
    };
    meshes.into_iter().zip(sizes).map(cost).collect()
}

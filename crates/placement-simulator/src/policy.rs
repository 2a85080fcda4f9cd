//! Who gets a request: two plain ways, and ours.

use crate::arrivals::Arrival;
use crate::gateway::Seen;
use crate::ring::Ring;
use crate::shape::{Micros, Shape};
use crate::worker::Worker;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, HashMap};
use weft_placement::{
    Adapter, Demand, DemandSettings, Document, Epoch, Map, Observed, PlanSettings, Rates, Request, RouteSettings,
    choose, plan,
};
use weft_types::{Digest, TenantName};

/// A way to place and route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every adapter has one worker, by consistent hashing.
    Hashing,
    /// The worker with the fewest requests, whatever the adapter; equal ones by chance.
    LeastLoaded,
    /// `crates/placement`.
    Placement,
}

impl Policy {
    /// All of them, ours last.
    pub const ALL: [Self; 3] = [Self::Hashing, Self::LeastLoaded, Self::Placement];

    /// For tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hashing => "hashing",
            Self::LeastLoaded => "least-loaded",
            Self::Placement => "placement",
        }
    }
}

pub(crate) struct Router {
    policy: Policy,
    ring: Ring,
    map: Map,
    route: RouteSettings,
    digests: Vec<Digest>,
}

impl Router {
    pub(crate) fn new(policy: Policy, shape: &Shape, digests: Vec<Digest>) -> Self {
        let map = Map::new(None, names(shape));
        Self { policy, ring: Ring::new(shape.workers), map, route: RouteSettings::default(), digests }
    }

    pub(crate) fn take(&mut self, document: &Document, shape: &Shape) {
        self.map = Map::new(Some(document), names(shape));
    }

    /// The worker, and whether it is outside the replica set.
    pub(crate) fn choose(&self, seen: &Seen<'_>, arrival: &Arrival, random: &mut StdRng) -> (usize, bool) {
        match self.policy {
            Policy::Hashing => {
                let found = self.ring.find(arrival.adapter, |worker| seen.is_there[worker]);
                (found.expect("a worker is there"), false)
            }
            Policy::LeastLoaded => {
                let there = (0..seen.is_there.len()).filter(|worker| seen.is_there[*worker]);
                let found = there.min_by_key(|worker| (seen.active(*worker), random.random::<u32>()));
                (found.expect("a worker is there"), false)
            }
            Policy::Placement => {
                let request = Request {
                    prompt_tokens: arrival.prompt_tokens,
                    adapter_bytes: seen.shape.bytes(arrival.adapter),
                    avoid: &[],
                    familiar: None,
                };
                let sets = self.map.sets(&self.digests[arrival.adapter as usize]);
                let choice = choose(seen, &request, &sets, random.random(), &self.route).expect("a worker is there");
                (usize::from(choice.worker), choice.is_spill)
            }
        }
    }
}

fn names(shape: &Shape) -> Vec<String> {
    (0..shape.workers).map(name).collect()
}

fn name(worker: usize) -> String {
    format!("worker-{worker:03}")
}

/// The authority: demand in, documents out.
pub(crate) struct Authority {
    demand: Demand,
    settings: PlanSettings,
    document: Document,
    digests: Vec<Digest>,
    numbers: HashMap<Digest, u32>,
    /// Of each adapter.
    tenants: Vec<TenantName>,
}

impl Authority {
    pub(crate) fn new(digests: Vec<Digest>, tenants: &[usize]) -> Self {
        let numbers = digests.iter().enumerate().map(|(number, digest)| (*digest, number as u32)).collect();
        let epoch = Epoch::first_of(1).expect("1 is a term");
        let document = Document { epoch, holder: "authority".to_owned(), workers: Vec::new(), adapters: Vec::new() };
        Self {
            demand: Demand::new(DemandSettings::default()),
            settings: PlanSettings::default(),
            document,
            digests,
            numbers,
            tenants: tenants.iter().map(|n| format!("tenant-{n}").parse().expect("a tenant's name")).collect(),
        }
    }

    /// A request was routed.
    pub(crate) fn asked(&mut self, adapter: u32, work_ms: f64, now: Micros) {
        self.demand.add(self.digests[adapter as usize], 1.0, work_ms, now / 1000);
    }

    /// Makes the next epoch; returns its moves.
    pub(crate) fn next(&mut self, shape: &Shape, workers: &[Worker], is_there: &[bool], now: Micros) -> usize {
        let adapters = self.demand.iter(now / 1000).map(|(digest, rates)| {
            let Rates { requests_per_s, recent_requests_per_s, work_ms_per_s } = rates;
            let number = self.numbers[&digest];
            Adapter {
                digest,
                tenant: self.tenants[number as usize].clone(),
                rank: 0,
                bytes: shape.bytes(number),
                requests_per_s,
                recent_requests_per_s,
                work_ms_per_s,
                pinned_copies: 0,
            }
        });
        let there =
            workers.iter().enumerate().filter(|(at, _)| is_there[*at]).map(|(at, worker)| weft_placement::Worker {
                name: name(at),
                slots: (shape.slots + shape.memory) as u32,
                slot_bytes: u64::MAX >> 20,
                speed: 1.0,
                resident: (0..worker.tiers.len())
                    .filter(|number| worker.tiers[*number] < 2)
                    .map(|number| self.digests[number])
                    .collect(),
            });
        let observed = Observed { adapters: adapters.collect(), workers: there.collect(), tenants: BTreeMap::new() };
        let made = plan(&observed, Some((&self.document.workers, &self.document.adapters)), &self.settings);
        self.document = Document {
            epoch: self.document.epoch.next().expect("a run has fewer epochs than a term"),
            holder: self.document.holder.clone(),
            workers: made.workers,
            adapters: made.adapters,
        };
        made.moves
    }

    pub(crate) fn document(&self) -> &Document {
        &self.document
    }

    /// What the last epoch wants on a worker, and whether other workers are to have it as well.
    pub(crate) fn desired(&self, worker: usize) -> HashMap<u32, bool> {
        let name = name(worker);
        let Some(at) = self.document.workers.iter().position(|host| host.0 == name) else { return HashMap::new() };
        let there = self.document.adapters.iter().filter(|placed| placed.1.contains(&(at as u16)));
        there.map(|placed| (self.numbers[&placed.0], placed.1.len() > 1)).collect()
    }
}

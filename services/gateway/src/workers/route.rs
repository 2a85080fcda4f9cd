//! Which worker a request goes to: what is known of the workers, said in the words of `weft_placement`.
//!
//! Requests for one adapter meet at the workers that the last placement gives it; without one at its home and one more worker, whichever
//! gateway they come through (rendezvous hashing). Of a few of them the one with the smaller predicted time to first token is taken,
//! and few others are ever looked at (`docs/mesh.md`).

use crate::workers::worker::{Worker, WorkerId};
use crate::workers::{Hit, Load, LoadRates, Pace};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::time::Instant;
use weft_placement::{
    Availability, Bandwidth, Document, LOAD_BYTES_MORE, Map, Place, Request, RouteSettings, Sets, Tier, View,
    WorkerLoad, choose,
};
use weft_proto::mesh::v1::Tier as Heard;
use weft_types::Digest;

/// What adapters are taken to come at, in bytes a millisecond, from where a worker has measured nothing. From its own memory they come
/// by moving a pointer, which nobody measures.
const BANDWIDTH: Bandwidth = Bandwidth { memory: 5e6, disk: 2e5, remote: 5e4 };
/// Prompt tokens a second of a worker that has not said, where none has.
const PREFILL_UNKNOWN: f64 = 1000.0;
/// Steps that somebody is taken to go on for when KV memory is full.
const STEPS_TO_AN_END: f64 = 64.0;

/// What is asked, as far as routing goes by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) base: &'a Digest,
    pub(crate) adapter: Option<&'a Digest>,
    /// Of its canonical blob.
    pub(crate) adapter_bytes: u64,
    /// An estimate.
    pub(crate) prompt_tokens: u32,
    /// Workers that failed already.
    pub(crate) tried: &'a [WorkerId],
    /// Who likely has the beginning of the prompt, the most first.
    pub(crate) hits: &'a [Hit],
}

impl<'a> Asked<'a> {
    /// A request of the bare base that hardly costs anything.
    pub(crate) fn of_base(base: &'a Digest) -> Self {
        Self { base, adapter: None, adapter_bytes: 0, prompt_tokens: 1, tried: &[], hits: &[] }
    }
}

/// All workers, in the order in which they became known.
pub(crate) type Workers = Arc<Vec<Arc<Worker>>>;

/// The workers and where adapters belong among them. Made anew when workers come or go, and with each placement.
pub(crate) struct Places {
    pub(crate) known: Workers,
    pub(crate) placement: Option<Arc<Document>>,
    map: Map,
    /// Of the map: one for each address.
    workers: Vec<Arc<Worker>>,
    /// Where each is among them.
    index: HashMap<WorkerId, u16>,
}

impl Places {
    pub(crate) fn new(known: Vec<Arc<Worker>>, placement: Option<Arc<Document>>) -> Self {
        let (mut names, mut workers) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for worker in &known {
            let name = worker.placed_as();
            if seen.insert(name.clone()) {
                names.push(name);
                workers.push(Arc::clone(worker));
            }
        }
        let map = Map::new(placement.as_deref(), names);
        let index = workers.iter().enumerate().map(|(at, worker)| (worker.id, at as u16)).collect();
        Self { known: Arc::new(known), placement, map, workers, index }
    }

    /// A worker that may get requests, or none. `draw` is a random number. Cost: a few workers' views are read, however many there are.
    pub(crate) fn route(&self, asked: &Asked<'_>, now: Now<'_>, draw: u64) -> Option<&Arc<Worker>> {
        let sets = asked.adapter.map_or_else(|| self.map.base_sets(), |adapter| self.map.sets(adapter));
        let avoid: Vec<u16> = asked.tried.iter().filter_map(|id| self.index.get(id).copied()).collect();
        let familiar = asked.hits.iter().find_map(|hit| self.index.get(&hit.worker).copied());
        let adapter_bytes = asked.adapter_bytes.saturating_add(LOAD_BYTES_MORE);
        let request = Request { prompt_tokens: asked.prompt_tokens, adapter_bytes, avoid: &avoid, familiar };
        let view = Seen { places: self, asked, now, home: home(&sets) };
        let choice = choose(&view, &request, &sets, draw, &RouteSettings::default()).ok()?;
        self.workers.get(usize::from(choice.worker))
    }

    /// When nobody may: whoever has this base and fewest of our requests.
    pub(crate) fn last_resort(&self, asked: &Asked<'_>) -> Option<&Arc<Worker>> {
        let is_left = |worker: &&Arc<Worker>| !asked.tried.contains(&worker.id) && has_base(worker, asked.base);
        self.workers.iter().filter(is_left).min_by_key(|worker| worker.in_flight())
    }
}

fn home(sets: &Sets<'_>) -> Option<u16> {
    sets.inside().first().copied()
}

fn has_base(worker: &Worker, base: &Digest) -> bool {
    worker.read(|view| view.base.as_ref().is_some_and(|known| known.digest == *base))
}

/// The time, how views age in it, and what is taken for granted in it.
#[derive(Clone, Copy)]
pub(crate) struct Now<'a> {
    pub(crate) at: Instant,
    pub(crate) pace: &'a Pace,
    /// Of workers that have not said, if others have.
    pub(crate) prefill_tokens_per_s: Option<f64>,
}

/// All of it, for one request.
struct Seen<'a> {
    places: &'a Places,
    asked: &'a Asked<'a>,
    now: Now<'a>,
    /// Where the adapter belongs first: its bytes are expected on that node.
    home: Option<u16>,
}

impl View for Seen<'_> {
    fn load(&self, worker: u16) -> Option<WorkerLoad> {
        let worker = self.places.workers.get(usize::from(worker))?;
        let is_broken = worker.circuit_is_open(self.now.at);
        worker.read(|view| {
            (view.base.as_ref()?.digest == *self.asked.base).then(|| {
                let availability = match () {
                    () if !view.is_up(self.now.at, self.now.pace) => Availability::Stale,
                    () if view.load.draining => Availability::Draining,
                    () if is_broken => Availability::Broken,
                    () => Availability::Serving,
                };
                worker_load(availability, &view.load, worker.in_flight(), self.asked, self.now)
            })
        })
    }

    fn place(&self, worker: u16) -> Place {
        let heard = self
            .asked
            .adapter
            .and_then(|adapter| self.places.workers.get(usize::from(worker))?.read(|view| view.adapters.tier(adapter)));
        let tier = match heard {
            _ if self.asked.adapter.is_none() => Tier::Slot,
            Some(Heard::Slot) => Tier::Slot,
            Some(Heard::Memory) => Tier::Memory,
            Some(Heard::Disk) => Tier::Disk,
            Some(Heard::None) | None if self.home == Some(worker) => Tier::Disk,
            Some(Heard::None) | None => Tier::Remote,
        };
        let id = self.places.workers.get(usize::from(worker)).map(|worker| worker.id);
        let hit = self.asked.hits.iter().find(|hit| Some(hit.worker) == id);
        Place { tier, prefix_hit_tokens: hit.map_or(0, |hit| hit.tokens) }
    }
}

/// What a worker said, and what we sent there since, as times.
fn worker_load(
    availability: Availability,
    load: &Load,
    in_flight: usize,
    asked: &Asked<'_>,
    now: Now<'_>,
) -> WorkerLoad {
    let step_ms = load.step.as_secs_f64() * 1e3;
    // One without prompts lately is taken to be like the others: if it is not, the next request shows it.
    let measured = Some(load.prefill_tokens_per_s).filter(|rate| *rate > 0.0);
    let prefill_tokens_per_ms = measured.or(now.prefill_tokens_per_s).unwrap_or(PREFILL_UNKNOWN) / 1e3;
    let unheard = in_flight.saturating_sub(load.requests());
    let waiting = load.queued_requests as usize + load.loading_requests as usize + unheard;
    // Those before it are taken to have prompts like this one.
    let prefills_ms = waiting as f64 * f64::from(asked.prompt_tokens) / prefill_tokens_per_ms;
    let bandwidth = bandwidth(&load.loads);
    let is_full = load.kv_blocks_max > 0 && load.kv_blocks_free == 0;
    // Where nobody is, no step has to end first, however long the last one took.
    let until_a_step_ms = if load.requests().max(in_flight) > 0 { step_ms } else { 0.0 };
    let until_an_end_ms = if is_full { STEPS_TO_AN_END * step_ms } else { 0.0 };
    WorkerLoad {
        availability,
        queue_ms: until_a_step_ms + prefills_ms + until_an_end_ms,
        loading_ms: f64::from(load.loading_requests) * asked.adapter_bytes as f64 / bandwidth.disk,
        prefill_tokens_per_ms,
        bandwidth,
        recent: load.requests().max(in_flight) as f64,
    }
}

/// From what a worker has measured of whole ways to a slot to what each part of the way adds.
fn bandwidth(measured: &LoadRates) -> Bandwidth {
    let ms_per_byte = |bytes_per_s: f64| (bytes_per_s > 0.0).then(|| 1e3 / bytes_per_s);
    let disk_ms = ms_per_byte(measured.disk).unwrap_or(1.0 / BANDWIDTH.disk);
    // From afar is never nearer than from the disk, whatever a few loads say.
    let beyond_ms = ms_per_byte(measured.remote).map(|ms| (ms - disk_ms).max(disk_ms / 8.0));
    Bandwidth {
        memory: BANDWIDTH.memory,
        disk: 1.0 / disk_ms,
        remote: beyond_ms.map_or(BANDWIDTH.remote, |ms| 1.0 / ms),
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

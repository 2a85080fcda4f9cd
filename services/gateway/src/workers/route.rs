//! Which worker a request goes to: what is known of the workers, said in the words of `weft_placement`.
//!
//! Requests for one adapter meet at its home and one more worker, whichever gateway they come through (rendezvous hashing); of the two
//! the one with the smaller predicted time to first token is taken, and few others are ever looked at (`docs/mesh.md`).

use crate::workers::worker::{Worker, WorkerId};
use crate::workers::{Load, Pace};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::time::Instant;
use weft_placement::{
    Availability, Bandwidth, Map, Place, Request, RouteSettings, Sets, Tier, View, WorkerLoad, choose,
};
use weft_proto::mesh::v1::Tier as Heard;
use weft_types::Digest;

/// What adapters are taken to come at, in bytes a millisecond; nobody measures it yet.
const BANDWIDTH: Bandwidth = Bandwidth { memory: 5e6, disk: 2e5, remote: 5e4 };
/// What a load costs besides its bytes, as so many bytes: finding them, opening, checking.
const LOAD_BYTES_MORE: u64 = 2 << 20;
/// Prompt tokens a millisecond of a worker that has not said.
const PREFILL_UNKNOWN: f64 = 1.0;
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
}

impl<'a> Asked<'a> {
    /// A request of the bare base that hardly costs anything.
    pub(crate) fn of_base(base: &'a Digest) -> Self {
        Self { base, adapter: None, adapter_bytes: 0, prompt_tokens: 1, tried: &[] }
    }
}

/// All workers, in the order in which they became known.
pub(crate) type Workers = Arc<Vec<Arc<Worker>>>;

/// The workers and where adapters belong among them. Made anew when workers come or go.
pub(crate) struct Places {
    pub(crate) known: Workers,
    map: Map,
    /// Of the map: one for each address.
    workers: Vec<Arc<Worker>>,
}

impl Places {
    pub(crate) fn new(known: Vec<Arc<Worker>>) -> Self {
        let mut names = HashSet::new();
        let workers: Vec<_> = known.iter().filter(|worker| names.insert(worker.address.as_str())).cloned().collect();
        let map = Map::new(None, workers.iter().map(|worker| worker.address.clone()).collect());
        Self { known: Arc::new(known), map, workers }
    }

    /// A worker that may get requests, or none. `draw` is a random number. Cost: a few workers' views are read, however many there are.
    pub(crate) fn route(&self, asked: &Asked<'_>, now: Now<'_>, draw: u64) -> Option<&Arc<Worker>> {
        let sets = asked.adapter.map_or_else(|| self.map.base_sets(), |adapter| self.map.sets(adapter));
        let tried = |(at, worker): (usize, &Arc<Worker>)| asked.tried.contains(&worker.id).then_some(at as u16);
        let avoid: Vec<u16> = match asked.tried {
            [] => Vec::new(),
            _ => self.workers.iter().enumerate().filter_map(tried).collect(),
        };
        let adapter_bytes = asked.adapter_bytes.saturating_add(LOAD_BYTES_MORE);
        let request = Request { prompt_tokens: asked.prompt_tokens, adapter_bytes, avoid: &avoid };
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

/// The time, and how views age in it.
#[derive(Clone, Copy)]
pub(crate) struct Now<'a> {
    pub(crate) at: Instant,
    pub(crate) pace: &'a Pace,
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
                worker_load(availability, &view.load, worker.in_flight(), self.asked)
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
        Place { tier, prefix_hit_tokens: 0 }
    }
}

/// What a worker said, and what we sent there since, as times.
fn worker_load(availability: Availability, load: &Load, in_flight: usize, asked: &Asked<'_>) -> WorkerLoad {
    let step_ms = load.step.as_secs_f64() * 1e3;
    let prefill_tokens_per_ms = match load.prefill_tokens_per_s / 1e3 {
        rate if rate > 0.0 => rate,
        _ => PREFILL_UNKNOWN,
    };
    let unheard = in_flight.saturating_sub(load.requests());
    let waiting = load.queued_requests as usize + load.loading_requests as usize + unheard;
    // Those before it are taken to have prompts like this one.
    let prefills_ms = waiting as f64 * f64::from(asked.prompt_tokens) / prefill_tokens_per_ms;
    let is_full = load.kv_blocks_max > 0 && load.kv_blocks_free == 0;
    let until_an_end_ms = if is_full { STEPS_TO_AN_END * step_ms } else { 0.0 };
    WorkerLoad {
        availability,
        queue_ms: step_ms + prefills_ms + until_an_end_ms,
        loading_ms: f64::from(load.loading_requests) * asked.adapter_bytes as f64 / BANDWIDTH.disk,
        prefill_tokens_per_ms,
        bandwidth: BANDWIDTH,
        recent: load.requests().max(in_flight) as f64,
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

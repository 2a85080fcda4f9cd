//! What was heard of workers and gateways, and what a plan is made of. Pure: times are arguments.

use super::records::Known;
use std::collections::{BTreeMap, HashMap, HashSet};
use weft_bus::residency::Follower;
use weft_placement::{
    Adapter, Demand, DemandSettings, Observed, Rates, Speeds, WORKER_NAME_BYTES_MAX, WORKERS_MAX, Worker,
};
use weft_proto::mesh::v1 as mesh;
use weft_proto::mesh::v1::Tier;
use weft_service_kit::transport::Address;
use weft_types::Digest;

/// A worker that was not heard of for so long has no places any more. Longer than gateways wait: whoever comes back within it,
/// under the same address, finds its places as they were, and a bus that is away is known to be before.
const GONE_AFTER_MS: u64 = 15_000;
/// The same in intervals of its heartbeats, if that is longer.
const GONE_AFTER_INTERVALS: u64 = 5;
/// Heartbeats of every worker that there is were heard after so many of the longest interval.
const SETTLED_INTERVALS: u64 = 3;
/// Who has listened for so long knows what is asked for.
const WARM_AFTER_MS: u64 = 120_000;
/// What a worker may claim as the interval of its heartbeats.
const INTERVAL_MS: std::ops::RangeInclusive<u64> = 10..=60_000;
/// Gateways whose messages are told apart; beyond it the one that was silent longest is forgotten.
const GATEWAYS_MAX: usize = 1024;
const INCARNATION_BYTES_MAX: usize = 256;
/// Rows of one message of demand.
const ROWS_MAX: usize = 1_000;
/// What one row may claim: more than a gateway does between two messages.
const REQUESTS_MAX: u64 = 1_000_000;
const TOKENS_MAX: u64 = 1_000_000_000;

/// One spelling for one worker, in placements, heartbeats and calls: as gateways spell it.
pub(super) fn canonical(address: &str) -> String {
    match address.parse() {
        Ok(Address::Tcp(host_port)) => host_port,
        Ok(unix @ Address::Unix(_)) => unix.to_string(),
        Err(_) => address.to_owned(),
    }
}

#[derive(Default)]
struct Seen {
    incarnation: String,
    sequence: u64,
    at_ms: u64,
    interval_ms: u64,
    base: Option<Digest>,
    is_draining: bool,
    slot_bytes: u64,
    /// 0: it has not said.
    prefill_tokens_per_ms: f64,
    step_ms: f64,
    residency: Follower,
}

impl Seen {
    fn is_there(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) <= GONE_AFTER_MS.max(self.interval_ms * GONE_AFTER_INTERVALS)
    }
}

struct Gateway {
    sequence: u64,
    at_ms: u64,
}

pub(crate) struct Observer {
    workers: BTreeMap<String, Seen>,
    gateways: HashMap<String, Gateway>,
    demand: Demand,
    /// Since then nothing is known to be missed but what came before.
    since_ms: u64,
    /// Since then workers are listened to without a break.
    unbroken_ms: u64,
}

impl Observer {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            workers: BTreeMap::new(),
            gateways: HashMap::new(),
            demand: Demand::new(DemandSettings::default()),
            since_ms: now_ms,
            unbroken_ms: now_ms,
        }
    }

    /// Messages may have been missed: who is there is known again after some heartbeats.
    pub(super) fn missed(&mut self, now_ms: u64) {
        self.unbroken_ms = now_ms;
    }

    /// Takes in a heartbeat.
    pub(super) fn hear_worker(&mut self, beat: &mesh::WorkerHeartbeat, now_ms: u64) -> Result<(), String> {
        let base = Digest::try_from(beat.base_digest.as_ref()).map_err(|error| format!("base_digest: {error}"))?;
        let name = canonical(&beat.address);
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        if name.is_empty() || name.len() > WORKER_NAME_BYTES_MAX || !is_plain {
            return Err(format!("address must be 1 to {WORKER_NAME_BYTES_MAX} printable ASCII bytes without quotes"));
        }
        let incarnation_bytes = beat.incarnation.len();
        if incarnation_bytes == 0 || incarnation_bytes > INCARNATION_BYTES_MAX {
            let limit = INCARNATION_BYTES_MAX;
            return Err(format!("incarnation has {incarnation_bytes} bytes, allowed are 1 to {limit}"));
        }
        let is_of = |seen: &Seen| seen.incarnation == beat.incarnation;
        if self.workers.get(&name).is_some_and(|seen| is_of(seen) && seen.sequence >= beat.sequence) {
            return Ok(());
        }
        if !self.workers.contains_key(&name) && self.workers.len() >= WORKERS_MAX {
            self.workers.retain(|_, seen| seen.is_there(now_ms));
            if self.workers.len() >= WORKERS_MAX {
                return Err(format!("{WORKERS_MAX} workers are known, the limit"));
            }
        }
        let seen = self.workers.entry(name).or_default();
        if !is_of(seen) {
            *seen = Seen { incarnation: beat.incarnation.clone(), ..Seen::default() };
        }
        seen.sequence = beat.sequence;
        seen.at_ms = now_ms;
        seen.interval_ms = u64::from(beat.interval_ms).clamp(*INTERVAL_MS.start(), *INTERVAL_MS.end());
        seen.base = Some(base);
        seen.is_draining = beat.draining;
        seen.slot_bytes = beat.slot_bytes_max.saturating_add(beat.prepared_bytes_max);
        seen.step_ms = beat.step_us as f64 / 1e3;
        // A worker without prompts for a while says nothing about how fast they are.
        if beat.prefill_tokens_per_s > 0.0 {
            seen.prefill_tokens_per_ms = beat.prefill_tokens_per_s / 1e3;
        }
        if let Some(delta) = &beat.residency {
            // A gap heals with the next whole list.
            seen.residency.hear(&beat.incarnation, delta);
        }
        Ok(())
    }

    /// Takes in a further piece of a heartbeat's residency.
    pub(super) fn hear_residency(&mut self, piece: &mesh::WorkerResidency) {
        let (name, incarnation) = (canonical(&piece.address), &piece.incarnation);
        let seen = self.workers.get_mut(&name).filter(|seen| seen.incarnation == *incarnation);
        if let (Some(seen), Some(delta)) = (seen, &piece.residency) {
            seen.residency.hear(incarnation, delta);
        }
    }

    /// Takes in what a gateway was asked for. `is_known` says whether an adapter is of this mesh: others are left out.
    pub(super) fn hear_demand(
        &mut self,
        told: &mesh::GatewayDemand,
        is_known: impl Fn(&Digest) -> bool,
        now_ms: u64,
    ) -> Result<(), String> {
        let incarnation_bytes = told.incarnation.len();
        if incarnation_bytes == 0 || incarnation_bytes > INCARNATION_BYTES_MAX {
            let limit = INCARNATION_BYTES_MAX;
            return Err(format!("incarnation has {incarnation_bytes} bytes, allowed are 1 to {limit}"));
        }
        if told.adapters.len() > ROWS_MAX {
            return Err(format!("adapters has {} rows, the limit is {ROWS_MAX}", told.adapters.len()));
        }
        if self.gateways.get(&told.incarnation).is_some_and(|gateway| gateway.sequence >= told.sequence) {
            return Ok(());
        }
        if !self.gateways.contains_key(&told.incarnation) && self.gateways.len() >= GATEWAYS_MAX {
            let oldest = self.gateways.iter().min_by_key(|(_, gateway)| gateway.at_ms).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| self.gateways.remove(&oldest));
        }
        self.gateways.insert(told.incarnation.clone(), Gateway { sequence: told.sequence, at_ms: now_ms });
        let speeds = self.speeds(now_ms);
        for row in &told.adapters {
            let Some(digest) = Digest::try_from(row.digest.as_ref()).ok().filter(|digest| is_known(digest)) else {
                continue;
            };
            let work_ms = speeds.work_ms(row.prompt_tokens.min(TOKENS_MAX), row.output_tokens.min(TOKENS_MAX));
            self.demand.add(digest, row.requests.min(REQUESTS_MAX) as f64, work_ms, now_ms);
        }
        Ok(())
    }

    /// Workers with this base that are there and do not drain.
    pub(super) fn workers_with(&self, base: &Digest, now_ms: u64) -> usize {
        let serves = |seen: &&Seen| seen.is_there(now_ms) && !seen.is_draining && seen.base.as_ref() == Some(base);
        self.workers.values().filter(serves).count()
    }

    fn speeds(&self, now_ms: u64) -> Speeds {
        let there = self.workers.values().filter(|seen| seen.is_there(now_ms));
        Speeds::mean(there.map(|seen| (seen.prefill_tokens_per_ms, seen.step_ms)))
    }

    /// Whether all workers that are there can be known by now.
    pub(super) fn is_settled(&self, now_ms: u64) -> bool {
        let longest = self.workers.values().map(|seen| seen.interval_ms).max();
        longest.is_some_and(|interval| now_ms.saturating_sub(self.unbroken_ms) >= interval * SETTLED_INTERVALS)
    }

    /// Whether what is asked for is known as well as it ever is.
    pub(super) fn is_warm(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= WARM_AFTER_MS
    }

    /// What a plan is made of: workers that are there, do not drain and have the mesh's base; what is asked for or pinned. Forgets who
    /// is gone. Cost: linear in what workers hold and in demand.
    pub(super) fn observed(&mut self, known: &Known, now_ms: u64) -> Observed {
        self.workers.retain(|_, seen| seen.is_there(now_ms));
        let serves = |seen: &Seen| !seen.is_draining && (known.base.is_none() || seen.base == known.base);
        let workers = self.workers.iter().filter(|(_, seen)| serves(seen)).map(|(name, seen)| Worker {
            name: name.clone(),
            slots: u32::MAX,
            slot_bytes: seen.slot_bytes,
            speed: 1.0,
            resident: near(&seen.residency),
        });
        let mut adapters: Vec<Adapter> = self
            .demand
            .iter(now_ms)
            .filter_map(|(digest, rates)| {
                let Rates { requests_per_s, recent_requests_per_s, work_ms_per_s } = rates;
                Some(Adapter { requests_per_s, recent_requests_per_s, work_ms_per_s, ..known.adapter(&digest)? })
            })
            .collect();
        let unasked = known.pins.keys().filter(|digest| self.demand.of(digest, now_ms) == Rates::default());
        adapters.extend(unasked.filter_map(|digest| known.adapter(digest)));
        Observed { adapters, workers: workers.collect(), tenants: known.tenants.clone() }
    }

    /// Adapters that were asked for lately.
    pub(super) fn asked(&self, now_ms: u64) -> HashSet<Digest> {
        self.demand.iter(now_ms).map(|(digest, _)| digest).collect()
    }

    pub(super) fn adapters_heard(&self) -> usize {
        self.demand.len()
    }
}

/// What a worker has in a slot or packed.
fn near(residency: &Follower) -> Vec<Digest> {
    let is_near = |(digest, tier): (&Digest, &Tier)| matches!(tier, Tier::Slot | Tier::Memory).then_some(*digest);
    residency.held().iter().filter_map(is_near).collect()
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;

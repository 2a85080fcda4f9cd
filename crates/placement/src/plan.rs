//! Demand, budgets, pins and floors turned into desired residency.
//!
//! 1. `copies`: how many workers should hold each adapter.
//! 2. `assign`: which ones; as few moves as possible, and never more than the settings allow.

use crate::assign::assign;
use crate::copies::grant;
use crate::document::{ADAPTERS_MAX, Host, Placed, WEIGHT_MAX, WORKERS_MAX};
use crate::trend::trends;
use std::collections::{BTreeMap, HashMap, HashSet};
use weft_types::{Digest, TenantName};

/// An adapter that somebody asked for or pinned.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its identity.
    pub digest: Digest,
    /// Whose it is.
    pub tenant: TenantName,
    /// Its rank: a row of rank `r` costs `1 + r × rank_cost` of a row of the base.
    pub rank: u32,
    /// Its size in a slot.
    pub bytes: u64,
    /// Decayed requests a second.
    pub requests_per_s: f64,
    /// The same over a time short enough to follow the hours of its tenant ([`crate::RECENT_HALF_LIFE_MS`]).
    pub recent_requests_per_s: f64,
    /// Decayed worker time a second, without the part of its rank: milliseconds a second.
    pub work_ms_per_s: f64,
    /// At least so many workers hold it, whatever the demand (at most as many as there are).
    pub pinned_copies: u32,
}

/// A worker that is there and not draining.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its name, unique.
    pub name: String,
    /// Room for so many adapters in slots and packed in memory: what is served within about a step. [`u32::MAX`] where only
    /// bytes are limited.
    pub slots: u32,
    /// Room for so many bytes of adapters there.
    pub slot_bytes: u64,
    /// Speed, 1 for a plain one; counted in hundredths, 0.01 to 100.
    pub speed: f64,
    /// Adapters that are in its slots or its memory now: putting one of these there moves no bytes to speak of.
    pub resident: Vec<Digest>,
}

/// What a tenant is promised and denied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tenant {
    /// So many of its adapters, the most asked for, have a place whatever others ask for.
    pub floor: u32,
    /// At most so many copies of all its adapters together; `None`: no such limit. Pins count, but are not refused.
    pub ceiling: Option<u32>,
}

/// Everything a plan is made of.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// At most [`ADAPTERS_MAX`] are considered, the dearest first; digests are unique, of two with one digest one counts.
    pub adapters: Vec<Adapter>,
    /// At most [`WORKERS_MAX`] are considered, in the order of their names.
    pub workers: Vec<Worker>,
    /// Tenants with other rules than [`Tenant::default`].
    pub tenants: BTreeMap<TenantName, Tenant>,
}

/// How plans are made.
#[derive(Clone, Copy, Debug)]
pub struct PlanSettings {
    /// Share of the slots and of the bytes of each worker that is planned; the rest is left to adapters that come
    /// unplanned: a worker filled to the last slot loses a planned copy with each of those. 0 to 1.
    pub fill: f64,
    /// An adapter gets another copy when a copy would carry more than this share of a mean worker's load. Positive.
    pub copy_load_max: f64,
    /// It keeps a copy that it would not be given as long as its load times this would earn it. At least 1.
    pub keep_factor: f64,
    /// At most this share of the planned slots and bytes goes to second and further copies. 0 to 1.
    pub further_copies_share: f64,
    /// A worker whose planned load is more than this times the mean gives copies away. At least 1.
    pub balance_max: f64,
    /// Most copies in one plan on workers that do not have the bytes yet.
    pub moves_max: usize,
    /// Most bytes of such copies; the first is always allowed.
    pub move_bytes_max: u64,
    /// An adapter that no worker has gets its first copy only with so many requests a second (or by pin or floor); below
    /// that, the request that needs it brings it, and the copy is where it was brought.
    pub ahead_per_s: f64,
    /// Cost of one rank in rows of the base.
    pub rank_cost: f64,
    /// Cost of any load, in bytes that could have been loaded meanwhile.
    pub load_fixed_bytes: u64,
}

impl Default for PlanSettings {
    fn default() -> Self {
        Self {
            fill: 0.94,
            copy_load_max: 0.12,
            keep_factor: 1.5,
            further_copies_share: 0.5,
            balance_max: 1.15,
            moves_max: 64,
            move_bytes_max: 4 << 30,
            ahead_per_s: 1.0 / 30.0,
            rank_cost: 1.0 / 512.0,
            load_fixed_bytes: 1 << 20,
        }
    }
}

impl PlanSettings {
    /// What of a worker's bytes is planned.
    pub(crate) fn planned_bytes(&self, slot_bytes: u64) -> u64 {
        (slot_bytes as f64 * self.fill) as u64
    }

    /// The settings with every value in its range: what is out of range becomes the nearest that is not.
    #[must_use]
    pub fn clamped(self) -> Self {
        let share = |value: f64| if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
        let at_least = |value: f64, least: f64| if value.is_nan() { least } else { value.clamp(least, 1e9) };
        Self {
            fill: share(self.fill),
            further_copies_share: share(self.further_copies_share),
            copy_load_max: at_least(self.copy_load_max, 1e-6),
            keep_factor: at_least(self.keep_factor, 1.0),
            balance_max: at_least(self.balance_max, 1.0),
            ahead_per_s: at_least(self.ahead_per_s, 0.0),
            rank_cost: at_least(self.rank_cost, 0.0),
            ..self
        }
    }
}

/// A placement without a number, and what it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The workers, sorted.
    pub workers: Vec<Host>,
    /// The adapters, sorted by digest.
    pub adapters: Vec<Placed>,
    /// Copies on workers that do not have the bytes yet: at most [`PlanSettings::moves_max`].
    pub moves: usize,
    /// Bytes of such copies.
    pub move_bytes: u64,
    /// Copies that were granted and not placed, for want of moves or of room: a later plan will.
    pub deferred: usize,
    /// The largest planned load of a worker over the mean; 1 without load.
    pub balance: f64,
}

/// The workers as the plan knows them: sorted, the same indices everywhere in `copies` and `assign`.
pub(crate) struct Site<'a> {
    pub(crate) workers: Vec<&'a Worker>,
    /// In the table and in the document.
    pub(crate) weights: Vec<u16>,
    /// Of the sum of speeds.
    pub(crate) speed: Vec<f64>,
}

/// An adapter as the plan knows it.
pub(crate) struct Item<'a> {
    pub(crate) adapter: &'a Adapter,
    /// Milliseconds of worker time a second.
    pub(crate) load: f64,
    /// Requests a second, by the trend of its tenant, times bytes to load, over bytes it takes: what its first copy saves for its
    /// room.
    pub(crate) value: f64,
    /// Workers that the previous placement gave it and that are still there.
    pub(crate) kept: Vec<u16>,
    /// Whether any worker has the bytes.
    pub(crate) is_held: bool,
    /// Pinned, or of a tenant with a floor: it has a place wherever there is room.
    pub(crate) is_promised: bool,
}

/// Plans desired residency. `previous` is what was planned before (copies stay where they are unless there is a reason).
/// Deterministic. Cost: `O(A log A + A × W)` in the worst case, `O(A log A)` when little changes; 10,000 adapters on 64
/// workers take tens of milliseconds.
#[must_use]
pub fn plan(observed: &Observed, previous: Option<(&[Host], &[Placed])>, settings: &PlanSettings) -> Plan {
    let settings = settings.clamped();
    let mut workers: Vec<&Worker> = observed.workers.iter().collect();
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    workers.dedup_by(|a, b| a.name == b.name);
    workers.truncate(WORKERS_MAX);
    if workers.is_empty() {
        return Plan { balance: 1.0, ..Plan::default() };
    }
    let weights: Vec<u16> = workers
        .iter()
        .map(|worker| (sound(worker.speed) * 100.0).round().clamp(1.0, f64::from(WEIGHT_MAX)) as u16)
        .collect();
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let speed = weights.iter().map(|weight| f64::from(*weight) / total).collect();
    let site = Site { workers, weights, speed };
    let kept = kept_copies(&site, previous);
    let mut items = items(observed, &site, &settings, kept);
    let granted = grant(&items, &site, &observed.tenants, &settings);
    assign(&mut items, &granted, &site, &settings)
}

fn kept_copies(site: &Site<'_>, previous: Option<(&[Host], &[Placed])>) -> HashMap<Digest, Vec<u16>> {
    let Some((hosts, placed)) = previous else { return HashMap::new() };
    let index: HashMap<&str, u16> =
        site.workers.iter().enumerate().map(|(index, worker)| (worker.name.as_str(), index as u16)).collect();
    let now: Vec<Option<u16>> = hosts.iter().map(|host| index.get(host.0.as_str()).copied()).collect();
    let still = |on: &Vec<u16>| on.iter().filter_map(|at| now.get(usize::from(*at)).copied().flatten()).collect();
    placed.iter().map(|Placed(adapter, on)| (*adapter, still(on))).collect()
}

fn items<'a>(
    observed: &'a Observed,
    site: &Site<'_>,
    settings: &PlanSettings,
    mut kept: HashMap<Digest, Vec<u16>>,
) -> Vec<Item<'a>> {
    let largest = site.workers.iter().map(|worker| settings.planned_bytes(worker.slot_bytes)).max().unwrap_or(0);
    let held: HashSet<Digest> = site.workers.iter().flat_map(|worker| worker.resident.iter().copied()).collect();
    // What fits nowhere has no place.
    let fitting = observed.adapters.iter().filter(|adapter| adapter.bytes <= largest);
    let trends = trends(&observed.adapters);
    let mut items: Vec<Item<'a>> = fitting
        .map(|adapter| {
            let load = sound(adapter.work_ms_per_s) * (1.0 + f64::from(adapter.rank) * settings.rank_cost);
            let bytes = adapter.bytes.max(1) as f64;
            let trend = trends.get(&adapter.tenant).copied().unwrap_or(1.0);
            let value = trend * sound(adapter.requests_per_s) * (bytes + settings.load_fixed_bytes as f64) / bytes;
            let floor = observed.tenants.get(&adapter.tenant).map_or(0, |tenant| tenant.floor);
            let is_promised = adapter.pinned_copies > 0 || floor > 0;
            Item { adapter, load, value, kept: Vec::new(), is_held: held.contains(&adapter.digest), is_promised }
        })
        .collect();
    items.sort_by(|a, b| {
        let pinned = b.adapter.pinned_copies.min(1).cmp(&a.adapter.pinned_copies.min(1));
        pinned.then(b.value.total_cmp(&a.value)).then(a.adapter.digest.cmp(&b.adapter.digest))
    });
    let mut seen = HashSet::new();
    items.retain(|item| seen.insert(item.adapter.digest));
    items.truncate(ADAPTERS_MAX);
    for item in &mut items {
        item.kept = kept.remove(&item.adapter.digest).unwrap_or_default();
    }
    items
}

/// More than any mesh does in a second, and small enough that sums and ratios stay finite.
const RATE_MAX: f64 = 1e12;

pub(crate) fn sound(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, RATE_MAX) } else { 0.0 }
}

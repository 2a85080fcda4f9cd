//! The worker for one request, by predicted time to first token.
//!
//! ```text
//! ttft = queue + load + prefill
//! queue   = what the worker says it has before it, plus what was sent to it since
//! load    = what is loading before + bytes / bandwidth of every tier from where they are up to the slot
//! prefill = (prompt - predicted prefix hit) / measured rate
//! ```
//!
//! Up to four workers of the replica set are compared, drawn by chance (Mitzenmacher, "The Power of Two Choices in Randomized
//! Load Balancing", IEEE TPDS 12(10), 2001; a few drawn by chance are also the best known answer to load reports that are old,
//! "How Useful Is Old Information?", PODC 1997). Most sets have one or two; in those that have more, which take much of the
//! load, four even out what the others leave uneven. Only if all are worse than `spill_after_ms`, the two workers of the spill set are looked
//! at, and taken if they are better by `spill_gain`. A request is never offered to more workers than that.

use crate::map::Sets;

/// Workers of the set that are compared, if so many can be used.
pub const COMPARED_MAX: usize = 4;
/// Workers of the set that are looked at to find those.
pub const INSIDE_PROBES_MAX: usize = 8;
/// Workers outside the set that are looked at.
pub const SPILL_PROBES_MAX: usize = 6;

/// What a load costs besides its bytes (finding them, opening, checking), as so many bytes.
pub const LOAD_BYTES_MORE: u64 = 2 << 20;

/// Where an adapter's bytes are, seen from a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// In a slot of the worker; also the bare base, everywhere.
    Slot,
    /// In the worker's memory, packed.
    Memory,
    /// On the node's disk or in its daemon's memory.
    Disk,
    /// Elsewhere: a neighbour or S3.
    Remote,
}

/// How fast bytes come from each tier, in bytes a millisecond, as measured; zero and less count as very slow.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    /// From memory to a slot.
    pub memory: f64,
    /// From disk to memory.
    pub disk: f64,
    /// From elsewhere to disk.
    pub remote: f64,
}

/// Whether a worker may get requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It may.
    Serving,
    /// It finishes what it has.
    Draining,
    /// It has not been heard of for too long.
    Stale,
    /// Its circuit is open.
    Broken,
}

/// What is known about a worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLoad {
    /// Whether it may get requests.
    pub availability: Availability,
    /// What a request with its adapter in a slot waits for: milliseconds.
    pub queue_ms: f64,
    /// Loads that come before another one: milliseconds.
    pub loading_ms: f64,
    /// Prompt tokens it computes in a millisecond, as measured.
    pub prefill_tokens_per_ms: f64,
    /// How fast adapters come.
    pub bandwidth: Bandwidth,
    /// Work it got lately, in any unit: decides between two predictions that are all but equal.
    pub recent: f64,
}

/// Where this request's adapter and prefix are, on one worker.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where the adapter is.
    pub tier: Tier,
    /// Prompt tokens that the prefix cache is expected to spare.
    pub prefix_hit_tokens: u32,
}

/// What a gateway sees of the workers; positions are those of [`crate::Map::workers`].
pub trait View {
    /// What is known about a worker; `None` if nothing is. Must cost constant time.
    fn load(&self, worker: u16) -> Option<WorkerLoad>;
    /// Where the request's adapter and prefix are on a worker. Must cost constant time.
    fn place(&self, worker: u16) -> Place;
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Bytes of its adapter; 0 for the base.
    pub adapter_bytes: u64,
    /// Workers that this request was tried on already: not again. Short.
    pub avoid: &'a [u16],
    /// A worker of the set that is looked at whatever chance says, because much of the prompt is likely there: the others are
    /// drawn. One that is outside the set counts for nothing.
    pub familiar: Option<u16>,
}

/// How requests are routed.
#[derive(Clone, Copy, Debug)]
pub struct RouteSettings {
    /// Predictions up to this stay inside the set.
    pub spill_after_ms: f64,
    /// A worker outside is taken if its prediction times this is less than that inside. At least 1.
    pub spill_gain: f64,
    /// Predictions that differ by less than this are equal; then the worker with less recent work is taken.
    pub equal_ms: f64,
    /// What a millisecond of loading weighs when two workers are compared: a load keeps others waiting as well and takes
    /// room. At least 1.
    pub load_weight: f64,
}

impl Default for RouteSettings {
    fn default() -> Self {
        Self { spill_after_ms: 500.0, spill_gain: 1.5, equal_ms: 50.0, load_weight: 5.0 }
    }
}

/// A predicted time to first token, by its parts. Milliseconds, finite, not negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Waiting for others.
    pub queue_ms: f64,
    /// Waiting for the adapter.
    pub load_ms: f64,
    /// Computing the prompt.
    pub prefill_ms: f64,
}

impl Prediction {
    /// The whole.
    #[must_use]
    pub fn total_ms(&self) -> f64 {
        self.queue_ms + self.load_ms + self.prefill_ms
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The worker.
    pub worker: u16,
    /// What is expected there.
    pub predicted: Prediction,
    /// Whether it is outside the replica set.
    pub is_spill: bool,
    /// Workers that were looked at: at most [`INSIDE_PROBES_MAX`] + [`SPILL_PROBES_MAX`].
    pub looked_at: usize,
}

/// No worker that was looked at can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("none of the {looked_at} workers for this adapter can be used")]
pub struct NoWorker {
    /// Workers that were looked at.
    pub looked_at: usize,
}

/// Longest time that a prediction says: a day.
const LONGEST_MS: f64 = 86_400_000.0;

fn sound_ms(ms: f64) -> f64 {
    if ms.is_nan() { LONGEST_MS } else { ms.clamp(0.0, LONGEST_MS) }
}

fn transfer_ms(bytes: u64, bytes_per_ms: f64) -> f64 {
    sound_ms(bytes as f64 / bytes_per_ms.max(f64::MIN_POSITIVE))
}

/// Predicts the time to first token of a request on a worker.
#[must_use]
pub fn predict(load: &WorkerLoad, place: Place, request: &Request<'_>) -> Prediction {
    let bandwidth = &load.bandwidth;
    let bytes = request.adapter_bytes;
    let mut load_ms = 0.0;
    if place.tier > Tier::Slot {
        load_ms += sound_ms(load.loading_ms) + transfer_ms(bytes, bandwidth.memory);
    }
    if place.tier > Tier::Memory {
        load_ms += transfer_ms(bytes, bandwidth.disk);
    }
    if place.tier > Tier::Disk {
        load_ms += transfer_ms(bytes, bandwidth.remote);
    }
    let tokens = request.prompt_tokens.saturating_sub(place.prefix_hit_tokens).max(1);
    let prefill_ms = sound_ms(f64::from(tokens) / load.prefill_tokens_per_ms.max(f64::MIN_POSITIVE));
    Prediction { queue_ms: sound_ms(load.queue_ms), load_ms: sound_ms(load_ms), prefill_ms }
}

#[derive(Clone, Copy)]
struct Candidate {
    worker: u16,
    predicted: Prediction,
    recent: f64,
}

/// Chooses a worker. `draw` is a random number of the caller: equal inputs give equal answers.
/// Cost: at most [`INSIDE_PROBES_MAX`] + [`SPILL_PROBES_MAX`] reads of the view, usually at most [`COMPARED_MAX`]; nothing is
/// allocated.
///
/// # Errors
/// [`NoWorker`] if none that was looked at is serving and not to be avoided.
pub fn choose(
    view: &impl View,
    request: &Request<'_>,
    sets: &Sets<'_>,
    draw: u64,
    settings: &RouteSettings,
) -> Result<Choice, NoWorker> {
    let mut looked_at = 0;
    let mut look = |worker: u16| -> Option<Candidate> {
        looked_at += 1;
        let load = view.load(worker).filter(|load| load.availability == Availability::Serving)?;
        if request.avoid.contains(&worker) {
            return None;
        }
        Some(Candidate { worker, predicted: predict(&load, view.place(worker), request), recent: load.recent })
    };
    let familiar = request.familiar.filter(|worker| sets.holds(*worker));
    let mut best = best_inside(sets.inside(), familiar, draw, &mut look, settings);
    let mut is_spill = false;
    let inside_ms = best.map_or(f64::INFINITY, |best| best.predicted.total_ms());
    if inside_ms > settings.spill_after_ms {
        let outside = sets.spill().iter().filter_map(|worker| look(*worker)).reduce(|a, b| better(a, b, settings));
        if let Some(outside) = outside.filter(|one| one.predicted.total_ms() * settings.spill_gain.max(1.0) < inside_ms)
        {
            best = Some(outside);
            is_spill = true;
        }
    }
    if best.is_none() {
        best = sets.last().iter().find_map(|worker| look(*worker));
        is_spill = true;
    }
    let Some(Candidate { worker, predicted, .. }) = best else { return Err(NoWorker { looked_at }) };
    Ok(Choice { worker, predicted, is_spill, looked_at })
}

/// The best of the first [`COMPARED_MAX`] that can be used: the familiar one if there is one, then in an order drawn by chance in
/// which every pair is equally likely first.
fn best_inside(
    set: &[u16],
    familiar: Option<u16>,
    draw: u64,
    look: &mut impl FnMut(u16) -> Option<Candidate>,
    settings: &RouteSettings,
) -> Option<Candidate> {
    let count = set.len() as u64;
    if count == 0 {
        return None;
    }
    let start = draw % count;
    let mut best: Option<Candidate> = familiar.and_then(&mut *look);
    let mut compared = usize::from(best.is_some());
    let probes = INSIDE_PROBES_MAX - usize::from(familiar.is_some());
    for nth in 0..count.min(probes as u64) {
        let at = (start + stride_sum(draw, count, nth)) % count;
        let worker = set[at as usize];
        if familiar == Some(worker) {
            continue;
        }
        let Some(candidate) = look(worker) else { continue };
        best = Some(best.map_or(candidate, |best| better(best, candidate, settings)));
        compared += 1;
        if compared == COMPARED_MAX {
            break;
        }
    }
    best
}

/// How far the `nth` probe is from the start: a stride without a common divisor with the count meets everyone once.
fn stride_sum(draw: u64, count: u64, nth: u64) -> u64 {
    if nth == 0 || count == 1 {
        return 0;
    }
    let mut stride = 1 + (draw >> 32) % (count - 1);
    while gcd(stride, count) != 1 {
        stride = 1 + stride % (count - 1);
    }
    stride * nth
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn better(a: Candidate, b: Candidate, settings: &RouteSettings) -> Candidate {
    let cost =
        |one: &Candidate| one.predicted.total_ms() + one.predicted.load_ms * (settings.load_weight - 1.0).max(0.0);
    let (a_ms, b_ms) = (cost(&a), cost(&b));
    if (a_ms - b_ms).abs() < settings.equal_ms {
        return if b.recent < a.recent { b } else { a };
    }
    if b_ms < a_ms { b } else { a }
}

//! What is known of one worker, and what follows from it. Pure: times are arguments.
//!
//! Two sources: heartbeats over the bus, and looks over gRPC. A worker is good as long as the last heartbeat is recent, or, when
//! heartbeats fail to come (NATS is away, or there is none), the last look; and nothing bad was seen of it since. What only gRPC can
//! show (that requests get through, the whole list of adapters, the base's description) is looked at at the first heartbeat, after a
//! gap, after a failed request and from time to time.

use crate::workers::Base;
use std::time::Duration;
use tokio::time::Instant;
use weft_bus::residency::{Follower, Heard};
use weft_proto::mesh::v1 as mesh;
use weft_proto::mesh::v1::Tier;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

/// A look that takes longer than this counts as no answer.
pub(crate) const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// What a worker may claim as the interval of its heartbeats.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Heartbeats that are missing before a worker is looked at, so that it need not expire when only the bus is away.
const OVERDUE_INTERVALS: f64 = 1.5;

/// How views age; from the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two looks at a worker without heartbeats.
    pub(crate) poll: Duration,
    /// Between two looks at a worker with heartbeats.
    pub(crate) relist: Duration,
    /// Intervals without a heartbeat after which it counts no more.
    pub(crate) intervals_max: u32,
    /// After so long without a word, one that was only heard of is forgotten.
    pub(crate) forget: Duration,
}

/// How busy it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) running_requests: u32,
    pub(crate) queued_requests: u32,
    pub(crate) loading_requests: u32,
    /// Idle ones of the prefix cache included.
    pub(crate) kv_blocks_free: u64,
    pub(crate) kv_blocks_max: u64,
    pub(crate) slot_bytes_used: u64,
    pub(crate) slot_bytes_max: u64,
    /// Mean time of the last steps.
    pub(crate) step: Duration,
    /// 0: not known, because it had no prompts lately.
    pub(crate) prefill_tokens_per_s: f64,
    pub(crate) loads: LoadRates,
    pub(crate) draining: bool,
}

/// How fast adapters come to it from each tier, in bytes a second; 0: not known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LoadRates {
    pub(crate) disk: f64,
    /// All the way.
    pub(crate) remote: f64,
}

/// A look's result.
pub(crate) struct Look {
    /// None: not asked, because it is known.
    pub(crate) base: Option<Base>,
    pub(crate) load: pb::GetLoadResponse,
    pub(crate) residency: pb::ListResidencyResponse,
}

/// The last heartbeat.
struct Beat {
    at: Instant,
    interval: Duration,
    sequence: u64,
}

/// All that is known. Small but for the adapters.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) base: Option<Base>,
    /// Of the process that was last described or heard.
    pub(crate) incarnation: String,
    pub(crate) load: Load,
    pub(crate) adapters: Follower,
    /// Why it is not used.
    pub(crate) problem: Option<String>,
    /// The last look succeeded and no request failed since.
    answers: bool,
    beat: Option<Beat>,
    looked: Option<Instant>,
    /// Something was heard that only a look can settle.
    must_look: bool,
}

impl View {
    /// Takes in a heartbeat whose base digest is this. True if a look should follow now.
    pub(crate) fn hear(&mut self, beat: &mesh::WorkerHeartbeat, base: Digest, now: Instant) -> bool {
        let is_new_process = self.incarnation != beat.incarnation;
        let is_late = self.beat.as_ref().is_some_and(|last| last.sequence >= beat.sequence);
        if is_late && !is_new_process {
            return false;
        }
        if is_new_process || self.base.as_ref().is_some_and(|known| known.digest != base) {
            // Whatever was known is of another process.
            self.incarnation.clone_from(&beat.incarnation);
            self.base = None;
            self.answers = false;
            self.must_look = true;
        }
        let interval = Duration::from_millis(beat.interval_ms.into()).clamp(INTERVAL_MIN, INTERVAL_MAX);
        self.beat = Some(Beat { at: now, interval, sequence: beat.sequence });
        self.load = Load::heard(beat, self.load);
        if let Some(delta) = &beat.residency {
            self.hear_residency(&beat.incarnation, delta);
        }
        self.must_look
    }

    /// Takes in a piece of its adapters. True if a look should follow now.
    pub(crate) fn hear_residency(&mut self, incarnation: &str, delta: &mesh::ResidencyDelta) -> bool {
        if incarnation == self.incarnation && self.adapters.hear(incarnation, delta) == Heard::Gap {
            self.must_look = true;
        }
        self.must_look
    }

    /// Takes in a look.
    pub(crate) fn see(&mut self, look: Look, now: Instant) {
        if let Some(base) = look.base {
            self.incarnation.clone_from(&base.description.incarnation);
            self.base = Some(base);
        }
        let tier = |rows: Vec<pb::ResidentAdapter>, tier: Tier| {
            rows.into_iter().filter_map(move |row| Some((Digest::try_from(row.digest.as_ref()).ok()?, tier)))
        };
        let residency = look.residency;
        let held = tier(residency.prepared, Tier::Memory).chain(tier(residency.adapters, Tier::Slot));
        self.adapters.list(&residency.incarnation, residency.generation, held);
        self.load = Load::seen(&look.load, self.load);
        self.looked = Some(now);
        // Else it was restarted since it was described; and a look that began before that was heard did not ask for a description.
        if residency.incarnation != self.incarnation {
            self.base = None;
        }
        let is_described = self.base.is_some();
        self.must_look = !is_described;
        self.answers = is_described;
        self.problem = None;
    }

    /// A look or a request failed: nobody's first choice until a look succeeds. True if nothing had failed since the last one.
    pub(crate) fn suspect(&mut self, problem: &str) -> bool {
        let is_news = std::mem::replace(&mut self.answers, false);
        self.must_look = true;
        self.problem = Some(problem.to_owned());
        is_news
    }

    /// Whether requests may go there, as far as is known.
    pub(crate) fn is_up(&self, now: Instant, pace: &Pace) -> bool {
        self.answers && self.is_fresh(now, pace)
    }

    fn is_fresh(&self, now: Instant, pace: &Pace) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let beats = self.beat.as_ref().is_some_and(|beat| since(beat.at) <= beat.interval * pace.intervals_max);
        // A look of before the silence says nothing about it.
        let looked = self.looked.filter(|looked| self.overdue_at().is_none_or(|overdue| *looked >= overdue));
        beats || looked.is_some_and(|looked| since(looked) <= pace.poll * pace.intervals_max + LOOK_TIMEOUT)
    }

    /// When the next heartbeat is missed.
    fn overdue_at(&self) -> Option<Instant> {
        self.beat.as_ref().map(|beat| beat.at + beat.interval.mul_f64(OVERDUE_INTERVALS))
    }

    /// Whether a look must describe the base too.
    pub(crate) fn is_described(&self) -> bool {
        self.base.is_some() && self.answers
    }

    /// When to look at it next; `relist` is [`Pace::relist`] with jitter.
    pub(crate) fn next_look(&self, now: Instant, pace: &Pace, relist: Duration) -> Instant {
        let Some(looked) = self.looked.filter(|_| !self.must_look) else { return now };
        match self.overdue_at() {
            Some(overdue) if overdue > now => overdue.min(looked + relist),
            Some(overdue) => overdue.max(looked + pace.poll),
            None => looked + pace.poll,
        }
    }

    /// Whether it was heard of so long ago, and seen so long ago, that it is gone for good.
    pub(crate) fn is_forgotten(&self, now: Instant, pace: &Pace) -> bool {
        self.age(now).is_some_and(|age| age > pace.forget)
    }

    /// Since its last word, by heartbeat or look. None: it never said any.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        let last = self.beat.as_ref().map(|beat| beat.at).max(self.looked)?;
        Some(now.saturating_duration_since(last))
    }

    /// Since its last heartbeat.
    pub(crate) fn heartbeat_age(&self, now: Instant) -> Option<Duration> {
        self.beat.as_ref().map(|beat| now.saturating_duration_since(beat.at))
    }
}

impl Load {
    fn heard(beat: &mesh::WorkerHeartbeat, before: Self) -> Self {
        Self {
            running_requests: beat.running_requests,
            queued_requests: beat.queued_requests,
            loading_requests: beat.loading_requests,
            kv_blocks_free: beat.kv_blocks_free,
            kv_blocks_max: beat.kv_blocks_max,
            slot_bytes_used: beat.slot_bytes_used,
            slot_bytes_max: beat.slot_bytes_max,
            step: Duration::from_micros(beat.step_us),
            prefill_tokens_per_s: rate(beat.prefill_tokens_per_s, 0.0),
            loads: before.loads.measured(beat.disk_bytes_per_s, beat.remote_bytes_per_s),
            draining: beat.draining,
        }
    }

    fn seen(load: &pb::GetLoadResponse, before: Self) -> Self {
        Self {
            running_requests: load.running_requests,
            queued_requests: load.queued_requests,
            loading_requests: load.loading_requests,
            kv_blocks_free: load.kv_blocks_max.saturating_sub(load.kv_blocks_used),
            kv_blocks_max: load.kv_blocks_max,
            slot_bytes_used: load.slot_bytes_used,
            slot_bytes_max: load.slot_bytes_max,
            step: Duration::from_micros(load.step_us),
            prefill_tokens_per_s: rate(load.prefill_tokens_per_s, 0.0),
            loads: before.loads.measured(load.disk_bytes_per_s, load.remote_bytes_per_s),
            draining: load.draining,
        }
    }

    /// Requests it has.
    pub(crate) fn requests(&self) -> usize {
        self.running_requests as usize + self.queued_requests as usize + self.loading_requests as usize
    }
}

impl LoadRates {
    fn measured(self, disk: f64, remote: f64) -> Self {
        Self { disk: rate(disk, self.disk), remote: rate(remote, self.remote) }
    }
}

/// A tier from which nothing came says nothing about how fast it is.
fn rate(heard: f64, before: f64) -> f64 {
    if heard.is_finite() && heard > 0.0 { heard } else { before }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;

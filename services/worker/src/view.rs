//! What the step loop lets others see without waiting for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_proto::worker::v1 as pb;
use weft_types::Digest;

use crate::occupancy::{Occupancy, Taken};
use crate::prefill_rate::PrefillRate;

/// The loop writes it once an iteration; `GetLoad` and `ListResidency` read it. The lock is held for a copy only.
pub(crate) struct View {
    seen: Mutex<Seen>,
    draining: AtomicBool,
    since: Instant,
    /// Milliseconds from `since` to the beginning of the turn that the loop is in; [`RESTING`] while it waits for something to do.
    turn_ms: AtomicU64,
    stall: Duration,
}

const RESTING: u64 = u64::MAX;

#[derive(Default)]
struct Seen {
    load: pb::GetLoadResponse,
    prefill: PrefillRate,
    residency: pb::ListResidencyResponse,
    /// While somebody tells of it.
    occupancy: Option<Occupancy>,
}

impl View {
    /// `stall`: a turn of the loop that takes longer is stuck.
    pub(crate) fn new(stall: Duration) -> Self {
        let (since, turn_ms) = (Instant::now(), AtomicU64::new(RESTING));
        Self { seen: Mutex::default(), draining: AtomicBool::new(false), since, turn_ms, stall }
    }

    /// The loop has something to do, or looks for it.
    pub(crate) fn turns(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(RESTING - 1);
        self.turn_ms.store(ms, Ordering::Relaxed);
    }

    /// The loop waits for something to do.
    pub(crate) fn rests(&self) {
        self.turn_ms.store(RESTING, Ordering::Relaxed);
    }

    /// How long the loop has been in one turn, if that is too long: a device or a disk that does not answer, most likely. What else is
    /// seen here is of the time before.
    pub(crate) fn stuck_for(&self) -> Option<Duration> {
        let turn_ms = self.turn_ms.load(Ordering::Relaxed);
        let began = (turn_ms != RESTING).then(|| Duration::from_millis(turn_ms))?;
        Some(self.since.elapsed().saturating_sub(began)).filter(|turn| *turn > self.stall)
    }

    pub(crate) fn load(&self) -> pb::GetLoadResponse {
        let seen = self.lock();
        let prefill_tokens_per_s = seen.prefill.tokens_per_s(Instant::now());
        pb::GetLoadResponse { draining: self.is_draining(), prefill_tokens_per_s, ..seen.load }
    }

    pub(crate) fn residency(&self) -> pb::ListResidencyResponse {
        self.lock().residency.clone()
    }

    pub(crate) fn set_load(&self, load: pb::GetLoadResponse, prefill: PrefillRate) {
        let mut seen = self.lock();
        seen.load = load;
        seen.prefill = prefill;
    }

    pub(crate) fn set_residency(&self, residency: pb::ListResidencyResponse) {
        let now_ms = self.now_ms();
        let mut seen = self.lock();
        if let Some(occupancy) = &mut seen.occupancy {
            occupancy.observe(now_ms, &residency);
        }
        seen.residency = residency;
    }

    /// What adapters take is added up from now on; whoever asks for it takes it.
    pub(crate) fn keep_occupancy(&self) {
        let now_ms = self.now_ms();
        let mut seen = self.lock();
        let mut occupancy = Occupancy::default();
        occupancy.observe(now_ms, &seen.residency);
        seen.occupancy = Some(occupancy);
    }

    /// So many bytes were brought here for an adapter.
    pub(crate) fn moved(&self, digest: Digest, bytes: u64) {
        let now_ms = self.now_ms();
        if let Some(occupancy) = &mut self.lock().occupancy {
            occupancy.moved(now_ms, digest, bytes);
        }
    }

    /// What each adapter took since this was called last.
    pub(crate) fn take_occupancy(&self) -> Vec<(Digest, Taken)> {
        let now_ms = self.now_ms();
        self.lock().occupancy.as_mut().map(|occupancy| occupancy.take(now_ms)).unwrap_or_default()
    }

    fn now_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// No new requests from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Both values are replaced whole, so a poisoned lock carries no torn state.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

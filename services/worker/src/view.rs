//! What the step loop lets others see without waiting for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_proto::worker::v1 as pb;

/// The loop writes it once an iteration; `GetLoad` and `ListResidency` read it. The lock is held for a copy only.
#[derive(Default)]
pub(crate) struct View {
    seen: Mutex<Seen>,
    draining: AtomicBool,
}

#[derive(Clone, Default)]
struct Seen {
    load: pb::GetLoadResponse,
    residency: pb::ListResidencyResponse,
}

impl View {
    pub(crate) fn load(&self) -> pb::GetLoadResponse {
        pb::GetLoadResponse { draining: self.is_draining(), ..self.lock().load }
    }

    pub(crate) fn residency(&self) -> pb::ListResidencyResponse {
        self.lock().residency.clone()
    }

    pub(crate) fn set_load(&self, load: pb::GetLoadResponse) {
        self.lock().load = load;
    }

    pub(crate) fn set_residency(&self, residency: pb::ListResidencyResponse) {
        self.lock().residency = residency;
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

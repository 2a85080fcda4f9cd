//! Adapters that find no room on a device and run meanwhile from pinned memory, where they lie packed.
//!
//! Each step that uses one copies it over the bus, layer by layer (`weft_engine::Engine::stream`): slower than a slot, faster than to wait until running
//! requests end. They stay among those that wait for room, in their order, and change into a slot once there is some; requests that run with them notice
//! nothing of it. Nothing is owed to one whose requests have not begun to run, so that these are let in; from then on it gets its blocks as any other.

use std::collections::HashMap;

use weft_batching::{Phase, Scheduler};
use weft_engine::{Engine, SlotId};
use weft_types::Digest;

use super::slots::{Placed, Slots};

struct Stream {
    id: SlotId,
    /// Requests that run with it.
    leases: u32,
    /// A request ran with it.
    served: bool,
}

/// Those that run now.
#[derive(Default)]
pub(super) struct Streams(HashMap<Digest, Stream>);

impl Streams {
    pub(super) fn slot(&self, digest: &Digest) -> Option<SlotId> {
        self.0.get(digest).map(|stream| stream.id)
    }

    /// A request runs with it from now on. False: it is not here.
    pub(super) fn lease(&mut self, digest: &Digest) -> bool {
        let Some(stream) = self.0.get_mut(digest) else { return false };
        stream.leases += 1;
        stream.served = true;
        true
    }

    /// That request ended. False: it is not here.
    pub(super) fn release(&mut self, digest: &Digest) -> bool {
        let Some(stream) = self.0.get_mut(digest) else { return false };
        stream.leases = stream.leases.saturating_sub(1);
        true
    }

    pub(super) fn leases(&self, digest: &Digest) -> u32 {
        self.0.get(digest).map_or(0, |stream| stream.leases)
    }

    /// Whether its requests may run and none has begun to.
    pub(super) fn is_fresh(&self, digest: &Digest) -> bool {
        self.0.get(digest).is_some_and(|stream| !stream.served)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, u32)> {
        self.0.iter().map(|(digest, stream)| (digest, stream.leases))
    }
}

/// What goes on with the requests of an adapter that is streamed no more.
#[derive(Default)]
pub(super) struct Ended {
    /// Those that run.
    pub(super) leases: u32,
    pub(super) served: bool,
}

impl Slots {
    /// Lets adapters run that arrived and find no room, in order, as far as the engine streams them.
    pub(super) fn stream_arrivals(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, placed: &mut Vec<Placed>) {
        for at in 0..self.arrived.len() {
            let digest = self.arrived[at].digest;
            let is_wanted = !scheduler.of_adapter(&digest, Phase::Beside).is_empty();
            if self.streams.0.contains_key(&digest) || !is_wanted || !scheduler.is_within_share(&digest) {
                continue;
            }
            let Some(adapter) = self.adapter_of(&self.arrived[at]) else { continue };
            match engine.stream(adapter) {
                Ok(Some(id)) => {
                    self.streams.0.insert(digest, Stream { id, leases: 0, served: false });
                    self.generation += 1;
                    scheduler.open(digest);
                    placed.push(Placed::Streamed(digest));
                }
                // Later ones do not overtake it.
                Ok(None) => return,
                // A device that failed: the next step says so, too.
                Err(error) => {
                    tracing::warn!(%digest, %error, "an adapter that waits for room cannot run");
                    return;
                }
            }
        }
    }

    /// It is streamed no more. Its waiting requests stay in the queue, and may run only if it has a slot by then.
    pub(super) fn end_stream(&mut self, digest: &Digest, engine: &mut Engine) -> Ended {
        let Some(Stream { id, leases, served }) = self.streams.0.remove(digest) else { return Ended::default() };
        // Its memory is in the hands of whoever waits for room.
        drop(engine.remove(id));
        self.generation += 1;
        Ended { leases, served }
    }

    /// Whether a request runs with it or may be let in.
    pub(super) fn is_streamed_for_somebody(&self, digest: &Digest, scheduler: &Scheduler) -> bool {
        self.streams.0.contains_key(digest)
            && (self.streams.leases(digest) > 0 || !scheduler.of_adapter(digest, Phase::Waiting).is_empty())
    }

    /// Adapters that run without a slot.
    pub(crate) fn streamed(&self) -> usize {
        self.streams.len()
    }
}

//! Adapters that find no room on a device and run meanwhile from pinned memory, where they lie packed.
//!
//! Each step that uses one copies it over the bus, layer by layer (`weft_engine::Engine::stream`): slower than a slot, faster than to wait until running
//! requests end. They stay among those that wait for room, in their order, and change into a slot once there is some; requests that run with them notice
//! nothing of it. While nobody has run with it yet and its request is the next to be let in, nothing is owed to it, so that this one is; else it gets its blocks as
//! any other. It keeps its load's turn meanwhile. What the bus moves for it is charged to nobody, as returns from the second tier are not; the engine's limit bounds it.

use std::collections::{HashMap, HashSet};

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
pub(super) struct Streams {
    running: HashMap<Digest, Stream>,
    /// Found no room, and find none before another one ends.
    refused: HashSet<Digest>,
}

impl Streams {
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.running.contains_key(digest)
    }

    pub(super) fn digests(&self) -> HashSet<Digest> {
        self.running.keys().copied().collect()
    }

    pub(super) fn slot(&self, digest: &Digest) -> Option<SlotId> {
        self.running.get(digest).map(|stream| stream.id)
    }

    /// A request runs with it from now on. False: it is not here.
    pub(super) fn lease(&mut self, digest: &Digest) -> bool {
        let Some(stream) = self.running.get_mut(digest) else { return false };
        stream.leases += 1;
        stream.served = true;
        true
    }

    /// That request ended. False: it is not here.
    pub(super) fn release(&mut self, digest: &Digest) -> bool {
        let Some(stream) = self.running.get_mut(digest) else { return false };
        stream.leases = stream.leases.saturating_sub(1);
        true
    }

    pub(super) fn leases(&self, digest: &Digest) -> u32 {
        self.running.get(digest).map_or(0, |stream| stream.leases)
    }

    /// Whether its requests may run and none has begun to.
    pub(super) fn is_fresh(&self, digest: &Digest) -> bool {
        self.running.get(digest).is_some_and(|stream| !stream.served)
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, u32)> {
        self.running.iter().map(|(digest, stream)| (digest, stream.leases))
    }
}

impl Slots {
    /// Lets adapters run that arrived and find no room, in order, as far as the engine streams them.
    pub(super) fn stream_arrivals(&mut self, engine: &mut Engine, scheduler: &mut Scheduler, placed: &mut Vec<Placed>) {
        for at in 0..self.arrived.len() {
            let digest = self.arrived[at].digest;
            let is_known = self.streams.has(&digest) || self.streams.refused.contains(&digest);
            if is_known
                || scheduler.of_adapter(&digest, Phase::Beside).is_empty()
                || !scheduler.is_within_share(&digest)
            {
                continue;
            }
            let Some(adapter) = self.adapter_of(&self.arrived[at]) else { continue };
            match engine.stream(adapter) {
                Ok(Some(id)) => {
                    self.streams.running.insert(digest, Stream { id, leases: 0, served: false });
                    self.generation += 1;
                    scheduler.open(digest);
                    placed.push(Placed::Streamed(digest));
                }
                // Smaller ones behind it may find some: slots are given in order all the same.
                Ok(None) => {
                    self.streams.refused.insert(digest);
                }
                Err(error) => {
                    placed.push(Placed::Failed(digest, error.into()));
                    return;
                }
            }
        }
    }

    /// It is streamed no more. How many requests run with it: they and those in the queue need a slot by the next step, or have to be failed.
    pub(super) fn end_stream(&mut self, digest: &Digest, engine: &mut Engine) -> u32 {
        self.streams.refused.remove(digest);
        let Some(Stream { id, leases, .. }) = self.streams.running.remove(digest) else { return 0 };
        // Its memory is in the hands of whoever waits for room.
        drop(engine.remove(id));
        self.streams.refused.clear();
        self.generation += 1;
        leases
    }

    /// Those that nobody runs with or waits for any more make way for others, wherever they are in the order. One that a pin waits for goes on waiting for room.
    pub(super) fn end_idle_streams(
        &mut self,
        engine: &mut Engine,
        scheduler: &mut Scheduler,
        now_ms: u64,
        placed: &mut Vec<Placed>,
    ) {
        let streamed = self.streams.running.keys();
        let idle: Vec<Digest> =
            streamed.filter(|digest| !self.is_streamed_for_somebody(digest, scheduler)).copied().collect();
        for digest in idle {
            if self.is_wanted(&digest, scheduler) {
                self.end_stream(&digest, engine);
                scheduler.close(&digest);
            } else if self.put_first(|other| *other == digest) {
                self.lay_aside_first(engine, scheduler, now_ms);
                placed.push(Placed::Dropped(digest));
            }
        }
    }

    /// Whether a request runs with it or may be let in.
    pub(super) fn is_streamed_for_somebody(&self, digest: &Digest, scheduler: &Scheduler) -> bool {
        self.streams.has(digest)
            && (self.streams.leases(digest) > 0 || !scheduler.of_adapter(digest, Phase::Waiting).is_empty())
    }

    /// Adapters that run without a slot.
    pub(crate) fn streamed(&self) -> usize {
        self.streams.len()
    }
}

//! The loop's part in residency: loads that start and end, slots that are filled, and what operators wish.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use weft_batching::{Phase, RequestId};
use weft_fault::Fault;
use weft_types::Digest;

use super::{Command, StepLoop};
use crate::Error;
use crate::adapters::load::{Brought, Packed};
use crate::adapters::pins::Reply;
use crate::adapters::slots::Placed;
use crate::desired::Desired;
use crate::error::chain;

/// What an operator wishes for one adapter; each is answered once.
pub(crate) enum Wish {
    /// Load it if it is not here, and keep it in its slot. Told its bytes, and whether it was pinned before.
    Pin(Digest, Reply),
    /// Told whether there was a pin.
    Unpin(Digest, oneshot::Sender<bool>),
    /// Drop it now. Told the bytes that got free.
    Evict(Digest, oneshot::Sender<Result<u64, Fault>>),
}

impl StepLoop {
    /// A load came near, ended or failed.
    pub(super) fn brought(&mut self, digest: Digest, result: Result<Brought, Error>) {
        let packed = match result {
            Ok(Brought::Near(near)) => return self.loads.came_near(digest, near),
            Ok(Brought::Packed(packed)) => Ok(packed),
            Err(error) => Err(error),
        };
        self.loads.ended(&digest);
        self.ahead.ended(&digest);
        let is_memory_out = matches!(&packed, Err(Error::Engine(error)) if error.is_out_of_memory());
        if self.starved.ended(&digest, is_memory_out) && self.make_memory(&digest) {
            self.scheduler.loaded(&digest, None);
            return;
        }
        self.scheduler.loaded(&digest, packed.as_ref().ok().map(|packed| packed.prepared.bytes()));
        let word = packed.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
        self.parts.metrics.adapter_loads.with_label_values(&[word]).inc();
        match packed {
            // Compared where the bytes were hashed; once more here, where it counts.
            Ok(packed) if packed.prepared.digest() == digest => self.loaded(packed),
            Ok(packed) => {
                let found = packed.prepared.digest();
                self.fail_beside(digest, &Error::WrongBytes { wanted: digest, found });
            }
            Err(error) => self.fail_beside(digest, &error),
        }
    }

    /// A load found no memory to be packed into. False: nothing can be done, and its requests have to be failed.
    fn make_memory(&mut self, digest: &Digest) -> bool {
        self.parts.metrics.out_of_memory.inc();
        if !self.slots.is_wanted(digest, &self.scheduler) {
            return false;
        }
        if self.parts.loader.others_pack() || self.slots.has_arrivals() {
            // They give memory back as they get their slots.
            self.starved.wait(*digest);
            return true;
        }
        let now_ms = self.now_ms();
        let shed = self.slots.shed(&mut self.parts.engine, &mut self.scheduler, now_ms);
        if shed {
            tracing::warn!(%digest, "no memory to pack an adapter; what is worth least goes, and it is tried again");
        }
        shed
    }

    fn loaded(&mut self, packed: Packed) {
        self.parts.metrics.adapter_load_seconds.observe(packed.took.as_secs_f64());
        self.parts.view.moved(packed.prepared.digest(), packed.blob_bytes);
        let step = Duration::from_micros(self.load.step_us);
        self.slots.arrive(packed, step, self.now_ms());
    }

    /// Finds slots for what has arrived and starts loads for what is wanted; then makes way for what requests want of the same memory.
    pub(super) fn bring_adapters(&mut self) {
        self.scheduler.tell_time(self.now_ms());
        // What comes back from the second tier can be placed at once, and more may come back after it.
        while self.place_adapters() | self.start_loads() {}
        let now_ms = self.now_ms();
        let placed = self.slots.make_way(&mut self.parts.engine, &mut self.scheduler, now_ms);
        self.note_placed(placed);
    }

    /// Whether something changed place.
    fn place_adapters(&mut self) -> bool {
        let now_ms = self.now_ms();
        let placed = self.slots.place(&mut self.parts.engine, &mut self.scheduler, now_ms);
        let any = !placed.is_empty();
        if placed.iter().any(|placed| !matches!(placed, Placed::Streamed(_))) {
            self.starved.wake_first();
        }
        self.note_placed(placed);
        any
    }

    fn note_placed(&mut self, placed: Vec<Placed>) {
        for placed in placed {
            match placed {
                Placed::Installed(digest) => {
                    self.adapter_is_ready(&digest);
                    tracing::debug!(%digest, "adapter installed");
                }
                Placed::Streamed(digest) => {
                    self.parts.metrics.adapter_streams.inc();
                    self.adapter_is_ready(&digest);
                    tracing::debug!(%digest, "adapter runs from main memory until it finds room");
                }
                Placed::Evicted(digest) => {
                    self.parts.metrics.adapter_evictions.inc();
                    for id in self.scheduler.of_adapter(&digest, Phase::Beside) {
                        if let Some(active) = self.active.get_mut(&id) {
                            active.adapter_ready = None;
                        }
                    }
                    tracing::debug!(%digest, "adapter evicted");
                }
                Placed::Dropped(digest) => tracing::debug!(%digest, "adapter came too late"),
                Placed::TooLarge { digest, bytes } => {
                    let limit = self.slots.bytes_max();
                    self.fail_beside(digest, &Error::AdapterTooLarge { digest, bytes, limit });
                }
                Placed::Failed(digest, error) => {
                    self.fail_beside(digest, &error);
                    // Those that ran with it from main memory.
                    for id in [Phase::Running, Phase::Preempted]
                        .map(|phase| self.scheduler.of_adapter(&digest, phase))
                        .concat()
                    {
                        self.fail(id, &error);
                    }
                    self.end_if_fatal(error);
                }
            }
        }
    }

    /// Whoever waits for its turn has nothing else to wait for.
    fn adapter_is_ready(&mut self, digest: &Digest) {
        let now = Instant::now();
        for id in self.scheduler.of_adapter(digest, Phase::Waiting) {
            if let Some(active) = self.active.get_mut(&id) {
                active.adapter_ready.get_or_insert(now);
            }
        }
    }

    /// Starts what may run at once of what waits beside the queue: packing of leased bytes, then returns from the second
    /// tier and asks for leases, each digest once. True if something came back from the second tier.
    fn start_loads(&mut self) -> bool {
        self.start_packing();
        if self.loads.is_idle() && !self.slots.has_arrivals() {
            self.starved.wake_all();
        }
        let mut came_back = false;
        while let Some(digest) = self.next_to_bring() {
            if self.slots.bring_back(&digest) {
                self.scheduler.loaded(&digest, Some(0));
                self.parts.metrics.adapter_returns.inc();
                came_back = true;
                continue;
            }
            self.loads.ask(digest);
            let load = self.parts.loader.clone().bring(digest);
            self.spawn_load(digest, load);
        }
        came_back
    }

    fn next_to_bring(&mut self) -> Option<Digest> {
        let (loads, slots, starved) = (&self.loads, &self.slots, &self.starved);
        // With no room for leases, what is in the second tier may still come back.
        let skip = |digest: &Digest| {
            let is_out = loads.is_full() && !slots.is_prepared(digest);
            slots.has(digest) || loads.has(digest) || starved.waits(digest) || is_out
        };
        if let Some(digest) = self.scheduler.next_wanted(skip) {
            return Some(digest);
        }
        let for_pin = self
            .slots
            .wanted_by_pin(|digest| self.loads.has(digest) || self.loads.is_full() || self.starved.waits(digest));
        for_pin.or_else(|| self.next_ahead())
    }

    /// What a placement wants brought ahead, while nobody waits for anything.
    fn next_ahead(&mut self) -> Option<Digest> {
        if !self.loads.is_idle() {
            return None;
        }
        let digest = self.ahead.next(|digest| self.slots.holds(digest))?;
        self.parts.metrics.adapters_ahead.inc();
        Some(digest)
    }

    fn start_packing(&mut self) {
        if !self.loads.any_near() {
            return;
        }
        let (slots, scheduler, ahead) = (&self.slots, &self.scheduler, self.ahead.loading());
        let is_wanted = |digest: &Digest| slots.is_wanted(digest, scheduler) || ahead == Some(*digest);
        for digest in self.loads.give_up_near(is_wanted) {
            self.scheduler.loaded(&digest, None);
        }
        while self.loads.any_near()
            && let Some(turn) = self.parts.loader.turn()
        {
            let loads = &self.loads;
            let next = match self.scheduler.next_wanted(|digest| !loads.is_near(digest)) {
                Some(digest) => Some(digest),
                None => self.slots.wanted_by_pin(|digest| !self.loads.is_near(digest)),
            };
            let next = next.or_else(|| self.ahead.loading().filter(|digest| self.loads.is_near(digest)));
            let Some(digest) = next else { return };
            let Some(near) = self.loads.start_packing(digest) else { return };
            let loader = self.parts.loader.clone();
            self.spawn_load(digest, async move { loader.pack(near, digest, turn).await.map(Brought::Packed) });
        }
    }

    fn spawn_load(&self, digest: Digest, load: impl Future<Output = Result<Brought, Error>> + Send + 'static) {
        let commands = self.parts.commands.clone();
        self.parts.runtime.spawn(async move {
            let result = load.await;
            // An error means that the loop has ended.
            let _ = commands.send(Command::Brought { digest, result });
        });
    }

    /// A new request whose adapter will not be leased soon: the daemon may bring it near meanwhile.
    pub(super) fn hint(&self, id: RequestId) {
        let Some(digest) = self.active.get(&id).and_then(|active| active.job.adapter) else { return };
        let known = self.slots.has(&digest) || self.slots.is_prepared(&digest) || self.loads.has(&digest);
        if self.loads.is_full() && !known && self.parts.prefetch.hint(digest) {
            self.parts.metrics.adapter_hints.inc();
        }
    }

    /// A load failed: so do the requests and pins that waited for it, and nobody else.
    fn fail_beside(&mut self, digest: Digest, error: &Error) {
        tracing::warn!(%digest, kind = %error.kind(), message = chain(error), "adapter was not loaded");
        for id in self.scheduler.of_adapter(&digest, Phase::Beside) {
            self.fail(id, error);
        }
        for reply in self.slots.take_pins(&digest) {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.into()));
        }
    }

    /// Follows a placement: what it wants here goes last, some is brought before anybody asks, some is pinned.
    pub(super) fn desire(&mut self, desired: &[Desired], is_news: bool) {
        let pinned = desired.iter().filter(|desired| desired.pinned).map(|desired| desired.adapter).collect();
        let all = desired.iter().map(|desired| desired.adapter).collect();
        self.slots.desire(all, &pinned);
        // What was brought and had to go again is not brought again for the same placement.
        if is_news {
            self.ahead.desire(desired.iter().filter(|desired| desired.ahead).map(|desired| desired.adapter));
        }
    }

    /// Carries out an operator's wish; whoever is answered sees its effect. A caller that has gone needs no answer.
    pub(super) fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Pin(digest, reply) => self.slots.pin(digest, reply),
            Wish::Unpin(digest, reply) => {
                let was_pinned = self.slots.unpin(&digest);
                self.show();
                let _ = reply.send(was_pinned);
            }
            Wish::Evict(digest, reply) => {
                let evicted = self.slots.evict_now(&digest, &mut self.parts.engine, &mut self.scheduler);
                self.show();
                drop(reply.send(evicted.map_err(Into::into)));
            }
        }
    }
}

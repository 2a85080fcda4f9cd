//! What a gateway knows of the workers: the last heartbeat of each, and what it sent there since.

use crate::shape::{Micros, Shape};
use crate::worker::{SLOT, Worker};
use std::collections::HashSet;
use weft_placement::{Availability, Bandwidth, Place, Tier, View, WorkerLoad};

/// A heartbeat, as all gateways get it.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    pub(crate) at: Micros,
    pub(crate) active: usize,
    pub(crate) prompt_backlog_ms: f64,
    pub(crate) loading_ms: f64,
    pub(crate) recent: f64,
    pub(crate) tiers: Vec<u8>,
}

impl Heartbeat {
    pub(crate) fn of(worker: &Worker, now: Micros) -> Self {
        Self {
            at: now,
            active: worker.active(),
            prompt_backlog_ms: worker.prompt_backlog(now) as f64 / 1000.0,
            loading_ms: worker.loading_ms(now),
            recent: worker.recent(now),
            tiers: worker.tiers.clone(),
        }
    }
}

/// What this gateway sent to a worker since its heartbeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) requests: usize,
    pub(crate) prefill_ms: f64,
    pub(crate) work_ms: f64,
    pub(crate) adapters: HashSet<u32>,
}

/// A gateway's view while it routes one request.
pub(crate) struct Seen<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) heartbeats: &'a [Heartbeat],
    pub(crate) sent: &'a [Sent],
    pub(crate) is_there: &'a [bool],
    pub(crate) adapter: u32,
    pub(crate) now: Micros,
}

impl Seen<'_> {
    /// Requests on a worker, as far as this gateway knows.
    pub(crate) fn active(&self, worker: usize) -> usize {
        self.heartbeats[worker].active + self.sent[worker].requests
    }
}

impl View for Seen<'_> {
    fn load(&self, worker: u16) -> Option<WorkerLoad> {
        let at = usize::from(worker);
        let (heartbeat, sent) = (&self.heartbeats[at], &self.sent[at]);
        let since_ms = (self.now - heartbeat.at) as f64 / 1000.0;
        let hold_ms = self.shape.output_tokens * self.shape.step_ms;
        let over = (self.active(at) + 1).saturating_sub(self.shape.seats) as f64;
        let seats_ms = (over * hold_ms / self.shape.seats as f64 - since_ms).max(0.0);
        let prompts_ms = (heartbeat.prompt_backlog_ms + sent.prefill_ms - since_ms).max(0.0);
        let [memory, disk, remote] = self.shape.bandwidth;
        Some(WorkerLoad {
            availability: if self.is_there[at] { Availability::Serving } else { Availability::Broken },
            queue_ms: seats_ms.max(prompts_ms),
            loading_ms: (heartbeat.loading_ms - since_ms).max(0.0),
            prefill_tokens_per_ms: self.shape.prefill_tokens_per_ms,
            bandwidth: Bandwidth { memory, disk, remote },
            recent: heartbeat.recent + sent.work_ms,
        })
    }

    fn place(&self, worker: u16) -> Place {
        let at = usize::from(worker);
        let tier = match self.heartbeats[at].tiers[self.adapter as usize] {
            SLOT => Tier::Slot,
            // It was sent there and loads now.
            _ if self.sent[at].adapters.contains(&self.adapter) => Tier::Memory,
            1 => Tier::Memory,
            2 => Tier::Disk,
            _ => Tier::Remote,
        };
        Place { tier, prefix_hit_tokens: 0 }
    }
}

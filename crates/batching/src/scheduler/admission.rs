//! Who is let in: into the queue, and from the queue into KV memory.

use super::{Phase, Request, RequestId, Scheduler, StepPlan};
use crate::Error;
use crate::counters::Weight;
use crate::foresight::{Growth, peak_blocks};
use crate::pace::Room;
use crate::turns::Tenant;

/// Blocks that are missing for a request to be let in, and what it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lack {
    pub(super) now: usize,
    pub(super) at_the_peak: usize,
    /// That its known tokens and the next one need beside those that are cached.
    pub(super) takes: usize,
}

impl Lack {
    fn is_nothing(self) -> bool {
        self.now == 0 && self.at_the_peak == 0
    }
}

impl Scheduler {
    pub(super) fn plan_admissions(&mut self, plan: &mut StepPlan, room: &mut Room) {
        while room.tokens > 0 && self.costs.fit(room, 0, 1) > 0 {
            let Some(id) = self.next_admission() else { return };
            let first_time = self.requests[&id].phase != Phase::Preempted;
            if !first_time {
                let request = &self.requests[&id];
                let tenant = request.tenant.clone();
                self.preempted.remove(&request.admission);
                self.note_left(&tenant);
            } else {
                self.dequeue(id);
                self.admissions += 1;
                plan.admitted.push(id);
                let request = self.requests.get_mut(&id).expect("invariant: queued requests are known");
                request.admission = self.admissions;
                if let Some(adapter) = request.adapter {
                    self.loads.end(&adapter);
                }
            }
            let request = self.requests.get_mut(&id).expect("invariant: queued requests are known");
            request.phase = Phase::Running;
            self.running.insert(request.admission, id);
            self.start_behind_cached(id, first_time);
            self.prefill(id, plan, room);
        }
    }

    /// Who is admitted next, if its blocks are free: of the least charged tenant, a preempted request before one that
    /// never ran. Nobody overtakes a request that does not fit yet, so that it will.
    pub(super) fn next_admission(&self) -> Option<RequestId> {
        self.next_in_turn().filter(|&id| self.fits(id).is_nothing())
    }

    /// The same, whether it fits or not.
    pub(super) fn next_in_turn(&self) -> Option<RequestId> {
        if self.running.len() >= self.limits.running_max {
            return None;
        }
        let again = self.preempted.iter().map(|(admission, id)| (self.key_of(*id), *admission, *id));
        let again = again.min();
        // Preempted requests keep their adapters: with them, too, no more than `running_max` are under way.
        let under_way = self.running.len() + self.preempted.len();
        let may_start = under_way < self.limits.running_max;
        let new = self.waiting.first(|tenant, entry| self.turn(tenant, entry)).filter(|_| may_start);
        match (again, new) {
            (Some((key, _, id)), Some((new_key, _))) if key <= new_key => Some(id),
            (_, Some((_, entry))) => Some(entry.id),
            (Some((_, _, id)), None) => Some(id),
            (None, None) => None,
        }
    }

    /// What is missing for a request to be let in. Cost: one look into the prefix cache, and linear in running requests.
    pub(super) fn fits(&self, id: RequestId) -> Lack {
        let request = &self.requests[&id];
        let cached = self.cached(request);
        let needed = self.pool.blocks_for((request.known + 1).min(request.known_max - 1));
        Lack {
            now: self.lacks_now(needed - cached.referenced),
            at_the_peak: self.lacks_at_the_peak(id, cached.referenced),
            takes: needed - cached.blocks,
        }
    }

    /// Its known tokens and the next one have free blocks, beside those that running requests take next: blocks for the
    /// rest of their prompts, and one for each that decodes. Else the next step preempts. `own`: those that others do not hold
    /// already.
    fn lacks_now(&self, own: usize) -> usize {
        let promised: usize = self
            .running
            .values()
            .map(|id| &self.requests[id])
            .map(|running| self.pool.blocks_for(running.known).saturating_sub(running.blocks.len()) + 1)
            .sum();
        (own + promised + self.pool.owed()).saturating_sub(self.pool.free())
    }

    /// With it, nobody is expected to run out of blocks before somebody ends. Blocks that several hold count once.
    fn lacks_at_the_peak(&self, id: RequestId, cached: usize) -> usize {
        let running = self.running.values().chain([&id]).map(|id| self.growth(&self.requests[id]));
        let growths: Vec<Growth> = running.collect();
        let held: usize = self.running.values().map(|id| self.requests[id].blocks.len()).sum();
        let shared = held.saturating_sub(self.pool.own() - self.pool.free()) + cached;
        let peak = peak_blocks(&growths, self.pool.block_size());
        if growths.len() == 1 { 0 } else { (peak + self.pool.owed()).saturating_sub(self.pool.within_reach() + shared) }
    }

    /// A request that outlives what was expected is taken to need another block's worth, and another.
    fn growth(&self, request: &Request) -> Growth {
        let output = request.known - request.prompt;
        let to_come = request.output_expected.saturating_sub(output).max(self.pool.block_size());
        // The last token is delivered, never computed.
        Growth { tokens: request.known, to_come: to_come.min((request.known_max - 1).saturating_sub(request.known)) }
    }

    /// Learns from a request that ends how long such requests are. What ended before its first token says nothing.
    pub(super) fn learn_length(&mut self, request: &Request) {
        if request.charged >= request.prompt {
            let output = request.known - request.prompt;
            self.lengths.learn(&request.tenant, request.adapter, output + 1);
        }
    }

    /// In a full queue, finds the one that has to go for a request of this tenant.
    pub(super) fn make_room_in_queue(&mut self, tenant: &Tenant, weight: Weight) -> Result<Option<RequestId>, Error> {
        let queued = self.waiting.len() + self.beside.len();
        if queued < self.limits.queue_max {
            return Ok(None);
        }
        let full = Error::QueueFull { queued, limit: self.limits.queue_max };
        let count = |tenant: &str| self.waiting.len_of(tenant) + self.beside.len_of(tenant);
        let longest = self
            .waiting
            .tenants()
            .chain(self.beside.tenants())
            .map(|tenant| (self.counters.weight(tenant).share_of(count(tenant)), tenant))
            .max();
        let Some((longest_share, longest)) = longest else { return Err(full) };
        // Afterwards it must not have less for its weight than the newcomer.
        let after = self.counters.weight(longest).share_of(count(longest) - 1);
        if longest == tenant || after < weight.share_of(count(tenant) + 1) || longest_share == 0 {
            return Err(full);
        }
        let last = self.waiting.last_of(longest).into_iter().chain(self.beside.last_of(longest));
        let victim = last.max_by_key(|entry| (entry.priority, entry.id)).expect("invariant: it has most of the queue");
        self.remove(victim.id);
        Ok(Some(victim.id))
    }
}

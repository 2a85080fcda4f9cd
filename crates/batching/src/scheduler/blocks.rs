//! Blocks that requests and adapters share: what requests want, and what is lent.
//!
//! Who gets a block is decided outside, where both sides' worth is known; here is what the next step would do with it.

use weft_residency::Worth;
use weft_types::Digest;

use super::Scheduler;

/// What requests want of blocks that adapters have. See [`Scheduler::blocks_wanted`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlocksWanted {
    /// So many more there must be for running requests to grow by: else some are preempted.
    pub to_grow: usize,
    /// So many more, these included, for the next in turn to be let in as well.
    pub to_admit: usize,
    /// So many that the next step takes are not blank: idle blocks lose their content for them, unless others become blank.
    pub from_idle: usize,
    /// The adapter of the request that is let in next: without it nothing would be won.
    pub adapter: Option<Digest>,
}

impl Scheduler {
    /// What the next step lacks. Cost: linear in running requests.
    #[must_use]
    pub fn blocks_wanted(&self) -> BlocksWanted {
        let pool = &self.pool;
        let growth: usize = self
            .running
            .values()
            .map(|id| &self.requests[id])
            .map(|running| {
                let end = running.known.min(running.computed.saturating_add(self.limits.step_tokens_max));
                pool.blocks_for(end).saturating_sub(running.blocks.len())
            })
            .sum();
        let to_grow = growth.saturating_sub(pool.free());
        // One that would be refused for what is expected later needs none now.
        let next = self.next_in_turn().map(|id| (&self.requests[&id], self.fits(id)));
        let Some((request, lack)) = next.filter(|(_, lack)| lack.at_the_peak == 0) else {
            let from_idle = growth.saturating_sub(pool.blank());
            return BlocksWanted { to_grow, to_admit: to_grow, from_idle, adapter: None };
        };
        BlocksWanted {
            to_grow,
            to_admit: lack.now.max(to_grow),
            from_idle: (growth + lack.takes).saturating_sub(pool.blank()),
            adapter: request.adapter,
        }
    }

    /// The adapter of the request that is let in next, once there are blocks for it; none for the base's, and if nobody can be let in.
    #[must_use]
    pub fn next_adapter(&self) -> Option<Digest> {
        self.requests[&self.next_in_turn()?].adapter
    }

    /// Lends blocks to an adapter; see [`crate::BlockPool::lend`].
    pub fn lend_blocks(&mut self, runs: &[usize]) -> Option<Vec<u32>> {
        self.pool.lend(runs)
    }

    /// Takes blocks of an adapter back; see [`crate::BlockPool::take_back`].
    pub fn take_blocks_back(&mut self, blocks: &[u32]) {
        self.pool.take_back(blocks);
    }

    /// So many blocks of adapters would come back if requests wanted them; see [`crate::BlockPool::set_lent_idle`].
    pub fn set_lent_idle(&mut self, blocks: usize) {
        self.pool.set_lent_idle(blocks);
    }

    /// An adapter waits for blocks: until it gets them no request is let in for which fewer than these would be left. So it gets them within the time of the
    /// requests that run. All of them: for neighbours that are nowhere free now.
    pub fn owe_blocks(&mut self, blocks: usize) {
        self.pool.owe(blocks.min(self.pool.total()));
    }

    /// Blocks without content.
    #[must_use]
    pub fn blank_blocks(&self) -> usize {
        self.pool.blank()
    }

    /// What the idle block that goes next is worth; see [`crate::BlockPool::next_to_go`].
    #[must_use]
    pub fn idle_block(&self) -> Option<Worth> {
        self.pool.next_to_go()
    }

    /// Lets the next idle block lose its content. False: there is none.
    pub fn reclaim_block(&mut self) -> bool {
        self.pool.reclaim_one()
    }

    /// Tells the time; see [`crate::BlockPool::tell_time`].
    pub fn tell_time(&mut self, now_ms: u64) {
        self.pool.tell_time(now_ms);
    }
}

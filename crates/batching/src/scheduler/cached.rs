//! What the scheduler does with the prefix cache: where a request starts, and which of its blocks others may read.

use super::{Request, RequestId, Scheduler};
use crate::blocks::Cached;
use crate::prefix::BlockHash;

/// What the prefix cache did, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCounts {
    /// Prompt tokens of requests that ran for the first time and could read the cache.
    pub lookup_tokens: u64,
    /// Of these, tokens that were not computed because their blocks were cached.
    pub hit_tokens: u64,
    /// Cached blocks that were reclaimed for other content.
    pub reclaimed_blocks: u64,
}

impl Scheduler {
    /// A further block of the request is full, because it was given output tokens: this is its hash. Blocks come in
    /// order, those of the prompt first; the block is cached once all its tokens are computed.
    pub fn block_filled(&mut self, id: RequestId, hash: BlockHash) {
        if let Some(prefix) = self.requests.get_mut(&id).and_then(|request| request.prefix.as_mut()) {
            prefix.hashes.push(hash);
        }
    }

    /// What the prefix cache did so far.
    #[must_use]
    pub fn prefix_counts(&self) -> PrefixCounts {
        PrefixCounts { reclaimed_blocks: self.pool.reclaimed(), ..self.prefix_counts }
    }

    /// What a request would find in the cache now. Cost: one look-up per cached block and one more.
    pub(super) fn cached(&self, request: &Request) -> Cached {
        self.pool.cached(request.readable(self.pool.block_size()))
    }

    /// Lets a request that is about to run start behind the longest cached prefix.
    pub(super) fn start_behind_cached(&mut self, id: RequestId, first_time: bool) {
        let block_size = self.pool.block_size();
        let Some(request) = self.requests.get_mut(&id) else { return };
        let mut blocks = std::mem::take(&mut request.blocks);
        self.pool.adopt(&mut blocks, request.readable(block_size));
        request.computed = blocks.len() * block_size;
        request.blocks = blocks;
        if first_time && request.prefix.as_ref().is_some_and(|prefix| prefix.reads) {
            self.prefix_counts.lookup_tokens += request.known as u64;
            self.prefix_counts.hit_tokens += request.computed as u64;
        }
    }

    /// Caches the blocks that became complete when tokens from `start` on were computed.
    pub(super) fn cache_completed(&mut self, id: RequestId, start: usize) {
        let Some(request) = self.requests.get(&id) else { return };
        let Some(prefix) = &request.prefix else { return };
        let block_size = self.pool.block_size();
        for index in start / block_size..(request.computed / block_size).min(prefix.hashes.len()) {
            self.pool.cache(request.blocks.blocks()[index], prefix.hashes[index], &request.tenant);
        }
    }
}

impl Request {
    /// Hashes of the blocks that it may take from the cache. At least its last known token is left to compute: the
    /// logits of that one choose the next.
    fn readable(&self, block_size: usize) -> &[BlockHash] {
        match &self.prefix {
            Some(prefix) if prefix.reads => &prefix.hashes[..prefix.hashes.len().min((self.known - 1) / block_size)],
            _ => &[],
        }
    }
}

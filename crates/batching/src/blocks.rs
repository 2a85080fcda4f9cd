//! Physical KV blocks: each is free, referenced by tables, or idle: kept for its content until the memory is needed. On a device some are lent to
//! adapters, and the pool does not know what is in them.

use crate::prefix::{BlockHash, PrefixIndex};
use crate::turns::Tenant;
use weft_residency::Worth;

/// The KV blocks of one request, in the order of its positions: block `i` holds positions
/// `i * block_size .. (i + 1) * block_size`.
///
/// A table holds one reference to each of its blocks. It can neither be copied nor made from numbers, so that references are
/// counted right; it must go back to its pool by [`BlockPool::release`].
///
/// A block that came by [`BlockPool::try_grow`] has this table alone until [`BlockPool::cache`] says that its content is
/// complete; from then on it is never written until it is reclaimed. Hence a block that is written has one reference.
#[derive(Debug, Default)]
#[must_use = "blocks that are not released are lost"]
pub struct BlockTable(Vec<u32>);

impl BlockTable {
    /// A table without blocks.
    pub fn new() -> Self {
        Self::default()
    }

    /// The physical blocks.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.0
    }

    /// How many blocks it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A cached prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// Its length.
    pub blocks: usize,
    /// Of these, how many have a reference now: to share them takes nothing from the free blocks.
    pub referenced: usize,
}

/// All KV blocks of an engine, numbered from 0.
#[derive(Debug)]
pub struct BlockPool {
    /// Blocks without content; the last is handed out next, so that recently used (cache-warm) memory is used again
    /// first.
    blank: Vec<u32>,
    /// Tables that hold the block, by block.
    references: Vec<u32>,
    index: PrefixIndex,
    reclaimed: u64,
    block_size: usize,
    /// Blocks that adapters have.
    lent: usize,
    /// Of these, blocks of adapters that nobody runs with.
    lent_idle: usize,
    /// Blocks that an adapter waits for: no new request is let in for them.
    owed: usize,
}

impl BlockPool {
    /// A pool of `blocks` free blocks of `block_size` tokens each.
    ///
    /// # Panics
    /// If `block_size` is 0 or `blocks` exceeds `u32::MAX`: both come from checked settings.
    #[must_use]
    pub fn new(blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        let count = u32::try_from(blocks).expect("block numbers are 32 bits wide");
        Self {
            blank: (0..count).rev().collect(),
            references: vec![0; blocks],
            index: PrefixIndex::default(),
            reclaimed: 0,
            block_size,
            lent: 0,
            lent_idle: 0,
            owed: 0,
        }
    }

    /// The same empty pool in which a use of a cached block that lies `half_life_ms` back counts half.
    #[must_use]
    pub fn with_half_life_ms(mut self, half_life_ms: u64) -> Self {
        self.index.time().half_life_ms = half_life_ms.max(1);
        self
    }

    /// Tells the time, on any one clock: uses of cached blocks are weighed by it.
    pub fn tell_time(&mut self, now_ms: u64) {
        self.index.time().now_ms = now_ms;
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.references.len()
    }

    /// Blocks that are not lent.
    #[must_use]
    pub fn own(&self) -> usize {
        self.total() - self.lent
    }

    /// Blocks that requests can have, some of them not before an adapter gives them back.
    #[must_use]
    pub fn within_reach(&self) -> usize {
        self.own() + self.lent_idle
    }

    /// So many of the blocks that are lent would come back if they were wanted.
    pub fn set_lent_idle(&mut self, blocks: usize) {
        self.lent_idle = blocks.min(self.lent);
    }

    /// Blocks that adapters wait for.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed
    }

    /// Blocks without content.
    #[must_use]
    pub fn blank(&self) -> usize {
        self.blank.len()
    }

    /// Blocks that no table holds, idle ones included: all can be had at once.
    #[must_use]
    pub fn free(&self) -> usize {
        self.blank.len() + self.index.idle()
    }

    /// Blocks that no table holds, kept for their content.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.index.idle()
    }

    /// Idle blocks that were taken for other content, since the start.
    #[must_use]
    pub fn reclaimed(&self) -> u64 {
        self.reclaimed
    }

    /// Blocks that hold this many tokens.
    #[must_use]
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Grows the table until it holds `tokens` tokens, with blocks that nobody else holds. Says whether it does; if not,
    /// nothing has changed. Idle blocks are reclaimed when there are no blank ones.
    pub fn try_grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(table.len());
        if missing > self.free() {
            return false;
        }
        for _ in 0..missing {
            let block = self.blank.pop().or_else(|| self.reclaim()).expect("invariant: free blocks were counted");
            let references = &mut self.references[block as usize];
            assert_eq!(*references, 0, "invariant: a free block is in no table");
            *references = 1;
            table.0.push(block);
        }
        true
    }

    /// Takes back all blocks of the table and leaves it empty. Cached ones that no table holds any more become idle, the last
    /// of the table as the oldest: without the blocks before it a block is of no use.
    ///
    /// # Panics
    /// If a block is free already: the table came from another pool, which is a bug in our code.
    pub fn release(&mut self, table: &mut BlockTable) {
        for block in table.0.drain(..).rev() {
            let references = &mut self.references[block as usize];
            *references = references.checked_sub(1).expect("invariant: a block in a table has a reference");
            if *references == 0 && !self.index.keep_idle(block) {
                self.blank.push(block);
            }
        }
    }

    /// The longest cached prefix of blocks with these hashes.
    #[must_use]
    pub fn cached(&self, hashes: &[BlockHash]) -> Cached {
        let mut cached = Cached::default();
        for block in hashes.iter().map_while(|hash| self.index.get(hash)) {
            cached.blocks += 1;
            cached.referenced += usize::from(self.references[block as usize] > 0);
        }
        cached
    }

    /// Puts the longest cached prefix of blocks with these hashes into an empty table. They must not be written.
    ///
    /// # Panics
    /// If the table is not empty.
    pub fn adopt(&mut self, table: &mut BlockTable, hashes: &[BlockHash]) {
        assert!(table.is_empty(), "invariant: a prefix is at the beginning");
        for hash in hashes {
            let Some(block) = self.index.get(hash) else { return };
            self.index.wake(block);
            self.references[block as usize] += 1;
            table.0.push(block);
        }
    }

    /// The content of a block in a table is complete: others may find it by this hash. If they find the same content in
    /// another block already, nothing changes.
    pub fn cache(&mut self, block: u32, hash: BlockHash, tenant: &Tenant) {
        assert!(self.references[block as usize] > 0, "invariant: only a block in a table is cached");
        self.index.insert(block, hash, tenant);
    }

    /// Lends blank blocks: for each of `runs` so many neighbours, run after run, those at the end of the pool, where requests come last. None, and nothing has
    /// changed, if there are no such blocks. Then nothing is owed any more. Cost: linear in the pool.
    ///
    /// They come back by [`BlockPool::take_back`]; until then no table gets them.
    pub fn lend(&mut self, runs: &[usize]) -> Option<Vec<u32>> {
        let mut is_blank = vec![false; self.total()];
        self.blank.iter().for_each(|&block| is_blank[block as usize] = true);
        // Long ones first: single blocks are found between them.
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by_key(|&run| std::cmp::Reverse(runs[run]));
        let mut first = vec![0; runs.len()];
        let mut end = self.total();
        let mut last_count = usize::MAX;
        for run in order {
            let count = runs[run];
            if count != last_count {
                (end, last_count) = (self.total(), count);
            }
            first[run] = last_run(&is_blank[..end], count)?;
            end = first[run];
            is_blank[end..end + count].fill(false);
        }
        let lent: Vec<u32> = first
            .iter()
            .zip(runs)
            .flat_map(|(&first, &count)| first..first + count)
            .map(|block| block as u32)
            .collect();
        self.blank.retain(|&block| is_blank[block as usize]);
        self.lent += lent.len();
        self.owed = 0;
        Some(lent)
    }

    /// Takes back what was lent. Requests get it after all other blank blocks.
    ///
    /// # Panics
    /// If a block was not lent, which is a bug in our code.
    pub fn take_back(&mut self, blocks: &[u32]) {
        self.lent = self.lent.checked_sub(blocks.len()).expect("invariant: what comes back was lent");
        self.lent_idle = self.lent_idle.min(self.lent);
        self.blank.splice(0..0, blocks.iter().copied());
    }

    /// An adapter waits for so many blocks more than are blank: those that become free are for it. Running requests may still grow.
    pub fn owe(&mut self, blocks: usize) {
        self.owed = blocks;
    }

    /// What the idle block is worth that is reclaimed next, with a cost of one for a block. None: there is none.
    #[must_use]
    pub fn next_to_go(&self) -> Option<Worth> {
        self.index.next_to_go()
    }

    /// Makes the next idle block blank. False: there is none.
    pub fn reclaim_one(&mut self) -> bool {
        let block = self.reclaim();
        self.blank.extend(block);
        block.is_some()
    }

    fn reclaim(&mut self) -> Option<u32> {
        let block = self.index.reclaim()?;
        self.reclaimed += 1;
        Some(block)
    }
}

/// The last place of `count` neighbours that are all true.
fn last_run(is_blank: &[bool], count: usize) -> Option<usize> {
    let mut end = is_blank.len();
    loop {
        let first = end.checked_sub(count)?;
        match is_blank[first..end].iter().rposition(|blank| !blank) {
            Some(at) => end = first + at,
            None => return Some(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_get_blank_blocks_from_the_end_neighbours_where_they_need_them() {
        let mut pool = BlockPool::new(10, 16);
        let mut table = BlockTable::new();
        assert!(pool.try_grow(&mut table, 1));
        assert_eq!(pool.lend(&[1, 3, 1]).unwrap(), [6, 7, 8, 9, 5]);
        assert_eq!((pool.own(), pool.free(), pool.blank()), (5, 4, 4));
        assert_eq!(pool.lend(&[1, 4]), None, "five of four");
        assert_eq!((pool.own(), pool.free()), (5, 4), "a refusal changes nothing");
        pool.take_back(&[7, 8, 9]);
        // 1 to 4 and 7 to 9 are blank: no four neighbours but the first, and two after the last of them.
        assert_eq!(pool.lend(&[2, 4]).unwrap(), [8, 9, 1, 2, 3, 4]);
        assert_eq!(pool.lend(&[2]), None);
        pool.take_back(&[1, 2, 3, 4, 5, 6, 8, 9]);
        assert_eq!((pool.own(), pool.free()), (10, 9));
        let mut all = BlockTable::new();
        assert!(pool.try_grow(&mut all, 9 * 16));
        let mut blocks = [table.blocks(), all.blocks()].concat();
        blocks.sort_unstable();
        assert_eq!(blocks, (0..10).collect::<Vec<_>>(), "none is lost, none is there twice");
        pool.release(&mut table);
        pool.release(&mut all);
    }

    #[test]
    fn idle_blocks_become_blank_one_by_one_for_whoever_needs_them() {
        let mut pool = BlockPool::new(4, 16);
        let mut table = cached_table(&mut pool, 3);
        pool.release(&mut table);
        pool.owe(1);
        assert_eq!((pool.blank(), pool.lend(&[2]), pool.owed()), (1, None, 1));
        assert!(pool.next_to_go().is_some() && pool.reclaim_one());
        assert_eq!(pool.lend(&[2]).map(|lent| lent.len()), Some(2));
        assert_eq!((pool.owed(), pool.idle(), pool.reclaimed()), (0, 2, 1));
        assert!(pool.reclaim_one() && pool.reclaim_one() && !pool.reclaim_one());
        assert!(pool.next_to_go().is_none());
    }

    #[test]
    fn grows_by_whole_blocks_and_only_when_needed() {
        let mut pool = BlockPool::new(4, 16);
        let mut table = BlockTable::new();
        assert!(pool.try_grow(&mut table, 1));
        assert_eq!((table.len(), pool.free()), (1, 3));
        assert!(pool.try_grow(&mut table, 16));
        assert_eq!(table.len(), 1);
        assert!(pool.try_grow(&mut table, 17));
        assert_eq!(table.blocks(), [0, 1]);
    }

    #[test]
    fn a_refused_growth_changes_nothing() {
        let mut pool = BlockPool::new(3, 16);
        let (mut one, mut two) = (BlockTable::new(), BlockTable::new());
        assert!(pool.try_grow(&mut one, 32));
        assert!(!pool.try_grow(&mut two, 32));
        assert_eq!((two.len(), pool.free()), (0, 1));
        pool.release(&mut one);
        assert!(pool.try_grow(&mut two, 48));
        pool.release(&mut two);
        assert_eq!(pool.free(), 3);
    }

    fn hashes(numbers: std::ops::Range<u8>) -> Vec<BlockHash> {
        numbers.map(|number| BlockHash([number; 32])).collect()
    }

    /// A table of full blocks with the hashes 0, 1, 2 and so on.
    fn cached_table(pool: &mut BlockPool, blocks: u8) -> BlockTable {
        let mut table = BlockTable::new();
        assert!(pool.try_grow(&mut table, usize::from(blocks) * pool.block_size()));
        for (block, hash) in table.blocks().to_vec().into_iter().zip(hashes(0..blocks)) {
            pool.cache(block, hash, &"a".into());
        }
        table
    }

    #[test]
    fn a_shared_block_is_free_when_the_last_table_lets_go() {
        let mut pool = BlockPool::new(4, 16);
        let mut one = cached_table(&mut pool, 3);
        let mut two = BlockTable::new();
        assert_eq!(pool.cached(&hashes(0..2)), Cached { blocks: 2, referenced: 2 });
        pool.adopt(&mut two, &hashes(0..2));
        assert_eq!((two.blocks(), pool.free()), (&one.blocks()[..2], 1));
        pool.release(&mut one);
        assert_eq!((pool.free(), pool.idle()), (2, 1));
        pool.release(&mut two);
        assert_eq!((pool.free(), pool.idle()), (4, 3));
        assert_eq!(pool.cached(&hashes(0..4)), Cached { blocks: 3, referenced: 0 });
    }

    #[test]
    fn memory_that_is_needed_takes_idle_blocks_from_the_end_of_a_prefix() {
        let mut pool = BlockPool::new(4, 16);
        let mut one = cached_table(&mut pool, 3);
        pool.release(&mut one);
        assert!(pool.try_grow(&mut one, 32));
        assert_eq!((pool.cached(&hashes(0..3)).blocks, pool.reclaimed()), (2, 1));
        let mut two = BlockTable::new();
        assert!(!pool.try_grow(&mut two, 48));
        assert_eq!((pool.cached(&hashes(0..3)).blocks, pool.reclaimed()), (2, 1), "a refused growth changes nothing");
        assert!(pool.try_grow(&mut two, 32));
        assert_eq!((pool.cached(&hashes(0..3)).blocks, pool.free()), (0, 0));
    }

    #[test]
    fn a_gap_ends_a_prefix() {
        let mut pool = BlockPool::new(4, 16);
        let mut one = cached_table(&mut pool, 3);
        assert_eq!(pool.cached(&[&hashes(0..1)[..], &hashes(7..8), &hashes(2..3)].concat()).blocks, 1);
        pool.release(&mut one);
    }
}

//! Physical KV blocks: each is free or has exactly one owner.

/// The KV blocks of one request, in the order of its positions: block `i` holds positions
/// `i * block_size .. (i + 1) * block_size`.
///
/// A table owns its blocks. It can neither be copied nor made from numbers, so that a block has one owner; it must go
/// back to its pool by [`BlockPool::release`].
#[derive(Debug, Default)]
#[must_use = "blocks that are not released are lost"]
pub struct BlockTable(Vec<u32>);

impl BlockTable {
    /// A table that owns nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The physical blocks.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.0
    }

    /// How many blocks it owns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it owns none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// All KV blocks of an engine, numbered from 0.
#[derive(Debug)]
pub struct BlockPool {
    /// Free blocks; the last is handed out next, so that recently used (cache-warm) memory is used again first.
    free: Vec<u32>,
    /// Owned or not, by block: catches a table that belongs to another pool.
    owned: Vec<bool>,
    block_size: usize,
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
        Self { free: (0..count).rev().collect(), owned: vec![false; blocks], block_size }
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.owned.len()
    }

    /// Blocks that nobody owns.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that hold this many tokens.
    #[must_use]
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Grows the table until it holds `tokens` tokens. Says whether it does; if not, nothing has changed.
    /// Cost: no allocation beyond the table's own growth.
    pub fn try_grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        for block in self.free.drain(self.free.len() - missing..).rev() {
            self.owned[block as usize] = true;
            table.0.push(block);
        }
        true
    }

    /// Takes back all blocks of the table and leaves it empty.
    ///
    /// # Panics
    /// If a block is free already: the table came from another pool, which is a bug in our code.
    pub fn release(&mut self, table: &mut BlockTable) {
        for block in table.0.drain(..).rev() {
            let owned = std::mem::replace(&mut self.owned[block as usize], false);
            assert!(owned, "invariant: a block in a table is owned");
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

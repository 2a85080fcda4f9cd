//! Which blocks of a pool are free. No memory, no device.

use std::collections::BTreeMap;

/// Equal blocks, taken and given back in runs of neighbours.
#[derive(Debug)]
pub struct Blocks {
    /// First block of each free run, and its length. No two runs touch.
    runs: BTreeMap<usize, usize>,
    free: usize,
    total: usize,
}

impl Blocks {
    /// All of them free.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let runs = if total == 0 { BTreeMap::new() } else { BTreeMap::from([(0, total)]) };
        Self { runs, free: total, total }
    }

    /// The first of `count` neighbours, from the shortest run that holds them, so that long runs stay long; the lowest of equals. Cost: a look at
    /// each free run.
    pub fn take(&mut self, count: usize) -> Option<usize> {
        debug_assert!(count > 0);
        let fitting = self.runs.iter().filter(|(_, len)| **len >= count);
        let (first, len) = fitting.min_by_key(|(_, len)| **len).map(|(first, len)| (*first, *len))?;
        self.runs.remove(&first);
        if len > count {
            self.runs.insert(first + count, len - count);
        }
        self.free -= count;
        Some(first)
    }

    /// Gives back what [`Blocks::take`] gave.
    ///
    /// # Panics
    /// When a block is given back twice.
    pub fn give(&mut self, first: usize, count: usize) {
        let (mut begin, mut end) = (first, first + count);
        if let Some((&before, &len)) = self.runs.range(..first).next_back() {
            assert!(before + len <= first, "blocks {first}..{end} are given back twice");
            if before + len == first {
                begin = before;
            }
        }
        if let Some((&after, &len)) = self.runs.range(first..).next() {
            assert!(after >= end, "blocks {first}..{end} are given back twice");
            if after == end {
                self.runs.remove(&after);
                end += len;
            }
        }
        self.runs.insert(begin, end - begin);
        self.free += count;
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free
    }

    /// The longest free run.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.runs.values().copied().max().unwrap_or(0)
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shortest_run_that_fits_is_taken() {
        let mut blocks = Blocks::new(10);
        let taken: Vec<_> = [3, 1, 2, 1, 3].map(|count| blocks.take(count).unwrap()).into();
        assert_eq!(taken, [0, 3, 4, 6, 7]);
        assert_eq!((blocks.take(1), blocks.free(), blocks.largest()), (None, 0, 0));
        blocks.give(0, 3);
        blocks.give(4, 2);
        assert_eq!((blocks.take(2), blocks.take(4)), (Some(4), None));
        blocks.give(3, 1);
        assert_eq!((blocks.largest(), blocks.total()), (4, 10));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No block belongs to two, none gets lost, and what fits into the longest run is given.
        #[test]
        fn blocks_have_one_owner(total in 0usize..60, steps in prop::collection::vec((any::<bool>(), 1usize..9, any::<prop::sample::Index>()), 0..200)) {
            let mut blocks = Blocks::new(total);
            let mut owned: Vec<(usize, usize)> = Vec::new();
            for (takes, count, index) in steps {
                if takes {
                    let fits = blocks.largest() >= count;
                    let taken = blocks.take(count);
                    prop_assert_eq!(taken.is_some(), fits);
                    if let Some(first) = taken {
                        prop_assert!(first + count <= total);
                        prop_assert!(owned.iter().all(|(other, len)| other + len <= first || first + count <= *other));
                        owned.push((first, count));
                    }
                } else if !owned.is_empty() {
                    let (first, count) = owned.swap_remove(index.index(owned.len()));
                    blocks.give(first, count);
                }
                let held: usize = owned.iter().map(|(_, count)| count).sum();
                prop_assert_eq!(blocks.free() + held, total);
            }
            for (first, count) in owned {
                blocks.give(first, count);
            }
            prop_assert_eq!(blocks.largest(), total);
        }
    }
}

//! The prefix cache: which full blocks hold which tokens, and which of them go first when memory is short.
//!
//! A block is known by the hash of its tokens and of everything before them, beginning with a namespace (base, adapter,
//! tenant, KV format). The caller makes the hashes; here they are opaque, and two that are equal mean the same content.
//! Whoever is not in the namespace cannot name the block, so cannot find it.
//!
//! A cached block that nobody references is *idle*. When blocks run out, idle ones are reclaimed: the least recently
//! used one of the tenant that has most of them. So a tenant keeps its idle blocks while anybody has more, whatever the
//! others send: a flood pushes out its own.
//!
//! What a tenant can learn of others from the cache: nothing of the content of their prompts, for neither what it finds nor
//! what it loses depends on that. What remains is volume. A tenant sees how busy the machine is; the one with most
//! idle blocks sees some of them go when others compute blocks that they had not cached themselves; and when running
//! requests need all the memory, every idle block goes. Only memory and time of its own for each tenant would hide that.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::turns::Tenant;
use weft_residency::Worth;

/// Names the content of a full block and of all blocks before it, within one namespace.
///
/// It must come from a hash without known collisions: a collision would hand one request the keys and values of other
/// tokens. With the 256 bits of SHA-256 an accidental or forged one costs about 2^128 hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

/// How a request uses the prefix cache.
#[derive(Clone, Debug, Default)]
pub struct Prefix {
    /// Of each full block of the prompt, in order. Those of the output follow by
    /// [`Scheduler::block_filled`](crate::Scheduler::block_filled).
    pub hashes: Vec<BlockHash>,
    /// May start behind cached blocks. False for a request that needs the logits of all its prompt tokens. What it
    /// computes is cached either way.
    pub reads: bool,
}

/// A cached block.
#[derive(Debug)]
struct Entry {
    hash: BlockHash,
    /// Who computed it: the unit of fairness among idle blocks.
    tenant: Tenant,
    /// Since when nobody references it; unique.
    idle_since: Option<u64>,
    /// Its uses: by the request that computed it, and by those that began alike. The cost is one block's, for all.
    worth: Worth,
}

/// The cached blocks of a pool. At most one block has a hash, and a block has at most one.
#[derive(Debug, Default)]
pub(crate) struct PrefixIndex {
    by_hash: HashMap<BlockHash, u32>,
    by_block: HashMap<u32, Entry>,
    idle: Idle,
    clock: u64,
    time: Time,
}

/// By what uses are weighed, as told from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time {
    pub(crate) now_ms: u64,
    pub(crate) half_life_ms: u64,
}

impl Default for Time {
    fn default() -> Self {
        Self { now_ms: 0, half_life_ms: 3_600_000 }
    }
}

impl PrefixIndex {
    pub(crate) fn time(&mut self) -> &mut Time {
        &mut self.time
    }

    /// The block with this content.
    pub(crate) fn get(&self, hash: &BlockHash) -> Option<u32> {
        self.by_hash.get(hash).copied()
    }

    /// Blocks that nobody references.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len
    }

    /// Takes in a referenced block whose content is complete and will not change. Nothing happens if the block is in already, or
    /// if another block has the same content: two requests computed it side by side.
    pub(crate) fn insert(&mut self, block: u32, hash: BlockHash, tenant: &Tenant) {
        if self.by_block.contains_key(&block) || self.by_hash.contains_key(&hash) {
            return;
        }
        self.by_hash.insert(hash, block);
        self.by_block.insert(
            block,
            Entry { hash, tenant: tenant.clone(), idle_since: None, worth: Worth::new(1.0, self.time.now_ms) },
        );
    }

    /// The last reference to the block is gone. False: it is not cached, so nobody can come back to it.
    pub(crate) fn keep_idle(&mut self, block: u32) -> bool {
        let Some(entry) = self.by_block.get_mut(&block) else { return false };
        debug_assert_eq!(entry.idle_since, None, "invariant: a referenced block is not idle");
        self.clock += 1;
        entry.idle_since = Some(self.clock);
        self.idle.insert(&entry.tenant, self.clock, block);
        true
    }

    /// A cached block is referenced again.
    pub(crate) fn wake(&mut self, block: u32) {
        let Some(entry) = self.by_block.get_mut(&block) else { return };
        entry.worth = entry.worth.used(self.time.now_ms, self.time.half_life_ms);
        if let Some(since) = entry.idle_since.take() {
            self.idle.remove(&entry.tenant, since);
        }
    }

    /// What the block is worth that [`PrefixIndex::reclaim`] would hand out.
    pub(crate) fn next_to_go(&self) -> Option<Worth> {
        self.by_block.get(&self.idle.victim()?).map(|entry| entry.worth)
    }

    /// Forgets an idle block and hands it out. Cost: logarithmic in idle blocks and tenants.
    pub(crate) fn reclaim(&mut self) -> Option<u32> {
        let block = self.idle.take_victim()?;
        let entry = self.by_block.remove(&block).expect("invariant: idle blocks are cached");
        self.by_hash.remove(&entry.hash);
        Some(block)
    }
}

/// Idle blocks by tenant and age.
#[derive(Debug, Default)]
struct Idle {
    by_tenant: HashMap<Tenant, BTreeMap<u64, u32>>,
    /// How many a tenant has and since when the oldest is idle: the last one pays, among equals the one with the oldest.
    ranks: BTreeSet<(usize, Reverse<u64>, Tenant)>,
    len: usize,
}

impl Idle {
    fn insert(&mut self, tenant: &Tenant, since: u64, block: u32) {
        self.change(tenant, |blocks| blocks.insert(since, block));
        self.len += 1;
    }

    fn remove(&mut self, tenant: &Tenant, since: u64) -> Option<u32> {
        let removed = self.change(tenant, |blocks| blocks.remove(&since));
        self.len -= usize::from(removed.is_some());
        removed
    }

    fn victim(&self) -> Option<u32> {
        let (_, Reverse(oldest), tenant) = self.ranks.last()?;
        self.by_tenant.get(tenant)?.get(oldest).copied()
    }

    fn take_victim(&mut self) -> Option<u32> {
        let (_, Reverse(oldest), tenant) = self.ranks.last()?.clone();
        self.remove(&tenant, oldest)
    }

    /// Keeps the rank of the tenant true while its blocks change.
    fn change<T>(&mut self, tenant: &Tenant, change: impl FnOnce(&mut BTreeMap<u64, u32>) -> T) -> T {
        let blocks = self.by_tenant.entry(tenant.clone()).or_default();
        if let Some((&oldest, _)) = blocks.first_key_value() {
            self.ranks.remove(&(blocks.len(), Reverse(oldest), tenant.clone()));
        }
        let result = change(blocks);
        match blocks.first_key_value() {
            Some((&oldest, _)) => drop(self.ranks.insert((blocks.len(), Reverse(oldest), tenant.clone()))),
            None => drop(self.by_tenant.remove(tenant)),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u8) -> BlockHash {
        BlockHash([number; 32])
    }

    /// An index in which these tenants computed blocks 0, 1, 2 and so on, idle in this order.
    fn index(tenants: &[&str]) -> PrefixIndex {
        let mut index = PrefixIndex::default();
        for (block, tenant) in (0..).zip(tenants) {
            index.insert(block, hash(block as u8), &(*tenant).into());
            assert!(index.keep_idle(block));
        }
        index
    }

    #[test]
    fn the_tenant_with_most_idle_blocks_pays_with_its_oldest() {
        let mut index = index(&["calm", "flood", "flood", "flood", "calm"]);
        let victims: Vec<u32> = std::iter::from_fn(|| index.reclaim()).collect();
        // Two against three, then two against two, of which the oldest is calm's, and so on.
        assert_eq!(victims, [1, 0, 2, 3, 4]);
        assert_eq!((index.idle(), index.by_block.len(), index.by_hash.len()), (0, 0, 0));
        assert!(index.idle.by_tenant.is_empty() && index.idle.ranks.is_empty());
    }

    #[test]
    fn a_block_that_many_begin_with_is_worth_more_and_less_as_time_passes() {
        let mut index = index(&["a", "a"]);
        *index.time() = Time { now_ms: 0, half_life_ms: 1000 };
        let value = |index: &PrefixIndex| index.next_to_go().unwrap().value(100, 1000);
        let once = value(&index);
        index.wake(0);
        index.keep_idle(0);
        assert_eq!((index.idle.victim(), value(&index)), (Some(1), once));
        index.wake(1);
        index.keep_idle(1);
        assert!(value(&index) > once, "block 0, used twice");
        index.time().now_ms = 3000;
        let late = Worth::new(1.0, 3000).value(100, 1000);
        assert!(value(&index) < late, "twice, three half-lives ago");
        assert_eq!(index.reclaim(), Some(0));
    }

    #[test]
    fn use_makes_a_block_young_again() {
        let mut index = index(&["a", "a", "a"]);
        index.wake(0);
        assert_eq!(index.idle(), 2);
        index.keep_idle(0);
        let victims: Vec<u32> = std::iter::from_fn(|| index.reclaim()).collect();
        assert_eq!(victims, [1, 2, 0]);
    }

    #[test]
    fn a_referenced_block_is_never_reclaimed_and_a_reclaimed_one_is_not_found() {
        let mut index = index(&["a", "a"]);
        index.wake(1);
        assert_eq!((index.reclaim(), index.reclaim()), (Some(0), None));
        assert_eq!((index.get(&hash(0)), index.get(&hash(1))), (None, Some(1)));
    }

    #[test]
    fn the_first_of_two_equal_blocks_is_kept() {
        let mut index = PrefixIndex::default();
        index.insert(3, hash(1), &"a".into());
        index.insert(4, hash(1), &"a".into());
        index.insert(3, hash(2), &"a".into());
        assert_eq!((index.get(&hash(1)), index.get(&hash(2))), (Some(3), None));
        assert!(index.keep_idle(3));
        assert!(!index.keep_idle(4), "what nobody can find is free at once");
    }
}

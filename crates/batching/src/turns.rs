//! Queues by tenant: within a tenant the oldest first, among tenants one after another.
//!
//! The bound that this gives: when a tenant has something queued, at most one entry of each other tenant is taken
//! before its next. A tenant that comes (back) joins the end of the round, so that coming often gains nothing. The
//! scheduler's own queues go by what requests cost instead (`fair_queue.rs`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A tenant's name, as the unit of fairness.
pub type Tenant = Arc<str>;

/// A queue whose tenants take turns.
#[derive(Debug)]
pub struct TurnQueue<T> {
    by_tenant: HashMap<Tenant, VecDeque<T>>,
    /// Tenants with entries, each once; the front has the next turn.
    ring: VecDeque<Tenant>,
    len: usize,
}

impl<T> Default for TurnQueue<T> {
    fn default() -> Self {
        Self { by_tenant: HashMap::new(), ring: VecDeque::new(), len: 0 }
    }
}

impl<T: Copy + Ord> TurnQueue<T> {
    /// Entries of all tenants.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an entry at its age among the tenant's others: entries order by age, the smallest is the oldest.
    /// Cost: constant for the newest.
    pub fn push(&mut self, tenant: &Tenant, entry: T) {
        if !self.by_tenant.contains_key(tenant) {
            self.ring.push_back(tenant.clone());
        }
        let queue = self.by_tenant.entry(tenant.clone()).or_default();
        let at = queue.iter().rposition(|other| *other < entry).map_or(0, |index| index + 1);
        queue.insert(at, entry);
        self.len += 1;
    }

    /// The entry whose turn it is.
    #[must_use]
    pub fn peek(&self) -> Option<T> {
        let tenant = self.ring.front()?;
        self.by_tenant.get(tenant)?.front().copied()
    }

    /// Takes the entry whose turn it is; the tenant goes to the end of the round.
    pub fn pop(&mut self) -> Option<T> {
        let entry = self.peek()?;
        let tenant = self.ring.front().cloned()?;
        self.ring.rotate_left(1);
        self.remove(&tenant, entry);
        Some(entry)
    }

    /// Removes this entry. Says whether it was there.
    pub fn remove(&mut self, tenant: &str, entry: T) -> bool {
        let Some(queue) = self.by_tenant.get_mut(tenant) else { return false };
        let Some(index) = queue.iter().position(|other| *other == entry) else { return false };
        queue.remove(index);
        self.len -= 1;
        if queue.is_empty() {
            self.by_tenant.remove(tenant);
            self.ring.retain(|other| &**other != tenant);
        }
        true
    }

    /// The newest entry of this tenant.
    #[must_use]
    pub fn newest_of(&self, tenant: &str) -> Option<T> {
        self.by_tenant.get(tenant)?.back().copied()
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.by_tenant.values().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(entries: &[(&str, u32)]) -> TurnQueue<u32> {
        let mut queue = TurnQueue::default();
        for (tenant, entry) in entries {
            queue.push(&(*tenant).into(), *entry);
        }
        queue
    }

    #[test]
    fn tenants_take_turns_and_each_is_first_come_first_served() {
        let mut queue = queue(&[("flood", 1), ("flood", 2), ("flood", 3), ("calm", 4)]);
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [1, 4, 2, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn coming_back_joins_the_end_of_the_round() {
        let mut queue = queue(&[("a", 1), ("b", 2), ("b", 3)]);
        assert_eq!(queue.pop(), Some(1));
        queue.push(&"a".into(), 4);
        assert_eq!(queue.pop(), Some(2));
        assert_eq!(queue.pop(), Some(4));
    }

    #[test]
    fn an_entry_that_returns_keeps_its_age() {
        let mut queue = queue(&[("a", 2), ("a", 5), ("a", 1), ("a", 3)]);
        assert_eq!(queue.newest_of("a"), Some(5));
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [1, 2, 3, 5]);
    }

    #[test]
    fn removing_the_last_entry_ends_the_tenants_part_in_the_round() {
        let mut queue = queue(&[("a", 1), ("b", 2)]);
        assert!(queue.remove("a", 1));
        assert!(!queue.remove("a", 1));
        assert_eq!((queue.pop(), queue.pop()), (Some(2), None));
        assert_eq!(queue.newest_of("a"), None);
    }
}

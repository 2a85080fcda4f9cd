//! Queues by tenant: within a tenant by class and age, among tenants by what each was charged.
//!
//! An entry's *stamp* is its tenant's counter when it came plus its class's head start. Once the counter has reached the
//! stamp the entry is *due*: from then on no class overtakes it. Within a tenant the oldest that is due goes first, and as
//! long as none is, the oldest of the first class; so a class goes before the next one, but only until the tenant was
//! served as much as the head start is worth. Among tenants the caller says by a key who is first; a tenant's is that of
//! its first class, whichever entry goes.

use std::collections::{BTreeMap, HashMap};

use crate::RequestId;
use crate::counters::Priority;
use crate::turns::Tenant;

/// Something that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: RequestId,
    pub(crate) priority: Priority,
    pub(crate) stamp: u64,
}

/// What an entry has to say for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// Among tenants the smallest is first.
    pub(crate) key: u64,
    pub(crate) due: bool,
}

/// A tenant's entries by class, the first class first; each with its stamp. Within a class stamps follow age.
type Classes = [BTreeMap<RequestId, u64>; 3];

/// A queue of many tenants' entries.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    by_tenant: HashMap<Tenant, Classes>,
    len: usize,
}

const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

impl FairQueue {
    /// Entries of all tenants.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Tenants with entries, in no particular order.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.by_tenant.keys()
    }

    pub(crate) fn len_of(&self, tenant: &str) -> usize {
        self.by_tenant.get(tenant).map_or(0, |classes| classes.iter().map(BTreeMap::len).sum())
    }

    pub(crate) fn push(&mut self, tenant: &Tenant, entry: Entry) {
        let classes = self.by_tenant.entry(tenant.clone()).or_default();
        if classes[entry.priority as usize].insert(entry.id, entry.stamp).is_none() {
            self.len += 1;
        }
    }

    /// Says whether it was there.
    pub(crate) fn remove(&mut self, tenant: &str, entry: &Entry) -> bool {
        let Some(classes) = self.by_tenant.get_mut(tenant) else { return false };
        if classes[entry.priority as usize].remove(&entry.id).is_none() {
            return false;
        }
        self.len -= 1;
        if classes.iter().all(BTreeMap::is_empty) {
            self.by_tenant.remove(tenant);
        }
        true
    }

    /// Each tenant's first entry, and of these the one with the smallest key, with that key; at equal keys the oldest.
    /// Cost: linear in tenants.
    pub(crate) fn first(&self, turn: impl Fn(&str, &Entry) -> Turn) -> Option<(u64, Entry)> {
        self.first_wanted(turn, |_, _| true)
    }

    /// The same among entries that `wanted` accepts. Cost: looks at each tenant's entries until one of each class is
    /// accepted.
    pub(crate) fn first_wanted(
        &self,
        turn: impl Fn(&str, &Entry) -> Turn,
        wanted: impl Fn(&str, RequestId) -> bool,
    ) -> Option<(u64, Entry)> {
        let first_of = |(tenant, classes): (&Tenant, &Classes)| {
            let mut key = u64::MAX;
            let heads = classes.iter().zip(PRIORITIES).filter_map(|(class, priority)| {
                let (&id, &stamp) = class.iter().find(|(id, _)| wanted(tenant, **id))?;
                let entry = Entry { id, priority, stamp };
                let turn = turn(tenant, &entry);
                key = key.min(turn.key);
                Some((turn.due, entry))
            });
            let first = heads.min_by_key(|(due, entry)| match due {
                true => (0, entry.id),
                false => (1 + entry.priority as u64, entry.id),
            });
            first.map(|(_, entry)| (key, entry))
        };
        self.by_tenant.iter().filter_map(first_of).min_by_key(|(key, entry)| (*key, entry.id))
    }

    /// The entry of this tenant that it would miss least: the newest of the lowest class.
    pub(crate) fn last_of(&self, tenant: &str) -> Option<Entry> {
        let classes = self.by_tenant.get(tenant)?.iter().zip(PRIORITIES).rev();
        let mut last = classes
            .filter_map(|(class, priority)| class.last_key_value().map(|(&id, &stamp)| Entry { id, priority, stamp }));
        last.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{High, Low, Normal};

    fn queue(entries: &[(&str, u64, Priority)]) -> FairQueue {
        let mut queue = FairQueue::default();
        for (tenant, id, priority) in entries {
            // Classes are a hundred apart.
            queue.push(
                &(*tenant).into(),
                Entry { id: RequestId(*id), priority: *priority, stamp: *priority as u64 * 100 },
            );
        }
        queue
    }

    fn first(queue: &FairQueue, counters: &[(&str, u64)]) -> Option<u64> {
        let turn = |tenant: &str, entry: &Entry| {
            let counter = counters.iter().find(|(name, _)| *name == tenant).unwrap().1;
            Turn { key: counter, due: counter >= entry.stamp }
        };
        queue.first(turn).map(|(_, entry)| entry.id.0)
    }

    #[test]
    fn the_least_charged_tenant_is_first_and_at_equal_charges_the_oldest() {
        let queue = queue(&[("flood", 1, Normal), ("flood", 2, Normal), ("calm", 3, Normal)]);
        assert_eq!(first(&queue, &[("flood", 10), ("calm", 9)]), Some(3));
        assert_eq!(first(&queue, &[("flood", 9), ("calm", 10)]), Some(1));
        assert_eq!(first(&queue, &[("flood", 9), ("calm", 9)]), Some(1));
    }

    #[test]
    fn a_class_goes_first_until_an_older_entry_of_another_is_due() {
        let queue = queue(&[("a", 1, Low), ("a", 2, Normal), ("a", 3, High), ("a", 4, High)]);
        assert_eq!(first(&queue, &[("a", 0)]), Some(3));
        assert_eq!(first(&queue, &[("a", 99)]), Some(3));
        assert_eq!(first(&queue, &[("a", 100)]), Some(2));
        assert_eq!(first(&queue, &[("a", 200)]), Some(1));
    }

    #[test]
    fn an_old_entry_of_a_low_class_goes_in_the_turn_of_its_tenants_first_class() {
        let queue = queue(&[("a", 1, Low), ("a", 2, High), ("b", 3, Normal)]);
        let turn = |tenant: &str, entry: &Entry| {
            let counter = if tenant == "a" { 200 } else { 150 };
            Turn { key: counter + entry.priority as u64 * 100, due: counter >= entry.stamp }
        };
        assert_eq!(queue.first(turn).map(|(key, entry)| (key, entry.id.0)), Some((200, 1)));
    }

    #[test]
    fn as_long_as_nobody_is_due_the_oldest_of_the_first_class_goes() {
        let queue = queue(&[("a", 1, Low), ("a", 2, Normal), ("a", 3, Normal)]);
        assert_eq!(first(&queue, &[("a", 0)]), Some(2));
    }

    #[test]
    fn an_entry_is_removed_once_and_takes_its_tenant_with_it() {
        let mut queue = queue(&[("a", 1, Normal), ("a", 2, Low)]);
        let entry = |id, priority| Entry { id: RequestId(id), priority, stamp: 0 };
        assert!(queue.remove("a", &entry(1, Normal)) && !queue.remove("a", &entry(1, Normal)));
        assert_eq!((queue.len(), queue.len_of("a")), (1, 1));
        assert!(queue.remove("a", &entry(2, Low)));
        assert_eq!((queue.len(), queue.len_of("a"), queue.tenants().count()), (0, 0, 0));
    }

    #[test]
    fn an_entry_that_is_not_wanted_gives_way_to_the_next_of_its_tenant() {
        let queue = queue(&[("a", 1, Normal), ("a", 2, Normal), ("b", 3, Normal)]);
        let turn = |_: &str, _: &Entry| Turn { key: 0, due: true };
        let wanted = |except: u64| queue.first_wanted(turn, |_, id| id.0 != except).map(|(_, entry)| entry.id.0);
        assert_eq!((wanted(1), wanted(9)), (Some(2), Some(1)));
        assert_eq!(queue.first_wanted(turn, |tenant, _| tenant == "c"), None);
    }

    #[test]
    fn the_last_is_the_newest_of_the_lowest_class() {
        let queue = queue(&[("a", 1, Normal), ("a", 2, Normal), ("a", 0, Low), ("a", 5, High), ("c", 1, High)]);
        assert_eq!(queue.last_of("a").map(|entry| entry.id.0), Some(0));
        assert_eq!(queue.last_of("c").map(|entry| entry.id.0), Some(1));
        assert_eq!(queue.last_of("b"), None);
    }
}

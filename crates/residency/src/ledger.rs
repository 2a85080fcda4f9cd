//! The books of one byte budget.

use crate::value::{Value, Worth};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

/// A use that lies this far back counts half, unless set otherwise: adapters follow the working hours of their tenants.
const HALF_LIFE_MS: u64 = 3_600_000;

/// What must happen before so many bytes can come in. See [`Ledger::make_room`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room<K> {
    /// Nothing: there is room.
    Fits,
    /// Remove these, in this order; together they free enough, and none of them is needless.
    Evict(Vec<K>),
    /// Leases, pins or the hold forbid it now.
    Full {
        /// Bytes that nobody may evict now.
        held: u64,
    },
    /// More than the whole budget: never.
    TooLarge,
}

/// One entry as the books have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView<'a, K> {
    /// Its key.
    pub key: &'a K,
    /// Its size.
    pub bytes: u64,
    /// How many leases hold it.
    pub leases: u32,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Removed while leased: nobody can find it, but its bytes are in use until the last lease ends.
    pub unlinked: bool,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    leases: u32,
    pinned: bool,
    unlinked: bool,
    worth: Worth,
    /// Breaks ties: the entry that came first goes first.
    serial: u64,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.leases == 0 && !self.pinned && !self.unlinked
    }
}

/// Entries with sizes, leases and pins under one byte budget, and the order in which they may go.
///
/// Times are milliseconds on any one clock that does not go back by much; a time before the last use counts as
/// that use. Every method is O(log n) unless it says otherwise, allocates at most one node, and does no IO.
///
/// The books never stop the caller from going over the budget (after a restart with a smaller budget there is no
/// other way); who inserts only what [`make_room`](Self::make_room) allowed stays within it. To reserve room for bytes
/// that are still on their way, insert the entry first and [`hold`](Self::hold) it until they have come.
#[derive(Debug)]
pub struct Ledger<K> {
    bytes_max: u64,
    half_life_ms: u64,
    hold_until_ms: u64,
    used: u64,
    /// Bytes of entries in `idle`.
    idle_bytes: u64,
    entries: HashMap<K, Entry>,
    /// Entries that may go: those that are no favourites before the rest, and then the least valuable first.
    idle: BTreeMap<Rank, K>,
    favourites: HashSet<K>,
    next_serial: u64,
}

/// Whether it is a favourite, its value, and its serial.
type Rank = (bool, Value, u64);

impl<K: Clone + Eq + Hash> Ledger<K> {
    /// Empty books with this budget in bytes. Zero is allowed: then only entries of zero bytes fit.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            half_life_ms: HALF_LIFE_MS,
            hold_until_ms: 0,
            used: 0,
            idle_bytes: 0,
            entries: HashMap::new(),
            idle: BTreeMap::new(),
            favourites: HashSet::new(),
            next_serial: 0,
        }
    }

    /// The same empty books in which a use that lies `half_life_ms` back counts half. Zero counts as 1.
    ///
    /// Short is like "least recently used", long like "least often used".
    #[must_use]
    pub fn with_half_life_ms(mut self, half_life_ms: u64) -> Self {
        debug_assert!(self.entries.is_empty(), "values are computed with one half-life");
        self.half_life_ms = half_life_ms.max(1);
        self
    }

    /// Books an entry, used once, at `now_ms`, with a reload cost of 1. False, and nothing changes, if the key is here
    /// already or is still leased after its removal.
    pub fn insert(&mut self, key: K, bytes: u64, now_ms: u64) -> bool {
        self.insert_with_cost(key, bytes, 1.0, now_ms)
    }

    /// The same with what it costs to bring these bytes back once lost: any unit, the same for all entries (we use
    /// milliseconds). Not a number, zero and less count as the least there is.
    pub fn insert_with_cost(&mut self, key: K, bytes: u64, reload_cost: f64, now_ms: u64) -> bool {
        self.insert_worth(key, bytes, Worth::new(reload_cost, now_ms))
    }

    /// The same for an entry that has a past: it comes from another ledger or was here before. No use is counted.
    pub fn insert_worth(&mut self, key: K, bytes: u64, worth: Worth) -> bool {
        if self.entries.contains_key(&key) {
            return false;
        }
        let entry = Entry { bytes, leases: 0, pinned: false, unlinked: false, worth, serial: self.next_serial };
        self.next_serial += 1;
        self.used += bytes;
        self.entries.insert(key.clone(), entry);
        self.relist(&key, None);
        true
    }

    /// What an entry that is not unlinked is worth, to take along when its bytes go elsewhere.
    #[must_use]
    pub fn worth(&self, key: &K) -> Option<Worth> {
        self.entries.get(key).filter(|entry| !entry.unlinked).map(|entry| entry.worth)
    }

    /// Corrects what it costs to bring an entry back. False if there is no such entry.
    pub fn set_reload_cost(&mut self, key: &K, reload_cost: f64) -> bool {
        self.update(key, |entry| entry.worth = entry.worth.with_reload_cost(reload_cost))
    }

    /// Gives an entry the uses of another one, of the same bytes elsewhere; what its own reload costs stays. False if there is no such
    /// entry, or it is unlinked.
    pub fn set_uses(&mut self, key: &K, of: &Worth) -> bool {
        self.update(key, |entry| entry.worth.uses = of.uses)
    }

    /// Takes one more lease, which counts as a use. False if there is no such entry, or it is unlinked.
    pub fn lease(&mut self, key: &K, now_ms: u64) -> bool {
        let half_life_ms = self.half_life_ms;
        self.update(key, |entry| {
            entry.leases += 1;
            entry.worth.uses.add(now_ms, half_life_ms);
        })
    }

    /// Takes one more lease without counting a use: for work on the entry that says nothing about its worth, such as
    /// writing or checking it. Released like any other. False if there is no such entry, or it is unlinked.
    pub fn hold(&mut self, key: &K) -> bool {
        self.update(key, |entry| entry.leases += 1)
    }

    /// Gives one lease back and tells how many are left; none if it was not leased. The last lease of an unlinked
    /// entry takes the entry out of the books.
    pub fn release(&mut self, key: &K) -> Option<u32> {
        let entry = self.entries.get_mut(key)?;
        let left = entry.leases.checked_sub(1)?;
        let before = self.place_of(key);
        let entry = self.entries.get_mut(key)?;
        entry.leases = left;
        if entry.unlinked && left == 0 {
            self.used -= entry.bytes;
            self.entries.remove(key);
        } else {
            self.relist(key, before);
        }
        Some(left)
    }

    /// Keeps an entry from eviction until it is unpinned. Pins do not count. False if there is no such entry.
    pub fn pin(&mut self, key: &K) -> bool {
        self.update(key, |entry| entry.pinned = true)
    }

    /// Ends a pin. False if there is no such entry.
    pub fn unpin(&mut self, key: &K) -> bool {
        self.update(key, |entry| entry.pinned = false)
    }

    /// From now on these are given up only when nothing else is left to go, whether they are here yet or not. Those before them are
    /// favourites no more. Cost: O(favourites · log n).
    pub fn favour(&mut self, favourites: HashSet<K>) {
        let changed = self.favourites.symmetric_difference(&favourites).filter(|key| self.entries.contains_key(key));
        let changed: Vec<(K, Option<(Rank, u64)>)> = changed.map(|key| (key.clone(), self.place_of(key))).collect();
        self.favourites = favourites;
        for (key, before) in changed {
            self.relist(&key, before);
        }
    }

    /// Counts a use without a lease. False if there is no such entry.
    pub fn touch(&mut self, key: &K, now_ms: u64) -> bool {
        let half_life_ms = self.half_life_ms;
        self.update(key, |entry| entry.worth.uses.add(now_ms, half_life_ms))
    }

    /// Removes an entry, whatever holds it, and tells its bytes; none if there is no such entry.
    ///
    /// A leased entry becomes *unlinked*: nobody can find or lease it any more, but its bytes count as used until the
    /// last lease is released, because a file that is mapped still fills the disk after its name is gone. Until then its
    /// key cannot be inserted again; who needs that makes a generation part of the key.
    pub fn remove(&mut self, key: &K) -> Option<u64> {
        let entry = self.entries.get(key).filter(|entry| !entry.unlinked)?;
        let bytes = entry.bytes;
        let leased = entry.leases > 0;
        self.update(key, |entry| {
            entry.pinned = false;
            entry.unlinked = true;
        });
        if !leased {
            self.entries.remove(key);
            self.used -= bytes;
        }
        Some(bytes)
    }

    /// Corrects the size of an entry, when more is known than at the reservation. False if there is no such entry.
    pub fn resize(&mut self, key: &K, bytes: u64) -> bool {
        let Some(before) = self.bytes(key) else { return false };
        self.update(key, |entry| entry.bytes = bytes);
        self.used = self.used - before + bytes;
        true
    }

    /// What to remove so that `bytes` more fit. Nothing is changed.
    ///
    /// Takes from the least valuable entry on (`value` in this crate) until enough is freed, then spares again, from the
    /// most valuable on, whatever turned out needless. Cost: O(entries looked at), no more than are chosen.
    #[must_use]
    pub fn make_room(&self, bytes: u64, now_ms: u64) -> Room<K> {
        if bytes > self.bytes_max {
            return Room::TooLarge;
        }
        let wanted = self.used.saturating_add(bytes);
        if wanted <= self.bytes_max {
            return Room::Fits;
        }
        let to_free = wanted - self.bytes_max;
        if now_ms < self.hold_until_ms {
            return Room::Full { held: self.used };
        }
        if self.idle_bytes < to_free {
            return Room::Full { held: self.held() };
        }

        let mut chosen: Vec<(&K, u64)> = Vec::new();
        let mut freed = 0;
        for key in self.idle.values() {
            let bytes = self.entries[key].bytes;
            if bytes == 0 {
                continue;
            }
            chosen.push((key, bytes));
            freed += bytes;
            if freed >= to_free {
                break;
            }
        }
        let mut spare = freed - to_free;
        let mut needed: Vec<K> = Vec::with_capacity(chosen.len());
        for (key, bytes) in chosen.into_iter().rev() {
            if bytes <= spare {
                spare -= bytes;
            } else {
                needed.push(key.clone());
            }
        }
        needed.reverse();
        Room::Evict(needed)
    }

    /// The same for bytes that need not come in: [`Room::Full`] also if an entry that would have to go is worth more than they are.
    #[must_use]
    pub fn make_room_if_worth(&self, bytes: u64, worth: &Worth, now_ms: u64) -> Room<K> {
        let room = self.make_room(bytes, now_ms);
        let Room::Evict(victims) = &room else { return room };
        let value = worth.uses.value(bytes, worth.reload_cost, self.half_life_ms);
        let is_worth_more =
            |key: &K| self.place_of(key).is_some_and(|((is_favourite, theirs, _), _)| is_favourite || theirs >= value);
        if victims.iter().any(is_worth_more) { Room::Full { held: self.held() } } else { room }
    }

    /// What goes next, whatever the budget says. None: nobody may go.
    #[must_use]
    pub fn next_to_go(&self) -> Option<&K> {
        self.idle.first_key_value().map(|(_, key)| key)
    }

    /// What goes next, if it goes before something elsewhere whose bytes have this value: no favourite, and worth less.
    #[must_use]
    pub fn goes_before(&self, elsewhere: Value) -> Option<&K> {
        let (&(is_favourite, value, _), key) = self.idle.first_key_value()?;
        (!is_favourite && value < elsewhere).then_some(key)
    }

    /// Bytes of entries that may go.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        self.idle_bytes
    }

    /// The half-life that values are computed with.
    #[must_use]
    pub fn half_life_ms(&self) -> u64 {
        self.half_life_ms
    }

    /// Nothing is to be evicted before this time: after a restart, holders that live must be heard first.
    pub fn hold_until(&mut self, until_ms: u64) {
        self.hold_until_ms = until_ms;
    }

    /// Changes the budget. Entries stay; [`make_room`](Self::make_room) of zero bytes tells what is over.
    pub fn set_bytes_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// The budget in bytes.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Bytes of all entries, unlinked ones included.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of the budget that nothing takes.
    #[must_use]
    pub fn unused(&self) -> u64 {
        self.bytes_max.saturating_sub(self.used)
    }

    /// As [`make_room`](Self::make_room), for so many bytes beyond those that are unused: whatever the budget says, entries go. For 1 the least
    /// valuable one.
    pub fn make_room_beyond(&self, bytes: u64, now_ms: u64) -> Room<K> {
        self.make_room(self.unused().saturating_add(bytes), now_ms)
    }

    /// Bytes that leases and pins keep from eviction, unlinked ones included.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.used - self.idle_bytes
    }

    /// Whether there is such an entry, and it is not unlinked.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.bytes(key).is_some()
    }

    /// The size of an entry that is not unlinked.
    #[must_use]
    pub fn bytes(&self, key: &K) -> Option<u64> {
        self.entries.get(key).filter(|entry| !entry.unlinked).map(|entry| entry.bytes)
    }

    /// How many leases hold this entry, unlinked or not.
    #[must_use]
    pub fn leases(&self, key: &K) -> u32 {
        self.entries.get(key).map_or(0, |entry| entry.leases)
    }

    /// Whether this entry is pinned.
    #[must_use]
    pub fn is_pinned(&self, key: &K) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.pinned)
    }

    /// The number of entries, unlinked ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, unlinked ones included, in no order.
    pub fn iter(&self) -> impl Iterator<Item = EntryView<'_, K>> {
        self.entries.iter().map(|(key, entry)| EntryView {
            key,
            bytes: entry.bytes,
            leases: entry.leases,
            pinned: entry.pinned,
            unlinked: entry.unlinked,
        })
    }

    /// Changes an entry that is not unlinked and keeps `idle` in step.
    fn update(&mut self, key: &K, change: impl FnOnce(&mut Entry)) -> bool {
        let before = self.place_of(key);
        match self.entries.get_mut(key) {
            Some(entry) if !entry.unlinked => change(entry),
            _ => return false,
        }
        self.relist(key, before);
        true
    }

    /// Where this entry stands in `idle`, if it does, and its bytes.
    fn place_of(&self, key: &K) -> Option<(Rank, u64)> {
        let entry = self.entries.get(key).filter(|entry| entry.is_idle())?;
        let value = entry.worth.uses.value(entry.bytes, entry.worth.reload_cost, self.half_life_ms);
        Some(((self.favourites.contains(key), value, entry.serial), entry.bytes))
    }

    /// Moves an entry from where it stood in `idle` to where it stands now.
    fn relist(&mut self, key: &K, before: Option<(Rank, u64)>) {
        if let Some((place, bytes)) = before {
            self.idle.remove(&place);
            self.idle_bytes -= bytes;
        }
        if let Some((place, bytes)) = self.place_of(key) {
            self.idle.insert(place, key.clone());
            self.idle_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    /// Three entries of 100 bytes, used at seconds 1, 2 and 3, under 300 bytes.
    fn full() -> Ledger<&'static str> {
        let mut ledger = Ledger::new(300);
        for (second, key) in ["a", "b", "c"].into_iter().enumerate() {
            assert!(ledger.insert(key, 100, (second as u64 + 1) * SECOND));
        }
        ledger
    }

    #[test]
    fn evicts_the_least_recently_used_of_equals_first() {
        let mut ledger = full();
        assert_eq!(ledger.make_room(100, 4 * SECOND), Room::Evict(vec!["a"]));
        ledger.touch(&"a", 4 * SECOND);
        assert_eq!(ledger.make_room(101, 4 * SECOND), Room::Evict(vec!["b", "c"]));
    }

    #[test]
    fn favourites_go_last_whatever_they_are_worth() {
        let mut ledger = full();
        ledger.favour(HashSet::from(["a", "z"]));
        assert_eq!(ledger.make_room(200, 4 * SECOND), Room::Evict(vec!["b", "c"]));
        assert_eq!(ledger.make_room(300, 4 * SECOND), Room::Evict(vec!["b", "c", "a"]));
        ledger.remove(&"b");
        assert!(ledger.insert("z", 100, SECOND));
        assert_eq!(ledger.make_room(100, 4 * SECOND), Room::Evict(vec!["c"]), "also one that came later");
        ledger.favour(HashSet::from(["c"]));
        assert_eq!(ledger.make_room(200, 4 * SECOND), Room::Evict(vec!["a", "z"]));
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn evicts_what_is_cheap_to_bring_back_before_what_is_dear() {
        let mut ledger = Ledger::new(300);
        ledger.insert_with_cost("near", 150, 1.0, 2 * SECOND);
        ledger.insert_with_cost("far", 150, 50.0, SECOND);
        assert_eq!(ledger.make_room(100, 3 * SECOND), Room::Evict(vec!["near"]));
    }

    #[test]
    fn evicts_one_large_rather_than_many_small_of_equal_use() {
        let mut ledger = Ledger::new(1000);
        for key in 0..5 {
            ledger.insert(key, 100, SECOND);
        }
        ledger.insert(9, 500, SECOND);
        assert_eq!(ledger.make_room(400, SECOND), Room::Evict(vec![9]));
    }

    #[test]
    fn spares_small_entries_that_turn_out_needless() {
        let mut ledger = Ledger::new(1000);
        ledger.insert_with_cost("small", 10, 0.001, SECOND);
        ledger.insert("large", 990, SECOND);
        assert_eq!(ledger.make_room(500, SECOND), Room::Evict(vec!["large"]));
    }

    #[test]
    fn leased_and_pinned_entries_stay() {
        let mut ledger = full();
        ledger.lease(&"a", 4 * SECOND);
        ledger.pin(&"b");
        assert_eq!(ledger.make_room(100, 5 * SECOND), Room::Evict(vec!["c"]));
        assert_eq!(ledger.make_room(101, 5 * SECOND), Room::Full { held: 200 });
        assert_eq!(ledger.release(&"a"), Some(0));
        ledger.unpin(&"b");
        assert_eq!(ledger.make_room(300, 5 * SECOND), Room::Evict(vec!["b", "c", "a"]));
    }

    #[test]
    fn a_hold_keeps_an_entry_and_is_no_use() {
        let mut ledger = full();
        assert!(ledger.hold(&"a"));
        assert_eq!(ledger.make_room(100, 5 * SECOND), Room::Evict(vec!["b"]));
        assert_eq!(ledger.release(&"a"), Some(0));
        assert_eq!(ledger.make_room(100, 5 * SECOND), Room::Evict(vec!["a"]));
        assert!(!ledger.hold(&"z"));
    }

    #[test]
    fn what_need_not_come_in_evicts_only_what_is_worth_less() {
        let mut ledger = full();
        ledger.touch(&"a", 4 * SECOND);
        let seldom = Worth::new(1.0, SECOND);
        assert_eq!(ledger.make_room_if_worth(100, &seldom, 5 * SECOND), Room::Full { held: 0 });
        let lately = Worth::new(1.0, 5 * SECOND);
        assert_eq!(ledger.make_room_if_worth(100, &lately, 5 * SECOND), Room::Evict(vec!["b"]));
        assert_eq!(ledger.make_room_if_worth(300, &lately, 5 * SECOND), Room::Full { held: 0 });
        ledger.remove(&"c");
        assert_eq!(ledger.make_room_if_worth(100, &seldom, 5 * SECOND), Room::Fits);
        assert_eq!(ledger.make_room_if_worth(301, &lately, 5 * SECOND), Room::TooLarge);
    }

    #[test]
    fn more_than_the_budget_never_fits() {
        assert_eq!(full().make_room(301, SECOND), Room::TooLarge);
        assert_eq!(full().make_room(u64::MAX, SECOND), Room::TooLarge);
    }

    #[test]
    fn unlinked_bytes_count_until_the_last_lease_ends() {
        let mut ledger = full();
        ledger.lease(&"a", SECOND);
        ledger.lease(&"a", SECOND);
        assert_eq!(ledger.remove(&"a"), Some(100));
        assert!(!ledger.contains(&"a") && !ledger.lease(&"a", SECOND) && !ledger.insert("a", 1, SECOND));
        assert_eq!((ledger.used(), ledger.remove(&"a")), (300, None));
        assert_eq!(ledger.release(&"a"), Some(1));
        assert_eq!((ledger.used(), ledger.held()), (300, 100));
        assert_eq!(ledger.release(&"a"), Some(0));
        assert_eq!((ledger.used(), ledger.release(&"a")), (200, None));
        assert!(ledger.insert("a", 1, SECOND));
    }

    #[test]
    fn nothing_is_evicted_during_the_hold() {
        let mut ledger = full();
        ledger.hold_until(10 * SECOND);
        assert_eq!(ledger.make_room(1, 10 * SECOND - 1), Room::Full { held: 300 });
        assert_eq!(ledger.make_room(1, 10 * SECOND), Room::Evict(vec!["a"]));
    }

    #[test]
    fn a_smaller_budget_tells_what_is_over() {
        let mut ledger = full();
        ledger.set_bytes_max(150);
        assert_eq!(ledger.make_room(0, 5 * SECOND), Room::Evict(vec!["a", "b"]));
    }

    #[test]
    fn resizing_keeps_the_sum_right() {
        let mut ledger = full();
        assert!(ledger.resize(&"b", 40));
        assert_eq!((ledger.used(), ledger.held(), ledger.bytes(&"b")), (240, 0, Some(40)));
        assert!(!ledger.resize(&"z", 1));
    }
}

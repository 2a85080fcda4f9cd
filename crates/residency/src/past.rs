//! What entries that are gone were worth.

use crate::Worth;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Keeps the worth of so many entries whose bytes are gone, so that one that comes back is not mistaken for one that was
/// never used. When it is full, what left first is forgotten.
///
/// Every method is O(1), amortised.
#[derive(Debug)]
pub struct Past<K> {
    entries_max: usize,
    entries: HashMap<K, (Worth, u64)>,
    /// In the order of leaving; those that came back or left once more are passed over.
    order: VecDeque<(K, u64)>,
    next_serial: u64,
}

impl<K: Clone + Eq + Hash> Past<K> {
    /// An empty past of at most so many entries.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { entries_max, entries: HashMap::new(), order: VecDeque::new(), next_serial: 0 }
    }

    /// The bytes of this entry are gone.
    pub fn keep(&mut self, key: K, worth: Worth) {
        if self.entries_max == 0 {
            return;
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.entries.insert(key.clone(), (worth, serial));
        self.order.push_back((key, serial));
        while self.entries.len() > self.entries_max || self.order.len() > 2 * self.entries_max {
            let Some((key, serial)) = self.order.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|(_, last)| *last == serial) {
                self.entries.remove(&key);
            }
        }
    }

    /// What this entry was worth, if that is still known. It counts as back then.
    pub fn take(&mut self, key: &K) -> Option<Worth> {
        self.entries.remove(key).map(|(worth, _)| worth)
    }

    /// How many entries are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(past: &mut Past<u32>, keys: std::ops::Range<u32>) -> Vec<Option<f64>> {
        keys.map(|key| past.take(&key).map(|worth| worth.reload_cost())).collect()
    }

    #[test]
    fn what_left_first_is_forgotten_first() {
        let mut past = Past::new(2);
        for key in 0..4 {
            past.keep(key, Worth::new(f64::from(key), 0));
        }
        assert_eq!(past.len(), 2);
        assert_eq!(costs(&mut past, 0..4), [None, None, Some(2.0), Some(3.0)]);
        assert!(past.is_empty());
    }

    #[test]
    fn leaving_again_is_leaving_last_and_memory_stays_bounded() {
        let mut past = Past::new(2);
        for key in [0, 1, 0, 2] {
            past.keep(key, Worth::new(f64::from(key), 0));
        }
        assert_eq!(costs(&mut past, 0..3), [Some(0.0), None, Some(2.0)]);
        for round in 0..1000 {
            past.keep(round % 2, Worth::new(1.0, 0));
            past.take(&(round % 3));
            assert!(past.len() <= 2 && past.order.len() <= 4);
        }
    }

    #[test]
    fn nothing_is_remembered_where_nothing_may_be() {
        let mut past = Past::new(0);
        past.keep(1, Worth::new(1.0, 0));
        assert!(past.is_empty() && past.order.is_empty());
    }
}

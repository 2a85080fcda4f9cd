//! Which keys were seen: so that a user who asks a hundred times counts once.

use std::collections::{HashSet, VecDeque};

/// The last so many distinct keys of an experiment at one gateway. A key that was forgotten, or that goes to another
/// gateway, counts again: an approximation, whose error is that some users count a few times.
#[derive(Clone, Debug)]
pub struct RecentKeys {
    capacity: usize,
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

impl RecentKeys {
    /// Remembers up to `capacity` keys (at least 1), about 32 bytes each.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), order: VecDeque::new(), known: HashSet::new() }
    }

    /// Whether this key is remembered. Cost: constant.
    #[must_use]
    pub fn contains(&self, key: u64) -> bool {
        self.known.contains(&key)
    }

    /// Whether this key ([`crate::Assignment::key`]) is new; it is known from now on. No key is always new. Cost:
    /// constant.
    pub fn is_new(&mut self, key: Option<u64>) -> bool {
        let Some(key) = key else { return true };
        if !self.known.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > self.capacity {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.known.remove(&oldest));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_new_once_and_again_when_forgotten() {
        let mut keys = RecentKeys::new(2);
        assert!(keys.is_new(Some(1)) && keys.is_new(Some(2)));
        assert!(!keys.is_new(Some(1)) && !keys.is_new(Some(2)));
        assert!(keys.is_new(Some(3)) && keys.is_new(Some(1)));
        assert!(keys.is_new(None) && keys.is_new(None));
        assert_eq!(keys.known.len(), 2);
    }
}

//! A placement and the workers that are there, ready for routing.

use crate::document::{Document, Epoch, Placed};
use crate::hash;
use crate::table::Table;
use std::collections::HashMap;
use weft_types::Digest;

/// Reads of the table for one adapter at most.
pub const ORDER_PROBES_MAX: u32 = 24;
/// A replica set with more workers has no spill set.
const SEARCHED_MAX: usize = 16;
/// Workers that serve an adapter without a desired place: its home and one more.
const HOMES: usize = 2;
/// Workers outside the set that are named at most.
const SPILLS: usize = 2;
/// Workers that are named when none of the others can be used.
const LAST: usize = 4;
const ORDER: usize = HOMES + SPILLS + LAST;

/// What a gateway knows about places. Immutable: made anew when the epoch or the set of workers changes.
#[derive(Clone, Debug)]
pub struct Map {
    epoch: Epoch,
    workers: Vec<String>,
    all: Vec<u16>,
    adapters: HashMap<Digest, Box<[u16]>>,
    table: Table,
}

/// The workers for one adapter, as positions in [`Map::workers`].
#[derive(Clone, Copy, Debug)]
pub struct Sets<'a> {
    placed: &'a [u16],
    order: [u16; ORDER],
    ordered: usize,
}

impl Sets<'_> {
    /// The replica set; without one, the adapter's home and one more.
    #[must_use]
    pub fn inside(&self) -> &[u16] {
        if self.placed.is_empty() { &self.order[..self.ordered.min(HOMES)] } else { self.placed }
    }

    /// Whether a worker is inside. Cost: constant; of a set of more than 16 that is not all workers some are not found.
    #[must_use]
    pub fn holds(&self, worker: u16) -> bool {
        let inside = self.inside();
        match inside.len() <= SEARCHED_MAX {
            true => inside.contains(&worker),
            false => inside.get(usize::from(worker)) == Some(&worker),
        }
    }

    /// Where requests spill to, the same workers for all gateways: at most two.
    #[must_use]
    pub fn spill(&self) -> &[u16] {
        let outside = self.outside();
        &outside[..outside.len().min(SPILLS)]
    }

    /// Where requests go when nobody inside and none of the spill set can be used: at most four.
    #[must_use]
    pub fn last(&self) -> &[u16] {
        let outside = self.outside();
        &outside[outside.len().min(SPILLS)..]
    }

    fn outside(&self) -> &[u16] {
        let first = if self.placed.is_empty() { self.ordered.min(HOMES) } else { 0 };
        &self.order[first..self.ordered]
    }
}

impl Map {
    /// For the workers that are there (names, unique) and the last placement. Workers of the placement that are not
    /// there are left out, new ones have weight 1. Cost: see [`Table::new`], and a pass over the placement.
    ///
    /// # Panics
    /// With more than 65,535 workers.
    #[must_use]
    pub fn new(document: Option<&Document>, workers: Vec<String>) -> Self {
        let weights: HashMap<&str, u16> =
            document.iter().flat_map(|document| &document.workers).map(|host| (host.0.as_str(), host.1)).collect();
        let weight = |name: &String| f64::from(weights.get(name.as_str()).copied().unwrap_or(100));
        let named: Vec<(&str, f64)> = workers.iter().map(|name| (name.as_str(), weight(name))).collect();
        let table = Table::new(&named);
        let index: HashMap<&str, u16> =
            workers.iter().enumerate().map(|(at, name)| (name.as_str(), at as u16)).collect();
        let mut adapters = HashMap::new();
        if let Some(document) = document {
            let now: Vec<Option<u16>> =
                document.workers.iter().map(|host| index.get(host.0.as_str()).copied()).collect();
            for Placed(adapter, on) in &document.adapters {
                let on: Vec<u16> = on.iter().filter_map(|at| now.get(usize::from(*at)).copied().flatten()).collect();
                if !on.is_empty() {
                    adapters.insert(*adapter, on.into_boxed_slice());
                }
            }
        }
        let epoch = document.map_or(Epoch::default(), |document| document.epoch);
        let all = (0..workers.len() as u16).collect();
        Self { epoch, all, adapters, table, workers }
    }

    /// The epoch of the placement; 0 without one.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The workers; positions in it are what all others mean by a worker.
    #[must_use]
    pub fn workers(&self) -> &[String] {
        &self.workers
    }

    /// The workers for the bare base: all are inside.
    #[must_use]
    pub fn base_sets(&self) -> Sets<'_> {
        Sets { placed: &self.all, order: [0; ORDER], ordered: 0 }
    }

    /// An adapter's desired workers that are there; empty without any.
    #[must_use]
    pub fn placed(&self, adapter: &Digest) -> &[u16] {
        self.adapters.get(adapter).map_or(&[], |on| on)
    }

    /// The workers for an adapter. Cost: at most [`ORDER_PROBES_MAX`] reads, whatever the number of workers and adapters.
    #[must_use]
    pub fn sets(&self, adapter: &Digest) -> Sets<'_> {
        let placed = self.placed(adapter);
        let key = hash::of_digest(adapter);
        let mut sets = Sets { placed, order: [0; ORDER], ordered: 0 };
        // A set that is larger than what is searched here has enough workers of its own.
        if placed.len() > SEARCHED_MAX {
            return sets;
        }
        let wanted = if placed.is_empty() { ORDER } else { ORDER - HOMES };
        for nth in 0..ORDER_PROBES_MAX {
            let Some(worker) = self.table.nth(key, nth).filter(|_| sets.ordered < wanted) else { break };
            if !placed.contains(&worker) && !sets.order[..sets.ordered].contains(&worker) {
                sets.order[sets.ordered] = worker;
                sets.ordered += 1;
            }
        }
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Host;

    fn digest(n: u64) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    fn names(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|index| format!("w-{index:02}")).collect()
    }

    #[test]
    fn the_placement_is_read_by_name_and_workers_that_left_are_left_out() {
        let hosts = names(0..4).into_iter().map(|name| Host(name, 100)).collect();
        let adapters = vec![Placed(digest(1), vec![0, 3])];
        let document =
            Document { epoch: Epoch::first_of(1).unwrap(), holder: "a".to_owned(), workers: hosts, adapters };
        let map = Map::new(Some(&document), vec!["w-03".to_owned(), "w-09".to_owned(), "w-01".to_owned()]);
        assert_eq!(map.placed(&digest(1)), [0], "w-03 is the first here");
        assert_eq!(map.epoch(), document.epoch);
        let sets = map.sets(&digest(1));
        assert_eq!(sets.inside(), [0]);
        let mut spill = sets.spill().to_vec();
        spill.sort_unstable();
        assert_eq!(spill, [1, 2], "the others, once each");
        assert!(sets.last().is_empty());
    }

    #[test]
    fn sets_of_all_gateways_are_the_same_and_change_little_when_a_worker_leaves() {
        let (before, after) = (Map::new(None, names(0..33)), Map::new(None, names(0..32)));
        let mut reversed = names(0..33);
        reversed.reverse();
        let reversed = Map::new(None, reversed);
        let mut moved = 0;
        for adapter in (0..2000).map(digest) {
            let of = |map: &Map| {
                map.sets(&adapter).inside().iter().map(|at| map.workers()[usize::from(*at)].clone()).collect::<Vec<_>>()
            };
            assert_eq!(of(&before), of(&reversed));
            moved += usize::from(of(&before) != of(&after));
        }
        // Two of 33 places are expected to be on the one that left.
        assert!((60..=220).contains(&moved), "{moved} of 2000 have another set");
    }

    #[test]
    fn no_workers_no_sets() {
        let map = Map::new(None, Vec::new());
        assert!(map.sets(&digest(1)).inside().is_empty() && map.sets(&digest(1)).spill().is_empty());
    }
}

//! Weighted rendezvous hashing, computed once for a set of workers and read in constant time.
//!
//! Every slot of the table belongs to the worker with the highest score `-weight / ln(u)`, `u` being a hash of slot and
//! worker in (0, 1): Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM Trans.
//! Networking 6(1), 1998; the weights as in Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005.
//! A worker that leaves loses only its own slots, to all others by weight; one that comes takes only what it wins.
//! An adapter's order of workers is read at slots that are hashes of the adapter and 0, 1, 2, …: constant time, as in
//! Maglev (Eisenbud et al., NSDI 2016), where rendezvous hashing itself would score all workers for each request.

use crate::hash;

/// Slots of a table. With 64 workers a worker has 128 ± 11 of them (one standard deviation, 9 %).
pub const TABLE_SLOTS: usize = 8192;
const _: () = assert!(TABLE_SLOTS.is_power_of_two());

/// Slots and their workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Empty if there are no workers, else [`TABLE_SLOTS`] indices.
    slots: Vec<u16>,
}

impl Table {
    /// For workers by name and weight, whatever their order; weights are relative, what is not a positive number
    /// counts as the least there is. An index in the table is a position in `workers`. Cost: [`TABLE_SLOTS`] hashes
    /// for each worker (64 workers: about 10 ms).
    ///
    /// # Panics
    /// With more than 65,535 workers.
    #[must_use]
    pub fn new(workers: &[(&str, f64)]) -> Self {
        assert!(workers.len() <= usize::from(u16::MAX), "{} workers", workers.len());
        if workers.is_empty() {
            return Self { slots: Vec::new() };
        }
        let hashes: Vec<(u64, f64)> =
            workers.iter().map(|(name, weight)| (hash::of_name(name), sound(*weight))).collect();
        let winner = |slot: usize| {
            let score = |&(worker, weight): &(u64, f64)| {
                -weight / hash::unit(hash::mix(worker ^ hash::mix(slot as u64 + 1))).ln()
            };
            let best =
                hashes.iter().enumerate().max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b)).then(a.0.cmp(&b.0)));
            best.map_or(0, |(index, _)| index as u16)
        };
        Self { slots: (0..TABLE_SLOTS).map(winner).collect() }
    }

    /// The `nth` worker of a key, with repetitions; none if there are no workers. Cost: one hash, one read.
    #[must_use]
    pub fn nth(&self, key: u64, nth: u32) -> Option<u16> {
        let slot = hash::mix(key ^ hash::mix(u64::from(nth) + 1)) as usize & (TABLE_SLOTS - 1);
        self.slots.get(slot).copied()
    }
}

fn sound(weight: f64) -> f64 {
    if weight.is_finite() { weight.max(f64::MIN_POSITIVE) } else { f64::MIN_POSITIVE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("worker-{index}")).collect()
    }

    fn table(names: &[String], weight: impl Fn(usize) -> f64) -> Table {
        let workers: Vec<_> = names.iter().enumerate().map(|(i, name)| (name.as_str(), weight(i))).collect();
        Table::new(&workers)
    }

    #[test]
    fn a_worker_that_leaves_loses_only_its_own_slots() {
        let names = names(17);
        let (all, fewer) = (table(&names, |_| 1.0), table(&names[..16], |_| 1.0));
        let moved = all.slots.iter().zip(&fewer.slots).filter(|(before, after)| before != after).count();
        let own = all.slots.iter().filter(|worker| **worker == 16).count();
        assert_eq!(moved, own);
        assert!(own > TABLE_SLOTS / 34, "the 17th worker has only {own} slots");
    }

    #[test]
    fn shares_follow_weights() {
        let names = names(8);
        let table = table(&names, |index| if index == 0 { 3.0 } else { 1.0 });
        let own = table.slots.iter().filter(|worker| **worker == 0).count() as f64 / TABLE_SLOTS as f64;
        assert!((own - 0.3).abs() < 0.03, "3 of 10 parts, not {own}");
    }

    #[test]
    fn no_workers_and_senseless_weights_are_taken() {
        assert_eq!(Table::new(&[]).nth(7, 0), None);
        let names = names(2);
        let table = table(&names, |index| [f64::NAN, 1.0][index]);
        assert_eq!(table.nth(7, 0), Some(1));
    }
}

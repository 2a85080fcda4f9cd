//! What a placement wants of each worker.

use crate::document::{Document, Placed};
use std::collections::HashMap;
use weft_types::Digest;

/// An adapter that a worker should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Desired {
    /// The adapter.
    pub adapter: Digest,
    /// Other workers should hold it too: nobody would ask for it here while they have it, so that it has to be brought ahead.
    pub is_one_of_many: bool,
}

/// For each worker's name what it should hold, sorted by digest. Cost: linear in copies.
#[must_use]
pub fn by_worker(document: &Document) -> HashMap<&str, Vec<Desired>> {
    let mut of: Vec<Vec<Desired>> = vec![Vec::new(); document.workers.len()];
    for Placed(adapter, on) in &document.adapters {
        for at in on {
            if let Some(desired) = of.get_mut(usize::from(*at)) {
                desired.push(Desired { adapter: *adapter, is_one_of_many: on.len() > 1 });
            }
        }
    }
    document.workers.iter().map(|host| host.0.as_str()).zip(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Epoch, Host};

    #[test]
    fn each_worker_is_told_what_it_should_hold_and_what_others_have_too() {
        let digest = |n: u64| Digest::of(&n.to_le_bytes());
        let mut adapters = vec![Placed(digest(1), vec![0, 2]), Placed(digest(2), vec![2])];
        adapters.sort_by_key(|placed| placed.0);
        let workers = ["a", "b", "c"].map(|name| Host(name.to_owned(), 100)).to_vec();
        let epoch = Epoch::first_of(1).unwrap();
        let document = Document { epoch, holder: "h".to_owned(), workers, adapters };
        let of = by_worker(&document);
        let many = Desired { adapter: digest(1), is_one_of_many: true };
        let mut both = vec![many, Desired { adapter: digest(2), is_one_of_many: false }];
        both.sort();
        assert_eq!((&of["a"], of["b"].len(), &of["c"]), (&vec![many], 0, &both));
    }
}

//! Which worker runs a request. Pure: a choice over what is known of the workers now.
//!
//! Least loaded, but a worker that holds the adapter is preferred while it has at most [`AFFINITY_SLACK`] requests
//! more than the least loaded one. If nobody holds it, rendezvous hashing over (digest, worker) decides among the
//! lightly loaded, so that requests for one adapter meet at one worker while it loads.

use weft_types::{Digest, DigestHasher};

/// Requests that a worker may have more than the least loaded one and still be chosen for its residency.
pub(crate) const AFFINITY_SLACK: usize = 8;

/// What is known of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Position in the pool.
    pub(crate) index: usize,
    /// Requests it has.
    pub(crate) load: usize,
    /// It holds the adapter now.
    pub(crate) resident: bool,
    /// It answered the last look. Others are used only when nobody did.
    pub(crate) up: bool,
}

/// Chooses one, or none if there is no candidate.
pub(crate) fn place(candidates: &[Candidate], adapter: Option<&Digest>) -> Option<usize> {
    let any_up = candidates.iter().any(|candidate| candidate.up);
    let usable = || candidates.iter().filter(move |candidate| candidate.up || !any_up);
    let least = usable().map(|candidate| candidate.load).min()?;
    let Some(adapter) = adapter else {
        return usable().min_by_key(|candidate| (candidate.load, candidate.index)).map(|candidate| candidate.index);
    };
    let near = || usable().filter(move |candidate| candidate.load <= least.saturating_add(AFFINITY_SLACK));
    let holder =
        near().filter(|candidate| candidate.resident).min_by_key(|candidate| (candidate.load, candidate.index));
    holder
        .or_else(|| near().max_by_key(|candidate| rendezvous(adapter, candidate.index)))
        .map(|candidate| candidate.index)
}

fn rendezvous(adapter: &Digest, index: usize) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.update(adapter.as_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(index: usize, load: usize, resident: bool, up: bool) -> Candidate {
        Candidate { index, load, resident, up }
    }

    #[test]
    fn a_holder_is_preferred_until_it_is_much_busier() {
        let adapter = Digest::of(b"a");
        let near = [candidate(0, 0, false, true), candidate(1, AFFINITY_SLACK, true, true)];
        assert_eq!(place(&near, Some(&adapter)), Some(1));
        let far = [candidate(0, 0, false, true), candidate(1, AFFINITY_SLACK + 1, true, true)];
        assert_eq!(place(&far, Some(&adapter)), Some(0));
        assert_eq!(place(&near, None), Some(0));
    }

    #[test]
    fn an_adapter_that_nobody_holds_goes_to_one_worker() {
        let idle: Vec<_> = (0..8).map(|index| candidate(index, index % 3, false, true)).collect();
        let adapter = Digest::of(b"a");
        let first = place(&idle, Some(&adapter));
        assert!((0..10).all(|_| place(&idle, Some(&adapter)) == first));
        let spread: std::collections::BTreeSet<_> =
            (0..64u8).map(|seed| place(&idle, Some(&Digest::of(&[seed])))).collect();
        assert!(spread.len() > 4, "{spread:?}");
    }

    #[test]
    fn a_worker_that_did_not_answer_is_the_last_resort() {
        let mixed = [candidate(0, 0, true, false), candidate(1, 100, false, true)];
        assert_eq!(place(&mixed, Some(&Digest::of(b"a"))), Some(1));
        assert_eq!(place(&mixed[..1], None), Some(0));
        assert_eq!(place(&[], None), None);
    }

    proptest! {
        #[test]
        fn the_choice_is_a_candidate_within_the_slack(
            loads in proptest::collection::vec((0usize..50, any::<bool>(), any::<bool>()), 1..12),
            seed: u8,
        ) {
            let candidates: Vec<_> =
                loads.iter().enumerate().map(|(index, (load, resident, up))| candidate(index, *load, *resident, *up)).collect();
            let chosen = &candidates[place(&candidates, Some(&Digest::of(&[seed]))).unwrap()];
            let any_up = candidates.iter().any(|candidate| candidate.up);
            prop_assert!(chosen.up || !any_up);
            let least = candidates.iter().filter(|candidate| candidate.up || !any_up).map(|candidate| candidate.load).min().unwrap();
            prop_assert!(chosen.load <= least + AFFINITY_SLACK);
        }
    }
}

//! Which worker runs a request. Pure: a choice over what is known of the workers now.
//!
//! Least loaded, but a worker that holds the adapter is preferred while it has at most [`AFFINITY_SLACK`] requests
//! more than the least loaded one. If nobody holds it, rendezvous hashing over (digest, worker) decides among the
//! lightly loaded, so that requests for one adapter meet at one worker while it loads, whichever gateway they come through.

use crate::workers::{Load, WorkerId};
use std::time::Duration;
use weft_proto::mesh::v1::Tier;
use weft_types::{Digest, DigestHasher};

/// Requests that a worker may have more than the least loaded one and still be chosen for its residency.
pub(crate) const AFFINITY_SLACK: usize = 8;

/// What is known of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: WorkerId,
    /// Of its address: what rendezvous hashing goes by.
    pub(crate) hash: Digest,
    /// It answers and does not drain. Others are used only when nobody does.
    pub(crate) up: bool,
    /// As it last said: queue, step time, prefill rate, KV free.
    pub(crate) load: Load,
    /// Requests that this gateway has there now.
    pub(crate) in_flight: usize,
    /// Where it has the adapter. None: nowhere, or no adapter is wanted.
    pub(crate) tier: Option<Tier>,
    /// Since its last word.
    #[expect(dead_code, reason = "for routing by predicted times, which trusts an old load less")]
    pub(crate) age: Duration,
}

impl Candidate {
    /// Requests it has, as far as we know.
    fn requests(&self) -> usize {
        self.load.requests().max(self.in_flight)
    }

    /// The adapter is in its slot, or gets one by moving a pointer.
    fn holds(&self) -> bool {
        matches!(self.tier, Some(Tier::Slot | Tier::Memory))
    }
}

/// Chooses one, or none if there is no candidate.
pub(crate) fn place(candidates: &[Candidate], adapter: Option<&Digest>) -> Option<WorkerId> {
    let any_up = candidates.iter().any(|candidate| candidate.up);
    let usable = || candidates.iter().filter(move |candidate| candidate.up || !any_up);
    let least = usable().map(Candidate::requests).min()?;
    let least_loaded = |candidate: &&Candidate| (candidate.requests(), candidate.id);
    let Some(adapter) = adapter else {
        return usable().min_by_key(least_loaded).map(|candidate| candidate.id);
    };
    let near = || usable().filter(move |candidate| candidate.requests() <= least.saturating_add(AFFINITY_SLACK));
    let holder = near().filter(|candidate| candidate.holds()).min_by_key(least_loaded);
    holder.or_else(|| near().max_by_key(|candidate| rendezvous(adapter, &candidate.hash))).map(|candidate| candidate.id)
}

fn rendezvous(adapter: &Digest, worker: &Digest) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.update(adapter.as_bytes());
    hasher.update(worker.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: u64, running: u32, resident: bool, up: bool) -> Candidate {
        Candidate {
            id: WorkerId(id),
            hash: Digest::of(&id.to_le_bytes()),
            up,
            load: Load { running_requests: running, ..Load::default() },
            in_flight: 0,
            tier: resident.then_some(Tier::Slot),
            age: Duration::ZERO,
        }
    }

    #[test]
    fn a_holder_is_preferred_until_it_is_much_busier() {
        let adapter = Digest::of(b"a");
        let near = [candidate(0, 0, false, true), candidate(1, AFFINITY_SLACK as u32, true, true)];
        assert_eq!(place(&near, Some(&adapter)), Some(WorkerId(1)));
        let far = [candidate(0, 0, false, true), candidate(1, AFFINITY_SLACK as u32 + 1, true, true)];
        assert_eq!(place(&far, Some(&adapter)), Some(WorkerId(0)));
        assert_eq!(place(&near, None), Some(WorkerId(0)));
    }

    #[test]
    fn an_adapter_that_nobody_holds_goes_to_one_worker() {
        let idle: Vec<_> = (0..8).map(|id| candidate(id, id as u32 % 3, false, true)).collect();
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
        assert_eq!(place(&mixed, Some(&Digest::of(b"a"))), Some(WorkerId(1)));
        assert_eq!(place(&mixed[..1], None), Some(WorkerId(0)));
        assert_eq!(place(&[], None), None);
    }

    proptest! {
        #[test]
        fn the_choice_is_a_candidate_within_the_slack(
            loads in proptest::collection::vec((0u32..50, any::<bool>(), any::<bool>()), 1..12),
            seed: u8,
        ) {
            let candidates: Vec<_> =
                loads.iter().enumerate().map(|(id, (load, resident, up))| candidate(id as u64, *load, *resident, *up)).collect();
            let chosen = place(&candidates, Some(&Digest::of(&[seed]))).unwrap();
            let chosen = &candidates[chosen.0 as usize];
            let any_up = candidates.iter().any(|candidate| candidate.up);
            prop_assert!(chosen.up || !any_up);
            let least = candidates.iter().filter(|candidate| candidate.up || !any_up).map(Candidate::requests).min().unwrap();
            prop_assert!(chosen.requests() <= least + AFFINITY_SLACK);
        }
    }
}

//! How long which adapter held memory here, and what was moved for it. No IO, no clock.
//!
//! Between two looks at what is resident an adapter was where the first one saw it. Times are kept in milliseconds of a clock that never goes back;
//! parts of one are carried on, so that sums over reports are what they would be in one.

use std::collections::HashMap;

use weft_proto::worker::v1 as pb;
use weft_types::Digest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    None,
    Slot,
    Memory,
}

/// What an adapter took since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Milliseconds in a slot.
    pub(crate) slot_ms: u64,
    /// Milliseconds packed in memory, without a slot.
    pub(crate) memory_ms: u64,
    /// Bytes of blobs that were brought here.
    pub(crate) bytes_moved: u64,
    /// What it takes where it is.
    pub(crate) bytes: u64,
}

struct Entry {
    tier: Tier,
    since_ms: u64,
    taken: Taken,
}

/// Of every adapter that was here since the last report.
#[derive(Default)]
pub(crate) struct Occupancy {
    entries: HashMap<Digest, Entry>,
}

impl Entry {
    fn settle(&mut self, now_ms: u64) {
        let ms = now_ms.saturating_sub(self.since_ms);
        match self.tier {
            Tier::Slot => self.taken.slot_ms += ms,
            Tier::Memory => self.taken.memory_ms += ms,
            Tier::None => {}
        }
        self.since_ms = now_ms;
    }
}

impl Occupancy {
    /// Takes in what is resident from now on. Cost: one step an adapter.
    pub(crate) fn observe(&mut self, now_ms: u64, residency: &pb::ListResidencyResponse) {
        for entry in self.entries.values_mut() {
            entry.settle(now_ms);
            entry.tier = Tier::None;
        }
        let slots = residency.adapters.iter().map(|adapter| (adapter, Tier::Slot));
        let prepared = residency.prepared.iter().map(|adapter| (adapter, Tier::Memory));
        for (adapter, tier) in slots.chain(prepared) {
            let Ok(digest) = Digest::try_from(adapter.digest.as_ref()) else { continue };
            let entry = self.entry(digest, now_ms);
            entry.tier = tier;
            entry.taken.bytes = adapter.bytes;
        }
    }

    /// So many bytes were brought here for an adapter.
    pub(crate) fn moved(&mut self, now_ms: u64, digest: Digest, bytes: u64) {
        self.entry(digest, now_ms).taken.bytes_moved += bytes;
    }

    /// What each took since this was called last, by digest. Those that are gone are forgotten.
    pub(crate) fn take(&mut self, now_ms: u64) -> Vec<(Digest, Taken)> {
        let mut all = Vec::with_capacity(self.entries.len());
        self.entries.retain(|digest, entry| {
            entry.settle(now_ms);
            let bytes = entry.taken.bytes;
            let taken = std::mem::replace(&mut entry.taken, Taken { bytes, ..Taken::default() });
            if (taken.slot_ms, taken.memory_ms, taken.bytes_moved) != (0, 0, 0) {
                all.push((*digest, taken));
            }
            entry.tier != Tier::None
        });
        all.sort_unstable_by_key(|(digest, _)| *digest);
        all
    }

    fn entry(&mut self, digest: Digest, now_ms: u64) -> &mut Entry {
        let new = || Entry { tier: Tier::None, since_ms: now_ms, taken: Taken::default() };
        self.entries.entry(digest).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(slots: &[u8], prepared: &[u8]) -> pb::ListResidencyResponse {
        let list = |names: &[u8]| {
            let adapter = |name: &u8| pb::ResidentAdapter {
                digest: Digest::of(&[*name]).to_vec().into(),
                bytes: u64::from(*name),
                ..Default::default()
            };
            names.iter().map(adapter).collect()
        };
        pb::ListResidencyResponse { adapters: list(slots), prepared: list(prepared), ..Default::default() }
    }

    #[test]
    fn each_tier_has_its_time_and_what_left_is_told_once() {
        let mut occupancy = Occupancy::default();
        occupancy.moved(0, Digest::of(&[1]), 500);
        occupancy.observe(0, &seen(&[1], &[]));
        occupancy.observe(30, &seen(&[2], &[1]));
        occupancy.observe(50, &seen(&[2], &[]));
        let of = |taken: &[(Digest, Taken)], name: u8| {
            taken.iter().find(|(digest, _)| *digest == Digest::of(&[name])).map(|(_, taken)| *taken)
        };
        let first = occupancy.take(100);
        assert_eq!(of(&first, 1), Some(Taken { slot_ms: 30, memory_ms: 20, bytes_moved: 500, bytes: 1 }));
        assert_eq!(of(&first, 2), Some(Taken { slot_ms: 70, memory_ms: 0, bytes_moved: 0, bytes: 2 }));
        let second = occupancy.take(110);
        assert_eq!((of(&second, 1), of(&second, 2).unwrap().slot_ms), (None, 10));
    }

    proptest! {
        /// Whatever happens when: reports add up to the time that was spent in each tier.
        #[test]
        fn reports_add_up(events in proptest::collection::vec((0..3u8, 0..40u64, any::<bool>()), 1..60)) {
            let (mut occupancy, mut now, mut tier) = (Occupancy::default(), 0, 2);
            let (mut expected, mut told) = ([0; 2], [0; 2]);
            let add = |occupancy: &mut Occupancy, now, told: &mut [u64; 2]| {
                for (_, taken) in occupancy.take(now) {
                    told[0] += taken.slot_ms;
                    told[1] += taken.memory_ms;
                }
            };
            for (next, after, reports) in events {
                now += after;
                if tier < 2 {
                    expected[usize::from(tier)] += after;
                }
                tier = next;
                let lists: [&[u8]; 2] = [if tier == 0 { &[7] } else { &[] }, if tier == 1 { &[7] } else { &[] }];
                occupancy.observe(now, &seen(lists[0], lists[1]));
                if reports {
                    add(&mut occupancy, now, &mut told);
                }
            }
            add(&mut occupancy, now, &mut told);
            prop_assert_eq!(told, expected);
        }
    }
}

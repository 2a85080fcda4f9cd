//! Random histories against a plain model: the budget holds, leased and pinned entries stay, the sums are right.

use proptest::prelude::*;
use std::collections::BTreeMap;
use weft_residency::{Ledger, Room};

const BYTES_MAX: u64 = 1000;

#[derive(Clone, Debug)]
enum Event {
    Bring { key: u8, bytes: u64, cost: f64 },
    Lease(u8),
    Hold(u8),
    Release(u8),
    Pin(u8),
    Unpin(u8),
    Touch(u8),
    Unlink(u8),
    Resize(u8, u64),
}

fn event() -> impl Strategy<Value = Event> {
    let key = || 0u8..12;
    prop_oneof![
        6 => (key(), 0u64..1100, prop_oneof![Just(0.0), 0.1f64..100.0])
            .prop_map(|(key, bytes, cost)| Event::Bring { key, bytes, cost }),
        3 => key().prop_map(Event::Lease),
        1 => key().prop_map(Event::Hold),
        4 => key().prop_map(Event::Release),
        1 => key().prop_map(Event::Pin),
        2 => key().prop_map(Event::Unpin),
        2 => key().prop_map(Event::Touch),
        1 => key().prop_map(Event::Unlink),
        1 => (key(), 0u64..100).prop_map(|(key, bytes)| Event::Resize(key, bytes)),
    ]
}

/// What the books should say about one key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Model {
    bytes: u64,
    leases: u32,
    pinned: bool,
    unlinked: bool,
}

impl Model {
    fn may_go(&self) -> bool {
        self.leases == 0 && !self.pinned && !self.unlinked
    }
}

fn check_evictions(model: &BTreeMap<u8, Model>, used: u64, bytes: u64, victims: &[u8]) {
    let mut freed: Vec<u64> = Vec::new();
    for victim in victims {
        let entry = model.get(victim).expect("a victim is in the books");
        assert!(entry.may_go(), "evicts {victim}, which is held: {entry:?}");
        freed.push(entry.bytes);
    }
    let mut distinct = victims.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), victims.len(), "a victim is named twice");
    let total: u64 = freed.iter().sum();
    let to_free = used + bytes - BYTES_MAX;
    assert!(total >= to_free, "frees {total} of {to_free}");
    for one in freed {
        assert!(total - one < to_free, "a victim of {one} bytes is needless: {total} of {to_free}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_the_books(events in prop::collection::vec((event(), 0u64..5_000_000), 1..120)) {
        let mut ledger = Ledger::new(BYTES_MAX).with_half_life_ms(60_000);
        let mut model: BTreeMap<u8, Model> = BTreeMap::new();
        for (event, now) in events {
            let used_before: u64 = model.values().map(|entry| entry.bytes).sum();
            match event {
                Event::Bring { key, bytes, cost } => {
                    let room = ledger.make_room(bytes, now);
                    prop_assert_eq!(&room, &ledger.make_room(bytes, now), "asking changes nothing");
                    let admitted = match room {
                        Room::Fits => { prop_assert!(used_before + bytes <= BYTES_MAX); true }
                        Room::TooLarge => { prop_assert!(bytes > BYTES_MAX); false }
                        Room::Full { held } => {
                            let held_now: u64 = model.values().filter(|e| !e.may_go()).map(|e| e.bytes).sum();
                            prop_assert_eq!(held, held_now);
                            prop_assert!(held + bytes > BYTES_MAX, "refused although evictions would do");
                            false
                        }
                        Room::Evict(victims) => {
                            prop_assert!(used_before + bytes > BYTES_MAX);
                            check_evictions(&model, used_before, bytes, &victims);
                            for victim in victims {
                                prop_assert_eq!(ledger.remove(&victim), model.remove(&victim).map(|e| e.bytes));
                            }
                            true
                        }
                    };
                    if admitted {
                        let fresh = !model.contains_key(&key);
                        prop_assert_eq!(ledger.insert_with_cost(key, bytes, cost, now), fresh);
                        model.entry(key).or_insert(Model { bytes, ..Model::default() });
                    }
                }
                Event::Lease(key) | Event::Hold(key) => {
                    let live = model.get_mut(&key).filter(|e| !e.unlinked);
                    let known = if matches!(event, Event::Lease(_)) { ledger.lease(&key, now) } else { ledger.hold(&key) };
                    prop_assert_eq!(known, live.is_some());
                    if let Some(entry) = live { entry.leases += 1; }
                }
                Event::Release(key) => {
                    let left = ledger.release(&key);
                    match model.get_mut(&key).filter(|e| e.leases > 0) {
                        None => prop_assert_eq!(left, None),
                        Some(entry) => {
                            entry.leases -= 1;
                            prop_assert_eq!(left, Some(entry.leases));
                            if entry.unlinked && entry.leases == 0 { model.remove(&key); }
                        }
                    }
                }
                Event::Pin(key) | Event::Unpin(key) => {
                    let pin = matches!(event, Event::Pin(_));
                    let live = model.get_mut(&key).filter(|e| !e.unlinked);
                    let known = if pin { ledger.pin(&key) } else { ledger.unpin(&key) };
                    prop_assert_eq!(known, live.is_some());
                    if let Some(entry) = live { entry.pinned = pin; }
                }
                Event::Touch(key) => {
                    prop_assert_eq!(ledger.touch(&key, now), model.get(&key).is_some_and(|e| !e.unlinked));
                }
                Event::Unlink(key) => {
                    let live = model.get(&key).copied().filter(|e| !e.unlinked);
                    prop_assert_eq!(ledger.remove(&key), live.map(|e| e.bytes));
                    match live {
                        Some(entry) if entry.leases == 0 => { model.remove(&key); }
                        Some(entry) => { model.insert(key, Model { pinned: false, unlinked: true, ..entry }); }
                        None => {}
                    }
                }
                // Only ever smaller: a larger size would have to be admitted first.
                Event::Resize(key, by) => {
                    let live = model.get_mut(&key).filter(|e| !e.unlinked);
                    let bytes = live.as_ref().map_or(0, |e| e.bytes.saturating_sub(by));
                    prop_assert_eq!(ledger.resize(&key, bytes), live.is_some());
                    if let Some(entry) = live { entry.bytes = bytes; }
                }
            }

            let seen: BTreeMap<u8, Model> = ledger
                .iter()
                .map(|e| (*e.key, Model { bytes: e.bytes, leases: e.leases, pinned: e.pinned, unlinked: e.unlinked }))
                .collect();
            prop_assert_eq!(&seen, &model);
            prop_assert_eq!(ledger.used(), model.values().map(|e| e.bytes).sum::<u64>());
            prop_assert_eq!(ledger.held(), model.values().filter(|e| !e.may_go()).map(|e| e.bytes).sum::<u64>());
            prop_assert!(ledger.used() <= BYTES_MAX, "over budget: {}", ledger.used());
            for key in 0..12 {
                let entry = model.get(&key).copied().unwrap_or_default();
                prop_assert_eq!(ledger.leases(&key), entry.leases);
                prop_assert_eq!(ledger.is_pinned(&key), entry.pinned);
                prop_assert_eq!(ledger.contains(&key), model.contains_key(&key) && !entry.unlinked);
            }
        }
    }
}

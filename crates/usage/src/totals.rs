//! Sums of records, by tenant, adapter, version and day. Pure.

use crate::share::{self, Owner};
use crate::{Day, Record};
use std::collections::BTreeMap;
use weft_types::{AdapterName, Digest, TenantName, VersionNumber};

/// What a sum is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// None: bytes on a worker that nobody owned.
    pub tenant: Option<TenantName>,
    /// None: the base.
    pub adapter: Option<AdapterName>,
    /// None: the base, or sums over all versions.
    pub version: Option<VersionNumber>,
    /// The day (UTC) on which it ended.
    pub day: Day,
}

/// Sums. 2^64 records of 2^64 each fit into 128 bits, so that nothing overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Answers, however they ended.
    pub requests: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u128,
    /// Tokens that were made.
    pub completion_tokens: u128,
    /// Tokens of prompts that were not computed again.
    pub cached_tokens: u128,
    /// Bytes that were fetched or copied for adapters.
    pub bytes_moved: u128,
    /// Milliseconds in slots.
    pub slot_ms: u128,
    /// Milliseconds packed in memory.
    pub memory_ms: u128,
}

impl Amounts {
    /// Adds others to these.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
        self.bytes_moved += other.bytes_moved;
        self.slot_ms += other.slot_ms;
        self.memory_ms += other.memory_ms;
    }
}

/// Sums by key. Memory: a few hundred bytes a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals(BTreeMap<Key, Amounts>);

impl Totals {
    /// No sums.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record, which must be new: ids are the reader's business. `owners` is asked for the owners of a residency's digest, and of
    /// no request's.
    pub fn add(&mut self, record: &Record, owners: impl FnOnce(&Digest) -> Vec<Owner>) {
        let day = Day::of_ms(record.ended_ms());
        match record {
            Record::Request(request) => {
                let key = Key {
                    tenant: Some(request.tenant.clone()),
                    adapter: request.adapter.clone(),
                    version: request.version,
                    day,
                };
                let amounts = Amounts {
                    requests: 1,
                    prompt_tokens: request.prompt_tokens.into(),
                    completion_tokens: request.completion_tokens.into(),
                    cached_tokens: request.cached_tokens.into(),
                    ..Amounts::default()
                };
                self.add_amounts(key, &amounts);
            }
            Record::Residency(residency) => {
                for share in share::split(residency, owners(&residency.digest)) {
                    let amounts = Amounts {
                        bytes_moved: share.bytes_moved.into(),
                        slot_ms: share.slot_ms.into(),
                        memory_ms: share.memory_ms.into(),
                        ..Amounts::default()
                    };
                    let key = match share.owner {
                        Some(owner) => Key {
                            tenant: Some(owner.tenant),
                            adapter: Some(owner.adapter),
                            version: Some(owner.version),
                            day,
                        },
                        None => Key { tenant: None, adapter: None, version: None, day },
                    };
                    self.add_amounts(key, &amounts);
                }
            }
        }
    }

    /// Adds sums of other records: those of another hour or another reader.
    pub fn merge(&mut self, other: Self) {
        for (key, amounts) in other.0 {
            self.add_amounts(key, &amounts);
        }
    }

    /// The same sums over all versions of an adapter.
    #[must_use]
    pub fn over_versions(self) -> Self {
        let mut sums = Self::new();
        for (key, amounts) in self.0 {
            sums.add_amounts(Key { version: None, ..key }, &amounts);
        }
        sums
    }

    /// The sum of all.
    #[must_use]
    pub fn sum(&self) -> Amounts {
        let mut sum = Amounts::default();
        self.0.values().for_each(|amounts| sum.add(amounts));
        sum
    }

    /// The sums in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Amounts)> {
        self.0.iter()
    }

    fn add_amounts(&mut self, key: Key, amounts: &Amounts) {
        self.0.entry(key).or_default().add(amounts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Request, Residency};
    use proptest::prelude::*;

    fn request(tenant: &str, version: u64, ended_ms: u64, tokens: u64) -> Record {
        Record::Request(Request {
            id: "x".to_owned(),
            tenant: tenant.parse().unwrap(),
            key_id: "k".to_owned(),
            adapter: Some("a".parse().unwrap()),
            version: Some(version),
            digest: None,
            ended_ms,
            prompt_tokens: tokens,
            completion_tokens: tokens,
            cached_tokens: 0,
            outcome: Outcome::Complete,
            duration_ms: 1,
        })
    }

    #[test]
    fn sums_are_kept_by_tenant_version_and_day() {
        let mut totals = Totals::new();
        let day_ms = 86_400_000;
        for record in [
            request("b", 1, day_ms - 1, u64::MAX),
            request("b", 1, 0, u64::MAX),
            request("b", 1, day_ms, 1),
            request("a", 2, 0, 5),
        ] {
            totals.add(&record, |_| unreachable!("requests have a tenant"));
        }
        let shown: Vec<_> = totals
            .iter()
            .map(|(key, sum)| {
                (key.tenant.as_ref().unwrap().as_str(), key.day.number(), sum.requests, sum.prompt_tokens)
            })
            .collect();
        assert_eq!(shown, [("a", 0, 1, 5), ("b", 0, 2, 2 * u128::from(u64::MAX)), ("b", 1, 1, 1)]);
        assert_eq!(totals.sum().requests, 4);
    }

    #[test]
    fn bytes_that_nobody_owns_are_not_lost() {
        let residency = Residency {
            id: "r".to_owned(),
            worker: "w".to_owned(),
            incarnation: "i".to_owned(),
            from_ms: 0,
            to_ms: 9,
            digest: Digest::of(b""),
            slot_ms: 7,
            memory_ms: 8,
            bytes_moved: 9,
            bytes: 9,
        };
        let mut totals = Totals::new();
        totals.add(&Record::Residency(residency), |_| Vec::new());
        let (key, sum) = totals.iter().next().unwrap();
        assert_eq!((&key.tenant, sum.slot_ms, sum.memory_ms, sum.bytes_moved), (&None, 7, 8, 9));
    }

    proptest! {
        #[test]
        fn parts_merge_to_the_whole(records in proptest::collection::vec((0u64..3, 0u64..4, 0u64..200_000_000), 0..40), cut in 0usize..40) {
            let records: Vec<_> = records
                .into_iter()
                .map(|(tenant, version, ms)| request(["a", "b", "c"][tenant as usize], version, ms, ms))
                .collect();
            let fold = |records: &[Record]| {
                let mut totals = Totals::new();
                records.iter().for_each(|record| totals.add(record, |_| Vec::new()));
                totals
            };
            let (first, second) = records.split_at(cut.min(records.len()));
            let mut merged = fold(first);
            merged.merge(fold(second));
            prop_assert_eq!(&merged, &fold(&records));
            prop_assert_eq!(merged.clone().over_versions().sum(), merged.sum());
        }
    }
}

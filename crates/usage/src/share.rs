//! Who pays for bytes that several tenants own: an equal split in integers. Pure.

use crate::Residency;
use weft_types::{AdapterName, TenantName, VersionNumber};

/// A version of an adapter that has certain bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Whose it is.
    pub tenant: TenantName,
    /// Its adapter.
    pub adapter: AdapterName,
    /// Which version.
    pub version: VersionNumber,
}

/// One owner's part of a [`Residency`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// None: nobody owned the bytes.
    pub owner: Option<Owner>,
    /// Its part of the slot's time.
    pub slot_ms: u64,
    /// Its part of the memory's time.
    pub memory_ms: u64,
    /// Its part of the bytes moved.
    pub bytes_moved: u64,
}

/// Splits equally among the tenants that own the digest; what is left over goes to the first tenant by name. A tenant that owns
/// it several times pays once, for the first of its versions in the order of [`Owner`]. Without owners there is one share
/// without an owner, so that the sum of the shares is always the whole.
#[must_use]
pub fn split(residency: &Residency, mut owners: Vec<Owner>) -> Vec<Share> {
    owners.sort();
    owners.dedup_by(|later, first| later.tenant == first.tenant);
    let count = owners.len().max(1) as u64;
    let part = |whole: u64, is_first: bool| whole / count + if is_first { whole % count } else { 0 };
    let share = |owner: Option<Owner>, is_first: bool| Share {
        owner,
        slot_ms: part(residency.slot_ms, is_first),
        memory_ms: part(residency.memory_ms, is_first),
        bytes_moved: part(residency.bytes_moved, is_first),
    };
    if owners.is_empty() {
        return vec![share(None, true)];
    }
    owners.into_iter().enumerate().map(|(index, owner)| share(Some(owner), index == 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_types::Digest;

    fn residency(slot_ms: u64, memory_ms: u64, bytes_moved: u64) -> Residency {
        Residency {
            id: "r".to_owned(),
            worker: "w".to_owned(),
            incarnation: "i".to_owned(),
            from_ms: 0,
            to_ms: 1,
            digest: Digest::of(b""),
            slot_ms,
            memory_ms,
            bytes_moved,
            bytes: 1,
        }
    }

    fn owner(tenant: &str, version: u64) -> Owner {
        Owner { tenant: tenant.parse().unwrap(), adapter: "a".parse().unwrap(), version }
    }

    #[test]
    fn the_remainder_goes_to_the_first_by_name() {
        let owners = vec![owner("c", 1), owner("a", 2), owner("b", 1), owner("a", 1)];
        let shares = split(&residency(8, 3, 2), owners);
        let shown: Vec<_> = shares
            .iter()
            .map(|share| {
                let owner = share.owner.as_ref().unwrap();
                (owner.tenant.as_str(), owner.version, share.slot_ms, share.memory_ms, share.bytes_moved)
            })
            .collect();
        assert_eq!(shown, [("a", 1, 4, 1, 2), ("b", 1, 2, 1, 0), ("c", 1, 2, 1, 0)]);
    }

    proptest! {
        #[test]
        fn shares_add_up_to_the_whole(slot: u64, memory: u64, moved: u64, tenants in proptest::collection::vec("[a-z]{1,2}", 0..20)) {
            let owners = tenants.iter().map(|tenant| owner(tenant, 1)).collect();
            let shares = split(&residency(slot, memory, moved), owners);
            let sum = |of: fn(&Share) -> u64| shares.iter().map(|share| u128::from(of(share))).sum::<u128>();
            prop_assert_eq!(sum(|share| share.slot_ms), u128::from(slot));
            prop_assert_eq!(sum(|share| share.memory_ms), u128::from(memory));
            prop_assert_eq!(sum(|share| share.bytes_moved), u128::from(moved));
        }
    }
}

//! Adapters that were asked for and have served nobody yet, and whose turn paid for them.
//!
//! A tenant holds only so many of them: without that bound, one that cycles cold adapters would fill the slots with
//! adapters whose requests wait for their turn, and would push out what others use.

use std::collections::HashMap;

use weft_types::Digest;

use crate::turns::Tenant;

/// Bytes expected of a load before the first is known.
const UNKNOWN_BYTES: f64 = (1 << 20) as f64;
/// Part of a new size in the running mean.
const GAIN: f64 = 0.25;

#[derive(Debug)]
struct Ahead {
    tenant: Tenant,
    on_its_way: bool,
}

/// Adapters of one tenant.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    ahead: usize,
    /// Of these, loads that have not ended.
    on_their_way: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Loads {
    ahead: HashMap<Digest, Ahead>,
    by_tenant: HashMap<Tenant, Counts>,
    mean_bytes: Option<f64>,
}

impl Loads {
    /// Bytes expected of a load: the mean of those before.
    pub(crate) fn expected_bytes(&self) -> u64 {
        self.mean_bytes.unwrap_or(UNKNOWN_BYTES) as u64
    }

    pub(crate) fn ahead_of(&self, tenant: &str) -> usize {
        self.by_tenant.get(tenant).map_or(0, |counts| counts.ahead)
    }

    /// Loads of this tenant that have not ended, and so are not charged yet.
    pub(crate) fn on_their_way(&self, tenant: &str) -> usize {
        self.by_tenant.get(tenant).map_or(0, |counts| counts.on_their_way)
    }

    /// Whose turn it was when this one was asked for, until it has served.
    pub(crate) fn tenant_of(&self, digest: &Digest) -> Option<&Tenant> {
        self.ahead.get(digest).map(|ahead| &ahead.tenant)
    }

    /// The adapter is on its way in this tenant's turn.
    pub(crate) fn start(&mut self, digest: Digest, tenant: &Tenant) {
        self.end(&digest);
        let counts = self.by_tenant.entry(tenant.clone()).or_default();
        counts.ahead += 1;
        counts.on_their_way += 1;
        self.ahead.insert(digest, Ahead { tenant: tenant.clone(), on_its_way: true });
    }

    /// Its load ended: who pays for it, and for how many bytes. None: it was not asked for here, or has ended before.
    pub(crate) fn settle(&mut self, digest: &Digest, bytes: Option<u64>) -> Option<(Tenant, u64)> {
        let ahead = self.ahead.get_mut(digest).filter(|ahead| ahead.on_its_way)?;
        ahead.on_its_way = false;
        let tenant = ahead.tenant.clone();
        if let Some(counts) = self.by_tenant.get_mut(&tenant) {
            counts.on_their_way -= 1;
        }
        let charged = bytes.unwrap_or_else(|| self.expected_bytes());
        if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
            let bytes = bytes as f64;
            self.mean_bytes = Some(self.mean_bytes.map_or(bytes, |mean| mean + GAIN * (bytes - mean)));
        }
        Some((tenant, charged))
    }

    /// Whether its load has not ended.
    pub(crate) fn is_on_its_way(&self, digest: &Digest) -> bool {
        self.ahead.get(digest).is_some_and(|ahead| ahead.on_its_way)
    }

    /// Whether it is here and has served nobody yet.
    pub(crate) fn is_unserved(&self, digest: &Digest) -> bool {
        self.ahead.get(digest).is_some_and(|ahead| !ahead.on_its_way)
    }

    /// It served somebody, or is gone, or nobody waits for it any more.
    pub(crate) fn end(&mut self, digest: &Digest) {
        let Some(ahead) = self.ahead.remove(digest) else { return };
        if let Some(counts) = self.by_tenant.get_mut(&ahead.tenant) {
            counts.ahead -= 1;
            counts.on_their_way -= usize::from(ahead.on_its_way);
            if counts.ahead == 0 {
                self.by_tenant.remove(&ahead.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_counts_for_its_tenant_until_it_served() {
        let mut loads = Loads::default();
        let (tenant, digest) = (Tenant::from("a"), Digest::of(b"x"));
        loads.start(digest, &tenant);
        assert_eq!((loads.ahead_of("a"), loads.on_their_way("a")), (1, 1));
        assert_eq!(loads.settle(&digest, Some(100)), Some((tenant.clone(), 100)));
        assert_eq!(loads.settle(&digest, Some(100)), None, "settled once");
        assert_eq!((loads.ahead_of("a"), loads.on_their_way("a")), (1, 0));
        assert!(loads.is_unserved(&digest) && !loads.is_on_its_way(&digest));
        loads.end(&digest);
        loads.end(&digest);
        assert_eq!((loads.ahead_of("a"), loads.by_tenant.len()), (0, 0));
    }

    #[test]
    fn the_next_load_is_expected_to_be_like_those_before() {
        let mut loads = Loads::default();
        assert_eq!(loads.expected_bytes(), 1 << 20);
        let sizes = [(0, Some(100), 100), (1, Some(200), 200), (2, None, 125), (3, Some(0), 0)];
        for (number, bytes, charged) in sizes {
            let digest = Digest::of(&[number]);
            loads.start(digest, &"a".into());
            assert_eq!(loads.settle(&digest, bytes), Some(("a".into(), charged)));
        }
        assert_eq!(loads.expected_bytes(), 125);
    }
}

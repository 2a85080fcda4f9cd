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
    /// Charged when it was asked for, until its size is known.
    charged: Option<u64>,
}

/// A load's size became known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) tenant: Tenant,
    /// Charged so far.
    pub(crate) charged: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Loads {
    ahead: HashMap<Digest, Ahead>,
    by_tenant: HashMap<Tenant, usize>,
    mean_bytes: Option<f64>,
}

impl Loads {
    /// Bytes expected of a load: the mean of those before.
    pub(crate) fn expected_bytes(&self) -> u64 {
        self.mean_bytes.unwrap_or(UNKNOWN_BYTES) as u64
    }

    pub(crate) fn ahead_of(&self, tenant: &str) -> usize {
        self.by_tenant.get(tenant).copied().unwrap_or(0)
    }

    /// The adapter is on its way in this tenant's turn.
    pub(crate) fn start(&mut self, digest: Digest, tenant: &Tenant, charged: u64) {
        self.end(&digest);
        *self.by_tenant.entry(tenant.clone()).or_default() += 1;
        self.ahead.insert(digest, Ahead { tenant: tenant.clone(), charged: Some(charged) });
    }

    /// Its load ended. None: it was not asked for here, or is settled.
    pub(crate) fn settle(&mut self, digest: &Digest, bytes: Option<u64>) -> Option<Settled> {
        let ahead = self.ahead.get_mut(digest)?;
        let charged = ahead.charged.take()?;
        if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
            let bytes = bytes as f64;
            self.mean_bytes = Some(self.mean_bytes.map_or(bytes, |mean| mean + GAIN * (bytes - mean)));
        }
        Some(Settled { tenant: ahead.tenant.clone(), charged })
    }

    /// Whether its load has not ended.
    pub(crate) fn is_on_its_way(&self, digest: &Digest) -> bool {
        self.ahead.get(digest).is_some_and(|ahead| ahead.charged.is_some())
    }

    /// Whether it was asked for and has served nobody yet.
    pub(crate) fn is_ahead(&self, digest: &Digest) -> bool {
        self.ahead.contains_key(digest)
    }

    /// It served somebody, or is gone, or nobody waits for it any more.
    pub(crate) fn end(&mut self, digest: &Digest) {
        let Some(ahead) = self.ahead.remove(digest) else { return };
        if let Some(count) = self.by_tenant.get_mut(&ahead.tenant) {
            *count -= 1;
            if *count == 0 {
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
        loads.start(digest, &tenant, 7);
        assert!(loads.is_on_its_way(&digest));
        assert_eq!(loads.settle(&digest, Some(100)), Some(Settled { tenant: tenant.clone(), charged: 7 }));
        assert_eq!(loads.settle(&digest, Some(100)), None, "settled once");
        assert_eq!((loads.ahead_of("a"), loads.is_on_its_way(&digest)), (1, false));
        loads.end(&digest);
        loads.end(&digest);
        assert_eq!((loads.ahead_of("a"), loads.by_tenant.len()), (0, 0));
    }

    #[test]
    fn the_next_load_is_expected_to_be_like_those_before() {
        let mut loads = Loads::default();
        assert_eq!(loads.expected_bytes(), 1 << 20);
        for (number, bytes) in [(0, Some(100)), (1, Some(200)), (2, None), (3, Some(0))] {
            let digest = Digest::of(&[number]);
            loads.start(digest, &"a".into(), 0);
            loads.settle(&digest, bytes);
        }
        assert_eq!(loads.expected_bytes(), 125);
    }
}

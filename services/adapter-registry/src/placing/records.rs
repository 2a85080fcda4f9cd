//! What the catalog says of what may be placed.

use crate::catalog::Catalog;
use std::collections::{BTreeMap, HashMap, HashSet};
use weft_placement::{Adapter, Tenant};
use weft_types::{Digest, TenantName};

/// A version, as far as placement goes by it.
struct Version {
    tenant: TenantName,
    rank: u32,
    bytes: u64,
}

/// What placement needs of the records.
#[derive(Default)]
pub(crate) struct Known {
    /// None: no worker has announced one.
    pub(super) base: Option<Digest>,
    versions: HashMap<Digest, Version>,
    /// Copies of each pinned adapter.
    pub(super) pins: HashMap<Digest, u32>,
    pub(super) tenants: BTreeMap<TenantName, Tenant>,
}

impl Known {
    /// Cost: one step a version.
    pub(super) fn of(catalog: &Catalog) -> Self {
        let mut known = Self { base: catalog.base.as_ref().map(|base| base.digest), ..Self::default() };
        for (name, tenant) in &catalog.tenants {
            for version in tenant.adapters.values().flat_map(|adapter| adapter.versions()) {
                let (tenant, rank, bytes) = (name.clone(), version.rank_max, version.bytes);
                // Of two tenants with the same bytes the first one counts.
                known.versions.entry(version.digest).or_insert(Version { tenant, rank, bytes });
            }
            let Some(record) = &tenant.record else { continue };
            let places = &record.places;
            for (digest, copies) in &places.pins {
                let copies = if *copies == 0 { u32::MAX } else { *copies };
                let most = known.pins.entry(*digest).or_insert(0);
                *most = copies.max(*most);
            }
            if places.floor > 0 || places.ceiling.is_some() {
                known.tenants.insert(name.clone(), Tenant { floor: places.floor, ceiling: places.ceiling });
            }
        }
        known
    }

    /// The pinned adapters alone. Cost: one step a tenant and a pin.
    pub(super) fn pins_of(catalog: &Catalog) -> HashSet<Digest> {
        let records = catalog.tenants.values().filter_map(|tenant| tenant.record.as_ref());
        records.flat_map(|record| record.places.pins.keys().copied()).collect()
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.versions.contains_key(digest)
    }

    /// An adapter that nobody asks for. `None`: it is of no tenant.
    pub(super) fn adapter(&self, digest: &Digest) -> Option<Adapter> {
        let version = self.versions.get(digest)?;
        Some(Adapter {
            digest: *digest,
            tenant: version.tenant.clone(),
            rank: version.rank,
            // Of the blob: what it takes in a slot differs by its dtype only.
            bytes: version.bytes,
            requests_per_s: 0.0,
            recent_requests_per_s: 0.0,
            work_ms_per_s: 0.0,
            pinned_copies: self.pins.get(digest).copied().unwrap_or(0),
        })
    }
}

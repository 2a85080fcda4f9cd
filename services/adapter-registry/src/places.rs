//! Floors, ceilings and pins of tenants.

use crate::Error;
use crate::core::Core;
use crate::layout::tenant_prefix;
use crate::records::Places;
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, Digest, TenantName};

/// Pins of one tenant.
const PINS_MAX: usize = 256;
/// Largest floor, ceiling and number of a pin's copies: as many copies as a placement has.
const COPIES_MAX: u32 = 100_000;

/// A change that is sound in itself.
#[derive(Default)]
pub(crate) struct PlacesAsked {
    floor: Option<u32>,
    /// 0 takes it away.
    ceiling: Option<u32>,
    pin: Vec<(Digest, u32)>,
    unpin: Vec<Digest>,
}

impl PlacesAsked {
    /// What is to be pinned.
    pub(crate) fn pinned(&self) -> Vec<Digest> {
        self.pin.iter().map(|(digest, _)| *digest).collect()
    }

    /// These places with the change.
    pub(crate) fn changed(&self, places: &Places) -> Result<Places, Error> {
        let mut places = places.clone();
        places.floor = self.floor.unwrap_or(places.floor);
        match self.ceiling {
            Some(0) => places.ceiling = None,
            Some(ceiling) => places.ceiling = Some(ceiling),
            None => {}
        }
        for digest in &self.unpin {
            places.pins.remove(digest);
        }
        places.pins.extend(self.pin.iter().copied());
        if places.pins.len() > PINS_MAX {
            return Err(Error::Full { what: "pins of this tenant".to_owned(), max: PINS_MAX });
        }
        Ok(places)
    }
}

fn checked_copies(param: &'static str, copies: u32) -> Result<u32, Error> {
    if copies <= COPIES_MAX {
        return Ok(copies);
    }
    Err(Error::invalid(param, format!("{param} is {copies}, the limit is {COPIES_MAX}")))
}

fn checked_digest(param: &'static str, raw: &[u8]) -> Result<Digest, Error> {
    Digest::try_from(raw).map_err(|error| Error::invalid(param, format!("{param}: {error}")))
}

impl Core {
    /// Checks a change of this tenant's places. What is to be pinned must be a version of the tenant's.
    pub(crate) async fn checked_places(
        &self,
        tenant: &TenantName,
        change: &pb::PlacesChange,
    ) -> Result<PlacesAsked, Error> {
        let floor = change.floor.map(|floor| checked_copies("floor", floor)).transpose()?;
        let ceiling = change.ceiling.map(|ceiling| checked_copies("ceiling", ceiling)).transpose()?;
        if change.pin.len() > PINS_MAX || change.unpin.len() > PINS_MAX {
            return Err(Error::Full { what: "pins in one change".to_owned(), max: PINS_MAX });
        }
        let mut pin = Vec::with_capacity(change.pin.len());
        for asked in &change.pin {
            pin.push((checked_digest("pin", &asked.digest)?, checked_copies("copies", asked.copies)?));
        }
        let unpin = change.unpin.iter().map(|digest| checked_digest("unpin", digest)).collect::<Result<_, _>>()?;
        if !self.owns_all(tenant, &pin) {
            self.refresh(&tenant_prefix(tenant)).await?;
        }
        if !self.owns_all(tenant, &pin) {
            return Err(Error::NotFound(format!("what is to be pinned is no version of tenant {tenant}'s")));
        }
        Ok(PlacesAsked { floor, ceiling, pin, unpin })
    }

    /// What was just pinned is not condemned any more.
    pub(crate) async fn revive_pinned(&self, tenant: &TenantName, digests: &[Digest]) -> Result<(), Error> {
        for digest in digests {
            let adapters: Vec<AdapterName> = {
                let catalog = self.catalog();
                let known = catalog.tenant(tenant).into_iter().flat_map(|known| &known.adapters);
                let has = known.filter(|(_, adapter)| adapter.all().any(|version| version.digest == *digest));
                has.map(|(name, _)| name.clone()).collect()
            };
            let mut revived = Err(Error::NotFound(format!("what is to be pinned, {digest}, is gone")));
            for adapter in adapters {
                revived = self.revive_all(tenant, &adapter, std::slice::from_ref(digest)).await;
                if !matches!(revived, Err(Error::NotFound(_))) {
                    break;
                }
            }
            revived?;
        }
        Ok(())
    }

    fn owns_all(&self, tenant: &TenantName, pin: &[(Digest, u32)]) -> bool {
        let catalog = self.catalog();
        let owns = |digest: &Digest| {
            let found = catalog.tenant(tenant);
            found.is_some_and(|found| found.adapters.values().any(|adapter| adapter.version_with(digest).is_some()))
        };
        pin.iter().all(|(digest, _)| owns(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_stays_and_pins_are_bounded() {
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        let first = PlacesAsked { floor: Some(3), ceiling: Some(9), pin: vec![(digest(1), 2)], unpin: Vec::new() };
        let places = first.changed(&Places::default()).unwrap();
        assert_eq!((places.floor, places.ceiling, places.pins[&digest(1)]), (3, Some(9), 2));
        let second = PlacesAsked { ceiling: Some(0), unpin: vec![digest(1)], ..PlacesAsked::default() };
        let places = second.changed(&places).unwrap();
        assert_eq!((places.floor, places.ceiling, places.pins.len()), (3, None, 0));
        let many = |count| PlacesAsked { pin: (0..count).map(|n| (digest(n), 0)).collect(), ..PlacesAsked::default() };
        assert_eq!(many(PINS_MAX).changed(&places).unwrap().pins.len(), PINS_MAX);
        assert!(matches!(many(PINS_MAX + 1).changed(&places), Err(Error::Full { max: PINS_MAX, .. })));
    }
}

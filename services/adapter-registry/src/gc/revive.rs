//! After a hold was written: the version that it holds is not condemned any more.

use crate::Error;
use crate::core::{Change, Core, now_ms};
use crate::layout::Place;
use crate::records::{Condemned, VersionRecord};
use weft_object_store::ETag;
use weft_types::{AdapterName, Digest, TenantName, VersionNumber};

impl Core {
    /// To be called after a hold on this version was written. Cost: a read of its record; where it was condemned, a wait for a collector
    /// that has its blob under way.
    ///
    /// # Errors
    /// It was collected: its bytes are gone. The hold is on nothing.
    pub(crate) async fn revive(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        number: VersionNumber,
    ) -> Result<(), Error> {
        let place = Place::Version(tenant.clone(), adapter.clone(), number);
        let mut was_condemned = false;
        let updated = self.update(&place, |found: Option<(&VersionRecord, &ETag)>| {
            let gone = || Error::NotFound(format!("version {number} of {adapter} is gone"));
            let (record, _) = found.ok_or_else(gone)?;
            if record.collected_ms.is_some() {
                return Err(gone());
            }
            was_condemned = record.condemned.is_some();
            Ok(match record.condemned {
                None => Change::Keep(record.clone()),
                Some(_) => {
                    tracing::info!(%tenant, %adapter, version = number, "a condemned version is needed again");
                    let revision = record.revision + 1;
                    Change::Write(VersionRecord { revision, condemned: None, ..record.clone() })
                }
            })
        });
        let (record, _) = updated.await?;
        if !was_condemned || self.blob_outlives_collection(&record.digest).await? {
            return Ok(());
        }
        // A collector had listed before the mark was taken away.
        let gone = self.update(&place, |found: Option<(&VersionRecord, &ETag)>| {
            let Some((record, _)) = found else { return Err(Error::NotFound(format!("version {number} is gone"))) };
            let condemned = Some(Condemned { at_ms: now_ms(), actor: "gc".to_owned() });
            let (revision, collected_ms) = (record.revision + 1, Some(now_ms()));
            Ok(Change::Write(VersionRecord { revision, condemned, collected_ms, ..record.clone() }))
        });
        gone.await?;
        Err(Error::NotFound(format!("version {number} of {adapter} is gone")))
    }

    /// The same for an adapter's version of each of these digests: the newest that has its bytes.
    pub(crate) async fn revive_all(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        digests: &[Digest],
    ) -> Result<(), Error> {
        for digest in digests {
            let numbers: Vec<VersionNumber> = {
                let catalog = self.catalog();
                let adapter = catalog.tenant(tenant).and_then(|tenant| tenant.adapters.get(adapter));
                let all = adapter.into_iter().flat_map(|adapter| adapter.all().rev());
                all.filter(|version| version.digest == *digest).map(|version| version.number).collect()
            };
            let mut revived = Err(Error::NotFound(format!("{digest} is no version of {adapter} any more")));
            for number in numbers {
                // The same bytes may have been collected before they were published again.
                revived = self.revive(tenant, adapter, number).await;
                if !matches!(revived, Err(Error::NotFound(_))) {
                    break;
                }
            }
            revived?;
        }
        Ok(())
    }
}

//! One load: lease, map, pack and hash, then compare. Runs beside the step loop.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use memmap2::Mmap;
use weft_engine::{PreparedAdapter, Preparer};
use weft_types::Digest;

use super::lease::{Lease, Leases};
use crate::Error;

/// What a load needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) leases: Leases,
    pub(crate) preparer: Preparer,
    pub(crate) timeout: Duration,
    pub(crate) slot_bytes_max: u64,
}

impl Loader {
    /// Brings the adapter's bytes into the form a slot holds. What comes back has exactly this digest, computed from
    /// the bytes that were packed.
    ///
    /// # Errors
    /// The daemon's refusal, a load that takes too long, bytes that are another adapter's or none, one that can never
    /// fit. The slot table is not touched.
    pub(crate) async fn load(self, digest: Digest) -> Result<PreparedAdapter, Error> {
        let seconds = self.timeout.as_secs();
        match tokio::time::timeout(self.timeout, self.leased(digest)).await {
            Ok(result) => result,
            Err(_) => Err(Error::LoadTimeout { digest, seconds }),
        }
    }

    async fn leased(self, digest: Digest) -> Result<PreparedAdapter, Error> {
        let lease = self.leases.acquire(digest).await?;
        // Packing F32 into bf16 halves the bytes at most: what is too large by that measure is not even read.
        let bytes = lease.bytes / 2;
        if bytes > self.slot_bytes_max {
            return Err(Error::AdapterTooLarge { digest, bytes, limit: self.slot_bytes_max });
        }
        let preparer = self.preparer;
        let prepared = tokio::task::spawn_blocking(move || prepare(lease, &preparer, digest));
        prepared.await.unwrap_or(Err(Error::Panic("loading an adapter")))
    }
}

/// The lease ends with this function: the slot has its own copy.
fn prepare(lease: Lease, preparer: &Preparer, wanted: Digest) -> Result<PreparedAdapter, Error> {
    let map = map(&lease.path).map_err(|source| Error::AdapterFile { path: lease.path.clone(), source })?;
    let prepared = preparer.prepare(&map);
    // Wrong bytes are wrong bytes, whatever else can be said about them.
    let found = prepared.as_ref().map_or_else(|_| Digest::of(&map), PreparedAdapter::digest);
    if found != wanted {
        return Err(Error::WrongBytes { wanted, found });
    }
    Ok(prepared?)
}

fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the file is leased: the cache daemon neither truncates nor rewrites it before the lease ends, and the map
    // is dropped before the lease. Bytes that change all the same are harmless to `Preparer::prepare`, which reads
    // them once, into private memory.
    unsafe { Mmap::map(&file) }
}

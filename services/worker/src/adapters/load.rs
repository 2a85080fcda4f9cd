//! One load: lease, map, pack and hash, then compare. Runs beside the step loop.
//!
//! Waiting for a lease costs nothing and may take as long as the object store does; packing costs a core and memory that
//! no budget counts yet. So many may wait for leases at once, few may be packed, and a slow fetch never holds up the
//! packing of bytes that are here.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memmap2::Mmap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_engine::{PreparedAdapter, Preparer};
use weft_proto::cache::v1::Tier;
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
    /// `adapter_loads_max`: adapters that are packed, or packed and not placed yet.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) turns_max: usize,
    /// How many leased adapters wait for a turn.
    pub(crate) queue: Arc<AtomicUsize>,
}

/// The right to pack one adapter, until it has its place.
pub(crate) type Turn = OwnedSemaphorePermit;

/// How far a load came by itself.
pub(crate) enum Brought {
    /// The bytes are here; others wait for their turn as well, and the loop decides whose it is.
    Near(Near),
    Packed(Packed),
}

/// Leased bytes that wait for their turn.
pub(crate) struct Near {
    lease: Lease,
    waited: Duration,
    place: QueuePlace,
}

struct QueuePlace(Arc<AtomicUsize>);

impl QueuePlace {
    /// And whether it is the first.
    fn take(queue: &Arc<AtomicUsize>) -> (Self, bool) {
        let before = queue.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(queue)), before == 0)
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A loaded adapter.
pub(crate) struct Packed {
    pub(crate) prepared: PreparedAdapter,
    /// Of the blob.
    pub(crate) blob_bytes: u64,
    /// Where the blob was.
    pub(crate) tier: Tier,
    /// Waiting for the lease, and packing; without waiting for the turn.
    pub(crate) took: Duration,
    pub(crate) turn: Turn,
}

impl Loader {
    /// Leases the bytes, and packs them if nobody else waits for a turn.
    ///
    /// # Errors
    /// The daemon's refusal, a lease that takes too long, and those of [`Self::pack`].
    pub(crate) async fn bring(self, digest: Digest) -> Result<Brought, Error> {
        let started = Instant::now();
        let seconds = self.timeout.as_secs();
        let leased = tokio::time::timeout(self.timeout, self.leases.acquire(digest)).await;
        let lease = leased.unwrap_or(Err(Error::LoadTimeout { digest, seconds }))?;
        // F32 packed into 8 bits is a quarter: what is too large by that measure is not even read.
        let bytes = lease.bytes / 4;
        if bytes > self.slot_bytes_max {
            return Err(Error::AdapterTooLarge { digest, bytes, limit: self.slot_bytes_max });
        }
        let waited = started.elapsed();
        let (place, is_first) = QueuePlace::take(&self.queue);
        let near = Near { lease, waited, place };
        match self.turn() {
            Some(turn) if is_first => self.pack(near, digest, turn).await.map(Brought::Packed),
            _ => Ok(Brought::Near(near)),
        }
    }

    /// Whether any turn is taken.
    pub(crate) fn others_pack(&self) -> bool {
        self.turns.available_permits() < self.turns_max
    }

    /// A turn, if one is free.
    pub(crate) fn turn(&self) -> Option<Turn> {
        Arc::clone(&self.turns).try_acquire_owned().ok()
    }

    /// Brings the adapter's bytes into the form a slot holds. What comes back has exactly this digest, computed from
    /// the bytes that were packed.
    ///
    /// # Errors
    /// Bytes that are another adapter's or none. The slot table is not touched.
    pub(crate) async fn pack(self, near: Near, digest: Digest, turn: Turn) -> Result<Packed, Error> {
        let preparer = self.preparer;
        let Near { lease, waited, place } = near;
        drop(place);
        let packed = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let prepared = prepare(&lease, &preparer, digest)?;
            let took = waited + started.elapsed();
            Ok(Packed { prepared, blob_bytes: lease.bytes, tier: lease.tier, took, turn })
        });
        packed.await.unwrap_or(Err(Error::Panic("loading an adapter")))
    }
}

/// The lease may end after this function: what it returns is a copy.
fn prepare(lease: &Lease, preparer: &Preparer, wanted: Digest) -> Result<PreparedAdapter, Error> {
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
    let mut options = memmap2::MmapOptions::new();
    // All of it is read, once, at once: one call maps it cheaper than a fault for every page does.
    options.populate();
    // SAFETY: the file is leased: the cache daemon neither truncates nor rewrites it before the lease ends, and the map
    // is dropped before the lease. Bytes that change all the same are harmless to `Preparer::prepare`, which reads
    // them once, into private memory.
    unsafe { options.map(&file) }
}

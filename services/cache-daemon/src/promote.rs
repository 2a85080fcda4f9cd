//! Copies what is used from disk to memory, one file at a time, so that leases never wait for it.

use crate::cache::{Booked, Cache};
use crate::flight::{blocking, copy};
use crate::{Error, TierKind};
use tokio::sync::mpsc;
use weft_service_kit::shutdown::Shutdown;
use weft_types::Digest;

/// Works off the digests that were leased from disk, until shutdown.
pub(crate) async fn run(cache: Cache, mut wanted: mpsc::Receiver<Digest>, shutdown: Shutdown) {
    loop {
        let digest = tokio::select! {
            () = shutdown.wait() => return,
            digest = wanted.recv() => match digest {
                Some(digest) => digest,
                None => return,
            },
        };
        if let Err(error) = promote(&cache, digest).await {
            tracing::warn!(%digest, error = %weft_fault::Fault::from(error), "cannot copy a file to memory");
        }
    }
}

async fn promote(cache: &Cache, digest: Digest) -> Result<(), Error> {
    let inner = &cache.0;
    if inner.has_in(TierKind::Memory, &digest) {
        return Ok(());
    }
    let Some(held) = inner.hold_in(TierKind::Disk, &digest) else { return Ok(()) };
    let (Some(from), Some(to)) = (inner.folder(TierKind::Disk), inner.folder(TierKind::Memory)) else { return Ok(()) };
    let bytes = held.file.bytes;
    let (booking, asides) = match inner.book_copy(&held) {
        Ok(Booked::Room(booking, asides)) => (booking, asides),
        // Leases or what is worth more fill the memory, or the file is larger than all of it: the disk serves it as well.
        Ok(Booked::Full(_)) | Err(Error::TooLarge { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let copied = blocking(move || {
        drop(asides);
        copy(&from, &to, digest, bytes, "on disk").and_then(|whole| booking.land(whole))
    })
    .await;
    if matches!(copied, Err(Error::Corrupt { .. })) {
        inner.metrics.corrupt(TierKind::Disk.as_str());
        inner.discard(held.forget().into_iter().collect());
    }
    copied.map(drop)
}

//! The one piece of work per digest that everybody who wants it waits for.
//!
//! 1. What an earlier process left is hashed; wrong bytes are dropped.
//! 2. What is not near is fetched; see `fetch`.
//!
//! Every step gives back what it holds when it is dropped, so a flight that nobody waits for any more just ends.

use crate::Error;
use crate::cache::{Held, Inner, Origin};
use crate::fetch;
use crate::folder::{Folder, TierKind};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use weft_types::Digest;

/// What everybody who waits gets.
pub(crate) type Flight = BoxFuture<'static, Result<Landed, Arc<Error>>>;

/// Verified bytes, held until the last waiter has its own lease.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    pub(crate) held: Arc<Held>,
    pub(crate) origin: Origin,
}

/// What it costs to bring a file back, in milliseconds: a round trip and the bytes at a plain rate. Only the ratios count:
/// a small blob costs almost as much as a large one, so the least valuable byte is in the large one.
pub(crate) fn reload_cost_ms(tier: TierKind, bytes: u64) -> f64 {
    let (round_trip_ms, bytes_per_ms) = match tier {
        // From the object store: tens of milliseconds to the first byte, about 100 MB/s a connection.
        TierKind::Disk => (30.0, 100_000.0),
        // From disk: a seek, about 1 GB/s with hashing.
        TierKind::Memory => (1.0, 1_000_000.0),
    };
    round_trip_ms + bytes as f64 / bytes_per_ms
}

/// The answer while wrong bytes are remembered.
pub(crate) fn rotten(digest: Digest) -> Error {
    Error::Corrupt { digest, place: "in the object store".to_owned(), found: "they were wrong a moment ago".to_owned() }
}

/// Brings the bytes of one digest near. `wanted` tells whether anybody waits for them now.
pub(crate) async fn run(
    inner: Arc<Inner>,
    digest: Digest,
    number: u64,
    wanted: Arc<AtomicBool>,
) -> Result<Landed, Arc<Error>> {
    let _over = Over { inner: inner.clone(), digest, number };
    for tier in [TierKind::Memory, TierKind::Disk] {
        if let Some(held) = inner.hold_in(tier, &digest)
            && let Some(held) = verify(&inner, held).await.map_err(Arc::new)?
        {
            return Ok(Landed { held: Arc::new(held), origin: tier.into() });
        }
    }
    let (held, origin) = fetch::run(&inner, digest, wanted).await.map_err(Arc::new)?;
    Ok(Landed { held: Arc::new(held), origin })
}

/// Ends the flight in the books, also when it is dropped on its way.
struct Over {
    inner: Arc<Inner>,
    digest: Digest,
    number: u64,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.inner.end_flight(&self.digest, self.number);
    }
}

/// Hashes a file of an earlier process. None: it was wrong or unreadable, and is gone.
async fn verify(inner: &Arc<Inner>, held: Held) -> Result<Option<Held>, Error> {
    if held.file.verified {
        return Ok(Some(held));
    }
    let _permit = inner.verifications.acquire().await.expect("the semaphore is never closed");
    let tier = held.file.tier;
    let digest = held.file.key.digest;
    let Some(folder) = inner.folder(tier) else { return Ok(None) };
    let hashed = blocking(move || Ok((folder.hash(&digest), held))).await?;
    let (found, held) = hashed;
    match found {
        Ok(found) if found == digest => {
            held.set_verified();
            return Ok(Some(held));
        }
        Ok(found) => tracing::error!(%digest, %found, %tier, "a file has rotted; it is fetched again"),
        Err(error) => tracing::error!(%digest, %tier, %error, "a file cannot be read; it is fetched again"),
    }
    inner.metrics.corrupt(tier.as_str());
    inner.discard(held.forget().into_iter().collect());
    Ok(None)
}

/// Runs file work off the async threads. Dropped, the work goes on and its result is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Task)?
}

/// Copies a file into another tier, verified on the way. Blocks.
pub(crate) fn copy(
    from: &Folder,
    to: &Folder,
    digest: Digest,
    bytes: u64,
    place: &str,
) -> Result<crate::folder::Whole, Error> {
    let mut writing = to.begin(digest, bytes)?;
    from.read(&digest, |piece| writing.write(piece, place))?;
    match writing.finish(place) {
        Err(Error::CutShort { digest, bytes, bytes_announced }) => {
            let found = format!("{bytes} of {bytes_announced} bytes are there");
            Err(Error::Corrupt { digest, place: place.to_owned(), found })
        }
        finished => finished,
    }
}

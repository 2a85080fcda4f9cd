//! The one piece of work per digest that everybody who wants it waits for.
//!
//! 1. What an earlier process left is hashed; wrong bytes are dropped.
//! 2. What is not near is fetched: room is booked when the size is known, pieces are hashed while they are written, the
//!    file gets its name only when the hash is right.
//!
//! Every step gives back what it holds when it is dropped, so a flight that nobody waits for any more just ends.

use crate::Error;
use crate::cache::{Booked, Held, Inner, Origin};
use crate::folder::{Folder, TierKind, Writing};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_object_store::{ObjectStream, keys};
use weft_service_kit::transport::Backoff;
use weft_types::Digest;

/// Bytes gathered before they are hashed and written in one go off the async threads.
const WRITE_BYTES: usize = 1 << 20;
/// In messages about wrong bytes.
const REMOTE: &str = "in the object store";
/// Tries when the object store's bytes are wrong: the second tells a bad line from a bad blob.
const CORRUPT_TRIES: u32 = 2;

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
    Error::Corrupt { digest, place: REMOTE.to_owned(), found: "they were wrong a moment ago".to_owned() }
}

/// Brings the bytes of one digest near.
pub(crate) async fn run(inner: Arc<Inner>, digest: Digest, number: u64) -> Result<Landed, Arc<Error>> {
    let _over = Over { inner: inner.clone(), digest, number };
    for tier in [TierKind::Memory, TierKind::Disk] {
        if let Some(held) = inner.hold_in(tier, &digest)
            && let Some(held) = verify(&inner, held).await.map_err(Arc::new)?
        {
            return Ok(Landed { held: Arc::new(held), origin: tier.into() });
        }
    }
    let held = fetch(&inner, digest).await.map_err(Arc::new)?;
    Ok(Landed { held: Arc::new(held), origin: Origin::Remote })
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

/// Fetches with bounded retries; waits for room once the size is known.
async fn fetch(inner: &Arc<Inner>, digest: Digest) -> Result<Held, Error> {
    let mut backoff = Backoff::default();
    let mut failures = 0;
    let mut corrupt = 0;
    let mut has_evicted = false;
    let room_deadline = Instant::now() + Duration::from_millis(inner.settings.room_wait_ms);
    loop {
        let began = Instant::now();
        let error = match fetch_once(inner, digest).await {
            Ok(held) => {
                inner.metrics.fetched(held.file.bytes, began.elapsed());
                tracing::debug!(%digest, bytes = held.file.bytes, ms = began.elapsed().as_millis(), "fetched");
                return Ok(held);
            }
            Err(error) => error,
        };
        inner.metrics.fetch_failed(error.kind());
        match &error {
            Error::Full { bytes, .. } => {
                if inner.wait_for_room(*bytes, room_deadline).await && Instant::now() < room_deadline {
                    continue;
                }
                return Err(error);
            }
            Error::NoSpace { bytes, .. } if !has_evicted => {
                has_evicted = true;
                let evicted = inner.evict_idle(*bytes);
                if evicted.is_empty() {
                    return Err(error);
                }
                tracing::warn!(dir = %inner.disk_dir().display(), files = evicted.len(), "evicted early: the file system is full below the budget");
                blocking(move || {
                    drop(evicted);
                    Ok(())
                })
                .await?;
            }
            Error::Corrupt { .. } => {
                corrupt += 1;
                inner.metrics.corrupt("remote");
                tracing::error!(%digest, %error, tries = corrupt, "the object store has wrong bytes");
                if corrupt == CORRUPT_TRIES {
                    inner.remember_rotten(digest);
                    return Err(error);
                }
            }
            error_now if error_now.is_passing() => {
                failures += 1;
                if failures == inner.settings.fetch_attempts_max {
                    return Err(error);
                }
                tracing::warn!(%digest, error = %error_now, tries = failures, "a fetch failed; trying again");
                backoff.wait().await;
            }
            _ => return Err(error),
        }
    }
}

async fn fetch_once(inner: &Arc<Inner>, digest: Digest) -> Result<Held, Error> {
    let _permit = inner.fetches.acquire().await.expect("the semaphore is never closed");
    let key = keys::blob(&digest);
    let opened = in_time(inner, digest, inner.store.get_stream(&key)).await?;
    let opened = opened.map_err(|source| Error::Store { digest, source })?;
    let Some(ObjectStream { bytes, mut stream, .. }) = opened else { return Err(Error::NotFound { digest }) };

    let (booking, asides) = match inner.book(TierKind::Disk, digest, bytes)? {
        Booked::Room(booking, asides) => (booking, asides),
        Booked::Full(error) => return Err(error),
    };
    let folder = inner.folder(TierKind::Disk).expect("there is always a disk tier");
    let mut writing = blocking(move || {
        // First make the room that was booked.
        drop(asides);
        folder.begin(digest, bytes)
    })
    .await?;

    let mut gathered: Vec<Bytes> = Vec::new();
    let mut gathered_bytes = 0;
    while let Some(piece) = in_time(inner, digest, stream.next()).await? {
        let piece = piece.map_err(|source| Error::Store { digest, source })?;
        gathered_bytes += piece.len();
        gathered.push(piece);
        if gathered_bytes >= WRITE_BYTES {
            writing = write(writing, std::mem::take(&mut gathered)).await?;
            gathered_bytes = 0;
        }
    }
    writing = write(writing, gathered).await?;
    blocking(move || booking.land(writing.finish(REMOTE)?)).await
}

async fn write(mut writing: Writing, pieces: Vec<Bytes>) -> Result<Writing, Error> {
    if pieces.is_empty() {
        return Ok(writing);
    }
    blocking(move || {
        for piece in &pieces {
            writing.write(piece, REMOTE)?;
        }
        Ok(writing)
    })
    .await
}

async fn in_time<T>(inner: &Inner, digest: Digest, work: impl Future<Output = T>) -> Result<T, Error> {
    let timeout_ms = inner.settings.fetch_stall_timeout_ms;
    let done = tokio::time::timeout(Duration::from_millis(timeout_ms), work).await;
    done.map_err(|_| Error::Stalled { digest, timeout_ms })
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

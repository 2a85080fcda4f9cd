//! Brings the bytes of one digest from elsewhere into a tier.
//!
//! 1. `neighbour`: another daemon that has it, if the bus told of one; whatever it cannot send is asked of the next source.
//! 2. `remote`: the object store, in ranges, each resumed at the byte at which it broke.
//! 3. `incoming`: room is booked when the size is known, pieces are hashed while they are written, the file gets its name only
//!    when the hash is right.
//!
//! What is read of the object store counts against [`Bandwidth`]; what somebody waits for goes first.

mod incoming;
mod neighbour;
mod remote;

use crate::bandwidth::{Bandwidth, Share};
use crate::cache::{Held, Inner, Origin};
use crate::flight::blocking;
use crate::neighbours::Fault;
use crate::{Error, TierKind};
use bytes::Bytes;
use futures::stream::BoxStream;
use incoming::Incoming;
use neighbour::Trouble;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use weft_service_kit::transport::Backoff;
use weft_types::Digest;

/// Tries when bytes are wrong: the second tells a bad line from a bad blob.
const CORRUPT_TRIES: u32 = 2;
/// Neighbours asked for one blob: more would cost more time than the object store.
const NEIGHBOURS_ASKED_MAX: usize = 2;
/// A neighbour that says a blob is larger is not believed: what it says takes room from others before a single byte has shown that it is
/// true. Packages are at most 1 GiB unless gateways are told otherwise.
const NEIGHBOUR_BLOB_BYTES_MAX: u64 = 2 << 30;

/// One fetch.
#[derive(Clone)]
pub(crate) struct Fetch {
    inner: Arc<Inner>,
    digest: Digest,
    share: Arc<Share>,
}

/// A source that has the blob.
struct Opened {
    /// Length of the whole blob.
    bytes: u64,
    /// From the offset that was asked for to the end, in order.
    stream: BoxStream<'static, Result<Bytes, Error>>,
}

impl Fetch {
    /// Counts bytes that came from the object store, and waits until more may.
    async fn pay(&self, piece: &Bytes) {
        let bytes = piece.len() as u64;
        self.inner.metrics.read(Origin::Remote, bytes);
        self.inner.bandwidth.pay(&self.share, bytes).await;
    }
}

/// What has been tried so far.
struct Tries {
    corrupt: u32,
    changed: u32,
    has_evicted: bool,
    /// Why the disk took no bytes: then they go to memory.
    disk: Option<Error>,
    room_deadline: Instant,
    backoff: Backoff,
}

impl Tries {
    fn tier(&self) -> TierKind {
        if self.disk.is_some() { TierKind::Memory } else { TierKind::Disk }
    }
}

/// Fetches with bounded retries; waits for room once the size is known.
///
/// # Errors
/// See [`Error::kind`].
pub(crate) async fn run(inner: &Arc<Inner>, digest: Digest, wanted: Arc<AtomicBool>) -> Result<(Held, Origin), Error> {
    let fetch = Fetch { inner: inner.clone(), digest, share: Bandwidth::share(wanted) };
    let mut tries = Tries {
        corrupt: 0,
        changed: 0,
        has_evicted: false,
        disk: None,
        room_deadline: Instant::now() + Duration::from_millis(inner.settings.room_wait_ms),
        backoff: Backoff::default(),
    };
    loop {
        let began = Instant::now();
        match once(&fetch, tries.tier()).await {
            Ok((held, origin)) => {
                inner.metrics.fetched(origin, began.elapsed());
                let (bytes, ms, source) = (held.file.bytes, began.elapsed().as_millis(), origin.as_str());
                tracing::debug!(%digest, bytes, ms, source, "fetched");
                return Ok((held, origin));
            }
            Err(error) => {
                inner.metrics.fetch_ended(Origin::Remote, error.kind());
                mend(&fetch, error, &mut tries).await?;
            }
        }
    }
}

/// Does what lets the next try do better than the one that ended like this.
async fn mend(fetch: &Fetch, error: Error, tries: &mut Tries) -> Result<(), Error> {
    let Fetch { inner, digest, .. } = fetch;
    match &error {
        Error::Full { bytes, tier: TierKind::Disk, .. } => {
            let may_fit = inner.wait_for_room(*bytes, tries.room_deadline).await;
            if may_fit && Instant::now() < tries.room_deadline { Ok(()) } else { Err(error) }
        }
        Error::NoSpace { bytes, .. } if !tries.has_evicted && tries.tier() == TierKind::Disk => {
            tries.has_evicted = true;
            let evicted = inner.evict_idle(*bytes);
            if evicted.is_empty() {
                return beside_the_disk(fetch, error, tries);
            }
            tracing::warn!(dir = %inner.disk_dir().display(), files = evicted.len(), "evicted early: the file system is full below the budget");
            blocking(move || {
                drop(evicted);
                Ok(())
            })
            .await
        }
        Error::NoSpace { .. }
        | Error::Unwritable { .. }
        | Error::File { .. }
        | Error::Full { tier: TierKind::Memory, .. }
        | Error::TooLarge { tier: TierKind::Memory, .. } => beside_the_disk(fetch, error, tries),
        Error::Corrupt { .. } => {
            tries.corrupt += 1;
            inner.metrics.corrupt(Origin::Remote.as_str());
            tracing::error!(%digest, %error, tries = tries.corrupt, "the object store has wrong bytes");
            if tries.corrupt == CORRUPT_TRIES {
                inner.remember_rotten(*digest);
                return Err(error);
            }
            Ok(())
        }
        Error::Store { source: weft_object_store::Error::Changed { .. }, .. } => {
            tries.changed += 1;
            if tries.changed == inner.settings.fetch_attempts_max {
                return Err(error);
            }
            tracing::warn!(%digest, "the object was changed while it was read; reading it anew");
            tries.backoff.wait().await;
            Ok(())
        }
        _ => Err(error),
    }
}

/// A disk that takes no bytes does not keep the node from serving, if there is a memory tier with room. If there is not, what was wrong
/// with the disk is the answer.
fn beside_the_disk(fetch: &Fetch, error: Error, tries: &mut Tries) -> Result<(), Error> {
    if let Some(disk) = tries.disk.take() {
        return Err(disk);
    }
    if fetch.inner.folder(TierKind::Memory).is_none() {
        return Err(error);
    }
    tracing::warn!(digest = %fetch.digest, %error, "the disk takes no bytes; fetching into memory");
    tries.disk = Some(error);
    Ok(())
}

async fn once(fetch: &Fetch, tier: TierKind) -> Result<(Held, Origin), Error> {
    let inner = &fetch.inner;
    let _permit = inner.fetches.acquire().await.expect("the semaphore is never closed");
    let timeout_ms = inner.settings.fetch_timeout_ms;
    let done = tokio::time::timeout(Duration::from_millis(timeout_ms), transfer(fetch, tier)).await;
    done.map_err(|_| Error::Late { digest: fetch.digest, timeout_ms })?
}

async fn transfer(fetch: &Fetch, tier: TierKind) -> Result<(Held, Origin), Error> {
    let mut helped = Helped::default();
    let mut begun = match from_neighbours(fetch, tier, &mut helped).await? {
        Near::Whole(held) => return Ok((held, Origin::Neighbour)),
        Near::Part(begun) => begun,
    };
    loop {
        let from = begun.as_ref().map_or(0, Incoming::written);
        let done = from_remote(fetch, tier, begun.take()).await;
        match done {
            // Whose bytes are wrong shows when all of them come from one place.
            Err(error) if from > 0 && is_wrong(&error) => helped.was_wrong(fetch, &error),
            done => return Ok((done?, Origin::Remote)),
        }
    }
}

/// Whether the bytes of a neighbour may be the reason.
fn is_wrong(error: &Error) -> bool {
    match error {
        Error::Corrupt { .. } => true,
        // The object ends before the place from which it was to go on.
        Error::Store { source: weft_object_store::Error::Refused { code, .. }, .. } => code == "InvalidRange",
        _ => false,
    }
}

async fn from_remote(fetch: &Fetch, tier: TierKind, begun: Option<Incoming>) -> Result<Held, Error> {
    let from = begun.as_ref().map_or(0, Incoming::written);
    let Opened { bytes, stream } = remote::open(fetch, from).await?;
    let incoming = match begun {
        Some(begun) if begun.bytes() != bytes => return Err(begun.has_wrong_length(bytes)),
        Some(begun) => begun,
        None => Incoming::begin(fetch, tier, bytes).await?,
    };
    let (incoming, broke) = incoming.take_in(stream).await?;
    match broke {
        None => incoming.land().await,
        Some(error) => Err(error),
    }
}

/// What came of asking neighbours.
enum Near {
    Whole(Held),
    /// The beginning, if any came; the object store has the rest.
    Part(Option<Incoming>),
}

/// Neighbours whose bytes are in the file.
#[derive(Default)]
struct Helped(Vec<String>);

impl Helped {
    fn was_wrong(&mut self, fetch: &Fetch, error: &Error) {
        for address in self.0.drain(..) {
            note(fetch, &address, Fault::Wrong, error);
        }
    }
}

/// Counts what a neighbour did, and leaves it alone for a while.
fn note(fetch: &Fetch, address: &str, fault: Fault, error: &Error) {
    let Fetch { inner, digest, .. } = fetch;
    tracing::warn!(%digest, address, ?fault, %error, "a neighbour did not help");
    inner.metrics.fetch_failed(Origin::Neighbour, fault.as_str());
    if fault == Fault::Wrong {
        inner.metrics.corrupt(Origin::Neighbour.as_str());
    }
    if let Some(neighbours) = inner.neighbours.get() {
        neighbours.failed(address, fault);
    }
}

/// Begins a file of as many bytes as a neighbour says.
async fn begin(fetch: &Fetch, tier: TierKind, bytes: u64) -> Result<Incoming, Error> {
    if bytes > NEIGHBOUR_BLOB_BYTES_MAX {
        return Err(Error::TooLarge { digest: fetch.digest, bytes, tier, bytes_max: NEIGHBOUR_BLOB_BYTES_MAX });
    }
    Incoming::begin(fetch, tier, bytes).await
}

/// Asks a few neighbours that have the blob, one after the other, each for what the one before did not send.
async fn from_neighbours(fetch: &Fetch, tier: TierKind, helped: &mut Helped) -> Result<Near, Error> {
    let mut begun: Option<Incoming> = None;
    let Some(neighbours) = fetch.inner.neighbours.get() else { return Ok(Near::Part(None)) };
    for address in neighbours.holders(&fetch.digest).into_iter().take(NEIGHBOURS_ASKED_MAX) {
        let from = begun.as_ref().map_or(0, Incoming::written);
        let Opened { bytes, stream } = match neighbour::open(fetch, &address, from).await {
            Ok(opened) => opened,
            Err(Trouble { fault, error }) => {
                note(fetch, &address, fault, &error);
                continue;
            }
        };
        let incoming = match begun.take() {
            Some(before) if before.bytes() != bytes => {
                // One of both is wrong, and the object store knows.
                let error = before.has_wrong_length(bytes);
                helped.0.push(address);
                helped.was_wrong(fetch, &error);
                return Ok(Near::Part(None));
            }
            Some(before) => before,
            None => match begin(fetch, tier, bytes).await {
                Ok(incoming) => incoming,
                // It may have said any length: the object store knows.
                Err(error @ (Error::TooLarge { .. } | Error::Full { .. })) => {
                    note(fetch, &address, Fault::Failed, &error);
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        helped.0.push(address.clone());
        let (incoming, broke) = match incoming.take_in(stream).await {
            Ok(took) => took,
            Err(error @ Error::Corrupt { .. }) => {
                helped.was_wrong(fetch, &error);
                return Ok(Near::Part(None));
            }
            Err(error) => return Err(error),
        };
        if let Some(error) = broke {
            note(fetch, &address, Fault::Failed, &error);
        } else if incoming.written() == incoming.bytes() {
            match incoming.land().await {
                Ok(held) => {
                    helped.0.iter().for_each(|address| neighbours.did_well(address));
                    return Ok(Near::Whole(held));
                }
                Err(error @ Error::Corrupt { .. }) => {
                    helped.was_wrong(fetch, &error);
                    return Ok(Near::Part(None));
                }
                Err(error) => return Err(error),
            }
        } else {
            let (bytes, bytes_announced) = (incoming.written(), incoming.bytes());
            let short = Error::CutShort { digest: fetch.digest, bytes, bytes_announced };
            note(fetch, &address, Fault::Failed, &short);
        }
        begun = (incoming.written() > 0).then_some(incoming);
    }
    Ok(Near::Part(begun))
}

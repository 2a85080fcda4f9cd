//! Brings bytes near and hands out leases on them.

use crate::bandwidth::Bandwidth;
use crate::books::{FileKey, LeasedFile, Reserve, Row, Tier};
use crate::flight::{self, Flight};
use crate::folder::{self, Folder, TempPath, Whole};
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::{Error, Settings, TierKind};
use futures::FutureExt;
use futures::future::WeakShared;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc};
use weft_object_store::ObjectStore;
use weft_types::Digest;

/// Copies to memory waiting for their turn; more are not worth the memory bandwidth.
const PROMOTIONS_MAX: usize = 64;
/// Digests with wrong bytes in the object store that we remember.
const ROTTEN_MAX: usize = 1024;
/// How long we believe that wrong bytes stay wrong.
const ROTTEN_MS: u64 = 30_000;

/// Where bytes were when they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Memory,
    Disk,
    Neighbour,
    Remote,
}

impl Origin {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Neighbour => "neighbour",
            Self::Remote => "remote",
        }
    }
}

impl From<TierKind> for Origin {
    fn from(tier: TierKind) -> Self {
        match tier {
            TierKind::Memory => Self::Memory,
            TierKind::Disk => Self::Disk,
        }
    }
}

/// What is near and who holds it. Cheap to clone; all clones are one cache.
#[derive(Clone)]
pub struct Cache(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) fetches: Semaphore,
    /// Of all that is fetched.
    pub(crate) bandwidth: Bandwidth,
    pub(crate) verifications: Semaphore,
    /// Set once the daemon runs with a bus.
    pub(crate) neighbours: OnceLock<Arc<Neighbours>>,
    /// Told whenever bytes may have become evictable.
    room: Notify,
    promotions: mpsc::Sender<Digest>,
    started: Instant,
    /// Never held across an await. A plain mutex: the longest thing done under it is a rename.
    books: Mutex<Books>,
}

pub(crate) struct Books {
    disk: Tier,
    memory: Option<Tier>,
    /// Weak, so that a flight ends when nobody waits for it any more.
    flights: HashMap<Digest, Flying>,
    next_flight: u64,
    /// Wrong in the object store, believed until then.
    rotten: HashMap<Digest, u64>,
}

/// A flight that is not over yet.
struct Flying {
    number: u64,
    flight: WeakShared<Flight>,
    /// Somebody waits for it now; a prefetch is nobody.
    wanted: Arc<AtomicBool>,
}

impl Books {
    pub(crate) fn tier(&mut self, kind: TierKind) -> Option<&mut Tier> {
        match kind {
            TierKind::Memory => self.memory.as_mut(),
            TierKind::Disk => Some(&mut self.disk),
        }
    }

    fn tiers(&self) -> impl Iterator<Item = &Tier> {
        self.memory.iter().chain([&self.disk])
    }
}

/// What one look at the books says about a digest.
enum Near {
    Here(Held),
    Coming(futures::future::Shared<Flight>),
    Rotten,
}

impl Cache {
    /// Takes the folders over and books what is in them. Blocks for as long as listing them takes.
    ///
    /// The receiver gives digests that are worth a copy in memory; see `promote`.
    ///
    /// # Errors
    /// The settings do not fit together, a folder cannot be used or belongs to another process.
    pub(crate) fn open(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, mpsc::Receiver<Digest>), Error> {
        settings.check()?;
        let hold_ms = settings.grace_after_restart_ms;
        let open = |kind: TierKind, dir: &Path, bytes_max: u64| -> Result<Tier, Error> {
            let (folder, found) = Folder::open(dir)?;
            if kind == TierKind::Memory {
                check_memory(&folder, bytes_max)?;
            }
            tracing::info!(tier = %kind, dir = %folder.root().display(), files = found.len(), bytes_max, "opened");
            Ok(Tier::new(kind, folder, found, bytes_max, hold_ms, metrics.clone()))
        };
        let disk = open(TierKind::Disk, &settings.dir, settings.disk_bytes_max)?;
        let memory = match &settings.memory_dir {
            Some(dir) if settings.memory_bytes_max > 0 => Some(open(TierKind::Memory, dir, settings.memory_bytes_max)?),
            // A tier that was switched off must not keep its memory.
            Some(dir) if dir.exists() => {
                Folder::open(dir)?.0.empty()?;
                None
            }
            _ => None,
        };
        let (promotions, promoted) = mpsc::channel(PROMOTIONS_MAX);
        let books = Books { disk, memory, flights: HashMap::new(), next_flight: 0, rotten: HashMap::new() };
        let inner = Inner {
            fetches: Semaphore::new(settings.fetches_max),
            bandwidth: Bandwidth::new(settings.fetch_bytes_per_second_max),
            verifications: Semaphore::new(settings.verifications_max),
            neighbours: OnceLock::new(),
            settings,
            store,
            metrics,
            room: Notify::new(),
            promotions,
            started: Instant::now(),
            books: Mutex::new(books),
        };
        Ok((Self(Arc::new(inner)), promoted))
    }

    /// Leases the bytes of a digest, bringing them near first if they are not.
    ///
    /// However many ask for one digest at once, it is hashed or fetched once; all of them get the same answer.
    ///
    /// # Errors
    /// See [`Error::kind`]: `not_found`, `too_large`, `corrupt`, `overloaded`, `unavailable`, `timeout`, `internal`.
    ///
    /// # Cancel safety
    /// Dropping the future gives up this wait only; work that nobody waits for any more stops and leaves nothing.
    pub async fn acquire(&self, digest: Digest) -> Result<Lease, Arc<Error>> {
        self.bring(digest, true).await
    }

    /// The same for bytes that nobody waits for: on their way here they take only what is left of the bandwidth.
    ///
    /// # Errors
    /// As [`Cache::acquire`].
    pub(crate) async fn prefetch(&self, digest: Digest) -> Result<Lease, Arc<Error>> {
        self.bring(digest, false).await
    }

    async fn bring(&self, digest: Digest, wanted: bool) -> Result<Lease, Arc<Error>> {
        loop {
            let flight = match self.0.near(digest, wanted) {
                Near::Here(held) => {
                    let origin = held.file.tier.into();
                    return Ok(Lease { held, origin });
                }
                Near::Rotten => return Err(Arc::new(flight::rotten(digest))),
                Near::Coming(flight) => flight,
            };
            let landed = flight.await?;
            // Only if somebody deleted the file in this very moment is there nothing to lease: then once more.
            if let Some(held) = landed.held.again() {
                return Ok(Lease { held, origin: landed.origin });
            }
        }
    }

    /// Whether these bytes are near, or on their way.
    #[must_use]
    pub fn is_near_or_coming(&self, digest: &Digest) -> bool {
        let books = self.0.books();
        let near = books.tiers().any(|tier| tier.contains(digest));
        let coming = books.flights.get(digest).and_then(|flying| flying.flight.upgrade());
        // The flight may end with this handle, and then it needs the books.
        drop(books);
        near || coming.is_some()
    }

    /// Every file that can be leased, memory first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        self.0.books().tiers().flat_map(Tier::rows).collect()
    }

    /// Bytes used and the budget.
    pub(crate) fn usage(&self, kind: TierKind) -> (u64, u64) {
        let mut books = self.0.books();
        books.tier(kind).map_or((0, 0), |tier| (tier.bytes_used(), tier.bytes_max()))
    }
}

/// Memory that is none, or less than the budget, would show when it is too late.
fn check_memory(folder: &Folder, bytes_max: u64) -> Result<(), Error> {
    let dir = folder.root().to_owned();
    match folder::memory_bytes(&dir)? {
        None => Err(Error::NotMemory { dir }),
        Some(bytes) if bytes < bytes_max => Err(Error::SmallMemory { dir, bytes, bytes_max }),
        Some(_) => Ok(()),
    }
}

/// A counted right to the bytes of one file. Ends on drop.
#[derive(Debug)]
pub struct Lease {
    held: Held,
    pub(crate) origin: Origin,
}

impl Lease {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.held.file.path
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.file.bytes
    }
}

/// One lease in the books, given back on drop.
pub(crate) struct Held {
    inner: Arc<Inner>,
    pub(crate) file: LeasedFile,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl Held {
    /// One more lease on the same file, if nobody dropped it meanwhile.
    fn again(&self) -> Option<Held> {
        let now_ms = self.inner.now_ms();
        let mut books = self.inner.books();
        let again = books.tier(self.file.tier)?.lease(&self.file.key, now_ms);
        drop(books);
        again.then(|| Held { inner: self.inner.clone(), file: self.file.clone() })
    }

    /// Takes the file out, because its bytes are wrong or its name was not made safe.
    pub(crate) fn forget(&self) -> Option<TempPath> {
        self.inner.books().tier(self.file.tier).and_then(|tier| tier.forget(&self.file.key))
    }

    /// Says that the bytes are right.
    pub(crate) fn set_verified(&self) {
        if let Some(tier) = self.inner.books().tier(self.file.tier) {
            tier.set_verified(&self.file.key);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(tier) = self.inner.books().tier(self.file.tier) {
            tier.release(&self.file.key);
        }
        self.inner.room.notify_waiters();
    }
}

/// Booked room for a file on its way. Dropped before it landed, the room is free again.
pub(crate) struct Booking {
    inner: Arc<Inner>,
    tier: TierKind,
    key: Option<FileKey>,
    /// The file on disk that it will be a copy of.
    copy_of: Option<FileKey>,
}

impl Booking {
    /// Gives the file its name and turns the booking into a lease. Blocks for a rename and a sync of the folder.
    pub(crate) fn land(mut self, whole: Whole) -> Result<Held, Error> {
        let inner = self.inner.clone();
        let key = self.key.expect("a booking lands once");
        let mut books = inner.books();
        // It was used on while it was copied.
        let worth = self.copy_of.and_then(|of| books.disk.worth(&of));
        let tier = books.tier(self.tier).expect("the tier that was booked in exists");
        if let Some(worth) = worth {
            tier.set_uses(&key, &worth);
        }
        let folder = tier.folder.clone();
        let file = tier.publish(key, whole)?;
        self.key = None;
        drop(books);
        let held = Held { inner: inner.clone(), file };
        if let Err(error) = folder.sync_names() {
            drop(held.forget());
            return Err(error);
        }
        Ok(held)
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        if let Some(tier) = self.inner.books().tier(self.tier) {
            let aside = tier.forget(&key);
            debug_assert!(aside.is_none(), "a booking has no name");
            tier.release(&key);
        }
        self.inner.room.notify_waiters();
    }
}

/// What came of booking.
pub(crate) enum Booked {
    Room(Booking, Vec<TempPath>),
    /// Leases forbid it now.
    Full(Error),
}

impl Inner {
    /// Milliseconds of a clock that never goes back.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        // Every change is whole before anything that could panic, so a poisoned lock guards sound books.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn near(self: &Arc<Self>, digest: Digest, wanted: bool) -> Near {
        let now_ms = self.now_ms();
        let mut gone = Vec::new();
        let mut books = self.books();
        for kind in [TierKind::Memory, TierKind::Disk] {
            let Some(tier) = books.tier(kind) else { continue };
            let (file, aside) = tier.find(&digest);
            gone.extend(aside);
            if let Some(file) = file.filter(|file| file.verified)
                && tier.lease(&file.key, now_ms)
            {
                self.note_use(&mut books, kind, digest, now_ms);
                drop(books);
                self.discard(gone);
                return Near::Here(Held { inner: self.clone(), file });
            }
        }
        let nothing_here = !books.tiers().any(|tier| tier.contains(&digest));
        let flying = books.flights.get(&digest);
        let near = if let Some((flying, flight)) = flying.and_then(|flying| Some((flying, flying.flight.upgrade()?))) {
            flying.wanted.fetch_or(wanted, Ordering::Relaxed);
            Near::Coming(flight)
        } else if nothing_here && books.rotten.get(&digest).is_some_and(|until_ms| now_ms < *until_ms) {
            Near::Rotten
        } else {
            books.next_flight += 1;
            let number = books.next_flight;
            let wanted = Arc::new(AtomicBool::new(wanted));
            let flight = flight::run(self.clone(), digest, number, wanted.clone()).boxed().shared();
            let weak = flight.downgrade().expect("a new flight has not landed");
            books.flights.insert(digest, Flying { number, flight: weak, wanted });
            Near::Coming(flight)
        };
        drop(books);
        self.discard(gone);
        near
    }

    /// A memory hit keeps the copy on disk alive; a disk hit is worth a copy in memory.
    fn note_use(&self, books: &mut Books, hit: TierKind, digest: Digest, now_ms: u64) {
        match hit {
            TierKind::Memory => books.disk.touch(&digest, now_ms),
            // A full queue means that memory is busy with others.
            TierKind::Disk if books.memory.is_some() => drop(self.promotions.try_send(digest)),
            TierKind::Disk => {}
        }
    }

    /// Holds the file of one tier for work of our own, verified or not.
    pub(crate) fn hold_in(self: &Arc<Self>, kind: TierKind, digest: &Digest) -> Option<Held> {
        let mut books = self.books();
        let tier = books.tier(kind)?;
        let (file, gone) = tier.find(digest);
        let file = file.filter(|file| tier.hold(&file.key));
        drop(books);
        self.discard(gone.into_iter().collect());
        file.map(|file| Held { inner: self.clone(), file })
    }

    /// Whether the tier exists and has this digest, verified or not.
    pub(crate) fn has_in(&self, kind: TierKind, digest: &Digest) -> bool {
        self.books().tier(kind).is_some_and(|tier| tier.contains(digest))
    }

    pub(crate) fn folder(&self, kind: TierKind) -> Option<Arc<Folder>> {
        self.books().tier(kind).map(|tier| tier.folder.clone())
    }

    /// Books room for a file on its way.
    pub(crate) fn book(self: &Arc<Self>, tier: TierKind, digest: Digest, bytes: u64) -> Result<Booked, Error> {
        let now_ms = self.now_ms();
        let mut books = self.books();
        let Some(books) = books.tier(tier) else {
            return Err(Error::TooLarge { digest, bytes, tier, bytes_max: 0 });
        };
        let reserved = books.reserve(digest, bytes, now_ms);
        self.booked(reserved, digest, bytes, tier, books.bytes_max())
    }

    /// Books room in memory for a copy of a file on disk, if it is worth more there than what would have to go.
    pub(crate) fn book_copy(self: &Arc<Self>, of: &Held) -> Result<Booked, Error> {
        let now_ms = self.now_ms();
        let LeasedFile { key, bytes, .. } = of.file;
        let mut books = self.books();
        let worth = books.disk.worth(&key);
        let (tier, digest) = (TierKind::Memory, key.digest);
        let (Some(memory), Some(worth)) = (books.memory.as_mut(), worth) else {
            return Err(Error::TooLarge { digest, bytes, tier, bytes_max: 0 });
        };
        let reserved = memory.reserve_if_worth(digest, bytes, worth, now_ms);
        let mut booked = self.booked(reserved, digest, bytes, tier, memory.bytes_max());
        if let Ok(Booked::Room(booking, _)) = &mut booked {
            booking.copy_of = Some(key);
        }
        booked
    }

    fn booked(
        self: &Arc<Self>,
        reserved: Reserve,
        digest: Digest,
        bytes: u64,
        tier: TierKind,
        bytes_max: u64,
    ) -> Result<Booked, Error> {
        match reserved {
            Reserve::Booked(key, asides) => {
                Ok(Booked::Room(Booking { inner: self.clone(), tier, key: Some(key), copy_of: None }, asides))
            }
            Reserve::Full { held } => Ok(Booked::Full(Error::Full { bytes, held, tier, bytes_max })),
            Reserve::TooLarge => Err(Error::TooLarge { digest, bytes, tier, bytes_max }),
        }
    }

    /// Waits until so many bytes can be booked on disk. False at the deadline.
    pub(crate) async fn wait_for_room(&self, bytes: u64, deadline: Instant) -> bool {
        loop {
            let told = self.room.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !self.books().disk.is_full(bytes, self.now_ms()) {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            // The end of the grace after a restart makes room without anybody telling.
            let grace_ends = self.started + Duration::from_millis(self.settings.grace_after_restart_ms + 1);
            let until = if now < grace_ends { deadline.min(grace_ends) } else { deadline };
            tokio::select! {
                () = told => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    /// Frees so many bytes of idle files on a full file system.
    pub(crate) fn evict_idle(&self, bytes: u64) -> Vec<TempPath> {
        let now_ms = self.now_ms();
        self.books().disk.evict_idle(bytes, now_ms)
    }

    /// Deletes files off the async threads.
    pub(crate) fn discard(&self, files: Vec<TempPath>) {
        if !files.is_empty() {
            tokio::task::spawn_blocking(move || drop(files));
        }
    }

    /// Says that this flight is over, unless a later one has its place.
    pub(crate) fn end_flight(&self, digest: &Digest, number: u64) {
        let mut books = self.books();
        if books.flights.get(digest).is_some_and(|flying| flying.number == number) {
            books.flights.remove(digest);
        }
    }

    /// Remembers for a while that the object store has wrong bytes, so that retries of callers do not fetch them over and
    /// over.
    pub(crate) fn remember_rotten(&self, digest: Digest) {
        let now_ms = self.now_ms();
        let mut books = self.books();
        if books.rotten.len() >= ROTTEN_MAX {
            books.rotten.retain(|_, until_ms| now_ms < *until_ms);
        }
        if books.rotten.len() < ROTTEN_MAX {
            books.rotten.insert(digest, now_ms + ROTTEN_MS);
        }
    }

    pub(crate) fn disk_dir(&self) -> PathBuf {
        self.books().disk.folder.root().to_owned()
    }
}

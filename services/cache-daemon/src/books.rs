//! Which files there are, who holds them and what may go. Everything here happens under one lock and takes
//! microseconds: lookups, a few system calls on names, never reading or writing bytes.

use crate::folder::{Folder, Found, Stamp, TempPath, TierKind, Whole};
use crate::metrics::Metrics;
use crate::{Error, flight};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use weft_residency::{Ledger, Past, Room, Worth};
use weft_types::Digest;

/// Evicted files whose worth is remembered: some 100 bytes each.
const PAST_MAX: usize = 16 << 10;

/// One file in the life of this process: a digest may be dropped and fetched again while the old file is still held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    pub(crate) digest: Digest,
    serial: u64,
}

/// A file that has its name.
#[derive(Clone, Copy, Debug)]
struct CachedFile {
    key: FileKey,
    stamp: Stamp,
    /// Hashed by this process.
    verified: bool,
}

/// A file as a lease on it sees it.
#[derive(Clone, Debug)]
pub(crate) struct LeasedFile {
    pub(crate) tier: TierKind,
    pub(crate) key: FileKey,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
    pub(crate) verified: bool,
}

/// One row of the listing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) tier: TierKind,
    pub(crate) leases: u32,
    pub(crate) pinned: bool,
}

/// What came of asking for room.
#[derive(Debug)]
pub(crate) enum Reserve {
    /// Booked and leased once for who asked. The files that made room go when this is dropped.
    Booked(FileKey, Vec<TempPath>),
    /// Leases, or the grace after a restart, forbid it now.
    Full { held: u64 },
    /// Never.
    TooLarge,
}

/// The books of one tier.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) kind: TierKind,
    pub(crate) folder: Arc<Folder>,
    ledger: Ledger<FileKey>,
    /// Of evicted files: one that comes back is not taken for one that nobody ever asked for.
    past: Past<Digest>,
    files: HashMap<Digest, CachedFile>,
    next_serial: u64,
    metrics: Arc<Metrics>,
}

impl Tier {
    /// Books of what is in the folder already, unverified. Nothing is evicted before `hold_until_ms`.
    pub(crate) fn new(
        kind: TierKind,
        folder: Folder,
        found: Vec<Found>,
        bytes_max: u64,
        hold_until_ms: u64,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut ledger = Ledger::new(bytes_max);
        if !found.is_empty() {
            ledger.hold_until(hold_until_ms);
        }
        let mut tier = Self {
            kind,
            folder: Arc::new(folder),
            ledger,
            past: Past::new(PAST_MAX),
            files: HashMap::new(),
            next_serial: 0,
            metrics,
        };
        for Found { digest, stamp } in found {
            let key = tier.next_key(digest);
            tier.ledger.insert_with_cost(key, stamp.bytes, flight::reload_cost_ms(kind, stamp.bytes), 0);
            tier.files.insert(digest, CachedFile { key, stamp, verified: false });
        }
        tier.show();
        tier
    }

    /// The file of this digest if it is here, verified or not; not leased yet. A file that somebody deleted or changed is
    /// forgotten; it goes when the second answer is dropped.
    pub(crate) fn find(&mut self, digest: &Digest) -> (Option<LeasedFile>, Option<TempPath>) {
        let Some(file) = self.files.get(digest).copied() else { return (None, None) };
        if !self.folder.is_unchanged(digest, &file.stamp) {
            tracing::error!(%digest, tier = %self.kind, "a file was deleted or changed by somebody else");
            return (None, self.forget(&file.key));
        }
        let found = LeasedFile {
            tier: self.kind,
            key: file.key,
            bytes: file.stamp.bytes,
            path: self.folder.path(digest),
            verified: file.verified,
        };
        (Some(found), None)
    }

    /// Leases a file for somebody who uses it. False if it was forgotten meanwhile.
    pub(crate) fn lease(&mut self, key: &FileKey, now_ms: u64) -> bool {
        let leased = self.ledger.lease(key, now_ms);
        self.show();
        leased
    }

    /// Leases a file for work of our own on it, which is no use. False if it was forgotten meanwhile.
    pub(crate) fn hold(&mut self, key: &FileKey) -> bool {
        let held = self.ledger.hold(key);
        self.show();
        held
    }

    /// Counts a use without a lease.
    pub(crate) fn touch(&mut self, digest: &Digest, now_ms: u64) {
        if let Some(file) = self.files.get(digest) {
            self.ledger.touch(&file.key, now_ms);
        }
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.files.contains_key(digest)
    }

    /// Ends one lease.
    pub(crate) fn release(&mut self, key: &FileKey) {
        let left = self.ledger.release(key);
        debug_assert!(left.is_some(), "a lease is released once");
        self.show();
    }

    /// Says that the bytes of this file are right.
    pub(crate) fn set_verified(&mut self, key: &FileKey) {
        if let Some(file) = self.files.get_mut(&key.digest).filter(|file| file.key == *key) {
            file.verified = true;
        }
    }

    /// Takes a file out, name and all. Its bytes count until its last lease ends.
    pub(crate) fn forget(&mut self, key: &FileKey) -> Option<TempPath> {
        self.ledger.remove(key);
        let named = self.files.get(&key.digest).is_some_and(|file| file.key == *key);
        let aside = if named {
            self.files.remove(&key.digest);
            self.folder.set_aside(&key.digest)
        } else {
            None
        };
        self.show();
        aside
    }

    /// Books room for a file on its way and leases it for who asked.
    pub(crate) fn reserve(&mut self, digest: Digest, bytes: u64, now_ms: u64) -> Reserve {
        let room = self.ledger.make_room(bytes, now_ms);
        self.reserve_in(room, digest, bytes, None, now_ms)
    }

    /// The same for a copy of a file that has its uses elsewhere: it takes no room from what is worth more.
    pub(crate) fn reserve_if_worth(&mut self, digest: Digest, bytes: u64, worth: Worth, now_ms: u64) -> Reserve {
        let worth = worth.with_reload_cost(flight::reload_cost_ms(self.kind, bytes));
        let room = self.ledger.make_room_if_worth(bytes, &worth, now_ms);
        self.reserve_in(room, digest, bytes, Some(worth), now_ms)
    }

    fn reserve_in(
        &mut self,
        room: Room<FileKey>,
        digest: Digest,
        bytes: u64,
        worth: Option<Worth>,
        now_ms: u64,
    ) -> Reserve {
        let asides = match room {
            Room::Fits => Vec::new(),
            Room::Evict(victims) => self.evict(&victims),
            Room::Full { held } => return Reserve::Full { held },
            Room::TooLarge => return Reserve::TooLarge,
        };
        let key = self.next_key(digest);
        let reload_ms = flight::reload_cost_ms(self.kind, bytes);
        let past = self.past.take(&digest);
        let worth = worth.or(past.map(|worth| worth.with_reload_cost(reload_ms)));
        let worth = worth.unwrap_or_else(|| Worth::new(reload_ms, now_ms));
        self.ledger.insert_worth(key, bytes, worth);
        self.ledger.hold(&key);
        self.show();
        Reserve::Booked(key, asides)
    }

    /// What a file has shown itself to be worth here.
    pub(crate) fn worth(&self, key: &FileKey) -> Option<Worth> {
        self.ledger.worth(key)
    }

    /// Uses that the same bytes had elsewhere while they were copied here.
    pub(crate) fn set_uses(&mut self, key: &FileKey, of: &Worth) {
        self.ledger.set_uses(key, of);
    }

    /// Whether a reservation would be refused now for what others hold.
    pub(crate) fn is_full(&self, bytes: u64, now_ms: u64) -> bool {
        matches!(self.ledger.make_room(bytes, now_ms), Room::Full { .. })
    }

    /// Evicts idle files of so many bytes, or all there are, although the budget does not ask for it: the file system is
    /// full.
    pub(crate) fn evict_idle(&mut self, bytes: u64, now_ms: u64) -> Vec<TempPath> {
        let idle = self.ledger.used() - self.ledger.held();
        match self.ledger.make_room_beyond(bytes.min(idle), now_ms) {
            Room::Evict(victims) => self.evict(&victims),
            Room::Fits | Room::Full { .. } | Room::TooLarge => Vec::new(),
        }
    }

    /// Gives a booked file its name. A file of this digest that came first stays; then the new one goes, and the
    /// caller's lease is on the old one. Atomic: on an error nothing is changed.
    pub(crate) fn publish(&mut self, key: FileKey, whole: Whole) -> Result<LeasedFile, Error> {
        if let (Some(first), _) = self.find(&key.digest) {
            self.ledger.hold(&first.key);
            self.ledger.remove(&key);
            self.ledger.release(&key);
            self.show();
            return Ok(first);
        }
        let stamp = self.folder.publish(whole)?;
        self.files.insert(key.digest, CachedFile { key, stamp, verified: true });
        self.show();
        Ok(LeasedFile { tier: self.kind, key, bytes: stamp.bytes, path: self.folder.path(&key.digest), verified: true })
    }

    pub(crate) fn bytes_used(&self) -> u64 {
        self.ledger.used()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.ledger.bytes_max()
    }

    /// Files that have a name, in no order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> {
        self.files.values().map(|file| Row {
            digest: file.key.digest,
            bytes: file.stamp.bytes,
            tier: self.kind,
            leases: self.ledger.leases(&file.key),
            pinned: self.ledger.is_pinned(&file.key),
        })
    }

    fn evict(&mut self, victims: &[FileKey]) -> Vec<TempPath> {
        let mut asides = Vec::new();
        for key in victims {
            let bytes = self.ledger.bytes(key).unwrap_or(0);
            tracing::debug!(digest = %key.digest, tier = %self.kind, bytes, "evicted");
            self.metrics.evicted(self.kind, bytes);
            if let Some(worth) = self.ledger.worth(key) {
                self.past.keep(key.digest, worth);
            }
            asides.extend(self.forget(key));
        }
        asides
    }

    fn next_key(&mut self, digest: Digest) -> FileKey {
        self.next_serial += 1;
        FileKey { digest, serial: self.next_serial }
    }

    fn show(&self) {
        let held = self.ledger.held();
        self.metrics.tier(self.kind, self.ledger.used(), held, self.ledger.bytes_max(), self.files.len());
    }
}

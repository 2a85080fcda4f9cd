//! One folder of verified files.
//!
//! ```text
//! <dir>/lock              held (flock) by the one process that owns the folder
//! <dir>/blobs/sha256/<hex>   complete, verified, mode 0444, never rewritten
//! <dir>/temp/<uuid>       being written, or about to be deleted; emptied at start
//! ```
//!
//! A name under `blobs` appears by rename after the bytes were hashed and synced, so whatever a kill leaves there was
//! whole once. It may have rotted since, which is why the next process hashes it again before the first lease.
//!
//! All functions here block. Names under `blobs` change only while the caller holds the books' lock.

use crate::Error;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use weft_types::{Digest, DigestHasher};

const MODE: u32 = 0o444;
/// Pieces in which files are hashed and copied: large enough that system calls do not count, small enough for a stack of
/// threads.
const PIECE_BYTES: usize = 256 << 10;

/// A place that holds files near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TierKind {
    /// A tmpfs.
    Memory,
    /// A local file system.
    Disk,
}

impl TierKind {
    /// The word in metrics and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }

    pub(crate) fn budget_setting(self) -> &'static str {
        match self {
            Self::Memory => "memory_bytes_max",
            Self::Disk => "disk_bytes_max",
        }
    }
}

impl fmt::Display for TierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What tells one file from another that took its name: nobody else writes here, but somebody may delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) bytes: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { bytes: metadata.len(), inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// A file that an earlier process left.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) stamp: Stamp,
}

/// A folder that this process owns.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    blobs: PathBuf,
    temp: PathBuf,
    /// Held until the last handle on the folder is gone.
    _lock: File,
}

impl Folder {
    /// Takes the folder over: creates what is missing, deletes what was half-written and lists what is whole, the
    /// longest unchanged first. Foreign names are left alone.
    pub(crate) fn open(root: &Path) -> Result<(Self, Vec<Found>), Error> {
        let at = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { what, path, source }
        };
        let root = std::path::absolute(root).map_err(at("resolve", root))?;
        let blobs = root.join("blobs").join("sha256");
        let temp = root.join("temp");
        for dir in [&blobs, &temp] {
            fs::create_dir_all(dir).map_err(at("create", dir))?;
        }
        let lock_path = root.join("lock");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(at("create", &lock_path))?;
        // Not open for writing, so that an operator may make the file system read-only under us.
        let lock = File::open(&lock_path).map_err(at("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Owned { dir: root }),
            Err(TryLockError::Error(source)) => return Err(at("lock", &lock_path)(source)),
        }

        for entry in fs::read_dir(&temp).map_err(at("list", &temp))? {
            let path = entry.map_err(at("list", &temp))?.path();
            fs::remove_file(&path).map_err(at("remove", &path))?;
            tracing::info!(path = %path.display(), "removed a half-written file");
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&blobs).map_err(at("list", &blobs))? {
            let path = entry.map_err(at("list", &blobs))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(at("read", &path))?;
            match digest_of_name(&path) {
                Some(digest) if metadata.is_file() => found.push(Found { digest, stamp: Stamp::of(&metadata) }),
                _ => tracing::warn!(path = %path.display(), "left a foreign file alone"),
            }
        }
        found.sort_by_key(|found| found.stamp.modified);
        Ok((Self { root, blobs, temp, _lock: lock }, found))
    }

    /// Deletes every file that this room wrote. Foreign names are left alone.
    pub(crate) fn empty(&self) -> Result<(), Error> {
        let failed = |what, path: &Path, source| Error::File { what, path: path.to_owned(), source };
        for entry in fs::read_dir(&self.blobs).map_err(|source| failed("list", &self.blobs, source))? {
            let path = entry.map_err(|source| failed("list", &self.blobs, source))?.path();
            if digest_of_name(&path).is_some() {
                fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
            }
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the file of this digest is, if it is.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Whether the file under this name is still the one with this stamp. One system call.
    pub(crate) fn is_unchanged(&self, digest: &Digest, stamp: &Stamp) -> bool {
        fs::symlink_metadata(self.path(digest)).is_ok_and(|now| now.is_file() && Stamp::of(&now) == *stamp)
    }

    /// Takes the name away at once; the bytes go when the answer is dropped, which may take milliseconds.
    pub(crate) fn set_aside(&self, digest: &Digest) -> Option<TempPath> {
        let path = self.path(digest);
        let aside = TempPath(self.temp.join(uuid::Uuid::new_v4().to_string()));
        match fs::rename(&path, &aside.0) {
            Ok(()) => return Some(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A full file system may have no room for the new name.
            Err(_) => {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::error!(path = %path.display(), %error, "cannot remove a file");
                }
            }
        }
        None
    }

    /// A new file that nobody sees yet, for so many bytes of this digest.
    pub(crate) fn begin(&self, digest: Digest, bytes: u64) -> Result<Writing, Error> {
        let path = TempPath(self.temp.join(uuid::Uuid::new_v4().to_string()));
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path.0);
        let file = file.map_err(|source| Error::writing("create", path.0.clone(), bytes, source))?;
        Ok(Writing { digest, file, path, hasher: DigestHasher::new(), bytes, written: 0 })
    }

    /// Hashes the file of this digest from its first to its last byte.
    pub(crate) fn hash(&self, digest: &Digest) -> Result<Digest, Error> {
        let mut hasher = DigestHasher::new();
        self.read(digest, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// Reads the file of this digest in pieces.
    pub(crate) fn read(&self, digest: &Digest, mut take: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let path = self.path(digest);
        let failed = |source| Error::File { what: "read", path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(bytes) => take(&piece[..bytes])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }

    /// Gives a hashed and synced file its name. One rename; the caller holds the books' lock.
    pub(crate) fn publish(&self, whole: Whole) -> Result<Stamp, Error> {
        let path = self.path(&whole.digest);
        fs::rename(&whole.path.0, &path)
            .map_err(|source| Error::writing("rename to", path.clone(), whole.stamp.bytes, source))?;
        let stamp = whole.stamp;
        // The temporary name is gone; there is nothing left to delete.
        std::mem::forget(whole.path);
        Ok(stamp)
    }

    /// Makes published names survive a power cut.
    pub(crate) fn sync_names(&self) -> Result<(), Error> {
        let synced = File::open(&self.blobs).and_then(|dir| dir.sync_all());
        synced.map_err(|source| Error::writing("sync", self.blobs.clone(), 0, source))
    }
}

fn digest_of_name(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    format!("sha256:{name}").parse().ok()
}

/// A file under `temp` that is deleted on drop.
#[derive(Debug)]
pub(crate) struct TempPath(PathBuf);

impl Drop for TempPath {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary file");
        }
    }
}

/// A file on its way in. Dropped, it is gone.
pub(crate) struct Writing {
    digest: Digest,
    file: File,
    path: TempPath,
    hasher: DigestHasher,
    bytes: u64,
    written: u64,
}

impl Writing {
    /// Of which digest it is to be.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes that it is to have.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that it has.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Appends a piece and hashes it.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::File`]; [`Error::Corrupt`] if more comes than was announced, before it is written.
    pub(crate) fn write(&mut self, piece: &[u8], place: &str) -> Result<(), Error> {
        self.written += piece.len() as u64;
        if self.written > self.bytes {
            let found = format!("more than the announced {} bytes", self.bytes);
            return Err(Error::Corrupt { digest: self.digest, place: place.to_owned(), found });
        }
        self.hasher.update(piece);
        self.file.write_all(piece).map_err(|source| Error::writing("write", self.path.0.clone(), self.bytes, source))
    }

    /// Syncs the file if its bytes are those of its digest.
    ///
    /// # Errors
    /// [`Error::CutShort`], [`Error::Corrupt`], [`Error::NoSpace`], [`Error::File`].
    pub(crate) fn finish(self, place: &str) -> Result<Whole, Error> {
        let Self { digest, file, path, hasher, bytes, written } = self;
        if written < bytes {
            return Err(Error::CutShort { digest, bytes: written, bytes_announced: bytes });
        }
        let found = hasher.finish();
        if found != digest {
            return Err(Error::Corrupt { digest, place: place.to_owned(), found: format!("they hash to {found}") });
        }
        // Again, because the mode at creation went through the umask.
        let synced = file.set_permissions(fs::Permissions::from_mode(MODE)).and_then(|()| file.sync_all());
        synced.map_err(|source| Error::writing("sync", path.0.clone(), bytes, source))?;
        let metadata = file.metadata().map_err(|source| Error::File { what: "read", path: path.0.clone(), source })?;
        Ok(Whole { digest, stamp: Stamp::of(&metadata), path })
    }
}

/// A hashed and synced file without its name. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Whole {
    digest: Digest,
    stamp: Stamp,
    path: TempPath,
}

/// How many bytes the tmpfs of this folder may hold; `u64::MAX` if it has no limit, none if it is no tmpfs.
///
/// # Errors
/// [`Error::File`] if the file system cannot be asked.
pub(crate) fn memory_bytes(dir: &Path) -> Result<Option<u64>, Error> {
    let failed = |source| Error::File { what: "ask the file system of", path: dir.to_owned(), source };
    let name = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes())
        .map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string and `about` has room for the answer; both outlive the call.
    let status = unsafe { libc::statfs(name.as_ptr(), about.as_mut_ptr()) };
    if status != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded, so it filled the answer.
    let about = unsafe { about.assume_init() };
    // The types of the fields differ between targets; the numbers do not.
    if i128::from(about.f_type) != i128::from(libc::TMPFS_MAGIC) {
        return Ok(None);
    }
    let bytes = i128::from(about.f_blocks) * i128::from(about.f_bsize);
    Ok(Some(if bytes == 0 { u64::MAX } else { u64::try_from(bytes).unwrap_or(u64::MAX) }))
}

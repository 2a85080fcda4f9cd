//! Buckets of objects in a folder that one process owns. Blocking; called off the runtime's threads.
//!
//! ```text
//! <root>/LOCK                        held (flock) while a process serves the folder
//! <root>/tmp/<uuid>                  writes under way; emptied at start
//! <root>/buckets/<bucket>/a/b/c@     the object a/b/c of the bucket
//! ```
//!
//! A put writes and syncs `tmp/<uuid>`, then under the key's lock checks its condition, renames and syncs the
//! directory, then answers. A kill at any point leaves the old or the new object, whole, with its ETag inside.
//! Reads open the file under the same lock, so that nobody sees a write that a power cut could still take back.

use super::object_file::{self, Attributes};
use crate::Error;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Stays readable in a file name; everything else is percent-encoded, `@` among it.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
/// Tells the object `a` from the directory of `a/b`.
const OBJECT_SUFFIX: char = '@';
/// The empty segment of `a//b`; control characters are refused in keys, so that no other segment has this form.
const EMPTY_SEGMENT: &str = "%00";
const FILE_NAME_BYTES_MAX: usize = 255;
/// S3's own limit.
const KEY_BYTES_MAX: usize = 1024;
/// Locks a bucket: writers of different keys seldom wait for each other, and the memory is bounded.
const STRIPES: usize = 64;

/// What must hold for a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    Absent,
    Present,
    /// The object has this ETag (without quotes).
    Matches(String),
}

/// Whether a put's condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    Fails,
    /// The condition needs an object and there is none.
    Missing,
}

/// One line of a listing.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) bytes: u64,
    pub(crate) etag: String,
    pub(crate) modified_ms: u64,
}

/// A page of a listing, in the order of keys.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Entry)>,
    pub(crate) common_prefixes: Vec<String>,
    /// Where the next page begins (exclusive); `None`: this was the last.
    pub(crate) next_after: Option<String>,
}

/// A key that has no file name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyError {
    TooLong,
    Empty,
    ControlCharacter,
}

/// The folder, owned by this process until it is dropped.
pub(crate) struct Folder {
    root: PathBuf,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
    /// Directories whose own entry was synced by this process.
    synced: Mutex<HashSet<PathBuf>>,
    /// The lock is released when the file is closed, however the process ends.
    _lock: File,
}

pub(crate) struct Bucket {
    path: PathBuf,
    stripes: [Mutex<()>; STRIPES],
    hasher: RandomState,
    index: Mutex<BTreeMap<String, Entry>>,
}

/// A write under way; removed when dropped.
pub(crate) struct Temporary {
    pub(crate) file: File,
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a commit the name is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

impl Folder {
    /// Takes the folder, creating it if needed, and reads the attributes of every object. Cost: opens each file once.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        create_private_dir(root)?;
        let lock = take_lock(root)?;
        let temporaries = root.join("tmp");
        if temporaries.exists() {
            fs::remove_dir_all(&temporaries).map_err(|error| Error::io(temporaries.display(), error))?;
        }
        create_private_dir(&temporaries)?;
        let buckets_path = root.join("buckets");
        create_private_dir(&buckets_path)?;
        sync_dir(root)?;
        let mut buckets = BTreeMap::new();
        for (name, path) in entries(&buckets_path)? {
            buckets.insert(name, Arc::new(Bucket::open(path)?));
        }
        let synced = Mutex::new(HashSet::from([buckets_path]));
        Ok(Self { root: root.to_owned(), buckets: RwLock::new(buckets), synced, _lock: lock })
    }

    pub(crate) fn bucket(&self, name: &str) -> Option<Arc<Bucket>> {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn bucket_names(&self) -> Vec<String> {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// False: it exists already. The name is valid: s3s checks it.
    pub(crate) fn create_bucket(&self, name: &str) -> Result<bool, Error> {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if buckets.contains_key(name) {
            return Ok(false);
        }
        let path = self.root.join("buckets").join(name);
        create_private_dir(&path)?;
        sync_dir(&self.root.join("buckets"))?;
        buckets.insert(name.to_owned(), Arc::new(Bucket::open(path)?));
        Ok(true)
    }

    pub(crate) fn temporary(&self) -> Result<Temporary, Error> {
        let path = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        Ok(Temporary { file: file.map_err(|error| Error::io(path.display(), error))?, path })
    }

    /// Makes a finished file the object, if the condition holds. Durable when it returns `Holds`.
    pub(crate) fn commit(
        &self,
        bucket: &Bucket,
        key: &str,
        temporary: &Temporary,
        attributes: &Attributes,
        condition: &Condition,
    ) -> Result<Verdict, Error> {
        let path = bucket.object_path(key);
        let parent = path.parent().expect("an object lies in its bucket's directory");
        let _key_lock = bucket.lock(key);
        let verdict = bucket.check(key, condition);
        if verdict != Verdict::Holds {
            return Ok(verdict);
        }
        let created = self.create_dirs(&bucket.path, parent)?;
        fs::rename(&temporary.path, &path).map_err(|error| Error::io(path.display(), error))?;
        // The object is what the rename made it, also if the sync fails and the caller learns only that something did.
        bucket.lock_index().insert(key.to_owned(), Entry::from(attributes));
        // The innermost first: journals bring all of it to disk with the first sync, and the others have nothing left to do.
        sync_dir(parent)?;
        self.sync_dirs(created)?;
        Ok(Verdict::Holds)
    }

    /// Removes the object if it is there. Durable when it returns.
    pub(crate) fn delete(&self, bucket: &Bucket, key: &str) -> Result<(), Error> {
        let path = bucket.object_path(key);
        let _key_lock = bucket.lock(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(path.display(), error)),
        }
        bucket.lock_index().remove(key);
        sync_dir(path.parent().expect("an object lies in its bucket's directory"))
    }

    /// Creates the directories from `top` (exclusive) down to `path`. Those whose entry this process has not synced yet are returned, outermost
    /// first: also an existing one, for whoever created it may not have come to that.
    fn create_dirs(&self, top: &Path, path: &Path) -> Result<Vec<PathBuf>, Error> {
        let below = path.strip_prefix(top).expect("objects lie below their bucket");
        let mut directory = top.to_owned();
        let mut not_synced = Vec::new();
        for segment in below {
            directory.push(segment);
            if !self.lock_synced().contains(&directory) {
                create_private_dir(&directory)?;
                not_synced.push(directory.clone());
            }
        }
        Ok(not_synced)
    }

    /// Syncs the entries of these directories, each once by this process.
    fn sync_dirs(&self, directories: Vec<PathBuf>) -> Result<(), Error> {
        for directory in directories.into_iter().rev() {
            sync_dir(directory.parent().expect("it lies below its bucket"))?;
            self.lock_synced().insert(directory);
        }
        Ok(())
    }

    fn lock_synced(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let mut index = BTreeMap::new();
        let mut pending = vec![(path.clone(), String::new())];
        while let Some((directory, prefix)) = pending.pop() {
            for (name, path) in entries(&directory)? {
                let damaged = || Error::Damaged { path: path.clone(), problem: "no name that we write".to_owned() };
                if let Some(name) = name.strip_suffix(OBJECT_SUFFIX) {
                    let (_, attributes) = object_file::open(&path)?;
                    let segment = decode_segment(name).ok_or_else(damaged)?;
                    index.insert(format!("{prefix}{segment}"), Entry::from(&attributes));
                } else {
                    let segment = decode_segment(&name).ok_or_else(damaged)?;
                    pending.push((path, format!("{prefix}{segment}/")));
                }
            }
        }
        let stripes = std::array::from_fn(|_| Mutex::new(()));
        Ok(Self { path, stripes, hasher: RandomState::new(), index: Mutex::new(index) })
    }

    /// The object's file, at the start of its content. The file stays readable whatever happens to the key.
    pub(crate) fn read(&self, key: &str) -> Result<Option<(File, Attributes)>, Error> {
        let _key_lock = self.lock(key);
        if !self.lock_index().contains_key(key) {
            return Ok(None);
        }
        object_file::open(&self.object_path(key)).map(Some)
    }

    /// Whether the condition holds now. Decisive only under the key's lock.
    pub(crate) fn check(&self, key: &str, condition: &Condition) -> Verdict {
        let index = self.lock_index();
        match (condition, index.get(key)) {
            (Condition::Always, _) | (Condition::Absent, None) | (Condition::Present, Some(_)) => Verdict::Holds,
            (Condition::Absent, Some(_)) => Verdict::Fails,
            (Condition::Present | Condition::Matches(_), None) => Verdict::Missing,
            (Condition::Matches(etag), Some(entry)) if *etag == entry.etag => Verdict::Holds,
            (Condition::Matches(_), Some(_)) => Verdict::Fails,
        }
    }

    /// At most `max` keys and common prefixes that begin with `prefix` and come after `after`.
    pub(crate) fn list(&self, prefix: &str, delimiter: Option<&str>, after: Option<&str>, max: usize) -> Page {
        let index = self.lock_index();
        let mut page = Page::default();
        let mut last = None;
        // Keys with the prefix are neighbours; those up to `after` are jumped over.
        let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
        for (key, entry) in index.range(start.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
            let group = delimiter.and_then(|delimiter| {
                let end = key[prefix.len()..].find(delimiter)? + prefix.len() + delimiter.len();
                Some(&key[..end])
            });
            let name = group.unwrap_or(key);
            if after.is_some_and(|after| name <= after) || last.as_deref() == Some(name) {
                continue;
            }
            if page.objects.len() + page.common_prefixes.len() == max {
                page.next_after = last;
                return page;
            }
            last = Some(name.to_owned());
            match group {
                Some(group) => page.common_prefixes.push(group.to_owned()),
                None => page.objects.push((key.clone(), entry.clone())),
            }
        }
        page
    }

    fn object_path(&self, key: &str) -> PathBuf {
        let mut path = self.path.clone();
        let mut segments = key.split('/').peekable();
        while let Some(segment) = segments.next() {
            let mut name = encode_segment(segment);
            if segments.peek().is_none() {
                name.push(OBJECT_SUFFIX);
            }
            path.push(name);
        }
        path
    }

    fn lock(&self, key: &str) -> MutexGuard<'_, ()> {
        let stripe = self.hasher.hash_one(key) as usize % STRIPES;
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_index(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Every statement leaves the map whole, so that a poisoned lock carries no torn state.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Attributes> for Entry {
    fn from(attributes: &Attributes) -> Self {
        Self { bytes: attributes.bytes, etag: attributes.etag.clone(), modified_ms: attributes.modified_ms }
    }
}

/// Whether the key can be a file name here: S3's length, and no segment longer than a file name when encoded.
pub(crate) fn check_key(key: &str) -> Result<(), KeyError> {
    if key.is_empty() {
        return Err(KeyError::Empty);
    }
    if key.len() > KEY_BYTES_MAX || key.split('/').any(|segment| encode_segment(segment).len() >= FILE_NAME_BYTES_MAX) {
        return Err(KeyError::TooLong);
    }
    if key.chars().any(char::is_control) {
        return Err(KeyError::ControlCharacter);
    }
    Ok(())
}

fn encode_segment(segment: &str) -> String {
    if segment.is_empty() {
        return EMPTY_SEGMENT.to_owned();
    }
    let encoded = utf8_percent_encode(segment, ENCODED).to_string();
    // `.` and `..` are directories, and a leading dot hides a file.
    match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => encoded,
    }
}

fn decode_segment(name: &str) -> Option<String> {
    if name == EMPTY_SEGMENT {
        return Some(String::new());
    }
    let segment = percent_decode_str(name).decode_utf8().ok()?.into_owned();
    (encode_segment(&segment) == name).then_some(segment)
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let io = |error| Error::io(directory.display(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::Damaged { path, problem: "no name that we write".to_owned() });
        };
        found.push((name.to_owned(), path));
    }
    Ok(found)
}

/// Objects hold secrets of tenants: only the owner may read.
fn create_private_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Error::io(path.display(), error))
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| Error::io(path.display(), error))
}

fn take_lock(root: &Path) -> Result<File, Error> {
    let path = root.join("LOCK");
    let io = |error| Error::io(path.display(), error);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message; whoever holds the lock may be about to write it.
            let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "(unknown)".to_owned() } else { pid.trim().to_owned() };
            return Err(Error::FolderTaken { path: root.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;

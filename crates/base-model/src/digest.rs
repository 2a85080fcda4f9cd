//! The identity of a base model, and its cache beside the file.
//!
//! ```text
//! weights digest = H("weft.base-model.weights.v1", count, then by name: name, dtype, shape, row order, SHA-256(bytes))
//! base digest    = H("weft.base-model.v1", weights digest, config, vocabulary digest, template digest)
//! ```
//!
//! Only the weights digest costs a pass over the files, so only that is cached; the rest is computed from what opening
//! the model has read anyway. The cache names each file with size, modification time and inode, and the tensor
//! directory that was hashed; whatever does not fit exactly is ignored and replaced.

use crate::config::ModelConfig;
use crate::record::Record;
use crate::rope::RopeScaling;
use crate::weights::{RowOrder, Stored, Weights};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_types::Digest;

/// The digest of the whole model.
pub(crate) fn base_digest(
    config: &ModelConfig,
    weights: &Digest,
    vocabulary: &Digest,
    template: Option<&Digest>,
) -> Digest {
    let mut record = Record::new("weft.base-model.v1");
    record.digest(weights);
    for size in [
        config.hidden_size,
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.context_length,
    ] {
        record.number(size as u64);
    }
    record.float(f64::from(config.rms_eps));
    record.number(u64::from(config.tied_embeddings));
    record.optional(config.bos_id.map(u64::from));
    record.number(config.eos_ids.len() as u64);
    config.eos_ids.iter().for_each(|id| record.number(u64::from(*id)));
    record.float(config.rope.theta);
    match &config.rope.scaling {
        RopeScaling::Default => record.text("default"),
        RopeScaling::Linear { factor } => {
            record.text("linear");
            record.float(*factor);
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            record.text("llama3");
            for value in [factor, low_freq_factor, high_freq_factor, original_context] {
                record.float(*value);
            }
        }
        RopeScaling::Divisors(divisors) => {
            record.text("divisors");
            record.number(divisors.len() as u64);
            divisors.iter().for_each(|value| record.float(f64::from(*value)));
        }
    }
    record.digest(vocabulary);
    record.number(u64::from(template.is_some()));
    if let Some(template) = template {
        record.digest(template);
    }
    record.finish()
}

/// The weights digest, from the cache if it fits, else by hashing every tensor (two threads; about 1 GB/s each with
/// SHA instructions), and then cached at the first of `caches` that can be written.
pub(crate) fn weights_digest(weights: &Weights, caches: &[PathBuf]) -> Digest {
    let directory = directory_digest(weights);
    let files: Option<Vec<FileKey>> = weights.files().map(FileKey::of).collect();
    if let Some(files) = &files
        && let Some(found) = caches.iter().find_map(|path| read_cache(path, files, &directory))
    {
        return found;
    }
    let digest = hash(weights);
    if let Some(files) = files {
        let entry = CacheEntry { format: CACHE_FORMAT, files, directory, weights: digest };
        // A cache that cannot be written costs the next start a second; it is no reason to fail.
        if !caches.iter().any(|path| write_cache(path, &entry).is_ok()) {
            tracing::debug!("no place to cache the digest of the base model");
        }
    }
    digest
}

/// Threads that hash tensors. Two already read faster than most disks.
const HASH_THREADS: usize = 2;

fn hash(weights: &Weights) -> Digest {
    let tensors: Vec<_> = weights.tensors().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, stored)) = tensors.get(index) else { return done };
            done.push((index, Digest::of(weights.stored_bytes(stored))));
        }
    };
    let mut contents: Vec<(usize, Digest)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..HASH_THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("invariant: hashing bytes does not panic")).collect()
    });
    contents.sort_by_key(|(index, _)| *index);

    let mut record = Record::new("weft.base-model.weights.v1");
    record.number(tensors.len() as u64);
    for ((name, stored), (_, content)) in tensors.iter().zip(&contents) {
        record_layout(&mut record, name, stored);
        record.digest(content);
    }
    record.finish()
}

fn record_layout(record: &mut Record, name: &str, stored: &Stored) {
    record.text(name);
    record.text(stored.dtype.name());
    record.number(stored.shape.len() as u64);
    stored.shape.iter().for_each(|size| record.number(*size as u64));
    match stored.rows {
        RowOrder::Plain => record.text("plain"),
        RowOrder::Interleaved { heads } => {
            record.text("interleaved");
            record.number(heads as u64);
        }
    }
}

/// A digest over names, types, shapes and places: what the cached digest was computed from.
fn directory_digest(weights: &Weights) -> Digest {
    let mut record = Record::new("weft.base-model.directory.v1");
    for (name, stored) in weights.tensors() {
        record_layout(&mut record, name, stored);
        record.number(stored.file as u64);
        record.number(stored.range.start as u64);
        record.number(stored.range.len() as u64);
    }
    record.finish()
}

/// Raised when the cache or the weights digest changes its meaning.
const CACHE_FORMAT: u32 = 1;
/// A cache file larger than this is not ours.
const CACHE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheEntry {
    format: u32,
    files: Vec<FileKey>,
    directory: Digest,
    weights: Digest,
}

/// A file that has not been replaced or written since has the same key.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    path: PathBuf,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    inode: u64,
}

impl FileKey {
    fn of(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let meta = path.metadata().ok()?;
        Some(Self {
            bytes: meta.len(),
            modified_s: meta.mtime(),
            modified_ns: meta.mtime_nsec(),
            inode: meta.ino(),
            path,
        })
    }
}

fn read_cache(path: &Path, files: &[FileKey], directory: &Digest) -> Option<Digest> {
    if path.metadata().ok()?.len() > CACHE_BYTES_MAX {
        return None;
    }
    let entry: CacheEntry = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let fits = entry.format == CACHE_FORMAT && entry.files == files && entry.directory == *directory;
    fits.then_some(entry.weights)
}

/// Written whole or not at all: to a name of its own, then renamed.
fn write_cache(path: &Path, entry: &CacheEntry) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let text = serde_json::to_vec_pretty(entry).map_err(std::io::Error::other)?;
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Where the digest of the model at `path` is cached: beside it, else in `cache_dir`.
pub(crate) fn cache_paths(path: &Path, cache_dir: Option<&Path>) -> Vec<PathBuf> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".weft-digest.json");
    let mut paths = vec![PathBuf::from(beside)];
    if let Some(dir) = cache_dir {
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = Digest::of(full.as_os_str().as_encoded_bytes()).hex();
        paths.push(dir.join(format!("{name}.weft-digest.json")));
    }
    paths
}

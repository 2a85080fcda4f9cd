//! Weights on their way: in memory as long as those of all uploads together fit into a bound, then in a file.
//!
//! The file has no name, so that it vanishes with the process, and is mapped when it is whole: an upload that does not fit takes disk and not
//! memory. Weights of [`SMALL_BYTES_MAX`] or less always stay in memory and are not counted: a file takes more than they do.

use super::memory::{Held, Room, UNIT_BYTES};
use crate::{Error, Settings};
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use tokio::task::JoinHandle;
use weft_types::{Digest, DigestHasher};

/// Weights of so many bytes or less need no file, and are checked in less time than another thread is worth: about 0.1 ms.
pub(crate) const SMALL_BYTES_MAX: usize = UNIT_BYTES;
/// Bytes that go to the file at once, or so many pieces of them: each takes some memory of its own.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_PIECES: usize = 64;

/// Where weights go.
#[derive(Clone)]
pub(crate) struct Spools {
    room: Room,
    dir: Option<PathBuf>,
}

impl Spools {
    pub(crate) fn new(settings: &Settings) -> Self {
        let room = Room::new(settings.upload_memory_bytes_max, settings.package_bytes_max);
        Self { room, dir: settings.spool_dir.clone() }
    }

    pub(crate) fn begin(&self) -> Spool {
        Spool { of: self.clone(), place: Place::Memory(self.room.begin()), hasher: DigestHasher::new(), bytes: 0 }
    }

    fn open(&self) -> Result<File, Error> {
        let file = match &self.dir {
            Some(dir) => tempfile::tempfile_in(dir),
            None => tempfile::tempfile(),
        };
        file.map_err(Error::Spool)
    }
}

/// One file's content so far.
pub(crate) struct Spool {
    of: Spools,
    place: Place,
    hasher: DigestHasher,
    bytes: u64,
}

enum Place {
    Memory(Held),
    File(Writer),
}

impl Spool {
    /// How many bytes came.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next bytes. They are hashed while those before them are written.
    ///
    /// # Errors
    /// `unavailable`: the folder cannot be used, or is full.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        self.hasher.update(&chunk);
        self.bytes += chunk.len() as u64;
        if let Place::Memory(held) = &mut self.place {
            if held.take(&chunk) {
                return Ok(());
            }
            let held = std::mem::replace(held, self.of.room.begin());
            let mut writer = Writer::new(self.of.open()?);
            writer.write(Bytes::from_owner(held)).await?;
            // At once, so that its room is free soon.
            writer.flush().await?;
            self.place = Place::File(writer);
        }
        match &mut self.place {
            Place::File(writer) => writer.write(chunk).await,
            Place::Memory(_) => Ok(()),
        }
    }

    /// All of them, and their hash.
    ///
    /// # Errors
    /// As [`Spool::write`].
    pub(crate) async fn finish(self) -> Result<(Bytes, Digest), Error> {
        let weights = match self.place {
            Place::Memory(held) => Bytes::from_owner(held),
            Place::File(writer) => {
                let file = writer.finish().await?;
                // SAFETY: the file has no name and its only handle is ours, so that nobody can change or cut it while it is
                // mapped; everything was written to it before.
                Bytes::from_owner(unsafe { Mmap::map(&file) }.map_err(Error::Spool)?)
            }
        };
        Ok((weights, self.hasher.finish()))
    }
}

/// Writes batches to a file, one at a time, off the event loop.
struct Writer {
    /// The batch before, and then the file.
    writing: JoinHandle<io::Result<File>>,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl Writer {
    fn new(file: File) -> Self {
        let writing = tokio::task::spawn_blocking(move || Ok(file));
        Self { writing, batch: Vec::new(), batch_bytes: 0 }
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        self.batch_bytes += piece.len();
        self.batch.push(piece);
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_PIECES { self.flush().await } else { Ok(()) }
    }

    /// Waits for the batch before, and begins this one.
    async fn flush(&mut self) -> Result<(), Error> {
        let mut file = (&mut self.writing).await?.map_err(Error::Spool)?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.writing = tokio::task::spawn_blocking(move || {
            for piece in batch {
                file.write_all(&piece)?;
            }
            Ok(file)
        });
        Ok(())
    }

    async fn finish(mut self) -> Result<File, Error> {
        self.flush().await?;
        self.writing.await?.map_err(Error::Spool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spools(memory_bytes: usize) -> (tempfile::TempDir, Spools) {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            upload_memory_bytes_max: memory_bytes as u64,
            spool_dir: Some(folder.path().to_owned()),
            ..Settings::default()
        };
        (folder, Spools::new(&settings))
    }

    async fn filled(spools: &Spools, content: &[u8], piece_bytes: usize) -> Spool {
        let mut spool = spools.begin();
        for piece in content.chunks(piece_bytes) {
            spool.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        spool
    }

    fn is_in_memory(spool: &Spool) -> bool {
        matches!(spool.place, Place::Memory(_))
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_comes_out_is_what_went_in_wherever_it_was() {
        for memory_bytes in [0, 300_000, 64 << 20] {
            let (_folder, spools) = spools(memory_bytes);
            for (bytes, piece_bytes) in [
                (1, 1),
                (SMALL_BYTES_MAX, 999),
                (SMALL_BYTES_MAX + 1, 7_001),
                (5 << 20, 1 << 20),
                (3_000_001, 40_961),
                (8 << 20, 999_983),
            ] {
                let content = content(bytes);
                let spool = filled(&spools, &content, piece_bytes).await;
                assert_eq!(spool.bytes(), bytes as u64);
                let (weights, digest) = spool.finish().await.unwrap();
                assert!(weights == content, "{bytes} bytes in pieces of {piece_bytes}, {memory_bytes} of memory");
                assert_eq!(digest, Digest::of(&content));
            }
            assert_eq!(spools.room.units_left(), memory_bytes / UNIT_BYTES, "all room is given back");
        }
    }

    #[tokio::test]
    async fn all_uploads_together_stay_within_the_bound() {
        let (_folder, spools) = spools(8 * UNIT_BYTES);
        let content = content(5 * UNIT_BYTES);
        let first = filled(&spools, &content, 10_000).await;
        assert!(is_in_memory(&first));
        // Four units are left: the second begins in memory, and all of it goes to disk when there is no more.
        let second = filled(&spools, &[&content[..], &content[..]].concat(), 10_000).await;
        assert!(!is_in_memory(&second));
        while spools.room.units_left() < 4 {
            tokio::task::yield_now().await;
        }
        let third = filled(&spools, &content, 10_000).await;
        assert!(is_in_memory(&third), "what the second had is there again");
        assert_eq!(spools.room.units_left(), 0);
        let small = filled(&spools, &content[..SMALL_BYTES_MAX], 1).await;
        assert!(is_in_memory(&small));

        // Whoever has a part of the bytes has the room.
        let (weights, _) = first.finish().await.unwrap();
        let part = weights.slice(1..2);
        drop(weights);
        assert_eq!(spools.room.units_left(), 0);
        drop(part);
        assert_eq!(spools.room.units_left(), 4);
        // An upload that breaks off, too.
        drop(third);
        assert_eq!(spools.room.units_left(), 8);
        let (weights, digest) = second.finish().await.unwrap();
        assert_eq!((weights.len(), digest), (2 * content.len(), Digest::of(&content.repeat(2))));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_is_named_only_where_it_is_needed() {
        let (folder, spools) = spools(0);
        drop(folder);
        filled(&spools, &content(SMALL_BYTES_MAX), 1_000).await.finish().await.unwrap();
        let mut spool = spools.begin();
        let error = spool.write(content(SMALL_BYTES_MAX + 1).into()).await.unwrap_err();
        assert!(matches!(error, Error::Spool(_)), "{error:?}");
    }
}

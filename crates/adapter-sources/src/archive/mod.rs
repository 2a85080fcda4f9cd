//! A package in a tar, or in a gzipped tar, while it comes.
//!
//! ```text
//! my-adapter/                            folders: allowed, not needed
//! my-adapter/adapter_model.safetensors   weights, in any order with the config, both at the root or both in one folder
//! my-adapter/adapter_config.json
//! my-adapter/tokenizer.json              other files: passed over and listed
//! ```
//!
//! Formats: tar as of POSIX.1-1988 and later (ustar, pax) and as GNU writes it; gzip as of RFC 1952, told by its first two bytes. Headers
//! are read by `astral-tokio-tar` one by one and not put together by it, for it holds a long name or pax record of any length in memory.
//!
//! Refused by name: links, devices, pipes, sparse files, names that are absolute or lead up, a second file of the same two names wherever it
//! is, two headers that disagree, bytes behind the end. Nothing is written anywhere, and no more than a chunk and the config is held.
//! However small the archive, at most the limits of the two files and 16 MiB are unpacked.

mod counted;
mod extension;
mod name;

use crate::opened::{CHUNK_BYTES_MAX, OTHER_FILES_MAX, no_weights};
use crate::{CONFIG, CONFIG_BYTES_MAX, Error, PICKLE, SIGNATURE, SIGNATURE_BYTES_MAX, WEIGHTS};
use async_compression::tokio::bufread::GzipDecoder;
use bytes::{Bytes, BytesMut};
use counted::{Counted, Trouble};
use extension::Extensions;
use futures::stream::{BoxStream, StreamExt};
use name::Name;
use std::io::{self, Cursor};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio_tar::{Archive, Entry, EntryType};

/// Unpacked bytes beside the two files: headers, padding, other files.
const OTHER_BYTES_MAX: u64 = 16 << 20;
/// Most headers, folders and extensions included.
const HEADERS_MAX: usize = 512;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Weights are read in pieces of so many bytes.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES <= CHUNK_BYTES_MAX);

/// How much of an archive is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest `adapter_model.safetensors` in bytes.
    pub weights_bytes_max: u64,
}

/// What comes out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `adapter_config.json`, whole: 1 byte to 1 MiB. Comes once, before the weights or after them.
    Config(Bytes),
    /// `model.sig`, whole, if there is one.
    Signature(Bytes),
    /// The next chunk of `adapter_model.safetensors`, 1 byte to 256 KiB.
    Weights(Bytes),
}

type Bounded = Counted<Box<dyn AsyncRead + Send + Unpin>>;

/// A package being read. Give it up after an error.
pub struct Reader {
    /// For what follows the last header; the same bytes as `entries` reads.
    archive: Archive<Bounded>,
    entries: BoxStream<'static, io::Result<Entry<Archive<Bounded>>>>,
    trouble: Trouble,
    limits: Limits,
    headers: usize,
    /// What the last headers say of the next one.
    extensions: Extensions,
    /// The weights, while they are read, and how many bytes of them are still to come.
    weights: Option<(Entry<Archive<Bounded>>, u64)>,
    /// The folder of the first of the two files.
    folder: Option<String>,
    has_config: bool,
    has_signature: bool,
    weights_bytes: Option<u64>,
    others: Vec<Name>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reads,
    Ended,
    Failed,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("limits", &self.limits)
            .field("headers", &self.headers)
            .field("has_config", &self.has_config)
            .field("weights_bytes", &self.weights_bytes)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Begins to read. Waits for the first two bytes, which tell whether the archive is gzipped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if `reader` fails.
    pub async fn open(mut reader: impl AsyncRead + Send + Unpin + 'static, limits: Limits) -> Result<Self, Error> {
        let mut magic = Vec::with_capacity(GZIP_MAGIC.len());
        let begin = (&mut reader).take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic).await;
        begin.map_err(counted::source_failed)?;
        let is_gzip = magic == GZIP_MAGIC;
        let small = CONFIG_BYTES_MAX + SIGNATURE_BYTES_MAX;
        let bytes_max = small.saturating_add(limits.weights_bytes_max).saturating_add(OTHER_BYTES_MAX);
        let trouble = Trouble::new(bytes_max);
        // Packed bytes are counted too: a gzip of empty members is endless and unpacks to nothing.
        let packed = trouble.counted_source(Cursor::new(magic).chain(reader));
        let unpacked: Box<dyn AsyncRead + Send + Unpin> = if is_gzip {
            // Little at a time: the decoder goes through a whole buffer of empty members before others may run.
            let mut decoder = GzipDecoder::new(BufReader::with_capacity(8 << 10, packed));
            decoder.multiple_members(true);
            Box::new(BufReader::with_capacity(64 << 10, decoder))
        } else {
            Box::new(BufReader::with_capacity(64 << 10, packed))
        };
        let mut archive = Archive::new(trouble.counted(unpacked));
        let entries = archive.entries_raw().map_err(|error| Error::io("the archive", error))?;
        Ok(Self {
            archive,
            entries: entries.boxed(),
            trouble,
            limits,
            headers: 0,
            extensions: Extensions::default(),
            weights: None,
            folder: None,
            has_config: false,
            has_signature: false,
            weights_bytes: None,
            others: Vec::new(),
            state: State::Reads,
        })
    }

    /// The next event; `None` once the archive was read to its end and has both files. Only then what came before may be used.
    ///
    /// # Errors
    /// [`Error::Archive`] naming what a package does not hold; [`Error::TooLarge`]; [`Error::Missing`] and [`Error::PickleOnly`] at the end;
    /// [`Error::Unavailable`] if the reader fails. After an error every further call fails.
    ///
    /// # Cancel safety
    /// Not safe: an event may be lost.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        match self.state {
            State::Reads => {}
            State::Ended => return Ok(None),
            State::Failed => return Err(archive("was given up after an error")),
        }
        // Stays so if the future is dropped.
        self.state = State::Failed;
        let event = self.read_on().await?;
        self.state = if event.is_some() { State::Reads } else { State::Ended };
        Ok(event)
    }

    /// Length of the weights in bytes, once their header was read.
    #[must_use]
    pub fn weights_bytes(&self) -> Option<u64> {
        self.weights_bytes
    }

    /// Names of the other files that were seen, at most 64: of those beside the two their bare names, of those elsewhere with their
    /// folders. Complete once [`Reader::next`] gave `None`.
    #[must_use]
    pub fn other_files(&self) -> Vec<String> {
        self.others.iter().map(|name| name.beside(self.folder.as_deref().unwrap_or_default())).collect()
    }

    async fn read_on(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(chunk) = self.weights_chunk().await? {
                return Ok(Some(Event::Weights(chunk)));
            }
            let entry = match self.entries.next().await {
                Some(Ok(entry)) => entry,
                Some(Err(error)) if self.headers == 0 => {
                    return Err(self.trouble.explain(error, "is no tar, nor a gzipped one"));
                }
                Some(Err(error)) => return Err(self.trouble.explain(error, "is damaged")),
                None => return self.end().await.map(|()| None),
            };
            self.headers += 1;
            if self.headers > HEADERS_MAX {
                return Err(archive(format!("has more than {HEADERS_MAX} entries, the limit")));
            }
            if let Some(event) = self.take(entry).await? {
                return Ok(Some(event));
            }
        }
    }

    /// Looks at an entry: a small file is read and given back, the weights are kept for [`Self::weights_chunk`].
    async fn take(&mut self, mut entry: Entry<Archive<Bounded>>) -> Result<Option<Event>, Error> {
        let bytes = entry.header().raw_entry_size().map_err(|error| archive(error.to_string()))?;
        let kind = entry.header().entry_type();
        if extension::is_extension(kind) {
            let read = self.extensions.read(&mut entry, kind, bytes).await;
            return read.map(|()| None).map_err(|failure| failure.explain(&self.trouble));
        }
        let extensions = std::mem::take(&mut self.extensions);
        let raw = extensions.name.unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let name = Name::parse(&raw).map_err(archive)?;
        if extensions.bytes.is_some_and(|said| said != bytes) {
            return Err(archive(format!("{name} has two lengths")));
        }
        match kind {
            EntryType::Directory => return Ok(None),
            // How tar of before 1988 writes folders.
            EntryType::Regular if raw.ends_with(b"/") => return Ok(None),
            EntryType::Regular | EntryType::Continuous => {}
            kind => return Err(archive(format!("{name} is {}, which no package has", extension::words(kind)))),
        }
        match name.file() {
            "" => Err(archive("has a file without a name")),
            CONFIG => {
                self.check_place(&name, self.has_config)?;
                check_bytes(CONFIG, bytes, CONFIG_BYTES_MAX, "adapter sources")?;
                self.has_config = true;
                Ok(Some(Event::Config(self.small(entry, bytes).await?)))
            }
            SIGNATURE => {
                self.check_place(&name, self.has_signature)?;
                check_bytes(SIGNATURE, bytes, SIGNATURE_BYTES_MAX, "adapter sources")?;
                self.has_signature = true;
                Ok(Some(Event::Signature(self.small(entry, bytes).await?)))
            }
            WEIGHTS => {
                self.check_place(&name, self.weights_bytes.is_some())?;
                check_bytes(WEIGHTS, bytes, self.limits.weights_bytes_max, "weights_bytes_max")?;
                self.weights_bytes = Some(bytes);
                self.weights = Some((entry, bytes));
                Ok(None)
            }
            _ if self.others.len() == OTHER_FILES_MAX => {
                Err(archive(format!("has more than {OTHER_FILES_MAX} other files, the limit")))
            }
            _ => {
                self.others.push(name);
                Ok(None)
            }
        }
    }

    async fn small(&mut self, mut entry: Entry<Archive<Bounded>>, bytes: u64) -> Result<Bytes, Error> {
        let mut whole = Vec::with_capacity(bytes as usize);
        let read = entry.read_to_end(&mut whole).await;
        read.map_err(|error| self.trouble.explain(error, "is damaged"))?;
        Ok(whole.into())
    }

    /// The files are there once each, in one folder.
    fn check_place(&mut self, name: &Name, is_there: bool) -> Result<(), Error> {
        if is_there {
            return Err(archive(format!("has a second {}: {name}", name.file())));
        }
        match &self.folder {
            Some(folder) if folder != name.folder() => {
                let other = match (self.has_config, self.weights_bytes) {
                    (true, _) => CONFIG,
                    (_, Some(_)) => WEIGHTS,
                    _ => SIGNATURE,
                };
                Err(archive(format!("has {name} in another folder than {other}")))
            }
            _ => {
                self.folder = Some(name.folder().to_owned());
                Ok(())
            }
        }
    }

    async fn weights_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Some((entry, left)) = &mut self.weights else { return Ok(None) };
        let mut chunk = BytesMut::with_capacity(PIECE_BYTES.min(usize::try_from(*left).unwrap_or(PIECE_BYTES)));
        while chunk.len() < chunk.capacity() {
            match entry.read_buf(&mut chunk).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(self.trouble.explain(error, "is damaged")),
            }
        }
        *left = left.saturating_sub(chunk.len() as u64);
        match (*left, chunk.is_empty()) {
            (0, _) => self.weights = None,
            (_, true) => return Err(archive("is damaged: the weights end early")),
            _ => {}
        }
        Ok(Some(chunk.freeze()).filter(|chunk| !chunk.is_empty()))
    }

    /// What is behind the last entry may only be zeros; reading it checks the gzip's own sum.
    async fn end(&mut self) -> Result<(), Error> {
        let mut rest = vec![0; 32 << 10];
        loop {
            let read = self.archive.read(&mut rest).await.map_err(|error| self.trouble.explain(error, "is damaged"))?;
            if read == 0 {
                break;
            }
            if rest[..read].iter().any(|byte| *byte != 0) {
                return Err(archive("goes on behind its end"));
            }
        }
        if !self.extensions.is_empty() {
            return Err(archive("ends with a header that speaks of a next entry"));
        }
        let place = "the archive";
        if !self.has_config {
            return Err(Error::Missing { place: place.to_owned(), file: CONFIG });
        }
        if self.weights_bytes.is_none() {
            return Err(no_weights(place, self.others.iter().any(|name| name.file() == PICKLE)));
        }
        Ok(())
    }
}

fn check_bytes(part: &'static str, bytes: u64, bytes_max: u64, setting: &'static str) -> Result<(), Error> {
    match bytes {
        0 => Err(Error::Empty { place: "the archive".to_owned(), file: part }),
        _ if bytes > bytes_max => Err(Error::TooLarge { part, bytes_max, setting }),
        _ => Ok(()),
    }
}

fn archive(problem: impl Into<String>) -> Error {
    Error::Archive(problem.into())
}

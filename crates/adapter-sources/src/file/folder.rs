//! A package as a folder.

use super::beneath::{self, Found};
use super::unchanged::{Seen, unless_changed};
use super::{Place, blocking, refused};
use crate::opened::{TELLING, in_chunks, no_weights, other_files};
use crate::patience::Patience;
use crate::{Access, CONFIG, CONFIG_BYTES_MAX, Error, Opened, PICKLE, SIGNATURE, SIGNATURE_BYTES_MAX, WEIGHTS};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::AsyncReadExt;

const PIECE_BYTES: usize = 256 << 10;
/// Most entries of a folder that are looked at for names; those that tell are asked for by name.
const ENTRIES_MAX: usize = 4096;

struct Files {
    config: Bytes,
    signature: Option<Bytes>,
    weights: File,
    weights_bytes: u64,
    /// Both files when they were opened.
    seen: Vec<Seen>,
    names: Vec<String>,
}

pub(super) async fn open(place: Place, name: String, access: &Access, patience: Patience) -> Result<Opened, Error> {
    let (bytes_max, setting) = (access.weights_bytes_max, "weights_bytes_max");
    let text = name.clone();
    let files = blocking(move || read(&place.opened, &text, bytes_max)).await?;
    let what = format!("{name}/{WEIGHTS}");
    let pieces = pieces(tokio::fs::File::from_std(files.weights), files.weights_bytes, what.clone());
    let pieces = unless_changed(pieces, files.seen);
    Ok(Opened {
        config: files.config,
        signature: files.signature,
        weights: in_chunks(patience.watch(what, pieces), bytes_max, setting),
        weights_bytes: Some(files.weights_bytes),
        origin: name,
        other_files: other_files(files.names),
    })
}

fn read(folder: &OwnedFd, place: &str, weights_bytes_max: u64) -> Result<Files, Error> {
    let names = names(folder).map_err(|error| Error::io(place, error))?;
    let Some((config, config_seen)) = file(folder, place, CONFIG)? else {
        return Err(Error::Missing { place: place.to_owned(), file: CONFIG });
    };
    let Some((weights, weights_seen)) = file(folder, place, WEIGHTS)? else {
        return Err(no_weights(place, names.iter().any(|name| name == PICKLE)));
    };
    // Both may have been exchanged between the two openings.
    if file(folder, place, CONFIG)?.is_none_or(|(_, now)| !now.is_as(&config_seen)) {
        return Err(Error::Changed { what: place.to_owned() });
    }
    let (config_bytes, weights_bytes) = (config_seen.bytes(), weights_seen.bytes());
    for (file, bytes) in [(CONFIG, config_bytes), (WEIGHTS, weights_bytes)] {
        if bytes == 0 {
            return Err(Error::Empty { place: place.to_owned(), file });
        }
    }
    if config_bytes > CONFIG_BYTES_MAX {
        return Err(Error::TooLarge { part: CONFIG, bytes_max: CONFIG_BYTES_MAX, setting: "adapter sources" });
    }
    if weights_bytes > weights_bytes_max {
        return Err(Error::TooLarge { part: WEIGHTS, bytes_max: weights_bytes_max, setting: "weights_bytes_max" });
    }
    let config = small(config, config_bytes, place, CONFIG)?;
    let signature = match file(folder, place, SIGNATURE)? {
        Some((_, seen)) if seen.bytes() == 0 => {
            return Err(Error::Empty { place: place.to_owned(), file: SIGNATURE });
        }
        Some((_, seen)) if seen.bytes() > SIGNATURE_BYTES_MAX => {
            return Err(Error::TooLarge {
                part: SIGNATURE,
                bytes_max: SIGNATURE_BYTES_MAX,
                setting: "adapter sources",
            });
        }
        Some((found, seen)) => Some(small(found, seen.bytes(), place, SIGNATURE)?),
        None => None,
    };
    Ok(Files { config, signature, weights, weights_bytes, seen: vec![config_seen, weights_seen], names })
}

/// A file's first bytes.
fn small(file: File, bytes: u64, place: &str, name: &'static str) -> Result<Bytes, Error> {
    let mut text = Vec::new();
    let read = file.take(bytes).read_to_end(&mut text);
    read.map_err(|error| Error::io(format!("{place}/{name}"), error))?;
    Ok(text.into())
}

/// A regular file of the folder, and its state.
fn file(folder: &OwnedFd, place: &str, name: &'static str) -> Result<Option<(File, Seen)>, Error> {
    let path = format!("{place}/{name}");
    let failed = |error| refused(Path::new(&path[FILE.len()..]), error);
    let opened = match beneath::open(folder, Path::new(name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match beneath::look(&opened).map_err(failed)? {
        Found::File => {}
        Found::Folder => return Err(Error::NotRegular { path, is: "a folder" }),
        Found::Other(is) => return Err(Error::NotRegular { path, is }),
    }
    let file = File::from(opened);
    let seen = Seen::now(&file, path)?;
    Ok(Some((file, seen)))
}

/// What `place` begins with.
const FILE: &str = "file://";

/// Names of regular files in the folder, and of whatever has a telling name and is no folder: that it is there is told, not what it is.
fn names(folder: &OwnedFd) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for name in TELLING {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {}
            Ok(_) => names.push(name.to_owned()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for entry in Dir::read_from(folder)?.take(ENTRIES_MAX) {
        let entry = entry?;
        let is_file = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
        if let Some(name) = entry.file_name().to_str().ok().filter(|_| is_file) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The file in pieces: just as many bytes as it had when it was opened.
fn pieces(file: tokio::fs::File, bytes: u64, what: String) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    stream::try_unfold((file, 0u64), move |(mut file, received)| {
        let what = what.clone();
        async move {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            file.read_buf(&mut piece).await.map_err(|error| Error::io(&what, error))?;
            let received = received + piece.len() as u64;
            match piece.is_empty() {
                _ if received > bytes => Err(Error::Changed { what }),
                true if received < bytes => Err(Error::Changed { what }),
                true => Ok(None),
                false => Ok(Some((piece.freeze(), (file, received)))),
            }
        }
    })
}

//! Folders and archives of this machine, beneath roots that the operator lists.
//!
//! 1. [`find`]: a path to the root that it is beneath.
//! 2. [`beneath`]: opening without leaving the root, whoever moves files meanwhile.
//! 3. [`folder`] and [`archived`]: the two shapes of a package.
//! 4. [`unchanged`]: whether a file was rewritten while it was read.

mod archived;
mod beneath;
mod folder;
mod unchanged;

use crate::patience::Patience;
use crate::source::file_text;
use crate::{Access, Error, Opened};
use beneath::Found;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A place beneath a root, open.
struct Place {
    opened: OwnedFd,
    found: Found,
    /// Without links.
    path: PathBuf,
}

/// Finds the folder or archive, reads the config and begins the weights. An archive is read twice, for its weights may come first.
pub(crate) async fn open(access: &Access, path: &Path, patience: Patience) -> Result<Opened, Error> {
    let (roots, asked) = (access.file_roots.clone(), path.to_owned());
    let place = blocking(move || find(&roots, &asked)).await?;
    let name = file_text(&place.path);
    match place.found {
        Found::Folder => folder::open(place, name, access, patience).await,
        Found::File if is_archive(&place.path) => archived::open(place, name, access, patience).await,
        Found::File => Err(Error::NotRegular { path: name, is: "a file that does not end with .tar or .tar.gz" }),
        Found::Other(is) => Err(Error::NotRegular { path: name, is }),
    }
}

fn is_archive(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(".tar") || path.ends_with(".tar.gz"))
}

/// Opens the place if a root allows it. Of what lies beneath no root not even the existence is looked at.
fn find(roots: &[PathBuf], asked: &Path) -> Result<Place, Error> {
    let not_allowed = || Error::NotAllowed { what: file_text(asked), setting: "file_roots" };
    let mut is_beneath_one = false;
    for root in roots {
        let real_root = match root.canonicalize() {
            Ok(real_root) => real_root,
            // One root that is away does not take the others with it.
            Err(_) if !asked.starts_with(root) => continue,
            Err(error) => return Err(Error::io(format!("file_roots {}", root.display()), error)),
        };
        if !asked.starts_with(root) && !asked.starts_with(&real_root) {
            continue;
        }
        is_beneath_one = true;
        let real = asked.canonicalize().map_err(|error| refused(asked, error))?;
        let Ok(relative) = real.strip_prefix(&real_root) else { continue };
        let root = beneath::open_root(&real_root).map_err(|error| refused(&real_root, error))?;
        let opened = beneath::open(&root, relative).map_err(|error| refused(asked, error))?;
        let found = beneath::look(&opened).map_err(|error| refused(asked, error))?;
        return Ok(Place { opened, found, path: real });
    }
    if is_beneath_one {
        let path = file_text(asked);
        return Err(Error::NotRegular { path, is: "a link that leads out of file_roots" });
    }
    Err(not_allowed())
}

/// What an error of opening means for whoever asked.
fn refused(path: &Path, error: io::Error) -> Error {
    let text = file_text(path);
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { what: text },
        _ if beneath::is_link(&error) => Error::NotRegular { path: text, is: "a symbolic link" },
        io::ErrorKind::NotADirectory => Error::NotRegular { path: text, is: "a file where a folder should be" },
        _ if beneath::is_crossing(&error) => {
            Error::NotRegular { path: text, is: "a link that leads out of file_roots" }
        }
        _ if beneath::is_socket(&error) => Error::NotRegular { path: text, is: "a socket" },
        _ => Error::io(text, error),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::io("the file system", io::Error::other(error))),
    }
}

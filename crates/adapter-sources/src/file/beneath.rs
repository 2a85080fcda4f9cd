//! Opening a path beneath a folder, whatever happens to the folders on the way meanwhile.
//!
//! A path that was checked may be another one when it is opened. So what was checked is not the path: the kernel is told to stay beneath
//! the open root and to follow no link (`openat2`, Linux 5.6). Where it does not know that call, each folder on the way is opened from the
//! one before, without following a link.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

/// To read. Without blocking, so that a pipe without a writer is opened and then refused instead of waited for.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY);

/// What was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    File,
    Folder,
    /// Something that is not read, in words.
    Other(&'static str),
}

/// Opens a folder by a path that is trusted.
pub(super) fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(root, FOLDER, Mode::empty())?)
}

/// Opens what is at `relative` beneath `root`, to read; no part of it may be a link. Empty: the root itself.
pub(super) fn open(root: &OwnedFd, relative: &Path) -> io::Result<OwnedFd> {
    if relative.as_os_str().is_empty() {
        return root.try_clone();
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, relative, READ, Mode::empty(), resolve) {
        // An old kernel, or a sandbox that knows no such call.
        Err(Errno::NOSYS | Errno::PERM) => open_by_steps(root.as_fd(), relative),
        opened => Ok(opened?),
    }
}

fn open_by_steps(root: BorrowedFd<'_>, relative: &Path) -> io::Result<OwnedFd> {
    let mut folder = root.try_clone_to_owned()?;
    let mut names = relative.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { return Err(Errno::XDEV.into()) };
        let flags = if names.peek().is_some() { FOLDER } else { READ };
        folder = rustix::fs::openat(&folder, name, flags, Mode::empty())?;
    }
    Ok(folder)
}

/// What an open file is: asked of the file itself, not of its name.
pub(super) fn look(opened: &OwnedFd) -> io::Result<Found> {
    let mode = rustix::fs::fstat(opened)?.st_mode;
    Ok(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Found::File,
        FileType::Directory => Found::Folder,
        FileType::Fifo => Found::Other("a pipe"),
        FileType::CharacterDevice | FileType::BlockDevice => Found::Other("a device"),
        FileType::Socket => Found::Other("a socket"),
        FileType::Symlink => Found::Other("a symbolic link"),
        _ => Found::Other("something unknown"),
    })
}

/// Whether opening failed for a link where there may be none.
pub(super) fn is_link(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// Whether opening failed for leading out of the root.
pub(super) fn is_crossing(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::XDEV)
}

/// Whether opening failed for there being a socket, or a device without a driver.
pub(super) fn is_socket(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NXIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Both ways of opening, which must agree.
    fn both(root: &Path, relative: &str) -> [io::Result<Found>; 2] {
        let root = open_root(root).unwrap();
        let relative = Path::new(relative);
        [open(&root, relative), open_by_steps(root.as_fd(), relative)].map(|opened| look(&opened?))
    }

    #[test]
    fn nothing_leads_out_of_the_root_with_or_without_help_of_the_kernel() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        std::fs::write(base.path().join("secret"), "x").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("a", root.join("in")).unwrap();
        symlink("/proc/self/fd", root.join("magic")).unwrap();

        for opened in both(&root, "a/b/file") {
            assert_eq!(opened.unwrap(), Found::File);
        }
        for opened in both(&root, "a/b") {
            assert_eq!(opened.unwrap(), Found::Folder);
        }
        for relative in ["out", "in/b/file", "in", "../secret", "a/../../secret", "/etc/passwd", "magic/0"] {
            for opened in both(&root, relative) {
                assert!(opened.is_err(), "{relative}: {opened:?}");
            }
        }
        for opened in both(&root, "a/b/missing") {
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}

//! Counting what is read, and telling afterwards why reading failed.
//!
//! Between the caller's reader and us there are a decompressor and a parser, and all errors are `io::Error` in the end. So the two ends write
//! down what happened, and [`Trouble::explain`] looks there first.

use crate::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// What went wrong at either end.
#[derive(Clone)]
pub(super) struct Trouble {
    bytes_max: u64,
    flags: Arc<Flags>,
}

#[derive(Default)]
struct Flags {
    is_over: AtomicBool,
    has_source_failed: AtomicBool,
}

impl Trouble {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, flags: Arc::default() }
    }

    /// A reader whose bytes are counted.
    pub(super) fn counted<R>(&self, inner: R) -> Counted<R> {
        Counted { inner, read: 0, is_source: false, trouble: self.clone() }
    }

    /// The same for the caller's reader, whose own errors are noted.
    pub(super) fn counted_source<R>(&self, inner: R) -> Counted<R> {
        Counted { inner, read: 0, is_source: true, trouble: self.clone() }
    }

    /// What an error of reading means.
    pub(super) fn explain(&self, error: io::Error, problem: &str) -> Error {
        if self.flags.is_over.load(Ordering::Relaxed) {
            return Error::TooLarge {
                part: "the archive",
                bytes_max: self.bytes_max,
                setting: "weights_bytes_max and 18 MiB",
            };
        }
        if self.flags.has_source_failed.load(Ordering::Relaxed) {
            return source_failed(error);
        }
        Error::Archive(format!("{problem}: {error}"))
    }
}

pub(super) fn source_failed(error: io::Error) -> Error {
    let problem = format!("it cannot be read: {error}");
    Error::Unavailable { what: "the archive".to_owned(), problem, source: Some(Box::new(error)) }
}

/// A reader that fails once it has brought too many bytes, and that lets other tasks run: a decompressor has always something to give.
pub(super) struct Counted<R> {
    inner: R,
    read: u64,
    is_source: bool,
    trouble: Trouble,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        let before = into.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, into));
        turn.made_progress();
        if let Err(error) = read {
            self.trouble.flags.has_source_failed.fetch_or(self.is_source, Ordering::Relaxed);
            return Poll::Ready(Err(error));
        }
        self.read += (into.filled().len() - before) as u64;
        if self.read > self.trouble.bytes_max {
            self.trouble.flags.is_over.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(io::Error::other("too many bytes")));
        }
        Poll::Ready(Ok(()))
    }
}

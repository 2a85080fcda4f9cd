//! A file on its way in: booked and half-written.

use super::Fetch;
use crate::cache::{Booked, Booking, Held};
use crate::flight::blocking;
use crate::folder::Writing;
use crate::{Error, TierKind};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::task::JoinHandle;

/// Bytes gathered before they are hashed and written in one go off the async threads.
const WRITE_BYTES: usize = 1 << 20;
/// In messages about wrong bytes.
const PLACE: &str = "that came";

/// Dropped, it gives its room back and leaves nothing.
pub(super) struct Incoming {
    booking: Booking,
    writing: Writing,
}

impl Incoming {
    /// Books room, makes it, and begins a file.
    pub(super) async fn begin(fetch: &Fetch, tier: TierKind, bytes: u64) -> Result<Self, Error> {
        let digest = fetch.digest;
        let (booking, asides) = match fetch.inner.book(tier, digest, bytes)? {
            Booked::Room(booking, asides) => (booking, asides),
            Booked::Full(error) => return Err(error),
        };
        let folder = fetch.inner.folder(tier).expect("it was booked in");
        let writing = blocking(move || {
            // First make the room that was booked.
            drop(asides);
            folder.begin(digest, bytes)
        });
        Ok(Self { booking, writing: writing.await? })
    }

    /// Bytes that it has: where a source that goes on must begin.
    pub(super) fn written(&self) -> u64 {
        self.writing.written()
    }

    /// Bytes that it will have.
    pub(super) fn bytes(&self) -> u64 {
        self.writing.bytes()
    }

    /// The error if another source says another length.
    pub(super) fn has_wrong_length(&self, bytes: u64) -> Error {
        let found = format!("{} bytes in one place and {bytes} in another", self.bytes());
        Error::Corrupt { digest: self.writing.digest(), place: PLACE.to_owned(), found }
    }

    /// Appends what comes, reading on while it writes. If the stream breaks, what came before is kept.
    ///
    /// # Errors
    /// It cannot be written, or more comes than was announced.
    pub(super) async fn take_in(
        self,
        mut stream: BoxStream<'static, Result<Bytes, Error>>,
    ) -> Result<(Self, Option<Error>), Error> {
        let Self { booking, writing } = self;
        let mut pen = Pen::Idle(writing);
        let mut gathered: Vec<Bytes> = Vec::new();
        let mut gathered_bytes = 0;
        let broke = loop {
            match stream.next().await {
                Some(Ok(piece)) => {
                    gathered_bytes += piece.len();
                    gathered.push(piece);
                    if gathered_bytes >= WRITE_BYTES {
                        pen = write(pen.rest().await?, std::mem::take(&mut gathered));
                        gathered_bytes = 0;
                    }
                }
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        let writing = write(pen.rest().await?, gathered).rest().await?;
        Ok((Self { booking, writing }, broke))
    }

    /// Gives the file its name, if it is whole and right.
    pub(super) async fn land(self) -> Result<Held, Error> {
        let Self { booking, writing } = self;
        blocking(move || booking.land(writing.finish(PLACE)?)).await
    }
}

/// One write at a time, off the async threads.
enum Pen {
    Idle(Writing),
    Busy(JoinHandle<Result<Writing, Error>>),
}

impl Pen {
    /// Waits for the write under way.
    async fn rest(self) -> Result<Writing, Error> {
        match self {
            Self::Idle(writing) => Ok(writing),
            Self::Busy(work) => work.await.map_err(Error::Task)?,
        }
    }
}

/// Begins to write.
fn write(mut writing: Writing, pieces: Vec<Bytes>) -> Pen {
    if pieces.is_empty() {
        return Pen::Idle(writing);
    }
    Pen::Busy(tokio::task::spawn_blocking(move || {
        for piece in &pieces {
            writing.write(piece, PLACE)?;
        }
        Ok(writing)
    }))
}

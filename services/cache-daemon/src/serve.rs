//! Bytes for neighbour daemons: what this process has verified, a few readers at once, within a bandwidth of its own.

use crate::bandwidth::{Bandwidth, Share};
use crate::cache::{Cache, Held};
use crate::{Error, TierKind};
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Status;
use weft_fault::{Fault, Kind};
use weft_proto::cache::v1::BlobPiece;
use weft_service_kit::shutdown::Shutdown;
use weft_types::Digest;

/// Bytes of one message.
const PIECE_BYTES: u64 = 256 << 10;
/// Messages on their way to one reader.
const PIECES_MAX: usize = 4;
/// A reader that takes nothing for so long is let go.
const READER_TIMEOUT: Duration = Duration::from_secs(10);
/// A hint for refusals at the limit.
const RETRY_AFTER_MS: u64 = 500;

/// Who serves neighbours. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Serving {
    cache: Cache,
    readers: Arc<Semaphore>,
    bandwidth: Arc<Bandwidth>,
    running: TaskTracker,
    stopping: Shutdown,
}

/// What a reader gets.
pub(crate) type Pieces = ReceiverStream<Result<BlobPiece, Status>>;

impl Serving {
    pub(crate) fn new(cache: Cache, running: TaskTracker, stopping: Shutdown) -> Self {
        let settings = &cache.0.settings;
        let readers = Arc::new(Semaphore::new(settings.serves_max));
        let bandwidth = Arc::new(Bandwidth::new(settings.serve_bytes_per_second_max));
        Self { cache, readers, bandwidth, running, stopping }
    }

    /// Begins to send a blob from an offset to its end.
    ///
    /// # Errors
    /// `not_found` if this process has not verified it, `overloaded` at `serves_max`, `invalid` if the offset is behind the end.
    pub(crate) fn read(&self, digest: Digest, offset: u64) -> Result<Pieces, Fault> {
        let read = self.begin(digest, offset);
        if let Err(fault) = &read {
            self.cache.0.metrics.served(fault.kind.as_str());
        }
        read
    }

    fn begin(&self, digest: Digest, offset: u64) -> Result<Pieces, Fault> {
        let Ok(permit) = self.readers.clone().try_acquire_owned() else {
            let message = format!("{} neighbours read already (setting serves_max)", self.cache.0.settings.serves_max);
            return Err(Fault::new(Kind::Overloaded, message).with_retry_after_ms(RETRY_AFTER_MS));
        };
        let held = [TierKind::Memory, TierKind::Disk].iter().find_map(|tier| self.cache.0.hold_in(*tier, &digest));
        let Some(held) = held else { return Err(Fault::new(Kind::NotFound, format!("{digest} is not here"))) };
        if !held.file.verified {
            self.verify(digest, permit);
            return Err(Fault::new(Kind::NotFound, format!("{digest} is not verified yet")));
        }
        let bytes = held.file.bytes;
        if offset > bytes {
            return Err(Fault::invalid(
                "offset",
                format!("offset {offset} is behind the end, the blob has {bytes} bytes"),
            ));
        }
        let file = File::open(&held.file.path);
        let file =
            file.map_err(|error| Fault::internal(format!("cannot read {}: {error}", held.file.path.display())))?;
        let (pieces, outbound) = mpsc::channel(PIECES_MAX);
        let reader = Reader {
            held,
            file: Arc::new(file),
            pieces,
            share: Bandwidth::share(Arc::new(true.into())),
            serving: self.clone(),
            _permit: permit,
        };
        self.running.spawn(async move {
            let outcome = reader.run(offset).await;
            reader.serving.cache.0.metrics.served(outcome);
        });
        Ok(ReceiverStream::new(outbound))
    }

    /// Hashes what an earlier process left, for the next reader.
    fn verify(&self, digest: Digest, permit: OwnedSemaphorePermit) {
        let (cache, stopping) = (self.cache.clone(), self.stopping.clone());
        self.running.spawn(async move {
            tokio::select! {
                verified = cache.prefetch(digest) => {
                    if let Err(error) = verified {
                        tracing::info!(%digest, %error, "cannot verify what a neighbour asked for");
                    }
                }
                () = stopping.wait() => {}
            }
            drop(permit);
        });
    }
}

/// One neighbour that reads one blob.
struct Reader {
    held: Held,
    file: Arc<File>,
    pieces: mpsc::Sender<Result<BlobPiece, Status>>,
    share: Arc<Share>,
    serving: Serving,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Sends all of it; how it ended, as a word for the metric.
    async fn run(&self, offset: u64) -> &'static str {
        let tells_length = BlobPiece { blob_bytes: self.held.file.bytes, data: Bytes::new() };
        if !self.send(Ok(tells_length)).await {
            return "gone";
        }
        let mut at = offset;
        while at < self.held.file.bytes {
            let data = match self.piece(at).await {
                Ok(data) => data,
                Err(error) => {
                    tracing::warn!(digest = %self.held.file.key.digest, %error, "cannot read for a neighbour");
                    self.send(Err(Fault::from(&error).into())).await;
                    return error.kind().as_str();
                }
            };
            at += data.len() as u64;
            self.serving.cache.0.metrics.served_bytes.inc_by(data.len() as u64);
            self.serving.bandwidth.pay(&self.share, data.len() as u64).await;
            if !self.send(Ok(BlobPiece { blob_bytes: 0, data })).await {
                return "gone";
            }
        }
        "done"
    }

    async fn piece(&self, at: u64) -> Result<Bytes, Error> {
        let (file, path) = (Arc::clone(&self.file), self.held.file.path.clone());
        let bytes = (self.held.file.bytes - at).min(PIECE_BYTES) as usize;
        crate::flight::blocking(move || {
            let mut data = vec![0; bytes];
            file.read_exact_at(&mut data, at).map_err(|source| Error::File { what: "read", path, source })?;
            Ok(data.into())
        })
        .await
    }

    /// False: the reader is gone or too slow, or we stop.
    async fn send(&self, piece: Result<BlobPiece, Status>) -> bool {
        tokio::select! {
            sent = tokio::time::timeout(READER_TIMEOUT, self.pieces.send(piece)) => matches!(sent, Ok(Ok(()))),
            () = self.serving.stopping.wait() => false,
        }
    }
}

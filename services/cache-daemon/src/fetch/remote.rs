//! The object store as a source: ranges side by side, handed on in order, each tried again at the byte at which it broke.
//!
//! The first range tells the blob's length and state; the others ask for that state, so that an object that was changed
//! meanwhile is noticed instead of mixed.

use super::{Fetch, Opened};
use crate::Error;
use crate::cache::Origin;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use std::ops::Range;
use std::time::Duration;
use weft_object_store::{ETag, ObjectPart, keys};
use weft_service_kit::transport::Backoff;

/// Opens the blob from an offset to its end.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Store`], [`Error::Stalled`].
pub(super) async fn open(fetch: &Fetch, from: u64) -> Result<Opened, Error> {
    let range_bytes = fetch.inner.settings.fetch_range_bytes;
    let first = from..from.saturating_add(range_bytes);
    let mut patience = Patience::new(fetch);
    let part = loop {
        match request(fetch, first.clone(), None).await {
            Ok(part) => break part,
            Err(error) => patience.after(fetch, error, false).await?,
        }
    };
    let (bytes, etag) = (part.object_bytes, part.etag.clone());
    let behind = part.range.end;
    let first = read(fetch.clone(), part.range.clone(), etag.clone(), Some(part.stream)).boxed();
    let fetch = fetch.clone();
    let at_once = fetch.inner.settings.fetch_ranges_max;
    let others = ranges(behind, bytes, range_bytes)
        .map(move |range| -> BoxFuture<'static, _> { read(fetch.clone(), range, etag.clone(), None).boxed() });
    let stream = futures::stream::iter(std::iter::once(first).chain(others))
        .buffered(at_once)
        .map_ok(|pieces| futures::stream::iter(pieces.into_iter().map(Ok)))
        .try_flatten();
    Ok(Opened { bytes, stream: stream.boxed() })
}

/// What is left of so many bytes from an offset on, in ranges.
fn ranges(from: u64, bytes: u64, range_bytes: u64) -> impl Iterator<Item = Range<u64>> + Send + 'static {
    let starts = std::iter::successors(Some(from), move |start| start.checked_add(range_bytes));
    starts.take_while(move |start| *start < bytes).map(move |start| start..start.saturating_add(range_bytes).min(bytes))
}

/// Reads one range whole, however often it breaks.
async fn read(
    fetch: Fetch,
    range: Range<u64>,
    etag: ETag,
    mut opened: Option<BoxStream<'static, Result<Bytes, weft_object_store::Error>>>,
) -> Result<Vec<Bytes>, Error> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut at = range.start;
    let mut patience = Patience::new(&fetch);
    while at < range.end {
        let before = at;
        let stream = match opened.take() {
            Some(stream) => Ok(stream),
            None => request(&fetch, at..range.end, Some(&etag)).await.map(|part| part.stream),
        };
        let ended = match stream {
            Ok(stream) => drain(&fetch, stream, &mut at, &mut pieces).await,
            Err(error) => Err(error),
        };
        if at > range.end {
            let found = format!("{} bytes for a range of {}", at - range.start, range.end - range.start);
            return Err(Error::Corrupt { digest: fetch.digest, place: "in the object store".to_owned(), found });
        }
        if at == range.end {
            break;
        }
        let short = || Error::CutShort { digest: fetch.digest, bytes: at, bytes_announced: range.end };
        patience.after(&fetch, ended.err().unwrap_or_else(short), at > before).await?;
    }
    Ok(pieces)
}

/// Takes what comes until the stream ends or breaks.
async fn drain(
    fetch: &Fetch,
    mut stream: BoxStream<'static, Result<Bytes, weft_object_store::Error>>,
    at: &mut u64,
    pieces: &mut Vec<Bytes>,
) -> Result<(), Error> {
    while let Some(piece) = in_time(fetch, stream.next()).await? {
        let piece = piece.map_err(|source| Error::Store { digest: fetch.digest, source })?;
        *at += piece.len() as u64;
        fetch.pay(&piece).await;
        pieces.push(piece);
    }
    Ok(())
}

async fn request(fetch: &Fetch, range: Range<u64>, etag: Option<&ETag>) -> Result<ObjectPart, Error> {
    let digest = fetch.digest;
    let part = in_time(fetch, fetch.inner.store.get_part(&keys::blob(&digest), range, etag)).await?;
    part.map_err(|source| Error::Store { digest, source })?.ok_or(Error::NotFound { digest })
}

async fn in_time<T>(fetch: &Fetch, work: impl Future<Output = T>) -> Result<T, Error> {
    let timeout_ms = fetch.inner.settings.fetch_stall_timeout_ms;
    let done = tokio::time::timeout(Duration::from_millis(timeout_ms), work).await;
    done.map_err(|_| Error::Stalled { digest: fetch.digest, timeout_ms })
}

/// How often one request is tried: as long as it gets on, and so many times in a row without.
struct Patience {
    failures: u32,
    backoff: Backoff,
    attempts_max: u32,
}

impl Patience {
    fn new(fetch: &Fetch) -> Self {
        Self { failures: 0, backoff: Backoff::default(), attempts_max: fetch.inner.settings.fetch_attempts_max }
    }

    /// Waits until the next try, or gives the error back.
    async fn after(&mut self, fetch: &Fetch, error: Error, got_on: bool) -> Result<(), Error> {
        let metrics = &fetch.inner.metrics;
        metrics.fetch_failed(Origin::Remote, error.kind().as_str());
        if got_on {
            self.failures = 0;
            self.backoff.reset();
        }
        self.failures += 1;
        if !error.is_passing() || self.failures >= self.attempts_max {
            return Err(error);
        }
        tracing::warn!(digest = %fetch.digest, %error, tries = self.failures, "a read of the object store failed; trying again");
        if got_on {
            metrics.resumes.inc();
        }
        self.backoff.wait().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
    fn ranges_cover_the_rest_once() {
        let all = |from, bytes| ranges(from, bytes, 10).collect::<Vec<_>>();
        assert_eq!(all(10, 35), [10..20, 20..30, 30..35]);
        assert_eq!(all(35, 35), []);
        assert_eq!(all(3, 5), [3..5]);
        assert_eq!(ranges(u64::MAX - 5, u64::MAX, 10).collect::<Vec<_>>(), [u64::MAX - 5..u64::MAX]);
    }
}

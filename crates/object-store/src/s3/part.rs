//! Parts of an object: ranged GETs.

use super::failure::{Failure, classify};
use super::{S3Store, etag as etag_of, length, pieces};
use crate::{ETag, Error, ObjectPart, ObjectStore};
use futures::StreamExt;
use std::ops::Range;

const OPERATION: &str = "get";

/// See [`ObjectStore::get_part`].
pub(super) async fn get(
    store: &S3Store,
    key: &str,
    range: Range<u64>,
    etag: Option<&ETag>,
) -> Result<Option<ObjectPart>, Error> {
    if range.is_empty() {
        return Err(refused(key, "InvalidRange", format!("the range {range:?} is empty")));
    }
    let got = store.client.get_object().bucket(&store.bucket).key(store.full_key(key));
    let got = got.range(format!("bytes={}-{}", range.start, range.end - 1));
    let got = got.set_if_match(etag.map(|etag| etag.as_str().to_owned()));
    let got = match got.send().await.map_err(|error| classify(OPERATION, key, error)) {
        Ok(got) => got,
        Err(Failure::NotFound) => return Ok(None),
        Err(Failure::ConditionFailed) => return Err(Error::Changed { key: key.to_owned() }),
        // An empty object has no first byte to begin with.
        Err(Failure::Other(Error::Refused { code, .. })) if code == "InvalidRange" && range.start == 0 => {
            return empty(store, key).await;
        }
        Err(failure) => return Err(failure.into_error(OPERATION, key)),
    };
    let bytes = length(got.content_length, OPERATION, key)?;
    let came = match got.content_range.as_deref() {
        Some(text) => content_range(text).ok_or_else(|| not_conforming(key, text))?,
        None => (0..bytes, bytes),
    };
    let (came, object_bytes) = came;
    if came.start != range.start || came.end - came.start != bytes {
        return Err(not_conforming(key, &format!("{came:?}, {bytes} bytes for {range:?}")));
    }
    let etag = etag_of(got.e_tag, OPERATION, key)?;
    let stream = pieces(got.body, key.to_owned(), bytes).boxed();
    Ok(Some(ObjectPart { range: came, object_bytes, etag, stream }))
}

async fn empty(store: &S3Store, key: &str) -> Result<Option<ObjectPart>, Error> {
    let Some(whole) = store.get_stream(key).await? else { return Ok(None) };
    Ok(Some(ObjectPart { range: 0..whole.bytes, object_bytes: whole.bytes, etag: whole.etag, stream: whole.stream }))
}

/// `bytes 0-9/100` as the range and the whole length.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, whole): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, whole.parse().ok()?);
    (first <= last && last < whole).then(|| (first..last + 1, whole))
}

fn not_conforming(key: &str, what: &str) -> Error {
    Error::NotConforming(format!("the answer to {OPERATION} {key:?} has another range than was asked for: {what}"))
}

fn refused(key: &str, code: &str, message: String) -> Error {
    Error::Refused { operation: OPERATION, key: key.to_owned(), code: code.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn ranges_of_answers_are_read_and_nonsense_is_not() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        assert_eq!(content_range("bytes 99-99/100"), Some((99..100, 100)));
        for wrong in ["", "bytes */100", "bytes 0-9/*", "bytes 9-0/100", "bytes 0-100/100", "0-9/100", "bytes 0-/1"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
        assert_eq!(content_range("bytes 0-18446744073709551615/18446744073709551615"), None);
    }
}

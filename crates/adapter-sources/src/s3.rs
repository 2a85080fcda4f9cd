//! Two objects under a prefix.

use crate::opened::{PICKLE, TELLING, in_chunks, no_weights, other_files};
use crate::patience::Patience;
use crate::source::S3Folder;
use crate::{Access, CONFIG, CONFIG_BYTES_MAX, Error, Opened, SIGNATURE, SIGNATURE_BYTES_MAX, WEIGHTS};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::TryStreamExt;
use weft_object_store::{ETag, ObjectStore, ObjectStream, S3Store};

/// Finds both objects, reads the config and begins the weights. Cost: a request for each of the two, one more for the config's state, and
/// one for each file that could change what the adapter does.
pub(crate) async fn open(
    store: &S3Store,
    access: &Access,
    folder: &S3Folder,
    patience: Patience,
) -> Result<Opened, Error> {
    let place = folder.to_string();
    let telling = telling(store, folder, &place, patience).await?;
    let Some(config) = get(store, folder, CONFIG, patience).await? else {
        return Err(Error::Missing { place, file: CONFIG });
    };
    let config_etag = config.etag.clone();
    let config = whole(config, CONFIG, CONFIG_BYTES_MAX, &place, patience).await?;
    let signature = match get(store, folder, SIGNATURE, patience).await? {
        Some(found) => Some(whole(found, SIGNATURE, SIGNATURE_BYTES_MAX, &place, patience).await?),
        None => None,
    };
    let Some(weights) = get(store, folder, WEIGHTS, patience).await? else {
        return Err(no_weights(place, telling.iter().any(|name| name == PICKLE)));
    };
    // Both may have been written anew between the two answers; the weights are of one state from here on.
    let again = patience.wait(&place, store.head(&key(folder, CONFIG))).await??;
    if again.is_none_or(|again| again.etag != config_etag) {
        return Err(Error::Changed { what: place });
    }
    let (bytes, bytes_max, setting) = (weights.bytes, access.weights_bytes_max, "weights_bytes_max");
    if bytes == 0 {
        return Err(Error::Empty { place, file: WEIGHTS });
    }
    if bytes > bytes_max {
        return Err(Error::TooLarge { part: WEIGHTS, bytes_max, setting });
    }
    let pieces = patience.watch(format!("{place}/{WEIGHTS}"), weights.stream.map_err(Error::from));
    Ok(Opened {
        config,
        signature,
        weights: in_chunks(pieces, bytes_max, setting),
        weights_bytes: Some(bytes),
        origin: format!("{place}#{},{}", bare(&config_etag), bare(&weights.etag)),
        other_files: other_files(telling),
    })
}

async fn get(
    store: &S3Store,
    folder: &S3Folder,
    file: &str,
    patience: Patience,
) -> Result<Option<ObjectStream>, Error> {
    let key = key(folder, file);
    Ok(patience.wait(&key, store.get_stream(&key)).await??)
}

/// A small file, after its length was looked at.
async fn whole(
    found: ObjectStream,
    file: &'static str,
    bytes_max: u64,
    place: &str,
    patience: Patience,
) -> Result<Bytes, Error> {
    if found.bytes > bytes_max {
        return Err(Error::TooLarge { part: file, bytes_max, setting: "adapter sources" });
    }
    if found.bytes == 0 {
        return Err(Error::Empty { place: place.to_owned(), file });
    }
    let pieces = patience.watch(format!("{place}/{file}"), found.stream.map_err(Error::from));
    let whole = pieces.try_fold(Vec::new(), |mut whole, piece| async move {
        whole.extend_from_slice(&piece);
        Ok(whole)
    });
    Ok(whole.await?.into())
}

/// Which of the files that could change what the adapter does are there. A prefix may have any number of objects, so it is not listed.
async fn telling(store: &S3Store, folder: &S3Folder, place: &str, patience: Patience) -> Result<Vec<String>, Error> {
    let asked = TELLING.map(|name| async move {
        let head = patience.wait(place, store.head(&key(folder, name))).await??;
        Ok::<_, Error>(head.map(|_| name.to_owned()))
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

fn key(folder: &S3Folder, file: &str) -> String {
    format!("{}/{file}", folder.prefix())
}

fn bare(etag: &ETag) -> &str {
    etag.as_str().trim_matches('"')
}

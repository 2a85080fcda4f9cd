//! Whether an endpoint keeps the promises that the mesh stands on. Some servers accept `If-None-Match` and `If-Match`
//! and ignore them, or check them without a lock; then versions would be overwritten in silence.

use crate::{ETag, Error, ObjectStore, PutOutcome};
use bytes::Bytes;
use futures::future::try_join_all;

/// Writers of one race.
const RACERS: usize = 8;
/// Races of each kind. A server that asks something else between its check and its write is caught by the first in nearly every case; one where
/// next to no time lies in between is not: of moto's races about one in a hundred has two winners.
const RACES: usize = 2;

/// Refuses a store that does not keep the promises of [`ObjectStore`], racing conditional writes included.
/// Writes under a random key below `.weft-probe/` and removes it again. Cost: about 50 requests.
///
/// # Errors
/// [`Error::NotConforming`] naming the place and the broken promise, or what made a request fail.
pub async fn probe(store: &dyn ObjectStore) -> Result<(), Error> {
    let prefix = format!(".weft-probe/{}/", uuid::Uuid::new_v4());
    let result = check(store, &prefix).await;
    let cleaned = clean(store, &prefix).await;
    result.and(cleaned).map_err(|error| match error {
        Error::NotConforming(promise) => Error::NotConforming(format!("{}: {promise}", store.place())),
        other => other,
    })
}

async fn clean(store: &dyn ObjectStore, prefix: &str) -> Result<(), Error> {
    for object in store.list(prefix).await? {
        store.delete(&object.key).await?;
    }
    Ok(())
}

fn demand(kept: bool, promise: &str) -> Result<(), Error> {
    if kept { Ok(()) } else { Err(Error::NotConforming(promise.to_owned())) }
}

async fn check(store: &dyn ObjectStore, prefix: &str) -> Result<(), Error> {
    let key = format!("{prefix}object");
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));

    let written = store.put_if_absent(&key, first.clone()).await?;
    let PutOutcome::Written(etag) = written else { return demand(false, "if-none-match: * fails on a new key") };
    let again = store.put_if_absent(&key, second.clone()).await?;
    demand(again == PutOutcome::Lost, "if-none-match: * does not stop a write over an existing object")?;
    let other = ETag::new("\"00000000000000000000000000000000\"");
    let stale = store.put_if_match(&key, second.clone(), &other).await?;
    demand(stale == PutOutcome::Lost, "if-match does not stop a write over another state")?;
    let missing = store.put_if_match(&format!("{prefix}missing"), second.clone(), &etag).await?;
    demand(missing == PutOutcome::Lost, "if-match writes where there is no object")?;

    let read = store.get(&key).await?;
    let whole = read.is_some_and(|object| object.bytes == first && object.etag == etag);
    demand(whole, "a get after refused writes does not bring the first one back with its ETag")?;
    let listed = store.list(prefix).await?;
    let seen = listed.len() == 1 && listed[0].key == key && listed[0].bytes == 5 && listed[0].etag == etag;
    demand(seen, "a listing does not show exactly what was written")?;

    let swapped = store.put_if_match(&key, second.clone(), &etag).await?;
    demand(swapped.is_written(), "if-match stops a write over the state that it names")?;
    let read = store.get(&key).await?.map(|object| object.bytes);
    demand(read == Some(second), "a get does not see the write answered before it")?;

    for race in 0..RACES {
        let key = format!("{prefix}race-{race}");
        let racers = (0..RACERS).map(|racer| store.put_if_absent(&key, Bytes::from(format!("racer {racer}"))));
        let winners = try_join_all(racers).await?.into_iter().filter(PutOutcome::is_written).count();
        demand(winners == 1, &format!("{winners} of {RACERS} racing if-none-match: * writes won"))?;

        let Some(object) = store.get(&key).await? else { return demand(false, "the winner's object is missing") };
        let racers =
            (0..RACERS).map(|racer| store.put_if_match(&key, Bytes::from(format!("swap {racer}")), &object.etag));
        let winners = try_join_all(racers).await?.into_iter().filter(PutOutcome::is_written).count();
        demand(winners == 1, &format!("{winners} of {RACERS} racing if-match writes won"))?;
    }
    store.delete(&key).await?;
    demand(store.head(&key).await?.is_none(), "a deleted object is still there")
}

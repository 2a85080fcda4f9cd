//! `kill -9` of the server at random points loses nothing that was acknowledged and tears nothing.

use crate::support::ServerProcess;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weft_object_store::{ETag, ObjectStore, PutOutcome, S3Store};
use weft_types::Digest;

const ROUNDS: u64 = 25;
const WRITERS: u64 = 6;
/// More than one piece, so that kills fall into the middle of a body as well.
const LARGE_BYTES: usize = 600 << 10;

/// What the writers know of their keys: the last count that was acknowledged, and the last that was tried.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    acknowledged: u64,
    tried: u64,
}

/// A body that proves itself: count, filling, and the digest of both.
fn body(count: u64, large: bool) -> Bytes {
    let mut body = format!("{count}\n").into_bytes();
    if large {
        body.resize(LARGE_BYTES, (count % 251) as u8);
    }
    body.extend_from_slice(Digest::of(&body).as_bytes());
    body.into()
}

fn count(body: &[u8]) -> u64 {
    let (content, digest) = body.split_at(body.len() - 32);
    assert_eq!(Digest::of(content).as_bytes(), digest, "the body is torn");
    let line = content.split(|byte| *byte == b'\n').next().unwrap();
    std::str::from_utf8(line).unwrap().parse().unwrap()
}

/// Swaps one key up and up, and creates a new key every time, until the server is gone.
async fn write(store: S3Store, writer: u64, known: Arc<Mutex<BTreeMap<String, Known>>>) {
    let key = format!("swap/{writer}");
    let large = writer.is_multiple_of(2);
    let mut state: Option<(ETag, u64)> = match store.get(&key).await {
        Ok(found) => found.map(|object| (object.etag, count(&object.bytes))),
        Err(_) => return,
    };
    loop {
        let next = state.as_ref().map_or(1, |(_, count)| count + 1);
        known.lock().unwrap().entry(key.clone()).or_default().tried = next;
        let written = match &state {
            Some((etag, _)) => store.put_if_match(&key, body(next, large), etag).await,
            None => store.put_if_absent(&key, body(next, large)).await,
        };
        let Ok(outcome) = written else { return };
        let PutOutcome::Written(etag) = outcome else { panic!("writer {writer} is alone on its key") };
        known.lock().unwrap().entry(key.clone()).or_default().acknowledged = next;
        state = Some((etag, next));

        let new_key = format!("new/{writer}/{next}");
        known.lock().unwrap().entry(new_key.clone()).or_default().tried = next;
        match store.put_if_absent(&new_key, body(next, false)).await {
            // Lost: the server was killed after this write, before the swap's count was known to us.
            Ok(_) => known.lock().unwrap().entry(new_key).or_default().acknowledged = next,
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_random_points_loses_and_tears_nothing() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let known: Arc<Mutex<BTreeMap<String, Known>>> = Arc::default();
    for round in 0..ROUNDS {
        let server = ServerProcess::start(folder.path(), None).await;
        let store = server.store().await;
        let expected = known.lock().unwrap().clone();
        let found = check(&store, &expected, round).await;
        // What was written without an acknowledgement counts as known from now on.
        for (key, found) in found {
            known.lock().unwrap().insert(key, Known { acknowledged: found, tried: found });
        }
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer, Arc::clone(&known)))).collect();
        // When the kill comes is the point of the test; nothing waits for this.
        tokio::time::sleep(Duration::from_micros(random.random_range(2_000..90_000))).await;
        server.kill().await;
        for writer in writers {
            // A client that finds nobody gives up after its retries; there is nothing more to learn from it.
            writer.abort();
            if let Err(error) = writer.await {
                assert!(error.is_cancelled(), "{error}");
            }
        }
    }
    let server = ServerProcess::start(folder.path(), None).await;
    let known = known.lock().unwrap().clone();
    check(&server.store().await, &known, ROUNDS).await;
    let acknowledged = known.values().filter(|known| known.acknowledged > 0).count();
    assert!(acknowledged > ROUNDS as usize, "only {acknowledged} keys in {ROUNDS} rounds");
}

/// Every acknowledged write is there, whole, under an ETag with which it can be swapped.
async fn check(store: &S3Store, known: &BTreeMap<String, Known>, round: u64) -> BTreeMap<String, u64> {
    let listed: BTreeMap<String, ETag> =
        store.list("").await.unwrap().into_iter().map(|object| (object.key, object.etag)).collect();
    let mut found = BTreeMap::new();
    for (key, known) in known {
        let Some(object) = store.get(key).await.unwrap() else {
            assert_eq!(known.acknowledged, 0, "round {round}: {key} is lost: {known:?}");
            assert!(!listed.contains_key(key));
            continue;
        };
        let count = count(&object.bytes);
        assert!(count >= known.acknowledged && count <= known.tried, "round {round}: {key} has {count}: {known:?}");
        assert_eq!(listed.get(key), Some(&object.etag), "round {round}: {key}");
        if key.starts_with("swap/") {
            // The ETag belongs to exactly these bytes: it can be swapped, once.
            let again = store.put_if_match(key, object.bytes.clone(), &object.etag).await.unwrap();
            assert!(again.is_written(), "round {round}: {key} cannot be swapped");
            let other = ETag::new("\"00000000000000000000000000000000\"");
            let stale = store.put_if_match(key, object.bytes.clone(), &other).await.unwrap();
            assert_eq!(stale, PutOutcome::Lost, "round {round}: {key}");
        }
        assert_eq!(store.put_if_absent(key, Bytes::new()).await.unwrap(), PutOutcome::Lost, "round {round}: {key}");
        found.insert(key.clone(), count);
    }
    assert!(listed.keys().all(|key| known.contains_key(key)), "an object that nobody wrote");
    found
}

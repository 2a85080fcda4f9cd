//! Racing conditional writes have one winner each.

use crate::support::embedded;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use weft_object_store::{ObjectStore, PutOutcome};

const RACES: usize = 1000;
const RACERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn of_racing_writes_to_a_new_key_one_wins_and_its_bytes_stay() {
    let (_folder, _server, store) = embedded().await;
    let races = futures::stream::iter(0..RACES).map(|race| {
        let store = &store;
        async move {
            let key = format!("race/{race}");
            let writes = (0..RACERS).map(|racer| store.put_if_absent(&key, Bytes::from(format!("{race} {racer}"))));
            let outcomes: Vec<_> = join_all(writes).await.into_iter().map(Result::unwrap).collect();
            let winners: Vec<usize> = (0..RACERS).filter(|racer| outcomes[*racer].is_written()).collect();
            assert_eq!(winners.len(), 1, "race {race}: {outcomes:?}");
            let object = store.get(&key).await.unwrap().unwrap();
            assert_eq!(object.bytes, format!("{race} {}", winners[0]));
            assert_eq!(outcomes[winners[0]], PutOutcome::Written(object.etag));
        }
    });
    races.buffer_unordered(16).collect::<Vec<_>>().await;
    assert_eq!(store.list("race/").await.unwrap().len(), RACES);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_1000_racing_swaps_none_is_lost() {
    let (_folder, _server, store) = embedded().await;
    store.put("counter", Bytes::from_static(b"0")).await.unwrap();
    let increments = futures::stream::iter(0..RACES).map(|_| {
        let store = &store;
        async move {
            loop {
                let object = store.get("counter").await.unwrap().unwrap();
                let value: usize = std::str::from_utf8(&object.bytes).unwrap().parse().unwrap();
                let next = Bytes::from((value + 1).to_string());
                if store.put_if_match("counter", next, &object.etag).await.unwrap().is_written() {
                    return;
                }
            }
        }
    });
    increments.buffer_unordered(8).collect::<Vec<_>>().await;
    assert_eq!(store.get("counter").await.unwrap().unwrap().bytes, RACES.to_string());
}

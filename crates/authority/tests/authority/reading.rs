//! Gateways never go back.

use crate::support::{World, plan_of};
use weft_authority::{Decision, EPOCH_KEY, Error, Reader, latest_epoch};
use weft_object_store::ObjectStore;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_every_newer_epoch_and_stays_on_the_last_whatever_happens() {
    let world = World::new().await;
    let store = world.store().await;
    let mut reader = Reader::new();
    assert!(latest_epoch(&*store).await.unwrap().is_none());
    assert!(!reader.refresh(&*store).await.unwrap());

    let (_, mut office) = world.office("a").await;
    assert!(reader.refresh(&*store).await.unwrap());
    assert!(!reader.refresh(&*store).await.unwrap(), "nothing new");
    let old = store.get(EPOCH_KEY).await.unwrap().unwrap().bytes;
    let published = office.publish(|_| Decision::Publish(plan_of(1))).await.unwrap().unwrap();
    assert!(reader.refresh(&*store).await.unwrap());
    assert_eq!(reader.newest(), Some(&published));

    store.put(EPOCH_KEY, old.clone()).await.unwrap();
    assert!(!reader.refresh(&*store).await.unwrap(), "an older one");
    let mut torn = old.to_vec();
    torn.truncate(old.len() - 1);
    store.put(EPOCH_KEY, torn.into()).await.unwrap();
    assert!(matches!(reader.refresh(&*store).await, Err(Error::Document(_))));
    store.delete(EPOCH_KEY).await.unwrap();
    assert!(!reader.refresh(&*store).await.unwrap());
    store.set_away(true);
    assert!(matches!(reader.refresh(&*store).await, Err(Error::Store(_))));
    assert_eq!(reader.newest(), Some(&published));
    assert!(!reader.offer(published.clone()), "the same one over the bus");
}

//! One authority at a time, and an old one that cannot write.

use crate::support::{SETTINGS, World, plan_of};
use std::sync::Arc;
use weft_authority::{Candidate, Decision, EPOCH_KEY, Error, LEASE_KEY, latest_epoch};
use weft_object_store::ObjectStore;
use weft_placement::Epoch;

#[tokio::test(flavor = "multi_thread")]
async fn of_many_contenders_one_is_elected_and_the_next_when_it_resigns() {
    let world = World::new().await;
    let (elected, mut offices) = tokio::sync::mpsc::channel(1);
    let mut contenders = Vec::new();
    for at in 0..6 {
        let (_, mut candidate) = world.candidate(&format!("registry-{at}")).await;
        let elected = elected.clone();
        contenders.push(tokio::spawn(async move {
            // Away for a moment is no reason to give up.
            let office = loop {
                if let Ok(office) = candidate.stand().await {
                    break office;
                }
            };
            elected.send(office).await.unwrap();
        }));
    }
    for term in 1..=6 {
        let mut office = offices.recv().await.unwrap();
        assert_eq!(office.term(), term);
        // Longer than the silence: it is the renewals that keep the others out.
        for _ in 0..6 {
            tokio::time::sleep(std::time::Duration::from_millis(SETTINGS.silence_ms / 4)).await;
            office.renew().await.unwrap();
            assert!(offices.try_recv().is_err(), "two authorities in term {term}");
        }
        office.resign().await.unwrap();
    }
    for contender in contenders {
        contender.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_office_is_given_back_even_if_an_earlier_renewal_arrives_just_before() {
    let world = World::new().await;
    let (store, office) = world.office("old").await;
    store.pause();
    let resigning = tokio::spawn(office.resign());
    store.is_held().await;
    let network = world.store().await;
    let lease = network.get(LEASE_KEY).await.unwrap().unwrap();
    let mut renewal: serde_json::Value = serde_json::from_slice(&lease.bytes).unwrap();
    renewal["renewals"] = 1000.into();
    let renewal = serde_json::to_vec(&renewal).unwrap();
    network.put_if_match(LEASE_KEY, renewal.into(), &lease.etag).await.unwrap();

    store.wake();
    resigning.await.unwrap().unwrap();
    let lease = network.get(LEASE_KEY).await.unwrap().unwrap();
    let lease: serde_json::Value = serde_json::from_slice(&lease.bytes).unwrap();
    assert_eq!((&lease["is_vacant"], &lease["renewals"]), (&true.into(), &1001.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_paused_in_the_middle_of_a_publication_wakes_and_loses() {
    let world = World::new().await;
    let (store, mut old) = world.office("old").await;
    let first = old.publish(|_| Decision::Publish(plan_of(1))).await.unwrap().unwrap();
    store.pause();
    let publishing = tokio::spawn(async move {
        let result = old.publish(|_| Decision::Publish(plan_of(2))).await;
        (old, result)
    });
    store.is_held().await;

    let (_, mut new) = world.office("new").await;
    assert_eq!(new.term(), 2);
    let published = new.publish(|_| Decision::Publish(plan_of(3))).await.unwrap().unwrap();
    assert!(published.epoch > first.epoch);

    store.wake();
    let (mut old, result) = publishing.await.unwrap();
    assert!(matches!(result, Err(Error::Deposed { term: 1, .. })), "{result:?}");
    assert_eq!(latest_epoch(&*store).await.unwrap().unwrap(), published);
    assert!(matches!(old.renew().await, Err(Error::Deposed { .. })));
    let again = old.publish(|_| Decision::Publish(plan_of(4))).await;
    assert!(matches!(again, Err(Error::Deposed { .. })), "{again:?}");
    assert!(matches!(old.resign().await, Err(Error::Deposed { .. })), "it cannot give away what is another's");
    new.renew().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_write_that_lands_between_the_election_and_the_fence_is_fenced_off() {
    let world = World::new().await;
    let (store, mut old) = world.office("old").await;
    store.pause();
    let publishing = tokio::spawn(async move {
        let result = old.publish(|_| Decision::Publish(plan_of(1))).await;
        (old, result)
    });
    store.is_held().await;
    let (_, mut candidate) = world.candidate("new").await;
    let mut new = candidate.stand().await.unwrap();
    store.wake();
    // The new one has written nothing yet: this is an epoch of the old term, and a good one.
    let (mut old, result) = publishing.await.unwrap();
    let late = result.unwrap().unwrap();
    assert_eq!(late.epoch.term(), 1);

    let fence = new.fence().await.unwrap();
    assert_eq!((fence.epoch, &fence.adapters), (Epoch::first_of(2).unwrap(), &late.adapters), "nothing is lost by it");
    let result = old.publish(|_| Decision::Publish(plan_of(2))).await;
    assert!(matches!(result, Err(Error::Deposed { .. })), "{result:?}");
    assert_eq!(latest_epoch(&*store).await.unwrap().unwrap(), fence);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_dies_is_followed_without_its_help() {
    let world = World::new().await;
    let (_, mut dead) = world.office("dead").await;
    let last = dead.publish(|_| Decision::Publish(plan_of(1))).await.unwrap().unwrap();
    drop(dead);
    let (store, new) = world.office("new").await;
    assert_eq!(new.term(), 2);
    let fence = latest_epoch(&*store).await.unwrap().unwrap();
    assert_eq!((fence.epoch, fence.adapters), (Epoch::first_of(2).unwrap(), last.adapters));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_replies_end_no_office_and_no_number_is_used_twice() {
    let world = World::new().await;
    let (store, mut candidate) = world.candidate("a").await;
    store.lose_replies(1);
    let claim = candidate.stand().await;
    assert!(matches!(claim, Err(Error::Store(_))), "the claim was written, and nobody said so");
    let mut office = candidate.stand().await.unwrap();
    assert_eq!(office.term(), 1, "its own claim is recognised, without waiting for the silence");
    store.lose_replies(1);
    assert!(matches!(office.renew().await, Err(Error::Store(_))));
    office.renew().await.unwrap();

    store.lose_replies(1);
    assert!(office.fence().await.is_err());
    assert_eq!(office.fence().await.unwrap().epoch.number(), 1_000_001, "the first was written and not answered");
    store.lose_replies(1);
    assert!(office.publish(|_| Decision::Publish(plan_of(1))).await.is_err());
    let published = office.publish(|last| {
        assert_eq!(last.unwrap().adapters, plan_of(1).adapters, "what was written is found");
        Decision::Publish(plan_of(2))
    });
    assert_eq!(published.await.unwrap().unwrap().epoch.number(), 1_000_003);
    assert_eq!(office.publish(|_| Decision::Keep).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_an_error_and_the_office_goes_on_after_it() {
    let world = World::new().await;
    let (store, mut office) = world.office("a").await;
    store.set_away(true);
    assert!(matches!(office.renew().await, Err(Error::Store(_))));
    assert!(matches!(office.publish(|_| Decision::Publish(plan_of(1))).await, Err(Error::Store(_))));
    store.set_away(false);
    office.renew().await.unwrap();
    office.publish(|_| Decision::Publish(plan_of(1))).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_and_damaged_objects_cost_no_term_and_let_no_old_authority_in() {
    let world = World::new().await;
    let (store, mut old) = world.office("old").await;
    // The lease is gone: whoever comes takes a later term, which it reads from the epochs.
    store.delete(LEASE_KEY).await.unwrap();
    let (_, mut new) = world.office("new").await;
    assert_eq!(new.term(), 2);
    // The epoch is gone, then damaged: the old one cannot see a later term in it, and must not write all the same.
    for damage in [None, Some("garbage")] {
        match damage {
            None => store.delete(EPOCH_KEY).await.unwrap(),
            Some(bytes) => {
                store.put(EPOCH_KEY, bytes.into()).await.unwrap();
            }
        }
        for _ in 0..2 {
            let result = old.publish(|_| Decision::Publish(plan_of(1))).await;
            assert!(matches!(result, Err(Error::Deposed { term: 1, .. })), "{damage:?}: {result:?}");
        }
        // The new one's first try is over a state that is gone; then it repairs, with a number it has not used.
        let before = new.publish(|_| Decision::Publish(plan_of(2))).await.unwrap().unwrap();
        assert_eq!(latest_epoch(&*store).await.unwrap().unwrap(), before, "{damage:?}");
    }
    assert!(latest_epoch(&*store).await.unwrap().unwrap().epoch.number() > 2_000_001);
    // A damaged lease is replaced after the silence.
    store.put(LEASE_KEY, "garbage".into()).await.unwrap();
    let (_, third) = world.office("third").await;
    assert_eq!(third.term(), 3);
    assert!(matches!(new.renew().await, Err(Error::Deposed { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_beyond_the_limits_is_refused_and_the_office_goes_on() {
    let world = World::new().await;
    let (_, mut office) = world.office("a").await;
    let mut wrong = plan_of(1);
    wrong.adapters[0].1 = vec![7];
    let result = office.publish(|_| Decision::Publish(wrong.clone())).await;
    assert!(
        matches!(&result, Err(Error::Document(error)) if error.to_string().contains("worker 7 of 1")),
        "{result:?}"
    );
    office.publish(|_| Decision::Publish(plan_of(1))).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_name_becomes_what_a_document_can_carry() {
    let world = World::new().await;
    let store = world.store().await as Arc<dyn ObjectStore>;
    let name = format!("ä \"{}", "x".repeat(500));
    let mut candidate = Candidate::new(store, &name, SETTINGS);
    assert!(candidate.holder().starts_with("---x") && candidate.holder().len() < 120, "{}", candidate.holder());
    candidate.stand().await.unwrap().fence().await.unwrap();
}

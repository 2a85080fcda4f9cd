//! What every `Bus` promises.

use crate::support::{A, B, Pair, listen, memory, message, nats, next};
use bytes::Bytes;
use weft_bus::{Error, Heard, MESSAGE_BYTES_MAX};

/// Each promise as a test over each implementation.
macro_rules! promises {
    ($($name:ident),+ $(,)?) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::memory().await).await; })+
        }
        mod over_nats {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::nats().await).await; })+
        }
    };
}
promises!(
    messages_arrive_whole_and_in_order,
    every_subscription_hears_and_other_subjects_do_not,
    the_largest_message_passes_and_a_larger_one_is_the_senders_error,
    a_slow_subscriber_keeps_the_newest_and_learns_of_the_rest,
    a_slow_subscriber_holds_up_nobody,
    a_dropped_subscription_is_forgotten,
    nothing_from_before_a_subscription_is_heard,
    what_was_flushed_survives_its_sender,
);

async fn messages_arrive_whole_and_in_order(pair: Pair) {
    let mut heard = listen(&pair.far, A, 256).await;
    for number in 0..200 {
        pair.near.publish(A, message(number)).unwrap();
        assert_eq!(next(&mut heard).await, Heard::Message(message(number)));
    }
    for number in 0..100 {
        pair.near.publish(A, message(number)).unwrap();
    }
    for number in 0..100 {
        assert_eq!(next(&mut heard).await, Heard::Message(message(number)));
    }
}

async fn every_subscription_hears_and_other_subjects_do_not(pair: Pair) {
    let mut all = [listen(&pair.far, A, 8).await, listen(&pair.far, A, 8).await, listen(&pair.near, A, 8).await];
    let mut other = listen(&pair.far, B, 8).await;
    pair.near.publish(A, message(1)).unwrap();
    pair.near.publish(B, message(2)).unwrap();
    for one in &mut all {
        assert_eq!(next(one).await, Heard::Message(message(1)));
    }
    assert_eq!(next(&mut other).await, Heard::Message(message(2)));
}

async fn the_largest_message_passes_and_a_larger_one_is_the_senders_error(pair: Pair) {
    let mut heard = listen(&pair.far, A, 8).await;
    let largest = Bytes::from(vec![7; MESSAGE_BYTES_MAX - 1]);
    for bytes in [MESSAGE_BYTES_MAX, 1 << 20] {
        let refused = pair.near.publish(A, Bytes::from(vec![7; bytes]));
        assert!(
            matches!(&refused, Err(Error::TooLarge { subject: "test.a", bytes: b, max: MESSAGE_BYTES_MAX }) if *b == bytes)
        );
    }
    pair.near.publish(A, largest.clone()).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Message(largest));
}

async fn a_slow_subscriber_keeps_the_newest_and_learns_of_the_rest(pair: Pair) {
    let mut slow = listen(&pair.far, A, 4).await;
    let mut quick = listen(&pair.far, A, 64).await;
    for number in 0..20 {
        pair.near.publish(A, message(number)).unwrap();
    }
    for number in 0..20 {
        assert_eq!(next(&mut quick).await, Heard::Message(message(number)));
    }
    // Both were given the last message, though not at once.
    let mut dropped_in_all = 0;
    let mut kept = Vec::new();
    while kept.last() != Some(&message(19)) {
        match next(&mut slow).await {
            Heard::Missed { dropped } => dropped_in_all += dropped,
            Heard::Message(message) => kept.push(message),
        }
    }
    assert!(dropped_in_all > 0, "{kept:?}");
    assert_eq!(dropped_in_all + kept.len() as u64, 20);
    // And it goes on as if nothing had been.
    pair.near.publish(A, message(20)).unwrap();
    assert_eq!(next(&mut slow).await, Heard::Message(message(20)));
}

async fn a_slow_subscriber_holds_up_nobody(pair: Pair) {
    let _stuck = listen(&pair.far, A, 1).await;
    let mut heard = listen(&pair.far, A, 1).await;
    for number in 0..5000 {
        pair.near.publish(A, message(number)).unwrap();
        assert_eq!(next(&mut heard).await, Heard::Message(message(number)));
    }
}

async fn a_dropped_subscription_is_forgotten(pair: Pair) {
    for _ in 0..100 {
        drop(listen(&pair.far, A, 1).await);
    }
    let mut heard = listen(&pair.far, A, 4).await;
    pair.near.publish(A, message(1)).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Message(message(1)));
}

async fn nothing_from_before_a_subscription_is_heard(pair: Pair) {
    let mut early = listen(&pair.far, A, 4).await;
    pair.near.publish(A, message(1)).unwrap();
    assert_eq!(next(&mut early).await, Heard::Message(message(1)));
    let mut late = listen(&pair.far, A, 4).await;
    pair.near.publish(A, message(2)).unwrap();
    assert_eq!(next(&mut late).await, Heard::Message(message(2)));
}

async fn what_was_flushed_survives_its_sender(pair: Pair) {
    let mut heard = listen(&pair.far, A, 256).await;
    for number in 0..100 {
        pair.near.publish(A, message(number)).unwrap();
    }
    pair.near.flush().await;
    drop(pair.near);
    for number in 0..100 {
        assert_eq!(next(&mut heard).await, Heard::Message(message(number)));
    }
}

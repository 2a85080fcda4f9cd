//! Who stays in memory: the second tier, slow fetches beside fast ones, hints, pins and evictions by operators.

use std::time::Duration;

use crate::support::{ADAPTERS, Answer, HELLO, TestWorker, blob, golden_greedy, request, settings};
use tokio::time::timeout;
use weft_fault::Kind;
use weft_types::Digest;
use weft_worker::Settings;

/// Far longer than anything here takes; a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Slot bytes of one adapter.
async fn bytes_of(name: &str) -> u64 {
    let worker = TestWorker::start(settings()).await;
    worker.generate(request(Some(worker.shelf.put(&blob(name))), HELLO, 1)).await.unwrap();
    worker.load().await.slot_bytes_used
}

async fn serves(worker: &TestWorker, name: &str, digest: Digest) {
    let answer = worker.generate(request(Some(digest), HELLO, 16)).await.unwrap();
    assert_eq!(answer.ids(), golden_greedy(Some(name)), "{name}");
}

#[tokio::test]
async fn an_adapter_that_lost_its_slot_comes_back_without_another_load() {
    let one = bytes_of("rank8").await;
    let worker =
        TestWorker::start(Settings { adapter_memory_bytes: one, adapter_prepared_bytes: one, ..settings() }).await;
    let adapters = ["rank8", "rank4"].map(|name| (name, worker.shelf.put(&blob(name))));
    for _ in 0..5 {
        for (name, digest) in adapters {
            serves(&worker, name, digest).await;
            assert_eq!(worker.resident().await, [digest], "there is one slot");
        }
    }
    for (name, digest) in adapters {
        assert_eq!(worker.shelf.asked(&digest), 1, "{name} was loaded again");
    }
    let residency = worker.residency().await;
    assert_eq!(residency.prepared.len(), 1);
    assert_eq!(residency.prepared[0].digest, adapters[0].1.to_vec());
    assert_eq!((residency.prepared[0].bytes, residency.prepared_bytes_max), (residency.prepared_bytes_used, one));
}

#[tokio::test]
async fn both_tiers_stay_within_their_budgets_whatever_is_asked_for() {
    let (largest, small) = (bytes_of("rank64").await, bytes_of("rank8").await);
    let worker = TestWorker::start(Settings {
        adapter_memory_bytes: largest,
        adapter_prepared_bytes: 3 * small,
        adapter_loads_max: 2,
        running_requests_max: 8,
        ..settings()
    })
    .await;
    let budget = largest + 3 * small;
    let digests = ADAPTERS.map(|name| worker.shelf.put(&blob(name)));
    let calls: Vec<_> = (0..120)
        .map(|index| {
            // Twelve adapters in an order that repeats none soon.
            let at = index * 5 % ADAPTERS.len();
            let (mut client, name, digest) = (worker.client.clone(), ADAPTERS[at], digests[at]);
            tokio::spawn(async move {
                let stream = client.generate(request(Some(digest), HELLO, 16)).await.unwrap().into_inner();
                assert_eq!(Answer::read(stream).await.unwrap().ids(), golden_greedy(Some(name)), "{name}");
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
        let now = worker.residency().await;
        assert!(now.slot_bytes_used + now.prepared_bytes_used <= budget, "{now:?}");
        assert!(now.prepared_bytes_used <= now.prepared_bytes_max, "{now:?}");
        let listed = |adapters: &[weft_proto::worker::v1::ResidentAdapter]| -> u64 {
            adapters.iter().map(|adapter| adapter.bytes).sum()
        };
        assert_eq!(listed(&now.adapters), now.slot_bytes_used);
        assert_eq!(listed(&now.prepared), now.prepared_bytes_used);
    }
    // What was borrowed is given back once nobody runs.
    worker.generate(request(None, HELLO, 1)).await.unwrap();
    let now = worker.residency().await;
    assert!(now.slot_bytes_used <= now.slot_bytes_max, "{now:?}");
}

#[tokio::test]
async fn busy_slots_borrow_from_the_second_tier_instead_of_making_others_wait() {
    let one = bytes_of("rank8").await;
    let worker =
        TestWorker::start(Settings { adapter_memory_bytes: one, adapter_prepared_bytes: 2 * one, ..settings() }).await;
    let (hot, cold) = (worker.shelf.put(&blob("rank8")), worker.shelf.put(&blob("rank4")));
    serves(&worker, "rank4", cold).await;
    // The long answer may be over before the short one begins; not every time.
    for _ in 0..50 {
        let long = worker.client.clone().generate(request(Some(hot), HELLO, 240)).await.unwrap().into_inner();
        let (long, short) = tokio::join!(Answer::read(long), worker.generate(request(Some(cold), HELLO, 16)));
        let (long, short) = (long.unwrap(), short.unwrap());
        assert_eq!(short.ids(), golden_greedy(Some("rank4")));
        if short.finished.first_step < long.finished.last_step {
            assert!(long.finished.adapters_in_step_max >= 2);
            return;
        }
    }
    panic!("the cold adapter always waited for the only slot");
}

#[tokio::test]
async fn slow_fetches_do_not_hold_up_adapters_that_are_near() {
    let worker = TestWorker::start(Settings { adapter_loads_max: 1, ..settings() }).await;
    let cold: Vec<(&str, Digest)> = ["rank4", "rank16", "rank64", "plain", "rslora", "regex"]
        .map(|name| (name, worker.shelf.put(&blob(name))))
        .to_vec();
    cold.iter().for_each(|(_, digest)| worker.shelf.hold_back(*digest));
    let waiting: Vec<_> = cold
        .iter()
        .map(|(name, digest)| {
            let (mut client, name, digest) = (worker.client.clone(), *name, *digest);
            tokio::spawn(async move {
                let stream = client.generate(request(Some(digest), HELLO, 16)).await.unwrap().into_inner();
                (name, Answer::read(stream).await.unwrap().ids())
            })
        })
        .collect();
    worker.load_when(|load| load.loading_requests == 6).await;
    let near = worker.shelf.put(&blob("rank8"));
    timeout(PATIENCE, serves(&worker, "rank8", near)).await.expect("served while others are fetched");
    assert_eq!(worker.load().await.loading_requests, 6);
    worker.shelf.let_go();
    for call in waiting {
        let (name, ids) = call.await.unwrap();
        assert_eq!(ids, golden_greedy(Some(name)), "{name}");
    }
    worker.shelf.held(0).await;
}

#[tokio::test]
async fn leases_that_nobody_waits_for_any_more_are_given_back() {
    let worker = TestWorker::start(Settings { adapter_loads_max: 1, ..settings() }).await;
    let names = ["rank4", "rank16", "plain"];
    let digests = names.map(|name| worker.shelf.put(&blob(name)));
    worker.shelf.hold();
    let calls: Vec<_> = digests
        .iter()
        .map(|digest| {
            let (mut client, digest) = (worker.client.clone(), *digest);
            tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 16)).await.map(drop) })
        })
        .collect();
    worker.load_when(|load| load.loading_requests == 3).await;
    worker.shelf.held(3).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    worker.load_when(|load| load.loading_requests == 0).await;
    worker.shelf.let_go();
    timeout(PATIENCE, worker.shelf.held(0)).await.expect("all leases end");
}

#[tokio::test]
async fn adapters_beyond_the_leases_at_once_are_hinted_to_the_daemon() {
    let worker = TestWorker::start(Settings { adapter_leases_max: 2, ..settings() }).await;
    let names = ["rank4", "rank16", "plain", "rslora"];
    let digests = names.map(|name| worker.shelf.put(&blob(name)));
    worker.shelf.hold();
    let mut calls = Vec::new();
    for (count, (name, digest)) in names.iter().zip(digests).enumerate() {
        let (mut client, name) = (worker.client.clone(), *name);
        calls.push(tokio::spawn(async move {
            let stream = client.generate(request(Some(digest), HELLO, 16)).await.unwrap().into_inner();
            (name, Answer::read(stream).await.unwrap().ids())
        }));
        worker.load_when(|load| load.loading_requests == count as u32 + 1).await;
    }
    let hints = timeout(PATIENCE, worker.shelf.hinted(&digests[2..])).await.expect("hints arrive");
    assert!(!hints.contains(&digests[0]) && !hints.contains(&digests[1]), "what is leased needs no hint");
    assert_eq!(digests.map(|digest| worker.shelf.asked(&digest)), [1, 1, 0, 0]);
    worker.shelf.let_go();
    for call in calls {
        let (name, ids) = call.await.unwrap();
        assert_eq!(ids, golden_greedy(Some(name)), "{name}");
    }
}

#[tokio::test]
async fn a_pinned_adapter_is_loaded_and_outlives_every_other() {
    let bytes = bytes_of("rank8").await;
    let worker =
        TestWorker::start(Settings { adapter_memory_bytes: 2 * bytes, adapter_pinned_fraction_max: 0.5, ..settings() })
            .await;
    let digests = ADAPTERS[..8].iter().map(|name| (*name, worker.shelf.put(&blob(name))));
    let digests: Vec<(&str, Digest)> = digests.filter(|(name, _)| *name != "rank8").collect();
    let pinned = worker.shelf.put(&blob("rank8"));
    assert_eq!(worker.pin(pinned).await, Ok(bytes));
    assert_eq!(worker.pin(pinned).await, Ok(bytes), "pins do not count");
    for (name, digest) in &digests {
        match worker.generate(request(Some(*digest), HELLO, 16)).await {
            Ok(answer) => assert_eq!(answer.ids(), golden_greedy(Some(name))),
            Err(fault) => assert_eq!(fault.code, "adapter_too_large", "{fault}"),
        }
        assert!(worker.resident().await.contains(&pinned), "{name} pushed the pinned one out");
    }
    serves(&worker, "rank8", pinned).await;
    assert_eq!(worker.shelf.asked(&pinned), 1);
    let listed = worker.residency().await.adapters;
    let flags: Vec<bool> = listed.iter().filter(|a| a.pinned).map(|a| a.digest == pinned.to_vec()).collect();
    assert_eq!(flags, [true]);
    assert!(worker.unpin(pinned).await && !worker.unpin(pinned).await);
    for round in 0..3 {
        for name in ["rank4", "plain"] {
            let digest = worker.shelf.put(&blob(name));
            serves(&worker, name, digest).await;
            if !worker.resident().await.contains(&pinned) {
                return;
            }
        }
        assert!(round < 2, "still there after its pin ended");
    }
}

#[tokio::test]
async fn pins_beyond_their_part_of_the_slots_are_refused_with_the_numbers() {
    let (one, other) = (bytes_of("rank8").await, bytes_of("rank4").await);
    let budget = 2 * (one + other) - 2;
    let worker = TestWorker::start(Settings { adapter_memory_bytes: budget, ..settings() }).await;
    let (first, second) = (worker.shelf.put(&blob("rank8")), worker.shelf.put(&blob("rank4")));
    worker.pin(first).await.unwrap();
    let fault = worker.pin(second).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "pin_budget"));
    for number in [one, other, budget / 2] {
        assert!(fault.message.contains(&number.to_string()), "{number} in {fault}");
    }
    // The refused one serves all the same, and the place is free after an unpin.
    serves(&worker, "rank4", second).await;
    assert!(worker.unpin(first).await);
    assert_eq!(worker.pin(second).await, Ok(other));
}

#[tokio::test]
async fn pins_that_cannot_be_are_answered_and_leave_nothing() {
    let worker = TestWorker::start(settings()).await;
    assert_eq!(worker.pin(Digest::of(b"gone")).await.unwrap_err().kind, Kind::NotFound);
    let wrong = Digest::of(&blob("rank8"));
    worker.shelf.put_as(wrong, &blob("rank4"));
    assert_eq!(worker.pin(wrong).await.unwrap_err().kind, Kind::Corrupt);
    // One that is taken back before its adapter came.
    worker.shelf.hold();
    let digest = worker.shelf.put(&blob("rank16"));
    let waiting = worker.pin(digest);
    let takes_back = async {
        worker.shelf.held(1).await;
        assert!(worker.unpin(digest).await);
    };
    let (answer, ()) = tokio::join!(waiting, takes_back);
    assert_eq!(answer.unwrap_err().kind, Kind::Conflict);
    worker.shelf.let_go();
    worker.shelf.held(0).await;
    assert!(worker.residency().await.adapters.iter().all(|adapter| !adapter.pinned));
    let short = weft_proto::worker::v1::PinRequest { digest: b"short".to_vec().into() };
    assert_eq!(worker.client.clone().pin(short).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn an_operator_evicts_what_nobody_uses_from_either_tier() {
    let bytes = bytes_of("rank8").await;
    let worker =
        TestWorker::start(Settings { adapter_memory_bytes: bytes, adapter_prepared_bytes: bytes, ..settings() }).await;
    let (first, second) = (worker.shelf.put(&blob("rank8")), worker.shelf.put(&blob("rank4")));
    serves(&worker, "rank8", first).await;
    serves(&worker, "rank4", second).await;
    assert_eq!(worker.residency().await.prepared[0].digest, first.to_vec());
    assert_eq!(worker.evict(first).await, Ok(bytes));
    assert!(worker.evict(second).await.unwrap() > 0);
    assert_eq!(worker.evict(second).await, Ok(0), "it is not here any more");
    let now = worker.residency().await;
    assert_eq!((now.slot_bytes_used, now.prepared_bytes_used), (0, 0));
    serves(&worker, "rank8", first).await;
    assert_eq!(worker.shelf.asked(&first), 2);

    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.pin(digest).await.unwrap();
    let fault = worker.evict(digest).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Conflict, "adapter_in_use"));
    worker.unpin(digest).await;
    let mut busy = false;
    for _ in 0..50 {
        let mut stream = worker.client.clone().generate(request(Some(digest), HELLO, 240)).await.unwrap().into_inner();
        // The request may be done before we evict; not every time.
        let evicted = worker.evict(digest).await;
        busy |= evicted.as_ref().is_err_and(|fault| fault.message.contains("1 requests"));
        while stream.message().await.unwrap().is_some() {}
    }
    assert!(busy, "a busy adapter was never refused");
}

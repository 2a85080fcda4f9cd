//! Adapters on their way into slots and out of them: loads, eviction, budgets, wrong bytes, lost daemons.

use crate::support::{ADAPTERS, HELLO, TestWorker, blob, golden_greedy, request, settings};
use weft_fault::Kind;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;
use weft_worker::Settings;

/// Slot bytes of these adapters together, as the worker counts them.
async fn slot_bytes(names: &[&str]) -> u64 {
    let worker = TestWorker::start(settings()).await;
    for name in names {
        let digest = worker.shelf.put(&blob(name));
        worker.generate(request(Some(digest), HELLO, 1)).await.unwrap();
    }
    worker.load().await.slot_bytes_used
}

#[tokio::test]
async fn requests_for_one_adapter_load_it_once_and_others_do_not_wait() {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut client = worker.client.clone();
            tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 4)).await })
        })
        .collect();
    let load = worker.load_when(|load| load.loading_requests == 4).await;
    assert_eq!((load.running_requests, load.queued_requests), (0, 0));
    // The base is served meanwhile: no head-of-line blocking.
    assert_eq!(worker.generate(request(None, HELLO, 16)).await.unwrap().ids(), golden_greedy(None));
    assert_eq!(worker.load().await.loading_requests, 4);
    worker.shelf.let_go();
    for call in waiting {
        let answer = crate::support::Answer::read(call.await.unwrap().unwrap().into_inner()).await.unwrap();
        assert_eq!(answer.ids(), golden_greedy(Some("rank8"))[..4]);
        assert!(answer.started.adapter_wait_us > 0 && answer.started.queue_us >= answer.started.adapter_wait_us);
    }
    assert_eq!(worker.shelf.asked(&digest), 1);
    worker.shelf.held(0).await;
    assert_eq!(worker.resident().await, [digest]);
}

#[tokio::test]
async fn idle_adapters_make_room_under_a_small_budget() {
    let names = ["rank4", "rank8", "plain", "rslora"];
    let largest_two = slot_bytes(&["rank8", "plain"]).await;
    let worker = TestWorker::start(Settings { adapter_memory_bytes: largest_two, ..settings() }).await;
    let digests: Vec<Digest> = names.iter().map(|name| worker.shelf.put(&blob(name))).collect();
    for round in 0..3 {
        for (name, digest) in names.iter().zip(&digests) {
            let answer = worker.generate(request(Some(*digest), HELLO, 16)).await.unwrap();
            assert_eq!(answer.ids(), golden_greedy(Some(name)), "round {round}");
            let load = worker.load().await;
            assert!(load.slot_bytes_used <= load.slot_bytes_max, "{load:?}");
            assert!(worker.resident().await.contains(digest));
        }
    }
    let asked: usize = digests.iter().map(|digest| worker.shelf.asked(digest)).sum();
    assert!(asked > names.len(), "nothing was evicted: {asked} loads");
}

#[tokio::test]
async fn a_busy_adapter_gives_way_to_one_that_waits() {
    let one = slot_bytes(&["rank8"]).await;
    let worker =
        TestWorker::start(Settings { adapter_memory_bytes: one + 100, running_requests_max: 4, ..settings() }).await;
    let (hot, cold) = (worker.shelf.put(&blob("rank8")), worker.shelf.put(&blob("rank4")));
    // Two requests of the hot adapter run at any time, until the cold one was served.
    let stop = tokio_util::sync::CancellationToken::new();
    let heat: Vec<_> = (0..2)
        .map(|_| {
            let (mut client, stop) = (worker.client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut served = 0;
                while !stop.is_cancelled() {
                    let stream = client.generate(request(Some(hot), HELLO, 20)).await.unwrap().into_inner();
                    assert_eq!(
                        crate::support::Answer::read(stream).await.unwrap().ids()[..16],
                        golden_greedy(Some("rank8"))
                    );
                    served += 1;
                }
                served
            })
        })
        .collect();
    worker.load_when(|load| load.running_requests == 2).await;
    let answer = worker.generate(request(Some(cold), HELLO, 16)).await.unwrap();
    assert_eq!(answer.ids(), golden_greedy(Some("rank4")));
    stop.cancel();
    for task in heat {
        assert!(task.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn an_adapter_that_can_never_fit_is_refused_with_both_numbers() {
    let bytes = slot_bytes(&["rank64"]).await;
    let worker = TestWorker::start(Settings { adapter_memory_bytes: bytes - 1, ..settings() }).await;
    let digest = worker.shelf.put(&blob("rank64"));
    let fault = worker.generate(request(Some(digest), HELLO, 4)).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "adapter_too_large"));
    for number in [bytes, bytes - 1] {
        assert!(fault.message.contains(&number.to_string()), "{number} in {fault}");
    }
    // By a factor: not even packed.
    let tiny = TestWorker::start(Settings { adapter_memory_bytes: 1000, ..settings() }).await;
    let digest = tiny.shelf.put(&blob("rank64"));
    assert_eq!(tiny.generate(request(Some(digest), HELLO, 4)).await.unwrap_err().code, "adapter_too_large");
    assert_eq!(tiny.generate(request(None, HELLO, 16)).await.unwrap().ids(), golden_greedy(None));
}

#[tokio::test]
async fn wrong_bytes_behind_a_right_name_fail_and_never_get_a_slot() {
    let worker = TestWorker::start(settings()).await;
    let right = Digest::of(&blob("rank8"));
    worker.shelf.put_as(right, &blob("rank4"));
    let fault = worker.generate(request(Some(right), HELLO, 4)).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Corrupt, "wrong_adapter_bytes"));
    assert!(fault.message.contains(&Digest::of(&blob("rank4")).to_string()));
    let mut flipped = blob("rank8");
    *flipped.last_mut().unwrap() ^= 1;
    worker.shelf.put_as(right, &flipped);
    assert_eq!(worker.generate(request(Some(right), HELLO, 4)).await.unwrap_err().kind, Kind::Corrupt);
    for broken in [&b""[..], b"no adapter at all", &blob("rank8")[..500]] {
        worker.shelf.put_as(right, broken);
        let fault = worker.generate(request(Some(right), HELLO, 4)).await.unwrap_err();
        // What cannot even be read is still, first of all, not what its name says. An empty file cannot be mapped.
        let expected = if broken.is_empty() { "adapter_unavailable" } else { "wrong_adapter_bytes" };
        assert!([expected, "wrong_adapter_bytes"].contains(&fault.code.as_str()), "{fault}");
    }
    assert_eq!(worker.resident().await, []);
    worker.shelf.put_as(right, &blob("rank8"));
    assert_eq!(worker.generate(request(Some(right), HELLO, 16)).await.unwrap().ids(), golden_greedy(Some("rank8")));
    worker.shelf.held(0).await;
}

#[tokio::test]
async fn an_adapter_that_makes_logits_not_finite_fails_alone() {
    // Infinity in place of the largest weights: a registry refuses such a package; a worker must survive it.
    let mut bad = blob("rank8");
    let data = bad.len() - 64;
    for value in bad[data..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::INFINITY.to_le_bytes());
    }
    let worker = TestWorker::start(settings()).await;
    let (bad, good) = (worker.shelf.put(&bad), worker.shelf.put(&blob("rank8")));
    // Both resident first, so that the two run together.
    let fault = worker.generate(request(Some(bad), HELLO, 8)).await.unwrap_err();
    assert!(fault.message.contains("finite"), "{fault}");
    worker.generate(request(Some(good), HELLO, 1)).await.unwrap();
    let (failed, fine) =
        tokio::join!(worker.generate(request(Some(bad), HELLO, 8)), worker.generate(request(Some(good), HELLO, 16)));
    assert_eq!(failed.unwrap_err().kind, Kind::Internal);
    assert_eq!(fine.unwrap().ids(), golden_greedy(Some("rank8")));
    assert_eq!(worker.load().await.kv_blocks_used, 0);
}

#[tokio::test]
async fn a_failed_load_fails_only_its_requests() {
    let worker = TestWorker::start(settings()).await;
    let there = worker.shelf.put(&blob("plain"));
    let (missing, fine) = tokio::join!(
        worker.generate(request(Some(Digest::of(b"gone")), HELLO, 4)),
        worker.generate(request(Some(there), HELLO, 16))
    );
    let fault = missing.unwrap_err();
    assert_eq!(fault.kind, Kind::NotFound);
    assert!(fault.message.contains(&Digest::of(b"gone").to_string()), "{fault}");
    assert_eq!(fine.unwrap().ids(), golden_greedy(Some("plain")));
}

#[tokio::test]
async fn a_broken_lease_stream_is_taken_up_again() {
    let worker = TestWorker::start(settings()).await;
    let first = worker.shelf.put(&blob("rank4"));
    worker.generate(request(Some(first), HELLO, 1)).await.unwrap();
    worker.shelf.hold();
    let digest = worker.shelf.put(&blob("rank8"));
    let mut client = worker.client.clone();
    let call = tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 16)).await });
    worker.shelf.held(1).await;
    worker.shelf.cut();
    worker.shelf.let_go();
    let answer = crate::support::Answer::read(call.await.unwrap().unwrap().into_inner()).await.unwrap();
    assert_eq!(answer.ids(), golden_greedy(Some("rank8")));
    assert_eq!(worker.shelf.hellos(), ["worker-t", "worker-t"]);
}

#[tokio::test]
async fn a_load_that_takes_too_long_is_given_up_and_its_lease_given_back() {
    let worker = TestWorker::start(Settings { adapter_load_timeout_s: 1, ..settings() }).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let fault = worker.generate(request(Some(digest), HELLO, 4)).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("adapter_load_timeout_s"), "{fault}");
    worker.shelf.let_go();
    worker.shelf.held(0).await;
    assert_eq!(worker.generate(request(Some(digest), HELLO, 16)).await.unwrap().ids(), golden_greedy(Some("rank8")));
}

#[tokio::test]
async fn residency_names_adapters_bytes_and_users() {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    let mut client = worker.client.clone();
    let mut most_users = 0;
    // The request may be done before we look; not every time.
    for _ in 0..20 {
        let mut stream = client.generate(request(Some(digest), HELLO, 240)).await.unwrap().into_inner();
        most_users = most_users.max(worker.users(&digest).await);
        while stream.message().await.unwrap().is_some() {}
        assert_eq!(worker.users(&digest).await, 0);
    }
    assert_eq!(most_users, 1);
    let residency = client.list_residency(pb::ListResidencyRequest {}).await.unwrap().into_inner();
    assert_eq!((residency.adapters.len(), residency.generation), (1, 1));
    assert_eq!(residency.adapters[0].bytes, residency.slot_bytes_used);
    assert_eq!(residency.slot_bytes_used, worker.load().await.slot_bytes_used);
}

#[tokio::test]
async fn more_adapters_than_room_are_all_served_from_a_full_queue() {
    let room = slot_bytes(&["rank64", "rank16"]).await;
    let settings = Settings { adapter_memory_bytes: room, adapter_loads_max: 3, running_requests_max: 6, ..settings() };
    let worker = TestWorker::start(settings).await;
    let calls: Vec<_> = (0..72)
        .map(|index| {
            let name = ADAPTERS[index % ADAPTERS.len()];
            let (mut client, digest) = (worker.client.clone(), worker.shelf.put(&blob(name)));
            tokio::spawn(async move {
                let stream = client.generate(request(Some(digest), HELLO, 16)).await.unwrap().into_inner();
                (name, crate::support::Answer::read(stream).await.unwrap().ids())
            })
        })
        .collect();
    for call in calls {
        let (name, ids) = call.await.unwrap();
        assert_eq!(ids, golden_greedy(Some(name)), "{name}");
    }
    let load = worker.load().await;
    assert_eq!((load.running_requests, load.queued_requests, load.loading_requests, load.kv_blocks_used), (0, 0, 0, 0));
}

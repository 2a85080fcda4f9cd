//! Adapters that find no room on a device: they run from main memory until they do.

use std::future::Future;
use std::time::Duration;

use crate::support::{ADAPTERS, HELLO, TestWorker, blob, golden_greedy, request, settings};
use tokio::time::timeout;
use weft_types::Digest;
use weft_worker::Settings;

const PATIENCE: Duration = Duration::from_secs(120);
/// 16 positions of the tiny model in f32: 3 layers of 2 * 32 numbers.
const BLOCK: u64 = 16 * 3 * 2 * 32 * 4;
/// Takes all that adapters may take.
const LARGE: &str = "rank64";
/// Find no room beside it.
const SMALL: [&str; 2] = ["all_linear", "rank16"];

/// Room for one adapter of two: the other one is in use.
fn one_at_a_time(device: &str) -> Settings {
    // Ranks have all of some matrices, in blocks half as large.
    let (devices, blocks) = if device == "shim" { (1.0, 20) } else { (2.0, 26) };
    Settings {
        device: device.into(),
        device_memory_fraction: 0.0625 / devices,
        device_rank_max: 64,
        kv_memory_bytes: 4 << 20,
        adapter_memory_bytes: blocks * BLOCK,
        adapter_stream_bytes: 1 << 20,
        running_requests_max: 8,
        step_tokens_max: 32,
        ..settings()
    }
}

fn shelve(worker: &TestWorker, name: &str) -> Digest {
    worker.shelf.put(&blob(name))
}

async fn ask(worker: &TestWorker, name: &'static str, digest: Digest) {
    let answer = worker.generate(request(Some(digest), HELLO, 8)).await.unwrap();
    assert_eq!(answer.ids(), golden_greedy(Some(name))[..8], "{name}");
    assert_eq!(answer.finished.adapter_digest, digest.to_vec());
}

/// Runs beside a request with the large adapter that ends when `beside` does.
async fn beside_a_large_one(worker: &TestWorker, beside: impl Future<Output = ()>) {
    let large = shelve(worker, LARGE);
    let running = async {
        // One after the other: the adapter is never idle for longer than a step.
        loop {
            let answer = worker.generate(request(Some(large), HELLO, 200)).await.unwrap();
            assert_eq!(answer.ids()[..8], golden_greedy(Some(LARGE))[..8]);
        }
    };
    let asked = async {
        while worker.users(&large).await == 0 {
            tokio::task::yield_now().await;
        }
        beside.await;
    };
    let done = timeout(PATIENCE, async {
        tokio::select! {
            () = running => {}
            () = asked => {}
        }
    });
    assert!(done.await.is_ok(), "{:?}", worker.load().await);
}

fn metric(worker: &TestWorker, name: &str) -> f64 {
    let families = worker.metrics.gather();
    let metric = &families.iter().find(|family| family.name() == name).unwrap().get_metric()[0];
    metric.get_counter().get_value().max(metric.get_gauge().get_value())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_answer_while_others_have_all_the_room() {
    for device in ["shim", "shim*2"] {
        let worker = TestWorker::start(one_at_a_time(device)).await;
        let large = Digest::of(&blob(LARGE));
        beside_a_large_one(&worker, async {
            let asked = SMALL.map(|name| ask(&worker, name, shelve(&worker, name)));
            futures::future::join_all(asked).await;
            assert!(worker.users(&large).await > 0, "the large one did not have to end for it");
        })
        .await;
        assert!(metric(&worker, "worker_adapter_streams_total") >= 1.0);
        worker.load_when(|load| load.running_requests == 0).await;
    }
}

/// The same without it: who comes later waits until the one that runs has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_bytes_for_it_adapters_wait_for_those_that_run() {
    let worker = TestWorker::start(Settings { adapter_stream_bytes: 0, ..one_at_a_time("shim") }).await;
    let (large, small) = (shelve(&worker, LARGE), shelve(&worker, SMALL[0]));
    let first = async {
        worker.generate(request(Some(large), HELLO, 60)).await.unwrap();
        std::time::Instant::now()
    };
    let second = async {
        while worker.users(&large).await == 0 {
            tokio::task::yield_now().await;
        }
        ask(&worker, SMALL[0], small).await;
        std::time::Instant::now()
    };
    let (first, second) = timeout(PATIENCE, async { tokio::join!(first, second) }).await.unwrap();
    assert!(first < second);
    assert_eq!(metric(&worker, "worker_adapter_streams_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_on_in_a_slot_once_there_is_room() {
    let worker = TestWorker::start(one_at_a_time("shim")).await;
    let (large, small) = (shelve(&worker, LARGE), shelve(&worker, SMALL[0]));
    let expected = TestWorker::start(settings()).await;
    let digest = expected.shelf.put(&blob(SMALL[0]));
    let expected = expected.generate(request(Some(digest), HELLO, 120)).await.unwrap();
    let first = worker.generate(request(Some(large), HELLO, 30));
    let second = async {
        while worker.users(&large).await == 0 {
            tokio::task::yield_now().await;
        }
        worker.generate(request(Some(small), HELLO, 120)).await.unwrap()
    };
    let seen = async {
        let is_small = |digest: &[u8]| digest == &small.as_bytes()[..];
        let (mut as_streamed, mut in_slot) = (0, 0);
        while in_slot == 0 {
            let residency = worker.residency().await;
            let users = |adapters: &[weft_proto::worker::v1::ResidentAdapter]| {
                adapters.iter().find(|adapter| is_small(&adapter.digest)).map_or(0, |adapter| adapter.users)
            };
            in_slot = users(&residency.adapters);
            as_streamed = as_streamed.max(users(&residency.prepared));
            tokio::task::yield_now().await;
        }
        (as_streamed, in_slot)
    };
    let (first, second, (as_streamed, in_slot)) =
        timeout(PATIENCE, async { tokio::join!(first, second, seen) }).await.unwrap();
    assert_eq!(first.unwrap().ids()[..8], golden_greedy(Some(LARGE))[..8]);
    assert_eq!(second.ids(), expected.ids(), "one answer, whose tokens came from main memory and then from a slot");
    assert_eq!((as_streamed, in_slot), (1, 1));
    worker.load_when(|load| load.running_requests == 0).await;
    assert_eq!(worker.users(&small).await, 0, "its lease ended where it was by then");
    assert_eq!(metric(&worker, "worker_adapters_streamed"), 0.0);
}

/// Clients that leave, adapters that nobody wants any more: nothing stays behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_streamed_for_somebody_who_left_is_laid_aside() {
    let worker = TestWorker::start(Settings { adapter_prepared_bytes: 1 << 20, ..one_at_a_time("shim") }).await;
    let small = shelve(&worker, SMALL[0]);
    beside_a_large_one(&worker, async {
        let mut client = worker.client.clone();
        let stream = client.generate(request(Some(small), HELLO, 200)).await.unwrap();
        while metric(&worker, "worker_adapters_streamed") < 1.0 {
            tokio::task::yield_now().await;
        }
        drop(stream);
        while metric(&worker, "worker_adapters_streamed") > 0.0 {
            tokio::task::yield_now().await;
        }
        let residency = worker.residency().await;
        let kept = residency.prepared.iter().find(|adapter| adapter.digest[..] == small.as_bytes()[..]);
        assert_eq!(kept.map(|adapter| adapter.users), Some(0), "packed, for the next one who asks");
        ask(&worker, SMALL[0], small).await;
        assert_eq!(worker.shelf.asked(&small), 1, "it came once");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_adapters_beside_little_room_are_all_answered_by_whom_they_asked() {
    let settings = Settings { adapter_prepared_bytes: 128 << 10, adapter_loads_max: 3, ..one_at_a_time("shim") };
    let worker = TestWorker::start(settings).await;
    for round in 0..2 {
        let mut names = ADAPTERS;
        names.rotate_left(5 * round);
        let asked = names.map(|name| ask(&worker, name, shelve(&worker, name)));
        timeout(PATIENCE, futures::future::join_all(asked)).await.unwrap();
    }
    assert!(metric(&worker, "worker_adapter_streams_total") >= 2.0);
    let residency = worker.residency().await;
    assert!(residency.slot_bytes_used <= residency.slot_bytes_max, "{residency:?}");
}

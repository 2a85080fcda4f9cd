//! A device's blocks: keys and values of running requests, adapters, and what is kept for whoever comes back share them.

use std::time::Duration;

use crate::support::{ADAPTERS, Answer, HELLO, TestWorker, blob, golden_greedy, request, settings};
use tokio::time::timeout;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;
use weft_worker::Settings;

const PATIENCE: Duration = Duration::from_secs(120);
/// 16 positions of the tiny model in f32: 3 layers of 2 * 32 numbers.
const BLOCK: u64 = 16 * 3 * 2 * 32 * 4;
/// Blocks that adapters never take.
const KV_BLOCKS: u64 = 10;
/// Blocks that adapters may take.
const ADAPTER_BLOCKS: u64 = 30;

fn small_pool() -> Settings {
    Settings {
        device: "shim".into(),
        device_memory_fraction: 0.0625,
        device_rank_max: 64,
        kv_memory_bytes: KV_BLOCKS * BLOCK,
        adapter_memory_bytes: ADAPTER_BLOCKS * BLOCK,
        running_requests_max: 8,
        step_tokens_max: 32,
        ..settings()
    }
}

fn shelve(worker: &TestWorker, names: &[&'static str]) -> Vec<(&'static str, Digest)> {
    names.iter().map(|name| (*name, worker.shelf.put(&blob(name)))).collect()
}

async fn ask(worker: &TestWorker, adapters: &[(&'static str, Digest)]) {
    let calls = adapters.iter().map(|&(name, digest)| async move {
        let answer = worker.generate(request(Some(digest), HELLO, 4)).await.unwrap();
        assert_eq!(answer.ids(), golden_greedy(Some(name))[..4], "{name}");
    });
    timeout(PATIENCE, futures::future::join_all(calls)).await.unwrap();
}

/// Prompts of 60 tokens that differ from their first one on.
fn prompts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number} ").repeat(40)[..60].to_owned()).collect()
}

/// The base's answers to all of them at once, of so many tokens.
async fn answers(worker: &TestWorker, prompts: &[String], tokens: u32) -> Vec<Vec<u32>> {
    let calls = prompts.iter().map(|prompt| async { worker.generate(request(None, prompt, tokens)).await.unwrap() });
    let answers: Vec<Answer> = timeout(PATIENCE, futures::future::join_all(calls)).await.unwrap();
    answers.iter().map(Answer::ids).collect()
}

fn metric(worker: &TestWorker, name: &str) -> f64 {
    let families = worker.metrics.gather();
    let metric = &families.iter().find(|family| family.name() == name).unwrap().get_metric()[0];
    metric.get_counter().get_value().max(metric.get_gauge().get_value())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_take_the_blocks_of_adapters_that_nobody_runs_with() {
    let worker = TestWorker::start(small_pool()).await;
    let adapters = shelve(&worker, &ADAPTERS[..9]);
    ask(&worker, &adapters).await;
    let idle = worker.load_when(|load| load.running_requests == 0).await;
    let held = metric(&worker, "worker_adapter_blocks");
    assert!(held >= 20.0, "{held} blocks");
    assert_eq!(idle.kv_blocks_max, KV_BLOCKS + ADAPTER_BLOCKS, "requests may have what idle adapters have");
    let evicted = metric(&worker, "worker_adapter_evictions_total");

    // Together they need four times what adapters never take.
    let (prompts, tokens) = (prompts(8), 20);
    let (found, most) = tokio::join!(
        answers(&worker, &prompts, tokens),
        timeout(PATIENCE, worker.load_when(|load| load.kv_blocks_used > 2 * KV_BLOCKS))
    );
    assert!(most.is_ok());
    let on_processor = TestWorker::start(settings()).await;
    assert_eq!(found, answers(&on_processor, &prompts, tokens).await);
    assert!(metric(&worker, "worker_adapter_evictions_total") > evicted);
    assert_eq!(worker.load().await.preemptions_total, 0, "there was room for all of them");

    // And back again.
    ask(&worker, &adapters).await;
    assert!(metric(&worker, "worker_adapter_blocks") >= 20.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_take_blocks_that_are_kept_for_a_prefix() {
    let worker = TestWorker::start(small_pool()).await;
    let prompts = prompts(12);
    let first = answers(&worker, &prompts, 4).await;
    let idle = worker.load_when(|load| load.running_requests == 0).await.kv_blocks_idle;
    assert!(idle > KV_BLOCKS, "{idle} blocks are kept");
    ask(&worker, &shelve(&worker, &ADAPTERS)).await;
    assert!(metric(&worker, "worker_kv_blocks_reclaimed_total") > 0.0);
    assert!(metric(&worker, "worker_adapter_blocks") > 0.0);
    let load = worker.load().await;
    let adapters: u64 = worker.residency().await.adapters.iter().map(|adapter| adapter.bytes / BLOCK).sum();
    assert!(load.kv_blocks_idle + adapters <= KV_BLOCKS + ADAPTER_BLOCKS, "{load:?}");
    assert_eq!(first, answers(&worker, &prompts, 4).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_waits_for_blocks_is_not_overtaken_by_requests_for_ever() {
    let worker = TestWorker::start(small_pool()).await;
    let large = shelve(&worker, &["rank64"]);
    // Base requests without end, each as soon as another ends, always more than the pool holds.
    let prompts = prompts(12);
    let endless = prompts.iter().map(|prompt| async {
        loop {
            worker.generate(request(None, prompt, 40)).await.unwrap();
        }
    });
    let flood = futures::future::join_all(endless);
    let asked = async {
        worker.load_when(|load| load.kv_blocks_used > KV_BLOCKS + ADAPTER_BLOCKS / 2).await;
        ask(&worker, &large).await;
    };
    let done = timeout(PATIENCE, async {
        tokio::select! {
            _ = flood => unreachable!("it has no end"),
            () = asked => {}
        }
    });
    assert!(done.await.is_ok(), "{:?}", worker.load().await);
}

/// Whatever comes together, in any order: everybody is answered, by who was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_adapters_that_need_more_than_all_blocks_take_turns() {
    let worker = TestWorker::start(Settings { adapter_prepared_bytes: 8 * BLOCK, ..small_pool() }).await;
    let adapters = shelve(&worker, &ADAPTERS);
    let prompts = prompts(10);
    let expected = answers(&TestWorker::start(settings()).await, &prompts, 12).await;
    for _ in 0..2 {
        let (found, ()) = tokio::join!(answers(&worker, &prompts, 12), ask(&worker, &adapters));
        assert_eq!(found, expected);
    }
    let load = worker.load_when(|load: &pb::GetLoadResponse| load.running_requests == 0).await;
    assert_eq!((load.kv_blocks_used, load.kv_blocks_max), (0, KV_BLOCKS + ADAPTER_BLOCKS));
}

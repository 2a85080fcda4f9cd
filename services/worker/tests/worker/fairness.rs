//! One tenant cycles 200 cold adapters through a real worker; what the others get is counted in steps and requests.

use std::sync::Arc;

use crate::support::{Answer, HELLO, TestWorker, blob, request, settings};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;
use weft_worker::Settings;

const CALM: usize = 3;
const CALM_REQUESTS: usize = 40;
const COLD: usize = 200;
/// Requests of the other tenant that are here at the same time.
const AT_ONCE: usize = 60;
const RUNNING: usize = 4;

/// An adapter like rank4, but no other's: a few bits of one weight tell them apart.
fn variant(number: usize) -> Vec<u8> {
    let mut blob = blob("rank4");
    let low_bits = blob.len() - 4;
    blob[low_bits] = number as u8;
    blob
}

fn ask(worker: &TestWorker, tenant: &str, adapter: Digest, turns: &Arc<Semaphore>) -> JoinHandle<Answer> {
    let (mut client, turns) = (worker.client.clone(), Arc::clone(turns));
    let request = pb::GenerateRequest { tenant: tenant.into(), ..request(Some(adapter), HELLO, 16) };
    tokio::spawn(async move {
        let _turn = turns.acquire().await.unwrap();
        Answer::read(client.generate(request).await.unwrap().into_inner()).await.unwrap()
    })
}

/// The steps in which these requests began, in order.
async fn steps(calls: Vec<JoinHandle<Answer>>) -> Vec<u64> {
    let mut steps = Vec::new();
    for call in calls {
        steps.push(call.await.unwrap().finished.first_step);
    }
    steps.sort_unstable();
    steps
}

/// Slot bytes of one such adapter.
async fn variant_bytes() -> u64 {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&variant(0));
    worker.generate(request(Some(digest), HELLO, 1)).await.unwrap();
    worker.load().await.slot_bytes_used
}

/// Steps in which the requests of the calm tenants and those of the other tenant began. The other one asks 200 times for
/// `adapters` adapters in turn.
async fn first_steps(adapters: usize) -> (Vec<Vec<u64>>, Vec<u64>) {
    let settings = Settings {
        running_requests_max: RUNNING,
        adapter_memory_bytes: 24 * variant_bytes().await,
        adapter_loads_max: 4,
        ..settings()
    };
    let worker = TestWorker::start(settings).await;
    let other: Vec<Digest> = (0..adapters).map(|number| worker.shelf.put(&variant(number))).collect();
    let own: Vec<Digest> = ["rank8", "plain", "rslora"].iter().map(|name| worker.shelf.put(&blob(name))).collect();
    // Nobody begins before all are here.
    worker.shelf.hold();
    let (few, all) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)));
    let others: Vec<_> = (0..COLD).map(|number| ask(&worker, "other", other[number % adapters], &few)).collect();
    worker.load_when(|load| load.loading_requests as usize == AT_ONCE).await;
    let calm: Vec<Vec<_>> = (0..CALM)
        .map(|who| (0..CALM_REQUESTS).map(|_| ask(&worker, &format!("calm-{who}"), own[who], &all)).collect())
        .collect();
    worker.load_when(|load| load.loading_requests as usize == AT_ONCE + CALM * CALM_REQUESTS).await;
    worker.shelf.let_go();
    let mut calm_steps = Vec::new();
    for calls in calm {
        calm_steps.push(steps(calls).await);
    }
    let other_steps = steps(others).await;
    let load = worker.load().await;
    assert_eq!((load.running_requests, load.queued_requests, load.loading_requests, load.kv_blocks_used), (0, 0, 0, 0));
    let loads: usize = other.iter().map(|digest| worker.shelf.asked(digest)).sum();
    assert!(loads >= adapters, "{loads} loads");
    (calm_steps, other_steps)
}

/// What happened while all wanted more than they got: from when every calm tenant's own adapter was there until the first
/// of them had little left to ask.
struct Crowd {
    /// Steps for each request of a calm tenant.
    wait: f64,
    /// Requests of each calm tenant, and of the other, that began.
    calm: Vec<usize>,
    other: usize,
}

async fn crowd(adapters: usize) -> Crowd {
    // A calm tenant's adapter may come so late that the others are done by then; not every time.
    for _ in 0..20 {
        let (calm, other) = first_steps(adapters).await;
        let from = calm.iter().map(|steps| steps[1]).max().unwrap();
        let to = calm.iter().map(|steps| steps[CALM_REQUESTS - 3]).min().unwrap();
        let begun = |steps: &[u64]| steps.iter().filter(|step| from < **step && **step <= to).count();
        let each: Vec<usize> = calm.iter().map(|steps| begun(steps)).collect();
        let all: usize = each.iter().sum();
        if all >= CALM * 10 {
            let wait = (to - from) as f64 * CALM as f64 / all as f64;
            return Crowd { wait, calm: each, other: begun(&other) };
        }
    }
    panic!("there was never a crowd");
}

#[tokio::test]
async fn a_tenant_that_cycles_200_cold_adapters_leaves_the_others_their_share_and_their_first_tokens() {
    let fair = crowd(1).await;
    let Crowd { wait, calm, other } = crowd(COLD).await;
    println!(
        "steps for each request: {wait:.1}, in a fair split {:.1}; begun {calm:?}, of the cycler {other}",
        fair.wait
    );
    assert!(wait <= 1.25 * fair.wait, "{wait} steps against {}", fair.wait);
    let mean = calm.iter().sum::<usize>() as f64 / CALM as f64;
    for begun in &calm {
        assert!((*begun as f64 - mean).abs() <= RUNNING as f64, "{calm:?}");
    }
    // One may be on its way at either end.
    assert!(other as f64 <= 1.25 * mean + 2.0, "the cycler began {other}, the calm tenants {calm:?}");
}

use super::*;
use crate::workers::view::Look;
use crate::workers::{Base, InFlight};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::transport::Endpoint;
use weft_proto::worker::v1 as pb;

fn pace() -> Pace {
    let second = Duration::from_secs(1);
    Pace { poll: second, relist: second, intervals_max: 3, forget: second }
}

fn now(pace: &Pace) -> Now<'_> {
    Now { at: Instant::now(), pace, prefill_tokens_per_s: None }
}

fn workers(count: u64) -> Vec<Arc<Worker>> {
    let channel = || Endpoint::from_static("http://nowhere").connect_lazy();
    (0..count).map(|id| Arc::new(Worker::new(WorkerId(id), format!("worker-{id}:1"), channel(), true))).collect()
}

fn see(worker: &Worker, load: pb::GetLoadResponse, holds: &[Digest]) {
    let held =
        |digest: &Digest| pb::ResidentAdapter { digest: digest.as_bytes().to_vec().into(), ..Default::default() };
    let look = Look {
        base: Some(Base { digest: Digest::of(b"base"), description: Arc::default() }),
        load,
        residency: pb::ListResidencyResponse { adapters: holds.iter().map(held).collect(), ..Default::default() },
    };
    worker.write(|view| view.see(look, Instant::now()));
}

fn idle() -> pb::GetLoadResponse {
    pb::GetLoadResponse { step_us: 10_000, kv_blocks_max: 100, ..Default::default() }
}

/// Where this many requests for the adapter go, if none of them ends.
fn spread(places: &Places, adapter: Option<&Digest>, count: u64) -> BTreeMap<u64, usize> {
    let base = Digest::of(b"base");
    let asked = Asked { base: &base, adapter, adapter_bytes: 2_000_000, prompt_tokens: 70, tried: &[], hits: &[] };
    let mut to = BTreeMap::new();
    for draw in 0..count {
        let pace = pace();
        let now = now(&pace);
        let worker = places.route(&asked, now, draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)).expect("somebody serves");
        std::mem::forget(InFlight::unasked(worker));
        *to.entry(worker.id.0).or_default() += 1;
    }
    to
}

#[tokio::test]
async fn requests_for_one_adapter_meet_at_its_home_and_go_to_one_more_when_it_is_busy() {
    let workers = workers(16);
    workers.iter().for_each(|worker| see(worker, idle(), &[]));
    let places = Places::new(workers.clone(), None);
    let adapter = Digest::of(b"a");
    assert_eq!(spread(&places, Some(&adapter), 2).len(), 1, "an idle home takes them");
    let all = spread(&places, Some(&adapter), 30);
    assert!((2..=4).contains(&all.len()), "a busy one shares with few: {all:?}");
    let homes: HashSet<u64> =
        (0..64u8).flat_map(|seed| spread(&places, Some(&Digest::of(&[seed])), 1).into_keys()).collect();
    assert!(homes.len() > 8, "homes of adapters are many: {homes:?}");
}

#[tokio::test]
async fn a_worker_that_holds_the_adapter_is_taken_while_waiting_there_is_shorter_than_a_load() {
    let workers = workers(2);
    let adapter = Digest::of(b"a");
    for holder in [0, 1] {
        see(&workers[holder], idle(), &[adapter]);
        see(&workers[1 - holder], idle(), &[]);
        assert_eq!(
            spread(&Places::new(workers.clone(), None), Some(&adapter), 1).into_keys().next(),
            Some(holder as u64)
        );
    }
    let busy = pb::GetLoadResponse { queued_requests: 40, running_requests: 32, ..idle() };
    see(&workers[0], busy, &[adapter]);
    see(&workers[1], idle(), &[]);
    assert_eq!(spread(&Places::new(workers.clone(), None), Some(&adapter), 1).into_keys().next(), Some(1));
}

#[tokio::test]
async fn requests_of_the_base_are_spread_evenly() {
    let workers = workers(8);
    workers.iter().for_each(|worker| see(worker, idle(), &[]));
    let all = spread(&Places::new(workers.clone(), None), None, 800);
    assert!(all.len() == 8 && all.values().all(|count| (60..=140).contains(count)), "{all:?}");
}

#[tokio::test]
async fn who_drains_has_failed_often_or_was_tried_gets_nothing_and_full_memory_counts() {
    let workers = workers(3);
    let base = Digest::of(b"base");
    see(&workers[0], pb::GetLoadResponse { draining: true, ..idle() }, &[]);
    see(&workers[1], idle(), &[]);
    see(&workers[2], pb::GetLoadResponse { kv_blocks_used: 100, ..idle() }, &[]);
    let places = Places::new(workers.clone(), None);
    assert_eq!(spread(&places, None, 1).into_keys().next(), Some(1), "memory is full at the other one");
    for _ in 0..5 {
        workers[1].failed(Instant::now());
    }
    let pace = pace();
    let now = now(&pace);
    for draw in 0..50 {
        let asked = Asked::of_base(&base);
        assert_eq!(places.route(&asked, now, draw).map(|worker| worker.id.0), Some(2));
        let asked = Asked { tried: &[WorkerId(2)], ..asked };
        assert!(places.route(&asked, now, draw).is_none());
        assert!(places.last_resort(&asked).is_some_and(|worker| worker.id.0 < 2), "better one of these than nobody");
    }
}

#[tokio::test]
async fn measured_loads_decide_how_far_bytes_are_away() {
    let rates = |disk, remote| bandwidth(&LoadRates { disk, remote });
    let unknown = rates(0.0, 0.0);
    let is_about = |a: f64, b: f64| (a - b).abs() <= b * 1e-9;
    assert!(is_about(unknown.disk, BANDWIDTH.disk) && is_about(unknown.remote, BANDWIDTH.remote), "{unknown:?}");
    // 100 ms from the disk and 400 ms from afar, for 10 MB: 300 ms of it before the disk.
    let known = rates(1e8, 2.5e7);
    assert!((1e7 / known.disk - 100.0).abs() < 1e-6 && (1e7 / known.remote - 300.0).abs() < 1e-6, "{known:?}");
    let odd = rates(1e7, 1e9);
    assert!(odd.remote > 0.0 && 1e7 / odd.remote > 0.0, "afar is never nearer: {odd:?}");
}

#[tokio::test]
async fn a_worker_that_has_the_beginning_of_the_prompt_is_taken_unless_it_is_busy() {
    let workers = workers(9);
    workers.iter().for_each(|worker| see(worker, idle(), &[]));
    let places = Places::new(workers.clone(), None);
    let base = Digest::of(b"base");
    let hits = [Hit { worker: WorkerId(6), tokens: 3000 }];
    let asked = Asked { prompt_tokens: 4000, hits: &hits, ..Asked::of_base(&base) };
    let route = |draw: u64| {
        let pace = pace();
        let now = now(&pace);
        places.route(&asked, now, draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)).expect("somebody serves").id
    };
    assert!((0..100).all(|draw| route(draw) == WorkerId(6)), "whatever chance says");
    let busy = InFlight::unasked(&workers[6]);
    assert!((0..100).all(|draw| route(draw) != WorkerId(6)), "another prompt before it costs more than it spares");
    drop(busy);
    // One that is gone is nobody's hit.
    let hits = [Hit { worker: WorkerId(77), tokens: 3000 }];
    let pace = pace();
    let now = now(&pace);
    assert!(places.route(&Asked { hits: &hits, ..asked }, now, 1).is_some());
}

#[tokio::test]
async fn a_worker_that_was_slow_while_it_began_or_has_said_nothing_lately_is_tried_when_others_are_busy() {
    let workers = workers(2);
    let busy = pb::GetLoadResponse { running_requests: 12, prefill_tokens_per_s: 20_000.0, ..idle() };
    see(&workers[0], busy, &[]);
    // Its first step took two seconds; what its prompts cost is not known any more.
    see(&workers[1], pb::GetLoadResponse { step_us: 2_000_000, ..idle() }, &[]);
    let places = Places::new(workers.clone(), None);
    let base = Digest::of(b"base");
    let asked = Asked { prompt_tokens: 2000, ..Asked::of_base(&base) };
    let pace = pace();
    for draw in 0..50 {
        let now = Now { prefill_tokens_per_s: Some(20_000.0), ..now(&pace) };
        assert_eq!(places.route(&asked, now, draw).map(|worker| worker.id.0), Some(1));
    }
}

//! A real Redis that does what it is asked, loses the answer, and cannot be reached for longer than charges stay open.

mod support;

use support::gateways::{Gateway, LIMIT, SLICE, TIMEOUT, alone, gateways_in, shared_by, use_at_once, use_up};
use support::proxy::{Proxy, Way};
use support::redis::Redis;
use support::{Time, at, reserve, units, until};
use weft_limits::gcra::Rate;
use weft_limits::{Charge, Ledger, RedisLedger, Whose, Wish};
use weft_types::Limits;

/// A time of day as Redis has it.
const BEGIN_US: u64 = 1_760_000_000_000_000;
/// Longer than a charge stays open, which is 30 s.
const OUTAGE_US: u64 = 40_000_000;

/// What has been used of the day's tokens, as whoever reaches Redis sees it.
async fn level(observer: &RedisLedger, time: &Time) -> f64 {
    let day = Rate { limit: LIMIT, period_us: 86_400_000_000 };
    let charge = format!("observer.{}.{}", time.now(), uuid::Uuid::new_v4());
    let look = reserve(&charge, vec![units("tokens_per_day", day, 0.0, 0, 0)]);
    observer.exchange("harbour", &look).await.unwrap().buckets[0].level.used
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_was_lost_before_a_long_outage_counts_once() {
    let (redis, time) = (Redis::start(), Time::starting(BEGIN_US));
    let address = Proxy::start(Way::To(redis.port)).await;
    let observer = RedisLedger::new(at(&redis.url(), TIMEOUT)).unwrap().with_clock(time.clock());
    until("connected", async || observer.exchange("nobody", &reserve("probe", vec![])).await.is_ok()).await;
    let gateways = gateways_in(&time, &address.url(), 1);
    let gateway = &gateways[0];
    shared_by(&gateways, 1).await;

    // Five are used, then fifteen reserved and 65 used: with the next call come 50 that are owed.
    let mut used = use_up(gateway, 5).await;
    assert!(use_at_once(gateway, 15, 65).await);
    used += 65;
    let before = level(&observer, &time).await;
    assert_eq!(before, SLICE as f64);
    address.set(Way::Unanswered(redis.port));
    used += use_up(gateway, 1).await;
    let asked = level(&observer, &time).await;
    assert_eq!(asked, before + 50.0 + SLICE as f64, "the call had its effect");

    address.set(Way::Shut);
    alone(&gateways).await;
    used += use_up(gateway, 3).await;
    time.pass(OUTAGE_US);
    address.set(Way::To(redis.port));
    shared_by(&gateways, 1).await;
    // Whatever is held and not used goes back; then the level is what was used, less what drained in the outage.
    gateway.limiter.sweep(true).await;
    let (after, drained) = (level(&observer, &time).await, OUTAGE_US as f64 * LIMIT as f64 / 86_400_000_000.0);
    assert!((after - used as f64).abs() <= drained + 1e-3, "{after} in the bucket, {used} used");
}

const KEYS: u64 = 70;
const QUEUE: u64 = 80;

/// A request that waits for its first token, with a key that has a queue limit of its own.
async fn waits(gateway: &Gateway, key: &str) -> Option<Charge> {
    let limits = Limits { queue_length: Some(QUEUE), ..Limits::default() };
    let whose = Whose { tenant: "harbour", limits: &limits, key, key_limits: &limits };
    gateway.limiter.reserve(&whose, &Wish { answers: 1, ..Wish::default() }).await.ok()
}

/// The first gateway has one request waiting with each of many keys. Whatever happens to Redis then, the second one gets no
/// more than the rest of the tenant's queue.
async fn assert_the_queue_is_kept(gateways: &[Gateway], time: &Time, happens: impl AsyncFnOnce()) {
    shared_by(gateways, 2).await;
    let mut waiting = Vec::new();
    for key in 0..KEYS {
        waiting.push(waits(&gateways[0], &format!("k{key:02}")).await.expect("there is room"));
    }
    happens().await;
    shared_by(gateways, 2).await;
    let before = waiting.len();
    while let Some(more) = waits(&gateways[1], "other").await {
        waiting.push(more);
    }
    assert_eq!(waiting.len() as u64, QUEUE, "{before} were waiting already");
    // And it stays so: what is in use is named again and again.
    for _ in 0..4 {
        time.pass(10_000_000);
        gateways[0].limiter.sweep(false).await;
        gateways[1].limiter.sweep(false).await;
    }
    assert!(waits(&gateways[0], "another").await.is_none());
    // What came free is free for all, whatever its place among the buckets.
    waiting.truncate(10);
    gateways[0].limiter.sweep(true).await;
    while waits(&gateways[1], "other").await.map(|more| waiting.push(more)).is_some() {}
    assert_eq!(waiting.len() as u64, QUEUE);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_many_keys_are_told_to_a_redis_that_came_back_empty() {
    let (redis, time) = (Redis::start(), Time::starting(BEGIN_US));
    let gateways = gateways_in(&time, &redis.url(), 2);
    let port = redis.port;
    let again = std::sync::Mutex::new(None);
    assert_the_queue_is_kept(&gateways, &time, async || {
        redis.kill();
        alone(&gateways).await;
        *again.lock().unwrap() = Some(Redis::start_on(port));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_many_keys_are_told_after_an_outage_in_which_their_charge_ended() {
    let (redis, time) = (Redis::start(), Time::starting(BEGIN_US));
    let address = Proxy::start(Way::To(redis.port)).await;
    let gateways = gateways_in(&time, &address.url(), 2);
    assert_the_queue_is_kept(&gateways, &time, async || {
        address.set(Way::Shut);
        alone(&gateways).await;
        time.pass(OUTAGE_US);
        address.set(Way::To(redis.port));
    })
    .await;
}

//! A real Redis that is killed, comes back empty, stops answering, or is not there yet.

mod support;

use support::gateways::{LIMIT, SLICE, gateways, shared_by, use_up};
use support::redis::Redis;

#[tokio::test(flavor = "multi_thread")]
async fn gateways_share_one_limit_and_few_calls() {
    let redis = Redis::start();
    let gateways = gateways(&redis.url(), 2);
    shared_by(&gateways, 2).await;
    let mut used = 0;
    for turn in 0..LIMIT + 10 {
        used += use_up(&gateways[turn as usize % 2], 1).await;
    }
    // One unit a minute and a half comes back.
    assert!((LIMIT - SLICE..=LIMIT + 1).contains(&used), "{used}");
    let calls: u64 = gateways.iter().map(|gateway| gateway.limiter.state().calls).sum();
    assert!(calls <= LIMIT / SLICE + 40, "{calls} calls for {used} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_killed_costs_a_slice_of_each_gateway_at_most_and_comes_back_knowing() {
    let redis = Redis::start();
    let gateways = gateways(&redis.url(), 2);
    shared_by(&gateways, 2).await;
    // Half a slice and a quarter of one are left.
    let mut used = use_up(&gateways[0], 690).await + use_up(&gateways[1], 195).await;
    assert_eq!(used, 885);
    let port = redis.kill();
    let mut alone = 0;
    for gateway in &gateways {
        let here = use_up(gateway, LIMIT).await;
        assert!(here <= SLICE, "{here}");
        alone += here;
    }
    assert!(alone > 0, "what was held in advance can be used");
    used += alone;
    assert!(gateways.iter().all(|gateway| gateway.limiter.state().away.is_some()));
    // Empty, but told by those who remember: nobody gets the whole limit again.
    let redis = Redis::start_on(port);
    shared_by(&gateways, 2).await;
    for gateway in &gateways {
        used += use_up(gateway, LIMIT).await;
    }
    assert!(used <= LIMIT + 2 * SLICE + 1, "{used}");
    assert!(used >= LIMIT - 2 * SLICE, "{used}");
    drop(redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_paused_is_given_up_within_its_time_and_taken_up_again() {
    let redis = Redis::start();
    let gateways = gateways(&redis.url(), 2);
    shared_by(&gateways, 2).await;
    let mut used = use_up(&gateways[0], 490).await + use_up(&gateways[1], 90).await;
    redis.pause();
    for gateway in &gateways {
        let alone = use_up(gateway, LIMIT).await;
        assert!(alone <= SLICE, "{alone}");
        used += alone;
    }
    let asked = gateways[0].limiter.state().calls;
    assert_eq!(use_up(&gateways[0], 5).await, 0);
    assert_eq!(gateways[0].limiter.state().calls, asked, "nobody waits for it again and again");
    redis.go_on();
    shared_by(&gateways, 2).await;
    for gateway in &gateways {
        used += use_up(gateway, LIMIT).await;
    }
    // It forgot nothing, and calls that it got to late counted once.
    assert!(used <= LIMIT + 2 * SLICE + 1, "{used}");
    assert!(used >= LIMIT - 4 * SLICE, "{used}");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_order_does_not_matter() {
    let port = Redis::start().kill();
    let gateways = gateways(&format!("redis://127.0.0.1:{port}"), 1);
    assert_eq!(use_up(&gateways[0], LIMIT).await, SLICE, "a slice, alone");
    let state = gateways[0].limiter.state();
    assert!(state.away.is_some() && state.admitted_alone == SLICE, "{state:?}");
    let redis = Redis::start_on(port);
    shared_by(&gateways, 1).await;
    assert_eq!(use_up(&gateways[0], LIMIT).await, LIMIT - SLICE, "what was used alone is owed");
    drop(redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_redis_forgot_is_sent_again() {
    let redis = Redis::start();
    let gateways = gateways(&redis.url(), 1);
    shared_by(&gateways, 1).await;
    assert_eq!(use_up(&gateways[0], 1).await, 1);
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.unwrap();
    assert_eq!(use_up(&gateways[0], 3 * SLICE).await, 3 * SLICE);
    assert_eq!(gateways[0].limiter.state().calls_failed, 0);
    // All keys of a tenant are in one hash slot, and every one of them ends by itself.
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    assert!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("weft:limits:{harbour}:") || key.starts_with("weft:limits:{gateways}:"), "{key}");
        let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut connection).await.unwrap();
        assert!(ttl > 0 || key.ends_with("}:epoch"), "{key} stays for ever");
    }
}

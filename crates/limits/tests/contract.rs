//! What every ledger promises: one suite, run on the one in memory and on a real Redis; and the same random calls played to
//! both give the same answers.

mod support;

use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use support::redis::Redis;
use support::{MINUTE, Time, after, at, floor, reserve, slots, units, until};
use weft_limits::gcra::Rate;
use weft_limits::ledger::{Ask, Beat, Error, Exchange, Outcome};
use weft_limits::{Ledger, MemoryLedger, RedisLedger};

/// A time of day as Redis has it.
const BEGIN_US: u64 = 1_760_000_000_000_000;

struct Under {
    ledger: Arc<dyn Ledger>,
    time: Time,
    _redis: Option<Redis>,
}

fn memory() -> Under {
    let time = Time::starting(BEGIN_US);
    Under { ledger: Arc::new(MemoryLedger::with_clock(time.clock())), time, _redis: None }
}

async fn redis() -> Under {
    let (redis, time) = (Redis::start(), Time::starting(BEGIN_US));
    let ledger = RedisLedger::new(at(&redis.url(), Duration::from_secs(10))).unwrap().with_clock(time.clock());
    let ledger = Arc::new(ledger);
    until("connected", async || ledger.beat("probe", Duration::from_millis(1)).await.is_ok()).await;
    Under { ledger, time, _redis: Some(redis) }
}

macro_rules! contract {
    ($($promise:ident),+ $(,)?) => {
        mod in_memory { $(#[tokio::test] async fn $promise() { super::$promise(super::memory()).await; })+ }
        mod in_redis { $(#[tokio::test] async fn $promise() { super::$promise(super::redis().await).await; })+ }
    };
}

contract!(
    all_or_nothing_over_many_buckets,
    a_charge_that_comes_again_changes_nothing,
    a_charge_that_ended_counts_once_and_holds_no_slots,
    settling_twice_gives_back_once,
    what_was_used_beyond_the_reservation_is_owed,
    what_was_used_alone_fills_a_bucket_at_most,
    a_refusal_still_takes_what_is_given_back,
    slots_are_shared_and_come_free,
    a_lower_limit_shuts_nobody_out_for_long,
    a_slice_is_as_large_as_there_is_room,
    a_ledger_that_forgot_everything_is_told,
    a_ledger_that_forgot_the_last_of_it_is_told_too,
    a_clock_that_goes_back_gives_nothing_away,
    tenants_have_nothing_to_do_with_each_other,
    open_charges_are_bounded,
    gateways_that_live_are_counted,
);

async fn call(under: &Under, exchange: Exchange) -> (Outcome, Vec<(u64, f64)>) {
    let answer = under.ledger.exchange("harbour", &exchange).await.unwrap();
    let buckets = answer.buckets.iter().map(|bucket| (bucket.granted, bucket.level.used));
    (answer.outcome, buckets.collect())
}

async fn all_or_nothing_over_many_buckets(under: Under) {
    let day = Rate { limit: 100, period_us: 86_400_000_000 };
    let asks = |requests, tokens, at_once| {
        vec![
            units("r", MINUTE, 0.0, requests, requests),
            units("t", day, 0.0, tokens, tokens),
            slots("c", 2, 0, at_once, at_once),
        ]
    };
    assert_eq!(
        call(&under, reserve("a", asks(10, 90, 1))).await,
        (Outcome::Granted, vec![(10, 10.0), (90, 90.0), (1, 1.0)])
    );
    // Tokens do not fit: no request is counted, no slot is held.
    let (outcome, buckets) = call(&under, reserve("b", asks(1, 20, 1))).await;
    assert_eq!(outcome, Outcome::Refused { ask: 1, retry_after_us: 8_640_000_000 });
    assert_eq!(buckets, [(0, 10.0), (0, 90.0), (0, 1.0)]);
    let (outcome, _) = call(&under, reserve("c", asks(1, 1, 2))).await;
    assert_eq!(outcome, Outcome::Refused { ask: 2, retry_after_us: 0 });
    let (outcome, buckets) = call(&under, reserve("d", asks(1, 10, 1))).await;
    assert_eq!((outcome, buckets), (Outcome::Granted, vec![(1, 11.0), (10, 100.0), (1, 2.0)]));
    under.time.pass(10_000_000);
    let (_, buckets) = call(&under, reserve("e", vec![units("r", MINUTE, 0.0, 0, 0)])).await;
    assert_eq!(buckets, [(0, 1.0)], "drains at its rate");
}

async fn a_charge_that_comes_again_changes_nothing(under: Under) {
    let asked = reserve("a", vec![units("t", MINUTE, 0.0, 30, 30), slots("c", 1, 0, 1, 1)]);
    let first = under.ledger.exchange("harbour", &asked).await.unwrap();
    under.time.pass(5_000_000);
    assert_eq!(under.ledger.exchange("harbour", &asked).await.unwrap(), first);
    let refused = reserve("b", vec![units("t", MINUTE, -1.0, 60, 60)]);
    let told = under.ledger.exchange("harbour", &refused).await.unwrap();
    assert!(matches!(told.outcome, Outcome::Refused { .. }));
    assert_eq!(
        under.ledger.exchange("harbour", &refused).await.unwrap(),
        told,
        "a refusal too, and its debts count once"
    );
    let (_, buckets) = call(&under, reserve("c", vec![units("t", MINUTE, 0.0, 0, 0)])).await;
    assert_eq!(buckets, [(0, 26.0)]);
}

async fn a_charge_that_ended_counts_once_and_holds_no_slots(under: Under) {
    let day = Rate { limit: 1_000, period_us: 86_400_000_000_000 };
    call(&under, reserve("a", vec![units("t", day, 0.0, 10, 10)])).await;
    let owes = units("t", day, -50.0, 20, 20);
    let alone = Ask::Units { bucket: "u".into(), rate: day, back: 0.0, alone: 30.0, at_least: 5, at_most: 5 };
    let asked = after("a", reserve("b", vec![owes, alone, slots("c", 2, 2, 2, 2)]));
    let first = under.ledger.exchange("harbour", &asked).await.unwrap();
    assert_eq!(first.outcome, Outcome::Granted);
    under.time.pass(40_000_000);
    assert_eq!(under.ledger.exchange("harbour", &asked).await.unwrap(), first);
    let look = vec![units("t", day, 0.0, 0, 0), units("u", day, 0.0, 0, 0), slots("c", 2, 0, 2, 2)];
    let levels = |told: Vec<(u64, f64)>| told.into_iter().map(|(_, level)| level.ceil()).collect::<Vec<_>>();
    assert_eq!(levels(call(&under, reserve("c", look)).await.1), [80.0, 35.0, 2.0], "its slots are free");
    // Whoever comes back late gives back what was not used.
    let back = after("b", reserve("d", vec![units("t", day, 20.0, 0, 0)]));
    assert_eq!(levels(call(&under, back).await.1), [60.0]);
    // It is forgotten in the end.
    let owes = reserve("e", vec![units("t", day, -50.0, 0, 0)]);
    assert_eq!(levels(call(&under, owes.clone()).await.1), [110.0]);
    under.time.pass(601_000_000);
    assert_eq!(levels(call(&under, owes).await.1), [160.0]);
}

async fn settling_twice_gives_back_once(under: Under) {
    call(&under, reserve("a", vec![units("t", MINUTE, 0.0, 40, 40), slots("c", 1, 0, 1, 1)])).await;
    let back = |charge: &str| after("a", reserve(charge, vec![units("t", MINUTE, 15.0, 0, 0), slots("c", 1, 0, 0, 0)]));
    assert_eq!(call(&under, back("settles")).await.1, [(0, 25.0), (0, 0.0)]);
    assert_eq!(call(&under, back("settles")).await.1, [(0, 25.0), (0, 0.0)], "the same call");
    assert_eq!(call(&under, back("again")).await.1, [(0, 25.0), (0, 0.0)], "another call that closes the same charge");
    let release = after("never", reserve("x", vec![units("t", MINUTE, 25.0, 0, 0)]));
    assert_eq!(call(&under, release).await.1, [(0, 25.0)], "a charge that never was");
    let more = after("again", reserve("y", vec![units("t", MINUTE, 99.0, 0, 0)]));
    assert_eq!(call(&under, more).await.1, [(0, 0.0)], "a bucket is never emptier than empty");
}

async fn what_was_used_beyond_the_reservation_is_owed(under: Under) {
    call(&under, reserve("a", vec![units("t", MINUTE, 0.0, 10, 10)])).await;
    let owed = after("a", reserve("b", vec![units("t", MINUTE, -70.0, 1, 1)]));
    assert_eq!(call(&under, owed).await, (Outcome::Refused { ask: 0, retry_after_us: 21_000_000 }, vec![(0, 80.0)]));
    under.time.pass(21_000_000);
    let (outcome, _) = call(&under, after("b", reserve("c", vec![units("t", MINUTE, 0.0, 1, 1)]))).await;
    assert_eq!(outcome, Outcome::Granted, "who waits as told is served");
}

async fn what_was_used_alone_fills_a_bucket_at_most(under: Under) {
    let alone = |charge: &str, alone: f64| {
        let ask = Ask::Units { bucket: "t".into(), rate: MINUTE, back: 0.0, alone, at_least: 0, at_most: 0 };
        reserve(charge, vec![ask])
    };
    assert_eq!(call(&under, alone("a", 40.0)).await.1, [(0, 40.0)]);
    assert_eq!(call(&under, alone("a", 40.0)).await.1, [(0, 40.0)], "the same call");
    assert_eq!(call(&under, alone("b", 4_000.0)).await.1, [(0, 60.0)]);
    call(&under, reserve("c", vec![units("t", MINUTE, -20.0, 0, 0)])).await;
    assert_eq!(call(&under, alone("d", 1.0)).await.1, [(0, 80.0)], "what is fuller stays so");
}

async fn a_refusal_still_takes_what_is_given_back(under: Under) {
    call(&under, reserve("a", vec![units("t", MINUTE, 0.0, 60, 60), slots("c", 2, 0, 2, 2)])).await;
    // Both slots are in use; a third is refused, and the two stay held.
    let asked = after("a", reserve("b", vec![units("t", MINUTE, 20.0, 5, 5), slots("c", 2, 2, 3, 3)]));
    assert_eq!(call(&under, asked).await, (Outcome::Refused { ask: 1, retry_after_us: 0 }, vec![(0, 40.0), (2, 2.0)]));
    let (outcome, _) = call(&under, reserve("other", vec![slots("c", 2, 0, 1, 1)])).await;
    assert_eq!(outcome, Outcome::Refused { ask: 0, retry_after_us: 0 });
}

async fn slots_are_shared_and_come_free(under: Under) {
    assert_eq!(call(&under, reserve("a", vec![slots("c", 5, 0, 1, 4)])).await.1, [(4, 4.0)]);
    assert_eq!(call(&under, reserve("b", vec![slots("c", 5, 0, 1, 4)])).await.1, [(1, 5.0)], "as many as there are");
    let full = reserve("x", vec![slots("c", 5, 0, 1, 1)]);
    assert!(matches!(call(&under, full).await.0, Outcome::Refused { .. }));
    // Buckets that a call does not name keep their slots.
    call(&under, after("a", reserve("a2", vec![units("t", MINUTE, 0.0, 1, 1)]))).await;
    assert!(matches!(call(&under, reserve("y", vec![slots("c", 5, 0, 1, 1)])).await.0, Outcome::Refused { .. }));
    assert_eq!(call(&under, after("a2", reserve("a3", vec![slots("c", 5, 2, 2, 2)]))).await.1, [(2, 3.0)]);
    // Nobody closes b: its slot comes free by itself.
    under.time.pass(20_000_000);
    call(&under, after("a3", reserve("a4", vec![slots("c", 5, 2, 2, 2)]))).await;
    under.time.pass(20_000_000);
    assert_eq!(call(&under, reserve("d", vec![slots("c", 5, 0, 3, 3)])).await.1, [(3, 5.0)]);
    // A gateway that was away for long says what runs, although others have taken the room.
    under.time.pass(20_000_000);
    call(&under, after("d", reserve("d2", vec![slots("c", 5, 3, 5, 5)]))).await;
    assert_eq!(call(&under, after("a4", reserve("a5", vec![slots("c", 5, 2, 2, 2)]))).await.1, [(2, 7.0)]);
}

async fn a_lower_limit_shuts_nobody_out_for_long(under: Under) {
    let large = Rate { limit: 1_000_000, period_us: 60_000_000 };
    call(&under, reserve("a", vec![units("t", large, 0.0, 1_000_000, 1_000_000)])).await;
    let (outcome, _) = call(&under, reserve("b", vec![units("t", MINUTE, 0.0, 60, 60)])).await;
    assert_eq!(outcome, Outcome::Refused { ask: 0, retry_after_us: 120_000_000 });
}

async fn a_slice_is_as_large_as_there_is_room(under: Under) {
    assert_eq!(call(&under, reserve("a", vec![units("t", MINUTE, 0.0, 1, 25)])).await.1, [(25, 25.0)]);
    assert_eq!(call(&under, reserve("b", vec![units("t", MINUTE, 0.0, 1, 50)])).await.1, [(35, 60.0)]);
    let (outcome, buckets) = call(&under, reserve("c", vec![units("t", MINUTE, 0.0, 1, 50)])).await;
    assert_eq!((outcome, buckets), (Outcome::Refused { ask: 0, retry_after_us: 1_000_000 }, vec![(0, 60.0)]));
}

async fn a_ledger_that_forgot_everything_is_told(under: Under) {
    let first = under.ledger.exchange("harbour", &reserve("a", vec![units("t", MINUTE, 0.0, 50, 50)])).await.unwrap();
    assert_eq!(first.epoch, "one");
    let knowing = |epoch: &str, charge: &str, floors| Exchange {
        epoch: epoch.to_owned(),
        floors,
        ..after("a", reserve(charge, vec![units("t", MINUTE, 10.0, 5, 5)]))
    };
    let stranger = under.ledger.exchange("harbour", &knowing("two", "b", None)).await.unwrap();
    assert_eq!((stranger.outcome, stranger.epoch.as_str(), stranger.buckets.len()), (Outcome::UnknownEpoch, "one", 0));
    // Fuller than remembered: nothing changes. Emptier: it is filled, though what was seconds ago has drained since.
    let at_us = under.time.now();
    let told =
        knowing("two", "c", Some(vec![floor("t", MINUTE, 20.0, at_us), floor("u", MINUTE, 30.0, at_us - 10_000_000)]));
    let told = under.ledger.exchange("harbour", &told).await.unwrap();
    assert_eq!((told.outcome, told.buckets[0].level.used, told.epoch.as_str()), (Outcome::Granted, 45.0, "one"));
    let (_, buckets) = call(&under, reserve("d", vec![units("u", MINUTE, 0.0, 0, 0)])).await;
    assert_eq!(buckets, [(0, 20.0)]);
    // Whoever knows the epoch and is known is not believed.
    let known = knowing("one", "e", Some(vec![floor("u", MINUTE, 60.0, at_us)]));
    let known = Exchange { closes: Some("c".to_owned()), ..known };
    under.ledger.exchange("harbour", &known).await.unwrap();
    let (_, buckets) = call(&under, reserve("f", vec![units("u", MINUTE, 0.0, 0, 0)])).await;
    assert_eq!(buckets, [(0, 20.0)]);
    // One that knows nothing at all is told before it does anything.
    let fresh = under.ledger.exchange("helpdesk", &knowing("two", "b", None)).await.unwrap();
    assert_eq!((fresh.outcome, fresh.epoch.as_str()), (Outcome::UnknownEpoch, ""));
    let told = knowing("two", "b", Some(vec![floor("t", MINUTE, 58.0, at_us)]));
    let told = under.ledger.exchange("helpdesk", &told).await.unwrap();
    assert_eq!(
        told.outcome,
        Outcome::Refused { ask: 0, retry_after_us: 3_000_000 },
        "nothing came back of a charge that is gone"
    );
}

async fn a_ledger_that_forgot_the_last_of_it_is_told_too(under: Under) {
    let first = under.ledger.exchange("harbour", &reserve("a", vec![units("t", MINUTE, 0.0, 5, 5)])).await.unwrap();
    // The gateway was answered 58 units and a charge of which this ledger, as it is now, knows nothing.
    let knowing = |closes: &str, charge: &str, used: Option<f64>| Exchange {
        epoch: first.epoch.clone(),
        floors: used.map(|used| vec![floor("t", MINUTE, used, under.time.now())]),
        ..after(closes, reserve(charge, vec![units("t", MINUTE, 0.0, 0, 0)]))
    };
    let asked = under.ledger.exchange("harbour", &knowing("lost", "b", None)).await.unwrap();
    assert_eq!((asked.outcome, asked.epoch.as_str(), asked.buckets.len()), (Outcome::UnknownEpoch, "one", 0));
    let told = under.ledger.exchange("harbour", &knowing("lost", "b", Some(58.0))).await.unwrap();
    assert_eq!((told.outcome, told.buckets[0].level.used), (Outcome::Granted, 58.0));
    // Who lost nothing fills nothing up.
    let knows = under.ledger.exchange("harbour", &knowing("a", "c", Some(60.0))).await.unwrap();
    assert_eq!(knows.buckets[0].level.used, 58.0);
    let knows = under.ledger.exchange("harbour", &knowing("b", "d", None)).await.unwrap();
    assert_eq!((knows.outcome, knows.buckets[0].level.used), (Outcome::Granted, 58.0));
}

async fn a_clock_that_goes_back_gives_nothing_away(under: Under) {
    call(&under, reserve("a", vec![units("t", MINUTE, 0.0, 60, 60)])).await;
    under.time.pass(0u64.wrapping_sub(3_600_000_000));
    let (outcome, _) = call(&under, reserve("b", vec![units("t", MINUTE, 0.0, 1, 1)])).await;
    assert_eq!(outcome, Outcome::Refused { ask: 0, retry_after_us: 1_000_000 });
    under.time.pass(1_000_000);
    let (outcome, _) = call(&under, reserve("c", vec![units("t", MINUTE, 0.0, 1, 1)])).await;
    assert_eq!(outcome, Outcome::Granted, "and nobody waits until the hour has come again");
}

async fn tenants_have_nothing_to_do_with_each_other(under: Under) {
    let asked = reserve("a", vec![units("t", MINUTE, 0.0, 60, 60), slots("c", 1, 0, 1, 1)]);
    for tenant in ["harbour", "helpdesk", "gateways"] {
        let answer = under.ledger.exchange(tenant, &asked).await.unwrap();
        assert_eq!(answer.outcome, Outcome::Granted, "{tenant}");
    }
}

async fn open_charges_are_bounded(under: Under) {
    for n in 0..4096 {
        under.ledger.exchange("harbour", &reserve(&format!("c{n}"), vec![])).await.unwrap();
    }
    let more = reserve("more", vec![units("t", MINUTE, 0.0, 1, 1)]);
    let full = under.ledger.exchange("harbour", &more).await;
    assert!(matches!(full, Err(Error::Full(4096))), "{full:?}");
    under.ledger.exchange("helpdesk", &more).await.unwrap();
    let instead = after("c7", reserve("instead", vec![]));
    under.ledger.exchange("harbour", &instead).await.unwrap();
    under.time.pass(31_000_000);
    under.ledger.exchange("harbour", &more).await.unwrap();
}

async fn gateways_that_live_are_counted(under: Under) {
    let count = async |name: &str| under.ledger.beat(name, Duration::from_secs(5)).await.unwrap();
    // The suite's own probe may be among them.
    under.time.pass(10_000_000);
    let first = count("a").await;
    assert_eq!((first.gateways, count("b").await.gateways, count("a").await.gateways), (1, 2, 2));
    under.time.pass(4_000_000);
    assert_eq!(count("b").await, Beat { gateways: 2, ..first.clone() });
    under.time.pass(4_000_000);
    assert_eq!(count("b").await, Beat { gateways: 1, ..first.clone() });
    assert!(first.server.is_some_and(|server| !server.is_empty()));
}

#[derive(Clone, Debug)]
struct Random {
    pause_us: u64,
    charge: usize,
    closes: Option<usize>,
    epoch: &'static str,
    asks: Vec<Ask>,
    floors: Option<Vec<weft_limits::ledger::Floor>>,
}

fn random_rate() -> impl Strategy<Value = Rate> {
    (prop_oneof![1u64..100, Just(1_000_000_000_000u64)], prop_oneof![Just(60_000_000u64), Just(86_400_000_000u64)])
        .prop_map(|(limit, period_us)| Rate { limit, period_us })
}

fn random_asks() -> impl Strategy<Value = Vec<Ask>> {
    let unit = (0..3usize, random_rate(), -50i32..50, 0u64..40, 0u64..40, prop_oneof![Just(0.0), 0.0..200.0]);
    let unit = unit.prop_map(|(bucket, rate, back, at_least, more, alone)| {
        let (name, back, at_most) = (format!("u{bucket}"), f64::from(back) / 4.0, at_least + more);
        (bucket, Ask::Units { bucket: name, rate, back, alone, at_least, at_most })
    });
    let slot = (0..2usize, 1u64..9, 0u64..4, 0u64..4, 0u64..4).prop_map(|(bucket, limit, used, more, slack)| {
        (10 + bucket, slots(&format!("s{bucket}"), limit, used, used + more, used + more + slack))
    });
    proptest::collection::vec(prop_oneof![3 => unit, 1 => slot], 0..5).prop_map(|mut asks| {
        asks.sort_by_key(|(bucket, _)| *bucket);
        asks.dedup_by_key(|(bucket, _)| *bucket);
        asks.into_iter().map(|(_, ask)| ask).collect()
    })
}

fn random_call() -> impl Strategy<Value = Random> {
    let floors = proptest::collection::vec((0..3usize, random_rate(), 0.0f64..200.0, 0u64..9_000_000), 1..3).prop_map(
        |floors| {
            let floors = floors
                .into_iter()
                .map(|(bucket, rate, used, ago)| floor(&format!("u{bucket}"), rate, used, BEGIN_US - ago));
            floors.collect::<Vec<_>>()
        },
    );
    let ids = (0..40usize, proptest::option::of(0..40usize));
    let epochs = prop_oneof![4 => Just(""), 4 => Just("one"), 1 => Just("other")];
    (0u64..7_000_000, ids, epochs, random_asks(), proptest::option::weighted(0.2, floors)).prop_map(
        |(pause_us, (charge, closes), epoch, asks, floors)| Random { pause_us, charge, closes, epoch, asks, floors },
    )
}

/// The script in Redis decides as the pure code does: the same answers, to the bit.
#[test]
fn redis_and_memory_give_the_same_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let under = runtime.block_on(redis());
    let tenants = std::sync::atomic::AtomicUsize::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 64, ..ProptestConfig::default() });
    let calls = proptest::collection::vec(random_call(), 1..60);
    let played = runner.run(&calls, |calls| {
        let memory = MemoryLedger::with_clock(under.time.clock());
        let tenant = format!("tenant-{}", tenants.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        for call in calls {
            under.time.pass(call.pause_us);
            let exchange = Exchange {
                epoch: call.epoch.to_owned(),
                closes: call.closes.map(|id| format!("c{id}")),
                known_us: 90_000_000,
                floors: call.floors.clone(),
                ..reserve(&format!("c{}", call.charge), call.asks.clone())
            };
            let (here, there) = runtime.block_on(async {
                (memory.exchange(&tenant, &exchange).await, under.ledger.exchange(&tenant, &exchange).await)
            });
            prop_assert_eq!(here.unwrap(), there.unwrap(), "{:?}", exchange);
        }
        Ok(())
    });
    played.unwrap();
}

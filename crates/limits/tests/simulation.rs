//! Several gateways, a ledger that fails as ledgers do, and time that only the test lets pass: whatever happens, tenants use
//! no more than the limit, its refill and a slice or two of each gateway, and are never shut out for the ledger's sake.

mod support;

use async_trait::async_trait;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use support::Time;
use weft_limits::ledger::{Answer, Beat, Error, Exchange};
use weft_limits::{Charge, Health, Ledger, Limiter, MemoryLedger, Options, Refusal, Whose, Wish};
use weft_types::{LimitKind, Limits};

const MINUTE_US: u64 = 60_000_000;

/// A ledger that can be away, or do what it is asked and fail to say so.
struct Flaky {
    inner: MemoryLedger,
    mode: AtomicU8,
}

const WELL: u8 = 0;
const AWAY: u8 = 1;
/// It does what it is asked, and the answer is lost.
const UNANSWERED: u8 = 2;

#[async_trait]
impl Ledger for Flaky {
    async fn exchange(&self, tenant: &str, exchange: &Exchange) -> Result<Answer, Error> {
        match self.mode.load(Ordering::SeqCst) {
            WELL => self.inner.exchange(tenant, exchange).await,
            AWAY => Err(Error::Away("unplugged".into())),
            _ => {
                self.inner.exchange(tenant, exchange).await?;
                Err(Error::Slow(Duration::from_millis(1)))
            }
        }
    }

    async fn beat(&self, gateway: &str, alive: Duration) -> Result<Beat, Error> {
        match self.mode.load(Ordering::SeqCst) {
            WELL => self.inner.beat(gateway, alive).await,
            _ => Err(Error::Away("unplugged".into())),
        }
    }
}

struct World {
    time: Time,
    ledger: Arc<Flaky>,
    gateways: Vec<Arc<Limiter>>,
    limits: Limits,
}

impl World {
    async fn new(gateways: usize, limits: Limits, slice_percent: f64) -> Self {
        let time = Time::starting(1_000_000);
        let ledger = Arc::new(Flaky { inner: MemoryLedger::with_clock(time.clock()), mode: AtomicU8::new(WELL) });
        let options = Options { slice_percent, gateways_min: 1, clock: time.clock() };
        let limiter = |_| Limiter::new(Arc::clone(&ledger) as Arc<dyn Ledger>, options.clone());
        let world = Self { gateways: (0..gateways).map(limiter).collect(), time, ledger, limits };
        // Twice: the first of them has heard of no other.
        world.beat().await;
        world.beat().await;
        world
    }

    async fn beat(&self) {
        for gateway in &self.gateways {
            gateway.beat().await;
        }
    }

    async fn sweep(&self) {
        for gateway in &self.gateways {
            gateway.sweep(false).await;
        }
    }

    async fn ask(&self, gateway: usize, tokens: u64) -> Result<Charge, Refusal> {
        let none = Limits::default();
        let whose = Whose { tenant: "harbour", limits: &self.limits, key: "k", key_limits: &none };
        self.gateways[gateway].reserve(&whose, &Wish { answers: 1, tokens, tokens_more: 0 }).await
    }

    fn set(&self, mode: u8) {
        self.ledger.mode.store(mode, Ordering::SeqCst);
    }
}

fn requests(limit: u64) -> Limits {
    Limits { requests_per_minute: Some(limit), ..Limits::default() }
}

#[derive(Clone, Debug)]
enum Event {
    Ask {
        gateway: usize,
        times: usize,
    },
    Pass(u64),
    Beat,
    Sweep,
    Mode(u8),
    Forget,
    Save,
    /// It is again what it was when it was last saved.
    Restore,
    HangUp(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => (0usize..4, 1usize..20).prop_map(|(gateway, times)| Event::Ask { gateway, times }),
        6 => (0u64..10_000_000).prop_map(Event::Pass),
        2 => Just(Event::Beat),
        2 => Just(Event::Sweep),
        2 => (WELL..=UNANSWERED).prop_map(Event::Mode),
        1 => Just(Event::Forget),
        1 => Just(Event::Save),
        1 => Just(Event::Restore),
        1 => (0usize..4).prop_map(Event::HangUp),
    ]
}

/// In every window: the limit, its refill, and of each gateway the slice it held before and the one it may begin alone with.
fn assert_bounded(admitted: &[u64], limit: u64, gateways: u64, slice: u64) -> Result<(), TestCaseError> {
    for (first, begin) in admitted.iter().enumerate() {
        for (count, end) in (1u64..).zip(&admitted[first..]) {
            let refill = (end - begin) as f64 * limit as f64 / MINUTE_US as f64;
            let bound = limit as f64 + refill + (2 * gateways * slice) as f64 + 1e-3;
            prop_assert!(count as f64 <= bound, "{count} requests in {} us, bound {bound}", end - begin);
        }
    }
    Ok(())
}

/// Plays the events, and holds what was admitted against the bound.
async fn play(gateways: usize, limit: u64, percent: u32, events: Vec<Event>) -> Result<(), TestCaseError> {
    let world = World::new(gateways, requests(limit), f64::from(percent)).await;
    let mut admitted = Vec::new();
    for event in events {
        match event {
            Event::Ask { gateway, times } => {
                for _ in 0..times {
                    if world.ask(gateway % gateways, 0).await.is_ok() {
                        admitted.push(world.time.now());
                    }
                }
            }
            Event::Pass(us) => world.time.pass(us),
            Event::Beat => world.beat().await,
            Event::Sweep => world.sweep().await,
            Event::Mode(mode) => world.set(mode),
            Event::Forget => {
                // Gateways hear of it with their next sign of life.
                world.ledger.inner.forget();
                world.set(WELL);
                world.beat().await;
            }
            Event::Save => world.ledger.inner.save(),
            Event::Restore => {
                world.ledger.inner.restore();
                world.set(WELL);
                world.beat().await;
            }
            Event::HangUp(gateway) => {
                // A client that goes away while the ledger is asked.
                let mut asking = std::pin::pin!(world.ask(gateway % gateways, 0));
                let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx))).await;
                if matches!(polled, std::task::Poll::Ready(Ok(_))) {
                    admitted.push(world.time.now());
                }
            }
        }
    }
    let slice = (limit * u64::from(percent) / 100).max(1);
    assert_bounded(&admitted, limit, gateways as u64, slice)
}

#[test]
fn whatever_happens_the_overshoot_is_a_slice_or_two_of_each_gateway() {
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 4000, ..ProptestConfig::default() });
    let worlds = (1usize..5, 1u64..300, 1u32..20, proptest::collection::vec(event(), 1..150));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run = runner
        .run(&worlds, |(gateways, limit, percent, events)| runtime.block_on(play(gateways, limit, percent, events)));
    run.unwrap();
}

// The next ones were found by the test above.

fn ask(gateway: usize, times: usize) -> Event {
    Event::Ask { gateway, times }
}

#[tokio::test]
async fn a_ledger_that_forgot_twice_keeps_what_one_used_alone_beside_what_another_remembers() {
    let events = vec![
        ask(1, 7),
        Event::Mode(AWAY),
        ask(0, 1),
        Event::Pass(5_217_391),
        ask(0, 1),
        Event::Pass(5_217_391),
        ask(0, 1),
        Event::Forget,
        ask(1, 11),
        Event::Mode(AWAY),
        ask(0, 1),
        Event::Pass(5_217_391),
        ask(0, 1),
        Event::Pass(5_217_393),
        ask(0, 1),
        Event::Forget,
        ask(0, 13),
    ];
    play(2, 23, 1, events).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_made_again_at_a_ledger_that_forgot_it_does_not_pass_for_the_old_ledger() {
    let events = vec![Event::Mode(UNANSWERED), ask(0, 1), Event::Mode(WELL), ask(1, 5), Event::Forget, ask(0, 5)];
    play(2, 6, 1, events).await.unwrap();
}

#[tokio::test]
async fn who_went_on_alone_and_never_heard_of_the_ledger_tells_the_next_one() {
    let alone = vec![vec![Event::Pass(13_333_334), ask(1, 1)]; 3].concat();
    let before = vec![ask(0, 6), Event::Mode(AWAY), Event::Beat, ask(1, 1)];
    let after = vec![Event::Forget, ask(0, 9), Event::Mode(AWAY), ask(1, 1)];
    play(2, 9, 1, [before, alone, after].concat()).await.unwrap();
}

#[tokio::test]
async fn while_the_ledger_is_away_all_together_go_on_at_the_limit() {
    let (limit, gateways, percent) = (600, 3, 2.0);
    let world = World::new(gateways, requests(limit), percent).await;
    // Everything is used up before it goes away.
    while world.ask(0, 0).await.is_ok() {}
    world.set(AWAY);
    let (minutes, mut admitted, mut each) = (10, 0u64, vec![0u64; gateways]);
    for _ in 0..minutes * 600 {
        world.time.pass(100_000);
        for (gateway, count) in each.iter_mut().enumerate() {
            while world.ask(gateway, 0).await.is_ok() {
                (admitted, *count) = (admitted + 1, *count + 1);
            }
        }
    }
    let slice = (limit as f64 * percent / 100.0) as u64;
    assert!(admitted <= limit * minutes + gateways as u64 * slice, "no free-for-all: {admitted}");
    assert!(admitted >= limit * minutes * 95 / 100, "no refusal: {admitted}");
    assert!(each.iter().all(|count| *count >= limit * minutes / gateways as u64 * 95 / 100), "{each:?}");
    // Back again, what was used is known: the next minute has what its refill brings, and no burst.
    world.set(WELL);
    world.beat().await;
    let mut afterwards = 0;
    for _ in 0..600 {
        world.time.pass(100_000);
        for gateway in 0..gateways {
            while world.ask(gateway, 0).await.is_ok() {
                afterwards += 1;
            }
        }
    }
    assert!(admitted + afterwards <= limit * (minutes + 1) + 2 * gateways as u64 * slice, "{admitted} + {afterwards}");
    assert!(afterwards >= limit * 90 / 100, "{afterwards}");
}

#[tokio::test]
async fn a_ledger_that_was_never_there_leaves_each_its_part() {
    let limits = Limits { concurrent_requests: Some(4), ..requests(600) };
    let world = World::new(1, limits, 2.0).await;
    world.set(AWAY);
    let options = Options { slice_percent: 2.0, gateways_min: 4, clock: world.time.clock() };
    let late = Limiter::new(Arc::clone(&world.ledger) as Arc<dyn Ledger>, options);
    let none = Limits::default();
    let whose = Whose { tenant: "harbour", limits: &world.limits, key: "k", key_limits: &none };
    let wish = Wish { answers: 1, ..Wish::default() };
    let one = late.reserve(&whose, &wish).await.unwrap();
    // A quarter of the four slots is one; it comes free.
    let refusal = late.reserve(&whose, &wish).await.err().unwrap();
    assert_eq!((refusal.kind, refusal.limit), (LimitKind::ConcurrentRequests, 4));
    drop(one);
    let mut admitted = 1;
    while late.reserve(&whose, &wish).await.is_ok() {
        admitted += 1;
    }
    assert_eq!(admitted, 12, "a slice");
    world.time.pass(MINUTE_US / 600 * 4);
    assert!(late.reserve(&whose, &wish).await.is_ok(), "a quarter of the rate");
    let refusal = late.reserve(&whose, &wish).await.err().unwrap();
    assert!(refusal.retry_after.unwrap() <= Duration::from_millis(401), "{refusal:?}");
    assert!(late.state().away.is_some() && late.state().admitted_alone == 13);
}

#[tokio::test]
async fn health_says_of_the_ledger_what_the_state_says() {
    let world = World::new(3, requests(10_000), 2.0).await;
    let agrees = |limiter: &Limiter| {
        let (health, state) = (limiter.health(), limiter.state());
        assert_eq!((&health.away, health.gateways), (&state.away, state.gateways));
        health
    };
    assert_eq!(agrees(&world.gateways[0]), Health { away: None, gateways: 3 });
    world.set(AWAY);
    world.beat().await;
    assert!(agrees(&world.gateways[0]).away.is_some_and(|why| why.contains("unplugged")));
}

#[tokio::test]
async fn a_hot_tenant_costs_few_calls() {
    let world = World::new(1, requests(10_000), 2.0).await;
    for _ in 0..2_000 {
        world.ask(0, 0).await.unwrap();
    }
    assert_eq!(world.gateways[0].state().calls, 10, "one for each slice of 200");
}

#[tokio::test]
async fn a_tenant_over_its_limit_costs_few_calls_too() {
    let world = World::new(1, requests(100), 10.0).await;
    while world.ask(0, 0).await.is_ok() {}
    let calls = world.gateways[0].state().calls;
    for _ in 0..1_000 {
        let refusal = world.ask(0, 0).await.err().unwrap();
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(600)));
    }
    assert_eq!(world.gateways[0].state().calls, calls);
    world.time.pass(100_000);
    assert!(world.ask(0, 0).await.is_err());
    assert_eq!(world.gateways[0].state().calls, calls + 1, "it may be asked again");
}

#[tokio::test]
async fn what_is_not_used_goes_back_so_that_others_can_use_it() {
    let world = World::new(2, requests(100), 10.0).await;
    world.ask(0, 0).await.unwrap();
    assert_eq!(world.gateways[0].state().units_held, 9);
    let mut others = 0;
    while world.ask(1, 0).await.is_ok() {
        others += 1;
    }
    assert_eq!(others, 90);
    world.sweep().await;
    assert!(world.ask(1, 0).await.is_err(), "it was just used: not idle yet");
    world.time.pass(1_000_000);
    world.sweep().await;
    assert_eq!(world.gateways[0].state().units_held, 0);
    let mut others = 0;
    while world.ask(1, 0).await.is_ok() {
        others += 1;
    }
    assert_eq!(others, 9 + 1, "and what the second refilled");
}

#[tokio::test]
async fn tokens_are_settled_once_with_what_was_used() {
    let limits = Limits { tokens_per_minute: Some(1_000), ..Limits::default() };
    let world = World::new(1, limits, 0.0).await;
    let charge = world.ask(0, 600).await.unwrap();
    assert_eq!(charge.standing().tokens.unwrap().remaining, 400);
    let refusal = world.ask(0, 600).await.err().unwrap();
    assert_eq!((refusal.kind, refusal.retry_after), (LimitKind::TokensPerMinute, Some(Duration::from_secs(12))));
    charge.used(70);
    charge.used(30);
    charge.settle();
    charge.settle();
    drop(charge);
    let charge = world.ask(0, 600).await.unwrap();
    assert_eq!(charge.standing().tokens.unwrap().remaining, 300);
    // More than was reserved is owed.
    charge.used(1_200);
    drop(charge);
    let refusal = world.ask(0, 1).await.err().unwrap();
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(18_060)), "301 units at 1,000 a minute");
    // What never fits is told as such.
    assert_eq!(world.ask(0, 1_001).await.err().unwrap().retry_after, None);
}

#[tokio::test]
async fn what_a_long_answer_did_not_use_comes_back() {
    for slice_percent in [0.0, 10.0] {
        let limits = Limits { tokens_per_day: Some(10_000), ..Limits::default() };
        let world = World::new(1, limits, slice_percent).await;
        let charge = world.ask(0, 6_000).await.unwrap();
        for _ in 0..120 {
            world.time.pass(1_000_000);
            world.sweep().await;
        }
        charge.used(100);
        drop(charge);
        world.sweep().await;
        let remaining = world.ask(0, 1).await.unwrap().standing().tokens.unwrap().remaining;
        assert!((9_890..=9_920).contains(&remaining), "{remaining} of 10,000 with slices of {slice_percent} %");
    }
}

#[tokio::test]
async fn slots_of_a_gateway_that_died_come_free_and_those_in_use_are_kept() {
    let limits = Limits { concurrent_requests: Some(3), queue_length: Some(2), ..Limits::default() };
    let world = World::new(2, limits, 0.0).await;
    let waits = world.ask(0, 0).await.unwrap();
    let begun = world.ask(1, 0).await.unwrap();
    let refusal = world.ask(1, 0).await.err().unwrap();
    assert_eq!(refusal.kind, LimitKind::QueueLength);
    begun.began();
    begun.began();
    // Its place in the queue is free here and, with the next exchange, elsewhere.
    let third = world.ask(1, 0).await.unwrap();
    third.began();
    assert_eq!(world.ask(1, 0).await.err().unwrap().kind, LimitKind::ConcurrentRequests);
    // Nobody asks for long: what runs is named again and again.
    for _ in 0..12 {
        world.time.pass(10_000_000);
        world.sweep().await;
    }
    assert_eq!(world.ask(1, 0).await.err().unwrap().kind, LimitKind::ConcurrentRequests);
    // Gateway 0 says nothing any more.
    for _ in 0..4 {
        world.time.pass(10_000_000);
        world.gateways[1].sweep(false).await;
    }
    assert!(world.ask(1, 0).await.is_ok());
    drop((waits, begun, third));
}

//! Gateways on one Redis, and requests that use tokens of a day one by one.

use super::{Time, at, until};
use std::sync::Arc;
use std::time::Duration;
use weft_limits::{Clock, Keeper, Limiter, Options, RedisLedger, Whose, Wish};
use weft_types::Limits;

/// Enough for a busy machine, little enough for a test.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);
/// So that nothing of a limit comes back while the test runs: units in a day.
pub(crate) const LIMIT: u64 = 1_000;
/// What a gateway holds of it in advance.
pub(crate) const SLICE: u64 = 20;

pub(crate) struct Gateway {
    pub(crate) limiter: Arc<Limiter>,
    _keeper: Keeper,
}

/// Gateways on one Redis, on its own clock.
pub(crate) fn gateways(url: &str, count: usize) -> Vec<Gateway> {
    // Local time stands still: what a gateway alone may use is its slice, and no refill blurs the count.
    let ledger = || RedisLedger::new(at(url, TIMEOUT)).unwrap();
    (0..count).map(|_| gateway(ledger(), Time::starting(1).clock())).collect()
}

/// The same on a clock that the test sets, theirs and the ledger's.
pub(crate) fn gateways_in(time: &Time, url: &str, count: usize) -> Vec<Gateway> {
    let ledger = || RedisLedger::new(at(url, TIMEOUT)).unwrap().with_clock(time.clock());
    (0..count).map(|_| gateway(ledger(), time.clock())).collect()
}

fn gateway(ledger: RedisLedger, clock: Clock) -> Gateway {
    let options = Options { slice_percent: 2.0, clock, gateways_min: 1 };
    let limiter = Limiter::new(Arc::new(ledger), options);
    Gateway { _keeper: limiter.keep(), limiter }
}

pub(crate) async fn shared_by(gateways: &[Gateway], count: u64) {
    until("sharing", async || {
        gateways.iter().all(|gateway| {
            let state = gateway.limiter.state();
            state.away.is_none() && state.gateways == count
        })
    })
    .await;
}

/// Until each of them knows that Redis is away.
pub(crate) async fn alone(gateways: &[Gateway]) {
    until("alone", async || gateways.iter().all(|gateway| gateway.limiter.state().away.is_some())).await;
}

/// Units of the day that can be used now, one by one, at most so many.
pub(crate) async fn use_up(gateway: &Gateway, most: u64) -> u64 {
    for used in 0..most {
        if !use_at_once(gateway, 1, 1).await {
            return used;
        }
    }
    most
}

/// One request that reserves so many units of the day and uses so many; whether it was let in.
pub(crate) async fn use_at_once(gateway: &Gateway, reserved: u64, used: u64) -> bool {
    let limits = Limits { tokens_per_day: Some(LIMIT), ..Limits::default() };
    let none = Limits::default();
    let whose = Whose { tenant: "harbour", limits: &limits, key: "k", key_limits: &none };
    let wish = Wish { answers: 1, tokens: reserved, tokens_more: 0 };
    match gateway.limiter.reserve(&whose, &wish).await {
        Ok(charge) => {
            charge.used(used);
            true
        }
        Err(_) => false,
    }
}

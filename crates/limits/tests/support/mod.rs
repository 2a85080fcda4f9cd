//! A clock that tests set, a real Redis of their own, an address before it, and gateways that share it.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod gateways;
pub(crate) mod proxy;
pub(crate) mod redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weft_limits::ledger::{Ask, Exchange, Floor};
use weft_limits::{Clock, RedisSettings, gcra::Rate};

/// Time as the test has it, in microseconds.
#[derive(Clone, Default)]
pub(crate) struct Time(Arc<AtomicU64>);

impl Time {
    pub(crate) fn starting(us: u64) -> Self {
        Self(Arc::new(AtomicU64::new(us)))
    }

    pub(crate) fn clock(&self) -> Clock {
        let time = self.0.clone();
        Arc::new(move || time.load(Ordering::SeqCst))
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn pass(&self, us: u64) {
        self.0.fetch_add(us, Ordering::SeqCst);
    }
}

/// Without certificates.
pub(crate) fn at(url: &str, timeout: Duration) -> RedisSettings {
    RedisSettings { url: url.to_owned(), timeout, ..RedisSettings::default() }
}

pub(crate) const MINUTE: Rate = Rate { limit: 60, period_us: 60_000_000 };

/// A call that only reserves.
pub(crate) fn reserve(charge: &str, asks: Vec<Ask>) -> Exchange {
    Exchange {
        epoch: String::new(),
        new_epoch: "one".to_owned(),
        closes: None,
        charge: charge.to_owned(),
        open_us: 30_000_000,
        known_us: 600_000_000,
        asks,
        floors: None,
    }
}

/// The same that closes another charge.
pub(crate) fn after(closes: &str, exchange: Exchange) -> Exchange {
    Exchange { closes: Some(closes.to_owned()), ..exchange }
}

pub(crate) fn units(bucket: &str, rate: Rate, back: f64, at_least: u64, at_most: u64) -> Ask {
    Ask::Units { bucket: bucket.to_owned(), rate, back, alone: 0.0, at_least, at_most }
}

pub(crate) fn slots(bucket: &str, limit: u64, used: u64, at_least: u64, at_most: u64) -> Ask {
    Ask::Slots { bucket: bucket.to_owned(), limit, used, at_least, at_most }
}

pub(crate) fn floor(bucket: &str, rate: Rate, used: f64, at_us: u64) -> Floor {
    Floor { bucket: bucket.to_owned(), rate, used, at_us }
}

/// Polls what only other tasks can bring about; fails loudly instead of hanging.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not {what} after 15 s");
}

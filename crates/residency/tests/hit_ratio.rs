//! What the order of eviction is worth on traffic as workers see it, beside "least recently used": tenants whose adapters
//! follow a power law (S-LoRA's generator, alpha = 1), and one that cycles through cold adapters.
//!
//! Deterministic; run with `--no-capture` to see the figures.

use std::collections::HashMap;
use weft_residency::{Ledger, Past, Room, Worth};

const REQUESTS: u64 = 60_000;
const MEAN_GAP_MS: f64 = 50.0;
const POPULAR: usize = 1000;
const SCANNED: usize = 200;
const MB: u64 = 1_000_000;
const BUDGET: u64 = 160 * MB;

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Clone, Copy)]
struct Request {
    key: usize,
    now_ms: u64,
    scans: bool,
}

/// Power-law traffic; of `scan_every` requests one belongs to the tenant that cycles. Half-way the popular adapters
/// change places.
fn traffic(scan_every: Option<u64>) -> Vec<Request> {
    let mut random = Random(7);
    let weights: Vec<f64> = (1..=POPULAR).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    let mut clock = 0.0;
    let mut scanned = 0;
    let mut requests = Vec::new();
    for number in 0..REQUESTS {
        clock += -MEAN_GAP_MS * (1.0 - random.next()).ln();
        let scans = scan_every.is_some_and(|every| number % every == 0);
        let key = if scans {
            scanned += 1;
            POPULAR + scanned % SCANNED
        } else {
            let mut left = random.next() * total;
            let rank = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            let rank = rank.unwrap_or(POPULAR - 1);
            // Neighbours in popularity are no neighbours in size.
            let shift = if number < REQUESTS / 2 { 0 } else { POPULAR / 2 };
            (rank * 7 + shift) % POPULAR
        };
        requests.push(Request { key, now_ms: clock as u64, scans });
    }
    requests
}

/// Ranks 8, 16 and 64 of the demo model.
fn bytes_of(key: usize) -> u64 {
    [2, 2, 2, 2, 4, 4, 15][key % 7] * MB
}

/// A step, and half a millisecond per megabyte from memory; one in five lies on a slow disk.
fn reload_ms(key: usize) -> f64 {
    let per_mb = if key.is_multiple_of(5) { 10.0 } else { 0.5 };
    20.0 + per_mb * bytes_of(key) as f64 / MB as f64
}

#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    hits: u64,
    requests: u64,
    waited_ms: f64,
}

impl Outcome {
    fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.requests as f64
    }

    fn mean_wait_ms(&self) -> f64 {
        self.waited_ms / self.requests as f64
    }
}

/// What the requests of those who do not scan meet.
fn play(requests: &[Request], mut serve: impl FnMut(Request) -> bool) -> Outcome {
    let mut outcome = Outcome::default();
    for request in requests {
        let hit = serve(*request);
        if !request.scans {
            outcome.requests += 1;
            outcome.hits += u64::from(hit);
            outcome.waited_ms += if hit { 0.0 } else { reload_ms(request.key) };
        }
    }
    outcome
}

fn least_recently_used(requests: &[Request]) -> Outcome {
    let mut used = 0;
    let mut last: HashMap<usize, u64> = HashMap::new();
    let mut serial = 0;
    play(requests, |request| {
        serial += 1;
        let hit = last.insert(request.key, serial).is_some();
        if !hit {
            used += bytes_of(request.key);
            while used > BUDGET {
                let (&victim, _) = last.iter().min_by_key(|(_, serial)| **serial).expect("something is resident");
                last.remove(&victim);
                used -= bytes_of(victim);
            }
        }
        hit
    })
}

fn by_value(requests: &[Request], half_life_ms: u64, past: usize) -> Outcome {
    let mut ledger = Ledger::new(BUDGET).with_half_life_ms(half_life_ms);
    let mut past = Past::new(past);
    play(requests, |request| {
        let Request { key, now_ms, .. } = request;
        let hit = ledger.touch(&key, now_ms);
        if !hit {
            let worth = past.take(&key);
            let known = worth.is_some();
            let worth = worth.unwrap_or_else(|| Worth::new(1.0, now_ms)).with_reload_cost(reload_ms(key));
            if let Room::Evict(victims) = ledger.make_room(bytes_of(key), now_ms) {
                for victim in victims {
                    let worth = ledger.worth(&victim).expect("a victim is in the books");
                    ledger.remove(&victim);
                    past.keep(victim, worth);
                }
            }
            assert!(ledger.insert_worth(key, bytes_of(key), worth));
            if known {
                ledger.touch(&key, now_ms);
            }
        }
        assert!(ledger.used() <= BUDGET);
        hit
    })
}

/// As workers set them.
const HALF_LIFE_MS: u64 = 120_000;
const PAST: usize = 16 << 10;

fn both(requests: &[Request], name: &str) -> (Outcome, Outcome) {
    let (recency, value) = (least_recently_used(requests), by_value(requests, HALF_LIFE_MS, PAST));
    for (order, outcome) in [("recency", recency), ("value", value)] {
        println!("{name:<12} {order:<8} {:.3} hits, {:.1} ms a request", outcome.hit_ratio(), outcome.mean_wait_ms());
    }
    (recency, value)
}

#[test]
fn value_beats_recency_under_a_power_law() {
    let requests = traffic(None);
    let (recency, value) = both(&requests, "power law");
    assert!(value.hit_ratio() > 1.25 * recency.hit_ratio(), "{value:?} {recency:?}");
    assert!(value.mean_wait_ms() < 0.8 * recency.mean_wait_ms(), "{value:?} {recency:?}");
    // The past is what makes it so: without it an adapter that was evicted once starts from nothing.
    let forgetful = by_value(&requests, HALF_LIFE_MS, 0);
    assert!(value.hit_ratio() > 1.05 * forgetful.hit_ratio(), "{value:?} {forgetful:?}");
}

#[test]
fn a_tenant_that_cycles_through_cold_adapters_does_not_flush_those_of_others() {
    let quiet = by_value(&traffic(None), HALF_LIFE_MS, PAST);
    for (every, kept) in [(10, 0.95), (3, 0.85), (2, 0.7)] {
        let (recency, value) = both(&traffic(Some(every)), &format!("scan 1 of {every}"));
        assert!(value.hit_ratio() > 1.3 * recency.hit_ratio(), "1 of {every}: {value:?} {recency:?}");
        assert!(value.hit_ratio() > kept * quiet.hit_ratio(), "1 of {every}: {value:?} {quiet:?}");
    }
}

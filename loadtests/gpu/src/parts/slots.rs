//! More adapters than the device has room for: requests for adapters by a power law, whose adapters come from pinned memory when they are not there, in place
//! of those that nobody runs with and that were used longest ago.
//!
//! Adapters are of rank 16 in bf16, and there is room for as many as [`crate::Plan::rows`]. Half as many requests run at a time, and the next one comes when
//! one has its answer. Registered adapters are the same few copies in pinned memory (2,000 of Llama 8B's would be 168 GB): what is copied for a
//! load, and from where, is what an adapter of one's own would need, though a processor's cache may have more of it.

mod traffic;

use crate::bench::{Bench, Room, Shared};
use crate::budget::{Budget, in_turn};
use crate::report::Spread;
use anyhow::Result;
use serde::Serialize;
use traffic::Traffic;
use weft_engine::device::Format;

/// Packed adapters that all registered ones are.
pub(crate) const COPIES: usize = 8;

/// Registered adapters, in halves of those that there is room for.
const HALVES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Traffic to so many adapters.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) registered: usize,
    /// Adapters that there is room for.
    slots: usize,
    running: usize,
    /// Tokens of a prompt.
    prompt: usize,
    /// Tokens of an answer, in the middle: they are drawn from half of it to half as much again.
    answer: usize,
    requests: usize,
    /// Of requests, those whose adapter was not there.
    loads: usize,
    pub(crate) tokens_per_s: f64,
    /// From when a request came until its first token.
    first_token: Spread,
    /// Against the case with half as many adapters as slots; none in those that come before it.
    of_half: Option<Beyond>,
}

/// What a case has of another.
#[derive(Serialize)]
struct Beyond {
    tokens_per_s: f64,
    first_token_median: f64,
    first_token_p99: f64,
}

pub(crate) fn measure(shared: &Shared<'_>, budget: &Budget) -> Result<Vec<Case>> {
    let plan = shared.plan;
    let (slots, running) = (plan.rows, (plan.rows / 2).max(1));
    let [prompt, answer] = plan.request;
    let room = Room {
        format: Format::Bf16,
        graphs: true,
        rows: running * prompt,
        sequences: running,
        positions: prompt + 2 * answer,
        ranks: vec![16; slots],
        streamed: 0,
    };
    let mut bench = Bench::new(shared, room)?;
    let copies = (0..COPIES).map(|_| bench.prepare(16)).collect::<Result<Vec<_>>>()?;
    let half = (slots / 2).max(1);
    let multiples: Vec<usize> = HALVES.iter().map(|halves| (halves * slots / 2).max(1)).collect();
    // The first is what others are held against.
    let mut all = vec![half];
    all.extend(multiples.into_iter().chain(plan.registered.iter().copied()).filter(|count| *count != half));
    all.dedup();
    let mut measured: Vec<Case> = Vec::new();
    for (registered, budget) in in_turn(all, budget) {
        let mut traffic = Traffic::new(&mut bench, &copies, registered, slots, running);
        let seen = traffic.run(&budget)?;
        traffic.end();
        let of_half = measured.first().map(|half| Beyond {
            tokens_per_s: seen.tokens_per_s / half.tokens_per_s,
            first_token_median: seen.first_token.median_ms / half.first_token.median_ms,
            first_token_p99: seen.first_token.p99_ms / half.first_token.p99_ms,
        });
        measured.push(Case {
            registered,
            slots,
            running,
            prompt,
            answer,
            requests: seen.first_token.count,
            loads: seen.loads,
            tokens_per_s: seen.tokens_per_s,
            first_token: seen.first_token,
            of_half,
        });
    }
    Ok(measured)
}

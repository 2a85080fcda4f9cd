//! Each sampling field reaches the sampler as itself: what it changes is checked token by token against what the model
//! said before it was applied.

use std::collections::HashMap;

use crate::support::{Answer, HELLO, TestWorker, request, settings};
use weft_proto::worker::v1 as pb;

async fn sampled(worker: &TestWorker, sampling: pb::Sampling) -> Answer {
    let mut asked = request(None, HELLO, 120);
    asked.sampling = Some(sampling);
    asked.logprobs = Some(pb::Logprobs { top: 20, prompt: false });
    worker.generate(asked).await.unwrap()
}

/// Greedy under a penalty is the best of the model's own choices after the penalty for what was put out so far.
fn check_greedy(answer: &Answer, penalty: impl Fn(u32) -> f32) {
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for (at, token) in answer.tokens.iter().enumerate() {
        let adjusted = |id: u32, logprob: f32| logprob - penalty(counts.get(&id).copied().unwrap_or(0));
        let own = adjusted(token.id, token.logprob);
        for other in &token.top {
            let theirs = adjusted(other.id, other.logprob);
            assert!(own >= theirs - 1e-4, "token {at} is {}, {} is better: {own} < {theirs}", token.id, other.id);
        }
        *counts.entry(token.id).or_default() += 1;
    }
}

#[tokio::test]
async fn frequency_counts_every_time_and_presence_only_the_first() {
    let worker = TestWorker::start(settings()).await;
    let plain = sampled(&worker, pb::Sampling::default()).await;
    check_greedy(&plain, |_| 0.0);
    let frequency = sampled(&worker, pb::Sampling { frequency_penalty: 0.4, ..Default::default() }).await;
    check_greedy(&frequency, |count| 0.4 * count as f32);
    let presence = sampled(&worker, pb::Sampling { presence_penalty: 0.4, ..Default::default() }).await;
    check_greedy(&presence, |count| if count > 0 { 0.4 } else { 0.0 });
    assert_ne!(frequency.ids(), plain.ids());
    assert_ne!(presence.ids(), plain.ids());
    assert_ne!(frequency.ids(), presence.ids());
}

#[tokio::test]
async fn a_repetition_penalty_makes_what_was_there_less_likely_and_below_one_more() {
    let worker = TestWorker::start(settings()).await;
    let distinct = async |repetition_penalty| {
        let answer = sampled(&worker, pb::Sampling { repetition_penalty, ..Default::default() }).await;
        let mut ids = answer.ids();
        // The prompt counts, too.
        let repeats_prompt = ids.iter().filter(|id| HELLO.bytes().any(|byte| u32::from(byte) == **id)).count();
        ids.sort_unstable();
        ids.dedup();
        (ids.len(), repeats_prompt)
    };
    let (plain, off) = (distinct(0.0).await, distinct(1.0).await);
    assert_eq!(plain, off, "0 and 1 are off");
    let (more, less) = (distinct(1.5).await, distinct(0.5).await);
    assert!(more.0 > plain.0 && plain.0 >= less.0, "{more:?} {plain:?} {less:?}");
    assert_ne!(less, plain);
}

#[tokio::test]
async fn min_p_leaves_only_tokens_that_are_likely_enough() {
    let worker = TestWorker::start(settings()).await;
    let at = |min_p| pb::Sampling { temperature: 1.0, seed: Some(7), min_p, ..Default::default() };
    let greedy = sampled(&worker, pb::Sampling::default()).await;
    let free = sampled(&worker, at(0.0)).await;
    assert_ne!(free.ids(), greedy.ids());
    assert_eq!(sampled(&worker, at(1.0)).await.ids(), greedy.ids(), "only the likeliest is as likely as itself");
    let below = |answer: &Answer, share: f32| {
        answer.tokens.iter().filter(|token| token.logprob < token.top[0].logprob + share.ln() - 1e-4).count()
    };
    let some = sampled(&worker, at(0.5)).await;
    assert_eq!(below(&some, 0.5), 0);
    assert!(below(&free, 0.5) > 0, "it would not have mattered");
    assert_ne!(some.ids(), greedy.ids());
}

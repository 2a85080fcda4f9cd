//! The prefix cache through the gRPC face: who hits, who cannot, and that a hit changes nothing but the work.

use std::time::Instant;

use crate::support::{Answer, HELLO, TestWorker, blob, request, settings};
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_types::Digest;
use weft_worker::Settings;

const BLOCK: usize = 16;

/// 100 tokens that begin with this word: in the tiny model a token is a byte.
fn prompt(word: &str) -> String {
    format!("{word} {}", HELLO.repeat(10))[..100].to_owned()
}

fn of_tenant(tenant: &str, salt: u8, mut request: pb::GenerateRequest) -> pb::GenerateRequest {
    request.tenant = tenant.into();
    request.tenant_salt = vec![salt; 32].into();
    request
}

/// A token, the bits of its log-probability, and its alternatives with theirs.
type Bits = (u32, u32, Vec<(u32, u32)>);

/// Everything that was computed, to the bit.
fn outcome(answer: &Answer) -> Vec<Bits> {
    let top = |token: &pb::TokenOut| token.top.iter().map(|top| (top.id, top.logprob.to_bits())).collect();
    answer.tokens.iter().map(|token| (token.id, token.logprob.to_bits(), top(token))).collect()
}

fn with_logprobs(mut request: pb::GenerateRequest, prompt: bool) -> pb::GenerateRequest {
    request.logprobs = Some(pb::Logprobs { top: 5, prompt });
    request
}

#[tokio::test]
async fn a_hit_is_reported_saves_the_work_and_changes_no_bit() {
    for dtype in ["f32", "bf16", "int8", "q4"] {
        // Prompts are cut into several steps, and a hit into others.
        let settings = Settings { dtype: dtype.into(), step_tokens_max: 24, ..settings() };
        let worker = TestWorker::start(settings).await;
        let digest = worker.shelf.put(&blob("all_linear"));
        for adapter in [None, Some(digest)] {
            let ask = || worker.generate(with_logprobs(request(adapter, &prompt("same"), 20), false));
            let computed = worker.load().await.prompt_tokens_total;
            let first = ask().await.unwrap();
            let again = ask().await.unwrap();
            assert_eq!((first.started.cached_tokens, again.started.cached_tokens), (0, 96));
            assert_eq!(outcome(&again), outcome(&first));
            assert_eq!(worker.load().await.prompt_tokens_total - computed, 100 + 4);
            let steps = |answer: &Answer| answer.finished.last_step - answer.finished.first_step + 1;
            assert_eq!((steps(&first), steps(&again)), (5 + 19, 1 + 19));
        }
        let load = worker.load().await;
        assert_eq!((load.prefix_lookup_tokens_total, load.prefix_hit_tokens_total), (400, 192));
        assert!(load.kv_blocks_idle > 0 && load.kv_blocks_used == 0);
    }
}

#[tokio::test]
async fn the_next_turn_of_a_conversation_finds_the_last_answer() {
    let worker = TestWorker::start(settings()).await;
    let first = worker.generate(request(None, &prompt("turn"), 40)).await.unwrap();
    let mut ids: Vec<u32> = prompt("turn").bytes().map(u32::from).collect();
    ids.extend(first.ids());
    ids.extend([65, 66, 67]);
    let tokens = |salt: u8| {
        let mut next = of_tenant("harbour", salt, request(None, "", 12));
        next.prompt = Some(pb::generate_request::Prompt::Tokens(pb::TokenPrompt { ids: ids.clone() }));
        next
    };
    let next = worker.generate(tokens(7)).await.unwrap();
    // Of the answer's 40 tokens the last was delivered, never computed.
    assert_eq!(next.started.cached_tokens as usize, (100 + 39) / BLOCK * BLOCK);
    assert_eq!(outcome(&next), outcome(&worker.generate(tokens(8)).await.unwrap()), "and says what it would without");
}

#[tokio::test]
async fn another_tenant_adapter_or_no_salt_at_all_never_hits() {
    let worker = TestWorker::start(settings()).await;
    let (one, two) = (worker.shelf.put(&blob("rank4")), worker.shelf.put(&blob("rank8")));
    let ask = async |tenant: &str, salt: u8, adapter: Option<Digest>| {
        let answer = worker.generate(of_tenant(tenant, salt, request(adapter, &prompt("secret"), 4))).await.unwrap();
        answer.started.cached_tokens
    };
    assert_eq!(ask("harbour", 1, Some(one)).await, 0);
    assert_eq!(ask("harbour", 1, Some(one)).await, 96);
    assert_eq!(ask("harbour", 1, Some(two)).await, 0, "another adapter");
    assert_eq!(ask("harbour", 1, None).await, 0, "the base alone");
    // Two tenants that published the same bytes: the digest is the same, the namespace is not.
    assert_eq!(ask("helpdesk", 2, Some(one)).await, 0, "another tenant");
    assert_eq!(ask("harbour", 2, Some(one)).await, 96, "the salt decides, not the name");

    let unsalted = pb::GenerateRequest { tenant_salt: Vec::new().into(), ..request(None, &prompt("secret"), 4) };
    let lookups = worker.load().await.prefix_lookup_tokens_total;
    for _ in 0..2 {
        assert_eq!(worker.generate(unsalted.clone()).await.unwrap().started.cached_tokens, 0);
    }
    assert_eq!(worker.load().await.prefix_lookup_tokens_total, lookups);
}

#[tokio::test]
async fn log_probabilities_of_the_prompt_are_computed_for_every_token() {
    let worker = TestWorker::start(settings()).await;
    let plain = with_logprobs(request(None, &prompt("all rows"), 6), false);
    let full = with_logprobs(request(None, &prompt("all rows"), 6), true);
    let first = worker.generate(full.clone()).await.unwrap();
    let again = worker.generate(full).await.unwrap();
    let rows = |answer: &Answer| answer.finished.prompt.iter().map(|row| row.logprob.to_bits()).collect::<Vec<_>>();
    assert_eq!((again.started.cached_tokens, rows(&again).len()), (0, 100));
    assert_eq!(rows(&again), rows(&first));
    let after = worker.generate(plain).await.unwrap();
    assert_eq!(after.started.cached_tokens, 96, "what it computed serves others");
    assert_eq!(outcome(&after), outcome(&first));
}

#[tokio::test]
async fn switched_off_nothing_is_kept() {
    let worker = TestWorker::start(Settings { prefix_cache: false, ..settings() }).await;
    for _ in 0..2 {
        let answer = worker.generate(request(None, &prompt("off"), 4)).await.unwrap();
        assert_eq!(answer.started.cached_tokens, 0);
    }
    let load = worker.load().await;
    assert_eq!((load.kv_blocks_idle, load.prefix_lookup_tokens_total, load.prompt_tokens_total), (0, 0, 200));
}

#[tokio::test]
async fn a_shared_prefix_survives_preemption_and_changes_no_token() {
    let roomy = TestWorker::start(Settings { prefix_cache: false, ..settings() }).await;
    let digest = roomy.shelf.put(&blob("rank8"));
    // All share three blocks, then each goes its own way for four.
    let requests: Vec<pb::GenerateRequest> =
        (0..6).map(|index| request(Some(digest), &format!("{} {index}", &prompt("shared")[..50]), 60)).collect();
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(outcome(&roomy.generate(request.clone()).await.unwrap()));
    }
    // 16 blocks: three shared and four for each of three, but six want to run.
    let tight = TestWorker::start(Settings { kv_tokens_max: 256, context_tokens_max: 128, ..settings() }).await;
    tight.shelf.put(&blob("rank8"));
    tight.generate(requests[0].clone()).await.unwrap();
    let mut rounds = 0;
    let load = loop {
        for (expected, answer) in expected.iter().zip(all_at_once(&tight, &requests).await) {
            assert!(answer.started.cached_tokens >= 48, "{}", answer.started.cached_tokens);
            assert_eq!(outcome(&answer), *expected);
        }
        rounds += 1;
        let load = tight.load().await;
        if rounds >= 3 && load.preemptions_total > 0 && load.kv_blocks_reclaimed_total > 0 {
            break load;
        }
    };
    assert_eq!(load.kv_blocks_used, 0);
}

async fn all_at_once(worker: &TestWorker, requests: &[pb::GenerateRequest]) -> Vec<Answer> {
    let calls = requests.iter().cloned().map(|request| {
        let mut client = worker.client.clone();
        tokio::spawn(async move { Answer::read(client.generate(request).await.unwrap().into_inner()).await.unwrap() })
    });
    let calls: Vec<_> = calls.collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

/// What a tenant can see of one request: how much was cached, the steps to its first token, tokens computed for it. And
/// how long that took, which is only printed.
async fn observe(worker: &TestWorker, request: pb::GenerateRequest) -> ((u32, u64, u64), f64) {
    let before = worker.load().await;
    let begin = Instant::now();
    let mut stream = worker.client.clone().generate(request).await.unwrap().into_inner();
    let (mut cached, mut first_token) = (0, None);
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Started(started) => cached = started.cached_tokens,
            Event::Tokens(_) => first_token = first_token.or(Some(begin.elapsed().as_secs_f64())),
            Event::Finished(_) => {}
        }
    }
    let after = worker.load().await;
    let seen = (cached, after.steps_total - before.steps_total, after.prompt_tokens_total - before.prompt_tokens_total);
    (seen, first_token.unwrap())
}

/// The probability that a time of `left` is smaller than one of `right` (Mann and Whitney 1947, divided by the number of
/// pairs): 0.5 if nobody can tell them apart.
fn smaller(left: &[f64], right: &[f64]) -> f64 {
    let pairs = left.iter().flat_map(|l| {
        right.iter().map(move |r| {
            if l < r {
                1.0
            } else if l == r {
                0.5
            } else {
                0.0
            }
        })
    });
    pairs.sum::<f64>() / (left.len() * right.len()) as f64
}

#[tokio::test]
async fn a_tenant_cannot_tell_what_another_asked() {
    let worker = TestWorker::start(Settings { step_tokens_max: 24, ..settings() }).await;
    let digest = worker.shelf.put(&blob("rank8"));
    let victim = |text: &str| of_tenant("victim", 1, request(Some(digest), text, 1));
    let prober = |text: &str| of_tenant("prober", 2, request(Some(digest), text, 1));
    let (mut guessed, mut fresh, mut own) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen_own = Vec::new();
    for round in 0..40 {
        let secret = prompt(&format!("{round} secret"));
        worker.generate(victim(&secret)).await.unwrap();
        // The order must not be what tells them apart.
        let both = [prober(&secret), prober(&prompt(&format!("{round} other.")))];
        let mut observed = Vec::new();
        for at in [round % 2, 1 - round % 2] {
            observed.push((at, observe(&worker, both[at].clone()).await));
        }
        observed.sort_by_key(|(at, _)| *at);
        let [(_, (seen_guess, time_guess)), (_, (seen_fresh, time_fresh))] = observed[..] else { unreachable!() };
        assert_eq!(seen_guess, seen_fresh, "round {round}: the guess looks different");
        assert_eq!(seen_guess, (0, 5, 100));
        guessed.push(time_guess);
        fresh.push(time_fresh);
        // Within the tenant the difference is there to see, so that the look above could have seen it.
        let (seen, time) = observe(&worker, prober(&secret)).await;
        seen_own.push(seen);
        own.push(time);
    }
    assert!(seen_own.iter().all(|seen| *seen == (96, 1, 4)), "{seen_own:?}");
    println!(
        "time to first token: another tenant's prompt faster than a fresh one with p = {:.2}, an own one with p = {:.2}",
        smaller(&guessed, &fresh),
        smaller(&own, &fresh)
    );
}

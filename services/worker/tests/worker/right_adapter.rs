//! Invariant 1 under stress: 10,000 random events (load, evict, re-publish, generate, cancel, wrong bytes, a lost daemon)
//! against a sequential model. Not one token may come from a wrong adapter.

use std::collections::HashMap;
use std::sync::Arc;

use crate::support::{ADAPTERS, Answer, TestWorker, blob, golden_greedy, request, settings};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;
use weft_fault::{Fault, Kind};
use weft_types::Digest;
use weft_worker::Settings;

const EVENTS: usize = 10_000;
const TOKENS: u32 = 12;
const PROMPTS: [&str; 4] = ["Hello, loom!", "weft & warp?", "The weft passes over and under.", "x"];
/// Requests in flight: more than run at once.
const IN_FLIGHT: usize = 24;

/// What the worker must answer: computed one request after another, with room for everything.
struct Model {
    answers: HashMap<(Option<Digest>, &'static str), Vec<u32>>,
}

impl Model {
    async fn new(digests: &[Digest]) -> Self {
        let worker = TestWorker::start(settings()).await;
        for name in ADAPTERS {
            worker.shelf.put(&blob(name));
        }
        let mut answers = HashMap::new();
        for adapter in std::iter::once(None).chain(digests.iter().copied().map(Some)) {
            for prompt in PROMPTS {
                let answer = worker.generate(request(adapter, prompt, TOKENS)).await.unwrap();
                answers.insert((adapter, prompt), answer.ids());
            }
        }
        // The model itself is right where transformers + PEFT was asked.
        for (name, digest) in ADAPTERS.iter().zip(digests) {
            assert_eq!(answers[&(Some(*digest), PROMPTS[0])], golden_greedy(Some(name))[..TOKENS as usize]);
        }
        let distinct: std::collections::HashSet<_> = PROMPTS.iter().map(|prompt| &answers[&(None, *prompt)]).collect();
        assert_eq!(distinct.len(), PROMPTS.len());
        Self { answers }
    }
}

/// What came of one request.
enum Outcome {
    Right,
    Cancelled,
    Refused(Fault),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_random_events_give_no_token_of_a_wrong_adapter() {
    let seed: u64 =
        std::env::var("WEFT_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}: run again with WEFT_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let blobs: Vec<Vec<u8>> = ADAPTERS.iter().map(|name| blob(name)).collect();
    let digests: Vec<Digest> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    let model = Arc::new(Model::new(&digests).await);
    // Room for about half of the adapters' bytes, and a KV pool that makes the youngest give way.
    let worker = TestWorker::start(Settings {
        adapter_memory_bytes: 300_000,
        kv_tokens_max: 16 * 12,
        context_tokens_max: 120,
        running_requests_max: 12,
        adapter_loads_max: 3,
        step_tokens_max: 48,
        ..settings()
    })
    .await;
    for blob in &blobs {
        worker.shelf.put(blob);
    }
    // Names as a registry would hold them; re-publishing gives a name another version.
    let mut versions: Vec<usize> = (0..6).collect();
    let mut wrong_behind: Vec<Digest> = Vec::new();
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut calls = Vec::new();
    let mut evictions_asked = 0;
    for _ in 0..EVENTS {
        match rng.random_range(0..100) {
            // Generate: resolve the name to one digest now, and expect exactly that one's answer.
            0..70 => {
                let name = rng.random_range(0..=versions.len());
                let adapter = versions.get(name).map(|version| digests[*version]);
                let prompt = PROMPTS.choose(&mut rng).copied().unwrap();
                let cancel_after = rng.random_bool(0.1).then(|| rng.random_range(0..TOKENS as usize));
                let mut asked = request(adapter, prompt, TOKENS);
                asked.tenant = format!("tenant-{}", name % 3);
                let permit = in_flight.clone().acquire_owned().await.unwrap();
                let (mut client, model) = (worker.client.clone(), model.clone());
                calls.push(tokio::spawn(async move {
                    let _permit = permit;
                    let stream = match client.generate(asked).await {
                        Ok(response) => response.into_inner(),
                        Err(status) => return Outcome::Refused(status.into()),
                    };
                    let expected = &model.answers[&(adapter, prompt)];
                    if let Some(count) = cancel_after {
                        let mut stream = stream;
                        let mut seen = Vec::new();
                        while seen.len() < count {
                            let Ok(Some(event)) = stream.message().await else { break };
                            if let Some(weft_proto::worker::v1::generate_event::Event::Tokens(tokens)) = event.event {
                                assert_eq!(tokens.adapter_digest, adapter.map_or(vec![], |digest| digest.to_vec()));
                                seen.extend(tokens.tokens.iter().map(|token| token.id));
                            }
                        }
                        assert_eq!(seen[..], expected[..seen.len()], "a token of a wrong adapter: {adapter:?}");
                        return Outcome::Cancelled;
                    }
                    match Answer::read(stream).await {
                        Ok(answer) => {
                            assert_eq!(answer.ids(), *expected, "a token of a wrong adapter: {adapter:?} {prompt:?}");
                            assert_eq!(
                                answer.finished.adapter_digest,
                                adapter.map_or(vec![], |digest| digest.to_vec())
                            );
                            Outcome::Right
                        }
                        Err(fault) => Outcome::Refused(fault),
                    }
                }));
            }
            // Re-publish: the name has another version from now on.
            70..82 => {
                let name = rng.random_range(0..versions.len());
                versions[name] = rng.random_range(0..digests.len());
            }
            // Wrong bytes behind a right name.
            82..86 => {
                let (wrong, right) = (rng.random_range(0..blobs.len()), *digests.choose(&mut rng).unwrap());
                worker.shelf.put_as(right, &blobs[wrong]);
                wrong_behind.push(right);
            }
            // The right bytes again.
            86..94 => {
                if let Some(digest) = wrong_behind.pop() {
                    worker.shelf.put(&blobs[digests.iter().position(|other| *other == digest).unwrap()]);
                }
            }
            // Evict, by asking for something large from everybody's room.
            94..97 => {
                evictions_asked += 1;
                versions.rotate_left(1);
                versions[0] = digests.len() - 1;
            }
            97..99 => {
                let digest = *digests.choose(&mut rng).unwrap();
                worker.shelf.take_away(&digest);
                wrong_behind.push(digest);
            }
            _ => worker.shelf.cut(),
        }
    }
    let (mut right, mut cancelled, mut refused) = (0, 0, HashMap::<Kind, usize>::new());
    for call in calls {
        match call.await.unwrap() {
            Outcome::Right => right += 1,
            Outcome::Cancelled => cancelled += 1,
            Outcome::Refused(fault) => {
                assert!(matches!(fault.kind, Kind::Corrupt | Kind::NotFound | Kind::Unavailable), "{fault:?}");
                *refused.entry(fault.kind).or_default() += 1;
            }
        }
    }
    let load = worker.load_when(|load| load.running_requests == 0 && load.loading_requests == 0).await;
    println!("{right} right, {cancelled} cancelled, refused {refused:?}, {evictions_asked} evictions asked, {load:?}");
    assert_eq!(load.kv_blocks_used, 0);
    assert!(right > EVENTS / 4, "too few answers to say anything: {right}");
    assert!(load.mixed_steps_total > 100 && load.slot_bytes_used <= load.slot_bytes_max);
    assert!(refused.contains_key(&Kind::Corrupt) && refused.contains_key(&Kind::NotFound), "{refused:?}");
    let generation = worker
        .client
        .clone()
        .list_residency(weft_proto::worker::v1::ListResidencyRequest {})
        .await
        .unwrap()
        .into_inner()
        .generation;
    assert!(generation > 100, "only {generation} installs and evictions");
}

//! Generation through the gRPC face: right tokens, whole text, logprobs, stops, sampling and refusals.

use crate::support::{ADAPTERS, HELLO, TestWorker, blob, golden_greedy, request, settings};
use weft_fault::Kind;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;
use weft_worker::Settings;

fn stopping(request: &mut pb::GenerateRequest) -> &mut pb::Stopping {
    request.stopping.get_or_insert_default()
}

#[tokio::test]
async fn base_and_adapters_answer_as_transformers_and_peft_do() {
    let worker = TestWorker::start(settings()).await;
    let base = worker.generate(request(None, HELLO, 16)).await.unwrap();
    assert_eq!(base.ids(), golden_greedy(None));
    assert_eq!(base.reason(), pb::FinishReason::Length);
    assert!(base.started.adapter_digest.is_empty());
    assert_eq!((base.started.prompt_tokens, base.started.worker.as_str()), (12, "worker-t"));
    for name in ADAPTERS {
        let digest = worker.shelf.put(&blob(name));
        let answer = worker.generate(request(Some(digest), HELLO, 16)).await.unwrap();
        assert_eq!(answer.ids(), golden_greedy(Some(name)), "{name}");
        assert_eq!(answer.started.adapter_digest, digest.to_vec());
        assert_eq!(answer.started.base_digest, base.started.base_digest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_batch_of_32_answers_like_each_alone() {
    let settings = Settings { step_tokens_max: 256, adapter_loads_max: ADAPTERS.len(), ..settings() };
    let (apart, joint) = (TestWorker::start(settings.clone()).await, TestWorker::start(settings).await);
    let mut digests: Vec<Option<Digest>> = vec![None];
    for name in ADAPTERS {
        joint.shelf.put(&blob(name));
        digests.push(Some(apart.shelf.put(&blob(name))));
    }
    let prompts: Vec<String> = (0..32).map(|index| format!("{} {HELLO}", "weft ".repeat(index % 7))).collect();
    let requests: Vec<pb::GenerateRequest> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| request(digests[index % digests.len()], prompt, 180))
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(apart.generate(request.clone()).await.unwrap());
    }
    assert_eq!(apart.load().await.mixed_steps_total, 0);
    // All adapters come at once, so that their requests start together.
    joint.shelf.hold();
    let gathered = requests.iter().filter(|request| request.adapter.is_some()).count() as u32;
    let (together, ()) =
        tokio::join!(futures_join(requests.iter().map(|request| joint.generate(request.clone()))), async {
            joint.load_when(|load| load.loading_requests == gathered).await;
            joint.shelf.let_go();
        });
    let mut shared = (0, 0);
    for (index, (alone, together)) in alone.iter().zip(together).enumerate() {
        let together = together.unwrap();
        assert_eq!(together.ids(), alone.ids(), "request {index}");
        assert_eq!(together.started.adapter_digest, alone.started.adapter_digest);
        let finished = together.finished;
        shared = shared.max((finished.adapters_in_step_max, finished.requests_in_step_max));
    }
    assert!(shared.0 >= 8 && shared.1 >= 16, "most adapters and requests in one step: {shared:?}");
    assert!(joint.load().await.mixed_steps_total > 0);
}

/// Polls all of them at once.
async fn futures_join<F: Future>(calls: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = calls.map(|call| (Box::pin(call), None)).collect();
    std::future::poll_fn(|context| {
        for (call, output) in &mut pending {
            if output.is_none()
                && let std::task::Poll::Ready(done) = call.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if pending.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test]
async fn preemption_under_a_tiny_kv_pool_changes_no_token() {
    let roomy = TestWorker::start(settings()).await;
    let digest = roomy.shelf.put(&blob("rank8"));
    let requests: Vec<pb::GenerateRequest> =
        (0..6).map(|index| request(Some(digest), &format!("{index} {HELLO}"), 60)).collect();
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(roomy.generate(request.clone()).await.unwrap());
    }
    // 10 blocks of 16 tokens; each request grows to 5. They start together, when their adapter comes.
    let tight = TestWorker::start(Settings { kv_tokens_max: 160, context_tokens_max: 100, ..settings() }).await;
    // Short answers first, so that no more is expected of those that follow.
    for _ in 0..40 {
        tight.generate(request(None, HELLO, 1)).await.unwrap();
    }
    tight.shelf.put(&blob("rank8"));
    tight.shelf.hold();
    let (answers, ()) =
        tokio::join!(futures_join(requests.iter().map(|request| tight.generate(request.clone()))), async {
            tight.load_when(|load| load.loading_requests == 6).await;
            tight.shelf.let_go();
        });
    for (expected, answer) in expected.iter().zip(answers) {
        let answer = answer.unwrap();
        assert_eq!((answer.ids(), answer.text()), (expected.ids(), expected.text()));
    }
    let load = tight.load().await;
    assert!(load.preemptions_total > 0, "the pool was not tight");
    assert_eq!((load.kv_blocks_used, load.kv_blocks_max), (0, 10));
}

#[tokio::test]
async fn sampling_repeats_with_its_seed_and_reports_a_drawn_one() {
    let worker = TestWorker::start(settings()).await;
    let sampled = |seed| {
        let mut request = request(None, HELLO, 24);
        request.sampling = Some(pb::Sampling { temperature: 1.5, top_p: 0.95, top_k: 200, seed, ..Default::default() });
        request
    };
    let drawn = worker.generate(sampled(None)).await.unwrap();
    let repeated = worker.generate(sampled(Some(drawn.finished.seed))).await.unwrap();
    assert_eq!(repeated.ids(), drawn.ids());
    assert_ne!(worker.generate(sampled(Some(drawn.finished.seed ^ 1))).await.unwrap().ids(), drawn.ids());
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_wherever_its_tokens_begin() {
    let worker = TestWorker::start(settings()).await;
    // The greedy answer has the tokens 95, 26, 95, 37: "_\u{1a}_%".
    let mut cut = request(None, HELLO, 16);
    stopping(&mut cut).stop = vec!["not there".into(), "_\u{1a}_%".into()];
    let whole = worker.generate(request(None, HELLO, 16)).await.unwrap();
    let answer = worker.generate(cut.clone()).await.unwrap();
    let end = whole.text().find("_\u{1a}_%").expect("the golden answer has it");
    assert_eq!(answer.text(), whole.text()[..end]);
    assert_eq!((answer.reason(), answer.finished.stop_index), (pb::FinishReason::Stop, Some(1)));
    assert_eq!(answer.ids(), golden_greedy(None)[..answer.tokens.len()]);
    stopping(&mut cut).include_stop = true;
    let kept = worker.generate(cut).await.unwrap();
    assert_eq!(kept.text(), whole.text()[..end + 4]);
    assert_eq!(worker.load().await.kv_blocks_used, 0);
}

#[tokio::test]
async fn characters_split_over_tokens_come_whole_and_can_stop_an_answer() {
    let worker = TestWorker::start(settings()).await;
    let sampled = |seed, stop: Vec<String>| {
        let mut request = request(None, HELLO, 100);
        request.sampling = Some(pb::Sampling { temperature: 4.0, seed: Some(seed), ..Default::default() });
        stopping(&mut request).stop = stop;
        request
    };
    let mut seen = 0;
    for seed in 0..20 {
        let answer = worker.generate(sampled(seed, vec![])).await.unwrap();
        let bytes: Vec<u8> = answer.ids().iter().filter(|id| **id < 256).map(|id| *id as u8).collect();
        assert_eq!(answer.text(), String::from_utf8_lossy(&bytes), "seed {seed}");
        let character = answer.text().chars().find(|c| c.len_utf8() > 1 && *c != char::REPLACEMENT_CHARACTER);
        let Some(character) = character else { continue };
        seen += 1;
        let stopped = worker.generate(sampled(seed, vec![character.to_string()])).await.unwrap();
        assert_eq!(stopped.text(), answer.text().split(character).next().unwrap());
        assert_eq!(stopped.ids(), answer.ids()[..stopped.tokens.len()]);
    }
    assert!(seen > 3, "only {seen} answers had a character of several bytes");
}

#[tokio::test]
async fn logprobs_are_those_of_the_model_for_output_and_prompt() {
    let worker = TestWorker::start(settings()).await;
    let mut asked = request(None, HELLO, 4);
    asked.logprobs = Some(pb::Logprobs { top: 5, prompt: true });
    // Penalties and temperature change the choice, never the report.
    asked.sampling =
        Some(pb::Sampling { temperature: 0.7, seed: Some(3), presence_penalty: 1.5, ..Default::default() });
    let answer = worker.generate(asked).await.unwrap();
    for token in &answer.tokens {
        assert_eq!(token.top.len(), 5);
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        if let Some(own) = token.top.iter().find(|top| top.id == token.id) {
            assert_eq!(own.logprob, token.logprob);
        }
    }
    let prompt = &answer.finished.prompt;
    assert_eq!(prompt.iter().map(|token| token.text.as_str()).collect::<String>(), HELLO);
    assert!(prompt[0].logprob.is_nan() && prompt[0].top.is_empty());
    // The log-probability of prompt token i is what a greedy request for the prefix says about it.
    let mut prefix = request(None, &HELLO[..7], 1);
    prefix.logprobs = Some(pb::Logprobs { top: 20, prompt: false });
    let next = worker.generate(prefix).await.unwrap();
    assert_eq!(
        prompt[7].top[..5].iter().map(|top| top.id).collect::<Vec<_>>(),
        next.tokens[0].top[..5].iter().map(|top| top.id).collect::<Vec<_>>()
    );
    // Same row in another batch shape: equal within the rounding of f32 sums over 64 products.
    assert!((prompt[7].top[0].logprob - next.tokens[0].logprob).abs() < 1e-4);
}

#[tokio::test]
async fn a_long_prompt_with_prompt_logprobs_is_reported_whole_across_chunks() {
    let worker = TestWorker::start(Settings { step_tokens_max: 8, ..settings() }).await;
    let mut asked = request(None, &HELLO.repeat(5), 2);
    asked.logprobs = Some(pb::Logprobs { top: 0, prompt: true });
    let answer = worker.generate(asked).await.unwrap();
    assert_eq!(answer.finished.prompt.len(), 60);
    assert!(answer.finished.prompt[1..].iter().all(|token| token.logprob.is_finite()));
    assert!(answer.finished.last_step - answer.finished.first_step >= 7);
}

#[tokio::test]
async fn a_chat_is_rendered_with_the_template_and_special_text_stays_text() {
    let worker = TestWorker::start(settings()).await;
    let chat = |content: &str| {
        let messages = serde_json::json!([{"role": "user", "content": content}]).to_string();
        let mut request = request(None, "", 1);
        request.prompt =
            Some(pb::generate_request::Prompt::Chat(pb::ChatPrompt { messages_json: messages, ..Default::default() }));
        request
    };
    let answer = worker.generate(chat("hi")).await.unwrap();
    // <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
    assert_eq!(answer.started.prompt_tokens, 1 + 5 + 2 + 1 + 1 + 1 + 10);
    let sly = worker.generate(chat("<|im_end|>")).await.unwrap();
    assert_eq!(sly.started.prompt_tokens, answer.started.prompt_tokens + 8, "ten bytes, no special token");
}

#[tokio::test]
async fn the_end_of_sequence_ends_an_answer_unless_ignored() {
    let worker = TestWorker::start(settings()).await;
    let sampled = |seed, ignore_eos| {
        let mut request = request(None, HELLO, 120);
        request.sampling = Some(pb::Sampling { temperature: 3.0, seed: Some(seed), ..Default::default() });
        stopping(&mut request).ignore_eos = ignore_eos;
        request
    };
    let mut ended = 0;
    for seed in 0..12 {
        let whole = worker.generate(sampled(seed, true)).await.unwrap();
        let answer = worker.generate(sampled(seed, false)).await.unwrap();
        match whole.ids().iter().position(|id| *id == 258) {
            Some(at) => {
                ended += 1;
                assert_eq!(answer.ids(), whole.ids()[..=at]);
                assert_eq!(answer.reason(), pb::FinishReason::Eos);
                let last = answer.tokens.last().unwrap();
                assert!(last.special);
                // Nothing of its own; at most the rest of a character that never came.
                assert!(last.text.is_empty() || last.text == "\u{fffd}", "{:?}", last.text);
            }
            None => assert_eq!(answer.ids(), whole.ids()),
        }
    }
    assert!(ended > 0, "no seed reached the end of sequence");
}

#[tokio::test]
async fn an_absent_max_tokens_uses_what_the_context_leaves() {
    let worker = TestWorker::start(Settings { context_tokens_max: 40, ..settings() }).await;
    let answer = worker.generate(request(None, HELLO, 0)).await.unwrap();
    assert_eq!((answer.tokens.len(), answer.reason()), (28, pb::FinishReason::Length));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_before_it_starts() {
    let worker = TestWorker::start(Settings { context_tokens_max: 40, prompt_tokens_max: 20, ..settings() }).await;
    let base = || request(None, HELLO, 4);
    let sampling = |sampling: pb::Sampling| pb::GenerateRequest { sampling: Some(sampling), ..base() };
    let text = |text: &str| request(None, text, 4);
    let with = |change: &dyn Fn(&mut pb::GenerateRequest)| {
        let mut request = base();
        change(&mut request);
        request
    };
    let cases: Vec<(&str, pb::GenerateRequest, Kind, &str, &[&str])> = vec![
        ("long prompt", text(&"x".repeat(21)), Kind::Invalid, "context_length_exceeded", &["21", "20"]),
        (
            "long answer",
            with(&|r| stopping(r).max_tokens = 29),
            Kind::Invalid,
            "context_length_exceeded",
            &["12", "29", "40"],
        ),
        ("empty prompt", text(""), Kind::Invalid, "empty_prompt", &["prompt is empty"]),
        ("no prompt", with(&|r| r.prompt = None), Kind::Invalid, "invalid", &["prompt"]),
        (
            "temperature",
            sampling(pb::Sampling { temperature: -1.0, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["temperature is -1", "0 or more"],
        ),
        (
            "nan",
            sampling(pb::Sampling { temperature: f32::NAN, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["temperature is NaN"],
        ),
        (
            "top_p",
            sampling(pb::Sampling { top_p: 1.5, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["top_p is 1.5", "at most 1"],
        ),
        (
            "min_p",
            sampling(pb::Sampling { min_p: -0.1, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["min_p is -0.1"],
        ),
        (
            "typical_p",
            sampling(pb::Sampling { typical_p: 1.0, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["typical_p is 1"],
        ),
        (
            "repetition",
            sampling(pb::Sampling { repetition_penalty: -2.0, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["repetition_penalty is -2"],
        ),
        (
            "frequency",
            sampling(pb::Sampling { frequency_penalty: 2.5, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["frequency_penalty is 2.5", "-2 to 2"],
        ),
        (
            "presence",
            sampling(pb::Sampling { presence_penalty: f32::INFINITY, ..Default::default() }),
            Kind::Invalid,
            "invalid",
            &["presence_penalty is inf"],
        ),
        (
            "empty stop",
            with(&|r| stopping(r).stop = vec![String::new()]),
            Kind::Invalid,
            "invalid",
            &["stop is an empty string"],
        ),
        (
            "many stops",
            with(&|r| stopping(r).stop = vec!["a".into(); 17]),
            Kind::Invalid,
            "invalid",
            &["17 strings", "16"],
        ),
        (
            "logprobs",
            with(&|r| r.logprobs = Some(pb::Logprobs { top: 21, prompt: false })),
            Kind::Invalid,
            "invalid",
            &["21", "0 to 20"],
        ),
        (
            "short digest",
            with(&|r| r.adapter = Some(pb::AdapterRef { digest: vec![1; 31].into(), label: String::new() })),
            Kind::Invalid,
            "invalid",
            &["adapter.digest", "31 bytes"],
        ),
        (
            "empty digest",
            with(&|r| r.adapter = Some(pb::AdapterRef::default())),
            Kind::Invalid,
            "invalid",
            &["0 bytes"],
        ),
        (
            "other base",
            with(&|r| r.expected_base_digest = vec![1; 32].into()),
            Kind::Refused,
            "wrong_base",
            &["expects sha256:0101"],
        ),
        (
            "weight",
            with(&|r| r.tenant_weight = 100.5),
            Kind::Invalid,
            "invalid",
            &["tenant_weight is 100.5", "0.01 to 100"],
        ),
        ("priority", with(&|r| r.priority = -2), Kind::Invalid, "invalid", &["priority is -2", "-1"]),
        ("bad salt", with(&|r| r.tenant_salt = vec![1; 5].into()), Kind::Invalid, "invalid", &["tenant_salt"]),
        (
            "token id",
            with(&|r| r.prompt = Some(pb::generate_request::Prompt::Tokens(pb::TokenPrompt { ids: vec![1, 260] }))),
            Kind::Invalid,
            "invalid",
            &["260", "below 260"],
        ),
        (
            "no array",
            with(&|r| {
                r.prompt = Some(pb::generate_request::Prompt::Chat(pb::ChatPrompt {
                    messages_json: "{}".into(),
                    ..Default::default()
                }))
            }),
            Kind::Invalid,
            "invalid",
            &["messages"],
        ),
        (
            "template",
            with(&|r| {
                r.prompt = Some(pb::generate_request::Prompt::Chat(pb::ChatPrompt {
                    messages_json: "[{\"role\": 3}]".into(),
                    ..Default::default()
                }))
            }),
            Kind::Invalid,
            "template_error",
            &[],
        ),
        (
            "unknown adapter",
            request(Some(Digest::of(b"nobody")), HELLO, 4),
            Kind::NotFound,
            "not_found",
            &["no such blob"],
        ),
    ];
    for (case, request, kind, code, parts) in cases {
        let fault = worker.generate(request).await.expect_err(case);
        assert_eq!((fault.kind, fault.code.as_str()), (kind, code), "{case}: {fault}");
        for part in parts {
            assert!(fault.message.contains(part), "{case}: {part:?} in {:?}", fault.message);
        }
    }
    let load = worker.load().await;
    assert_eq!((load.running_requests, load.queued_requests, load.loading_requests, load.kv_blocks_used), (0, 0, 0, 0));
}

#[tokio::test]
async fn truncate_keeps_the_end_of_a_prompt() {
    let worker = TestWorker::start(settings()).await;
    let mut long = request(None, &format!("something before {HELLO}"), 16);
    let Some(pb::generate_request::Prompt::Text(text)) = &mut long.prompt else { unreachable!("a text prompt") };
    text.truncate = 12;
    assert_eq!(worker.generate(long).await.unwrap().ids(), golden_greedy(None));
}

#[tokio::test]
async fn tokenize_and_describe_answer_without_the_loop() {
    let worker = TestWorker::start(settings()).await;
    let mut client = worker.client.clone();
    let asked = pb::TokenizeRequest { text: "aé".into(), add_special_tokens: false };
    let tokens = client.tokenize(asked).await.unwrap().into_inner().tokens;
    assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [97, 0xc3, 0xa9]);
    assert_eq!((tokens[0].text.as_str(), tokens[0].start, tokens[0].end), ("a", 0, 1));
    assert_eq!((tokens[1].start, tokens[2].end), (1, 2), "offsets are characters");
    let facts = client.describe(pb::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((facts.served_name.as_str(), facts.dtype.as_str()), ("tiny", "f32"));
    assert_eq!((facts.context_tokens_max, facts.prompt_tokens_max, facts.vocabulary_size), (256, 255, 260));
    assert!(facts.has_chat_template && facts.base_digest.len() == 32 && facts.model_id.ends_with("tiny"));
}

/// What `auto` is beside a base whose file has `Q4_1`, and beside one whose file has floats.
#[tokio::test]
async fn the_fastest_format_that_loses_nothing_of_the_file_is_chosen() {
    let demo = std::env::var("WEFT_DEMO_MODEL").unwrap_or_else(|_| {
        let cache = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
        let path = weft_base_model::fetch::demo_model(&cache).expect("the demo model can be fetched");
        path.into_os_string().into_string().unwrap()
    });
    let choice = async |model: String| {
        let settings = Settings { model, dtype: "auto".into(), kv_memory_bytes: 64 << 20, ..settings() };
        TestWorker::start(settings).await.client.describe(pb::DescribeRequest {}).await.unwrap().into_inner().dtype
    };
    let choices = [choice(demo).await, choice(settings().model).await];
    let expected = match weft_kernels::Isa::detect().as_str() {
        "portable" => ["f32", "f32"],
        "avx512" | "neon" => ["bf16", "bf16"],
        _ => ["q4", "int8"],
    };
    assert_eq!(choices, expected);
}

#[tokio::test]
async fn every_token_carries_its_own_bytes_whatever_is_delivered_of_it() {
    let worker = TestWorker::start(settings()).await;
    let mut crab = request(None, "🦀", 24);
    crab.logprobs = Some(pb::Logprobs { top: 2, prompt: true });
    stopping(&mut crab).ignore_eos = true;
    let answer = worker.generate(crab).await.unwrap();
    // The prompt's emoji is several tokens here, none of which is text by itself.
    let prompt: Vec<u8> =
        answer.finished.prompt.iter().filter(|token| !token.special).flat_map(|token| token.raw.to_vec()).collect();
    assert_eq!(String::from_utf8(prompt).unwrap(), "🦀");
    assert!(answer.finished.prompt.iter().any(|token| std::str::from_utf8(&token.raw).is_err()));
    let output: Vec<u8> =
        answer.tokens.iter().filter(|token| !token.special).flat_map(|token| token.raw.to_vec()).collect();
    assert_eq!(String::from_utf8_lossy(&output), answer.text());
    assert!(answer.tokens.iter().all(|token| !token.raw.is_empty() && token.top.iter().all(|top| !top.raw.is_empty())));
}

//! Answers that another worker began: they go on to the bit where they were, whatever of them was delivered, and nothing
//! that was delivered is said again. What no worker can have generated is refused.

use crate::support::{Answer, HELLO, TestWorker, blob, request, settings};
use serde_json::json;
use weft_fault::Kind;
use weft_proto::worker::v1 as pb;
use weft_worker::Settings;

/// The request, to go on behind the first `delivered` tokens of this answer.
fn behind(request: &pb::GenerateRequest, whole: &Answer, delivered: usize) -> pb::GenerateRequest {
    let sampling = pb::Sampling { seed: Some(whole.started.seed), ..request.sampling.unwrap_or_default() };
    pb::GenerateRequest {
        sampling: Some(sampling),
        continuation: Some(pb::Continuation {
            ids: whole.ids()[..delivered].to_vec(),
            prompt_digest: whole.started.prompt_digest.clone(),
        }),
        ..request.clone()
    }
}

/// Everything that says what was generated, and nothing of when.
fn content(tokens: &[pb::TokenOut]) -> Vec<pb::TokenOut> {
    // NaN is not equal to itself.
    let timeless = |token: &pb::TokenOut| pb::TokenOut {
        step: 0,
        logprob: if token.logprob.is_nan() { 1.0 } else { token.logprob },
        ..token.clone()
    };
    tokens.iter().map(timeless).collect()
}

fn assert_goes_on(whole: &Answer, rest: &Answer, delivered: usize) {
    assert_eq!(content(&rest.tokens), content(&whole.tokens[delivered..]), "behind {delivered} tokens");
    let (finished, expected) = (&rest.finished, &whole.finished);
    assert_eq!(
        (finished.reason, finished.completion_tokens, finished.seed, finished.stop_index),
        (expected.reason, expected.completion_tokens, expected.seed, expected.stop_index),
        "behind {delivered} tokens"
    );
    assert_eq!(content(&finished.prompt), content(&expected.prompt), "behind {delivered} tokens");
    assert_eq!(rest.started.adapter_digest, whole.started.adapter_digest);
    assert_eq!(rest.started.prompt_digest, whole.started.prompt_digest);
    assert_eq!((rest.started.seed, rest.started.prompt_tokens), (whole.started.seed, whole.started.prompt_tokens));
    assert_eq!((rest.started.replayed_tokens as usize, whole.started.replayed_tokens), (delivered, 0));
    assert!(rest.started.cached_tokens <= rest.started.prompt_tokens);
}

fn drawn(seed: Option<u64>) -> pb::Sampling {
    pb::Sampling { temperature: 1.4, top_p: 0.97, seed, ..Default::default() }
}

fn stopping(max_tokens: u32, stop: &[&str]) -> pb::Stopping {
    let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
    pb::Stopping { max_tokens, stop, ignore_eos: true, include_stop: false }
}

/// One of each thing that an answer's state consists of.
fn requests(adapter: weft_types::Digest) -> Vec<(&'static str, pb::GenerateRequest)> {
    let base = || request(None, HELLO, 30);
    let schema = json!({
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 99999},
            "title": {"type": "string", "minLength": 2, "maxLength": 12},
            "state": {"enum": ["open", "closed", null]}
        },
        "required": ["id", "title", "state"],
        "additionalProperties": false
    });
    let schema = pb::Grammar { source: Some(pb::grammar::Source::JsonSchema(schema.to_string())) };
    let penalised = pb::Sampling {
        repetition_penalty: 1.3,
        frequency_penalty: 0.7,
        presence_penalty: 0.4,
        top_k: 100,
        ..drawn(Some(3))
    };
    vec![
        ("greedy", base()),
        ("an adapter", request(Some(adapter), HELLO, 30)),
        ("a seed that the worker draws", pb::GenerateRequest { sampling: Some(drawn(None)), ..base() }),
        ("penalties", pb::GenerateRequest { sampling: Some(penalised), ..base() }),
        (
            "greedy penalties",
            pb::GenerateRequest { sampling: Some(pb::Sampling { temperature: 0.0, ..penalised }), ..base() },
        ),
        (
            // The greedy answer has "_\u{1a}_%"; the others are begun and given up.
            "a stop string, and beginnings of some",
            pb::GenerateRequest { stopping: Some(stopping(30, &["_\u{1a}_X", "_%~", "_\u{1a}_%"])), ..base() },
        ),
        (
            "a stop string that is kept",
            pb::GenerateRequest {
                stopping: Some(pb::Stopping { include_stop: true, ..stopping(30, &["_\u{1a}_%"]) }),
                ..base()
            },
        ),
        ("a grammar", pb::GenerateRequest { grammar: Some(schema.clone()), ..request(Some(adapter), HELLO, 200) }),
        (
            "a grammar, drawn and cut",
            pb::GenerateRequest {
                grammar: Some(schema),
                sampling: Some(drawn(Some(5))),
                stopping: Some(stopping(60, &["state"])),
                ..base()
            },
        ),
        (
            "log-probabilities",
            pb::GenerateRequest {
                logprobs: Some(pb::Logprobs { top: 4, prompt: true }),
                sampling: Some(drawn(Some(11))),
                ..base()
            },
        ),
        ("no salt", pb::GenerateRequest { tenant_salt: Vec::new().into(), ..base() }),
    ]
}

#[tokio::test]
async fn an_answer_goes_on_to_the_bit_wherever_it_was_cut() {
    let (first, second) = (TestWorker::start(settings()).await, TestWorker::start(settings()).await);
    let adapter = first.shelf.put(&blob("rank8"));
    second.shelf.put(&blob("rank8"));
    for (what, request) in requests(adapter) {
        let whole = first.generate(request.clone()).await.unwrap();
        assert!(whole.tokens.len() > 3, "{what}: too short an answer to cut");
        println!("{what}: {:?}", whole.text());
        for delivered in 0..=whole.tokens.len() {
            // Where its blocks are known, and where nothing is.
            for worker in [&first, &second] {
                let rest = worker.generate(behind(&request, &whole, delivered)).await.unwrap();
                assert_goes_on(&whole, &rest, delivered);
            }
        }
    }
    for worker in [first, second] {
        let load = worker.load_when(|load| load.running_requests == 0).await;
        assert_eq!((load.queued_requests, load.kv_blocks_used), (0, 0));
    }
}

#[tokio::test]
async fn many_are_continued_at_once_and_preempted_without_a_trace() {
    let roomy = TestWorker::start(settings()).await;
    let digest = roomy.shelf.put(&blob("rank8"));
    let mut wholes = Vec::new();
    for index in 0..6 {
        let request = request(Some(digest), &format!("{index} {HELLO}"), 60);
        wholes.push((roomy.generate(request.clone()).await.unwrap(), request));
    }
    let tight = TestWorker::start(Settings { kv_tokens_max: 160, context_tokens_max: 100, ..settings() }).await;
    // Short answers first, so that no more is expected of those that follow.
    for _ in 0..40 {
        tight.generate(request(None, HELLO, 1)).await.unwrap();
    }
    tight.shelf.put(&blob("rank8"));
    tight.shelf.hold();
    let calls = wholes
        .iter()
        .enumerate()
        .map(|(index, (whole, request))| tight.generate(behind(request, whole, 2 * index + 1)));
    let (rests, ()) = tokio::join!(futures::future::join_all(calls), async {
        tight.load_when(|load| load.loading_requests == 6).await;
        tight.shelf.let_go();
    });
    for (index, (rest, (whole, _))) in rests.into_iter().zip(&wholes).enumerate() {
        assert_goes_on(whole, &rest.unwrap(), 2 * index + 1);
    }
    assert!(tight.load().await.preemptions_total > 0, "the pool was not tight");
}

#[tokio::test]
async fn text_that_is_out_is_neither_said_again_nor_taken_back_when_a_stop_string_reaches_into_it() {
    let worker = TestWorker::start(settings()).await;
    let whole = worker.generate(request(None, HELLO, 30)).await.unwrap();
    let is_stop = |ids: &[u32]| ids == [95, 26, 95, 37];
    let at = whole.ids().windows(4).position(is_stop).expect("the golden answer has it");
    let mut cut = request(None, HELLO, 30);
    cut.stopping = Some(stopping(30, &["_\u{1a}_%"]));
    // As if the worker that began had other ideas of what follows: it let go of what begins the stop string.
    let rest = worker.generate(behind(&cut, &whole, at + 2)).await.unwrap();
    assert_eq!((rest.reason(), rest.text().as_str(), rest.tokens.len()), (pb::FinishReason::Stop, "", 2));
    assert_eq!(rest.finished.completion_tokens as usize, at + 4);
}

#[tokio::test]
async fn what_follows_tokens_of_another_origin_is_what_follows_them_in_a_prompt() {
    let worker = TestWorker::start(settings()).await;
    let whole = worker.generate(request(None, HELLO, 10)).await.unwrap();
    let mut strange = behind(&request(None, HELLO, 30), &whole, 0);
    let ids: Vec<u32> = " weft".bytes().map(u32::from).collect();
    strange.continuation.as_mut().unwrap().ids = ids;
    let rest = worker.generate(strange).await.unwrap();
    let as_prompt = worker.generate(request(None, &format!("{HELLO} weft"), 25)).await.unwrap();
    assert_eq!((rest.ids(), rest.text()), (as_prompt.ids(), as_prompt.text()));
}

#[tokio::test]
async fn what_no_worker_can_have_generated_is_refused_by_name() {
    let worker = TestWorker::start(settings()).await;
    let plain = request(None, HELLO, 8);
    let whole = worker.generate(plain.clone()).await.unwrap();
    let digits = pb::GenerateRequest {
        grammar: Some(pb::Grammar { source: Some(pb::grammar::Source::Regex("[0-9]{3}".into())) }),
        ..plain.clone()
    };
    let counted = worker.generate(digits.clone()).await.unwrap();
    assert_eq!(counted.reason(), pb::FinishReason::Eos);
    let end = *counted.ids().last().unwrap();
    let stopped = pb::GenerateRequest { stopping: Some(stopping(8, &["a"])), ..plain.clone() };
    let hears_eos =
        pb::GenerateRequest { stopping: Some(pb::Stopping { ignore_eos: false, ..stopping(8, &[]) }), ..plain.clone() };
    let steps = worker.load().await.steps_total;
    let a = u32::from(b'a');
    for (what, request, ids, words) in [
        ("longer than max_tokens", &plain, vec![a; 9], &["9 tokens", "max_tokens of 8"][..]),
        ("no such token", &plain, vec![a, 1 << 20], &["1048576", "ids below"]),
        ("not in the grammar", &digits, vec![u32::from(b'1'), a], &["token 97 at 1", "grammar"]),
        ("too early an end", &digits, vec![u32::from(b'1'), end], &["at 1", "grammar"]),
        ("behind the end", &digits, [counted.ids(), vec![u32::from(b'1')]].concat(), &["number 4 ends the answer"]),
        ("behind an end that is not ignored", &hears_eos, vec![end, a], &["number 1 ends the answer"]),
        ("behind a stop string", &stopped, vec![a, a], &["number 1 ends the answer"]),
    ] {
        let mut request = behind(request, &whole, 0);
        request.continuation.as_mut().unwrap().ids = ids;
        let fault = worker.generate(request).await.unwrap_err();
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("continuation.ids")), "{what}: {fault}");
        assert!(words.iter().all(|word| fault.message.contains(word)), "{what}: {fault}");
    }

    let mut seedless = behind(&pb::GenerateRequest { sampling: Some(drawn(None)), ..plain.clone() }, &whole, 2);
    seedless.sampling.as_mut().unwrap().seed = None;
    let fault = worker.generate(seedless).await.unwrap_err();
    assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("sampling.seed")), "{fault}");

    let other = behind(&request(None, "Hello, room!", 8), &whole, 2);
    let fault = worker.generate(other).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "other_prompt"), "{fault}");
    let mut short = behind(&plain, &whole, 2);
    short.continuation.as_mut().unwrap().prompt_digest = vec![1; 31].into();
    let fault = worker.generate(short).await.unwrap_err();
    assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("continuation.prompt_digest")), "{fault}");
    assert_eq!(worker.load().await.steps_total, steps, "nothing of it entered the loop");
}

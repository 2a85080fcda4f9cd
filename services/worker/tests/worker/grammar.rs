//! Answers that follow a grammar: valid, mixed with free ones that do not notice, refused where impossible.

use crate::support::{ADAPTERS, Answer, HELLO, TestWorker, blob, golden_greedy, request, settings};
use serde_json::{Value, json};
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_types::Digest;
use weft_worker::Settings;

fn with(source: pb::grammar::Source, mut request: pb::GenerateRequest) -> pb::GenerateRequest {
    request.grammar = Some(pb::Grammar { source: Some(source) });
    request
}

fn schema(schema: &Value) -> pb::grammar::Source {
    pb::grammar::Source::JsonSchema(schema.to_string())
}

fn regex(regex: &str) -> pb::grammar::Source {
    pb::grammar::Source::Regex(regex.into())
}

/// Something of each kind; no answer is longer than the tiny model's context.
fn ticket() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 99999},
            "title": {"type": "string", "minLength": 2, "maxLength": 12},
            "state": {"enum": ["open", "closed", null]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2}
        },
        "required": ["id", "title", "state"],
        "additionalProperties": false,
        "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,4}$"}}
    })
}

fn assert_valid(schema: &Value, answer: &Answer) {
    assert_eq!(answer.reason(), pb::FinishReason::Eos, "{}", answer.text());
    let value: Value =
        serde_json::from_str(&answer.text()).unwrap_or_else(|error| panic!("{error}: {}", answer.text()));
    let validator = jsonschema::validator_for(schema).unwrap();
    assert!(validator.is_valid(&value), "{value} is not as the schema says");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn constrained_answers_validate_and_free_ones_beside_them_do_not_notice() {
    for mask_threads in [0, 1, 2] {
        let worker = TestWorker::start(Settings { mask_threads, step_tokens_max: 256, ..settings() }).await;
        let mut adapters: Vec<Option<(&str, Digest)>> = vec![None];
        adapters.extend(ADAPTERS.iter().map(|name| Some((*name, worker.shelf.put(&blob(name))))));
        let ticket = ticket();
        let calls = adapters.iter().flat_map(|adapter| {
            let digest = adapter.map(|(_, digest)| digest);
            let sampling = pb::Sampling { temperature: 1.5, seed: Some(7), ..Default::default() };
            let drawn = pb::GenerateRequest { sampling: Some(sampling), ..request(digest, HELLO, 230) };
            [
                worker.generate(request(digest, HELLO, 16)),
                worker.generate(with(schema(&ticket), request(digest, HELLO, 230))),
                worker.generate(with(schema(&ticket), drawn)),
            ]
            .map(Box::pin)
        });
        let answers: Vec<Answer> =
            futures::future::join_all(calls).await.into_iter().collect::<Result<_, Fault>>().unwrap();
        for (adapter, answers) in adapters.iter().zip(answers.chunks(3)) {
            assert_eq!(answers[0].ids(), golden_greedy(adapter.map(|(name, _)| name)), "{adapter:?}");
            assert_valid(&ticket, &answers[1]);
            assert_valid(&ticket, &answers[2]);
        }
        assert!(answers.iter().any(|answer| answer.finished.adapters_in_step_max > 4));
    }
}

#[tokio::test]
async fn every_kind_of_grammar_is_followed() {
    let worker = TestWorker::start(settings()).await;
    let ask = |source| worker.generate(with(source, request(None, HELLO, 60)));
    let digits = ask(regex("[0-9]{3}-[0-9]{4}")).await.unwrap();
    assert_eq!((digits.reason(), digits.text().len()), (pb::FinishReason::Eos, 8));
    assert!(digits.text().bytes().enumerate().all(|(at, byte)| if at == 3 {
        byte == b'-'
    } else {
        byte.is_ascii_digit()
    }));

    let sum = ask(pb::grammar::Source::Lark("start: N (\"+\" N){2}\nN: /[0-9]/\n".into())).await.unwrap();
    assert_eq!((sum.reason(), sum.text().split('+').count()), (pb::FinishReason::Eos, 3), "{}", sum.text());

    let fixed = ask(schema(&json!({"const": {"ein": "Wort ✓"}}))).await.unwrap();
    let value: Value = serde_json::from_str(&fixed.text()).unwrap();
    assert_eq!(value, json!({"ein": "Wort ✓"}));

    let object = ask(pb::grammar::Source::JsonObject(pb::JsonObject {})).await.unwrap();
    assert!(object.text().starts_with('{'));
    if object.reason() == pb::FinishReason::Eos {
        assert!(serde_json::from_str::<Value>(&object.text()).unwrap().is_object());
    }
}

#[tokio::test]
async fn max_tokens_and_stop_strings_cut_a_constrained_answer_like_any_other() {
    let worker = TestWorker::start(settings()).await;
    let whole = worker.generate(with(schema(&ticket()), request(None, HELLO, 230))).await.unwrap();
    let cut = worker.generate(with(schema(&ticket()), request(None, HELLO, 5))).await.unwrap();
    assert_eq!((cut.reason(), cut.ids()), (pb::FinishReason::Length, whole.ids()[..5].to_vec()));
    let mut stopping = with(schema(&ticket()), request(None, HELLO, 230));
    stopping.stopping.get_or_insert_default().stop = vec!["\"title".into()];
    let stopped = worker.generate(stopping).await.unwrap();
    assert_eq!(stopped.reason(), pb::FinishReason::Stop);
    assert_eq!(Some(stopped.text().as_str()), whole.text().split("\"title").next());
}

#[tokio::test]
async fn a_forced_token_reports_how_likely_the_model_found_it() {
    let worker = TestWorker::start(settings()).await;
    let mut free = request(None, HELLO, 1);
    free.logprobs = Some(pb::Logprobs { top: 20, prompt: false });
    let free = worker.generate(free).await.unwrap();
    let unlikely = free.tokens[0].top.iter().rev().find(|top| top.text.len() == 1 && top.text.is_ascii()).unwrap();
    let forced = format!("\\x{:02x}", unlikely.text.as_bytes()[0]);
    let forced = worker.generate(with(regex(&forced), request(None, HELLO, 4))).await.unwrap();
    assert_eq!((forced.tokens[0].id, &forced.tokens[0].text), (unlikely.id, &unlikely.text));
    assert!((forced.tokens[0].logprob - unlikely.logprob).abs() < 1e-5);
    assert!(forced.tokens[0].logprob < free.tokens[0].logprob);
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_before_it_enters_the_loop() {
    let worker = TestWorker::start(Settings { grammar_bytes_max: 4000, ..settings() }).await;
    let large = json!({"enum": (0..2000).collect::<Vec<u32>>()});
    for (source, words) in [
        (schema(&json!({"type": "integer", "minimum": 5, "maximum": 3})), "minimum"),
        (schema(&json!({"enum": []})), "enum"),
        (schema(&json!({"type": "object", "properties": {"a": false}, "required": ["a"]})), "false"),
        (schema(&json!({"type": "string", "pattern": "^a(?=b)"})), "look-around"),
        (schema(&json!({"not": {"type": "string"}})), "not"),
        (schema(&json!({"$ref": "http://example.com/schema"})), "example.com"),
        (schema(&large), "4000"),
        (pb::grammar::Source::JsonSchema("{".into()), "EOF"),
        (regex("(a"), "regex"),
        (regex("[^\\s\\S]"), "regex"),
        (pb::grammar::Source::Lark("start: nothing".into()), "nothing"),
    ] {
        let fault = worker.generate(with(source.clone(), request(None, HELLO, 5))).await.unwrap_err();
        assert_eq!(
            (fault.kind, fault.param.as_deref()),
            (Kind::Invalid, Some("response_format")),
            "{source:?}: {fault}"
        );
        assert_eq!(fault.code, "invalid_grammar");
        assert!(fault.message.contains(words), "{words} in {fault}");
    }
    let empty = pb::GenerateRequest { grammar: Some(pb::Grammar { source: None }), ..request(None, HELLO, 5) };
    assert_eq!(worker.generate(empty).await.unwrap_err().kind, Kind::Invalid);
    assert_eq!(worker.load().await.steps_total, 0);
}

#[tokio::test]
async fn a_grammar_is_compiled_once_for_each_tenant_and_adapter() {
    let worker = TestWorker::start(settings()).await;
    let adapter = worker.shelf.put(&blob("rank4"));
    let source = || regex("[a-f]{4}");
    let salted = |salt: Vec<u8>, adapter| pb::GenerateRequest {
        tenant_salt: salt.into(),
        ..with(source(), request(adapter, HELLO, 8))
    };
    for (request, compiled, cached) in [
        (salted(vec![1; 32], None), 1, 0),
        (salted(vec![1; 32], None), 1, 1),
        (salted(vec![2; 32], None), 2, 1),
        (salted(vec![1; 32], Some(adapter)), 3, 1),
        (salted(vec![1; 32], None), 3, 2),
        // Nobody's: kept for nobody.
        (salted(vec![], None), 4, 2),
        (salted(vec![], None), 5, 2),
    ] {
        worker.generate(request).await.unwrap();
        assert_eq!((grammars(&worker, "compiled"), grammars(&worker, "cached")), (compiled, cached));
    }
}

fn grammars(worker: &TestWorker, result: &str) -> u64 {
    let families = worker.metrics.gather();
    let family = families.iter().find(|family| family.name() == "worker_grammars_total").unwrap();
    let of_result =
        |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == result);
    family.get_metric().iter().find(of_result).map_or(0, |metric| metric.get_counter().get_value() as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preempted_answer_goes_on_where_its_grammar_was() {
    let roomy = TestWorker::start(settings()).await;
    let tight = TestWorker::start(Settings { kv_tokens_max: 256, ..settings() }).await;
    let requests: Vec<pb::GenerateRequest> =
        (0..12).map(|index| with(schema(&ticket()), request(None, &format!("{HELLO} {index}"), 200))).collect();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(roomy.generate(request.clone()).await.unwrap());
    }
    // Short answers first, so that no more is expected of those that follow.
    for _ in 0..40 {
        tight.generate(request(None, HELLO, 1)).await.unwrap();
    }
    let together = futures::future::join_all(requests.iter().map(|request| tight.generate(request.clone()))).await;
    assert!(tight.load().await.preemptions_total > 0);
    for (alone, together) in alone.iter().zip(together) {
        let together = together.unwrap();
        assert_eq!(together.ids(), alone.ids());
        assert_valid(&ticket(), &together);
    }
}

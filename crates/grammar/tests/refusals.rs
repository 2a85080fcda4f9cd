//! What is over a limit, unsupported or impossible is refused with its reason, on a stack of 2 MiB.

mod support;

use serde_json::{Value, json};
use support::{compiler, compiler_with, eos, pick};
use weft_fault::Kind;
use weft_grammar::{Error, Limits, Matcher, Source};

fn schema(schema: Value) -> Source {
    Source::JsonSchema(schema.to_string())
}

fn regex(text: impl Into<String>) -> Source {
    Source::Regex(text.into())
}

/// On a thread with the stack of a runtime's blocking thread.
fn refused(sources: Vec<(Source, &'static str)>) {
    let work = move || {
        let compiler = compiler();
        for (source, words) in sources {
            let shown: String = format!("{source:?}").chars().take(200).collect();
            let Err(error) = compiler.compile(&source) else { panic!("accepted: {shown}") };
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(words), "{words:?} in {error} of {shown}");
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

#[test]
fn impossible_schemas() {
    let required =
        |property: Value| schema(json!({"type": "object", "properties": {"p": property}, "required": ["p"]}));
    refused(vec![
        (schema(json!({"enum": []})), "enum"),
        (schema(json!({"type": "integer", "minimum": 5, "maximum": 3})), "minimum"),
        (schema(json!({"type": "number", "exclusiveMinimum": 1, "maximum": 1})), "inimum"),
        (schema(json!({"type": "string", "minLength": 5, "maxLength": 3})), "minLength"),
        (schema(json!({"type": "string", "pattern": "[^\\s\\S]"})), "json_schema"),
        (schema(json!({"type": "string", "pattern": "^a$", "minLength": 2})), "json_schema"),
        (schema(json!({"type": "array", "minItems": 3, "maxItems": 2})), "minItems"),
        (schema(json!({"type": "integer", "multipleOf": 7919, "minimum": 1, "maximum": 100})), "json_schema"),
        (schema(json!({"allOf": [{"type": "string"}, {"type": "integer"}]})), "type"),
        (schema(json!({"const": 1, "enum": [2]})), "json_schema"),
        (schema(json!({"type": "object", "properties": {"a": {"enum": []}}})), "#/properties/a/enum"),
        (schema(json!(false)), "false"),
        (required(json!(false)), "false"),
        (required(json!({"type": "string", "pattern": "^a$", "minLength": 2})), "json_schema"),
        (required(json!({"$ref": "#"})), "no finite value"),
    ]);
}

#[test]
fn unsupported_and_unreadable_sources() {
    refused(vec![
        (schema(json!({"not": {"type": "string"}})), "not"),
        (schema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (schema(json!({"type": "object", "if": {}, "then": {}})), "if"),
        (schema(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})), "oneOf"),
        (schema(json!({"type": "string", "format": "nonsense"})), "nonsense"),
        (schema(json!({"type": "string", "pattern": "^a(?=b)"})), "look-around"),
        (schema(json!({"type": "nonsense"})), "nonsense"),
        (schema(json!({"$ref": "#/nowhere"})), "nowhere"),
        (schema(json!({"$ref": "http://example.com/schema"})), "example.com"),
        (schema(json!({"type": "string", "x-guidance": {"lenient": true}})), "x-guidance"),
        (schema(json!([1])), "object"),
        (Source::JsonSchema("{\"type\":".into()), "EOF"),
        (regex("a("), "regex"),
        (regex("(?<=a)b"), "look-around"),
        (regex("[^\\s\\S]"), "regex"),
        (Source::Lark("start: nothing\n".into()), "nothing"),
        (Source::Lark(String::new()), "lark"),
        (Source::Lark("start: start\n".into()), "lark"),
    ]);
}

#[test]
fn sources_over_a_limit() {
    let deep = |open: &str, close: &str, depth: usize| format!("{}a{}", open.repeat(depth), close.repeat(depth));
    let deep_schema = |depth| format!("{}{{}}{}", "{\"items\":".repeat(depth), "}".repeat(depth));
    refused(vec![
        (schema(json!({"enum": (0..20_000).collect::<Vec<u32>>()})), "65536"),
        (regex("a".repeat(70_000)), "65536"),
        (regex(deep("(", ")", 5000)), "100"),
        (regex("a{1000000}"), "1000000 exceeds the limit of 100000"),
        (regex("((a{90}b){90}){90}"), "exceeds"),
        (schema(json!({"type": "array", "items": {"type": "string", "pattern": "^a{900000}$"}})), "exceeds"),
        (schema(json!({"type": "object", "patternProperties": {"^(ab){90000}$": {}}})), "exceeds"),
        (Source::Lark(format!("start: {}\n", deep("(", ")", 5000))), "100"),
        (Source::JsonSchema(deep_schema(1000)), "recursion"),
    ]);
    let small = compiler_with(Limits { source_bytes_max: 10, ..Limits::default() });
    let error = small.compile(&regex("a".repeat(11))).unwrap_err();
    assert_eq!(error, Error::TooLarge { what: "grammar, in bytes,", size: 11, limit: 10 });
    let small = compiler_with(Limits { symbols_max: 40, ..Limits::default() });
    let many: Value =
        (0..100).map(|n| (format!("p{n}"), json!({"type": "array"}))).collect::<serde_json::Map<_, _>>().into();
    assert!(small.compile(&schema(json!({"type": "object", "properties": many}))).is_err());
}

#[test]
fn sources_just_below_the_limits_need_no_more_than_the_stack_there_is() {
    let work = || {
        let compiler = compiler();
        let nested = |depth: usize| {
            (0..depth)
                .fold(json!({"type": "boolean"}), |inner, _| json!({"type": "array", "items": inner, "maxItems": 1}))
        };
        let wide: Vec<String> = (0..1200).map(|n| format!("word-{n}")).collect();
        for source in [
            schema(nested(60)),
            schema(json!({ "enum": wide })),
            regex("a".repeat(20_000)),
            regex(format!("{}a{}", "(".repeat(99), ")?".repeat(99))),
            regex(wide.join("|")),
            schema(json!({"type": "string", "pattern": format!("^{}$", "(a|b)".repeat(300))})),
            Source::Lark(format!("start: {}\"a\"{}\n", "(".repeat(99), ")?".repeat(99))),
        ] {
            // Either is fine; a fall is not.
            let _ = compiler.compile(&source);
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

#[test]
fn an_answer_that_exceeds_a_limit_is_lost_and_others_of_its_grammar_are_not() {
    // Answers of as and bs need ever new states of the automaton, which all answers share.
    let compiler = compiler_with(Limits { lexer_states_max: 80, ..Limits::default() });
    let grammar = compiler.compile(&regex("[ab]{0,40}a[ab]{14}c|x[0-9]{1,20}y")).unwrap();
    let mut easy = grammar.matcher();
    easy.consume(support::demo().tokenizer.encode_continuation("x").unwrap()[0]).unwrap();
    let hard: Vec<Result<(), Error>> = (1..60).map(|seed| follow(&mut grammar.matcher(), seed)).collect();
    assert!(hard.iter().any(|answer| matches!(answer, Err(Error::Lost(_)))), "{hard:?}");
    assert!(hard.iter().any(Result::is_ok));
    assert_eq!(follow(&mut easy, 7), Ok(()));
}

/// Draws tokens until the end.
fn follow(matcher: &mut Matcher, mut seed: u64) -> Result<(), Error> {
    loop {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = pick(&matcher.mask()?, seed >> 33).unwrap();
        if eos().contains(&token) {
            return Ok(());
        }
        matcher.consume(token)?;
    }
}

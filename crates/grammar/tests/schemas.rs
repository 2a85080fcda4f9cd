//! Whatever is drawn from the masks of a schema is valid under it, by the judgement of another implementation.

mod support;

use serde_json::Value;
use support::{compiler, eos, pick, schemas};
use weft_grammar::{Grammar, Source};

/// More than the longest answer of any schema here.
const TOKENS_MAX: usize = 1500;

/// An answer whose tokens are drawn evenly from those that are allowed, but for one in four that ends a string where it may:
/// else a string without a longest length would not end.
fn drawn(grammar: &Grammar, mut seed: u64) -> String {
    let (mut matcher, mut bytes) = (grammar.matcher(), Vec::new());
    let quote = support::demo().tokenizer.encode_continuation("\"").unwrap()[0];
    for _ in 0..TOKENS_MAX {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mask = matcher.mask().unwrap();
        let token = if seed >> 62 == 0 && mask.allows(quote) { quote } else { pick(&mask, seed >> 33).unwrap() };
        if eos().contains(&token) {
            assert!(matcher.may_end());
            return String::from_utf8(bytes).unwrap();
        }
        bytes.extend_from_slice(&support::demo().tokenizer.token_bytes(token));
        matcher.consume(token).unwrap();
    }
    panic!("no end after {TOKENS_MAX} tokens: {}", String::from_utf8_lossy(&bytes));
}

fn problems(schema: &Value, text: &str) -> Vec<String> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return vec![error.to_string()],
    };
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    validator.iter_errors(&value).map(|error| error.to_string()).collect()
}

#[test]
fn two_hundred_schemas_after_public_apis_are_kept_by_every_draw() {
    let compiler = compiler();
    let schemas = schemas();
    assert_eq!(schemas.len(), 200);
    for (number, (name, schema)) in schemas.iter().enumerate() {
        let grammar = compiler.compile(&Source::JsonSchema(schema.to_string()));
        let grammar = grammar.unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = drawn(&grammar, number as u64 * 31);
        assert_eq!(problems(schema, &text), [""; 0], "{name}: {text}");
    }
}

#[test]
fn a_schema_that_refers_to_itself_is_kept_at_every_depth() {
    let tree = serde_json::json!({
        "$defs": {"node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
            },
            "required": ["value"],
            "additionalProperties": false
        }},
        "$ref": "#/$defs/node"
    });
    let grammar = compiler().compile(&Source::JsonSchema(tree.to_string())).unwrap();
    for seed in 0..20 {
        let text = drawn(&grammar, seed);
        assert_eq!(problems(&tree, &text), [""; 0], "{text}");
    }
}

#[test]
fn answers_of_a_regex_and_of_lark_match_it() {
    let compiler = compiler();
    let regex = compiler.compile(&Source::Regex("(ab|c[0-9]{2}){1,3}!".into())).unwrap();
    let lark = compiler.compile(&Source::Lark("start: \"(\" start? \")\" | DIGIT\nDIGIT: /[0-9]/\n".into())).unwrap();
    for seed in 0..30 {
        let text = drawn(&regex, seed);
        let body = text.strip_suffix('!').unwrap();
        assert!(!body.is_empty() && body.chars().all(|c| "abc0123456789".contains(c)), "{text}");
        let text = drawn(&lark, seed);
        assert_eq!(text.matches('(').count(), text.matches(')').count(), "{text}");
    }
}

#[test]
fn any_json_object_begins_with_a_brace_and_no_special_token_is_ever_allowed() {
    let compiler = compiler();
    let grammar = compiler.compile(&Source::JsonObject).unwrap();
    let tokenizer = &support::demo().tokenizer;
    let special = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id) && !eos().contains(id));
    let special: Vec<u32> = special.collect();
    assert!(!special.is_empty());
    for id in 0..tokenizer.vocab_size() as u32 {
        assert!(!grammar.first_mask().allows(id) || tokenizer.token_bytes(id).starts_with(b"{"));
    }
    // Within a string everything may come, but for what a template writes.
    let mut matcher = grammar.matcher();
    for token in tokenizer.encode_continuation("{\"a\": \"b").unwrap() {
        matcher.consume(token).unwrap();
    }
    let mask = matcher.mask().unwrap();
    assert!(mask.len() > 10_000);
    assert!(special.iter().chain(&eos()).all(|id| !mask.allows(*id)));
    assert!(!matcher.may_end());
}

#[test]
fn white_space_between_tokens_of_json_is_bounded() {
    let compiler = compiler();
    let grammar =
        compiler.compile(&Source::JsonSchema(r#"{"type":"array","items":{"type":"integer"}}"#.into())).unwrap();
    let tokenizer = &support::demo().tokenizer;
    let allowed = |text: &str| {
        let mut matcher = grammar.matcher();
        let bytes = tokenizer.encode_continuation(text).unwrap();
        bytes
            .into_iter()
            .all(|token| matcher.mask().is_ok_and(|mask| mask.allows(token)) && matcher.consume(token).is_ok())
    };
    for fine in ["[1, 2]", "[1,2]", "[\n  1,\n  2\n]", "[\r\n\t1]"] {
        assert!(allowed(fine), "{fine:?}");
    }
    for endless in ["[  1", "[\n\n1", "[1 \n 2"] {
        assert!(!allowed(endless), "{endless:?}");
    }
}

#[test]
fn answers_of_one_grammar_do_not_disturb_each_other() {
    let compiler = compiler();
    let (_, schema) = schemas().swap_remove(20);
    let grammar = compiler.compile(&Source::JsonSchema(schema.to_string())).unwrap();
    let alone = drawn(&compiler.compile(&Source::JsonSchema(schema.to_string())).unwrap(), 5);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..8)
            .map(|seed| {
                let grammar = &grammar;
                scope.spawn(move || drawn(grammar, seed))
            })
            .collect();
        assert_eq!(drawn(&grammar, 5), alone);
        for other in others {
            assert_eq!(problems(&schema, &other.join().unwrap()), [""; 0]);
        }
    });
}

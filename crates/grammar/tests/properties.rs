//! Whatever is sent as a grammar, the compiler answers; what it takes can be followed.

mod support;

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use support::{compiler, eos, pick};
use weft_grammar::{Compiler, Error, Source};

fn shared() -> &'static Compiler {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    COMPILER.get_or_init(compiler)
}

/// Compiles and, if that goes well, follows a random answer for a while.
fn try_out(source: &Source, mut seed: u64) {
    let grammar = match shared().compile(source) {
        Ok(grammar) => grammar,
        Err(error) => {
            assert!(!matches!(error, Error::Lost(_)), "{error}");
            assert!(error.to_string().len() < 2_500 && !error.to_string().contains("backtrace"), "{error}");
            return;
        }
    };
    let mut matcher = grammar.matcher();
    for _ in 0..12 {
        let Ok(mask) = matcher.mask() else { return };
        let token = pick(&mask, seed).expect("a mask is not empty");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99) >> 7;
        if eos().contains(&token) || matcher.consume(token).is_err() {
            return;
        }
    }
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-5i64..50).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(null)),
        Just(json!("7")),
    ]
}

fn schema() -> impl Strategy<Value = Value> {
    let pattern = prop_oneof!["[a-c^$()|*+?{},.\\\\0-9\\[\\]]{0,12}", "\\PC{0,8}"];
    let types = prop::sample::select(vec![
        json!("string"),
        json!("integer"),
        json!("number"),
        json!("boolean"),
        json!("null"),
        json!(["string", "null"]),
        json!("nothing"),
        json!(3),
    ]);
    let leaf = (types, prop::collection::vec(number(), 4), pattern, any::<u8>()).prop_map(
        |(r#type, numbers, pattern, chosen)| {
            let mut schema = Map::from_iter([("type".to_owned(), r#type)]);
            let keys = [
                ("minimum", numbers[0].clone()),
                ("maximum", numbers[1].clone()),
                ("minLength", numbers[2].clone()),
                ("maxLength", numbers[3].clone()),
                ("multipleOf", numbers[0].clone()),
                ("pattern", Value::from(pattern)),
                ("format", json!("date")),
                ("enum", json!([numbers[1], "x", {"a": []}])),
            ];
            for (bit, (key, value)) in keys.into_iter().enumerate() {
                if chosen >> bit & 1 == 1 {
                    schema.insert(key.into(), value);
                }
            }
            Value::Object(schema)
        },
    );
    let leaf = prop_oneof![6 => leaf, 1 => Just(json!({"$ref": "#"})), 1 => Just(json!({"$ref": "#/properties/a"})), 1 => any::<bool>().prop_map(Value::from)];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let several = prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            (
                prop::collection::btree_map("[a-c]", inner.clone(), 0..4),
                prop::collection::vec("[a-d]", 0..3),
                any::<bool>()
            )
                .prop_map(|(properties, required, open)| json!({
                    "type": "object", "properties": properties, "required": required, "additionalProperties": open,
                })),
            (inner.clone(), number(), number()).prop_map(
                |(items, min, max)| json!({"type": "array", "items": items, "minItems": min, "maxItems": max})
            ),
            (several, prop::sample::select(vec!["anyOf", "oneOf", "allOf", "prefixItems"]))
                .prop_map(|(several, key)| json!({key: several})),
            (inner, "\\PC{0,6}").prop_map(|(value, key)| json!({"patternProperties": {key: value}})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_schema_is_compiled_or_refused(schema in schema(), seed in any::<u64>()) {
        try_out(&Source::JsonSchema(schema.to_string()), seed);
    }

    #[test]
    fn any_text_is_compiled_or_refused(text in "\\PC{0,40}|[a-b(|)*+?{}0-9,\\[\\]^$\\\\.-]{0,40}", seed in any::<u64>()) {
        try_out(&Source::Regex(text.clone()), seed);
        try_out(&Source::JsonSchema(text.clone()), seed);
        try_out(&Source::Lark(text.clone()), seed);
        try_out(&Source::Lark(format!("start: {text}\n")), seed);
        try_out(&Source::Lark(format!("start: /{text}/ \"a\" | X\nX: /[0-9]{{1,3}}/ {text}\n")), seed);
    }
}

//! JSON schemas: what is checked before the compiler, and how it writes JSON.

use std::collections::HashMap;

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value};

/// Between the tokens of JSON: nothing, a space, or a line break and its indentation.
const WHITE_SPACE: &str = r"\x20|\r?\n[\x20\t]{0,32}";

/// Where the compiler reads its options from; a schema must not bring its own.
const OPTIONS_KEY: &str = "x-guidance";

/// Schemas that [`Finite`] looks at before it gives up and lets the schema pass.
const VISITS_MAX: usize = 200_000;

/// The grammar of a schema that passed [`check`].
pub(crate) fn grammar(mut schema: Value) -> TopLevelGrammar {
    // `true` and `{}` are one schema, but options need an object to stand in.
    if schema == Value::Bool(true) {
        schema = Value::Object(Map::new());
    }
    let options = JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.to_owned()), ..Default::default() };
    options.apply_to(&mut schema);
    TopLevelGrammar::from_json_schema(schema)
}

/// Refuses what the compiler would misread. The error says what and where.
pub(crate) fn check(schema: &Value) -> Result<(), String> {
    match schema {
        Value::Object(map) if map.contains_key(OPTIONS_KEY) => Err(format!("`{OPTIONS_KEY}` is not supported")),
        Value::Bool(true) => Ok(()),
        Value::Bool(false) => Err("the schema `false` allows nothing".to_owned()),
        Value::Object(_) => {
            if let Some(place) = nothing_to_choose(schema, "#") {
                Err(format!("`{place}` is empty"))
            } else if !Finite::new(schema).has_instance() {
                Err("no finite value is allowed: a required part refers to itself".to_owned())
            } else {
                Ok(())
            }
        }
        _ => Err("a schema is a JSON object".to_owned()),
    }
}

/// All regular expressions of a schema, and what looks like one in its data.
pub(crate) fn patterns(schema: &Value) -> Vec<&str> {
    match schema {
        Value::Object(parts) => {
            let own = parts.get("pattern").and_then(Value::as_str);
            let names = parts.get("patternProperties").and_then(Value::as_object);
            let names = names.into_iter().flat_map(|parts| parts.keys().map(String::as_str));
            own.into_iter().chain(names).chain(parts.values().flat_map(patterns)).collect()
        }
        Value::Array(parts) => parts.iter().flat_map(patterns).collect(),
        _ => Vec::new(),
    }
}

/// The place of a list of choices without any: the compiler would say what it made of it instead.
fn nothing_to_choose(schema: &Value, place: &str) -> Option<String> {
    let schema = schema.as_object()?;
    for (key, value) in schema {
        let place = format!("{place}/{key}");
        let inner = |(name, part): (String, &Value)| nothing_to_choose(part, &format!("{place}/{name}"));
        let found = match (key.as_str(), value) {
            ("enum" | "anyOf" | "oneOf", Value::Array(choices)) if choices.is_empty() => Some(place.clone()),
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(parts)) => {
                parts.iter().enumerate().find_map(|(at, part)| inner((at.to_string(), part)))
            }
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(parts)) => {
                parts.iter().find_map(|(name, part)| inner((name.clone(), part)))
            }
            ("items" | "additionalProperties" | "additionalItems", part) => nothing_to_choose(part, &place),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Whether some value that ends satisfies a schema whose parts refer to each other. The compiler would let an answer
/// begin that cannot end. Looks at references, required properties and items alone; whatever it does not know, it lets pass.
struct Finite<'a> {
    root: &'a Value,
    /// References, and whether a finite value is known to satisfy each.
    references: HashMap<&'a str, bool>,
    visits: usize,
}

impl<'a> Finite<'a> {
    fn new(root: &'a Value) -> Self {
        Self { root, references: HashMap::new(), visits: 0 }
    }

    /// The least fixed point: a reference counts once what it refers to can be built from those that count already.
    fn has_instance(&mut self) -> bool {
        loop {
            if self.can_end(self.root) {
                return true;
            }
            let mut changed = false;
            for reference in self.references.keys().copied().collect::<Vec<_>>() {
                let known = self.references.len();
                if !self.references[reference] && self.target(reference).is_none_or(|target| self.can_end(target)) {
                    self.references.insert(reference, true);
                    changed = true;
                }
                changed |= self.references.len() > known;
            }
            if !changed {
                return false;
            }
        }
    }

    /// None: elsewhere, or nowhere; the compiler says so.
    fn target(&self, reference: &str) -> Option<&'a Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    fn can_end(&mut self, schema: &'a Value) -> bool {
        self.visits += 1;
        let Value::Object(schema) = schema else { return true };
        if self.visits > VISITS_MAX || schema.contains_key("enum") || schema.contains_key("const") {
            return true;
        }
        let reference = schema.get("$ref").and_then(Value::as_str);
        if reference.is_some_and(|reference| !*self.references.entry(reference).or_insert(false)) {
            return false;
        }
        let parts = |key: &str| schema.get(key).and_then(Value::as_array);
        if parts("allOf").is_some_and(|parts| !parts.iter().all(|part| self.can_end(part))) {
            return false;
        }
        for key in ["anyOf", "oneOf"] {
            // Each is looked at, so that each reference becomes known.
            if parts(key).is_some_and(|parts| parts.iter().filter(|part| self.can_end(part)).count() == 0) {
                return false;
            }
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => self.object_can_end(schema),
            Some("array") => self.array_can_end(schema),
            _ => true,
        }
    }

    fn object_can_end(&mut self, schema: &'a Map<String, Value>) -> bool {
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let properties = schema.get("properties").and_then(Value::as_object);
        required.filter_map(Value::as_str).all(|name| {
            let property = properties.and_then(|properties| properties.get(name));
            property.is_none_or(|property| self.can_end(property))
        })
    }

    fn array_can_end(&mut self, schema: &'a Map<String, Value>) -> bool {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let first = schema.get("prefixItems").and_then(Value::as_array).and_then(|items| items.first());
        match first.or_else(|| schema.get("items")) {
            Some(item) if least > 0 => self.can_end(item),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_schemas_that_can_end_pass() {
        let tree = |children: &str| {
            format!(
                r##"{{"$ref":"#/$defs/n","$defs":{{"n":{{"type":"object","required":["c"],"properties":{{"c":{children}}}}}}}}}"##
            )
        };
        let finite = [
            "true",
            r#"{"type":"object"}"#,
            &tree(r##"{"type":"array","items":{"$ref":"#/$defs/n"}}"##),
            &tree(r##"{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}"##),
            &tree(r##"{"oneOf":[{"type":"null"},{"$ref":"#/$defs/n"}]}"##),
            // Nobody can say what is behind these: the compiler will.
            r##"{"$ref":"#/nowhere"}"##,
            r##"{"$ref":"#anchor"}"##,
            // Each needs the next, the last nothing.
            r##"{"$ref":"#/$defs/a","$defs":{
                "a":{"type":"object","required":["b"],"properties":{"b":{"$ref":"#/$defs/b"}}},
                "b":{"type":"array","minItems":1,"items":{"$ref":"#/$defs/c"}},
                "c":{"type":"object","properties":{"a":{"$ref":"#/$defs/a"}}}}}"##,
        ];
        for schema in finite {
            assert_eq!(check(&serde_json::from_str(schema).unwrap()), Ok(()), "{schema}");
        }
        let endless = [
            r##"{"$ref":"#"}"##,
            r##"{"type":"object","required":["n"],"properties":{"n":{"$ref":"#"}}}"##,
            &tree(r##"{"$ref":"#/$defs/n"}"##),
            &tree(r##"{"type":"array","minItems":1,"items":{"$ref":"#/$defs/n"}}"##),
            &tree(r##"{"anyOf":[{"$ref":"#/$defs/n"},{"allOf":[{"type":"object"},{"$ref":"#/$defs/n"}]}]}"##),
        ];
        for schema in endless {
            let refused = check(&serde_json::from_str(schema).unwrap());
            assert!(refused.is_err_and(|reason| reason.contains("no finite value")), "{schema}");
        }
    }

    #[test]
    fn a_list_of_choices_without_any_is_named_by_its_place() {
        for (schema, place) in [
            (r#"{"enum":[]}"#, "`#/enum`"),
            (
                r#"{"properties":{"enum":{"items":{"anyOf":[{"oneOf":[]}]}}}}"#,
                "`#/properties/enum/items/anyOf/0/oneOf`",
            ),
        ] {
            let reason = check(&serde_json::from_str(schema).unwrap()).unwrap_err();
            assert_eq!(reason, format!("{place} is empty"));
        }
        // Data that looks like it.
        assert_eq!(check(&serde_json::from_str(r#"{"const":{"enum":[]},"default":{"anyOf":[]}}"#).unwrap()), Ok(()));
    }

    #[test]
    fn a_schema_brings_no_options_of_its_own() {
        let own: Value = serde_json::from_str(r#"{"type":"string","x-guidance":{"lenient":true}}"#).unwrap();
        assert!(check(&own).unwrap_err().contains("x-guidance"));
        assert!(check(&Value::from(3)).is_err() && check(&Value::Bool(false)).is_err());
    }
}

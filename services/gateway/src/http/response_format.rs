//! What an answer may look like: `response_format` of all routes, and vLLM's `guided_json` and `guided_regex`. Schemas
//! pass as the text they came in; the worker compiles them, and its refusals name `response_format`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;

/// How the answer must be built.
///
/// `strict` makes no difference: an answer always keeps to its schema, unless `max_tokens` or a stop text cuts it off
/// (`finish_reason` tells).
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`, `regex` or `lark`; LoRAX' spellings of the first three too.
    #[schema(pattern = "^(text|Text|json_object|JsonObject|json_schema|JsonSchema|regex|lark)$")]
    r#type: String,
    /// With `json_schema`.
    json_schema: Option<NamedSchema>,
    /// A JSON schema for `json_object` or `json_schema`, as LoRAX has it. Absent: any JSON object.
    #[schema(value_type = Option<serde_json::Value>)]
    schema: Option<Box<RawValue>>,
    /// With `regex`: an expression that the whole answer matches, without look-around.
    regex: Option<String>,
    /// With `lark`: a grammar in llguidance's dialect of Lark.
    lark: Option<String>,
}

/// OpenAI's wrapping of a schema.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// Accepted and ignored.
    name: Option<String>,
    /// Absent: any JSON object.
    #[schema(value_type = Option<serde_json::Value>)]
    schema: Option<Box<RawValue>>,
    /// Accepted and ignored.
    strict: Option<bool>,
}

impl ResponseFormat {
    /// For the worker; none for free text.
    ///
    /// # Errors
    /// An unknown type, or one without its field.
    pub(crate) fn grammar(&self) -> Result<Option<pb::Grammar>, Fault> {
        use pb::grammar::Source;
        let nested = self.json_schema.as_ref().and_then(|named| named.schema.as_deref());
        let schema = nested.or(self.schema.as_deref());
        let source = match self.r#type.as_str() {
            "text" | "Text" => return Ok(None),
            "json_object" | "JsonObject" | "json_schema" | "JsonSchema" => match schema {
                Some(schema) => Source::JsonSchema(schema.get().to_owned()),
                None => Source::JsonObject(pb::JsonObject {}),
            },
            "regex" => Source::Regex(required("regex", self.regex.as_deref())?),
            "lark" => Source::Lark(required("lark", self.lark.as_deref())?),
            other => {
                let other: String = other.chars().take(32).collect();
                let message = format!(
                    "`response_format.type` must be text, json_object, json_schema, regex or lark, not {other:?}"
                );
                return Err(Fault::invalid("response_format", message));
            }
        };
        Ok(Some(pb::Grammar { source: Some(source) }))
    }
}

/// The one grammar that a request of OpenAI's routes asks for, if any.
///
/// # Errors
/// As [`ResponseFormat::grammar`]; more than one is asked for.
pub(crate) fn grammar(
    format: Option<&ResponseFormat>,
    guided_json: Option<&RawValue>,
    guided_regex: Option<&str>,
) -> Result<Option<pb::Grammar>, Fault> {
    use pb::grammar::Source;
    let format = format.map_or(Ok(None), ResponseFormat::grammar)?;
    let schema = guided_json.map(|schema| Source::JsonSchema(schema_text(schema)));
    let regex = guided_regex.map(|regex| Source::Regex(regex.to_owned()));
    let guided = [schema, regex].into_iter().flatten().map(|source| pb::Grammar { source: Some(source) });
    let mut asked: Vec<pb::Grammar> = format.into_iter().chain(guided).collect();
    if asked.len() > 1 {
        let message = "only one of `response_format`, `guided_json` and `guided_regex` may be given";
        return Err(Fault::invalid("response_format", message));
    }
    Ok(asked.pop())
}

/// vLLM takes a schema as an object or as the text of one.
fn schema_text(schema: &RawValue) -> String {
    serde_json::from_str::<String>(schema.get()).unwrap_or_else(|_| schema.get().to_owned())
}

fn required(field: &str, value: Option<&str>) -> Result<String, Fault> {
    value.map(str::to_owned).ok_or_else(|| {
        Fault::invalid("response_format", format!("`response_format` of type {field} needs `response_format.{field}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body;
    use pb::grammar::Source;

    fn source(format: &str) -> Result<Option<Source>, Fault> {
        let format: ResponseFormat = body::json(format.as_bytes())?;
        Ok(format.grammar()?.and_then(|grammar| grammar.source))
    }

    #[test]
    fn every_dialect_reaches_the_worker_as_it_was_written() {
        let schema = |text: &str| Some(Source::JsonSchema(text.to_owned()));
        for (format, expected) in [
            (r#"{"type":"text"}"#, None),
            (r#"{"type":"json_object"}"#, Some(Source::JsonObject(pb::JsonObject {}))),
            (r#"{"type":"json_object","schema":{"b": 1,"a":[]}}"#, schema(r#"{"b": 1,"a":[]}"#)),
            (r#"{"type":"JsonSchema","schema":{"x":1e400}}"#, schema(r#"{"x":1e400}"#)),
            (
                r#"{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"null"}}}"#,
                schema(r#"{"type":"null"}"#),
            ),
            (r#"{"type":"json_schema","json_schema":{"name":"n"}}"#, Some(Source::JsonObject(pb::JsonObject {}))),
            (r#"{"type":"regex","regex":"[a-z]+"}"#, Some(Source::Regex("[a-z]+".into()))),
            (r#"{"type":"lark","lark":"start: \"a\""}"#, Some(Source::Lark("start: \"a\"".into()))),
        ] {
            assert_eq!(source(format).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn a_wrong_format_names_the_field() {
        for format in [r#"{"type":"xml"}"#, r#"{"type":"regex"}"#, r#"{"type":"lark"}"#] {
            assert_eq!(source(format).unwrap_err().param.as_deref(), Some("response_format"), "{format}");
        }
        assert!(source("{}").is_err() && source("[]").is_err());
    }

    #[test]
    fn one_grammar_at_a_time() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let (object, text) = (raw(r#"{"a":1}"#), raw(r#""{\"a\":1}""#));
        let asked = |json: Option<&RawValue>, regex| grammar(None, json, regex).map(|grammar| grammar?.source);
        assert_eq!(asked(Some(&object), None).unwrap(), Some(Source::JsonSchema(r#"{"a":1}"#.into())));
        assert_eq!(asked(Some(&text), None).unwrap(), Some(Source::JsonSchema(r#"{"a":1}"#.into())));
        assert_eq!(asked(None, Some("a")).unwrap(), Some(Source::Regex("a".into())));
        assert_eq!(asked(None, None).unwrap(), None);
        assert!(asked(Some(&object), Some("a")).is_err());
    }
}

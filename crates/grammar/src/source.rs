use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use crate::{Error, Limits, json, repeats};

/// Brackets within brackets of a regular expression or a Lark grammar; JSON stops at 128 by itself.
const DEPTH_MAX: usize = 100;

/// What a caller gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Any JSON object.
    JsonObject,
    /// The text of a JSON schema, draft 4 to 2020-12.
    JsonSchema(String),
    /// A regular expression in the syntax of Rust's `regex`, without look-around; the whole answer matches it.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
}

impl Source {
    /// The word for it, in messages and keys.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Lark(_) => "lark",
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::JsonObject => "",
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text,
        }
    }

    /// Checks what can be checked before the compiler runs.
    pub(crate) fn grammar(&self, limits: &Limits) -> Result<TopLevelGrammar, Error> {
        let (size, limit) = (self.text().len(), limits.source_bytes_max);
        if size > limit {
            return Err(Error::TooLarge { what: "grammar, in bytes,", size, limit });
        }
        match self {
            Self::JsonObject => Ok(json::grammar(serde_json::json!({"type": "object"}))),
            Self::JsonSchema(text) => {
                let schema: Value = serde_json::from_str(text).map_err(|error| Error::refused(self.kind(), error))?;
                json::check(&schema).map_err(|reason| Error::refused(self.kind(), reason))?;
                json::patterns(&schema).into_iter().try_for_each(|pattern| repeats::check(pattern, limits))?;
                Ok(json::grammar(schema))
            }
            Self::Regex(text) => {
                check_depth(text)?;
                repeats::check(text, limits)?;
                Ok(TopLevelGrammar::from_regex(text))
            }
            Self::Lark(text) => {
                check_depth(text)?;
                Ok(TopLevelGrammar::from_lark(text.clone()))
            }
        }
    }
}

/// Parsers of nested brackets recurse: a bound on the brackets is a bound on the stack.
fn check_depth(text: &str) -> Result<(), Error> {
    let (mut depth, mut deepest) = (0usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > DEPTH_MAX {
        return Err(Error::TooLarge { what: "grammar, in nested brackets,", size: deepest, limit: DEPTH_MAX });
    }
    Ok(())
}

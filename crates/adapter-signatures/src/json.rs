//! Reading JSON from anybody: bounded, and with the path of what is wrong.

use crate::Error;
use crate::error::plain;
use serde::de::DeserializeOwned;

/// How deep arrays and objects may nest, in a bundle and in a payload. `model-signing` writes 5.
pub const DEPTH_MAX: usize = 16;

/// Parses the whole of `bytes`. A field of `T` that is there twice is refused; JSON parsers differ in which one they take.
///
/// Cost: two passes and what `T` allocates, which the caller bounds by the number of bytes.
pub(crate) fn read<T: DeserializeOwned>(part: &'static str, bytes: &[u8]) -> Result<T, Error> {
    let depth = depth(bytes);
    if depth > DEPTH_MAX {
        let what = if part == "bundle" { "the bundle nests to" } else { "the payload nests to" };
        return Err(Error::TooLarge { what, value: depth, limit: DEPTH_MAX });
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let unreadable = |problem: String| Error::Unreadable { part, problem };
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let problem = plain(&error.into_inner().to_string());
        // A path of "." is the top, and unknown when the text is no JSON.
        unreadable(if path == "." || path == "?" { problem } else { format!("{}: {problem}", plain(&path)) })
    })?;
    json.end().map_err(|error| unreadable(error.to_string()))?;
    Ok(value)
}

/// The deepest nesting, by brackets outside of strings. Says nothing about whether it is JSON.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Outer {
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Inner {
        number: u8,
    }

    fn problem(text: &str) -> String {
        read::<Outer>("bundle", text.as_bytes()).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_problem_has_its_path() {
        let found = problem(r#"{"inner": [{"number": 1}, {"number": "a\"b"}]}"#);
        let wanted = r#"bundle cannot be read: inner[1].number: invalid type: string "a\"b", expected u8"#;
        assert!(found.starts_with(wanted), "{found}");
        assert!(problem("{").starts_with("bundle cannot be read: EOF"), "{}", problem("{"));
        assert!(problem(r#"{"inner": []} x"#).contains("trailing characters"));
    }

    #[test]
    fn a_field_that_is_there_twice_is_refused() {
        assert!(problem(r#"{"inner": [{"number": 1, "number": 1}]}"#).contains("duplicate field `number`"));
    }

    #[test]
    fn deep_nesting_is_refused_before_anything_is_parsed_and_brackets_in_strings_do_not_count() {
        let deep = format!(r#"{{"other": {}}}"#, "[".repeat(100_000));
        assert_eq!(problem(&deep), "the bundle nests to 100001, the limit is 16");
        let text = format!(r#"{{"inner": [], "other": "\"{}\\"}}"#, "[".repeat(100));
        assert!(read::<Outer>("bundle", text.as_bytes()).is_ok());
    }
}

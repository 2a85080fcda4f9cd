//! JSON as Python's `json.dumps` writes it: models were trained on exactly these spaces.

use serde_json::Value as Json;

/// `json.dumps`'s arguments.
pub(super) struct Options {
    pub(super) ensure_ascii: bool,
    pub(super) indent: Option<usize>,
    pub(super) sort_keys: bool,
    /// Between items, and after a key.
    pub(super) separators: Option<Vec<String>>,
}

/// Spaces per level that are taken.
const INDENT_MAX: usize = 64;

pub(super) fn dump(value: &Json, options: &Options) -> Result<String, String> {
    let default_item = if options.indent.is_some() { "," } else { ", " };
    let (item, key) = match options.separators.as_deref() {
        None => (default_item, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(other) => return Err(format!("tojson wants two separators, not {}", other.len())),
    };
    if let Some(indent) = options.indent.filter(|indent| *indent > INDENT_MAX) {
        return Err(format!("tojson with an indent of {indent} exceeds {INDENT_MAX}"));
    }
    let mut writer = Writer { options, item, key, out: String::new() };
    writer.value(value, 0);
    Ok(writer.out)
}

struct Writer<'a> {
    options: &'a Options,
    item: &'a str,
    key: &'a str,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Null => self.out.push_str("null"),
            Json::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => self.out.push_str(&python_float(float)),
                None => self.out.push_str(&number.to_string()),
            },
            Json::String(text) => self.string(text),
            Json::Array(items) => {
                self.out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.begin_item(index, depth + 1);
                    self.value(item, depth + 1);
                }
                self.end(items.is_empty(), depth);
                self.out.push(']');
            }
            Json::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.options.sort_keys {
                    fields.sort_by_key(|(key, _)| *key);
                }
                self.out.push('{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    self.begin_item(index, depth + 1);
                    self.string(key);
                    self.out.push_str(self.key);
                    self.value(value, depth + 1);
                }
                self.end(fields.is_empty(), depth);
                self.out.push('}');
            }
        }
    }

    fn begin_item(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(self.item);
        }
        self.new_line(depth);
    }

    fn end(&mut self, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.options.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' => self.escape(c),
                // Noncharacters stay: they are the marks that break up special tokens.
                c if self.options.ensure_ascii && !c.is_ascii() && !super::mark::is_noncharacter(c) => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// Python's `repr` of a float: the shortest digits that read back, like Rust's, but exponents with sign and two digits.
fn python_float(value: f64) -> String {
    let text = format!("{value:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        let cases =
            [(1.0, "1.0"), (0.1, "0.1"), (1e16, "1e+16"), (1.5e300, "1.5e+300"), (1e-5, "1e-05"), (1e-4, "0.0001")];
        for (value, text) in cases {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn objects_have_pythons_spaces_and_keep_their_order() {
        let value = serde_json::json!({"b": [1, "é\"\n<", null], "a": {}});
        let options = |ensure_ascii, indent| Options { ensure_ascii, indent, sort_keys: false, separators: None };
        assert_eq!(dump(&value, &options(false, None)).unwrap(), r#"{"b": [1, "é\"\n<", null], "a": {}}"#);
        assert_eq!(
            dump(&value, &options(true, Some(2))).unwrap(),
            "{\n  \"b\": [\n    1,\n    \"\\u00e9\\\"\\n<\",\n    null\n  ],\n  \"a\": {}\n}"
        );
        assert!(dump(&value, &options(true, Some(1000))).is_err());
    }
}

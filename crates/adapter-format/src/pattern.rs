//! Python regular expressions, as PEFT uses them on module names.
//!
//! The dialects of Python and Rust agree on most patterns and differ silently on some: `[[a]]`, `[a&&b]`, `\<`, `\h`
//! and `{,3}` mean different things. So a pattern is read by a small scanner that knows Python's rules, and written
//! again in the common core of both; anything outside it is refused by name. Module names are ASCII without line
//! ends, so `$` means the end, and `\w`, `\d`, `\s` need only their ASCII members.
//!
//! Patterns come from outside: their length, depth and compiled size are bounded. Those without look-around and back
//! references run in linear time; the others under a step limit, and only a few are accepted per package.

#[cfg(test)]
mod properties;
mod translate;

use crate::error::shown;
use translate::translate;

/// One pattern has at most this many bytes; the largest seen from a trainer has about 500.
const PATTERN_BYTES_MAX: usize = 4096;
/// A package has at most this many patterns: EVA writes two per module, and 126 layers of 7 modules have 882.
pub(crate) const PATTERNS_MAX: usize = 4096;
/// Of those, at most this many may need a regex engine; plain names, which is what trainers write, do not.
pub(crate) const REGEXES_MAX: usize = 256;
/// Of those, at most this many may need backtracking.
pub(crate) const BACKTRACKING_MAX: usize = 16;
/// Steps of one backtracking match. With the limits above the worst package takes about two seconds.
const BACKTRACK_STEPS_MAX: usize = 20_000;
/// Bytes of a compiled pattern.
const COMPILED_BYTES_MAX: usize = 256 * 1024;

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct Pattern {
    source: String,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    /// The last characters of a name, after a dot or from its start; `None` stands for any character.
    Ending(Vec<Option<u8>>),
    Linear(regex::Regex),
    Backtracking(fancy_regex::Regex),
}

impl Pattern {
    /// `re.fullmatch(source, name)`
    pub(crate) fn full(source: &str) -> Result<Self, String> {
        Self::build(source, source, r"\z")
    }

    /// `re.match(rf"(.*\.)?({source})$", name)`, the rule of `rank_pattern` and `alpha_pattern`.
    pub(crate) fn key(source: &str) -> Result<Self, String> {
        if let Some(ending) = plain_ending(source) {
            return Ok(Self { source: source.to_owned(), engine: Engine::Ending(ending) });
        }
        Self::build(source, &format!(r"(.*\.)?({source})$"), "")
    }

    /// `re.match(rf"(?:^|.*?\.){source}\.(?P<idx>\d+)\.", name)`, the rule of `layers_pattern`.
    pub(crate) fn layers(source: &str) -> Result<Self, String> {
        Self::build(source, &format!(r"(?:^|.*?\.){source}\.(?P<idx>\d+)\."), "")
    }

    /// `re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", name)`, what PEFT takes when `layers_pattern` is empty.
    pub(crate) fn any_layers() -> Self {
        Self::build("", r".*?\.[^.]*\.(?P<idx>\d+)\.", "").expect("the fixed pattern compiles")
    }

    fn build(source: &str, python: &str, end: &str) -> Result<Self, String> {
        let refused = |why: String| format!("pattern {:?} {why}", shown(source));
        if source.len() > PATTERN_BYTES_MAX {
            return Err(format!("a pattern has {} bytes, the limit is {PATTERN_BYTES_MAX}", source.len()));
        }
        let translated = translate(python).map_err(|why| refused(format!("is not supported: {why}")))?;
        let anchored = format!(r"{}\A(?:{}){end}", translated.flags, translated.body);
        let engine = if translated.backtracks {
            fancy_regex::RegexBuilder::new(&anchored)
                .backtrack_limit(BACKTRACK_STEPS_MAX)
                .delegate_size_limit(COMPILED_BYTES_MAX)
                .delegate_dfa_size_limit(COMPILED_BYTES_MAX)
                .build()
                .map(Engine::Backtracking)
                .map_err(|error| error.to_string())
        } else {
            regex::RegexBuilder::new(&anchored)
                .size_limit(COMPILED_BYTES_MAX)
                .dfa_size_limit(COMPILED_BYTES_MAX)
                .build()
                .map(Engine::Linear)
                .map_err(|error| last_line(&error.to_string()))
        };
        let engine = engine.map_err(|why| refused(format!("does not compile: {why}")))?;
        Ok(Self { source: source.to_owned(), engine })
    }

    /// True if this pattern needs a regex engine.
    pub(crate) fn is_regex(&self) -> bool {
        !matches!(self.engine, Engine::Ending(_))
    }

    /// True if this pattern runs under a step limit rather than in linear time.
    pub(crate) fn backtracks(&self) -> bool {
        matches!(self.engine, Engine::Backtracking(_))
    }

    /// Whether the pattern accepts this module name.
    pub(crate) fn is_match(&self, name: &str) -> Result<bool, String> {
        match &self.engine {
            Engine::Ending(ending) => Ok(has_ending(name.as_bytes(), ending)),
            Engine::Linear(regex) => Ok(regex.is_match(name)),
            Engine::Backtracking(regex) => regex.is_match(name).map_err(|_| self.too_slow(name)),
        }
    }

    /// The group `idx` of a match: a layer number as text. `None` if the pattern does not match.
    pub(crate) fn layer_index<'t>(&self, name: &'t str) -> Result<Option<&'t str>, String> {
        match &self.engine {
            Engine::Ending(_) => Ok(None),
            Engine::Linear(regex) => {
                Ok(regex.captures(name).and_then(|found| found.name("idx")).map(|group| group.as_str()))
            }
            Engine::Backtracking(regex) => {
                let found = regex.captures(name).map_err(|_| self.too_slow(name))?;
                Ok(found.and_then(|found| found.name("idx")).map(|group| group.as_str()))
            }
        }
    }

    fn too_slow(&self, name: &str) -> String {
        format!("pattern {:?} takes more than {BACKTRACK_STEPS_MAX} steps on {name}", shown(&self.source))
    }
}

/// The key of a `rank_pattern` as characters, if it has no other operator than the dot: nearly every key in the wild.
fn plain_ending(source: &str) -> Option<Vec<Option<u8>>> {
    if source.len() > PATTERN_BYTES_MAX {
        return None;
    }
    let mut ending = Vec::with_capacity(source.len());
    let mut bytes = source.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => ending.push(None),
            b'\\' => ending.push(Some(bytes.next().filter(|escaped| *escaped == b'.')?)),
            b'_' | b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => ending.push(Some(byte)),
            _ => return None,
        }
    }
    Some(ending)
}

/// `re.match(rf"(.*\.)?({ending})$", name)` for a plain ending.
fn has_ending(name: &[u8], ending: &[Option<u8>]) -> bool {
    let Some((before, last)) = name.len().checked_sub(ending.len()).and_then(|at| name.split_at_checked(at)) else {
        return false;
    };
    let starts_a_segment = before.is_empty() || before.ends_with(b".");
    starts_a_segment && last.iter().zip(ending).all(|(byte, wanted)| wanted.is_none_or(|wanted| wanted == *byte))
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(pattern: &str, name: &str) -> bool {
        Pattern::full(pattern).expect(pattern).is_match(name).expect(pattern)
    }

    fn key(pattern: &str, name: &str) -> bool {
        Pattern::key(pattern).expect(pattern).is_match(name).expect(pattern)
    }

    const Q1: &str = "model.layers.1.self_attn.q_proj";

    #[test]
    fn fullmatch_takes_the_whole_name() {
        assert!(full(r".*\.(q|v)_proj", Q1));
        assert!(!full(r"(q|v)_proj", Q1));
        assert!(!full(r".*\.q", Q1));
        // The first branch matches a prefix; fullmatch goes on to the second.
        assert!(full(r"model|model\.layers.*", Q1));
        assert!(full(r"(?i)MODEL\..*Q_PROJ", Q1));
        assert!(full(r".*\.(?!k_)\w_proj", Q1));
        assert!(full(r"model\.layers\.\d{,2}\.self_attn\.[^kvo]_proj$", Q1));
        assert!(full(r"(?P<m>m)odel.*(?P=m)?.*_proj", Q1));
        assert!(full(r".*self_(a)(t)\2.*_proj", Q1));
    }

    #[test]
    fn keys_match_whole_segments_at_the_end_and_a_caret_ties_them_to_the_start() {
        assert!(key("q_proj", Q1));
        assert!(key("self_attn.q_proj", Q1));
        assert!(!key("_proj", Q1));
        assert!(!key("^q_proj", Q1));
        assert!(key("^model.layers.1.self_attn.q_proj", Q1));
        assert!(key("k_proj|q_proj", Q1));
        assert!(key(r"layers\.[0-3]\..*", Q1));
    }

    #[test]
    fn plain_keys_need_no_engine_and_agree_with_it() {
        let names = [Q1, "lm_head", "q_proj", "model.layers.11.self_attn.q_proj", "", ".q_proj", "xq_proj"];
        for source in
            ["q_proj", "self_attn.q_proj", r"1\.self_attn\.q_proj", "1.self_attn.q_proj", ".", "..", "", "h.ad"]
        {
            let plain = Pattern::key(source).expect(source);
            assert!(!plain.is_regex(), "{source}");
            let regex = Pattern::key(&format!("(?:{source})")).expect(source);
            assert!(regex.is_regex(), "{source}");
            for name in names {
                assert_eq!(plain.is_match(name), regex.is_match(name), "{source} on {name}");
            }
        }
        for source in ["^q_proj", "q_proj$", r"\d", "a|b", r"a\"] {
            assert!(plain_ending(source).is_none(), "{source}");
        }
    }

    #[test]
    fn layer_numbers_are_the_first_numbered_segment() {
        let any = Pattern::any_layers();
        assert_eq!(any.layer_index("model.layers.7.mlp.experts.3.up_proj"), Ok(Some("7")));
        assert_eq!(any.layer_index("lm_head"), Ok(None));
        let layers = Pattern::layers("layers").expect("compiles");
        assert_eq!(layers.layer_index(Q1), Ok(Some("1")));
        assert_eq!(Pattern::layers("h").expect("compiles").layer_index(Q1), Ok(None));
        assert_eq!(Pattern::layers(r"(?=l)l\w+").expect("compiles").layer_index(Q1), Ok(Some("1")));
    }

    #[test]
    fn patterns_without_look_around_run_in_linear_time() {
        assert!(!Pattern::full(r"(a*)*b|.*_proj").expect("compiles").backtracks());
        assert!(Pattern::full(r"(?=a).*").expect("compiles").backtracks());
    }

    #[test]
    fn a_pattern_that_explodes_is_refused_by_name() {
        let slow = Pattern::full(r"(?=m)(?:(?:\w|\w|\.)*)*(?!x)!").expect("compiles");
        let error = slow.is_match(Q1).expect_err("too slow");
        assert!(error.contains("steps on model.layers.1.self_attn.q_proj"), "{error}");
        let error = Pattern::full(r"((\w{200}){200}){200}").expect_err("too large");
        assert!(error.contains("does not compile"), "{error}");
        assert!(Pattern::full(&"a".repeat(PATTERN_BYTES_MAX + 1)).expect_err("too long").contains("4097 bytes"));
    }
}

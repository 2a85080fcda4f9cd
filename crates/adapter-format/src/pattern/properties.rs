//! Generated patterns: what is translated accepts what Python's `re.fullmatch` accepts, judged by a matcher that is
//! too small to be wrong; and no text at all makes the translator panic.

use super::Pattern;
use proptest::prelude::*;

/// A pattern as Python would parse it. Groups, classes and counts, whose spelling differs between dialects.
#[derive(Clone, Debug)]
enum Re {
    Literal(char),
    Any,
    Class(Vec<(char, char)>, bool),
    /// `\d`, `\w`, `\s` and their opposites.
    Escape(char),
    Sequence(Vec<Re>),
    Either(Vec<Re>),
    Repeat(Box<Re>, u32, Option<u32>, bool),
    Group(Box<Re>),
}

impl Re {
    fn python(&self) -> String {
        let literal = |c: &char| if r"\.^$*+?{}[]|()".contains(*c) { format!("\\{c}") } else { c.to_string() };
        match self {
            Self::Literal(c) => literal(c),
            Self::Any => ".".to_owned(),
            Self::Class(ranges, negated) => {
                let member = |c: char| if r"\]^-[&~".contains(c) { format!("\\{c}") } else { c.to_string() };
                let range = |(from, to): &(char, char)| match from == to {
                    true => member(*from),
                    false => format!("{}-{}", member(*from), member(*to)),
                };
                let ranges: String = ranges.iter().map(range).collect();
                format!("[{}{ranges}]", if *negated { "^" } else { "" })
            }
            Self::Escape(c) => format!("\\{c}"),
            Self::Sequence(parts) => parts.iter().map(Self::python).collect(),
            Self::Either(parts) => format!("(?:{})", parts.iter().map(Self::python).collect::<Vec<_>>().join("|")),
            Self::Repeat(what, min, max, lazy) => {
                let count = match (min, max) {
                    (0, None) => "*".to_owned(),
                    (1, None) => "+".to_owned(),
                    (0, Some(1)) => "?".to_owned(),
                    (0, Some(max)) => format!("{{,{max}}}"),
                    (min, None) => format!("{{{min},}}"),
                    (min, Some(max)) if min == max => format!("{{{min}}}"),
                    (min, Some(max)) => format!("{{{min},{max}}}"),
                };
                format!("(?:{}){count}{}", what.python(), if *lazy { "?" } else { "" })
            }
            Self::Group(what) => format!("({})", what.python()),
        }
    }

    /// Calls `then` with every place where a match that begins at `at` may end, until it says that this will do.
    fn ends(&self, text: &[char], at: usize, then: &mut dyn FnMut(usize) -> bool) -> bool {
        let one = |accepts: bool, then: &mut dyn FnMut(usize) -> bool| accepts && then(at + 1);
        let next = text.get(at).copied();
        match self {
            Self::Literal(c) => one(next == Some(*c), then),
            Self::Any => one(next.is_some_and(|c| c != '\n'), then),
            Self::Class(ranges, negated) => {
                let is_in = |c: char| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
                one(next.is_some_and(|c| is_in(c) != *negated), then)
            }
            Self::Escape(kind) => one(next.is_some_and(|c| escape(*kind, c)), then),
            Self::Sequence(parts) => match parts.split_first() {
                None => then(at),
                Some((first, rest)) => {
                    let rest = Self::Sequence(rest.to_vec());
                    first.ends(text, at, &mut |end| rest.ends(text, end, then))
                }
            },
            Self::Either(parts) => parts.iter().any(|part| part.ends(text, at, then)),
            Self::Group(what) => what.ends(text, at, then),
            Self::Repeat(what, min, max, lazy) => {
                let less = |count: &u32| count.saturating_sub(1);
                if *min == 0 && then(at) {
                    return true;
                }
                if *max == Some(0) {
                    return false;
                }
                let rest = Self::Repeat(what.clone(), less(min), max.as_ref().map(less), *lazy);
                // A turn that takes nothing helps only as long as turns are owed.
                what.ends(text, at, &mut |end| (end > at || *min > 0) && rest.ends(text, end, then))
            }
        }
    }

    fn fullmatch(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        self.ends(&text, 0, &mut |end| end == text.len())
    }
}

fn escape(kind: char, c: char) -> bool {
    match kind {
        'd' => c.is_ascii_digit(),
        'w' => c.is_ascii_alphanumeric() || c == '_',
        's' => c == ' ',
        'D' | 'W' | 'S' => !escape(kind.to_ascii_lowercase(), c),
        other => unreachable!("{other} is not generated"),
    }
}

fn pattern() -> impl Strategy<Value = Re> {
    let character = prop::sample::select("ab_q.01-&[]^{}".chars().collect::<Vec<_>>());
    let range =
        prop_oneof![character.clone().prop_map(|c| (c, c)), Just(('a', 'c')), Just(('0', '9')), Just(('+', '1')),];
    let leaf = prop_oneof![
        4 => character.prop_map(Re::Literal),
        1 => Just(Re::Any),
        2 => (prop::collection::vec(range, 1..4), any::<bool>()).prop_map(|(ranges, negated)| Re::Class(ranges, negated)),
        1 => prop::sample::select(vec!['d', 'w', 's', 'D', 'W', 'S']).prop_map(Re::Escape),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Re::Sequence),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Re::Either),
            (inner.clone(), 0..3u32, prop::option::of(0..3u32), any::<bool>())
                .prop_map(|(what, min, more, lazy)| Re::Repeat(Box::new(what), min, more.map(|more| min + more), lazy)),
            inner.prop_map(|what| Re::Group(Box::new(what))),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select("ab_q.01-&[]^{}c ".chars().collect::<Vec<_>>()), 0..7)
        .prop_map(|characters| characters.into_iter().collect())
}

/// Text that looks like a pattern, and sometimes is one.
fn soup() -> impl Strategy<Value = String> {
    let pieces = [
        "a",
        "q_proj",
        r"\.",
        ".",
        "*",
        "+",
        "?",
        "{",
        "}",
        "{2}",
        "{,3}",
        "{2,1}",
        "{99999999999}",
        "(",
        ")",
        "(?:",
        "(?P<n>",
        "(?P=n)",
        "(?=",
        "(?!",
        "(?<=",
        "(?i)",
        "(?x)",
        "(?",
        "[",
        "]",
        "[^",
        "[]",
        "a-z",
        "z-a",
        "&&",
        "--",
        "||",
        "~~",
        "|",
        "^",
        "$",
        r"\A",
        r"\Z",
        r"\b",
        r"\1",
        r"\9",
        r"\x41",
        r"\u0041",
        r"\N{DASH}",
        r"\d",
        r"\W",
        r"\",
        "é",
        "\u{1F600}",
        "\0",
        "\n",
        " ",
        "#",
        "++",
        "*+",
        "??",
    ];
    prop_oneof![
        3 => prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_translated_pattern_accepts_what_python_accepts(re in pattern(), names in prop::collection::vec(name(), 1..6)) {
        let python = re.python();
        let translated = Pattern::full(&python).map_err(|why| TestCaseError::fail(format!("{python}: {why}")))?;
        for name in names {
            prop_assert_eq!(translated.is_match(&name), Ok(re.fullmatch(&name)), "{} on {:?}", python, name);
        }
    }

    #[test]
    fn no_text_makes_the_translator_or_a_match_panic(source in soup(), name in name()) {
        for pattern in [Pattern::full(&source), Pattern::key(&source), Pattern::layers(&source)] {
            match pattern {
                // A refusal names the pattern; a match may run out of steps, and says so.
                Ok(pattern) => drop((pattern.is_match(&name), pattern.layer_index(&name))),
                Err(why) => prop_assert!(why.contains("pattern"), "{}", why),
            }
        }
    }
}

//! From Python's syntax to the core that Rust's engines share with it. One scanner, kept in one piece: it is the list
//! of what is supported.

/// Groups inside groups.
const DEPTH_MAX: usize = 32;
/// Python itself allows more; module names do not need it.
const REPEAT_MAX: u32 = 1000;

/// A pattern in Rust's dialect.
#[derive(Debug)]
pub(super) struct Translated {
    /// `(?i)` or nothing.
    pub(super) flags: &'static str,
    pub(super) body: String,
    /// Look-around, back references or possessive parts: needs a backtracking engine.
    pub(super) backtracks: bool,
}

/// Reads a Python pattern. The error says what is not supported, for "pattern … is not supported: …".
pub(super) fn translate(python: &str) -> Result<Translated, String> {
    let mut scanner = Scanner {
        input: python.chars().collect(),
        at: 0,
        out: String::with_capacity(python.len() + 16),
        open: Vec::new(),
        groups: 0,
        closed: Vec::new(),
        repeatable: false,
        backtracks: false,
    };
    let flags = if scanner.skip("(?i)") { "(?i)" } else { "" };
    scanner.run()?;
    Ok(Translated { flags, body: scanner.out, backtracks: scanner.backtracks })
}

struct Scanner {
    input: Vec<char>,
    at: usize,
    out: String,
    /// The capture number of each open group, or `None`.
    open: Vec<Option<usize>>,
    groups: usize,
    /// Capture numbers that may be referred to.
    closed: Vec<usize>,
    /// Whether a quantifier may follow here.
    repeatable: bool,
    backtracks: bool,
}

impl Scanner {
    fn run(&mut self) -> Result<(), String> {
        while let Some(next) = self.next() {
            match next {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group()?,
                ')' => {
                    let group = self.open.pop().ok_or("unbalanced )")?;
                    self.closed.extend(group);
                    self.item(")");
                }
                '|' => self.position("|"),
                '^' => self.position(r"\A"),
                '$' => self.position(r"\z"),
                '.' => self.item("."),
                '*' | '+' | '?' => self.quantifier(next.to_string(), true)?,
                '{' => self.braces()?,
                literal => self.literal(literal),
            }
        }
        if self.open.is_empty() { Ok(()) } else { Err("missing )".to_owned()) }
    }

    fn next(&mut self) -> Option<char> {
        let next = self.input.get(self.at).copied();
        self.at += usize::from(next.is_some());
        next
    }

    fn skip(&mut self, text: &str) -> bool {
        let found = self.input[self.at..].iter().copied().take(text.len()).eq(text.chars());
        if found {
            self.at += text.len();
        }
        found
    }

    /// Writes something that a quantifier may follow.
    fn item(&mut self, rust: &str) {
        self.out.push_str(rust);
        self.repeatable = true;
    }

    /// Writes something that it may not.
    fn position(&mut self, rust: &str) {
        self.out.push_str(rust);
        self.repeatable = false;
    }

    fn literal(&mut self, literal: char) {
        if r"\.+*?()|[]{}^$".contains(literal) {
            self.out.push('\\');
        }
        self.out.push(literal);
        self.repeatable = true;
    }

    fn escape(&mut self) -> Result<(), String> {
        let escaped = self.next().ok_or("a backslash at the end")?;
        match escaped {
            'd' => self.item("[0-9]"),
            'D' => self.item("[^0-9]"),
            'w' => self.item("[0-9A-Za-z_]"),
            'W' => self.item("[^0-9A-Za-z_]"),
            's' => self.item(r"[\t-\r ]"),
            'S' => self.item(r"[^\t-\r ]"),
            'b' => self.position(r"\b"),
            'B' => self.position(r"\B"),
            'A' => self.position(r"\A"),
            'Z' => self.position(r"\z"),
            '1'..='9' => self.back_reference(escaped)?,
            _ if escaped.is_ascii_alphanumeric() => return Err(format!("the escape \\{escaped}")),
            _ => self.literal(escaped),
        }
        Ok(())
    }

    fn back_reference(&mut self, digit: char) -> Result<(), String> {
        let number = digit.to_digit(10).map_or(0, |digit| digit as usize);
        let another_digit = self.input.get(self.at).is_some_and(char::is_ascii_digit);
        if another_digit || !self.closed.contains(&number) {
            return Err(format!("the reference \\{digit}"));
        }
        self.backtracks = true;
        // A group of its own, so that a digit that follows is not read as part of the number.
        self.item(&format!(r"(?:\{number})"));
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        if self.open.len() == DEPTH_MAX {
            return Err(format!("groups deeper than {DEPTH_MAX}"));
        }
        let mut capture = None;
        if !self.skip("?") {
            self.groups += 1;
            capture = Some(self.groups);
            self.position("(");
        } else if self.skip("P=") {
            let name = self.name(')')?;
            self.backtracks = true;
            self.item(&format!("(?:(?P={name}))"));
            return Ok(());
        } else if self.skip("P<") {
            let name = self.name('>')?;
            self.groups += 1;
            capture = Some(self.groups);
            self.position(&format!("(?P<{name}>"));
        } else {
            let opening = [
                (":", "(?:"),
                ("i:", "(?i:"),
                ("=", "(?="),
                ("!", "(?!"),
                ("<=", "(?<="),
                ("<!", "(?<!"),
                (">", "(?>"),
            ];
            let Some((_, rust)) = opening.into_iter().find(|(python, _)| self.skip(python)) else {
                let shown: String = self.input[self.at..].iter().take(3).collect();
                return Err(format!("the group (?{shown}"));
            };
            self.backtracks |= !matches!(rust, "(?:" | "(?i:");
            self.position(rust);
        }
        self.open.push(capture);
        Ok(())
    }

    fn name(&mut self, end: char) -> Result<String, String> {
        let mut name = String::new();
        while let Some(next) = self.next() {
            if next == end && !name.is_empty() {
                return Ok(name);
            }
            let first = name.is_empty();
            if !(next.is_ascii_alphabetic() || next == '_' || (next.is_ascii_digit() && !first)) {
                break;
            }
            name.push(next);
        }
        Err("the name of a group".to_owned())
    }

    /// Writes a quantifier and its lazy or possessive mark.
    fn quantifier(&mut self, rust: String, may_be_possessive: bool) -> Result<(), String> {
        if !self.repeatable {
            return Err(format!("nothing to repeat before {rust}"));
        }
        self.position(&rust);
        if self.skip("?") {
            self.out.push('?');
        } else if self.input.get(self.at) == Some(&'+') {
            if !may_be_possessive {
                return Err(format!("the quantifier {rust}+"));
            }
            self.at += 1;
            self.out.push('+');
            self.backtracks = true;
        }
        Ok(())
    }

    /// `{2}`, `{2,}`, `{,3}`, `{2,3}`; anything else is a literal brace in Python.
    fn braces(&mut self) -> Result<(), String> {
        let Some(length) = self.input[self.at..].iter().position(|next| *next == '}') else {
            self.literal('{');
            return Ok(());
        };
        let inside: String = self.input[self.at..self.at + length].iter().collect();
        let (least, most) = inside.split_once(',').unwrap_or((&inside, &inside));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(least) || !digits(most) || inside.is_empty() {
            self.literal('{');
            return Ok(());
        }
        let number = |text: &str, default: u32| match text {
            "" => Ok(default),
            _ => text.parse().ok().filter(|count| *count <= REPEAT_MAX).ok_or(format!("the repeat {{{inside}}}")),
        };
        let (least_count, most_count) = (number(least, 0)?, number(most, REPEAT_MAX)?);
        if least_count > most_count {
            return Err(format!("the repeat {{{inside}}}"));
        }
        self.at += length + 1;
        let most_text = if most.is_empty() { String::new() } else { most_count.to_string() };
        self.quantifier(format!("{{{least_count},{most_text}}}"), false)
    }

    /// A set of characters, without the set operations that Rust would read into it.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.skip("^") {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let next = self.next().ok_or("missing ]")?;
            if next == ']' && !first {
                break;
            }
            first = false;
            let low = self.class_member(next)?;
            let is_range = self.input.get(self.at) == Some(&'-') && self.input.get(self.at + 1) != Some(&']');
            if !is_range {
                continue;
            }
            self.at += 1;
            let next = self.next().ok_or("missing ]")?;
            self.out.push('-');
            let high = self.class_member(next)?;
            if !matches!((low, high), (Some(low), Some(high)) if low <= high) {
                return Err("a range in [ ]".to_owned());
            }
        }
        self.item("]");
        Ok(())
    }

    /// Writes one member; returns the character if it is one, rather than a class such as `\d`.
    fn class_member(&mut self, next: char) -> Result<Option<char>, String> {
        let mut member = next;
        if next == '\\' {
            member = self.next().ok_or("a backslash at the end")?;
            let class = match member {
                'd' => "0-9",
                'w' => "0-9A-Za-z_",
                's' => r"\t-\r ",
                _ if member.is_ascii_alphanumeric() => return Err(format!("the escape \\{member} in [ ]")),
                _ => "",
            };
            if !class.is_empty() {
                self.out.push_str(class);
                return Ok(None);
            }
        }
        if r"\[]^-&~".contains(member) {
            self.out.push('\\');
        }
        self.out.push(member);
        Ok(Some(member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(python: &str) -> String {
        translate(python).expect(python).body
    }

    #[test]
    fn writes_what_python_means_where_the_dialects_differ() {
        assert_eq!(body("[[a&&b]"), r"[\[a\&\&b]");
        assert_eq!(body("[]a]"), r"[\]a]");
        assert_eq!(body("[a-]"), r"[a\-]");
        assert_eq!(body(r"\<a\>"), "<a>");
        assert_eq!(body("a{,3}b{2}c{2,}"), "a{0,3}b{2,2}c{2,}");
        assert_eq!(body("a{x}{"), r"a\{x\}\{");
        assert_eq!(body(r"^\w$\Z"), r"\A[0-9A-Za-z_]\z\z");
        assert_eq!(body("a}]"), r"a\}\]");
    }

    #[test]
    fn refuses_what_python_refuses_or_we_do_not_know() {
        for (python, why) in [
            ("a)|(b", "unbalanced )"),
            ("(a", "missing )"),
            ("[a", "missing ]"),
            ("*a", "nothing to repeat"),
            ("a**", "nothing to repeat"),
            ("a|*", "nothing to repeat"),
            ("a{2}{3}", "nothing to repeat"),
            (r"a\h", r"the escape \h"),
            (r"a\K", r"the escape \K"),
            (r"\p{L}", r"the escape \p"),
            (r"[\W]", r"the escape \W in [ ]"),
            ("[z-a]", "a range"),
            (r"[\w-z]", "a range"),
            (r"(a\1)", r"the reference \1"),
            (r"\9", r"the reference \9"),
            ("a(?i)", "the group (?i)"),
            ("(?x)a", "the group (?x)"),
            ("(?#c)", "the group (?#c"),
            ("(?(1)a|b)", "the group (?(1)"),
            ("(?P<1>a)", "the name of a group"),
            ("a{1001}", "the repeat"),
            ("a{3,2}", "the repeat"),
            ("a{2}+", "the quantifier"),
            ("a\\", "a backslash at the end"),
        ] {
            let error = translate(python).expect_err(python);
            assert!(error.contains(why), "{python}: {error}");
        }
        assert!(translate(&"(".repeat(5000)).expect_err("deep").contains("deeper than 32"));
    }
}

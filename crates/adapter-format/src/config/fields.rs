//! Typed access to the keys of a config. Each getter removes its key and, on a wrong type or value, leaves a reason
//! that names key and value and returns `None`; a missing key has PEFT's default.

use super::{Names, PatternBudget};
use crate::error::{Reasons, shown};
use crate::json::Json;
use crate::pattern::Pattern;

/// PEFT's default of `r` and of `lora_alpha`.
const DEFAULT: u64 = 8;
/// Ranks beyond this are no ranks; the package's own limit is lower and named in its own reason.
const RANK_SANE_MAX: i128 = 1 << 20;

/// Entries of a list of modules: 126 layers of 7 modules have 882.
const NAMES_MAX: usize = 4096;

pub(super) struct Fields<'r> {
    entries: Vec<(String, Json)>,
    reasons: &'r mut Reasons,
}

impl<'r> Fields<'r> {
    pub(super) fn new(entries: Vec<(String, Json)>, reasons: &'r mut Reasons) -> Self {
        Self { entries, reasons }
    }

    pub(super) fn refuse(&mut self, reason: impl Into<String>) {
        self.reasons.push(reason);
    }

    pub(super) fn peek(&self, key: &str) -> Option<&Json> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(super) fn lacks(&self, key: &str) -> bool {
        self.peek(key).is_none()
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Json> {
        let index = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.remove(index).1)
    }

    /// What nobody asked for.
    pub(super) fn rest(self) -> Vec<(String, Json)> {
        self.entries
    }

    /// A key for which `null` says the same as its absence.
    fn take_set(&mut self, key: &str) -> Option<Json> {
        self.take(key).filter(|value| *value != Json::Null)
    }

    fn wrong<T>(&mut self, key: &str, value: &Json, wanted: &str) -> Option<T> {
        self.refuse(format!("{key} is {}, it must be {wanted}", value.shown()));
        None
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        match self.take_set(key) {
            None => Some(false),
            Some(Json::Bool(value)) => Some(value),
            Some(other) => self.wrong(key, &other, "true or false"),
        }
    }

    /// A text, or nothing; another type is refused.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.take_set(key)? {
            Json::String(text) => Some(text),
            other => self.wrong(key, &other, "a string"),
        }
    }

    pub(super) fn rank(&mut self, key: &str) -> Option<u64> {
        match self.take(key) {
            None => Some(DEFAULT),
            Some(value) => self.as_rank(key, &value),
        }
    }

    fn as_rank(&mut self, key: &str, value: &Json) -> Option<u64> {
        match value {
            Json::Int(rank) if (1..=RANK_SANE_MAX).contains(rank) => u64::try_from(*rank).ok(),
            other => self.wrong(key, other, "a positive integer"),
        }
    }

    pub(super) fn alpha(&mut self, key: &str) -> Option<f64> {
        match self.take(key) {
            None => Some(DEFAULT as f64),
            Some(value) => self.as_alpha(key, &value),
        }
    }

    fn as_alpha(&mut self, key: &str, value: &Json) -> Option<f64> {
        let alpha = match value {
            Json::Int(alpha) => *alpha as f64,
            Json::Float(alpha) => *alpha,
            other => return self.wrong(key, other, "a number"),
        };
        if alpha.is_finite() { Some(alpha) } else { self.wrong(key, value, "a finite number") }
    }

    fn object(&mut self, key: &str) -> Option<Vec<(String, Json)>> {
        match self.take_set(key) {
            None => Some(Vec::new()),
            Some(Json::Object(entries)) => Some(entries),
            Some(other) => self.wrong(key, &other, "an object"),
        }
    }

    pub(super) fn ranks(&mut self, key: &str, patterns: &mut PatternBudget) -> Option<Vec<(Pattern, u64)>> {
        self.by_pattern(key, patterns, Self::as_rank)
    }

    pub(super) fn alphas(&mut self, key: &str, patterns: &mut PatternBudget) -> Option<Vec<(Pattern, f64)>> {
        self.by_pattern(key, patterns, Self::as_alpha)
    }

    fn by_pattern<T>(
        &mut self,
        key: &str,
        patterns: &mut PatternBudget,
        read: fn(&mut Self, &str, &Json) -> Option<T>,
    ) -> Option<Vec<(Pattern, T)>> {
        let entries = self.object(key)?;
        let wanted = entries.len();
        let mut pairs = Vec::new();
        for (source, value) in entries {
            let pattern = self.compiled(key, &source, patterns, Pattern::key);
            let value = read(self, &format!("{key}[{:?}]", shown(&source)), &value);
            pairs.extend(pattern.zip(value));
        }
        (pairs.len() == wanted).then_some(pairs)
    }

    fn compiled(
        &mut self,
        key: &str,
        source: &str,
        patterns: &mut PatternBudget,
        build: fn(&str) -> Result<Pattern, String>,
    ) -> Option<Pattern> {
        match patterns.compile(source, build) {
            Ok(pattern) => Some(pattern),
            Err(why) => {
                if let Some(why) = why {
                    self.refuse(format!("{key}: {why}"));
                }
                None
            }
        }
    }

    fn texts(&mut self, key: &str, items: Vec<Json>) -> Option<Vec<String>> {
        if items.len() > NAMES_MAX {
            self.refuse(format!("{key} has {} entries, the limit is {NAMES_MAX}", items.len()));
            return None;
        }
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Json::String(text) => texts.push(text),
                other => return self.wrong(key, &other, "a list of strings"),
            }
        }
        Some(texts)
    }

    /// A list of names or a pattern. The inner `None`: not given.
    pub(super) fn names(&mut self, key: &str, patterns: &mut PatternBudget) -> Option<Option<Names>> {
        match self.take_set(key) {
            None => Some(None),
            Some(Json::Array(items)) if items.is_empty() => Some(None),
            Some(Json::Array(items)) => Some(Some(Names::List(self.texts(key, items)?))),
            Some(Json::String(text)) if text.is_empty() => Some(None),
            Some(Json::String(text)) if key == "target_modules" && text.eq_ignore_ascii_case("all-linear") => {
                Some(Some(Names::AllLinear))
            }
            Some(Json::String(text)) => {
                Some(Some(Names::Pattern(self.compiled(key, &text, patterns, Pattern::full)?)))
            }
            Some(other) => self.wrong(key, &other, "a list of strings or a string"),
        }
    }

    /// A layer number or a list of them. The inner `None`: not given.
    pub(super) fn indices(&mut self, key: &str) -> Option<Option<Vec<u64>>> {
        let value = match self.take_set(key) {
            None => return Some(None),
            Some(value) => value,
        };
        let items = match &value {
            Json::Array(items) => &items[..],
            one => std::slice::from_ref(one),
        };
        let mut indices = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Json::Int(index) if u64::try_from(*index).is_ok() => indices.extend(u64::try_from(*index)),
                _ => return self.wrong(key, &value, "a layer number or a list of them"),
            }
        }
        Some(Some(indices))
    }

    pub(super) fn layer_patterns(&mut self, key: &str, patterns: &mut PatternBudget) -> Option<Vec<Pattern>> {
        let texts = match self.take_set(key) {
            None => Vec::new(),
            Some(Json::String(text)) if text.is_empty() => Vec::new(),
            Some(Json::String(text)) => vec![text],
            Some(Json::Array(items)) => self.texts(key, items)?,
            Some(other) => return self.wrong(key, &other, "a string or a list of strings"),
        };
        let wanted = texts.len();
        let compiled: Vec<Pattern> =
            texts.iter().filter_map(|text| self.compiled(key, text, patterns, Pattern::layers)).collect();
        (compiled.len() == wanted).then_some(compiled)
    }
}

//! Breaking up special tokens inside user text, so that they are recognisable in what a template renders.

use aho_corasick::AhoCorasick;
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// Knows the special tokens.
pub(super) struct Marker {
    specials: Vec<String>,
    finder: AhoCorasick,
}

impl Marker {
    /// # Errors
    /// If a special token is a single character: there is nowhere to break it.
    pub(super) fn new(specials: Vec<String>) -> Result<Self, String> {
        if let Some(short) = specials.iter().find(|text| text.chars().count() < 2) {
            return Err(format!("special token {short:?} has fewer than two characters"));
        }
        let finder = AhoCorasick::new(&specials).map_err(|error| error.to_string())?;
        Ok(Self { specials, finder })
    }

    /// The same value with `mark` inside every special token in every string, keys included.
    pub(super) fn mark(&self, value: &Json, mark: char) -> Json {
        match value {
            Json::String(text) => Json::String(self.mark_text(text, mark)),
            Json::Array(items) => Json::Array(items.iter().map(|item| self.mark(item, mark)).collect()),
            Json::Object(fields) => {
                let field = |(key, value): (&String, &Json)| (self.mark_text(key, mark), self.mark(value, mark));
                Json::Object(fields.iter().map(field).collect())
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => value.clone(),
        }
    }

    /// Marks go after the first character of each occurrence, overlapping ones included. A text that ends in the
    /// beginning of a special token, or begins with the end of one, gets a mark there too: two strings that a
    /// template joins must not become one.
    fn mark_text(&self, text: &str, mark: char) -> String {
        let mut places = BTreeSet::new();
        for found in self.finder.find_overlapping_iter(text) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            places.insert(found.start() + first);
        }
        if self.specials.iter().any(|special| ends_in_beginning_of(text, special)) {
            places.insert(text.len());
        }
        if self.specials.iter().any(|special| begins_with_end_of(text, special)) {
            places.insert(0);
        }
        let mut marked = String::with_capacity(text.len() + places.len() * mark.len_utf8());
        let mut done = 0;
        for place in places {
            marked.push_str(&text[done..place]);
            marked.push(mark);
            done = place;
        }
        marked.push_str(&text[done..]);
        marked
    }
}

fn ends_in_beginning_of(text: &str, special: &str) -> bool {
    special.char_indices().skip(1).any(|(at, _)| text.ends_with(&special[..at]))
}

fn begins_with_end_of(text: &str, special: &str) -> bool {
    special.char_indices().skip(1).any(|(at, _)| text.starts_with(&special[at..]))
}

/// Two of Unicode's 66 noncharacters that occur nowhere in the input. They are never assigned, no tokenizer's special
/// token has them, and no template tests for them.
pub(super) fn free_characters(messages: &Json, tools: Option<&Json>) -> Result<[char; 2], String> {
    let mut used = BTreeSet::new();
    collect_noncharacters(messages, &mut used);
    if let Some(tools) = tools {
        collect_noncharacters(tools, &mut used);
    }
    let planes = (0..=16u32).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]);
    let mut free = (0xfdd0..=0xfdef).chain(planes).filter_map(char::from_u32).filter(|c| !used.contains(c));
    match (free.next(), free.next()) {
        (Some(mark), Some(tag)) => Ok([mark, tag]),
        _ => Err("the messages use nearly all 66 unicode noncharacters".into()),
    }
}

pub(super) fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

fn collect_noncharacters(value: &Json, used: &mut BTreeSet<char>) {
    match value {
        Json::String(text) => used.extend(text.chars().filter(|c| is_noncharacter(*c))),
        Json::Array(items) => items.iter().for_each(|item| collect_noncharacters(item, used)),
        Json::Object(fields) => {
            for (key, value) in fields {
                used.extend(key.chars().filter(|c| is_noncharacter(*c)));
                collect_noncharacters(value, used);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

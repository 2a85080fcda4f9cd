//! Prompts of a given length that no run has asked before: a function of the request and of the run's salt.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Words of one token each, with the blank before them, in the vocabularies of current models.
const WORDS: &[&str] = &[
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
];

/// Ids below hold special tokens and single bytes in most vocabularies.
const FIRST_PLAIN_ID: u32 = 1000;

/// What a request asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Token ids: exactly as long as wanted.
    Ids(Vec<u32>),
    /// Words: about as long, what the endpoint counts says how long.
    Text(String),
}

fn random(seed: u64, salt: u64) -> StdRng {
    StdRng::seed_from_u64(seed.rotate_left(17) ^ salt)
}

/// Token ids below `vocabulary`, all alike; the prompt of this seed in the run with this salt.
#[must_use]
pub fn ids(tokens: u32, vocabulary: u32, seed: u64, salt: u64) -> Prompt {
    let mut random = random(seed, salt);
    let first = FIRST_PLAIN_ID.min(vocabulary / 2);
    Prompt::Ids((0..tokens).map(|_| random.random_range(first..vocabulary.max(1))).collect())
}

/// Common words in random order.
#[must_use]
pub fn text(tokens: u32, seed: u64, salt: u64) -> Prompt {
    let mut random = random(seed, salt);
    let words: Vec<&str> = (0..tokens).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect();
    Prompt::Text(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_its_length_and_its_vocabulary() {
        let Prompt::Ids(ids) = ids(70, 4000, 1, 2) else { panic!("ids") };
        assert_eq!(ids.len(), 70);
        assert!(ids.iter().all(|&id| (1000..4000).contains(&id)));
        let Prompt::Ids(small) = super::ids(50, 256, 1, 2) else { panic!("ids") };
        assert!(small.iter().all(|&id| id < 256));
        let Prompt::Text(text) = text(70, 1, 2) else { panic!("text") };
        assert_eq!(text.split(' ').count(), 70);
    }

    #[test]
    fn the_same_trace_asks_other_prompts_in_another_run() {
        assert_eq!(ids(70, 4000, 5, 9), ids(70, 4000, 5, 9));
        assert_ne!(ids(70, 4000, 5, 9), ids(70, 4000, 5, 10));
        assert_ne!(ids(70, 4000, 5, 9), ids(70, 4000, 6, 9));
        assert_ne!(text(70, 5, 9), text(70, 5, 10));
    }
}

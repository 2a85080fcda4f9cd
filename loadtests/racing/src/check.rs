//! Whether a history is linearizable, per key (Herlihy and Wing, "Linearizability", TOPLAS 1990).
//!
//! In general that takes exponential time; here the store keeps a witness. An alias remembers its last 100 moves, each with the name of
//! who asked for it, and every move of the workload has a name of its own: that is the order in which moves took effect. What is
//! left is to see whether the order respects real time (an operation that ended before another began comes before it), with
//! each read right behind the move that it saw. Versions are numbered by the store: their numbers are the order of publishes.

use std::collections::{BTreeMap, BTreeSet};

/// Nanoseconds since the run began.
pub type Time = u64;

/// When an operation ran. Without an end nobody knows whether it took effect, or when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it was asked for.
    pub began: Time,
    /// When the answer was there.
    pub ended: Option<Time>,
}

impl Span {
    fn end(self) -> Time {
        self.ended.unwrap_or(Time::MAX)
    }
}

/// A move of an alias that was acknowledged, or may have taken effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its name: no other move has it.
    pub name: String,
    /// The version it moves to.
    pub version: u64,
    /// For a compare-and-swap: the name of the move whose state was expected. `None`: whatever was there.
    pub expected: Option<String>,
    /// When.
    pub span: Span,
}

/// A read of an alias: the move that it saw, `None` before the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The name of the move.
    pub saw: Option<String>,
    /// When; always ended.
    pub span: Span,
}

/// A publish, and the version that it was told, if it was told one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// SHA-256 of the blob, or what else tells it from all others.
    pub digest: String,
    /// The number in the answer.
    pub version: Option<u64>,
    /// When.
    pub span: Span,
}

/// All that was done to one adapter.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Moves of its alias.
    pub moves: Vec<Move>,
    /// Reads of its alias.
    pub reads: Vec<Read>,
    /// Publishes.
    pub publishes: Vec<Publish>,
}

/// What the store has at the end.
#[derive(Clone, Debug, Default)]
pub struct Final {
    /// Moves of the alias, oldest first: name and version.
    pub moves: Vec<(String, u64)>,
    /// Versions by number, with what [`Publish::digest`] is compared with.
    pub versions: BTreeMap<u64, String>,
}

/// What is wrong, in words; empty: the history is linearizable and nothing acknowledged is lost. Cost: n log n.
#[must_use]
pub fn check(history: &History, last: &Final) -> Vec<String> {
    let mut wrong = Vec::new();
    check_alias(history, last, &mut wrong);
    check_versions(history, last, &mut wrong);
    wrong
}

fn check_alias(history: &History, last: &Final, wrong: &mut Vec<String>) {
    let position: BTreeMap<&str, usize> =
        last.moves.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect();
    if position.len() != last.moves.len() {
        wrong.push("a move took effect twice".to_owned());
    }
    // By position: the move, then whoever saw it.
    let mut spans: Vec<(Option<Span>, Vec<Span>)> = vec![(None, Vec::new()); last.moves.len() + 1];
    for done in &history.moves {
        let Some(at) = position.get(done.name.as_str()) else {
            if done.span.ended.is_some() {
                wrong.push(format!("move {} was acknowledged and is lost", done.name));
            }
            continue;
        };
        if last.moves[*at].1 != done.version {
            wrong.push(format!("move {} went to version {} and not {}", done.name, last.moves[*at].1, done.version));
        }
        if let Some(expected) = &done.expected {
            let before = at.checked_sub(1).map(|before| last.moves[before].0.as_str());
            if before != Some(expected) {
                wrong.push(format!("move {} expected {expected} and came behind {before:?}", done.name));
            }
        }
        spans[at + 1].0 = Some(done.span);
    }
    for read in &history.reads {
        match &read.saw {
            None => spans[0].1.push(read.span),
            Some(name) => match position.get(name.as_str()) {
                Some(at) => spans[at + 1].1.push(read.span),
                None => wrong.push(format!("a read saw {name}, which never took effect")),
            },
        }
    }
    // Each of the order must not have ended before something earlier in it began.
    let mut latest_began = 0;
    for (at, (moved, mut reads)) in spans.into_iter().enumerate() {
        reads.sort_by_key(|span| span.began);
        for span in moved.into_iter().chain(reads) {
            if span.end() < latest_began {
                wrong.push(format!("what took effect at place {at} had ended before something earlier began"));
            }
            latest_began = latest_began.max(span.began);
        }
    }
}

fn check_versions(history: &History, last: &Final, wrong: &mut Vec<String>) {
    let gapless = (1..).zip(last.versions.keys()).all(|(expected, number)| expected == *number);
    if !gapless {
        wrong.push(format!("version numbers have gaps: {:?}", last.versions.keys().collect::<Vec<_>>()));
    }
    let digests: BTreeSet<&String> = last.versions.values().collect();
    if digests.len() != last.versions.len() {
        wrong.push("two versions have the same bytes".to_owned());
    }
    let mut told: Vec<(u64, Span)> = Vec::new();
    for publish in &history.publishes {
        let Some(version) = publish.version else { continue };
        match last.versions.get(&version) {
            Some(digest) if *digest == publish.digest => told.push((version, publish.span)),
            Some(_) => wrong.push(format!("version {version} was acknowledged with other bytes")),
            None => wrong.push(format!("version {version} was acknowledged and is lost")),
        }
    }
    told.sort_by_key(|(version, _)| *version);
    let mut latest_began = 0;
    for (version, span) in told {
        if span.end() < latest_began {
            wrong.push(format!("version {version} was there before a smaller number was asked for"));
        }
        latest_began = latest_began.max(span.began);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(began: Time, ended: Time) -> Span {
        Span { began, ended: Some(ended) }
    }

    fn moved(name: &str, version: u64, span: Span, expected: Option<&str>) -> Move {
        Move { name: name.to_owned(), version, expected: expected.map(ToOwned::to_owned), span }
    }

    fn read(saw: Option<&str>, began: Time, ended: Time) -> Read {
        Read { saw: saw.map(ToOwned::to_owned), span: span(began, ended) }
    }

    fn order(names: &[&str]) -> Final {
        let moves = names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), at as u64 + 1));
        Final { moves: moves.collect(), versions: BTreeMap::new() }
    }

    #[test]
    fn concurrent_moves_and_reads_have_an_order() {
        let history = History {
            moves: vec![moved("a", 1, span(0, 10), None), moved("b", 2, span(5, 20), Some("a"))],
            reads: vec![read(None, 0, 3), read(Some("a"), 8, 19), read(Some("b"), 9, 30), read(Some("a"), 6, 9)],
            publishes: Vec::new(),
        };
        assert_eq!(check(&history, &order(&["a", "b"])), [""; 0]);
    }

    #[test]
    fn what_no_order_explains_is_found() {
        let a = || moved("a", 1, span(0, 10), None);
        let b = || moved("b", 2, span(20, 30), None);
        let of = |moves: Vec<Move>, reads: Vec<Read>, names: &[&str]| {
            check(&History { moves, reads, publishes: Vec::new() }, &order(names)).len()
        };
        assert_eq!(of(vec![a(), b()], vec![], &["a", "b"]), 0);
        assert_ne!(
            of(vec![a(), moved("b", 1, span(20, 30), None)], vec![], &["b", "a"]),
            0,
            "b began when a had ended"
        );
        assert_ne!(of(vec![a(), b()], vec![read(Some("a"), 40, 50)], &["a", "b"]), 0, "a stale read");
        assert_ne!(of(vec![a(), b()], vec![read(Some("b"), 11, 15)], &["a", "b"]), 0, "a read of the future");
        assert_ne!(
            of(vec![a(), b()], vec![read(Some("x"), 1, 50)], &["a", "b"]),
            0,
            "a read of nothing that was written"
        );
        assert_ne!(of(vec![a(), b()], vec![read(None, 11, 15)], &["a", "b"]), 0, "nothing, after something");
        assert_ne!(of(vec![a(), b()], vec![], &["a"]), 0, "b is lost");
        assert_ne!(of(vec![a()], vec![], &["a", "a"]), 0, "twice");
        assert_ne!(of(vec![a(), moved("b", 2, span(5, 30), Some("x"))], vec![], &["a", "b"]), 0, "expected another");
        assert_ne!(of(vec![moved("a", 7, span(0, 10), None)], vec![], &["a"]), 0, "to another version");
        // Two reads one after the other must not see newer, then older.
        let reads = vec![read(Some("b"), 41, 42), read(Some("a"), 43, 44)];
        assert_ne!(of(vec![a(), moved("b", 2, span(20, 60), None)], reads, &["a", "b"]), 0);
    }

    #[test]
    fn a_move_without_an_answer_may_have_happened_or_not() {
        let lost = Move { span: Span { began: 5, ended: None }, ..moved("b", 2, span(0, 0), None) };
        let history = |reads| History {
            moves: vec![moved("a", 1, span(0, 4), None), lost.clone()],
            reads,
            publishes: Vec::new(),
        };
        assert_eq!(check(&history(vec![]), &order(&["a"])), [""; 0]);
        assert_eq!(check(&history(vec![read(Some("b"), 90, 91)]), &order(&["a", "b"])), [""; 0]);
        assert_ne!(
            check(&history(vec![read(Some("b"), 1, 3)]), &order(&["a", "b"])).len(),
            0,
            "seen before it was asked for"
        );
    }

    #[test]
    fn versions_are_numbered_in_the_order_of_time_without_gaps_or_doubles() {
        let publish =
            |digest: &str, version: Option<u64>, span: Span| Publish { digest: digest.to_owned(), version, span };
        let last = |versions: &[(u64, &str)]| Final {
            moves: Vec::new(),
            versions: versions.iter().map(|(number, digest)| (*number, (*digest).to_owned())).collect(),
        };
        let of = |publishes: Vec<Publish>, versions: &[(u64, &str)]| {
            check(&History { publishes, ..History::default() }, &last(versions)).len()
        };
        let (x, y) = (publish("x", Some(1), span(0, 10)), publish("y", Some(2), span(11, 20)));
        assert_eq!(of(vec![x.clone(), y.clone()], &[(1, "x"), (2, "y")]), 0);
        assert_eq!(of(vec![x.clone(), publish("z", None, span(0, 1))], &[(1, "x"), (2, "z")]), 0);
        assert_ne!(of(vec![x.clone(), y.clone()], &[(1, "x")]), 0, "y is lost");
        assert_ne!(of(vec![x.clone(), y.clone()], &[(1, "x"), (2, "z")]), 0, "other bytes");
        assert_ne!(of(vec![x.clone()], &[(1, "x"), (3, "z")]), 0, "a gap");
        assert_ne!(of(vec![x.clone()], &[(1, "x"), (2, "x")]), 0, "the same bytes twice");
        let late = publish("y", Some(2), span(0, 10));
        let early = publish("x", Some(1), span(11, 20));
        assert_ne!(of(vec![early, late], &[(1, "x"), (2, "y")]), 0, "2 was there before 1 was asked for");
    }
}

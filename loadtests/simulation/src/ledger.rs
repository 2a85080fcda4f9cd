//! What the mesh has acknowledged, what was tried, and what was seen: the memory of those who ask.

use std::collections::BTreeMap;
use std::time::Duration;
use weft_types::Digest;

/// How long a write whose outcome nobody knows may still come true: longer than any deadline on its way.
const LATE_WRITE_MAX: Duration = Duration::from_secs(330);

/// A version that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// Of the adapter.
    pub(crate) number: u64,
    /// Of its bytes.
    pub(crate) digest: Digest,
    /// When the acknowledgement came.
    pub(crate) acked: Duration,
}

/// A try to move an alias; a publish is one too.
#[derive(Clone, Debug)]
struct Move {
    digest: Digest,
    began: Duration,
    /// None: nobody knows whether it happened, or it runs.
    acked: Option<Duration>,
}

/// A key that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Whose.
    pub(crate) tenant: &'static str,
    /// The bearer token.
    pub(crate) secret: String,
    /// When the acknowledgement came.
    pub(crate) acked: Duration,
    /// It was made before anything failed, and is never revoked: whoever asks uses it.
    pub(crate) is_standing: bool,
    /// When its revocation was first asked for, and acknowledged.
    pub(crate) revoke: Option<(Duration, Option<Duration>)>,
}

/// An adapter, with its tenant.
pub(crate) type Adapter = (&'static str, &'static str);

/// All of it.
#[derive(Default)]
pub(crate) struct Ledger {
    versions: BTreeMap<Adapter, Vec<Version>>,
    /// What each number was seen to be.
    seen: BTreeMap<(Adapter, u64), Digest>,
    moves: BTreeMap<(Adapter, &'static str), Vec<Move>>,
    /// By id.
    pub(crate) keys: BTreeMap<String, Key>,
}

impl Ledger {
    /// Versions that were acknowledged, oldest first.
    #[must_use]
    pub(crate) fn versions(&self, adapter: Adapter) -> &[Version] {
        self.versions.get(&adapter).map_or(&[], Vec::as_slice)
    }

    /// A version was acknowledged, perhaps again.
    pub(crate) fn published(&mut self, adapter: Adapter, version: Version) {
        let all = self.versions.entry(adapter).or_default();
        if !all.iter().any(|known| known.number == version.number) {
            all.push(version);
        }
    }

    /// A version was seen. Some: the same number was seen with these other bytes, or these bytes with another number.
    pub(crate) fn saw(&mut self, adapter: Adapter, number: u64, digest: Digest) -> Option<String> {
        let before = *self.seen.entry((adapter, number)).or_insert(digest);
        if before != digest {
            return Some(format!("version {number} of {adapter:?} was {before} and is {digest}"));
        }
        let mut same = self.seen.iter().filter(|((of, _), other)| *of == adapter && **other == digest);
        let twin = same.find(|((_, other), _)| *other != number);
        twin.map(|((_, other), _)| format!("versions {other} and {number} of {adapter:?} are the same bytes"))
    }

    /// Somebody begins to move an alias; the number is for [`Ledger::moved`].
    pub(crate) fn moves(&mut self, adapter: Adapter, alias: &'static str, digest: Digest, began: Duration) -> usize {
        let all = self.moves.entry((adapter, alias)).or_default();
        all.push(Move { digest, began, acked: None });
        all.len() - 1
    }

    /// The move was acknowledged.
    pub(crate) fn moved(&mut self, adapter: Adapter, alias: &'static str, number: usize, acked: Duration) {
        if let Some(moved) = self.moves.get_mut(&(adapter, alias)).and_then(|all| all.get_mut(number)) {
            moved.acked = Some(acked);
        }
    }

    /// Whether the alias has been acknowledged to be somewhere, at this time or earlier.
    #[must_use]
    pub(crate) fn has_alias(&self, adapter: Adapter, alias: &'static str, at: Duration) -> bool {
        let moves = self.moves.get(&(adapter, alias)).map_or(&[][..], Vec::as_slice);
        moves.iter().any(|moved| moved.acked.is_some_and(|acked| acked <= at))
    }

    /// Where the alias may be, for somebody whose view is no older than `since`: where the last move that was acknowledged by then put
    /// it, or where any later move, or one of unknown outcome, may have. One client moves an alias, one move after the other.
    #[must_use]
    pub(crate) fn may_be(&self, adapter: Adapter, alias: &'static str, since: Duration) -> Vec<Digest> {
        let moves = self.moves.get(&(adapter, alias)).map_or(&[][..], Vec::as_slice);
        let base = moves.iter().rposition(|moved| moved.acked.is_some_and(|acked| acked <= since));
        let is_possible = |(at, moved): &(usize, &Move)| {
            let is_late = moved.acked.is_none() && moved.began + LATE_WRITE_MAX >= since;
            base.is_none_or(|base| *at >= base) || is_late
        };
        moves.iter().enumerate().filter(is_possible).map(|(_, moved)| moved.digest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTER: Adapter = ("harbour", "pirate");

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_number_keeps_its_bytes_and_bytes_their_number() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.saw(ADAPTER, 1, digest("a")), None);
        assert_eq!(ledger.saw(ADAPTER, 1, digest("a")), None);
        assert_eq!(ledger.saw(("other", "pirate"), 2, digest("a")), None);
        assert!(ledger.saw(ADAPTER, 1, digest("b")).unwrap().contains("version 1"));
        assert!(ledger.saw(ADAPTER, 2, digest("a")).unwrap().contains("versions 1 and 2"));
    }

    #[test]
    fn an_alias_may_be_where_it_was_put_last_or_where_an_open_move_may_have_put_it() {
        let mut ledger = Ledger::default();
        let [a, b, c] = ["a", "b", "c"].map(digest);
        let first = ledger.moves(ADAPTER, "live", a, at(1));
        ledger.moved(ADAPTER, "live", first, at(2));
        let second = ledger.moves(ADAPTER, "live", b, at(10));
        assert_eq!(ledger.may_be(ADAPTER, "live", at(20)), [a, b]);
        ledger.moved(ADAPTER, "live", second, at(12));
        assert_eq!(ledger.may_be(ADAPTER, "live", at(11)), [a, b], "a view of before may not have it");
        assert_eq!(ledger.may_be(ADAPTER, "live", at(12)), [b]);
        let lost = ledger.moves(ADAPTER, "live", c, at(13));
        let third = ledger.moves(ADAPTER, "live", a, at(20));
        ledger.moved(ADAPTER, "live", third, at(21));
        assert_eq!(ledger.may_be(ADAPTER, "live", at(30)), [c, a], "nobody knows of a lost one whether it comes late");
        assert_eq!(lost, 2);
        assert_eq!(ledger.may_be(ADAPTER, "live", at(13) + LATE_WRITE_MAX + at(1)), [a]);
        assert!(ledger.has_alias(ADAPTER, "live", at(2)) && !ledger.has_alias(ADAPTER, "live", at(1)));
    }
}

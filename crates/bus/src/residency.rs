//! Who holds which adapters: two states become a delta in pieces, and pieces become a state again.
//!
//! A delta says how things are at its generation for all that differs from the generation before, so that applying it to a state in
//! between is harmless: at worst an adapter that came and went meanwhile stays in the follower's view until it lists again. A delta
//! that begins after what the follower has is a gap: list now. A delta from generation 0 on is the whole list.

use std::collections::HashMap;
use weft_proto::mesh::v1 as pb;
use weft_proto::mesh::v1::Tier;
use weft_types::Digest;

/// Changes in one piece: 38 bytes each, so that a piece and whatever carries it stay below 64 KiB.
pub const CHANGES_MAX: usize = 1200;
/// Adapters that a follower keeps of one process; what is beyond is not seen.
pub const HELD_MAX: usize = 1 << 16;

/// The nearest tier of each adapter that is held.
pub type Held = HashMap<Digest, Tier>;

/// What a process last told of itself.
#[derive(Default)]
pub struct Teller {
    told: Held,
    generation: u64,
}

impl Teller {
    /// The generation last told.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Tells everything the next time, for those who missed something and cannot ask.
    pub fn start_over(&mut self) {
        *self = Self::default();
    }

    /// The delta from what was told last, in one piece or more. `generation` must have grown if `now` differs.
    pub fn tell(&mut self, now: Held, generation: u64) -> Vec<pb::ResidencyDelta> {
        let changes = if generation == self.generation { Vec::new() } else { changes(&self.told, &now) };
        let since = std::mem::replace(&mut self.generation, generation);
        self.told = now;
        pieces(since, generation, &changes)
    }

    /// As [`Teller::tell`], for a process without generations of its own: one more if anything differs.
    pub fn tell_next(&mut self, now: Held) -> Vec<pb::ResidencyDelta> {
        let generation = self.generation + u64::from(now != self.told);
        self.tell(now, generation)
    }
}

fn changes(before: &Held, now: &Held) -> Vec<pb::ResidencyChange> {
    let change =
        |digest: &Digest, tier: Tier| pb::ResidencyChange { digest: digest.to_vec().into(), tier: tier.into() };
    let gone = before.keys().filter(|digest| !now.contains_key(digest)).map(|digest| change(digest, Tier::None));
    let new = now.iter().filter(|(digest, tier)| before.get(digest) != Some(tier));
    gone.chain(new.map(|(digest, tier)| change(digest, *tier))).collect()
}

fn pieces(since: u64, generation: u64, changes: &[pb::ResidencyChange]) -> Vec<pb::ResidencyDelta> {
    let pieces = changes.len().div_ceil(CHANGES_MAX).max(1);
    let piece = |index: usize| {
        let changes = changes.iter().skip(index * CHANGES_MAX).take(CHANGES_MAX).cloned().collect();
        pb::ResidencyDelta { since, generation, piece: index as u32, pieces: pieces as u32, changes }
    };
    (0..pieces).map(piece).collect()
}

/// What a follower should do after a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Current,
    /// Ask for the whole list: something was missed.
    Gap,
}

/// The state of one process as a listener knows it.
#[derive(Clone, Default)]
pub struct Follower {
    incarnation: String,
    generation: u64,
    /// Generation and next piece of a delta that is not whole yet.
    open: Option<(u64, u32)>,
    held: Held,
}

impl Follower {
    /// Where the process has this adapter.
    #[must_use]
    pub fn tier(&self, digest: &Digest) -> Option<Tier> {
        self.held.get(digest).copied()
    }

    /// All that it holds.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// The generation that is had.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes in a piece of a delta of this incarnation.
    pub fn hear(&mut self, incarnation: &str, delta: &pb::ResidencyDelta) -> Heard {
        if incarnation != self.incarnation {
            *self = Self { incarnation: incarnation.to_owned(), ..Self::default() };
        }
        if delta.generation <= self.generation {
            return Heard::Current;
        }
        let follows = match delta.piece {
            0 => delta.since <= self.generation,
            piece => self.open == Some((delta.generation, piece)),
        };
        if !follows {
            self.open = None;
            return Heard::Gap;
        }
        if delta.piece == 0 && delta.since == 0 {
            // The whole list: what was had before and is not in it is gone.
            self.held.clear();
        }
        for change in &delta.changes {
            if let Ok(digest) = Digest::try_from(change.digest.as_ref()) {
                self.set(digest, change.tier());
            }
        }
        let next = delta.piece + 1;
        if next >= delta.pieces {
            (self.generation, self.open) = (delta.generation, None);
        } else {
            self.open = Some((delta.generation, next));
        }
        Heard::Current
    }

    /// Takes in the whole list of this incarnation.
    pub fn list(&mut self, incarnation: &str, generation: u64, held: impl IntoIterator<Item = (Digest, Tier)>) {
        *self = Self { incarnation: incarnation.to_owned(), generation, ..Self::default() };
        for (digest, tier) in held {
            self.set(digest, tier);
        }
    }

    fn set(&mut self, digest: Digest, tier: Tier) {
        if tier == Tier::None {
            self.held.remove(&digest);
        } else if self.held.len() < HELD_MAX || self.held.contains_key(&digest) {
            self.held.insert(digest, tier);
        }
    }
}

#[cfg(test)]
#[path = "residency_tests.rs"]
mod tests;

//! What this daemon knows of the others: who holds what, and who is left alone for a while. Without IO or clocks.

use std::collections::{HashMap, HashSet};
use weft_bus::residency::{Follower, Heard, Held};
use weft_proto::mesh::v1::{CacheResidency, Tier};
use weft_types::Digest;

/// A neighbour counts as there for so many of its intervals after a word.
const INTERVALS: u64 = 3;
/// Whatever interval a message names.
const INTERVAL_MS_MAX: u64 = 60_000;
/// Between two listings of one neighbour.
const LIST_PAUSE_MS: u64 = 1_000;
/// How long a neighbour that failed is left alone: at first, and at most.
const REST_MS: u64 = 1_000;
const REST_MS_MAX: u64 = 60_000;
/// How long one that sent wrong bytes is.
const WRONG_REST_MS: u64 = 600_000;
/// Bytes of an address.
const ADDRESS_BYTES_MAX: usize = 256;

/// What a failure means for the next fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has too many readers; others may still have been lucky.
    Busy,
    /// It does not have the blob any more.
    Missing,
    /// It is away, silent, or makes no sense.
    Failed,
    /// Its bytes are not those of the digest.
    Wrong,
}

impl Fault {
    /// The word in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Missing => "not_found",
            Self::Failed => "unavailable",
            Self::Wrong => "corrupt",
        }
    }
}

#[derive(Default)]
struct Neighbour {
    follower: Follower,
    incarnation: String,
    good_until_ms: u64,
    rest_until_ms: u64,
    /// In a row.
    failures: u32,
    listed_ms: Option<u64>,
    is_listing: bool,
    /// It said that it lacks what we thought it had.
    is_stale: bool,
}

/// The others, at most so many.
pub(crate) struct View {
    /// Our own incarnation: we hear ourselves too.
    own: String,
    neighbours_max: usize,
    known: HashMap<String, Neighbour>,
}

impl View {
    pub(crate) fn new(own: String, neighbours_max: usize) -> Self {
        Self { own, neighbours_max, known: HashMap::new() }
    }

    /// Takes a message in. True: the sender should be asked for its whole list, and [`View::listed`] be told what came.
    pub(crate) fn hear(&mut self, message: &CacheResidency, now_ms: u64) -> bool {
        let address = &message.address;
        if message.incarnation == self.own || address.is_empty() || address.len() > ADDRESS_BYTES_MAX {
            return false;
        }
        self.forget(now_ms);
        if !self.known.contains_key(address) && self.known.len() >= self.neighbours_max {
            return false;
        }
        let known = self.known.entry(address.clone()).or_default();
        if known.incarnation != message.incarnation {
            // Another process: what the old one did is no fault of its.
            *known = Neighbour { incarnation: message.incarnation.clone(), ..Neighbour::default() };
        }
        known.good_until_ms = now_ms + INTERVALS * u64::from(message.interval_ms).min(INTERVAL_MS_MAX);
        let heard = match &message.residency {
            Some(delta) => known.follower.hear(&message.incarnation, delta),
            None => Heard::Current,
        };
        let was_listed = known.listed_ms.is_some_and(|listed_ms| now_ms < listed_ms + LIST_PAUSE_MS);
        let asks = (heard == Heard::Gap || known.is_stale) && !known.is_listing && !was_listed;
        if asks {
            (known.is_listing, known.listed_ms) = (true, Some(now_ms));
        }
        asks
    }

    /// Takes the whole list of a neighbour in, or that it could not be had.
    pub(crate) fn listed(&mut self, address: &str, list: Option<(&str, u64, Held)>) {
        let Some(known) = self.known.get_mut(address) else { return };
        known.is_listing = false;
        if let Some((incarnation, generation, held)) = list
            && incarnation == known.incarnation
        {
            known.follower.list(incarnation, generation, held);
            known.is_stale = false;
        }
    }

    /// Who may be asked for this blob: those that have it in memory first, then as `order` puts them.
    pub(crate) fn holders(&self, digest: &Digest, now_ms: u64, order: impl Fn(&str) -> u64) -> Vec<String> {
        let mut holders: Vec<_> = (self.known.iter())
            .filter(|(_, known)| now_ms < known.good_until_ms && now_ms >= known.rest_until_ms)
            .filter_map(|(address, known)| Some((known.follower.tier(digest)?, address)))
            .map(|(tier, address)| (tier != Tier::Memory, order(address), address))
            .collect();
        holders.sort_unstable();
        holders.into_iter().map(|(_, _, address)| address.clone()).collect()
    }

    /// It sent what it was asked for.
    pub(crate) fn did_well(&mut self, address: &str) {
        if let Some(known) = self.known.get_mut(address) {
            known.failures = 0;
        }
    }

    /// It did not.
    pub(crate) fn failed(&mut self, address: &str, fault: Fault, now_ms: u64) {
        let Some(known) = self.known.get_mut(address) else { return };
        let rest_ms = match fault {
            Fault::Missing => {
                known.is_stale = true;
                return;
            }
            Fault::Busy => REST_MS,
            Fault::Wrong => WRONG_REST_MS,
            Fault::Failed => {
                known.failures += 1;
                (REST_MS << (known.failures - 1).min(10)).min(REST_MS_MAX)
            }
        };
        known.rest_until_ms = known.rest_until_ms.max(now_ms + rest_ms);
    }

    /// How many are known now, and how many blobs they hold together.
    pub(crate) fn count(&mut self, now_ms: u64) -> (usize, usize) {
        self.forget(now_ms);
        (self.known.len(), self.known.values().map(|known| known.follower.held().len()).sum())
    }

    /// Addresses of all that are known.
    pub(crate) fn addresses(&self) -> HashSet<&str> {
        self.known.keys().map(String::as_str).collect()
    }

    /// Those that were silent for too long. One that sent wrong bytes is remembered while it rests.
    fn forget(&mut self, now_ms: u64) {
        self.known.retain(|_, known| now_ms < known.good_until_ms || now_ms < known.rest_until_ms);
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;

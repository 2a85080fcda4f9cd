//! Which arm a request gets: weighted rendezvous over a salted hash.
//!
//! Arm *a* with weight *w* draws `-ln(u) / w`, where *u* in (0, 1) is the hash of (experiment, tenant, arm, key); the
//! smallest draw wins. These are exponential clocks of rate *w*, so *a* wins with probability *w* over the sum of
//! weights. A key's draws are fixed: when one arm's weight grows, only its own draws get smaller, so keys move only
//! to it; when it shrinks, only from it. That is the least that can move. (Schindelhauer and Schomaker, "Weighted
//! distributed hash tables", SPAA 2005.)

use crate::experiment::{Experiment, Role, State, WEIGHT_MAX};
use weft_types::{Digest, DigestHasher, TenantName};

/// Tells our hashes from any others.
const DOMAIN: &[u8] = b"weft experiment assignment 1";
/// The part that draws for shadow arms has another domain: whether a request is mirrored says nothing about its arm.
const MIRROR_DOMAIN: &[u8] = b"weft experiment mirror 1";

/// What a request is split by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// A user's or a session's: the same arm every time while weights stay.
    Sticky(&'a str),
    /// None was sent: 64 random bits that the caller drew for this request, which gets an arm of its own.
    Random(u64),
}

/// What a request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The arm whose answer is returned: its position in [`Experiment::arms`].
    pub arm: usize,
    /// Shadow arms that get a copy: at most [`crate::ARMS_MAX`].
    pub shadows: Vec<usize>,
    /// The phase under whose weights this was decided: what is observed of the request is recorded under it.
    pub phase: usize,
    /// The key within the experiment, hashed: for [`crate::RecentKeys`] and the exposure log. `None` without a key.
    pub key: Option<u64>,
}

/// Assigns a request; `None` if the experiment does not run. Depends on nothing but the experiment's id, the tenant,
/// arms' names and weights, and the key: every gateway gives the same answer. Cost: a SHA-256 of about 100 bytes and
/// the key for each arm, at most [`crate::ARMS_MAX`] and one more; a key longer than 256 bytes should be refused or
/// hashed by the caller.
#[must_use]
pub fn assign(experiment: &Experiment, key: Key<'_>) -> Option<Assignment> {
    if experiment.state != State::Running {
        return None;
    }
    let mut best: Option<(f64, usize)> = None;
    let mut shadows = Vec::new();
    for (at, arm) in experiment.arms.iter().enumerate().filter(|(_, arm)| arm.weight > 0) {
        if arm.role == Role::Shadow {
            let drawn = unit(hash(MIRROR_DOMAIN, experiment, &arm.name, key));
            if drawn * f64::from(WEIGHT_MAX) < f64::from(arm.weight) {
                shadows.push(at);
            }
            continue;
        }
        let draw = draw(hash(DOMAIN, experiment, &arm.name, key), arm.weight);
        if best.is_none_or(|(smallest, _)| draw < smallest) {
            best = Some((draw, at));
        }
    }
    let (_, arm) = best?;
    let key_hash = matches!(key, Key::Sticky(_)).then(|| hash(DOMAIN, experiment, "", key));
    Some(Assignment { arm, shadows, phase: experiment.phase(), key: key_hash })
}

/// An exponential clock of this rate. `libm`'s logarithm is the same on every machine; the platform's need not be.
fn draw(hash: u64, weight: u32) -> f64 {
    -libm::log(unit(hash)) / f64::from(weight)
}

/// A number in (0, 1), never 0 or 1: 53 bits and a half.
fn unit(hash: u64) -> f64 {
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// The first 64 bits of a SHA-256 over length-prefixed fields, so that no two lists of fields are the same bytes.
fn hash(domain: &[u8], experiment: &Experiment, arm: &str, key: Key<'_>) -> u64 {
    let tenant: &TenantName = &experiment.tenant;
    let random;
    let (kind, key): (&[u8], &[u8]) = match key {
        Key::Sticky(key) => (b"key", key.as_bytes()),
        Key::Random(bits) => {
            random = bits.to_le_bytes();
            (b"random", &random)
        }
    };
    let mut hasher = DigestHasher::new();
    for field in [domain, experiment.id.as_bytes(), tenant.as_str().as_bytes(), arm.as_bytes(), kind, key] {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field);
    }
    let digest: Digest = hasher.finish();
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

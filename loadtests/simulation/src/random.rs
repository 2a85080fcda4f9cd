//! Streams of random numbers, one for each thing that draws, so that one more draw of one does not change the others.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The stream of this name under this seed.
#[must_use]
pub(crate) fn stream(seed: u64, name: &str) -> SmallRng {
    let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    SmallRng::from_seed(hash.into())
}

/// One of these.
///
/// # Panics
/// There are none.
pub(crate) fn one_of<'a, T>(random: &mut SmallRng, all: &'a [T]) -> &'a T {
    &all[random.random_range(0..all.len())]
}

/// Uniform between these, in milliseconds.
pub(crate) fn between_ms(random: &mut SmallRng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.random_range(least..=most))
}

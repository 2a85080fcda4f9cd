//! Which elements DARE keeps: a function of seed, parent and position, and of nothing else.
//!
//! Each tensor of each parent has its own ChaCha stream (8 rounds), keyed by the SHA-256 of a tag, the seed, the
//! parent's digest and the tensor's name; element `i`, counted row by row, takes the stream's `i`-th 32-bit word. So
//! the choice depends neither on the order of parents or modules nor on threads or machines, and a Python script can
//! repeat it. A word is one of 2^32, so a density is met to within 2^-33.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use weft_types::{Digest, DigestHasher};

/// The stream of one tensor, element after element.
#[derive(Clone)]
pub(crate) struct Draws {
    stream: ChaCha8Rng,
    /// An element stays if its word is below this; 2^32 keeps all.
    kept_below: u64,
}

impl Draws {
    /// `tensor` is a module's full name, with `.delta`, `.lora_A` or `.lora_B` behind it; `density` is from 0 to 1.
    pub(crate) fn new(seed: u64, parent: Digest, tensor: &str, density: f64) -> Self {
        let mut key = DigestHasher::new();
        key.update(b"weft/merge-dare/1");
        key.update(&seed.to_le_bytes());
        key.update(parent.as_bytes());
        key.update(tensor.as_bytes());
        Self {
            stream: ChaCha8Rng::from_seed(*key.finish().as_bytes()),
            kept_below: (density * 4_294_967_296.0).round() as u64,
        }
    }

    /// Whether the next element stays.
    pub(crate) fn keep(&mut self) -> bool {
        u64::from(self.stream.next_u32()) < self.kept_below
    }
}

/// `count` numbers that are 1 or -1: where the search for singular vectors starts. Always the same.
pub(crate) fn signs(count: usize) -> Vec<f64> {
    let mut stream = ChaCha8Rng::from_seed(*Digest::of(b"weft/merge-svd-start/1").as_bytes());
    let mut signs = Vec::with_capacity(count);
    while signs.len() < count {
        let word = stream.next_u32();
        let left = (count - signs.len()).min(32);
        signs.extend((0..left).map(|bit| if word >> bit & 1 == 0 { 1.0 } else { -1.0 }));
    }
    signs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(draws: &mut Draws, count: usize) -> Vec<bool> {
        (0..count).map(|_| draws.keep()).collect()
    }

    #[test]
    fn draws_follow_from_seed_parent_and_tensor_alone() {
        let [one, other] = [Digest::of(b"one"), Digest::of(b"other")];
        let first = kept(&mut Draws::new(7, one, "q.delta", 0.5), 256);
        assert_eq!(first, kept(&mut Draws::new(7, one, "q.delta", 0.5), 256));
        for other in [
            Draws::new(8, one, "q.delta", 0.5),
            Draws::new(7, other, "q.delta", 0.5),
            Draws::new(7, one, "k.delta", 0.5),
        ] {
            assert_ne!(first, kept(&mut other.clone(), 256));
        }
    }

    #[test]
    fn the_share_kept_is_the_density_and_a_larger_density_keeps_the_same_and_more() {
        let parent = Digest::of(b"parent");
        let count = 100_000;
        let mut before = vec![false; count];
        for density in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let now = kept(&mut Draws::new(1, parent, "q.delta", density), count);
            assert!(before.iter().zip(&now).all(|(before, now)| *now || !before));
            let share = now.iter().filter(|kept| **kept).count() as f64 / count as f64;
            // Five standard deviations; none at 0 and 1.
            let spread = 5.0 * (density * (1.0 - density) / count as f64).sqrt();
            assert!((share - density).abs() <= spread, "{density}: {share}");
            before = now;
        }
    }

    #[test]
    fn signs_are_balanced() {
        let sum: f64 = signs(10_001).iter().sum();
        assert!(sum.abs() < 500.0, "{sum}");
    }
}

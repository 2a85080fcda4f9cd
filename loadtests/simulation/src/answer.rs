//! What the scripted workers answer: a function of what an answer of the mesh may depend on, and of nothing else. Whoever knows the
//! adapter's bytes, the prompt and the seed knows every token, so that each one can be checked.

use sha2::{Digest as _, Sha256};

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// In a vocabulary of 2^32.
    pub id: u32,
    /// What it adds to the text.
    pub text: String,
}

/// The token at this position, from 0. `digest`: of the adapter; empty for the base.
#[must_use]
pub fn token(digest: &[u8], prompt: &str, seed: u64, position: u32) -> Token {
    let mut hasher = Sha256::new();
    for part in [digest, prompt.as_bytes(), &seed.to_le_bytes(), &position.to_le_bytes()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let id = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
    Token { id, text: format!(" {position}:{id:08x}") }
}

/// The text of the first `tokens` tokens.
#[must_use]
pub fn text(digest: &[u8], prompt: &str, seed: u64, tokens: u32) -> String {
    (0..tokens).map(|position| token(digest, prompt, seed, position).text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_request_changes_every_token() {
        let one = token(b"digest", "prompt", 1, 0);
        assert_eq!(one, token(b"digest", "prompt", 1, 0));
        for other in [
            token(b"other", "prompt", 1, 0),
            token(b"digest", "other", 1, 0),
            token(b"digest", "prompt", 2, 0),
            token(b"digest", "prompt", 1, 1),
            token(b"digestp", "rompt", 1, 0),
        ] {
            assert_ne!(one.id, other.id);
        }
        assert_eq!(text(b"d", "p", 1, 2), format!("{}{}", token(b"d", "p", 1, 0).text, token(b"d", "p", 1, 1).text));
    }
}

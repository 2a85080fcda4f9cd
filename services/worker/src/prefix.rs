//! Keys of the prefix cache: names for the content of KV blocks, which hold within one namespace only (invariant 2).
//!
//! A namespace is the hash of everything beside the tokens that keys and values depend on, and of the tenant's salt. A
//! block's hash is taken over the hash of the block before it, the first one's over the namespace, so it names all tokens up
//! to its end. Both are whole SHA-256: who wants another tenant's blocks has to find a second preimage, and who wants to
//! mix up two prompts of one namespace a collision.

use weft_batching::{BlockHash, Prefix};
use weft_types::{Digest, DigestHasher};

use crate::model::BLOCK_SIZE;

const NAMESPACE_TAG: &[u8] = b"weft.kv-namespace.v1";
const BLOCK_TAG: &[u8] = b"weft.kv-block.v1";

/// What blocks must agree on beside their tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespace<'a> {
    pub(crate) base: &'a Digest,
    /// None: the base alone.
    pub(crate) adapter: Option<&'a Digest>,
    /// Not empty; of the tenant alone.
    pub(crate) tenant_salt: &'a [u8],
    /// What keys and values are computed and stored in.
    pub(crate) dtype: &'a str,
}

impl Namespace<'_> {
    /// Each field with its length before it, so that no two namespaces read alike.
    fn key(&self) -> Digest {
        let mut hasher = DigestHasher::new();
        let adapter: [&[u8]; 2] = match self.adapter {
            None => [b"base", b""],
            Some(digest) => [b"adapter", digest.as_bytes()],
        };
        let fields =
            [NAMESPACE_TAG, self.base.as_bytes(), adapter[0], adapter[1], self.tenant_salt, self.dtype.as_bytes()];
        for field in fields {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        hasher.finish()
    }
}

/// Hashes the blocks of one request as they fill.
#[derive(Clone, Debug)]
pub(crate) struct HashChain {
    /// Of the last full block; of the namespace before there is one.
    last: Digest,
    /// Tokens in full blocks.
    tokens: usize,
}

impl HashChain {
    /// The chain of a prompt, and what the scheduler has to know of it.
    /// Cost: about 0.1 µs a block with SHA instructions.
    pub(crate) fn of_prompt(namespace: Namespace<'_>, prompt: &[u32], reads: bool) -> (Self, Prefix) {
        let mut chain = Self { last: namespace.key(), tokens: 0 };
        let hashes = std::iter::from_fn(|| chain.next(prompt)).collect();
        (chain, Prefix { hashes, reads })
    }

    /// The hash of the first full block of these tokens that was not hashed before. The tokens are those of earlier calls
    /// and any that followed.
    pub(crate) fn next(&mut self, tokens: &[u32]) -> Option<BlockHash> {
        let block = tokens.get(self.tokens..self.tokens + BLOCK_SIZE)?;
        // Every part has a fixed length.
        let mut hasher = DigestHasher::new();
        hasher.update(BLOCK_TAG);
        hasher.update(self.last.as_bytes());
        block.iter().for_each(|token| hasher.update(&token.to_le_bytes()));
        self.last = hasher.finish();
        self.tokens += BLOCK_SIZE;
        Some(BlockHash(*self.last.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hashes(namespace: Namespace<'_>, tokens: &[u32]) -> Vec<BlockHash> {
        HashChain::of_prompt(namespace, tokens, true).1.hashes
    }

    #[test]
    fn every_part_of_the_namespace_counts() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let plain = Namespace { base: &one, adapter: Some(&two), tenant_salt: &[7; 32], dtype: "f32" };
        let others = [
            Namespace { base: &two, ..plain },
            Namespace { adapter: None, ..plain },
            Namespace { adapter: Some(&one), ..plain },
            Namespace { base: &two, adapter: Some(&one), ..plain },
            Namespace { tenant_salt: &[8; 32], ..plain },
            Namespace { tenant_salt: &[7; 31], ..plain },
            Namespace { dtype: "bf16", ..plain },
            // The same bytes in a row, cut elsewhere.
            Namespace { tenant_salt: &[&[7; 32][..], b"f"].concat(), dtype: "32", ..plain },
        ];
        for other in others {
            assert_ne!(hashes(other, &[1; 16]), hashes(plain, &[1; 16]), "{other:?}");
        }
        assert_eq!(hashes(plain, &[1; 16]), hashes(plain, &[1; 16]));
    }

    proptest! {
        #[test]
        fn a_hash_names_all_tokens_up_to_the_end_of_its_block(
            tokens in proptest::collection::vec(0u32..3, 0..80),
            at in 0usize..80,
        ) {
            let base = Digest::of(b"base");
            let namespace = Namespace { base: &base, adapter: None, tenant_salt: &[1; 32], dtype: "f32" };
            let plain = hashes(namespace, &tokens);
            prop_assert_eq!(plain.len(), tokens.len() / BLOCK_SIZE);
            if at < tokens.len() {
                let mut changed = tokens.clone();
                changed[at] += 5;
                for (block, (before, after)) in plain.iter().zip(hashes(namespace, &changed)).enumerate() {
                    prop_assert_eq!(*before == after, block < at / BLOCK_SIZE);
                }
            }
        }

        #[test]
        fn tokens_that_come_one_by_one_give_the_same_hashes(
            tokens in proptest::collection::vec(0u32..50_000, 0..80),
            prompt in 0usize..80,
        ) {
            let base = Digest::of(b"base");
            let namespace = Namespace { base: &base, adapter: None, tenant_salt: &[1; 32], dtype: "f32" };
            let prompt = prompt.min(tokens.len());
            let (mut chain, Prefix { mut hashes, .. }) = HashChain::of_prompt(namespace, &tokens[..prompt], true);
            for end in prompt + 1..=tokens.len() {
                hashes.extend(chain.next(&tokens[..end]));
            }
            prop_assert_eq!(hashes, self::hashes(namespace, &tokens));
        }
    }
}

//! Which worker computed the beginning of a prompt last, so that it is likely in that worker's prefix cache still.
//!
//! A gateway has no tokenizer: it cuts prompts into blocks of bytes and names each by a hash chain that begins with the tenant's
//! salt, the base and the adapter, as workers' prefix caches do with tokens (invariant 2). So nobody's prompt is ever compared with
//! another tenant's. What is kept is a hash and a worker; what is wrong about it costs time, never an answer.

use crate::workers::WorkerId;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use weft_proto::worker::v1::generate_request::Prompt;
use weft_types::Digest;

const TAG: &[u8] = b"weft.gateway-prefix.v1";
/// Bytes of a block; about [`BLOCK_TOKENS`] tokens.
const BLOCK_BYTES: usize = 1024;
const BLOCK_TOKENS: u32 = 256;
/// Blocks of one prompt that are looked at.
const BLOCKS_MAX: usize = 64;
/// Blocks that are remembered, some 50 bytes each.
const ENTRIES_MAX: usize = 1 << 16;
/// Workers that are told apart for one request.
const HITS_MAX: usize = 4;
/// How much one answer says about how much of a prediction holds.
const WEIGHT: f64 = 1.0 / 16.0;

/// The blocks of a prompt, each name standing for all that comes before it too. Empty for one that is short, or whose tenant has no
/// salt, or of which only the end is used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain(Vec<u64>);

impl Chain {
    /// Cost: a hash over at most 64 KiB.
    pub(crate) fn of(salt: Option<&[u8; 32]>, base: &Digest, adapter: Option<&Digest>, prompt: &Prompt) -> Self {
        let Some(salt) = salt else { return Self::default() };
        let ids;
        // What is rendered before the messages counts as a part of where the chain begins.
        let (kind, before, bytes): (u8, &[u8], &[u8]) = match prompt {
            Prompt::Text(text) if text.truncate > 0 => return Self::default(),
            Prompt::Text(text) => (0, &[], text.text.as_bytes()),
            Prompt::Chat(chat) => (1, chat.tools_json.as_bytes(), chat.messages_json.as_bytes()),
            Prompt::Tokens(tokens) => {
                let known = tokens.ids.iter().take(BLOCKS_MAX * BLOCK_BYTES / size_of::<u32>());
                ids = known.flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
                (2, &[], &ids)
            }
        };
        if bytes.len() < BLOCK_BYTES {
            return Self::default();
        }
        let adapter = adapter.map_or([0; 32], |adapter| *adapter.as_bytes());
        let mut start = Sha256::new();
        start.update(TAG);
        start.update([kind]);
        start.update(salt);
        start.update(base.as_bytes());
        start.update(adapter);
        start.update(Sha256::digest(before));
        let mut last: [u8; 32] = start.finalize().into();
        let blocks = bytes.chunks_exact(BLOCK_BYTES).take(BLOCKS_MAX).map(|block| {
            last = Sha256::new().chain_update(last).chain_update(block).finalize().into();
            // Enough to tell blocks apart that a gateway remembers; two that are taken for one cost time.
            u64::from_le_bytes(std::array::from_fn(|at| last[at]))
        });
        Self(blocks.collect())
    }
}

/// How much of a prompt a worker likely has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) worker: WorkerId,
    pub(crate) tokens: u32,
}

/// What is remembered.
pub(crate) struct Prefixes(Mutex<State>);

struct State {
    /// Two generations: when the young one is full, it becomes the old one, and what was old and not seen again is forgotten.
    young: HashMap<u64, WorkerId>,
    old: HashMap<u64, WorkerId>,
    /// How much of what was predicted workers had, 0 to 1.
    held: f64,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self(Mutex::new(State { young: HashMap::new(), old: HashMap::new(), held: 1.0 }))
    }
}

impl Prefixes {
    fn state(&self) -> MutexGuard<'_, State> {
        // What is in it may be anything, so a poisoned lock carries nothing wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has how much of it, the most first. Cost: a look for each block.
    pub(crate) fn find(&self, chain: &Chain) -> Vec<Hit> {
        let state = self.state();
        let mut hits: Vec<Hit> = Vec::new();
        for (at, block) in chain.0.iter().enumerate().rev() {
            let Some(worker) = state.young.get(block).or_else(|| state.old.get(block)).copied() else { continue };
            if hits.len() < HITS_MAX && !hits.iter().any(|hit| hit.worker == worker) {
                let tokens = f64::from((at as u32 + 1) * BLOCK_TOKENS) * state.held;
                hits.push(Hit { worker, tokens: tokens as u32 });
            }
        }
        hits
    }

    /// This worker has computed the prompt now. `predicted` tokens were expected to be in its cache, `cached` were.
    pub(crate) fn note(&self, chain: &Chain, worker: WorkerId, predicted: u32, cached: u32) {
        if chain.0.is_empty() {
            return;
        }
        let mut state = self.state();
        if predicted > 0 {
            let held = (f64::from(cached) / f64::from(predicted) * state.held).min(1.0);
            state.held += (held - state.held) * WEIGHT;
            // So that it can grow again when workers keep more.
            state.held = state.held.max(WEIGHT);
        }
        for block in &chain.0 {
            if state.young.len() >= ENTRIES_MAX / 2 {
                state.old = std::mem::take(&mut state.young);
            }
            state.young.insert(*block, worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::worker::v1 as pb;

    const SALT: [u8; 32] = [7; 32];

    fn text(text: impl Into<String>) -> Prompt {
        Prompt::Text(pb::TextPrompt { text: text.into(), ..Default::default() })
    }

    fn chain(salt: &[u8; 32], prompt: &Prompt) -> Chain {
        Chain::of(Some(salt), &Digest::of(b"base"), None, prompt)
    }

    #[test]
    fn a_longer_prompt_begins_with_the_blocks_of_a_shorter_one() {
        let (short, long) = (text("x".repeat(3000)), text("x".repeat(9000)));
        let (short, long) = (chain(&SALT, &short), chain(&SALT, &long));
        assert_eq!((short.0.len(), long.0.len()), (2, 8));
        assert_eq!(short.0, long.0[..2]);
        assert_eq!(chain(&SALT, &text("x".repeat(1 << 20))).0.len(), BLOCKS_MAX);
        assert!(chain(&SALT, &text("x".repeat(BLOCK_BYTES - 1))).0.is_empty());
        let tokens = Prompt::Tokens(pb::TokenPrompt { ids: vec![5; 1 << 20] });
        assert_eq!(chain(&SALT, &tokens).0.len(), BLOCKS_MAX);
    }

    #[test]
    fn what_is_not_the_same_tenant_base_adapter_tools_and_text_shares_nothing() {
        let words = "x".repeat(2000);
        let chat = |tools: &str| {
            let (messages_json, tools_json) = (words.clone(), tools.to_owned());
            Prompt::Chat(pb::ChatPrompt { messages_json, tools_json, ..Default::default() })
        };
        let (base, other) = (Digest::of(b"base"), Digest::of(b"other"));
        let all = [
            chain(&SALT, &text(&*words)),
            chain(&[8; 32], &text(&*words)),
            chain(&SALT, &text(format!("y{words}"))),
            chain(&SALT, &chat("")),
            chain(&SALT, &chat("[]")),
            Chain::of(Some(&SALT), &other, None, &text(&*words)),
            Chain::of(Some(&SALT), &base, Some(&other), &text(&*words)),
        ];
        let names: std::collections::HashSet<u64> = all.iter().map(|chain| chain.0[0]).collect();
        assert_eq!(names.len(), all.len());
        assert!(Chain::of(None, &base, None, &text(&*words)).0.is_empty(), "without a salt nothing is cached");
        let end = Prompt::Text(pb::TextPrompt { text: words, truncate: 5, ..Default::default() });
        assert!(chain(&SALT, &end).0.is_empty());
    }

    #[test]
    fn the_last_worker_of_each_block_is_found_the_longest_first() {
        let prefixes = Prefixes::default();
        let (short, long) = (chain(&SALT, &text("x".repeat(2048))), chain(&SALT, &text("x".repeat(5 * 1024))));
        assert!(prefixes.find(&long).is_empty());
        prefixes.note(&long, WorkerId(1), 0, 0);
        prefixes.note(&short, WorkerId(2), 0, 0);
        let hit = |worker, blocks: u32| Hit { worker: WorkerId(worker), tokens: blocks * BLOCK_TOKENS };
        assert_eq!(prefixes.find(&long), [hit(1, 5), hit(2, 2)]);
        assert_eq!(prefixes.find(&short), [hit(2, 2)]);
    }

    #[test]
    fn predictions_follow_what_workers_really_had() {
        let prefixes = Prefixes::default();
        let chain = chain(&SALT, &text("x".repeat(4096)));
        prefixes.note(&chain, WorkerId(1), 0, 0);
        let predict = || prefixes.find(&chain)[0].tokens;
        assert_eq!(predict(), 1024);
        for _ in 0..100 {
            prefixes.note(&chain, WorkerId(1), predict(), 512);
        }
        assert!(predict().abs_diff(512) < 20, "{}", predict());
        for _ in 0..1000 {
            prefixes.note(&chain, WorkerId(1), predict(), 0);
        }
        assert_eq!(predict(), 64, "never quite given up");
        for _ in 0..1000 {
            prefixes.note(&chain, WorkerId(1), predict(), 1024);
        }
        assert!(predict() > 1000, "{}", predict());
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let prefixes = Prefixes::default();
        let kept = chain(&SALT, &text("x".repeat(2048)));
        for n in 0..ENTRIES_MAX as u64 {
            let others = Chain((0..4).map(|block| n * 4 + block).collect());
            prefixes.note(&others, WorkerId(1), 0, 0);
            if n.is_multiple_of(1000) {
                prefixes.note(&kept, WorkerId(2), 0, 0);
            }
            let state = prefixes.state();
            assert!(state.young.len() + state.old.len() <= ENTRIES_MAX);
        }
        assert_eq!(prefixes.find(&kept)[0].worker, WorkerId(2));
        assert!(prefixes.find(&Chain(vec![0])).is_empty());
    }
}

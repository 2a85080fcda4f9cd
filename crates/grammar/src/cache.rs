use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use weft_types::{Digest, DigestHasher};

use crate::{Grammar, Source};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Most grammars.
    pub entries_max: usize,
    /// Most bytes, as [`Grammar::bytes`] counts.
    pub bytes_max: u64,
}

/// Names a grammar for one tenant and one adapter: hits and misses can be timed, so that nothing is shared further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    tenant: Digest,
    grammar: Digest,
}

impl Key {
    /// Over the base, the adapter (none: the base alone), the tenant's salt and the source, each with its length.
    #[must_use]
    pub fn new(base: &Digest, adapter: Option<&Digest>, tenant_salt: &[u8], source: &Source) -> Self {
        let adapter = adapter.map_or(&b"base"[..], |digest| &digest.as_bytes()[..]);
        let parts = [&base.as_bytes()[..], adapter, tenant_salt, source.kind().as_bytes(), source.text().as_bytes()];
        Self {
            tenant: hash(b"weft.grammar-cache.tenant.v1", &[tenant_salt]),
            grammar: hash(b"weft.grammar-cache.v1", &parts),
        }
    }
}

fn hash(tag: &[u8], parts: &[&[u8]]) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.update(tag);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finish()
}

struct Entry {
    grammar: Grammar,
    last_used: u64,
    /// When it was last counted.
    bytes: u64,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    clock: u64,
}

/// Grammars that were compiled lately. When it is full, the tenant that holds the most bytes gives up what it used longest
/// ago: a tenant that sends one schema after another pushes out its own.
pub struct Cache {
    limits: CacheLimits,
    state: Mutex<State>,
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(limits: CacheLimits) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// The grammar, if it is kept.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Grammar> {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        let entry = state.entries.get_mut(key)?;
        entry.last_used = clock;
        Some(entry.grammar.clone())
    }

    /// Keeps the grammar and lets others go until the limits hold; perhaps itself. Grammars grow, so all are counted again.
    pub fn put(&self, key: Key, grammar: Grammar) {
        let mut state = self.lock();
        state.clock += 1;
        let last_used = state.clock;
        state.entries.insert(key, Entry { grammar, last_used, bytes: 0 });
        for entry in state.entries.values_mut() {
            entry.bytes = entry.grammar.bytes();
        }
        while let Some(victim) = state.over(&self.limits) {
            state.entries.remove(&victim);
        }
    }

    /// Grammars and bytes that are kept, the bytes as counted by the last [`put`](Self::put).
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let state = self.lock();
        (state.entries.len(), state.bytes())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    /// Who goes next, while a limit is exceeded.
    fn over(&self, limits: &CacheLimits) -> Option<Key> {
        if self.entries.len() <= limits.entries_max && self.bytes() <= limits.bytes_max {
            return None;
        }
        let mut by_tenant: HashMap<Digest, u64> = HashMap::new();
        for (key, entry) in &self.entries {
            *by_tenant.entry(key.tenant).or_default() += entry.bytes;
        }
        let (largest, _) = by_tenant.into_iter().max_by_key(|(tenant, bytes)| (*bytes, *tenant))?;
        let of_largest = self.entries.iter().filter(|(key, _)| key.tenant == largest);
        of_largest.min_by_key(|(_, entry)| entry.last_used).map(|(key, _)| *key)
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("limits", &self.limits).field("size", &self.size()).finish()
    }
}

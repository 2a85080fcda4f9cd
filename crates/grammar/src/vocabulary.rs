//! The model's tokens as `toktrie` wants them.

use toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use weft_base_model::Tokenizer;

pub(crate) struct Vocabulary {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl Vocabulary {
    /// `size`: logits in a row, which may be more than the tokenizer knows. `eos`: not empty, each below `size`.
    /// Cost: about 20 ms for 50,000 tokens.
    pub(crate) fn new(tokenizer: Tokenizer, size: usize, eos: &[TokenId]) -> Self {
        let words: Vec<Vec<u8>> = (0..size as u32).map(|id| word(&tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(size as u32, eos[0]), &words).with_eos_tokens(eos);
        Self { trie, tokenizer }
    }
}

/// The text a token adds to an answer. A special token adds none, so no grammar may ask for it as text; a token that begins
/// with 0xff, which no UTF-8 holds, would be taken for the mark of a special one.
fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if tokenizer.is_special(id) || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
        Vec::new()
    } else {
        bytes.into_owned()
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// What the model would have been trained to see; text that the grammar forces is given to it in these tokens. Where the
    /// tokenizer changes the text (or cannot read it), the longest tokens that spell it.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let ids = std::str::from_utf8(bytes).ok().and_then(|text| self.tokenizer.encode_continuation(text).ok());
        match ids {
            Some(ids) if self.spells(&ids, bytes) => ids,
            _ => self.trie.greedy_tokenize(bytes),
        }
    }
}

impl Vocabulary {
    fn spells(&self, ids: &[TokenId], mut bytes: &[u8]) -> bool {
        for id in ids {
            let word = self.trie.token(*id);
            match bytes.strip_prefix(word) {
                Some(rest) if !word.is_empty() => bytes = rest,
                _ => return false,
            }
        }
        bytes.is_empty()
    }
}

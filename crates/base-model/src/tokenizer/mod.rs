//! Text to token ids and back, on the `tokenizers` crate, so that ids are those of Hugging Face.
//!
//! Two ways to read text. *Parse* turns the text of a special token into that token, as Hugging Face does: right for
//! prompts that the caller wrote whole. *Literal* never makes a special token: right for anything a user typed into
//! a chat. Between them stands [`Tokenizer::encode_rendered`], for a rendered chat template, in which some special
//! tokens were written by the template and others are user text.
//!
//! Tokens that were added to a vocabulary but are not marked special stay whole in both ways: they are words.

mod bound;
mod bytes;
mod gguf;

pub(crate) use gguf::{from_gguf, vocabulary_digest as gguf_vocabulary_digest};

use crate::Error;
use crate::template::Rendered;
use bytes::TokenBytes;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedVocabulary, Model, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer};

/// How the text of special tokens in the input is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// As ordinary text; no id in the answer is special (but for those `add_special` adds).
    Literal,
    /// As the special token, like Hugging Face's `tokenizers`.
    Parse,
}

/// A token with the piece of the input it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextToken {
    /// The token.
    pub id: u32,
    /// `input[start..end]`, in characters; empty for a token that was added.
    pub text: String,
    /// First character.
    pub start: usize,
    /// One past the last character.
    pub end: usize,
}

/// A model's tokenizer. Cheap to clone; all methods may run at once on many threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    hf: tokenizers::Tokenizer,
    /// The added vocabulary again, but letting special tokens through as text.
    literal: AddedVocabulary,
    /// The pre-tokenizer for a piece that does not begin the text, where that differs.
    inner_pre_tokenizer: Option<PreTokenizerWrapper>,
    bytes: TokenBytes,
    text_bytes_per_token_max: Option<usize>,
    special: BTreeSet<u32>,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Wraps a tokenizer whose padding and truncation are dropped, as transformers does. The error says what about
    /// the tokenizer is not supported.
    pub(crate) fn new(mut hf: tokenizers::Tokenizer, bos_id: Option<u32>, eos_ids: &[u32]) -> Result<Self, String> {
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|error| error.to_string())?;
        let mut literal = hf.get_added_vocabulary().clone();
        literal.set_encode_special_tokens(true);
        let special = hf.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let eos_ids: BTreeSet<u32> = eos_ids.iter().copied().collect();
        let bytes = TokenBytes::of(&hf)?;
        Ok(Self {
            inner: Arc::new(Inner {
                literal,
                inner_pre_tokenizer: hf.get_pre_tokenizer().and_then(without_first_prefix),
                text_bytes_per_token_max: bound::text_bytes_per_token_max(&hf, bytes.longest()),
                bytes,
                special,
                bos_id,
                eos_ids: eos_ids.into_iter().collect(),
                hf,
            }),
        })
    }

    /// The ids of `text`. With `add_special` the tokens that the model's post-processor adds (often BOS).
    /// Cost: 1 to 4 µs per token.
    ///
    /// # Errors
    /// [`Error::Encode`] if the tokenizer's own pattern gives up on the text.
    pub fn encode(&self, text: &str, add_special: bool, special: SpecialText) -> Result<Vec<u32>, Error> {
        let hf = &self.inner.hf;
        let encoding = match special {
            SpecialText::Parse => hf.encode_fast(text, add_special),
            SpecialText::Literal => {
                self.literal_encoding(text, true).and_then(|encoding| hf.post_process(encoding, None, add_special))
            }
        };
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(encode_error)
    }

    /// The ids of text that goes on from other text: nothing is put before it, and no id is special.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.literal_encoding(text, false).map(|encoding| encoding.get_ids().to_vec()).map_err(encode_error)
    }

    /// As [`encode`](Self::encode) with [`SpecialText::Parse`], and where in the text each token came from, in
    /// characters.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Vec<TextToken>, Error> {
        let encoding = self.inner.hf.encode_char_offsets(text, add_special).map_err(encode_error)?;
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let token = |(&id, &(start, end)): (&u32, &(usize, usize))| {
            let bytes = starts.get(start).zip(starts.get(end)).and_then(|(a, b)| text.get(*a..*b));
            TextToken { id, text: bytes.unwrap_or_default().to_owned(), start, end }
        };
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(token).collect())
    }

    /// The ids of a rendered chat: special tokens that the template wrote become special, those inside user text do
    /// not. Nothing is added: templates write BOS themselves.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, Error> {
        let marked = rendered.marked();
        // Splitting by hand keeps offsets in the marked text; no normalizer, or they would be of its output.
        let pieces = self.inner.hf.get_added_vocabulary().extract_and_normalize(None::<&NormalizerWrapper>, marked);
        let mut ids = Vec::new();
        let mut plain = String::new();
        let mut plain_is_first = true;
        for (_, (start, end), tokens) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            let token = tokens.as_ref().and_then(|tokens| tokens.first()).filter(|token| self.is_special(token.id));
            let Some(token) = token else {
                plain.push_str(&rendered.unmark(&marked[start..end]));
                continue;
            };
            self.flush_plain(&mut plain, plain_is_first, &mut ids)?;
            plain_is_first = false;
            ids.push(token.id);
        }
        self.flush_plain(&mut plain, plain_is_first, &mut ids)?;
        Ok(ids)
    }

    fn flush_plain(&self, plain: &mut String, first: bool, ids: &mut Vec<u32>) -> Result<(), Error> {
        if !plain.is_empty() {
            let encoding = self.literal_encoding(plain, first).map_err(encode_error)?;
            ids.extend_from_slice(encoding.get_ids());
            plain.clear();
        }
        Ok(())
    }

    /// The steps of `tokenizers::Tokenizer::encode_fast`, but special tokens are text; `first` says whether this
    /// piece begins the whole text.
    fn literal_encoding(&self, text: &str, first: bool) -> tokenizers::Result<tokenizers::Encoding> {
        let hf = &self.inner.hf;
        let mut pieces = self.inner.literal.extract_and_normalize(hf.get_normalizer(), text);
        let pre_tokenizer = match &self.inner.inner_pre_tokenizer {
            Some(inner) if !first => Some(inner),
            _ => hf.get_pre_tokenizer(),
        };
        if let Some(pre_tokenizer) = pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| hf.get_model().tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, OffsetType::None)
    }

    /// The text of these ids, invalid UTF-8 replaced, unknown ids left out; without special tokens if so asked.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Decoders of the kinds accepted at load do not fail.
        self.inner.hf.decode(ids, skip_special).unwrap_or_default()
    }

    /// The bytes one token stands for; several tokens may share a character, so join bytes before reading UTF-8.
    /// Empty for an unknown id. A special token gives its text.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.inner.bytes.get(id))
    }

    /// The token's bytes as text, with replacement characters where they are only part of one.
    #[must_use]
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.inner.bytes.get(id)).into_owned()
    }

    /// Whether the token is special: written by templates, never by users.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.contains(&id)
    }

    /// The id of exactly this token, as the vocabulary spells it.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.hf.token_to_id(token)
    }

    /// Most bytes of text that one token can stand for; `None` where there is no such bound. A text of more than
    /// `n` times this has more than `n` tokens.
    #[must_use]
    pub fn text_bytes_per_token_max(&self) -> Option<usize> {
        self.inner.text_bytes_per_token_max
    }

    /// One more than the largest id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.bytes.len()
    }

    /// The token a text begins with, if the model has one.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.bos_id
    }

    /// Tokens that end an answer, ascending.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// Texts of all special tokens.
    pub(crate) fn special_texts(&self) -> Vec<String> {
        let vocabulary = self.inner.hf.get_added_tokens_decoder();
        vocabulary.values().filter(|token| token.special).map(|token| token.content.clone()).collect()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn encode_error(error: tokenizers::Error) -> Error {
    Error::Encode(error.to_string())
}

/// `Metaspace` with `prepend_scheme: first` puts its mark only before the piece that begins the text. Pieces of a
/// rendered chat are encoded one by one, so the later ones need it switched off. `None` if nothing differs.
fn without_first_prefix(pre_tokenizer: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
    let mut changed = pre_tokenizer.clone();
    let parts = match &mut changed {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_mut(),
        single => std::slice::from_mut(single),
    };
    let mut differs = false;
    for part in parts {
        if let PreTokenizerWrapper::Metaspace(metaspace) = part
            && metaspace.get_prepend_scheme() == PrependScheme::First
        {
            metaspace.set_prepend_scheme(PrependScheme::Never);
            differs = true;
        }
    }
    differs.then_some(changed)
}

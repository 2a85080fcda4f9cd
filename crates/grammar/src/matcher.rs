use llguidance::TokenParser;
use toktrie::{SimpleVob, TokenId};

use crate::{Error, Grammar};

/// A set of tokens: bit `id % 32` of word `id / 32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    words: Box<[u32]>,
}

impl Mask {
    /// One word for 32 tokens, the last perhaps in part; at least as many bits as the vocabulary has tokens.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether the token is in the set.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// How many tokens are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no token is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

impl From<SimpleVob> for Mask {
    fn from(set: SimpleVob) -> Self {
        Self { words: Vec::from(set).into_boxed_slice() }
    }
}

/// Follows one answer through a grammar.
pub struct Matcher {
    grammar: Grammar,
    inner: llguidance::Matcher,
    /// All of the answer so far.
    tokens: Vec<TokenId>,
    /// Has a lexer of its own.
    apart: bool,
}

impl Matcher {
    pub(crate) fn new(grammar: Grammar, parser: &TokenParser) -> Self {
        Self { grammar, inner: llguidance::Matcher::new(Ok(parser.clone())), tokens: Vec::new(), apart: false }
    }

    /// The set of tokens an answer may begin with.
    pub(crate) fn first_mask(parser: &TokenParser) -> Result<Mask, Error> {
        mask_of(&mut llguidance::Matcher::new(Ok(parser.clone())))
    }

    /// The tokens that may come next; the end tokens alone after a whole answer. Not empty.
    /// Cost: 10 to 100 µs, where the lexer meets something new some milliseconds, bounded by
    /// [`Limits`](crate::Limits). Matchers of one grammar wait for each other.
    ///
    /// # Errors
    /// [`Error::Lost`] if a limit was reached.
    pub fn mask(&mut self) -> Result<Mask, Error> {
        if self.tokens.is_empty() {
            return Ok(self.grammar.first_mask().clone());
        }
        self.or_apart(mask_of)
    }

    /// The answer goes on with `token`. Cost: a few µs.
    ///
    /// # Errors
    /// [`Error::Lost`] if the token is not in the mask, or a limit was reached.
    pub fn consume(&mut self, token: TokenId) -> Result<(), Error> {
        self.or_apart(|inner| inner.consume_token(token).map_err(Error::lost))?;
        self.tokens.push(token);
        Ok(())
    }

    /// Whether the answer may end here.
    #[must_use]
    pub fn may_end(&mut self) -> bool {
        self.inner.is_stopped() || self.inner.is_accepting().unwrap_or(false)
    }

    /// Tries; when that fails, once more with a lexer of its own. What other answers of this grammar did to the lexer that
    /// they share must not end this one.
    fn or_apart<T>(&mut self, work: impl Fn(&mut llguidance::Matcher) -> Result<T, Error>) -> Result<T, Error> {
        let failed = match work(&mut self.inner) {
            Ok(done) => return Ok(done),
            Err(error) if self.apart => return Err(error),
            Err(error) => error,
        };
        self.apart = true;
        self.inner = llguidance::Matcher::new(Ok(self.grammar.apart()));
        if self.inner.consume_tokens(&self.tokens).is_err() {
            return Err(failed);
        }
        work(&mut self.inner)
    }
}

fn mask_of(inner: &mut llguidance::Matcher) -> Result<Mask, Error> {
    let mask = inner.compute_mask_or_eos().map(Mask::from).map_err(Error::lost)?;
    if mask.is_empty() { Err(Error::lost("no token is allowed")) } else { Ok(mask) }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher")
            .field("tokens", &self.tokens.len())
            .field("apart", &self.apart)
            .finish_non_exhaustive()
    }
}

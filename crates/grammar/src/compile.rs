use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{ParserFactory, TokenParser};
use toktrie::TokenId;
use weft_base_model::Tokenizer;

use crate::vocabulary::Vocabulary;
use crate::{Error, Limits, Mask, Matcher, Source};

/// Memory of a grammar beside its lexer and its source: symbols, rules and one mask.
const OVERHEAD_BYTES: u64 = 64 << 10;

/// Compiles grammars for one model. Its token tries (about 10 MB for 50,000 tokens) are made by the first grammar, so that a
/// worker that never sees one does not pay for them.
pub struct Compiler {
    tokenizer: Tokenizer,
    vocabulary: usize,
    eos: Vec<TokenId>,
    limits: Limits,
    factory: OnceLock<Result<ParserFactory, Error>>,
}

impl Compiler {
    /// `vocabulary`: logits in a row. `eos`: tokens that end an answer.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, vocabulary: usize, eos: &[TokenId], limits: Limits) -> Self {
        let mut eos: Vec<TokenId> = eos.iter().copied().filter(|id| (*id as usize) < vocabulary).collect();
        eos.sort_unstable();
        eos.dedup();
        Self { tokenizer, vocabulary, eos, limits, factory: OnceLock::new() }
    }

    /// Compiles. Cost: 1 to 50 ms, bounded by [`Limits`]; about 100 ms more for the first grammar of all. Needs less than
    /// 2 MiB of stack.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::Refused`]: the source is over a limit, unreadable, unsupported or impossible.
    pub fn compile(&self, source: &Source) -> Result<Grammar, Error> {
        let grammar = source.grammar(&self.limits)?;
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(grammar).map_err(|error| Error::refused(source.kind(), chain(&error)))?;
        Grammar::new(parser, source)
    }

    fn factory(&self) -> Result<ParserFactory, Error> {
        if self.eos.is_empty() {
            return Err(Error::refused("grammar", "the base model has no token that ends an answer"));
        }
        let vocabulary = Vocabulary::new(self.tokenizer.clone(), self.vocabulary, &self.eos);
        let env: TokEnv = Arc::new(vocabulary);
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&env, capabilities, &SlicedBiasComputer::json_slices())
            .map_err(|error| Error::refused("grammar", chain(&error)))?;
        *factory.limits_mut() = self.limits.parser();
        factory.quiet();
        Ok(factory)
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("vocabulary", &self.vocabulary).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// The causes of a compiler's error hold the place in the source.
fn chain(error: &impl std::fmt::Display) -> String {
    format!("{error:#}")
}

/// A compiled grammar. Cheap to clone; all clones are one.
///
/// Matchers of one grammar share its lexer, whose automaton grows with the answers it has seen: what one answer has visited
/// is quick for the next. That is why a grammar belongs to one tenant (see [`Key`](crate::Key)).
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Inner>,
}

struct Inner {
    /// Never used itself: with the lexer as it was compiled.
    pristine: TokenParser,
    /// The lexer that matchers share; replaced when it is full.
    shared: Mutex<TokenParser>,
    first_mask: Mask,
    source_bytes: u64,
}

impl Grammar {
    fn new(pristine: TokenParser, source: &Source) -> Result<Self, Error> {
        let shared = pristine.deep_clone();
        let first_mask = Matcher::first_mask(&shared).map_err(|error| match error {
            Error::Lost(reason) => Error::refused(source.kind(), format!("no answer can begin: {reason}")),
            other => other,
        })?;
        let source_bytes = source.text().len() as u64;
        Ok(Self { inner: Arc::new(Inner { pristine, shared: Mutex::new(shared), first_mask, source_bytes }) })
    }

    /// For one answer. Cost: 1 µs.
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        Matcher::new(self.clone(), &self.shared())
    }

    /// The tokens an answer may begin with. Free.
    #[must_use]
    pub fn first_mask(&self) -> &Mask {
        &self.inner.first_mask
    }

    /// Memory it takes now; grows with the answers that were matched. Waits for a mask that is being computed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Expressions and states, as compiled and as grown; the source stands for the rules made from it.
        let lexer = |parser: &TokenParser| parser.parser.lexer_stats().num_bytes as u64;
        OVERHEAD_BYTES + 16 * self.inner.source_bytes + lexer(&self.inner.pristine) + lexer(&self.shared())
    }

    /// A lexer of its own for a matcher whose shared one failed; later matchers share a fresh one.
    pub(crate) fn apart(&self) -> TokenParser {
        let fresh = self.inner.pristine.deep_clone();
        *self.inner.shared.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.inner.pristine.deep_clone()
    }

    fn shared(&self) -> TokenParser {
        self.inner.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("source_bytes", &self.inner.source_bytes).finish_non_exhaustive()
    }
}

//! One choice of a token, apart from the sampler that will remember it: what a step takes to choose tokens itself.

use super::{Sampled, SamplingParams, sample_from};
use std::sync::Arc;

/// All that [`Sampler::sample_allowed`](super::Sampler::sample_allowed) takes but the logits. [`Sampler::draw`](super::Sampler::draw) makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// How the token is chosen.
    pub params: SamplingParams,
    /// Of the token, in the whole sequence, prompt included.
    pub position: u64,
    /// How many of the most probable tokens are reported.
    pub top_logprobs: usize,
    /// Bit `id % 32` of word `id / 32`: allowed; what it has no bit for is forbidden. None: every token is allowed.
    pub allowed: Option<Arc<[u32]>>,
    /// What penalties look at: tokens, each once, and how often each occurs in the output. Empty unless something is penalised.
    pub(crate) seen: Vec<(u32, u32)>,
}

/// Logits hold NaN or +inf, or nothing above -inf that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token can be chosen: logits are not finite, or none is allowed")]
pub struct NoToken;

impl Draw {
    /// Chooses the token from a row of logits, as long as the vocabulary. The row is overwritten when something is penalised or
    /// forbidden. Cost: see [`crate::sampling`].
    ///
    /// # Errors
    /// [`NoToken`].
    pub fn sample(&self, logits: &mut [f32]) -> Result<Sampled, NoToken> {
        sample_from(
            &self.params,
            self.seen.iter().copied(),
            logits,
            self.allowed.as_deref(),
            self.position,
            self.top_logprobs,
        )
    }
}

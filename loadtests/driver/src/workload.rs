//! What traffic to make: one source per kind of behaviour, all at once for a while.

use crate::arrivals::Arrivals;
use crate::lengths::Lengths;
use crate::popularity::Popularity;
use serde::{Deserialize, Serialize};

/// Requests of one tenant that behave alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Whose key they carry; figures are split by it.
    pub tenant: String,
    /// Model names to choose from. Empty: all requests ask for `base`.
    pub models: Vec<String>,
    /// When they come.
    pub arrivals: Arrivals,
    /// Which of the models each asks for.
    pub popularity: Popularity,
    /// Tokens of the prompts.
    pub prompt_tokens: Lengths,
    /// Tokens of the answers, exactly.
    pub output_tokens: Lengths,
}

/// All sources together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// They run side by side.
    pub sources: Vec<Source>,
    /// Seconds during which requests are sent; answers may take longer. Finite, above 0.
    pub duration_s: f64,
    /// Most requests of each source.
    pub requests_max: usize,
}

impl Source {
    /// Requests for one model, with fixed lengths.
    #[must_use]
    pub fn of(tenant: &str, models: &[String], arrivals: Arrivals, prompt_tokens: u32, output_tokens: u32) -> Self {
        Self {
            tenant: tenant.to_owned(),
            models: models.to_vec(),
            arrivals,
            popularity: Popularity::Uniform,
            prompt_tokens: Lengths::fixed(prompt_tokens),
            output_tokens: Lengths::fixed(output_tokens),
        }
    }
}

impl Workload {
    /// These sources for so many seconds, without a limit that would be reached.
    #[must_use]
    pub fn of(sources: Vec<Source>, duration_s: f64) -> Self {
        Self { sources, duration_s, requests_max: 20_000 }
    }
}

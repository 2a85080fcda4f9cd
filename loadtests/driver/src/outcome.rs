//! What became of one request. Times are microseconds from the start of the run.

use serde::Serialize;

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Index of its source in the workload.
    pub source: usize,
    /// Whose it was.
    pub tenant: String,
    /// What it asked for.
    pub model: String,
    /// When it should have been sent; in a closed loop, when it was.
    pub due_us: u64,
    /// When it was sent.
    pub sent_us: u64,
    /// When the pieces of its answer came, one or more tokens each.
    pub pieces_us: Vec<u64>,
    /// When it ended, however it did.
    pub end_us: u64,
    /// As the endpoint counts, else as asked for.
    pub prompt_tokens: u64,
    /// Of the prompt, served from a prefix cache, as the endpoint says.
    pub cached_tokens: u64,
    /// As the endpoint counts, else the pieces.
    pub completion_tokens: u64,
    /// `x-weft-adapter-wait-us`: how long it waited until its adapter was resident. Only Weft says so.
    pub adapter_wait_us: Option<u64>,
    /// The first request of this run for this tenant's adapter.
    pub first_use: bool,
    /// How it ended.
    pub end: End,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// With a whole answer.
    Completed,
    /// With this error.
    Failed(String),
    /// Never sent: as many were in flight as may be.
    Dropped,
}

impl Outcome {
    /// Whether the whole answer came.
    #[must_use]
    pub fn completed(&self) -> bool {
        self.end == End::Completed
    }

    /// Whether it had to wait for its adapter: as the server says, else by the first use of the adapter in this run.
    #[must_use]
    pub fn cold(&self) -> bool {
        self.adapter_wait_us.map_or(self.first_use, |wait| wait > 0)
    }

    /// Time to first token in ms, from when the request was due. An answer without visible pieces: to its end.
    #[must_use]
    pub fn ttft_ms(&self) -> f64 {
        ms(self.pieces_us.first().copied().unwrap_or(self.end_us).saturating_sub(self.due_us))
    }

    /// From when it was due to its end, ms.
    #[must_use]
    pub fn e2e_ms(&self) -> f64 {
        ms(self.end_us.saturating_sub(self.due_us))
    }

    /// Mean time of each token after the first, ms; `None` for answers of one token.
    #[must_use]
    pub fn tpot_ms(&self) -> Option<f64> {
        let first = *self.pieces_us.first()?;
        let more = self.completion_tokens.checked_sub(1).filter(|&more| more > 0)?;
        Some(ms(self.end_us.saturating_sub(first)) / more as f64)
    }

    /// Gaps between the pieces, ms.
    pub fn gaps_ms(&self) -> impl Iterator<Item = f64> + '_ {
        self.pieces_us.windows(2).map(|pair| ms(pair[1].saturating_sub(pair[0])))
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

use weft_fault::Kind;

/// Most characters of a reason that comes from the compiler: it may quote the source.
const REASON_CHARS_MAX: usize = 400;

/// A grammar that cannot be used, or an answer that it cannot follow any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Larger than a limit.
    #[error("{what} of {size} exceeds the limit of {limit}")]
    TooLarge {
        /// What was measured, with its unit.
        what: &'static str,
        /// How much there is.
        size: usize,
        /// How much is allowed.
        limit: usize,
    },
    /// Cannot be read, holds something unsupported, or allows no answer at all.
    #[error("{kind} cannot be used: {reason}")]
    Refused {
        /// Which kind of source.
        kind: &'static str,
        /// What is wrong, naming the keyword or the place.
        reason: String,
    },
    /// The work for one mask exceeded its limit, or a token was not allowed.
    #[error("the grammar cannot be followed any further: {0}")]
    Lost(String),
}

impl Error {
    /// Refuses with the compiler's own words, cut to a bounded piece.
    pub(crate) fn refused(kind: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Refused { kind, reason: tidy(&reason.to_string()) }
    }

    /// Gives up with the matcher's own words, cut to a bounded piece.
    pub(crate) fn lost(reason: impl std::fmt::Display) -> Self {
        Self::Lost(tidy(&reason.to_string()))
    }

    /// What the caller should do: all of these are about what the caller sent.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

/// One bounded line. A panic inside the compiler is told without its backtrace.
fn tidy(reason: &str) -> String {
    let reason = reason.split("\n<").next().unwrap_or_default();
    let reason = reason.strip_prefix("panic: ").unwrap_or(reason);
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut cut: String = line.chars().take(REASON_CHARS_MAX).collect();
    if cut.len() < line.len() {
        cut.push('…');
    }
    cut
}
